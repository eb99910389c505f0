from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass import artifact
from windlass.artifact import Chunk, Content, Manifest
from windlass.errors import CorruptArtifact, InvalidInput

SIGNATURE = {
    "inputs": [{"name": "image", "dtype": "uint8", "shape": ["batch", 8, 8]}],
    "outputs": [{"name": "label", "dtype": "int64", "shape": ["batch"]}],
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return folder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "x.pyc").write_bytes(b"cache")
    (folder / "inference.py").write_text("def model_fn(folder): ...\n")
    (folder / "requirements.txt").write_text("torch  # any\n\n# nothing\nnumpy\n")
    (folder / "signature.json").write_text(json.dumps(SIGNATURE))
    return folder


def tar(path: Path, *members: tarfile.TarInfo, body: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as out:
        for member in members:
            member.size = len(body) if member.isreg() else 0
            out.addfile(member, io.BytesIO(body) if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_bundle_round_trips_and_verifies(model: Path, code: Path, tmp_path: Path) -> None:
    bundle = artifact.build(
        model, tmp_path / "b.tar.gz", code=code, source={"run": "arn"}, evaluation={"accuracy": 0.9}
    )

    artifact.extract(bundle.path, tmp_path / "out")

    manifest = artifact.verify(tmp_path / "out")
    assert manifest == bundle.manifest
    assert manifest.digest == bundle.digest
    assert set(manifest.files) == {
        "model.safetensors",
        "code/inference.py",
        "code/requirements.txt",
        "code/signature.json",
    }
    assert manifest.requirements == ("torch", "numpy")
    assert manifest.signature is not None
    assert manifest.signature.inputs == (artifact.Tensor("image", "uint8", ("batch", 8, 8)),)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_the_same_files_give_the_same_bytes_whatever_their_dates(model: Path, code: Path, tmp_path: Path) -> None:
    import os

    first = artifact.build(model, tmp_path / "1.tar.gz", code=code)
    os.utime(model / "model.safetensors", (1, 1))
    second = artifact.build(model, tmp_path / "2.tar.gz", code=code)

    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.digest == second.digest


def test_changed_code_changes_the_digest_but_not_the_bytes_of_the_weights(
    model: Path, code: Path, tmp_path: Path
) -> None:
    first = artifact.build(model, tmp_path / "1.tar.gz", code=code)
    (code / "inference.py").write_text("def model_fn(folder): return 1\n")
    second = artifact.build(model, tmp_path / "2.tar.gz", code=code)

    assert first.digest != second.digest
    assert first.manifest.files["model.safetensors"] == second.manifest.files["model.safetensors"]


def test_plain_tar_opens_a_bundle(model: Path, tmp_path: Path) -> None:
    bundle = artifact.build(model, tmp_path / "b.tar.gz")
    with tarfile.open(bundle.path, "r:gz") as opened:
        assert opened.getnames() == ["model.safetensors", "windlass.json"]


def test_pickles_are_flagged(model: Path, tmp_path: Path) -> None:
    (model / "model.pt").write_bytes(b"x")
    assert artifact.build(model, tmp_path / "b.tar.gz").manifest.pickles == ("model.pt",)


def test_code_given_by_name_replaces_what_training_left(model: Path, code: Path, tmp_path: Path) -> None:
    (model / "code").mkdir()
    (model / "code" / "stale.py").write_text("old")
    files = artifact.build(model, tmp_path / "b.tar.gz", code=code).manifest.files
    assert "code/stale.py" not in files
    assert "code/inference.py" in files


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda f: None, "no model files"),
        (lambda f: (f / "a").symlink_to(f / "nowhere"), "broken link"),
        (lambda f: [(f / "A").write_text(""), (f / "a").write_text("")], "one file on some disks"),
        (lambda f: (f / "w.safetensors").write_bytes(b""), "w.safetensors: weights of 0 bytes"),
        (lambda f: (f / "signature.json").write_text("{"), "not JSON"),
        (lambda f: (f / "signature.json").write_text('{"inputs": []}'), "list of tensors"),
    ],
)
def test_what_cannot_be_bundled_is_named_and_nothing_is_left(tmp_path: Path, prepare, says: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    prepare(folder)

    with pytest.raises(InvalidInput, match=says):
        artifact.build(folder, tmp_path / "out" / "b.tar.gz")

    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (member("../evil"), "outside"),
        (member("/etc/evil"), "outside"),
        (member("a/../../evil"), "outside"),
        (member("a\\..\\evil"), "outside"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (member("hard", tarfile.LNKTYPE, "good"), "link"),
        (member("null", tarfile.CHRTYPE), "device"),
        (member("pipe", tarfile.FIFOTYPE), "device"),
        (member("GOOD"), "twice"),
        (member("good"), "twice"),
    ],
)
def test_hostile_archives_are_refused_whole(tmp_path: Path, bad: tarfile.TarInfo, says: str) -> None:
    archive = tar(tmp_path / "a.tar.gz", member("good"), bad, body=b"x")

    with pytest.raises(CorruptArtifact, match=says):
        artifact.extract(archive, tmp_path / "out")

    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact.archive, "_RATIO_FREE", 1 << 20)
    monkeypatch.setattr(artifact.archive, "MAX_RATIO", 100)
    archive = tar(tmp_path / "a.tar.gz", member("zeros"), body=b"\0" * (4 << 20))
    with pytest.raises(CorruptArtifact, match="unpack to more"):
        artifact.extract(archive, tmp_path / "out")


