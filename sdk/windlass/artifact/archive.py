"""``model.tar.gz``, written and read in one pass: fast where files do not compress, deterministic, and safe to read.

The archive is a plain ``tar`` in one ``gzip`` member. Weights hardly compress, and gzip takes minutes to find that out: their
bytes go into deflate's *stored* blocks, as they are. Text is compressed, in pieces on all cores. Any tar opens it; several
members would be valid too, but Python's own ``tarfile`` reads only the first of them in mode ``r|gz``. The CRC over all of
it and the unpacking are zlib-ng's, which takes a tenth of zlib's time for a CRC; zlib compresses, as ever, so that archives
stay what they were.

Reading refuses paths that climb out, links, devices, bombs, and what appears twice; it hashes while it writes.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import tarfile
import unicodedata
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Protocol

from windlass.artifact.content import Chunker, Content, identity
from windlass.errors import CorruptArtifact, InvalidInput

# SageMaker lets no archive unpack to more than the volume it is given; 64 GiB holds any model this format is used for
# today, and a bomb is found by its ratio long before that.
MAX_BYTES = 64 << 30
MAX_FILES = 100_000
MAX_RATIO = 1_000  # deflate's own limit is 1032:1, and only for constant input
_RATIO_FREE = 64 << 20  # small archives of zeros are harmless

BUILDING = "Building an artifact"
# .windlass: the state of a local cloud that was started there.
LEFT_OUT = {"__pycache__", ".git", ".venv", ".windlass", ".DS_Store", ".ipynb_checkpoints"}

_STORED = {".safetensors", ".bin", ".pt", ".pth", ".onnx", ".npz", ".gguf", ".gz", ".zip", ".png", ".jpg", ".jpeg"}
_BUFFER = 4 << 20
_READ = 256 << 10  # of packed bytes: zlib copies what it leaves over
_DEPTH = 4  # buffers in flight: 16 MiB in all
_SMALL = 1 << 20  # compressed whole, by one thread
_TOGETHER, _MOST_TOGETHER = 256 << 10, 1000  # bytes and files that are compressed as one piece
_BLOCK = 0xFFFF  # the most that a stored block of deflate holds (RFC 1951, 3.2.4)
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no name, no date, no system: the same for all
_LEVEL = 6
_VECTORS = 512  # POSIX lets a system take as few as 16 at once; Linux and macOS take 1024

WORKERS = max(2, min(8, os.cpu_count() or 2))


# ---------------------------------------------------------------------------------------------------------------- files


def members(folder: Path, prefix: str = "", *, all_files: bool = False) -> Iterator[tuple[str, Path]]:
    """Name in the archive and path of every regular file below ``folder``.

    Args:
        prefix: goes before each name.
        all_files: also caches and the like, which no bundle should hold.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder", where=BUILDING)
    for path in sorted(folder.iterdir()):
        if not all_files and (path.name in LEFT_OUT or path.suffix == ".pyc"):
            continue
        name = f"{prefix}/{path.name}" if prefix else path.name
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the name {path.name!r} is not Unicode", where=BUILDING, hint="Rename it.") from error
        if "\\" in path.name:
            raise InvalidInput(f"{name!r} holds a backslash", where=BUILDING, hint="Rename it.")
        if path.is_symlink() and not path.exists():
            raise InvalidInput(f"{path} is a broken link", where=BUILDING)
        if path.is_dir():
            if path.is_symlink():
                hint = "Copy it, so that the bundle is whole."
                raise InvalidInput(f"{path} links to a folder", where=BUILDING, hint=hint)
            yield from members(path, name, all_files=all_files)
        elif path.is_file():
            yield name, path
        else:
            raise InvalidInput(f"{path} is neither a file nor a folder", where=BUILDING)


