"""Bodies of S3 objects as files: received from a request without ever being whole in memory, checked, and read in parts.

    body = receive(environ, folder)       # reads the request; raises Refused when what came is not what was announced
    len(body), body[10:20], b"".join(body)

A ``Body`` is what moto takes for the bytes of an object, as far as it looks: a length, slices, and something to iterate over.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import os
import queue
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from awscrt import checksums

CHUNK = 1 << 20
LARGEST_PUT = 5 << 30
"""S3 takes no more in one request."""

_ALONGSIDE = 16 << 20
"""From this size on, MD5, which takes as long as all the rest, is worth a thread of its own. Parts of an upload are smaller:
they come several at a time, and so have a processor each already."""

# Chunks that are used again: fresh memory for each would cost more than to fill it. Small enough for a processor's cache.
_BUFFER, _BUFFERS = 256 << 10, 8


class Refused(Exception):
    """S3's answer to a body that is not what its headers say."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Hash(Protocol):
    """What hashlib's objects do."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    """One of the cyclic sums, in the form of hashlib's objects."""

    def __init__(self, function: Callable[[Any, int], int], size: int) -> None:
        self._function, self._size, self._value = function, size, 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


CHECKSUMS: Mapping[str, Callable[[], Hash]] = {
    "CRC32": lambda: _Crc(checksums.crc32, 4),
    "CRC32C": lambda: _Crc(checksums.crc32c, 4),
    "CRC64NVME": lambda: _Crc(checksums.crc64nvme, 8),
    "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
    "SHA256": hashlib.sha256,
}
"""S3's additional checksums by their name in x-amz-checksum-algorithm."""


class Piece(NamedTuple):
    """A stretch of a file."""

    path: Path
    start: int
    size: int


