"""Bundles to and from S3, as files below a prefix: only what is not there travels, and all of it is checked on arrival.

Archives go up by ``publish_archive``, which this calls.

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

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from windlass import artifact, aws, multipart, publish_archive
from windlass.artifact import MANIFEST, Bundle, Chunk, Content, Manifest
from windlass.errors import CorruptArtifact, InvalidInput, NotFound
from windlass.multipart import Body, Upload, in_base64, of_parts

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
    """Upload a bundle's files below a prefix, or as a ``model.tar.gz``, unless they are there.

    Args:
        uri: ``s3://bucket/prefix/``, or of an archive; holds the bundle's digest, so that what is there is the same.
        base: an older bundle in the same form, of which nothing need be sent again.

    Raises:
        InvalidInput: a file changed since the bundle was built.
        ServiceError: S3 refused something, or could not be reached. Publishing again goes on from there.
    """
    where = f"Publishing to {uri}"
    if uri.endswith(".tar.gz"):
        return Sent(uri, *publish_archive.publish(bundle, uri, base=base))
    if not uri.endswith("/"):
        raise InvalidInput("a prefix ends with a slash, an archive with .tar.gz", where=where)
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
        multipart.put(self.bucket, self.prefix + name, body, sha256, self.where)
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
        if answer["CopyObjectResult"].get("ChecksumSHA256") != in_base64(content.sha256):
            return False  # what follows replaces it
        self._count(copied=content.size)
        return True

    def _multipart(self, name: str, path: Path, content: Content, pool: ThreadPoolExecutor) -> None:
        key = self.prefix + name

        def send(unfinished: str) -> None:
            upload = Upload(self.bucket, key, self.where, unfinished=unfinished)
            _first_failure(
                pool.submit(self._part, upload, number, chunk, path) for number, chunk in enumerate(content.chunks, 1)
            )  # the parts that arrived stay, to go on from
            upload.complete()

        multipart.until_ours(send, self._unfinished_uploads().get(key, ""))

    def _part(self, upload: Upload, number: int, chunk: Chunk, path: Path) -> None:
        if upload.has(number, chunk.size, chunk.sha256, lambda: _md5(path, chunk)):
            return self._count(copied=chunk.size)
        key, offset = self.held.chunks.get(chunk.sha256, ("", 0))
        source, sha256 = self.held.source(key), chunk.sha256
        if key and self._sound(key) and upload.copy(number, source, offset, chunk.size, sha256):
            return self._count(copied=chunk.size)
        upload.send(number, _Stretch(path, chunk.offset, chunk.size), chunk.sha256)
        return self._count(sent=chunk.size)

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
                self._checked[key] = said in (
                    in_base64(content.sha256),
                    in_base64(of_parts(c.sha256 for c in content.chunks)),
                )
            return self._checked[key]

    def _unfinished_uploads(self) -> Mapping[str, str]:
        with self._lock:
            if self._unfinished is None:
                self._unfinished = multipart.unfinished(self.bucket, self.prefix, self.where)
            return self._unfinished

    def _call(self, operation: Callable[..., Any], **params: Any) -> Any:
        with multipart.checked(self.where):
            return aws.call(self.where, operation, Bucket=self.bucket, **params)

    def _count(self, sent: int = 0, copied: int = 0) -> None:
        with self._lock:
            self.sent += sent
            self.copied += copied


class _Stretch(Body):
    """Part of a file. Holds no bytes and no open file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__(size)
        self._path, self._offset = path, offset

    def fill(self, buffer: memoryview, at: int) -> int:
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._offset + at)
            count = file.readinto(buffer)
        if not count:
            raise InvalidInput("it became shorter while it was sent", where=f"Reading {self._path}")
        return count


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
    with artifact.appears(dest, where) as scratch:
        if uri.endswith("/"):
            manifest = _fetch_files(uri, scratch, where)
        else:
            with tempfile.TemporaryDirectory(prefix=".fetched-", dir=dest.parent) as folder:
                manifest = artifact.open(aws.download(uri, Path(folder) / "model.tar.gz"), scratch).manifest
    return Bundle(dest, manifest, {name: dest / name for name in manifest.files})


def _fetch_files(uri: str, folder: Path, where: str) -> Manifest:
    body = aws.get_bytes(uri + MANIFEST)
    manifest = Manifest.intact(body, where=uri + MANIFEST)
    with ThreadPoolExecutor(_WORKERS) as pool:
        _first_failure(
            pool.submit(_fetch_stretch, uri + name, _place(folder, name, content.size, where), chunk, where)
            for name, content in manifest.files.items()
            for chunk in content.chunks or (Chunk(0, content.size, content.sha256),)
        )
    (folder / MANIFEST).write_bytes(body)
    return manifest


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
        kind, said = chunk.check
        digest, at = kind(), chunk.offset
        with aws.errors(where), contextlib.closing(answer["Body"]) as body, path.open("r+b") as file:
            file.seek(at)
            for piece in body.iter_chunks(_STEP):
                digest.update(piece)
                if at + len(piece) <= chunk.offset + chunk.size:
                    file.write(piece)
                at += len(piece)
        if digest.hexdigest() == said:
            return
        if last:
            hint = "Publish it again."
            raise CorruptArtifact(f"{quote(key)} is not what its manifest says", where=where, hint=hint)