def refuse_collisions(names: Mapping[str, Any]) -> None:
    """Names that are one file on a case-folding or Unicode-folding disk (macOS, Windows) are refused on every disk."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other != name:
            raise InvalidInput(f"{name!r} and {other!r} are one file on some disks", where=BUILDING)


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


# -------------------------------------------------------------------------------------------------------------- writing


def order(sizes: Mapping[str, int]) -> list[str]:
    """Names in the order in which an archive has them: the largest first.

    So the bytes of the weights are at the same place whatever becomes of the code, and the small files, which compress beside
    each other, are one stretch at the end.
    """
    return sorted(sizes, key=lambda name: (-sizes[name], name))


class Sink(Protocol):
    """What an archive is written to. One that has ``member_ends()`` is told where each large member does."""

    def write(self, body: bytes | memoryview, /) -> object: ...


class Writer:
    """Writes members in the order they are added.

    with Writer(out) as writer:
        for name, path in files: writer.add(name, path)
        contents = writer.flush()
        writer.add_bytes("windlass.json", text)
    """

    def __init__(self, out: Sink, *, with_chunks: bool = True) -> None:
        self._out, self._with_chunks = out, with_chunks
        self._after_member: Callable[[], None] = getattr(out, "member_ends", lambda: None)
        self._contents: dict[str, Content] = {}
        self._small: deque[Future[tuple[bytes, bytes, dict[str, Content]]]] = deque()
        self._group: list[tuple[str, Path]] = []
        self._grouped = 0
        self._file = _descriptor(out)
        self._crc32 = _zlib_ng().crc32
        self._crc = self._length = 0  # of the tar, for gzip's trailer
        self._threads = ExitStack()
        self._pool = self._threads.enter_context(ThreadPoolExecutor(WORKERS))
        # Steps of one lane run in order; lanes run beside each other, and zlib, hashlib and write release the GIL.
        self._hashing = self._threads.enter_context(ThreadPoolExecutor(1))
        self._chunking = self._threads.enter_context(ThreadPoolExecutor(1))
        self._writing = self._threads.enter_context(ThreadPoolExecutor(1))
        self._out.write(_GZIP_HEADER)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
                self._write(b"\0" * 1024)
                last = b"\x01\0\0\xff\xff"  # an empty block that says it is the last one
                self._out.write(last + struct.pack("<II", self._crc, self._length & 0xFFFFFFFF))
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._threads.close()

    def add(self, name: str, path: Path) -> None:
        """A file, as it is now."""
        size = path.stat().st_size
        if size <= _SMALL:
            self._group.append((name, path))
            self._grouped += size
            if self._grouped >= _TOGETHER or len(self._group) >= _MOST_TOGETHER:
                self._pack_group()
            return
        self.flush()
        with path.open("rb", buffering=0) as file, Chunker(path, size if self._with_chunks else 0) as chunker:
            before = os.fstat(file.fileno())
            large = self._store if _stored(path, size) else self._compress
            self._write(_header(name, before))
            digest = hashlib.sha256()
            for view, pending in self._buffers(file, size, name):
                pending.append(self._hashing.submit(digest.update, view))
                pending.append(self._chunking.submit(chunker.update, view))
                pending.append(large(view))
            self._write(_padding(size))
            self._after_member()
            self._contents[name] = Content(size, digest.hexdigest(), chunker.chunks)
            if identity(before) != identity(os.fstat(file.fileno())):
                hint = "Wait until it is written."
                raise InvalidInput(f"{name} changed while it was read", where=BUILDING, hint=hint)

    def add_bytes(self, name: str, body: bytes) -> None:
        self.flush()
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(body), 0o644
        self._write(header.tobuf(tarfile.PAX_FORMAT) + body + _padding(len(body)))

    def flush(self) -> dict[str, Content]:
        """What was written until now."""
        self._pack_group()
        while self._small:
            self._write_small()
        return self._contents

    def _pack_group(self) -> None:
        if self._group:
            self._small.append(self._pool.submit(_pack_small, self._group))
        self._group, self._grouped = [], 0
        if len(self._small) > 2 * WORKERS:
            self._write_small()

    def _write(self, plain: bytes | memoryview, packed: bytes | None = None) -> None:
        """The next bytes of the tar; deflated already, or to be deflated here."""
        self._crc = self._crc32(plain, self._crc)
        self._length += len(plain)
        self._out.write(_deflate(plain) if packed is None else packed)

    def _write_stored(self, view: memoryview) -> None:
        """The next bytes of the tar, as they are: gathered by the kernel, for a copy here costs as much as the hash."""
        self._crc = self._crc32(view, self._crc)
        self._length += len(view)
        parts = _blocks(view)
        if self._file is None:
            for part in parts:
                self._out.write(part)
            return
        self._out.flush()  # type: ignore[attr-defined]  # it is a file
        while parts:
            count = os.writev(self._file, parts[:_VECTORS])
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if count:
                parts[0] = memoryview(parts[0])[count:]

    def _write_small(self) -> None:
        plain, packed, contents = self._small.popleft().result()
        self._contents |= contents
        self._write(plain, packed)

    def _buffers(self, file: IO[bytes], size: int, name: str) -> Iterator[tuple[memoryview, list[Future[Any]]]]:
        """The file in buffers. A buffer is filled again when all that was put into its list has ended."""
        ring: list[tuple[bytearray, list[Future[Any]]]] = [(bytearray(_BUFFER), []) for _ in range(_DEPTH)]
        turn, left = 0, size
        while left:
            buffer, pending = ring[turn % _DEPTH]
            for future in pending:
                future.result()
            pending.clear()
            count = file.readinto(memoryview(buffer)[: min(_BUFFER, left)])  # type: ignore[attr-defined]
            if not count:
                raise InvalidInput(f"{name} shrank while it was read", where=BUILDING)
            yield memoryview(buffer)[:count], pending
            turn, left = turn + 1, left - count
        for _, pending in ring:
            for future in pending:
                future.result()

    def _store(self, view: memoryview) -> Future[None]:
        return self._writing.submit(self._write_stored, view)

    def _compress(self, view: memoryview) -> Future[None]:
        """Deflated by itself, beside the others; written in order."""
        packed = self._pool.submit(_deflate, view)
        return self._writing.submit(lambda: self._write(view, packed.result()))


def _zlib_ng() -> Any:
    from zlib_ng import zlib_ng  # what only reads manifests needs none

    return zlib_ng


def _header(name: str, status: os.stat_result) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode = status.st_size, 0o755 if status.st_mode & stat.S_IXUSR else 0o644
    return header.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)


def _pack_small(group: list[tuple[str, Path]]) -> tuple[bytes, bytes, dict[str, Content]]:
    """Files as the tar has them, and deflated: those that compress as one piece, for code is alike."""
    plain, packed, contents = bytearray(), bytearray(), {}
    done = 0
    for name, path in group:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            body = file.read(_SMALL + 1)
        if len(body) != before.st_size:
            raise InvalidInput(f"{name} changed while it was read", where=BUILDING, hint="Wait until it is written.")
        contents[name] = Content(len(body), hashlib.sha256(body).hexdigest())
        member = _header(name, before) + body + _padding(len(body))
        if path.suffix.lower() in _STORED:
            if done < len(plain):
                packed += _deflate(plain[done:])
            packed += b"".join(_blocks(memoryview(member)))
            done = len(plain) + len(member)
        plain += member
    if done < len(plain):
        packed += _deflate(plain[done:])
    return bytes(plain), bytes(packed), contents


def _deflate(data: bytes | bytearray | memoryview) -> bytes:
    """A piece of a deflate stream that refers to nothing before it and ends on a byte, so that pieces may be joined."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def _blocks(view: memoryview) -> list[bytes | memoryview]:
    """As stored blocks of deflate, none of them the last."""
    parts: list[bytes | memoryview] = []
    for start in range(0, len(view), _BLOCK):
        piece = view[start : start + _BLOCK]
        parts += [struct.pack("<BHH", 0, len(piece), len(piece) ^ 0xFFFF), piece]
    return parts