class Body:
    """What an object holds, or a part of it: stretches of files, one after the other.

    Attributes:
        md5: hexadecimal, of the whole, when it is known.
        crc64nvme: of the whole, when it is known.
        unclaimed: whether its files belong to no object yet.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        *,
        md5: str | None = None,
        crc64nvme: bytes | None = None,
        unclaimed: bool = False,
        lease: Lease | None = None,
    ) -> None:
        self.pieces, self.md5, self.crc64nvme, self.unclaimed = tuple(pieces), md5, crc64nvme, unclaimed
        self.lease = lease
        self._size = sum(piece.size for piece in pieces)

    @classmethod
    def of(cls, path: Path) -> Body:
        """A file that is none of ours."""
        return cls([Piece(path, 0, path.stat().st_size)])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> Body:
        start, stop, step = part.indices(self._size)
        if step != 1:
            raise ValueError("A body has slices of whole stretches only")
        pieces, at = [], 0
        for piece in self.pieces:
            first, last = max(start - at, 0), min(stop - at, piece.size)
            if first < last:
                pieces.append(Piece(piece.path, piece.start + first, last - first))
            at += piece.size
        return Body(pieces, lease=self.lease)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            with piece.path.open("rb", buffering=0) as file:
                file.seek(piece.start)
                left = piece.size
                while left and (chunk := file.read(min(CHUNK, left))):
                    yield chunk
                    left -= len(chunk)

    def send(self, connection: socket.socket) -> None:
        """Write it to a connection; where the system can, without reading it here. Raises OSError."""
        for piece in self.pieces:
            with piece.path.open("rb", buffering=0) as file:
                connection.sendfile(file, piece.start, piece.size)

    def close(self) -> None:
        """It, and what was cut from it, is read no more."""
        if self.lease:
            self.lease.end()

    def copy_into(self, target: io.FileIO) -> None:
        """Append it to an open file."""
        for chunk in self:
            _write(target, chunk)

    def digest(self, algorithm: str) -> bytes:
        """Its checksum, by the name in CHECKSUMS, or "MD5"."""
        made = hashlib.md5(usedforsecurity=False) if algorithm == "MD5" else CHECKSUMS[algorithm]()
        for chunk in self:
            made.update(chunk)
        return made.digest()


class Lease:
    """Until this ends, these files exist."""

    def __init__(self, folder: Folder, paths: Sequence[Path]) -> None:
        self._folder, self._paths = folder, paths
        folder.held(paths, 1)

    def end(self) -> None:
        paths, self._paths = self._paths, ()
        self._folder.held(paths, -1)

    def __del__(self) -> None:
        self.end()


class Folder:
    """Where the bodies are. A file's name says nothing: whose it is, only its object knows. Its content never changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()  # a lease may end, as garbage does, while this thread holds it
        self._leases: Counter[Path] = Counter()
        self._doomed: set[Path] = set()

    def create(self) -> io.FileIO:
        """An empty file for a body that comes."""
        return self._new_path().open("xb", buffering=0)

    def open(self, pieces: Sequence[Piece], *, md5: str | None = None) -> Body:
        """A body that can be read to its end, even when its files are deleted meanwhile."""
        return Body(pieces, md5=md5, lease=Lease(self, [piece.path for piece in pieces]))

    def keep(self, body: Body | bytes) -> list[Piece]:
        """Files of the caller's own with that content, until it deletes them."""
        if isinstance(body, Body):
            if body.unclaimed:
                body.unclaimed = False
                return list(body.pieces)
            with contextlib.suppress(OSError):  # of another file system, or on one without links
                return [self._linked(piece) for piece in body.pieces]
        with self.create() as file:
            if isinstance(body, Body):
                body.copy_into(file)
            else:
                _write(file, body)
            return [Piece(Path(os.fsdecode(file.name)), 0, len(body))]

    def delete(self, pieces: Sequence[Piece]) -> None:
        """Delete those files, as soon as nobody reads them."""
        with self._lock:
            for piece in pieces:
                if self._leases[piece.path]:
                    self._doomed.add(piece.path)
                else:
                    del self._leases[piece.path]
                    piece.path.unlink(missing_ok=True)

    def held(self, paths: Sequence[Path], change: int) -> None:
        """Count who reads them."""
        with self._lock:
            for path in paths:
                self._leases[path] += change
                if not self._leases[path]:
                    del self._leases[path]
                    if path in self._doomed:
                        self._doomed.remove(path)
                        path.unlink(missing_ok=True)

    def sweep(self, kept: set[Path]) -> None:
        """Delete what belongs to no object: what was on its way when a server was killed."""
        for path in self.path.glob("??/*"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _linked(self, piece: Piece) -> Piece:
        if not piece.path.is_relative_to(self.path):
            raise OSError("Others may change that file")
        path = self._new_path()
        path.hardlink_to(piece.path)
        return piece._replace(path=path)

    def _new_path(self) -> Path:
        name = uuid.uuid4().hex
        folder = self.path / name[:2]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name[2:]


def receive(environ: Mapping[str, Any], folder: Folder, *, md5: bool = True) -> tuple[Body, dict[str, str]]:
    """The body of a PUT request in a file, and the checksums that came after it, as headers.

    Every length, digest and checksum that the request announces is checked. (Not x-amz-content-sha256: it belongs to the
    signature, and the local cloud checks none.) CRC64NVME is always made, as S3 does.

    Args:
        md5: whether the body's MD5 is wanted, also when the request announces none. It takes longer than all the rest.

    Raises:
        Refused: it is not what was announced.
    """
    source = environ["wsgi.input"]
    encoding = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")
    chunked = _Chunked(source) if encoding.startswith("STREAMING-") else None
    length = environ.get("HTTP_X_AMZ_DECODED_CONTENT_LENGTH") if chunked else environ.get("CONTENT_LENGTH")
    expected = int(length) if length else None
    if expected is not None and expected > LARGEST_PUT:
        raise Refused("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
    announced = [
        name
        for name in CHECKSUMS
        if f"HTTP_X_AMZ_CHECKSUM_{name}" in environ
        or f"x-amz-checksum-{name.lower()}" in environ.get("HTTP_X_AMZ_TRAILER", "").lower()
    ]
    if "HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM" in environ and not announced:
        raise Refused(
            "InvalidRequest",
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were "
            "found.",
        )
    hashes = {name: CHECKSUMS[name]() for name in {*announced, "CRC64NVME"}}
    if md5 or "HTTP_CONTENT_MD5" in environ:
        hashes["MD5"] = hashlib.md5(usedforsecurity=False)
    with folder.create() as file:
        path = Path(os.fsdecode(file.name))
        try:
            size = _pour((chunked or source).readinto, file, hashes, expected)
            if expected is not None and size != expected:
                raise Refused(
                    "IncompleteBody",
                    "You did not provide the number of bytes specified by the Content-Length HTTP header",
                )
            trailers = chunked.trailers if chunked else {}
            digests = {name: made.digest() for name, made in hashes.items()}
            _check(environ, trailers, digests)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    made = digests["MD5"].hex() if "MD5" in digests else None
    return Body([Piece(path, 0, size)], md5=made, crc64nvme=digests["CRC64NVME"], unclaimed=True), trailers


def _check(environ: Mapping[str, Any], trailers: Mapping[str, str], digests: Mapping[str, bytes]) -> None:
    if md5 := environ.get("HTTP_CONTENT_MD5"):
        try:
            announced = base64.b64decode(md5, validate=True)
        except binascii.Error:
            announced = b""
        if len(announced) != 16:
            raise Refused("InvalidDigest", "The Content-MD5 you specified was invalid.")
        if announced != digests["MD5"]:
            raise Refused("BadDigest", "The Content-MD5 you specified did not match what we received.")
    for name, digest in digests.items():
        header = f"x-amz-checksum-{name.lower()}"
        value = trailers.get(header) or environ.get(f"HTTP_X_AMZ_CHECKSUM_{name}")
        if value is not None and value != base64.b64encode(digest).decode():
            raise Refused("BadDigest", f"The {name} you specified did not match the calculated checksum.")


def _pour(
    readinto: Callable[[memoryview], int], file: io.FileIO, hashes: Mapping[str, Hash], expected: int | None
) -> int:
    """Read to the end, into the file and the hashes. Returns how much it was."""
    slow = hashes.get("MD5") if expected is None or expected >= _ALONGSIDE else None
    inline = [made for made in hashes.values() if made is not slow]
    free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[bytearray, int]] = queue.SimpleQueue()
    for _ in range(_BUFFERS if slow else 1):
        free.put(bytearray(_BUFFER if expected is None else min(_BUFFER, expected or 1)))

    def digest(made: Hash) -> None:
        while (item := full.get())[1]:
            made.update(memoryview(item[0])[: item[1]])
            free.put(item[0])

    thread = threading.Thread(target=digest, args=(slow,), name="md5", daemon=True) if slow else None
    if thread:
        thread.start()
    size = 0
    try:
        while count := readinto(memoryview(buffer := free.get())):
            size += count
            filled = memoryview(buffer)[:count]
            if thread:
                full.put((buffer, count))  # read there and here, changed by neither until both are done
            for made in inline:
                made.update(filled)
            _write(file, filled)
            if not thread:
                free.put(buffer)
    finally:
        full.put((bytearray(), 0))
        if thread:
            thread.join()
    return size


def _write(file: io.FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


class _Chunked:
    """What is inside the aws-chunked encoding: ``size[;chunk-signature=...]CRLF data CRLF ... 0CRLF trailers CRLF``.

    Attributes:
        trailers: what came after the last chunk, by name in lower case.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._left: int | None = 0
        self._first = True
        self.trailers: dict[str, str] = {}

    def readinto(self, view: memoryview) -> int:
        if self._left == 0:
            self._next_chunk()
        if self._left is None:
            return 0
        count: int = self._source.readinto(view[: self._left])
        if not count:
            raise Refused("IncompleteBody", "The request body terminated unexpectedly")
        self._left -= count
        return count

    def _next_chunk(self) -> None:
        if not self._first and self._line():
            raise Refused("InvalidRequest", "A chunk of the aws-chunked body is longer than its size says")
        self._first = False
        head = self._line()
        try:
            self._left = int(head.partition(b";")[0], 16)
        except ValueError:
            raise Refused("InvalidRequest", f"Not the size of a chunk in the aws-chunked body: {head[:40]!r}") from None
        if self._left == 0:
            self._left = None
            while line := self._line():
                name, _, value = line.decode("latin-1").partition(":")
                self.trailers[name.strip().lower()] = value.strip()

    def _line(self) -> bytes:
        line: bytes = self._source.readline(8192)
        return line.rstrip(b"\r\n")
