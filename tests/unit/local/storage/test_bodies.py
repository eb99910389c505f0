"""Bodies are stretches of files that behave like bytes, and files live exactly as long as somebody needs them."""

from __future__ import annotations

import base64
import hashlib
import io
import resource
import zlib
from pathlib import Path
from typing import Any

import pytest

from windlass.local.storage.bodies import CHECKSUMS, Body, Folder, Refused, receive


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "s3")


def files(folder: Folder) -> list[Path]:
    return [path for path in folder.path.rglob("*") if path.is_file()]


def put(folder: Folder, body: bytes, **headers: str) -> Body:
    environ: dict[str, Any] = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), **headers}
    return receive(environ, folder)[0]


def test_a_body_of_several_files_is_cut_like_bytes(folder: Folder) -> None:
    pieces = [piece for part in (b"abc", b"", b"defg", b"h") for piece in folder.keep(part)]
    body = folder.open(pieces)

    whole = b"abcdefgh"
    assert (len(body), b"".join(body)) == (8, whole)
    for start in range(9):
        for stop in range(start, 9):
            assert b"".join(body[start:stop]) == whole[start:stop]
            assert len(body[start:stop]) == stop - start
    assert b"".join(body[2:7][1:3]) == whole[3:5]


def test_a_file_that_is_read_is_deleted_when_the_reader_is_done(folder: Folder) -> None:
    pieces = folder.keep(b"content")
    body = folder.open(pieces)
    part = body[1:3]

    folder.delete(pieces)

    assert b"".join(part) == b"on"
    body.close()
    assert files(folder) == []


def test_what_is_kept_twice_is_one_file_with_two_lives(folder: Folder) -> None:
    first = folder.keep(b"content")

    second = folder.keep(folder.open(first))

    assert second[0].path.samefile(first[0].path)
    folder.delete(first)
    assert b"".join(folder.open(second)) == b"content"


def test_a_file_of_others_is_copied(folder: Folder, tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(b"weights")

    kept = folder.keep(Body.of(source))
    source.write_bytes(b"changed")

    assert b"".join(folder.open(kept)) == b"weights"


def test_the_sweep_deletes_what_nobody_keeps(folder: Folder) -> None:
    [kept], _ = folder.keep(b"kept"), folder.keep(b"left over")

    folder.sweep({kept.path})

    assert files(folder) == [kept.path]


@pytest.mark.parametrize("size", [0, 1, 300_000, (4 << 20) + 5])
def test_what_is_received_has_its_md5(folder: Folder, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    body = put(folder, content[:size])

    assert body.md5 == hashlib.md5(content[:size]).hexdigest()
    assert b"".join(body) == content[:size]


@pytest.mark.parametrize("md5", [True, False])
@pytest.mark.parametrize("size", [2 << 20, 20 << 20])
def test_a_disk_that_fills_up_leaves_nothing(folder: Folder, size: int, md5: bool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    environ: dict[str, Any] = {"wsgi.input": io.BytesIO(bytes(size)), "CONTENT_LENGTH": str(size)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            receive(environ, folder, md5=md5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert files(folder) == []


@pytest.mark.parametrize("size", [9, (16 << 20) + 5])
def test_without_md5_a_body_has_its_crc_and_announced_digests_are_checked(folder: Folder, size: int) -> None:
    content = b"123456789" * (size // 9 + 1)
    environ: dict[str, Any] = {"wsgi.input": io.BytesIO(content[:size]), "CONTENT_LENGTH": str(size)}

    body, _ = receive(environ, folder, md5=False)

    assert body.md5 is None
    assert body.crc64nvme == folder.open(body.pieces).digest("CRC64NVME")
    wrong = {"HTTP_CONTENT_MD5": base64.b64encode(bytes(16)).decode()}
    with pytest.raises(Refused, match="Content-MD5"):
        receive({**environ, "wsgi.input": io.BytesIO(content[:size]), **wrong}, folder, md5=False)


def test_a_body_that_breaks_off_is_refused_and_leaves_nothing(folder: Folder) -> None:
    with pytest.raises(Refused) as refused:
        put(folder, b"half", CONTENT_LENGTH="8")

    assert refused.value.code == "IncompleteBody"
    assert files(folder) == []


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        (b"4\r\nbody\r\n", "InvalidRequest"),
        (b"8\r\nbody", "IncompleteBody"),
        (b"many\r\nbody\r\n0\r\n\r\n", "InvalidRequest"),
        (b"2\r\nbody\r\n0\r\n\r\n", "InvalidRequest"),
        (b"3\r\nbod\r\n0\r\n\r\n", "IncompleteBody"),
    ],
)
def test_chunks_that_are_wrong_are_refused(folder: Folder, encoded: bytes, code: str) -> None:
    streaming = {
        "HTTP_X_AMZ_CONTENT_SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "HTTP_X_AMZ_DECODED_CONTENT_LENGTH": "4",
    }
    with pytest.raises(Refused) as refused:
        put(folder, encoded, **streaming)

    assert refused.value.code == code
    assert files(folder) == []


def test_more_than_s3_takes_is_refused_before_it_is_read(folder: Folder) -> None:
    with pytest.raises(Refused, match="exceeds the maximum"):
        put(folder, b"", CONTENT_LENGTH=str((5 << 30) + 1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Of the text "123456789": the check values of the CRC catalogue.
        ("CRC32", "cbf43926"),
        ("CRC32C", "e3069283"),
        ("CRC64NVME", "ae8b14860a799888"),
        ("SHA1", hashlib.sha1(b"123456789").hexdigest()),
        ("SHA256", hashlib.sha256(b"123456789").hexdigest()),
    ],
)
def test_checksums_are_those_of_their_standards(folder: Folder, name: str, expected: str) -> None:
    assert folder.open(folder.keep(b"123456789")).digest(name).hex() == expected
    made = CHECKSUMS[name]()
    for byte in b"123456789":
        made.update(bytes([byte]))
    assert made.digest().hex() == expected
    assert base64.b64encode(zlib.crc32(b"123456789").to_bytes(4, "big")) == b"y/Q5Jg=="