def _descriptor(out: Sink) -> int | None:
    """The file behind ``out``, where the system can gather what is written to it."""
    try:
        return int(out.fileno()) if hasattr(os, "writev") else None  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return None  # a file in memory


def _stored(path: Path, size: int) -> bool:
    """Whether compressing it is a waste: weights by their name, anything else when samples of it hardly shrink."""
    if path.suffix.lower() in _STORED:
        return True
    with path.open("rb") as file:
        samples = []
        for part in range(4):
            file.seek(part * size // 4)
            samples.append(file.read(32 << 10))
    sample = b"".join(samples)
    return len(zlib.compress(sample, 1)) > 0.8 * len(sample)


# -------------------------------------------------------------------------------------------------------------- reading


class _Inflated(io.RawIOBase):
    """The bytes in a gzip stream (or of a plain file), forwards only. Python's own gzip module reads 8 KiB at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file, self._at = file, 0
        self._packed = b""
        start = file.read(2)
        file.seek(0)
        self._new: Callable[[int], Any] = _zlib_ng().decompressobj
        self._inflater = self._new(31) if start == b"\x1f\x8b" else None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._at:
            raise io.UnsupportedOperation("a gzip stream is read forwards")
        while self._at < offset and self.read(min(_BUFFER, offset - self._at)):
            continue
        return self._at

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes; fewer only at the end."""
        parts, left = [], size
        while left > 0:
            part = self._some(left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._at += len(body)
        return body

    def _some(self, most: int) -> bytes:
        if self._inflater is None:
            return self._file.read(most)
        while True:
            if self._inflater.eof:
                # The next member follows; zeros between members and at the end are padding (gzip's manual, "tapes").
                rest = self._inflater.unused_data.lstrip(b"\0")
                while not rest:
                    more = self._file.read(_READ)
                    if not more:
                        return b""
                    rest = more.lstrip(b"\0")
                self._inflater, self._packed = self._new(31), rest
            if not self._packed:
                self._packed = self._file.read(_READ)
                if not self._packed:
                    raise EOFError("the gzip stream ends before its end")
            part: bytes = self._inflater.decompress(self._packed, most)
            self._packed = self._inflater.unconsumed_tail
            if part:
                return part


def unpack(archive: Path, dest: Path) -> dict[str, str]:
    """Unpack into an empty folder. Returns the sha256 (hex) of each file, by its name.

    Raises:
        CorruptArtifact: damaged, or something that must not be unpacked. What was written until then stays.
    """
    where = f"Unpacking {archive.name}"
    try:
        packed = archive.stat().st_size
        file = archive.open("rb", buffering=0)
    except OSError as error:
        raise InvalidInput(f"{archive} cannot be read: {error.strerror}", where=where) from error
    seen: dict[str, str] = {}
    digests: dict[str, str] = {}
    total, damaged = 0, _zlib_ng().error
    with file, ThreadPoolExecutor(1) as hashing, ThreadPoolExecutor(1) as writing:
        try:
            stream = _Inflated(file)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # 100,000 of them need not be kept
                    name = _safe_name(member, where)
                    if name is None:
                        continue
                    if member.isdir():
                        _refuse_twice(seen, name, where, folder=True)
                        (dest / name).mkdir(parents=True, exist_ok=True)
                        continue
                    _refuse_twice(seen, name, where, folder=False)
                    total += member.size
                    _refuse_bomb(total, packed, len(seen), where)
                    stream.seek(member.offset_data)
                    digests[name] = _write_file(stream, member, dest / name, hashing, writing, where)
            # What follows the end of the archive is checksummed like the rest of it, and must not be a bomb.
            for count in iter(lambda: len(stream.read(_BUFFER)), 0):
                total += count
                _refuse_bomb(total, packed, len(seen), where)
        except (tarfile.TarError, EOFError, damaged, ValueError, OSError) as error:
            if isinstance(error, InvalidInput) or (isinstance(error, OSError) and error.errno is not None):
                raise  # ours already, or the disk's own complaint (full, read-only)
            # tarfile says of what is no archive at all, on four lines, which compressions it tried.
            none = isinstance(error, tarfile.ReadError) and not seen
            what = "not a tar.gz" if none else f"truncated or damaged ({error})"
            raise CorruptArtifact(what, where=where, hint="Upload it again; a bundle is never half-loaded.") from error
    return digests


def _safe_name(member: tarfile.TarInfo, where: str) -> str | None:
    """The member's path below the destination, or ``None`` for the root itself."""
    path = PurePosixPath(member.name)
    climbs = path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name
    if climbs:
        raise CorruptArtifact(f"{member.name!r} would be written outside its folder", where=where)
    if not (member.isreg() or member.isdir()) or member.sparse is not None:
        kind = "a link" if member.issym() or member.islnk() else "a device"
        kind = "a sparse file" if member.sparse is not None else kind
        raise CorruptArtifact(f"{member.name!r} is {kind}", where=where, hint="Bundles hold plain files only.")
    return None if str(path) == "." else str(path)


def _refuse_twice(seen: dict[str, str], name: str, where: str, *, folder: bool) -> None:
    """Each name once, whatever the case; a folder may come again, but not with a file's name."""
    parts = PurePosixPath(name).parts
    for end in range(1, len(parts)):
        parent = "/".join(parts[:end])
        if seen.setdefault(folded(parent), f"{parent}/") != f"{parent}/":
            raise CorruptArtifact(f"{parent!r} is in it twice", where=where)
    entry = f"{name}/" if folder else name
    known = seen.get(folded(name))
    if known is not None and (known != entry or not folder):
        raise CorruptArtifact(f"{name!r} is in it twice", where=where)
    seen[folded(name)] = entry


def _refuse_bomb(total: int, packed: int, count: int, where: str) -> None:
    if total > MAX_BYTES or count > MAX_FILES or (total > _RATIO_FREE and total > packed * MAX_RATIO):
        raise CorruptArtifact(f"{packed} bytes unpack to more than {total} bytes in {count} files", where=where)


def _write_file(
    stream: _Inflated, member: tarfile.TarInfo, path: Path, hashing: Executor, writing: Executor, where: str
) -> str:
    """Copy a member out, hashing and writing beside the reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left, digest = member.size, hashlib.sha256()
    small = left <= _SMALL
    with path.open("xb", buffering=0) as out:
        pending: deque[Future[Any]] = deque()
        while left:
            body = stream.read(min(_BUFFER, left))
            if not body:
                raise CorruptArtifact(
                    f"{member.name!r} ends after {member.size - left} of {member.size} bytes", where=where
                )
            left -= len(body)
            if small:
                digest.update(body)
                _write_all(out, body)
                continue
            pending += [hashing.submit(digest.update, body), writing.submit(_write_all, out, body)]
            while len(pending) > _DEPTH:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
    path.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
    return digest.hexdigest()


def _write_all(out: IO[bytes], body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[out.write(view) :]
