"""The archive: any tar opens it, one flipped bit is found, a full disk leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass import artifact
from windlass.artifact import archive
from windlass.errors import CorruptArtifact, DiskFull, InvalidInput

MIB = 1 << 20
EDGES = [0, 1, 511, 512, 513, 65535, 65536, MIB - 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Every way in which a member is written: stored and compressed, small and large, empty, executable, in folders."""
    folder = tmp_path / "model"
    (folder / "code" / "deep").mkdir(parents=True)
    (folder / "w.safetensors").write_bytes(noise(9 * MIB + 17))
    (folder / "small.safetensors").write_bytes(noise(100))
    (folder / "vocabulary.txt").write_bytes(b"many words\n" * 500_000)
    (folder / "noise.data").write_bytes(noise(3 * MIB))
    (folder / "empty.png").write_bytes(b"")
    (folder / "code" / "deep" / "inference.py").write_text("print('hello')\n")
    (folder / "code" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "code" / "run.sh").chmod(0o755)
    (folder / ("long" * 50 + ".txt")).write_text("a name that needs a PAX header: ☃")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.skipif(shutil.which("tar") is None or shutil.which("gzip") is None, reason="no tar on this machine")
def test_plain_tar_and_gzip_open_it(model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model, tmp_path / "b.tar.gz")
    (tmp_path / "out").mkdir()

    subprocess.run(["gzip", "-t", bundle.path], check=True)
    listed = subprocess.run(["tar", "-tzf", bundle.path], check=True, capture_output=True, text=True)
    subprocess.run(["tar", "-xzf", bundle.path, "-C", tmp_path / "out"], check=True)

    assert listed.stderr == ""
    assert artifact.verify(tmp_path / "out") == bundle.manifest
    assert os.access(tmp_path / "out" / "code" / "run.sh", os.X_OK)


def test_python_s_tarfile_opens_it_as_a_stream_and_by_name(model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model, tmp_path / "b.tar.gz")
    for mode in ("r:gz", "r|gz"):
        with tarfile.open(bundle.path, mode) as tar:  # type: ignore[call-overload]
            found = {m.name: tar.extractfile(m).read() for m in tar}
        assert {name: body for name, body in found.items() if name != "windlass.json"} == files(model)


def test_it_is_opened_in_one_pass_and_is_the_same(model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model, tmp_path / "b.tar.gz")
    opened = artifact.open(bundle.path, tmp_path / "out")
    assert opened.manifest == bundle.manifest == artifact.build(model).manifest
    assert files(model) == {n: b for n, b in files(tmp_path / "out").items() if n != "windlass.json"}
    assert artifact.repack(opened, tmp_path / "again.tar.gz").path.read_bytes() == bundle.path.read_bytes()


def test_weights_are_stored_and_text_is_compressed(model: Path, tmp_path: Path) -> None:
    size = artifact.build(model, tmp_path / "b.tar.gz").path.stat().st_size
    incompressible = 9 * MIB + 17 + 3 * MIB
    assert incompressible < size < incompressible * 1.01


def test_threads_change_no_byte(model: Path, tmp_path: Path) -> None:
    bodies = {artifact.build(model, tmp_path / f"{n}.tar.gz").path.read_bytes() for n in range(5)}
    assert len(bodies) == 1


BUILD = """
import os, sys, time
from pathlib import Path
from windlass import artifact
from windlass.artifact import archive
folder, dest, umask, workers, uid, *names = sys.argv[1:]
os.umask(int(umask, 8))
archive.WORKERS = artifact.bundle.WORKERS = int(workers)
folder = Path(folder)
for name in names:  # in the order given: a file system lists them as it likes
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((name.encode() + bytes(range(256))) * (9000 if name.endswith(".safetensors") else 3))
    os.utime(path, (int(workers), int(workers)))
if int(uid):
    for path in (folder, *folder.rglob("*")):
        os.chown(path, int(uid), int(uid))
print(artifact.build(folder, dest).digest)
"""
NAMES = ["w.safetensors", "a.safetensors", "b.txt", "B2.txt", "ß.txt", "İ.txt", "code/inference.py", "code/z/ü.py", "é"]


