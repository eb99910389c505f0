"""What a file holds, as digests: of the whole and of content-defined chunks. Read once, remembered until the file changes.

    content = content.scan(Path("model.safetensors"), cache)   # -> Content(size, sha256, chunks)

Large files are cut where their *content* says so, not at multiples of some size: after an insertion the cuts that follow fall
on the same bytes as before, so chunks that were uploaded once are recognised wherever they have moved to. One chunk is at
once the unit of hashing in parallel, of an S3 multipart upload, of its checksum and of a copy within S3.

SHA-256 names files and chunks, for S3 checks and lists it. Chunks have a BLAKE3 as well: it takes a quarter of the time, so
a large file is verified about as fast as it is read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from windlass.errors import InvalidInput

# S3 takes parts of 5 MiB to 5 GiB, at most 10,000 of them (S3 user guide, multipart upload limits).
CHUNK_MIN = 6 << 20
_WHOLE = 2 * CHUNK_MIN  # a file of at most so much has no chunks
_CHUNK_SPREAD = 4 << 20  # a cut is looked for in this much after the minimum
_MAX_PARTS = 10_000

# A cut follows this marker: a byte pair that small float32 and bfloat16 weights hold often (0xbd tops values around -0.05)
# and that no data holds always. A regular expression finds it at GB/s, where a rolling hash in Python would take minutes.
_MARKER = re.compile(rb"\xbd\x5a")
_WINDOW = 64  # bytes up to and with the marker that decide between the markers of one window
_MAX_MARKERS = 20_000  # looked at in one window; data made of markers alone is cut as well as any

_BLOCK = 1 << 20
_SETTLED_SECONDS = 2.0  # FAT's clock ticks in 2 s: what changed later than this ago may change again unseen


class Digest(Protocol):
    """What hashlib and blake3 make."""

    def update(self, data: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def sha256() -> Digest:
    return hashlib.sha256()


def blake3() -> Digest:
    from blake3 import blake3  # what only reads manifests needs none

    return blake3()


@dataclass(frozen=True)
class Chunk:
    """A stretch of a file. ``blake3`` is empty in bundles of before it was kept."""

    offset: int
    size: int
    sha256: str
    blake3: str = ""

    @property
    def check(self) -> tuple[Callable[[], Digest], str]:
        """What verifies it: the quickest digest that is known of it, and what that should say in hex."""
        return (blake3, self.blake3) if self.blake3 else (sha256, self.sha256)


@dataclass(frozen=True)
class Content:
    """A file's bytes, named. ``chunks`` is empty when the file is not larger than one."""

    size: int
    sha256: str
    chunks: tuple[Chunk, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As the manifest has it: chunks as ``[size, sha256, blake3]``, for their offsets follow."""
        chunks = [[c.size, c.sha256, c.blake3] if c.blake3 else [c.size, c.sha256] for c in self.chunks]
        return {"sha256": self.sha256, "size": self.size, **({"chunks": chunks} if chunks else {})}

    @classmethod
    def from_json(cls, data: object) -> Content:
        """Raises ValueError when it is not what :meth:`to_json` writes."""
        if not isinstance(data, dict) or not is_digest(data.get("sha256")) or not _is_size(data.get("size")):
            raise ValueError(f"expected sha256 and size, got {data!r:.200}")
        chunks, offset = [], 0
        listed = data.get("chunks", [])
        if not isinstance(listed, list):
            raise ValueError(f"expected a list of chunks, got {listed!r:.200}")
        for item in listed:
            if not (
                isinstance(item, list) and len(item) in (2, 3) and _is_size(item[0]) and all(map(is_digest, item[1:]))
            ):
                raise ValueError(f"expected a chunk as [size, sha256, blake3], got {item!r:.200}")
            chunks.append(Chunk(offset, *item))
            offset += item[0]
        if chunks and offset != data["size"]:
            raise ValueError(f"its chunks hold {offset} bytes, the file {data['size']}")
        return cls(data["size"], data["sha256"], tuple(chunks))


def is_digest(value: object) -> bool:
    """Whether it is a sha256 or a blake3 in lower-case hex."""
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


# ------------------------------------------------------------------------------------------------------------- chunking


def cuts(file: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """Offset and size of each chunk of an open file. Files up to twice the minimum stay whole.

    Among the markers between the minimum and the minimum plus the spread, the cut follows the one with the least CRC: with a
    fixed number of markers to expect, files of all kinds get cuts that move with their content.
    """
    minimum = CHUNK_MIN * max(1, -(-size // (CHUNK_MIN * (_MAX_PARTS - 1))))
    spread, offset = _CHUNK_SPREAD, 0
    window = bytearray(spread + _WINDOW)
    while size - offset > minimum + spread + CHUNK_MIN:
        start = offset + minimum
        file.seek(start - _WINDOW)
        count = file.readinto(window)  # type: ignore[attr-defined]
        best, at = 1 << 32, spread
        for marker in itertools.islice(_MARKER.finditer(window, _WINDOW, count), _MAX_MARKERS):
            end = marker.end()
            weight = zlib.crc32(window[end - _WINDOW : end])
            if weight < best:
                best, at = weight, end - _WINDOW
        yield offset, minimum + at
        offset += minimum + at
    yield offset, size - offset


class Shared:
    """A file that several threads read, by one descriptor: the system reads ahead along it. With a descriptor for each chunk
    it would begin anew at each, and take a fifth longer over a file that is not in memory (measured, 1 GiB, Linux 6.18).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def __enter__(self) -> Shared:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def readinto(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:  # Windows has one place in a file for all that read it
            self._file.seek(offset)
            return self._file.readinto(view)


def hash_stretch(file: Shared, offset: int, size: int, *kinds: Callable[[], Digest]) -> tuple[str, ...]:
    """Digests (hex) of a stretch of a file, in one pass. Releases the GIL, so stretches hash in parallel."""
    digests, view, end = [kind() for kind in kinds], memoryview(bytearray(min(_BLOCK, size))), offset + size
    while offset < end:
        count = file.readinto(view[: end - offset], offset)
        if not count:
            raise InvalidInput("it became shorter while it was read", where=f"Reading {file.path}")
        for digest in digests:
            digest.update(view[:count])
        offset += count
    return tuple(digest.hexdigest() for digest in digests)


class Chunker:
    """The chunks of a large file, from its bytes as they come by: who reads the file anyway need not read it twice.

    with Chunker(path, size) as chunker:
        for view in buffers: chunker.update(view)
        chunker.chunks
    """

    def __init__(self, path: Path, size: int) -> None:
        self.chunks: tuple[Chunk, ...] = ()
        self._file = path.open("rb", buffering=0)
        self._cuts = cuts(self._file, size) if size > _WHOLE else iter(())
        self._at, self._digests = 0, (sha256(), blake3())
        self._chunk = next(self._cuts, None)

    def __enter__(self) -> Chunker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def update(self, view: memoryview) -> None:
        """The next bytes of the file."""
        while view and self._chunk:
            start, size = self._chunk
            piece = view[: start + size - self._at]
            for digest in self._digests:
                digest.update(piece)
            self._at, view = self._at + len(piece), view[len(piece) :]
            if self._at == start + size:
                self.chunks += (Chunk(start, size, *(digest.hexdigest() for digest in self._digests)),)
                self._digests, self._chunk = (sha256(), blake3()), next(self._cuts, None)


def scan(path: Path, pool: Executor, cache: DigestCache | None = None) -> Content:
    """Digest a file, or take its digests from ``cache`` when it has not changed since they were."""
    before = path.stat()
    known = cache.get(path, before) if cache else None
    if known:
        return known
    seen, size = time.time(), before.st_size
    stretches: list[tuple[int, int]] = []
    if size > _WHOLE:
        with path.open("rb") as cut:
            stretches = list(cuts(cut, size))
    with Shared(path) as file:
        hashed = [(*of, pool.submit(hash_stretch, file, *of, sha256, blake3)) for of in stretches]
        (whole,) = hash_stretch(file, 0, size, sha256)
        content = Content(size, whole, tuple(Chunk(start, count, *done.result()) for start, count, done in hashed))
    after = path.stat()
    if identity(before) != identity(after):
        hint = "Wait until it is written, then try again."
        raise InvalidInput("it changed while it was read", where=f"Reading {path}", hint=hint)
    if cache:
        cache.put(path, after, content, seen)
    return content


def matches(path: Path, expected: Content, pool: Executor) -> bool:
    """Whether a file is what is expected of it; its chunks are compared on ``pool``."""
    if path.stat().st_size != expected.size:
        return False
    with Shared(path) as file:

        def same(chunk: Chunk) -> bool:
            kind, said = chunk.check
            return hash_stretch(file, chunk.offset, chunk.size, kind) == (said,)

        if not expected.chunks:
            return same(Chunk(0, expected.size, expected.sha256))
        return all(list(pool.map(same, expected.chunks)))  # all of them: the file must not be closed before


# ---------------------------------------------------------------------------------------------------------------- cache


def identity(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does."""
    # ctime is what a program cannot set: a file put back with its old mtime still shows that it changed.
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev


class DigestCache:
    """Digests of files by path, size, times, inode and device, in one SQLite file that processes share.

    It only saves work. A file that changed within the last seconds is not remembered, because a clock tick could hide the
    next change; and what an upload sends is checked against the digest by S3 itself. A cache that cannot be read or written
    is as good as none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "digests.sqlite"

    def get(self, path: Path, stat: os.stat_result) -> Content | None:
        row = self._do("SELECT identity, content FROM files WHERE path = ?", (str(path.resolve()),))
        if row is None or row[0] != json.dumps(identity(stat)):
            return None
        try:
            content = Content.from_json(json.loads(row[1]))
        except ValueError:
            return None  # written by another version
        return content if all(chunk.blake3 for chunk in content.chunks) else None  # or by an earlier one

    def put(self, path: Path, stat: os.stat_result, content: Content, seen: float) -> None:
        """Remember what was read at ``seen``, if the file had rested by then."""
        if seen - max(stat.st_mtime, stat.st_ctime) < _SETTLED_SECONDS:
            return
        row = (str(path.resolve()), json.dumps(identity(stat)), json.dumps(content.to_json()))
        self._do("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", row)

    def forget(self, path: Path) -> None:
        self._do("DELETE FROM files WHERE path = ?", (str(path.resolve()),))

    def _do(self, statement: str, values: tuple[str, ...]) -> tuple[str, str] | None:
        import sqlite3  # what only reads manifests needs none

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = sqlite3.connect(self.path, timeout=5)
            try:
                with connection:
                    connection.execute("CREATE TABLE IF NOT EXISTS files (path PRIMARY KEY, identity, content)")
                    row: tuple[str, str] | None = connection.execute(statement, values).fetchone()
                    return row
            finally:
                connection.close()
        except (OSError, sqlite3.Error):
            return None  # a read-only home, a broken file: everything is digested anew


def cache_folder() -> Path:
    """Where Windlass keeps what only saves work: ``WINDLASS_CACHE``, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WINDLASS_CACHE") or Path(base) / "windlass")
