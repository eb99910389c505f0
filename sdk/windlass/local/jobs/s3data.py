"""S3 data sources of jobs: which objects they mean, which of them a host gets, and how they arrive.

objects = s3data.resolve("s3://bucket/data/", "S3Prefix")
s3data.download(s3data.share(objects, hosts=2, host=0), folder)
"""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from windlass.local import storage
from windlass.local.jobs.containers import s3_uri


class Unavailable(Exception):
    """The data cannot be had; ``str()`` says why, as it stands in a FailureReason."""


@dataclass(frozen=True)
class S3Object:
    """One object of a data source. ``name`` is its path below the folder that it is downloaded to."""

    uri: str
    name: str


def resolve(address: str, data_type: str = "S3Prefix") -> list[S3Object]:
    """The objects of a data source, in the order of their keys (S3Prefix) or of the manifest (ManifestFile).

    Raises:
        Unavailable: there are none, or the manifest is no manifest.
    """
    uri = s3_uri(address)
    found = _from_manifest(uri) if data_type == "ManifestFile" else _below(uri)
    if not found:
        raise Unavailable(f'No S3 objects found under S3 URL "{address}" given in input data source.')
    return found


def share(objects: Sequence[S3Object], *, hosts: int, host: int) -> list[S3Object]:
    """What host number ``host`` gets with ShardedByS3Key: every ``hosts``-th object."""
    return list(objects[host::hosts])


def download(objects: Sequence[S3Object], folder: Path, *, gunzip: bool = False) -> None:
    """Put the objects into a folder. With ``gunzip`` they are decompressed, and lose the suffix ``.gz``.

    Raises:
        Unavailable: one is gone, is not gzip, or its key climbs out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = folder.resolve()
    for each in objects:
        path = folder / (each.name.removesuffix(".gz") if gunzip else each.name)
        if not path.resolve().is_relative_to(root):
            raise Unavailable(f"The key of '{each.uri}' climbs out of the folder that it is downloaded to.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.download(each.uri, path)
            if gunzip:
                _decompress(path)
        except storage.Missing as error:
            raise Unavailable(str(error)) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Unavailable(f"'{each.uri}' is not compressed with gzip: {error}") from error
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise Unavailable(
                f"Cannot download {each.uri}, a previously downloaded file/folder clashes with it"
            ) from error


def _below(uri: str) -> list[S3Object]:
    """``s3://b/data`` means ``data/a/b.csv`` as ``a/b.csv``, and a single object ``data.csv`` by its own name."""
    try:
        uris = storage.keys(uri)
    except storage.Missing as error:
        raise Unavailable(str(error)) from error
    start = storage.split(uri)[1]
    folder = start if start.endswith("/") or not start else f"{start}/"
    found = []
    for each in uris:
        key = storage.split(each)[1]
        name = key.removeprefix(folder) if key.startswith(folder) else key[start.rfind("/") + 1 :]
        if name and not name.endswith("/"):  # the markers that consoles put in place of folders
            found.append(S3Object(each, name))
    return found


def _from_manifest(uri: str) -> list[S3Object]:
    """``[{"prefix": "s3://bucket/data/"}, "a.csv", "b/c.csv"]``"""
    try:
        entries = json.loads(storage.read(uri))
    except storage.Missing as error:
        raise Unavailable(str(error)) from error
    except ValueError as error:
        raise Unavailable(f"The manifest file '{uri}' is not JSON: {error}") from error
    head, *given = entries if isinstance(entries, list) and entries else [None]
    names = [name for name in given if isinstance(name, str) and name]
    if not isinstance(head, dict) or not isinstance(head.get("prefix"), str) or len(names) < len(given):
        raise Unavailable(
            f'The manifest file \'{uri}\' must be a JSON list of {{"prefix": "s3://..."}} and keys relative to it.'
        )
    objects = [S3Object(f"{head['prefix']}{name}", name) for name in names]
    for each in objects:
        if not storage.exists(each.uri):
            raise Unavailable(f"The manifest file '{uri}' names '{each.uri}', which does not exist.")
    return objects


def _decompress(path: Path) -> None:
    plain = path.with_name(f"{path.name}.plain")
    with gzip.open(path) as source, plain.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    plain.replace(path)
