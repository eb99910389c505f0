"""S3 with its bodies in files: moto keeps buckets, versions, metadata and listings, and never sees a whole body.

A PUT is received into a file before moto's application runs (``take_body``); moto then passes a ``Body`` around where it
thinks it has bytes. What it serves, copies or puts together from parts is read from files piece by piece.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import re
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from moto.s3 import models
from moto.s3.exceptions import EntityTooSmall, InvalidPart, MalformedXML, NoSuchUpload
from moto.s3.models import FakeKey, FakeMultipart, S3Backend, s3_backends
from moto.s3.responses import S3Response
from moto.s3.utils import _VersionedKeyStore
from moto.settings import S3_UPLOAD_PART_MIN_SIZE
from moto.utilities.utils import md5_hash

from windlass.local import cloud as clouds
from windlass.local.storage.bodies import CHECKSUMS, Body, Folder, Piece, receive

Environ = dict[str, Any]
WSGI = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

# In the environ of a request: what came, and what goes, past Flask, which would take it into its hands.
_BODY, _ANSWER = "windlass.body", "windlass.answer"

_READS = ("GET", "HEAD", "OPTIONS")

# A PUT with one of these says something about an object; its body is a short document, which moto reads itself.
_SUBRESOURCES = frozenset({"acl", "tagging", "retention", "legal-hold", "torrent", "encryption", "renameObject"})


class Key(FakeKey):  # type: ignore[misc]
    """An object, a version of one, or a part of an upload. Its body is a file of its own, which goes when it is disposed of."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Key:
        return object.__new__(cls)  # moto's would keep each one for ever, to close its buffer one day

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._value_buffer.close()
        del self._value_buffer

    _etag: str | None
    disposed: bool

    @property
    def pieces(self) -> list[Piece]:
        folder = _folder().path
        return [Piece(folder / name, start, size) for name, start, size in self._pieces]

    def open(self) -> Body:
        """Its body, to be read in parts."""
        of_parts = self._etag is None or "-" in self._etag
        return _folder().open(self.pieces, md5=None if of_parts else self._etag)

    @property
    def value(self) -> bytes:
        return b"".join(self.open())

    @value.setter
    def value(self, body: Body | bytes | str) -> None:
        folder = _folder()
        body = body.encode() if isinstance(body, str) else body  # moto writes access logs as text
        # Relative, so that the state folder can be moved.
        self._pieces = [
            (path.relative_to(folder.path).as_posix(), start, size) for path, start, size in folder.keep(body)
        ]
        self.contentsize = len(body)
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
            _folder().delete(self.pieces)

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


class Upload(FakeMultipart):  # type: ignore[misc]
    """A multipart upload, put together file by file."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Upload:
        return object.__new__(cls)

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
        algorithm = self.metadata.get("x-amz-checksum-algorithm")
        if algorithm not in CHECKSUMS:
            return None
        kind = self.metadata.get("x-amz-checksum-type")
        if kind == "FULL_OBJECT" or (kind is None and algorithm == "CRC64NVME"):
            return "FULL_OBJECT", base64.b64encode(whole.digest(algorithm)).decode(), 1
        made = CHECKSUMS[algorithm]()
        at = 0
        for part in parts:
            made.update(whole[at : at + part.contentsize].digest(algorithm))
            at += part.contentsize
        return "COMPOSITE", base64.b64encode(made.digest()).decode(), len(parts)


class Backend(S3Backend):  # type: ignore[misc]
    """moto's records, which pass bodies on without reading them."""

    @property
    def _url_module(self) -> Any:
        module = super()._url_module
        paths = {path: getattr(Response, handler.__name__) for path, handler in module.url_paths.items()}
        return types.SimpleNamespace(url_bases=module.url_bases, url_paths=paths)

    def upload_part(self, bucket_name: str, multipart_id: str, part_id: int, value: Body | bytes) -> Key:
        if multipart_id not in self.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(upload_id=multipart_id)
        part: Key = super().upload_part(bucket_name, multipart_id, part_id, value)
        return part

    def complete_multipart_upload(self, bucket_name: str, multipart_id: str, body: Iterator[tuple[int, str]]) -> Any:
        if multipart_id not in self.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(upload_id=multipart_id)
        return super().complete_multipart_upload(bucket_name, multipart_id, body)

    def save_objects(self) -> None:
        """Bring the rows of all objects that have changed up to date."""
        saved, deleted = [], []
        for bucket in list(self.buckets.values()):
            while bucket.keys.changed:
                key = bucket.keys.changed.pop()
                if versions := bucket.keys.getlist(key):
                    saved.append((bucket.name, key, pickle.dumps(versions, pickle.HIGHEST_PROTOCOL)))
                else:
                    deleted.append((bucket.name, key))
        if saved or deleted:
            clouds.current().database.write(
                ("INSERT OR REPLACE INTO objects (bucket, key, versions) VALUES (?, ?, ?)", saved),
                ("DELETE FROM objects WHERE bucket = ? AND key = ?", deleted),
            )

    def copy_object(self, src_key: Key, *args: Any, **kwargs: Any) -> None:
        super().copy_object(Lazy(src_key), *args, **kwargs)

    def upload_part_copy(
        self,
        dest_bucket_name: str,
        multipart_id: str,
        part_id: int,
        src_bucket_name: str,
        src_key_name: str,
        src_version_id: str | None,
        start_byte: int | None,
        end_byte: int,
    ) -> Key:
        source = self.get_object(src_bucket_name, src_key_name, version_id=src_version_id)
        body = source.open()
        return self.upload_part(
            dest_bucket_name, multipart_id, part_id, body if start_byte is None else body[start_byte : end_byte + 1]
        )

    def delete_bucket(self, bucket_name: str) -> Any:
        deleted = super().delete_bucket(bucket_name)
        if deleted:
            for upload in deleted.multiparts.values():
                upload.dispose()
        return deleted


