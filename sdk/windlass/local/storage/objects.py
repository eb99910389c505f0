"""Objects of S3, their versions and their uploads: moto's records, with bodies that are files, kept as rows of the database."""

from __future__ import annotations

import base64
import copy
import pickle
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from awscrt.checksums import combine_crc64nvme
from moto.s3 import models
from moto.s3.exceptions import EntityTooSmall, InvalidPart, MalformedXML
from moto.s3.models import FakeKey, FakeMultipart, s3_backends
from moto.s3.utils import _VersionedKeyStore
from moto.settings import S3_UPLOAD_PART_MIN_SIZE
from moto.utilities.utils import md5_hash

from windlass.local import cloud as clouds
from windlass.local.database import Database
from windlass.local.storage.bodies import CHECKSUMS, Body, Folder, Piece

# One at a time, so that no row is overwritten by an older one.
_SAVING = threading.Lock()


class Key(FakeKey):  # type: ignore[misc]
    """An object, a version of one, or a part of an upload. Its body is a file of its own, which goes when it is disposed of."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Key:
        return object.__new__(cls)  # moto's would keep each one for ever, to close its buffer one day

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.crc64nvme: bytes | None = None
        super().__init__(*args, **kwargs)
        self._value_buffer.close()
        del self._value_buffer
        if kwargs.get("etag") is None and by_kms(self.encryption):
            self._etag = uuid.uuid4().hex

    _etag: str | None
    crc64nvme: bytes | None  # absent in state folders of before
    disposed: bool

    @property
    def pieces(self) -> list[Piece]:
        path = folder().path
        return [Piece(path / name, start, size) for name, start, size in self._pieces]

    def open(self) -> Body:
        """Its body, to be read in parts."""
        no_md5 = self._etag is None or "-" in self._etag or by_kms(self.encryption)
        return folder().open(self.pieces, md5=None if no_md5 else self._etag)

    @property
    def value(self) -> bytes:
        return b"".join(self.open())

    @value.setter
    def value(self, body: Body | bytes | str) -> None:
        bodies = folder()
        body = body.encode() if isinstance(body, str) else body  # moto writes access logs as text
        # Relative, so that the state folder can be moved.
        self._pieces = [
            (path.relative_to(bodies.path).as_posix(), start, size) for path, start, size in bodies.keep(body)
        ]
        self.contentsize = len(body)
        self.crc64nvme = body.crc64nvme if isinstance(body, Body) else _crc64nvme(body)
        if self._etag is None and isinstance(body, Body):
            self._etag = body.md5

    @property
    def etag(self) -> str:
        if self._etag is None:
            self._etag = self.open().digest("MD5").hex()
        return f'"{self._etag}"'

    def dispose(self, garbage: bool = False) -> None:
        if not self.disposed:
            self.disposed = True
            _disposed.pieces += self.pieces

    def give_up(self) -> list[Piece]:
        """Its files, which are no longer its own."""
        self.disposed = True
        return self.pieces

    def __del__(self) -> None:
        """Nothing: what ends is this process, not the object."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.Lock()


class _Disposed(threading.local):
    """The files that this thread needs no more, but that rows may still name: they go when it has saved."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []


_disposed = _Disposed()


class Lazy:
    """An object whose ``value`` is a Body: for those of moto's functions that only pass it on."""

    def __init__(self, key: Key) -> None:
        self._key = key

    @property
    def value(self) -> Body:
        return self._key.open()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._key, name)


class KeyStore(_VersionedKeyStore):  # type: ignore[misc]
    """The objects of a bucket. Each is a row in the database, and none is in the snapshot of the services.

    Attributes:
        changed: the keys whose rows are old.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed: set[str] = set()

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.changed.add(key)

    def setlist(self, key: str, list_: Any) -> None:
        super().setlist(key, list_)
        self.changed.add(key)

    def pop(self, key: str) -> None:
        super().pop(key)
        self.changed.add(key)

    def restore(self, key: str, versions: list[Any]) -> None:
        dict.__setitem__(self, key, versions)

    def __reduce__(self) -> Any:
        return KeyStore, ()


class Uploads(models.MultipartDict):  # type: ignore[misc]
    """The uploads under way in a bucket. Each is a row in the database, and so is each part.

    Attributes:
        changed: those whose rows are old.
        sent: (upload, number) of the parts whose rows are old.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed: set[str] = set()
        self.sent: set[tuple[str, int]] = set()

    def __reduce__(self) -> Any:
        return Uploads, ()


