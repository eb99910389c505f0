"""Checkpoints: a folder of each host and a prefix on S3 that follow each other while a job runs.

    sync = Checkpoints("s3://bucket/checkpoints", [host.folder / "checkpoints"], scratch)
    sync.restore()          # what S3 holds, into every folder: before the job starts
    sync.start()            # both ways, every second
    sync.close()            # a last time: when the job has ended

What changed in a folder goes up; what appears or changes on S3 (from another host, say) comes down. Nothing is ever deleted, on
either side, as on SageMaker. A file counts as changed when its size or its time of modification does, and goes up once it has
been left alone between two rounds, so that a half-written one does not.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from windlass.local import storage

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
Stamp = tuple[int, int]


class Checkpoints:
    """Both directions, for all hosts of a job.

    Args:
        scratch: a folder on the same disk that the job does not see, for what is half-way down.
    """

    def __init__(
        self, uri: str, folders: Sequence[Path], scratch: Path, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._scratch = scratch
        self._prefix, self._folders, self._interval = uri.rstrip("/") + "/", folders, interval_seconds
        self._synced: dict[Path, Stamp] = {}  # files as they were when they were last equal to S3
        self._seen: dict[Path, Stamp] = {}  # files as the last round found them
        self._remote: dict[
            str, str
        ] = {}  # URI -> version, of the objects as they were when they were last equal to here
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._follow,), name="checkpoints", daemon=True
        )

    def restore(self) -> None:
        """Bring what S3 holds into every folder. Raises storage.Missing, OSError."""
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
        self._pull()

    def start(self) -> None:
        """Follow, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Follow a last time, whatever state the files are in, and no more. Raises storage.Missing, OSError."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._push(at_rest=False)

    def _follow(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self._push(at_rest=True)
                self._pull()
            except (storage.Missing, OSError) as error:
                log.warning("Checkpoints do not follow %s: %s", self._prefix, error)  # close() tries again, and says so

    def _push(self, *, at_rest: bool) -> None:
        for folder in self._folders:
            for path in sorted(_files(folder)):
                stamp = _stamp(path)
                resting = self._seen.get(path) == stamp
                if stamp is None or self._synced.get(path) == stamp:
                    continue
                self._seen[path] = stamp
                if resting or not at_rest:
                    uri = f"{self._prefix}{path.relative_to(folder).as_posix()}"
                    storage.write(uri, path)
                    self._synced[path] = stamp
                    self._remote[uri] = storage.version(uri)
                    self._spread(uri, path)

    def _pull(self) -> None:
        for uri in storage.keys(self._prefix):
            if uri.endswith("/") or ".." in Path(uri.removeprefix(self._prefix)).parts:
                continue
            version = storage.version(uri)
            if self._remote.get(uri) != version:
                self._remote[uri] = version
                self._spread(uri, None)

    def _spread(self, uri: str, origin: Path | None) -> None:
        """An object into every folder that does not hold something newer of its own."""
        for folder in self._folders:
            path = folder / uri.removeprefix(self._prefix)
            if path != origin and _stamp(path) == self._synced.get(path):
                draft = self._scratch / "checkpoint.part"
                storage.download(uri, draft)
                path.parent.mkdir(parents=True, exist_ok=True)
                draft.replace(path)
                stamp = _stamp(path)
                assert stamp
                self._synced[path] = self._seen[path] = stamp


def _files(folder: Path) -> list[Path]:
    return [Path(base, name) for base, _, names in os.walk(folder) for name in names]


def _stamp(path: Path) -> Stamp | None:
    """Size and time of modification; None when it is not there (any more) or no plain file."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return (found.st_size, found.st_mtime_ns) if path.is_file() and not path.is_symlink() else None
