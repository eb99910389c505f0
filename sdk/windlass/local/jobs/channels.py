"""Input channels: from what a request says of its data to files, or a pipe, under ``input/data`` of each host.

for name, uri in members(channel):  ...           # every object, and its path within the channel
fill(channel, "File", share, folder)               # input/data/<channel>/...
Pipe(channel, share, folder, spool).start()        # input/data/<channel>_0, <channel>_1, ...: one FIFO for each epoch
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import random
import shutil
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from windlass.local import storage
from windlass.local.jobs import s3data

Channel = Mapping[str, Any]

POLL_SECONDS = 0.01
UNREADABLE = "ClientError: Data download failed for channel '{}'"
"""How SageMaker begins the FailureReason of a job whose data cannot be had."""


class Unreadable(Exception):
    """The data of a channel cannot be had; ``str()`` says why."""


def mode(channel: Channel, algorithm: Mapping[str, Any]) -> str:
    """``File``, ``FastFile`` or ``Pipe``: the channel's own, else that of the algorithm."""
    return str(channel.get("InputMode") or algorithm.get("TrainingInputMode", "File"))


def source(channel: Channel) -> Mapping[str, Any]:
    """Its S3DataSource."""
    found: Mapping[str, Any] = channel["DataSource"]["S3DataSource"]
    return found


def config(channel: Channel, algorithm: Mapping[str, Any]) -> dict[str, str]:
    """A channel as ``inputdataconfig.json`` has it. FastFile looks like File from inside a container."""
    told = {
        "TrainingInputMode": "Pipe" if mode(channel, algorithm) == "Pipe" else "File",
        "S3DistributionType": source(channel).get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }
    return {**told, **({"ContentType": channel["ContentType"]} if channel.get("ContentType") else {})}


def members(channel: Channel) -> list[tuple[str, str]]:
    """Path within the channel and URI of every object, in the order of their keys, or as the manifest has them.

    Raises:
        Unreadable: there is nothing, or the manifest is none, or a key climbs out of the channel.
    """
    try:
        objects = s3data.resolve(source(channel)["S3Uri"], source(channel)["S3DataType"])
    except s3data.Unavailable as error:
        raise Unreadable(str(error)) from error
    found = [(each.name, each.uri) for each in objects]
    for name, key in found:
        if ".." in Path(name).parts or name.startswith("/"):
            raise Unreadable(f"The key of '{key}' climbs out of the folder that it is downloaded to")
    return found


def share(found: Sequence[tuple[str, str]], channel: Channel, host: str, hosts: Sequence[str]) -> list[tuple[str, str]]:
    """What one of the hosts that have this channel gets: everything, or its shard."""
    if source(channel).get("S3DataDistributionType", "FullyReplicated") == "FullyReplicated":
        return list(found)
    return list(found[hosts.index(host) :: len(hosts)])


def fill(found: Sequence[tuple[str, str]], folder: Path) -> None:
    """Download into a channel's folder. A shard may be empty: then so is the folder. Raises Unreadable."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, uri in found:
        try:
            storage.download(uri, folder / name)
        except storage.Missing as error:
            raise Unreadable(str(error)) from error
        except OSError as error:
            # S3 knows no folders: an object and others "below" it cannot both be files here.
            raise Unreadable(f"'{uri}' cannot be written to {name} in the channel: {error.strerror}") from error


class Pipe:
    """A channel in Pipe mode: all its objects, one after another, through a FIFO; a new FIFO for each epoch.

    Args:
        path: ``input/data/<channel>``; the FIFOs are ``<channel>_0`` and so on beside it.
        spool: a folder for the objects, outside of the container.

    Attributes:
        problem: why nothing flows any more; empty while all is well.
    """

    def __init__(self, channel: Channel, found: Sequence[tuple[str, str]], path: Path, spool: Path) -> None:
        self.problem = ""
        self.channel, self._path = str(channel["ChannelName"]), path
        self._compressed = channel.get("CompressionType", "None") == "Gzip"
        self._seed = (channel.get("ShuffleConfig") or {}).get("Seed")
        self._closed = threading.Event()
        self._objects = [spool / str(number) for number in range(len(found))]
        self._uris = dict(zip(self._objects, (uri for _, uri in found), strict=True))
        fill([(path.name, uri) for path, (_, uri) in zip(self._objects, found, strict=True)], spool)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(self._fifo(0))
        self._thread = threading.Thread(target=self._feed, name=f"pipe-{path.name}", daemon=True)

    def start(self) -> None:
        """Offer the first epoch."""
        self._thread.start()

    def close(self) -> None:
        """Offer nothing more. Call it when the readers have ended."""
        self._closed.set()
        self._thread.join(5.0)

    def _fifo(self, epoch: int) -> Path:
        return self._path.with_name(f"{self._path.name}_{epoch}")

    def _feed(self) -> None:
        epoch = 0
        while not self.problem and (fd := self._open(self._fifo(epoch))) is not None:
            os.mkfifo(self._fifo(epoch + 1))  # before this one ends, so that a reader never looks for it in vain
            order = list(self._objects)
            if self._seed is not None:
                random.Random(f"{self._seed}-{epoch}").shuffle(order)  # noqa: S311
            # A reader may close early: it has had enough of this epoch.
            with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb") as pipe:
                for path in order:
                    self._copy(path, pipe)
            epoch += 1

    def _copy(self, path: Path, pipe: Any) -> None:
        if self.problem:
            return
        try:
            with gzip.open(path) if self._compressed else path.open("rb") as stream:
                shutil.copyfileobj(stream, pipe, 1 << 16)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:  # noted before the reader sees the end of the pipe
            self.problem = f"'{self._uris[path]}' is not compressed with gzip: {error}"

    def _open(self, fifo: Path) -> int | None:
        """Its writing end as soon as somebody reads; None when closed before."""
        while not self._closed.wait(POLL_SECONDS):
            try:
                fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody reads yet
                    return None
            else:
                os.set_blocking(fd, True)
                return fd
        return None