class Response(S3Response):  # type: ignore[misc]
    """One request, with its body in a file."""

    def setup_class(self, request: Any, full_url: str | None = None, headers: Any = None) -> None:
        super().setup_class(request, full_url, headers)
        if (body := request.environ.get(_BODY)) is not None:
            self.body = body

    def key_response(self, request: Any, full_url: str, headers: Any) -> Any:
        status, answered, content = super().key_response(request, full_url, headers)
        if isinstance(content, Body) and request.method == "GET":
            request.environ[_ANSWER] = content
        if request.method not in _READS:
            bucket = self.backend.buckets.get(self.bucket_name)
            if bucket and self.parse_key_name() in bucket.keys:
                bucket.keys.changed.add(self.parse_key_name())  # its tags, its retention: in place
            self.backend.save_objects()
            clouds.current().snapshot.touch()  # tags and uploads under way
        return status, answered, content

    def bucket_response(self, request: Any, full_url: str, headers: Any) -> Any:
        answer = super().bucket_response(request, full_url, headers)
        if request.method not in _READS:
            self.backend.save_objects()
            # Objects are saved at once; their bucket must not come after them.
            clouds.current().snapshot.save()
        return answer

    def _get_key(self, validate_storage_class: bool = True) -> tuple[Lazy, bool]:
        key, not_modified = super()._get_key(validate_storage_class)
        return Lazy(key), not_modified


def register() -> None:
    """Put ours in the place of moto's, before its first request."""
    models._VersionedKeyStore = KeyStore
    models.FakeKey = Key
    models.FakeMultipart = Upload
    s3_backends.backend = Backend
    s3_backends.clear()


def restore(cloud: clouds.Cloud) -> None:
    """Put the objects back into their buckets, and delete the files that belong to none."""
    kept: set[Path] = set()
    orphans = []
    buckets = {
        name: bucket for _, _, backend in s3_backends.iter_backends() for name, bucket in backend.buckets.items()
    }
    for bucket_name, key, versions in cloud.database.read("SELECT bucket, key, versions FROM objects"):
        if bucket := buckets.get(bucket_name):
            bucket.keys.restore(key, pickle.loads(versions))  # noqa: S301 - our own file, in the user's own folder
        else:
            orphans.append((bucket_name, key))
    cloud.database.write(("DELETE FROM objects WHERE bucket = ? AND key = ?", orphans))
    for bucket in buckets.values():
        s3_backends.bucket_accounts[bucket.name] = (bucket.partition, bucket.account_id)
        stored = [
            version for versions in dict(bucket.keys).values() for version in versions if isinstance(version, Key)
        ]
        uploading = [part for upload in bucket.multiparts.values() for part in upload.parts.values()]
        kept |= {piece.path for key in (*stored, *uploading) for piece in key.pieces}
    cloud.bodies.sweep(kept)


def serve(application: WSGI, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """What moto's application answers to this request, with bodies in files on the way in and on the way out.

    Raises:
        bodies.Refused: what came is not what the request announces.
    """
    with _body_taken(environ) if _has_body(environ) else contextlib.nullcontext():
        answer = application(environ, start_response)
    body: Body | None = environ.get(_ANSWER)
    return answer if body is None else body


@contextlib.contextmanager
def _body_taken(environ: Environ) -> Iterator[None]:
    """Meanwhile the request has no body, but a file."""
    body, trailers = receive(environ, _folder())
    try:
        environ[_BODY] = body
        environ["CONTENT_LENGTH"] = "0"
        environ.pop("HTTP_X_AMZ_CONTENT_SHA256", None)  # says how it was encoded; moto must not decode it again
        environ.update({f"HTTP_{name.upper().replace('-', '_')}": value for name, value in trailers.items()})
        for name in CHECKSUMS:
            if f"HTTP_X_AMZ_CHECKSUM_{name}" in environ:
                environ.setdefault("HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM", name)
        yield
    finally:
        if body.unclaimed:
            _folder().delete(body.pieces)


def _has_body(environ: Mapping[str, Any]) -> bool:
    """Whether this is PutObject or UploadPart."""
    if environ["REQUEST_METHOD"] != "PUT" or "HTTP_X_AMZ_COPY_SOURCE" in environ:
        return False
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    if not _SUBRESOURCES.isdisjoint(query):
        return False
    path = environ["PATH_INFO"].lstrip("/")
    if path.startswith(("moto-api/", "v20180820/")):
        return False
    if _bucket_in_host(environ.get("HTTP_HOST", "")):
        return bool(path)
    return bool(path.partition("/")[2])


def _bucket_in_host(host: str) -> bool:
    name = host.rpartition(":")[0] or host
    return bool(re.search(r"[^.]\.(localhost|s3[.-].*amazonaws\.com|s3\.localhost\.localstack\.cloud)$", name))


def _folder() -> Folder:
    return clouds.current().bodies
