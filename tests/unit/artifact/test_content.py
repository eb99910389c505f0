"""Digests, chunks that move with their content, and a cache that never lies."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from windlass.artifact import content
from windlass.artifact.content import CHUNK_MIN, Chunk, Content, DigestCache
from windlass.errors import InvalidInput

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def uniform(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def float32(size: int) -> bytes:
    """Exponents as weights have them, mantissas that do not repeat."""
    size += -size % (4 * 65536)
    draw = random.Random(2)
    few = struct.pack("<65536f", *(draw.gauss(0, 0.02) for _ in range(65536)))
    body = bytearray(few * (size // len(few)))
    noise = random.Random(3).randbytes(size // 2)
    body[0::4], body[1::4] = noise[: size // 4], noise[size // 4 :]
    return bytes(body)


def bfloat16(size: int) -> bytes:
    size += size % 2
    wide = bytearray(random.Random(4).randbytes(size))
    wide[1::2] = float32(2 * size)[3::4][: size // 2]
    return bytes(wide)


def stretches(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return list(content.cuts(file, path.stat().st_size))


@pytest.mark.parametrize(
    "make", [uniform, float32, bfloat16, lambda size: bytes(size)], ids=["uniform", "f32", "bf16", "0"]
)
@pytest.mark.parametrize("size", [16 * MIB + 1, 18 * MIB, 50 * MIB])
def test_chunks_cover_a_file_and_make_parts_that_s3_takes(
    tmp_path: Path, make: Callable[[int], bytes], size: int, pool: ThreadPoolExecutor
) -> None:
    path = tmp_path / "w"
    body = make(size)[:size]
    path.write_bytes(body)

    found = content.scan(path, pool)

    assert found.sha256 == hashlib.sha256(body).hexdigest()
    at = 0
    for chunk in found.chunks:
        assert chunk.offset == at
        assert chunk.sha256 == hashlib.sha256(body[at : at + chunk.size]).hexdigest()
        assert chunk.blake3 == blake3(body[at : at + chunk.size]).hexdigest()
        assert CHUNK_MIN <= chunk.size <= 16 * MIB
        at += chunk.size
    assert at == len(body)
    assert Content.from_json(found.to_json()) == found


def test_where_threads_share_a_place_in_a_file_the_digests_are_the_same(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w"
    path.write_bytes(uniform(50 * MIB))
    found = content.scan(path, pool)

    monkeypatch.delattr(os, "preadv")

    assert content.scan(path, pool) == found
    assert content.matches(path, found, pool)


@pytest.mark.parametrize("make", [uniform, float32, bfloat16])
@pytest.mark.parametrize("shift", [4096, 3 * MIB])
def test_after_an_insertion_the_chunks_are_the_same_again(
    tmp_path: Path, make: Callable[[int], bytes], shift: int, pool: ThreadPoolExecutor
) -> None:
    body = make(100 * MIB)
    (tmp_path / "old").write_bytes(body)
    (tmp_path / "new").write_bytes(body[:5000] + bytes(shift) + body[5000:])

    old, new = (content.scan(tmp_path / name, pool) for name in ("old", "new"))

    known = {chunk.sha256 for chunk in old.chunks}
    fresh = sum(chunk.size for chunk in new.chunks if chunk.sha256 not in known)
    assert fresh < 55 * MIB  # at worst half of it, mostly one chunk


def test_a_sparse_file_of_10_gib_has_few_enough_parts(tmp_path: Path) -> None:
    path = tmp_path / "w"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    parts = stretches(path)
    assert sum(size for _, size in parts) == 10 << 30
    assert len(parts) < 10_000


def test_chunks_of_the_largest_files_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_MAX_PARTS", 11)
    path = tmp_path / "w"
    path.write_bytes(uniform(160 * MIB))
    assert len(stretches(path)) <= 11


def test_data_made_of_markers_takes_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"\xbd\x5a" * (20 * MIB))
    start = time.process_time()
    assert len(stretches(path)) >= 3
    assert time.process_time() - start < 2


def test_small_files_are_one_chunk_and_empty_ones_are_files(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    (tmp_path / "w").write_bytes(b"")
    assert content.scan(tmp_path / "w", pool) == Content(0, hashlib.sha256().hexdigest())


# -------------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "cache" / "digests.sqlite")


@pytest.fixture
def rested(tmp_path: Path) -> Path:
    """A file that last changed long ago. ctime cannot be set, so the tests move the moment of reading instead."""
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    return path


def remember(cache: DigestCache, path: Path, pool: ThreadPoolExecutor, seconds_later: float = 10) -> Content:
    found = content.scan(path, pool)
    cache.put(path, path.stat(), found, time.time() + seconds_later)
    return found


def test_an_unchanged_file_is_not_read_again(cache: DigestCache, rested: Path, pool: ThreadPoolExecutor) -> None:
    remembered = Content(7, "0" * 64)
    cache.put(rested, rested.stat(), remembered, time.time() + 10)
    assert content.scan(rested, pool, cache) == remembered  # what was remembered, not what is in the file


def test_what_was_remembered_before_blake3_was_kept_is_read_again(
    cache: DigestCache, rested: Path, pool: ThreadPoolExecutor
) -> None:
    chunks = (Chunk(0, 4, "0" * 64, "1" * 64), Chunk(4, 3, "0" * 64))
    cache.put(rested, rested.stat(), Content(7, "0" * 64, chunks), time.time() + 10)
    assert cache.get(rested, rested.stat()) is None
    assert content.scan(rested, pool, cache) == Content(7, hashlib.sha256(b"weights").hexdigest())


def test_what_changed_a_moment_ago_is_not_trusted(cache: DigestCache, rested: Path, pool: ThreadPoolExecutor) -> None:
    remember(cache, rested, pool, seconds_later=0)
    assert cache.get(rested, rested.stat()) is None


def test_a_change_that_hides_behind_its_old_size_and_date_is_seen(
    cache: DigestCache, rested: Path, pool: ThreadPoolExecutor
) -> None:
    remember(cache, rested, pool)
    before = rested.stat()
    rested.write_bytes(b"WEIGHTS")
    os.utime(rested, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert content.scan(rested, pool, cache).sha256 == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_another_file_at_the_same_path_is_seen(cache: DigestCache, rested: Path, pool: ThreadPoolExecutor) -> None:
    remember(cache, rested, pool)
    before = rested.stat()
    (rested.parent / "new").write_bytes(b"WEIGHTS")
    os.utime(rested.parent / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (rested.parent / "new").replace(rested)
    assert cache.get(rested, rested.stat()) is None


@pytest.mark.parametrize("body", [b"no database", b"", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_broken_cache_is_as_good_as_none(
    cache: DigestCache, rested: Path, pool: ThreadPoolExecutor, body: bytes
) -> None:
    cache.path.parent.mkdir()
    cache.path.write_bytes(body)
    assert content.scan(rested, pool, cache).sha256 == hashlib.sha256(b"weights").hexdigest()


def test_a_file_that_changes_while_it_is_read_is_refused(
    rested: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = content.hash_stretch

    def hash_while_it_changes(
        file: content.Shared, offset: int, size: int, *kinds: Callable[[], content.Digest]
    ) -> object:
        digests = hashed(file, offset, size, *kinds)
        file.path.write_bytes(b"longer weights")
        return digests

    monkeypatch.setattr(content, "hash_stretch", hash_while_it_changes)
    with pytest.raises(InvalidInput, match="changed while it was read"):
        content.scan(rested, pool)
