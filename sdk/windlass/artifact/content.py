"""What a file holds, as digests: of the whole and of content-defined chunks. Read once, remembered until the file changes.

    content = content.scan(Path("model.safetensors"), cache)   # -> Content(size, sha256, chunks)

Large files are cut where their *content* says so, not at multiples of some size: after an insertion the cuts that follow fall
on the same bytes as before, so chunks that were uploaded once are recognised wherever they have moved to. One chunk is at
once the unit of hashing in parallel, of an S3 multipart upload, of its checksum and of a copy within S3.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from windlass.errors import InvalidInput

# S3 takes parts of 5 MiB to 5 GiB, at most 10,000 of them (S3 user guide, multipart upload limits).
CHUNK_MIN = 6 << 20
_CHUNK_SPREAD = 4 << 20  # a cut is looked for in this much after the minimum
_MAX_PARTS = 10_000

# A cut follows this marker: a byte pair that small float32 and bfloat16 weights hold often (0xbd tops values around -0.05)
# and that no data holds always. A regular expression finds it at GB/s, where a rolling hash in Python would take minutes.
_MARKER = re.compile(rb"\xbd\x5a")
_WINDOW = 64  # bytes up to and with the marker that decide between the markers of one window
_MAX_MARKERS = 20_000  # looked at in one window; data made of markers alone is cut as well as any

_BLOCK = 1 << 20
_SETTLED_SECONDS = 2.0  # FAT's clock ticks in 2 s: what changed later than this ago may change again unseen


@dataclass(frozen=True)
class Chunk:
    """A stretch of a file."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Content:
    """A file's bytes, named. ``chunks`` is empty when the file is not larger than one."""

    size: int
    sha256: str
    chunks: tuple[Chunk, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As the manifest has it: chunks as ``[size, sha256]``, for their offsets follow."""
        chunks = {"chunks": [[c.size, c.sha256] for c in self.chunks]} if self.chunks else {}
        return {"sha256": self.sha256, "size": self.size, **chunks}

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
            if not isinstance(item, Sequence) or len(item) != 2 or not _is_size(item[0]) or not is_digest(item[1]):
                raise ValueError(f"expected a chunk as [size, sha256], got {item!r:.200}")
            chunks.append(Chunk(offset, item[0], item[1]))
            offset += item[0]
        if chunks and offset != data["size"]:
            raise ValueError(f"its chunks hold {offset} bytes, the file {data['size']}")
        return cls(data["size"], data["sha256"], tuple(chunks))


def is_digest(value: object) -> bool:
    """Whether it is a sha256 in lower-case hex."""
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


def hash_stretch(path: Path, offset: int, size: int) -> str:
    """sha256 (hex) of a stretch of a file. Releases the GIL, so stretches hash in parallel."""
    digest, buffer = hashlib.sha256(), bytearray(min(_BLOCK, size))
    view, end = memoryview(buffer), offset + size
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while offset < end:
            count = file.readinto(view[: min(_BLOCK, end - offset)])
            if not count:
                raise InvalidInput("it became shorter while it was read", where=f"Reading {path}")
            digest.update(view[:count])
            offset += count
    return digest.hexdigest()


def chunks(path: Path, size: int, pool: Executor) -> Callable[[], tuple[Chunk, ...]]:
    """Start to hash the chunks of a large file on ``pool``; call the result for them. A small file has none."""
    if size <= CHUNK_MIN * 2:
        return lambda: ()
    with path.open("rb") as file:
        stretches = list(cuts(file, size))
    hashed = [(start, count, pool.submit(hash_stretch, path, start, count)) for start, count in stretches]
    return lambda: tuple(Chunk(start, count, future.result()) for start, count, future in hashed)


class Chunker:
    """The chunks of a large file, from its bytes as they come by: who reads the file anyway need not read it twice.

    with Chunker(path, size) as chunker:
        for view in buffers: chunker.update(view)
        chunker.chunks
    """

    def __init__(self, path: Path, size: int) -> None:
        self.chunks: tuple[Chunk, ...] = ()
        self._file = path.open("rb", buffering=0)
        self._cuts = cuts(self._file, size) if size > CHUNK_MIN * 2 else iter(())
        self._at, self._digest = 0, hashlib.sha256()
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
            self._digest.update(piece)
            self._at, view = self._at + len(piece), view[len(piece) :]
            if self._at == start + size:
                self.chunks += (Chunk(start, size, self._digest.hexdigest()),)
                self._digest, self._chunk = hashlib.sha256(), next(self._cuts, None)


def scan(path: Path, pool: Executor, cache: DigestCache | None = None) -> Content:
    """Digest a file, or take its digests from ``cache`` when it has not changed since they were."""
    before = path.stat()
    known = cache.get(path, before) if cache else None
    if known:
        return known
    seen = time.time()
    wanted = chunks(path, before.st_size, pool)
    content = Content(before.st_size, hash_stretch(path, 0, before.st_size), wanted())
    after = path.stat()
    if identity(before) != identity(after):
        hint = "Wait until it is written, then try again."
        raise InvalidInput("it changed while it was read", where=f"Reading {path}", hint=hint)
    if cache:
        cache.put(path, after, content, seen)
    return content


def matches(path: Path, expected: Content, pool: Executor) -> Callable[[], bool]:
    """Start to compare a file with what is expected of it, chunk by chunk on ``pool``; call the result for the answer."""
    if path.stat().st_size != expected.size:
        return lambda: False
    stretches = expected.chunks or (Chunk(0, expected.size, expected.sha256),)
    hashed = [(chunk.sha256, pool.submit(hash_stretch, path, chunk.offset, chunk.size)) for chunk in stretches]
    return lambda: all(future.result() == sha256 for sha256, future in hashed)


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
            return Content.from_json(json.loads(row[1]))
        except ValueError:
            return None  # written by another version

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