class Upload(FakeMultipart):  # type: ignore[misc]
    """A multipart upload, put together file by file."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Upload:
        return object.__new__(cls)

    def without_parts(self) -> Upload:
        """What its row holds: each part has a row of its own."""
        alone = copy.copy(self)
        alone.parts, alone.partlist = {}, []
        return alone

    def complete(self, body: Iterator[tuple[int, str]]) -> tuple[Body, str, tuple[str, str, int] | None]:
        parts: list[Key] = []
        for number, etag in body:
            part = self.parts.get(number)
            if part is None or part.etag.strip('"') != etag.strip('"'):
                raise InvalidPart
            if parts and parts[-1].contentsize < S3_UPLOAD_PART_MIN_SIZE:
                raise EntityTooSmall
            parts.append(part)
        if not parts:
            raise MalformedXML
        md5 = md5_hash(b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts))
        whole = Body([piece for part in parts for piece in part.give_up()], unclaimed=True)
        return whole, f"{md5.hexdigest()}-{len(parts)}", self._checksum(whole, parts)

    def _checksum(self, whole: Body, parts: list[Key]) -> tuple[str, str, int] | None:
        algorithm = self.metadata.get("x-amz-checksum-algorithm", "CRC64NVME")
        if algorithm not in CHECKSUMS:
            return None
        kind = self.metadata.get("x-amz-checksum-type")
        if kind == "FULL_OBJECT" or (kind is None and algorithm == "CRC64NVME"):
            known = _joined(parts) if algorithm == "CRC64NVME" else None
            return "FULL_OBJECT", base64.b64encode(known or whole.digest(algorithm)).decode(), 1
        made = CHECKSUMS[algorithm]()
        at = 0
        for part in parts:
            made.update(whole[at : at + part.contentsize].digest(algorithm))
            at += part.contentsize
        return "COMPOSITE", base64.b64encode(made.digest()).decode(), len(parts)


class _Rows:
    """What has changed, as rows to write and to delete."""

    def __init__(self) -> None:
        self._objects: list[tuple[str, str, bytes]] = []
        self._no_objects: list[tuple[str, str]] = []
        self._uploads: list[tuple[str, str, bytes]] = []
        self._no_uploads: list[tuple[str]] = []
        self._parts: list[tuple[str, int, bytes]] = []

    def take(self, bucket: Any) -> None:
        """What has changed in a bucket, which is noted there no more."""
        keys, uploads = bucket.keys, bucket.multiparts
        while keys.changed:
            key = keys.changed.pop()
            if versions := keys.getlist(key):
                self._objects.append((bucket.name, key, _pickled(versions)))
            else:
                self._no_objects.append((bucket.name, key))
        while uploads.changed:
            id_ = uploads.changed.pop()
            if upload := uploads.get(id_):
                self._uploads.append((id_, bucket.name, _pickled(upload.without_parts())))
            else:
                self._no_uploads.append((id_,))
        while uploads.sent:
            id_, number = uploads.sent.pop()
            if (upload := uploads.get(id_)) and (part := upload.parts.get(number)):
                self._parts.append((id_, number, _pickled(part)))

    def write(self, database: Database) -> None:
        """Nothing, if nothing has changed."""
        statements: list[tuple[str, list[Any]]] = [
            ("INSERT OR REPLACE INTO objects (bucket, key, versions) VALUES (?, ?, ?)", self._objects),
            ("DELETE FROM objects WHERE bucket = ? AND key = ?", self._no_objects),
            ("INSERT OR REPLACE INTO uploads (id, bucket, upload) VALUES (?, ?, ?)", self._uploads),
            ("INSERT OR REPLACE INTO parts (upload, number, part) VALUES (?, ?, ?)", self._parts),
            ("DELETE FROM uploads WHERE id = ?", self._no_uploads),
            ("DELETE FROM parts WHERE upload = ?", self._no_uploads),
        ]
        if any(rows for _, rows in statements):
            database.write(*statements)


def save(buckets: Iterable[Any]) -> None:
    """Bring the rows of all objects and uploads that have changed up to date, and then delete what no row names."""
    with _SAVING:
        rows = _Rows()
        for bucket in buckets:
            rows.take(bucket)
        rows.write(clouds.current().database)
    pieces, _disposed.pieces = _disposed.pieces, []
    folder().delete(pieces)


def restore(cloud: clouds.Cloud) -> None:
    """Put the objects back into their buckets, and delete the files that belong to none."""
    buckets = {
        name: bucket for _, _, backend in s3_backends.iter_backends() for name, bucket in backend.buckets.items()
    }
    for bucket in buckets.values():
        s3_backends.bucket_accounts[bucket.name] = (bucket.partition, bucket.account_id)
        if not isinstance(bucket.multiparts, Uploads):
            bucket.multiparts = Uploads()  # in state folders of before, uploads under way had no rows
    kept: set[Path] = set()
    no_objects, no_uploads = [], []
    for bucket_name, key, pickled in cloud.database.read("SELECT bucket, key, versions FROM objects"):
        if bucket := buckets.get(bucket_name):
            versions = pickle.loads(pickled)  # noqa: S301 - our own file, in the user's own folder
            bucket.keys.restore(key, versions)
            kept |= {piece.path for version in versions if isinstance(version, Key) for piece in version.pieces}
        else:
            no_objects.append((bucket_name, key))
    for id_, bucket_name, pickled in cloud.database.read("SELECT id, bucket, upload FROM uploads"):
        rows = cloud.database.read("SELECT number, part FROM parts WHERE upload = ? ORDER BY number", (id_,))
        parts = {number: pickle.loads(part) for number, part in rows}  # noqa: S301 - see above
        paths = {piece.path for part in parts.values() for piece in part.pieces}
        if (bucket := buckets.get(bucket_name)) and kept.isdisjoint(paths):
            upload = pickle.loads(pickled)  # noqa: S301 - see above
            upload.parts, upload.partlist = parts, list(parts)
            dict.__setitem__(bucket.multiparts, id_, upload)
            kept |= paths
        else:  # a bucket that is gone, or an object that was made of it
            no_uploads.append((id_,))
    cloud.database.write(
        ("DELETE FROM objects WHERE bucket = ? AND key = ?", no_objects),
        ("DELETE FROM uploads WHERE id = ?", no_uploads),
        ("DELETE FROM parts WHERE upload = ?", no_uploads),
    )
    cloud.bodies.sweep(kept)


def by_kms(encryption: str | None) -> bool:
    """Whether that algorithm makes ETags that are no MD5."""
    return encryption in ("aws:kms", "aws:kms:dsse")


def _pickled(what: Any) -> bytes:
    return pickle.dumps(what, pickle.HIGHEST_PROTOCOL)


def _crc64nvme(data: bytes) -> bytes:
    made = CHECKSUMS["CRC64NVME"]()
    made.update(data)
    return made.digest()


def _joined(parts: list[Key]) -> bytes | None:
    """CRC64NVME of these parts, one after the other; None where one of them does not know its own."""
    sums = [getattr(part, "crc64nvme", None) for part in parts]
    value = 0
    for part, made in zip(parts, sums, strict=True):
        if made is None:
            return None
        value = combine_crc64nvme(value, int.from_bytes(made, "big"), part.contentsize)
    return value.to_bytes(8, "big")


def folder() -> Folder:
    """Where the bodies of this local cloud are."""
    return clouds.current().bodies