@given(cut=st.floats(0, 0.999))
@settings(max_examples=40, deadline=None)
def test_a_truncated_bundle_is_never_half_unpacked(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (folder / "model").mkdir()
    (folder / "model" / "w.safetensors").write_bytes(bytes(range(256)) * 40)
    body = artifact.build(folder / "model", folder / "b.tar.gz").path.read_bytes()
    (folder / "cut.tar.gz").write_bytes(body[: int(len(body) * cut)])

    try:
        artifact.extract(folder / "cut.tar.gz", folder / "out")
        artifact.verify(folder / "out")
    except CorruptArtifact:
        return
    # What opens although it is shorter lacked nothing but the end-of-archive padding.
    assert (folder / "out" / "w.safetensors").read_bytes() == bytes(range(256)) * 40


@given(where=st.floats(0, 0.999), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_one_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, where: float, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    (folder / "model").mkdir()
    (folder / "model" / "w.safetensors").write_bytes(bytes(range(256)) * 40)
    bundle = artifact.build(folder / "model", folder / "b.tar.gz")
    body = bytearray(bundle.path.read_bytes())
    body[int(len(body) * where)] ^= 1 << bit
    (folder / "flip.tar.gz").write_bytes(body)

    try:
        artifact.extract(folder / "flip.tar.gz", folder / "out")
        manifest = artifact.verify(folder / "out")
    except CorruptArtifact:
        return
    assert manifest.digest == bundle.digest  # the bit was in a gzip header or padding: nothing that matters changed


@given(
    names=st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_characters="/\\\0", exclude_categories=("Cs", "Cc")),
            min_size=1,
            max_size=40,
        ),
        min_size=1,
        max_size=5,
        unique_by=artifact.archive.folded,
    )
)
@settings(max_examples=40, deadline=None)
def test_names_in_any_script_round_trip(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("names")
    (folder / "model").mkdir()
    kept = [
        n for n in names if n not in (".", "..", "windlass.json", *artifact.archive.LEFT_OUT) and not n.endswith(".pyc")
    ]
    kept = [n for n in kept if len(n.encode()) < 200]
    for name in kept:
        (folder / "model" / name).write_text(name)
    if not kept:
        return
    artifact.extract(artifact.build(folder / "model", folder / "b.tar.gz").path, folder / "out")
    assert {n: (folder / "out" / n).read_text() for n in kept} == {n: n for n in kept}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "w.safetensors").write_bytes(b"other"), "w.safetensors has changed"),
        (lambda f: (f / "w.safetensors").unlink(), "w.safetensors is missing"),
        (lambda f: (f / "extra.py").write_text(""), "extra.py is not in the manifest"),
        (lambda f: (f / "windlass.json").unlink(), "no windlass.json"),
        (lambda f: (f / "windlass.json").write_text("{"), "not JSON"),
        (lambda f: (f / "windlass.json").write_text('{"files": {}, "format": 99}'), "format 99"),
    ],
)
def test_verify_names_what_is_wrong(tmp_path: Path, spoil, says: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.safetensors").write_bytes(b"weights")
    artifact.extract(artifact.build(tmp_path / "model", tmp_path / "b.tar.gz").path, tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(CorruptArtifact, match=says):
        artifact.verify(tmp_path / "out")


# ------------------------------------------------------------------------------------------------------- large files

WEIGHTS = 26 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An opened bundle of weights of several chunks. Who changes it puts it back."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "model").mkdir()
    (folder / "model" / "w.safetensors").write_bytes(random.Random(0).randbytes(WEIGHTS))
    built = artifact.build(folder / "model", folder / "b.tar.gz")
    assert built.manifest == artifact.build(folder / "model").manifest
    return artifact.open(built.path, folder / "opened").path


@pytest.fixture
def rewritten(large: Path) -> Iterator[Callable[[Callable[[Chunk], Chunk]], Manifest]]:
    """Writes a manifest with other chunks, its checksum right."""
    path = large / "windlass.json"
    before = path.read_bytes()

    def rewrite(change: Callable[[Chunk], Chunk]) -> Manifest:
        manifest = Manifest.from_json(before)
        content = manifest.files["w.safetensors"]
        changed = replace(content, chunks=tuple(change(chunk) for chunk in content.chunks))
        manifest = replace(manifest, files={"w.safetensors": changed})
        path.write_bytes(manifest.to_json())
        return manifest

    yield rewrite
    path.write_bytes(before)


@contextlib.contextmanager
def flipped(path: Path, at: int, bit: int) -> Iterator[None]:
    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()


@given(at=st.integers(0, WEIGHTS - 1), bit=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_one_flipped_bit_of_large_weights_is_found(large: Path, at: int, bit: int) -> None:
    with (
        flipped(large / "w.safetensors", at, bit),
        pytest.raises(CorruptArtifact, match=r"w\.safetensors has changed"),
    ):
        artifact.verify(large)
    artifact.verify(large)


@pytest.mark.parametrize("number", [0, -1])
def test_large_weights_are_verified_by_blake3(
    large: Path, rewritten: Callable[[Callable[[Chunk], Chunk]], Manifest], number: int
) -> None:
    wrong = artifact.verify(large).files["w.safetensors"].chunks[number]

    rewritten(lambda chunk: replace(chunk, blake3="0" * 64) if chunk == wrong else chunk)

    with pytest.raises(CorruptArtifact, match=r"w\.safetensors has changed"):
        artifact.open(large)


def test_a_bundle_of_before_blake3_was_kept_is_verified_by_sha256(
    large: Path, rewritten: Callable[[Callable[[Chunk], Chunk]], Manifest]
) -> None:
    earlier = rewritten(lambda chunk: replace(chunk, blake3=""))
    assert artifact.verify(large) == earlier

    with (
        flipped(large / "w.safetensors", WEIGHTS // 2, 0),
        pytest.raises(CorruptArtifact, match=r"w\.safetensors has changed"),
    ):
        artifact.verify(large)

    rewritten(lambda chunk: replace(chunk, blake3="", sha256="0" * 64))
    with pytest.raises(CorruptArtifact, match=r"w\.safetensors has changed"):
        artifact.verify(large)


def test_a_bundle_from_before_blake3_was_kept_holds_the_same_chunks(large: Path) -> None:
    now = artifact.verify(large)
    content = now.files["w.safetensors"]
    chunks = tuple(replace(chunk, blake3="") for chunk in content.chunks)
    earlier = replace(now, files={"w.safetensors": Content(content.size, content.sha256, chunks)})

    found = artifact.diff(earlier, now)

    assert (found.changed, found.new_bytes) == ((), 0)


def test_extract_leaves_a_folder_in_use_alone(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", member("x"), body=b"x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(InvalidInput, match="not empty"):
        artifact.extract(archive, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_what_is_no_archive_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"hello"))
    with pytest.raises(CorruptArtifact, match=r"not a tar\.gz"):
        artifact.extract(tmp_path / "a.tar.gz", tmp_path / "out")


def test_data_digest_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.npy").write_bytes(b"1")
    same = artifact.digest_folder(tmp_path / "a"), artifact.digest_folder(tmp_path / "b")
    assert same[0] == same[1]
    (tmp_path / "b" / "x.npy").write_bytes(b"2")
    assert artifact.digest_folder(tmp_path / "b") != same[0]
