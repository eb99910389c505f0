"""Bundles to and from S3, as files below a prefix: only what is not there travels, and all of it is checked on arrival.

    sent = publish.publish(bundle, "s3://bucket/artifacts/<digest>/", base="s3://bucket/artifacts/<older>/")
    sent.bytes                                                  # 0 when it was there; a few kB when only code changed
    bundle = publish.fetch("s3://bucket/artifacts/<digest>/", Path("model"))

SageMaker takes such a prefix as it is (ModelDataSource with S3Prefix and CompressionType None): nothing is packed here and
nothing unpacked there. Files and chunks that an older bundle holds are copied within S3. ``windlass.json`` is written last,
so a prefix that has one is whole.

Every request carries the SHA-256 that the manifest has for its bytes, and S3 refuses what does not match. An upload that broke
off goes on where it was: S3 lists the parts it has, with their checksums.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from windlass import artifact, aws
from windlass.artifact import MANIFEST, Bundle, Chunk, Content, Manifest
from windlass.errors import CorruptArtifact, InvalidInput, NotFound, ServiceError

_WORKERS = max(4, min(16, 2 * (os.cpu_count() or 2)))
_COPY_MOST = 5 << 30  # CopyObject takes 5 GiB (S3 API reference)
_STEP = 1 << 20


@dataclass(frozen=True)
class Sent:
    """What a publish did.

    Attributes:
        uri: the prefix, with a slash at its end.
        bytes: that went over the wire as bodies, the manifest included.
        copied_bytes: that S3 copied from the older bundle, or had from an upload that broke off.
    """

    uri: str
    bytes: int = 0
    copied_bytes: int = 0


def publish(bundle: Bundle, uri: str, *, base: str = "") -> Sent:
    """Upload a bundle's files below a prefix, unless they are there.

    Args:
        uri: ``s3://bucket/prefix/``; holds the bundle's digest, so that what is there is the same.
        base: prefix of an older bundle, whose files and chunks need not be sent again.

    Raises:
        InvalidInput: a file changed since the bundle was built.
        ServiceError: S3 refused something, or could not be reached. Publishing again goes on from there.
    """
    where = f"Publishing to {uri}"
    if not uri.endswith("/"):
        raise InvalidInput("a prefix ends with a slash", where=where)
    if aws.exists(uri + MANIFEST):
        return Sent(uri)
    upload = _Publication(uri, _Held.by(base), where)
    with ThreadPoolExecutor(_WORKERS) as small, ThreadPoolExecutor(_WORKERS) as parts:
        # Files wait for their parts, so parts have threads of their own.
        futures = [
            small.submit(upload.file, name, bundle.parts[name], content, parts)
            for name, content in sorted(bundle.manifest.files.items(), key=lambda item: -item[1].size)
        ]
        _first_failure(futures)
    body = bundle.manifest.to_json()
    upload.put(MANIFEST, body, hashlib.sha256(body).hexdigest())
    return Sent(uri, upload.sent, upload.copied)


def _first_failure(futures: Iterable[Future[Any]]) -> None:
    """Wait for all; when one fails, begin no other and raise its error."""
    futures = list(futures)
    done, left = wait(futures, return_when=FIRST_EXCEPTION)
    for future in left:
        future.cancel()
    for future in done:
        future.result()


@dataclass(frozen=True)
class _Held:
    """Where S3 has files and chunks already: sha256 -> key, sha256 -> key and offset, key -> what should be there."""

    bucket: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    chunks: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    contents: Mapping[str, Content] = field(default_factory=dict)

    @classmethod
    def by(cls, base: str) -> _Held:
        if not base.endswith("/"):
            return cls()  # an archive, or nothing
        try:
            manifest = Manifest.from_json(aws.get_bytes(base + MANIFEST), where=base + MANIFEST)
        except NotFound:
            return cls()  # deleted since
        bucket, prefix = aws.split(base)
        contents = {prefix + name: content for name, content in manifest.files.items()}
        files = {content.sha256: key for key, content in contents.items()}
        chunks = {c.sha256: (key, c.offset) for key, content in contents.items() for c in content.chunks}
        return cls(bucket, files, chunks, contents)

    def source(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": key}


class _Publication:
    """One publish under way."""

    def __init__(self, uri: str, held: _Held, where: str) -> None:
        self.bucket, self.prefix = aws.split(uri, where)
        self.held, self.where = held, where
        self.s3 = aws.client("s3")
        self.sent = self.copied = 0
        self._lock = threading.Lock()
        self._unfinished: Mapping[str, str] | None = None
        self._checked: dict[str, bool] = {}

    def file(self, name: str, path: Path, content: Content, parts: ThreadPoolExecutor) -> None:
        if path.stat().st_size != content.size:
            raise InvalidInput(f"{name} changed after the bundle was built", where=self.where, hint="Build it again.")
        source = self.held.files.get(content.sha256)
        if source and content.size <= _COPY_MOST and self._copied(name, source, content):
            return
        if content.chunks:
            self._multipart(name, path, content, parts)
        else:
            self.put(name, _Stretch(path, 0, content.size), content.sha256, content.size)

    def put(self, name: str, body: bytes | _Stretch, sha256: str, size: int | None = None) -> None:
        self._call(self.s3.put_object, Key=self.prefix + name, Body=body, ChecksumSHA256=_base64(sha256))
        self._count(sent=len(body) if isinstance(body, bytes) else size or 0)

    def _copied(self, name: str, source: str, content: Content) -> bool:
        """Copy a whole file within S3, which says what it copied. False when the source is gone or is not what it was."""
        try:
            answer = self._call(
                self.s3.copy_object,
                Key=self.prefix + name,
                CopySource=self.held.source(source),
                ChecksumAlgorithm="SHA256",
            )
        except NotFound:
            return False
        if answer["CopyObjectResult"].get("ChecksumSHA256") != _base64(content.sha256):
            return False  # what follows replaces it
        self._count(copied=content.size)
        return True

    def _multipart(self, name: str, path: Path, content: Content, pool: ThreadPoolExecutor) -> None:
        key = self.prefix + name
        upload_id = self._unfinished_uploads().get(key)
        there = self._parts_there(key, upload_id, path, content) if upload_id else {}
        if not upload_id:
            upload_id = self._call(self.s3.create_multipart_upload, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
        upload: dict[str, Any] = {"Key": key, "UploadId": upload_id}
        futures: dict[int, Future[str]] = {}
        for number, chunk in enumerate(content.chunks, 1):
            if number not in there:
                futures[number] = pool.submit(self._part, upload, number, chunk, path)
        try:
            _first_failure(futures.values())
        finally:
            for future in futures.values():
                future.cancel()  # what was not begun; the parts that arrived stay, to go on from
        tags = {**there, **{number: future.result() for number, future in futures.items()}}
        listed = [
            {"PartNumber": number, "ETag": tags[number], "ChecksumSHA256": _base64(chunk.sha256)}
            for number, chunk in enumerate(content.chunks, 1)
        ]
        done = self._call(self.s3.complete_multipart_upload, MultipartUpload={"Parts": listed}, **upload)
        said = done.get("ChecksumSHA256", "").partition("-")[0]
        if said and said != _base64(_of_parts(content)):
            hint = "Publish again."
            raise CorruptArtifact(
                f"S3 put {name} together from other parts than were sent", where=self.where, hint=hint
            )

    def _part(self, upload: Mapping[str, Any], number: int, chunk: Chunk, path: Path) -> str:
        wanted = _base64(chunk.sha256)
        key, offset = self.held.chunks.get(chunk.sha256, ("", 0))
        if key and self._sound(key):
            copied = self._call(
                self.s3.upload_part_copy,
                PartNumber=number,
                CopySource=self.held.source(key),
                CopySourceRange=f"bytes={offset}-{offset + chunk.size - 1}",
                **upload,
            )["CopyPartResult"]
            if copied.get("ChecksumSHA256", wanted) == wanted:
                self._count(copied=chunk.size)
                return str(copied["ETag"])
        body = _Stretch(path, chunk.offset, chunk.size)
        answer = self._call(self.s3.upload_part, PartNumber=number, Body=body, ChecksumSHA256=wanted, **upload)
        self._count(sent=chunk.size)
        return str(answer["ETag"])

    def _sound(self, key: str) -> bool:
        """Whether a file of the older bundle is there and, by S3's own checksum, what that bundle's manifest says."""
        with self._lock:
            if key not in self._checked:
                content = self.held.contents[key]
                try:
                    head = aws.call(
                        self.where, self.s3.head_object, Bucket=self.held.bucket, Key=key, ChecksumMode="ENABLED"
                    )
                except NotFound:
                    head = {}
                said = head.get("ChecksumSHA256", "").partition("-")[0]
                self._checked[key] = said in (_base64(content.sha256), _base64(_of_parts(content)))
            return self._checked[key]

    def _unfinished_uploads(self) -> Mapping[str, str]:
        """Key -> upload id of multipart uploads that broke off below the prefix."""
        with self._lock:
            if self._unfinished is None:
                found = aws.pages(
                    self.where, "s3", "list_multipart_uploads", "Uploads", Bucket=self.bucket, Prefix=self.prefix
                )
                self._unfinished = {item["Key"]: item["UploadId"] for item in found}
            return self._unfinished

    def _parts_there(self, key: str, upload_id: str, path: Path, content: Content) -> dict[int, str]:
        """Number -> ETag of the parts that S3 has already and that hold what they should."""
        there = {}
        found = aws.pages(self.where, "s3", "list_parts", "Parts", Bucket=self.bucket, Key=key, UploadId=upload_id)
        for part in found:
            number = part["PartNumber"]
            if number > len(content.chunks) or part["Size"] != content.chunks[number - 1].size:
                continue
            chunk = content.chunks[number - 1]
            # Stores that list no checksum give an MD5 as ETag; where it is neither (KMS), the part is sent again.
            said = part.get("ChecksumSHA256")
            if said == _base64(chunk.sha256) or (not said and part["ETag"].strip('"') == _md5(path, chunk)):
                there[number] = part["ETag"]
                self._count(copied=chunk.size)
        return there

    def _call(self, operation: Callable[..., Any], **params: Any) -> Any:
        try:
            return aws.call(self.where, operation, Bucket=self.bucket, **params)
        except ServiceError as error:
            if error.code in ("BadDigest", "XAmzContentChecksumMismatch", "InvalidDigest"):
                hint = "Build it again, then publish; if no file changed, the network damages what it carries."
                raise InvalidInput(
                    "a file is not what it was when the bundle was built", where=self.where, hint=hint
                ) from error
            raise

    def _count(self, sent: int = 0, copied: int = 0) -> None:
        with self._lock:
            self.sent += sent
            self.copied += copied


class _Stretch(io.RawIOBase):
    """Part of a file, as a body that botocore can read, measure and rewind. Holds no bytes and no open file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__()
        self._path, self._offset, self._size, self._at = path, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        if not view:
            return 0
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._offset + self._at)
            count = file.readinto(view)
        if not count:
            raise InvalidInput("it became shorter while it was sent", where=f"Reading {self._path}")
        self._at += count
        return count