def test_neither_machine_nor_user_changes_a_byte(tmp_path: Path) -> None:
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    settings = [
        ("022", "1", {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1"}, NAMES, 0),
        ("000", "2", {"LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "2"}, NAMES[::-1], 0),
        ("077", "7", {"LC_ALL": "POSIX", "TZ": "America/Lima", "USER": "someone"}, sorted(NAMES, key=len), 1234 * root),
        ("027", "3", {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "NZ"}, NAMES[3:] + NAMES[:3], 4321 * root),
    ]
    said = []
    for number, (umask, workers, environment, names, uid) in enumerate(settings):
        folder, dest = tmp_path / f"model {number}", tmp_path / f"{number}.tar.gz"
        folder.mkdir()
        command = [sys.executable, "-c", BUILD, str(folder), str(dest), umask, workers, str(uid), *names]
        run = subprocess.run(
            command, env={**os.environ, **environment}, check=True, capture_output=True, text=True, encoding="utf-8"
        )
        said.append((run.stdout, hashlib.sha256(dest.read_bytes()).hexdigest()))
    assert len(set(said)) == 1


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("name", ["w.png", "w.txt"])
def test_sizes_around_every_border(tmp_path: Path, size: int, name: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_bytes(b"ab" * (size // 2) + b"c" * (size % 2))
    bundle = artifact.build(tmp_path / "model", tmp_path / "b.tar.gz")
    with gzip.open(bundle.path) as stream, tarfile.open(fileobj=stream) as tar:
        assert next(member.size for member in tar) == size
    artifact.open(bundle.path, tmp_path / "out")


def test_10_gib_in_one_file(tmp_path: Path) -> None:
    """Sparse, and into a sink that keeps the head alone: the size has to survive tar's eleven octal digits."""

    class Sink(io.RawIOBase):
        head, count = b"", 0

        def write(self, body: bytes) -> int:  # type: ignore[override]
            self.head += body[: max(0, 4096 - len(self.head))]
            self.count += len(body)
            return len(body)

    path, size, sink = tmp_path / "w.safetensors", 10 << 30, Sink()
    with path.open("wb") as file:
        file.truncate(size)

    with archive.Writer(sink, with_chunks=False) as writer:
        writer.add("w.safetensors", path)
        found = writer.flush()["w.safetensors"]

    assert found.size == size
    assert size < sink.count < size * 1.001
    inflated = archive._Inflated(io.BytesIO(sink.head))
    with tarfile.open(fileobj=io.BytesIO(inflated.read(1536))) as tar:
        member = tar.next()
    assert member is not None
    assert member.size == size


# ---------------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> artifact.Bundle:
    folder = tmp_path_factory.mktemp("packed")
    (folder / "model" / "code").mkdir(parents=True)
    (folder / "model" / "w.safetensors").write_bytes(noise(1100 * 1024))
    (folder / "model" / "code" / "inference.py").write_text("print('hello')\n" * 50)
    return artifact.build(folder / "model", folder / "b.tar.gz")


@given(where=st.floats(0, 0.999999), near_end=st.booleans(), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_one_flipped_bit_is_found_or_changes_nothing(
    packed: artifact.Bundle, tmp_path_factory: pytest.TempPathFactory, where: float, near_end: bool, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    body = bytearray(packed.path.read_bytes())
    at = len(body) - 1 - int(where * 2000) if near_end else int(where * len(body))
    body[at] ^= 1 << bit
    (folder / "flip.tar.gz").write_bytes(body)
    try:
        manifest = artifact.open(folder / "flip.tar.gz", folder / "out").manifest
    except CorruptArtifact:
        assert sorted(p.name for p in folder.iterdir()) == ["flip.tar.gz"]
    else:
        assert manifest == packed.manifest  # a bit of a gzip header that means nothing
    finally:
        shutil.rmtree(folder)


def test_no_bit_of_a_small_archive_flips_unseen_but_those_that_say_nothing(tmp_path: Path) -> None:
    """Every bit of the header and the trailer, and one bit of each byte between them."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.safetensors").write_bytes(noise(40))
    whole = artifact.build(tmp_path / "model", tmp_path / "b.tar.gz")
    body = whole.path.read_bytes()
    edges = [*range(12), *range(len(body) - 13, len(body))]
    unseen = set()
    for at, bit in [(at, bit) for at in edges for bit in range(8)] + [(at, at % 8) for at in range(12, len(body) - 13)]:
        flipped = bytearray(body)
        flipped[at] ^= 1 << bit
        (tmp_path / "flip.tar.gz").write_bytes(flipped)
        try:
            opened = artifact.open(tmp_path / "flip.tar.gz", tmp_path / "out")
        except CorruptArtifact:
            assert not (tmp_path / "out").exists()
            continue
        unseen.add((at, bit))
        assert opened.manifest == whole.manifest
        assert (tmp_path / "out" / "w.safetensors").read_bytes() == noise(40)
        shutil.rmtree(tmp_path / "out")
    # gzip's text flag, date, compression level and system (RFC 1952, 2.3.1). Later ones are what pads a stored block to a byte.
    meaningless = {(3, 0), *((at, bit) for at in (4, 5, 6, 7, 8, 9) for bit in range(8))}
    assert {(at, bit) for at, bit in unseen if at < 10} == meaningless


@given(
    where=st.floats(0, 0.999999),
    bit=st.integers(0, 7),
    name=st.sampled_from(["w.safetensors", "windlass.json", "code/inference.py"]),
)
@settings(max_examples=80, deadline=None)
def test_one_flipped_bit_of_an_unpacked_bundle_is_found(
    packed: artifact.Bundle, tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, name: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        artifact.open(packed.path, folder)
    body = (folder / name).read_bytes()
    flipped = bytearray(body)
    flipped[int(where * len(body))] ^= 1 << bit
    (folder / name).write_bytes(flipped)
    try:
        with pytest.raises(CorruptArtifact):
            artifact.open(folder)
    finally:
        (folder / name).write_bytes(body)


@given(cut=st.integers(1, 1_100_000))
@settings(max_examples=60, deadline=None)
def test_a_truncated_bundle_is_never_opened(
    packed: artifact.Bundle, tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    body = packed.path.read_bytes()
    (folder / "cut.tar.gz").write_bytes(body[:-cut])
    try:
        manifest = artifact.open(folder / "cut.tar.gz", folder / "out").manifest
    except CorruptArtifact:
        assert sorted(p.name for p in folder.iterdir()) == ["cut.tar.gz"]
    else:
        assert manifest == packed.manifest  # only tar's two empty blocks were missing
        assert cut < 100
    finally:
        shutil.rmtree(folder)


@given(body=st.binary(max_size=2000))
@settings(max_examples=100, deadline=None)
def test_bytes_from_anywhere_are_no_archive(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for prefix in (b"", b"\x1f\x8b\x08\0\0\0\0\0\0\xff"):
        (folder / "a.tar.gz").write_bytes(prefix + body)
        with pytest.raises(CorruptArtifact):
            artifact.open(folder / "a.tar.gz", folder / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["a.tar.gz"]


def tar(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for name, kind, body in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(body)
            out.addfile(info, io.BytesIO(body))
    return path


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("a", tarfile.REGTYPE, b""), ("a/b", tarfile.REGTYPE, b"")], "twice"),
        ([("a/b", tarfile.REGTYPE, b""), ("a", tarfile.REGTYPE, b"")], "twice"),
        ([("a", tarfile.DIRTYPE, b""), ("A/b", tarfile.REGTYPE, b"")], "twice"),
        ([("é", tarfile.REGTYPE, b""), (unicodedata.normalize("NFD", "é"), tarfile.REGTYPE, b"")], "twice"),
        ([("a", tarfile.GNUTYPE_SPARSE, b"")], "sparse|damaged"),
    ],
)
def test_members_that_are_one_on_some_disk(tmp_path: Path, members: list[tuple[str, bytes, bytes]], says: str) -> None:
    with pytest.raises(CorruptArtifact, match=says):
        artifact.extract(tar(tmp_path / "a.tar.gz", *members), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bomb_behind_the_end_of_the_archive_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_RATIO_FREE", MIB)
    monkeypatch.setattr(archive, "MAX_RATIO", 100)
    path = tar(tmp_path / "a.tar.gz", ("a", tarfile.REGTYPE, b"x"))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(8 * MIB)))
    with pytest.raises(CorruptArtifact, match="unpack to more"):
        artifact.extract(path, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "‮gpj.exe",
        "עברית.txt",
        "a\nb.txt",
        "tab\there",
        "\x7f",
        "bell\x07",
        "e\u0301",
        "é",
        "𝔘𝔫𝔦",
        "👩‍👩‍👧",
        " lead",
        "trail ",
        "-rf",
        "CON",
    ],
)
def test_an_odd_name_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / name).write_text("x")
    (tmp_path / "model" / "code" / name).write_text("y")
    bundle = artifact.build(tmp_path / "model", tmp_path / "b.tar.gz")
    opened = artifact.open(bundle.path, tmp_path / "out")
    assert sorted(opened.parts) == sorted([name, f"code/{name}"])
    assert (tmp_path / "out" / name).read_text() == "x"


@pytest.mark.parametrize("pair", [("A.txt", "a.txt"), ("ß", "SS"), ("é", "e\u0301"), ("K", "\u212a")])
def test_names_that_collide_on_some_disk_are_not_built(tmp_path: Path, pair: tuple[str, str]) -> None:
    (tmp_path / "model").mkdir()
    for name in pair:
        (tmp_path / "model" / name).write_text(name)
    with pytest.raises(InvalidInput, match="are one file on some disks"):
        artifact.build(tmp_path / "model", tmp_path / "b.tar.gz")
    assert not (tmp_path / "b.tar.gz").exists()


def test_a_limit_on_the_size_of_files_is_a_full_disk(model: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE, as batch systems set it: 4 MiB into an archive of 12."""
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
from windlass import artifact, errors
try:
    artifact.build(sys.argv[1], sys.argv[2])
except errors.DiskFull as error:
    print(error)
"""
    (tmp_path / "to").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", code, str(model), str(tmp_path / "to" / "b.tar.gz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no room" in run.stdout
    assert list((tmp_path / "to").iterdir()) == []


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9")).write_text("latin-1")
    with pytest.raises(InvalidInput, match="is not Unicode"):
        artifact.build(folder, tmp_path / "b.tar.gz")


def test_what_python_left_in_an_opened_bundle_is_found(packed: artifact.Bundle, tmp_path: Path) -> None:
    artifact.open(packed.path, tmp_path / "out")
    (tmp_path / "out" / "code" / "__pycache__").mkdir()
    (tmp_path / "out" / "code" / "__pycache__" / "inference.pyc").write_bytes(b"other code")
    with pytest.raises(CorruptArtifact, match=r"inference\.pyc is not in the manifest"):
        artifact.verify(tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_leaves_nothing_half_written(small_disk: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="no room"):
        artifact.build(model, small_disk / "b.tar.gz")
    assert list(small_disk.iterdir()) == []

    whole = artifact.build(model, tmp_path / "b.tar.gz")
    for unpack in (artifact.extract, artifact.open):
        with pytest.raises(DiskFull, match="no room"):
            unpack(whole.path, small_disk / "out")  # type: ignore[operator]
        assert list(small_disk.iterdir()) == []
