"""A ``model.tar.gz`` to S3 while it is written: no copy of it on this disk, and only a few parts of it in memory.

    sent, copied = publish_archive.publish(bundle, "s3://bucket/artifacts/<digest>-archive/model.tar.gz", base=older_uri)

The digest that names the archive is that of the manifest, so it is known before the first byte is written; and the bytes are
the same each time, so an upload that broke off is gone on with by writing the archive again and sending what S3 does not list.
Parts end where large members do. ``parts.json`` beside the archive has their digests: what the archive of an older bundle
has too is copied within S3, where that archive's own checksum vouches for the list.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from windlass import artifact, aws, multipart
from windlass.artifact import MANIFEST, Bundle
from windlass.errors import AccessDenied, CorruptArtifact, InvalidInput, NotFound
from windlass.multipart import PART_LEAST, PARTS_MOST, Body, Upload, in_base64, of_parts

_PARTS = "parts.json"
_PART = 8 << 20
_IN_FLIGHT = 32 << 20  # bytes of parts being sent, at least one part


def publish(bundle: Bundle, uri: str, *, base: str = "") -> tuple[int, int]:
    """Upload a bundle as an archive, unless it is there. ``windlass.json`` goes beside it, first.

    Args:
        uri: of the archive; its key holds the bundle's digest.
        base: an older archive's, whose parts need not be sent again.

    Returns:
        Bytes sent as bodies, and bytes that S3 copied or had from an upload that broke off.

    Raises:
        InvalidInput, CorruptArtifact: a file changed since the bundle was described; the upload was given up.
        ServiceError: S3 could not be reached, or refused something. Publishing again goes on from there.
    """
    where = f"Publishing to {uri}"
    bucket, key = aws.split(uri, where)
    folder = key.rpartition("/")[0] + "/"
    held = _held(base)
    broken_off = {} if aws.exists(uri) else multipart.unfinished(bucket, key, where)

    def send(unfinished: str) -> tuple[int, int]:
        if aws.exists(uri):
            return 0, 0  # or another program was quicker
        manifest = bundle.manifest.to_json()
        aws.put_bytes(f"s3://{bucket}/{folder}{MANIFEST}", manifest)
        with ThreadPoolExecutor(max(1, _IN_FLIGHT // _part_size(bundle))) as pool:
            parts = _Parts(bucket, key, where, pool, _part_size(bundle), held, unfinished)
            try:
                artifact.write(bundle, parts)
                parts.close()
            except (InvalidInput, CorruptArtifact):
                parts.give_up()
                raise
        return parts.sent + len(manifest), parts.copied

    return multipart.until_ours(send, broken_off.get(key, ""))


def _part_size(bundle: Bundle) -> int:
    """Bytes of a part. Those that end with a member may have five eighths of it, and there may be 10,000."""
    names = sum(len(name) for name in bundle.manifest.files)
    most = int(1.01 * bundle.manifest.size) + len(bundle.manifest.to_json()) + 4096 * len(bundle.manifest.files) + names
    return max(_PART, -(-most // (PARTS_MOST // 2)))


_Held = Mapping[tuple[int, str], tuple[Mapping[str, str], int]]  # size and sha256 -> object, offset


def _held(base: str) -> _Held:
    """The parts of an older archive, if its list of them is true by S3's own checksum of it."""
    if not base or base.endswith("/"):
        return {}
    where = f"Looking at {base}"
    bucket, key = aws.split(base, where)
    try:
        listed = json.loads(aws.get_bytes(f"{base.rpartition('/')[0]}/{_PARTS}"))
        head = aws.call(where, aws.client("s3").head_object, Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        said = head.get("ChecksumSHA256", "").partition("-")[0]
        if said != in_base64(of_parts(sha256 for _, sha256 in listed)):
            return {}
    except (AccessDenied, NotFound, ValueError, TypeError):
        return {}  # deleted since, somebody else's, or damaged: then all is sent
    held: dict[tuple[int, str], tuple[Mapping[str, str], int]] = {}
    offset = 0
    for size, sha256 in listed:
        held[size, sha256] = ({"Bucket": bucket, "Key": key}, offset)
        offset += size
    return held


class _Parts:
    """Where the archive is written to: cuts it into parts, and sends each while the next one fills.

    ``member_ends`` says where a part had better end: the bytes of a file then are in the same parts whatever lies before it.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        where: str,
        pool: ThreadPoolExecutor,
        size: int,
        held: _Held,
        unfinished: str,
    ) -> None:
        self.sent = self.copied = 0
        self._bucket, self._key, self._where, self._pool = bucket, key, where, pool
        self._size, self._least = size, size * PART_LEAST // _PART
        self._held, self._unfinished = held, unfinished
        # Made once: buffers that come and go leave holes in the heap, as large as themselves.
        at_once = max(1, _IN_FLIGHT // size)
        self._free = deque(memoryview(bytearray(size + self._least)) for _ in range(at_once + 1))
        self._buffer, self._filled = self._free.popleft(), 0
        self._upload: Upload | None = None
        self._pending: deque[tuple[memoryview, Future[tuple[int, str, int, int]]]] = deque()
        self._parts: list[tuple[int, str]] = []

    def write(self, body: bytes | memoryview) -> None:
        view = memoryview(body)
        while view:
            piece = view[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._filled, view = self._filled + len(piece), view[len(piece) :]
            if self._filled == len(self._buffer):
                self._send(self._size)  # and keep the least that a part may have, for a member may end soon

    def member_ends(self) -> None:
        if self._filled >= self._least:
            self._send(self._filled)

    def close(self) -> None:
        """Send the rest, and put the parts together."""
        if self._upload is None:
            body = self._buffer[: self._filled]
            multipart.put(self._bucket, self._key, _Memory(body), hashlib.sha256(body).hexdigest(), self._where)
            self.sent += len(body)
            return
        if self._filled:
            self._send(self._filled)
        while self._pending:
            self._take()
        listed = json.dumps(self._parts).encode()
        aws.put_bytes(f"s3://{self._bucket}/{self._key.rpartition('/')[0]}/{_PARTS}", listed)
        self.sent += len(listed)
        self._upload.complete()

    def give_up(self) -> None:
        for _, future in self._pending:
            future.cancel()
        wait([future for _, future in self._pending])  # a part that arrives after the end stays on S3
        if self._upload:
            self._upload.abort()

    def _send(self, size: int) -> None:
        if self._upload is None:
            self._upload = Upload(self._bucket, self._key, self._where, unfinished=self._unfinished)
        if not self._free:
            self._take()
        full, self._buffer = self._buffer, self._free.popleft()
        rest = self._filled - size
        self._buffer[:rest], self._filled = full[size : self._filled], rest
        number = len(self._parts) + len(self._pending) + 1
        self._pending.append((full, self._pool.submit(self._part, self._upload, number, full[:size])))

    def _take(self) -> None:
        buffer, future = self._pending.popleft()
        size, sha256, sent, copied = future.result()
        self._free.append(buffer)
        self._parts.append((size, sha256))
        self.sent, self.copied = self.sent + sent, self.copied + copied

    def _part(self, upload: Upload, number: int, body: memoryview) -> tuple[int, str, int, int]:
        size, sha256 = len(body), hashlib.sha256(body).hexdigest()
        if upload.has(number, size, sha256, lambda: hashlib.md5(body, usedforsecurity=False).hexdigest()):
            return size, sha256, 0, size
        source, offset = self._held.get((size, sha256), ({}, 0))
        if source and upload.copy(number, source, offset, size, sha256):
            return size, sha256, 0, size
        upload.send(number, _Memory(body), sha256)
        return size, sha256, size, 0


class _Memory(Body):
    """Bytes in memory, without a copy of them."""

    def __init__(self, view: memoryview) -> None:
        super().__init__(len(view))
        self._view = view

    def fill(self, buffer: memoryview, at: int) -> int:
        buffer[:] = self._view[at : at + len(buffer)]
        return len(buffer)