def _of_parts(content: Content) -> str:
    """What S3 calls a composite checksum: the SHA-256 of the parts' SHA-256."""
    return hashlib.sha256(b"".join(bytes.fromhex(chunk.sha256) for chunk in content.chunks)).hexdigest()


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _md5(path: Path, chunk: Chunk) -> str:
    with path.open("rb") as file:
        file.seek(chunk.offset)
        return hashlib.md5(file.read(chunk.size), usedforsecurity=False).hexdigest()


# -------------------------------------------------------------------------------------------------------------- fetching


def fetch(uri: str, dest: Path) -> Bundle:
    """Download a bundle into ``dest`` (absent or empty). It appears there whole and verified, or not at all.

    Args:
        uri: a prefix that :func:`publish` filled, or a ``model.tar.gz``.

    Raises:
        NotFound: nothing is there.
        CorruptArtifact: what arrived is not what the manifest says.
        DiskFull: no room for it.
    """
    where = f"Fetching {uri}"
    if dest.exists() and any(dest.iterdir()):
        raise InvalidInput(f"{dest} is not empty", where=where)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with artifact.room(dest.parent), tempfile.TemporaryDirectory(prefix=f".{dest.name}-", dir=dest.parent) as folder:
        if not uri.endswith("/"):
            return artifact.open(aws.download(uri, Path(folder) / "model.tar.gz"), dest)
        scratch = Path(folder) / "model"
        body = aws.get_bytes(uri + MANIFEST)
        manifest = Manifest.from_json(body, where=uri + MANIFEST)
        with ThreadPoolExecutor(_WORKERS) as pool:
            _first_failure(
                pool.submit(_fetch_stretch, uri + name, _place(scratch, name, content.size, where), chunk, where)
                for name, content in manifest.files.items()
                for chunk in content.chunks or (Chunk(0, content.size, content.sha256),)
            )
        (scratch / MANIFEST).write_bytes(body)
        if dest.exists():
            dest.rmdir()
        shutil.move(scratch, dest)
    return Bundle(dest, manifest, {name: dest / name for name in manifest.files})


def _place(folder: Path, name: str, size: int, where: str) -> Path:
    """An empty file of the right size at its place below ``folder``."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or path == folder:
        raise CorruptArtifact(f"{name!r} would be written outside its folder", where=where)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.truncate(size)
    return path


def _fetch_stretch(uri: str, path: Path, chunk: Chunk, where: str) -> None:
    if not chunk.size:
        return
    bucket, key = aws.split(uri)
    whole = chunk.offset == 0 and path.stat().st_size == chunk.size
    stretch = {} if whole else {"Range": f"bytes={chunk.offset}-{chunk.offset + chunk.size - 1}"}
    for last in (False, True):
        answer = aws.call(where, aws.client("s3").get_object, Bucket=bucket, Key=key, **stretch)
        digest, at = hashlib.sha256(), chunk.offset
        with aws.errors(where), contextlib.closing(answer["Body"]) as body, path.open("r+b") as file:
            file.seek(at)
            for piece in body.iter_chunks(_STEP):
                digest.update(piece)
                if at + len(piece) <= chunk.offset + chunk.size:
                    file.write(piece)
                at += len(piece)
        if digest.hexdigest() == chunk.sha256:
            return
        if last:
            hint = "Publish it again."
            raise CorruptArtifact(f"{quote(key)} is not what its manifest says", where=where, hint=hint)
