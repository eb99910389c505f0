"""``windlass.json``: what is written is what the schema says, and what is read is checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass import artifact
from windlass.artifact import Content, Manifest, Signature, Tensor
from windlass.errors import CorruptArtifact, InvalidInput

FULL = Manifest(
    files={
        "w.safetensors": Content(
            3, "a" * 64, (artifact.Chunk(0, 2, "b" * 64, "e" * 64), artifact.Chunk(2, 1, "c" * 64, "f" * 64))
        ),
        "☃/ü.py": Content(0, "d" * 64),
    },
    signature=Signature(
        (Tensor("x", "uint8", ("batch", 8)),), (Tensor("y", "int64", ()),), ("text/csv",), ("text/csv",), {"x": [1]}
    ),
    framework={"torch": "2.13.0"},
    requirements=("numpy==2.4.6",),
    source={"run": "arn"},
    evaluation={"accuracy": 0.9},
    optimization=({"step": "int8"},),
    license="Apache-2.0",
    model_card="README.md",
    loader="onnx",
    pickles=("a.pkl",),
)


def test_it_round_trips_and_is_what_the_schema_says() -> None:
    assert Manifest.from_json(FULL.to_json()) == FULL
    jsonschema.Draft202012Validator.check_schema(artifact.schema())
    jsonschema.validate(json.loads(FULL.to_json()), artifact.schema(), jsonschema.Draft202012Validator)


@given(at=st.integers(0, len(FULL.to_json()) - 1), bit=st.integers(0, 7))
@settings(max_examples=400)
def test_one_flipped_bit_of_it_is_found(at: int, bit: int) -> None:
    body = bytearray(FULL.to_json())
    assert Manifest.intact(bytes(body)) == FULL
    body[at] ^= 1 << bit
    with pytest.raises(CorruptArtifact):
        Manifest.intact(bytes(body))


def test_the_schema_knows_every_field() -> None:
    assert set(artifact.schema()["properties"]) == set(json.loads(FULL.to_json()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(sorted(json.loads(FULL.to_json()))), value=JSON)
@settings(max_examples=400)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: object) -> None:
    body = json.dumps({**json.loads(FULL.to_json()), field: value}).encode()
    try:
        read = Manifest.from_json(body)
    except CorruptArtifact:
        return
    assert Manifest.from_json(read.to_json()) == read
    jsonschema.validate(json.loads(read.to_json()), artifact.schema(), jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"sha256": "A" * 64, "size": 1}, "expected sha256"),
        ({"sha256": "a" * 64, "size": -1}, "expected sha256"),
        ({"sha256": "a" * 64, "size": True}, "expected sha256"),
        ({"sha256": "a" * 64, "size": 3, "chunks": [[1, "a" * 64]]}, "its chunks hold 1 bytes, the file 3"),
        ({"sha256": "a" * 64, "size": 3, "chunks": [[3, "a"]]}, "expected a chunk"),
        ({"sha256": "a" * 64, "size": 3, "chunks": [[3, "a" * 64, "b"]]}, "expected a chunk"),
        ({"sha256": "a" * 64, "size": 3, "chunks": [[3, "a" * 64, ""]]}, "expected a chunk"),
        ({"sha256": "a" * 64, "size": 3, "chunks": [[3, "a" * 64, "b" * 64, "c" * 64]]}, "expected a chunk"),
        ({"sha256": "a" * 64, "size": 3, "chunks": [[3]]}, "expected a chunk"),
        ({"sha256": "a" * 64, "size": 3, "chunks": [{"size": 3}]}, "expected a chunk"),
        ({"sha256": "a" * 64, "size": 3, "chunks": 7}, "expected"),
    ],
)
def test_a_file_s_entry_is_checked(content: object, says: str) -> None:
    with pytest.raises(CorruptArtifact, match=says):
        Manifest.from_json(json.dumps({"format": 1, "files": {"w": content}}).encode())


def test_a_manifest_of_before_blake3_was_kept_keeps_its_digest() -> None:
    chunks = [[2, "b" * 64], [1, "c" * 64]]
    earlier = json.loads(FULL.to_json())
    earlier["files"]["w.safetensors"]["chunks"] = chunks
    read = Manifest.from_json(json.dumps(earlier).encode())
    assert json.loads(read.to_json())["files"] == earlier["files"]
    jsonschema.validate(json.loads(read.to_json()), artifact.schema(), jsonschema.Draft202012Validator)


def test_reading_a_manifest_needs_no_package() -> None:
    code = (
        "import sys; sys.modules |= {'blake3': None, 'zlib_ng': None}; from windlass.artifact import Manifest; "
        "print(Manifest.intact(sys.stdin.buffer.read()).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=FULL.to_json(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == FULL.digest


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b'{"format": 1}', b"[" * 100_000, b'{"files": {}}'])
def test_what_is_no_manifest_is_said(body: bytes) -> None:
    with pytest.raises(CorruptArtifact):
        Manifest.from_json(body)


def test_a_field_of_a_later_minor_version_is_ignored() -> None:
    body = json.dumps({**json.loads(FULL.to_json()), "colour": "blue"}).encode()
    assert Manifest.from_json(body) == FULL


@pytest.mark.parametrize("types", [[], "text/csv", ["csv"], [1]])
def test_content_types_are_checked(types: object) -> None:
    tensor = {"name": "x", "dtype": "uint8", "shape": []}
    with pytest.raises(InvalidInput, match="content_types"):
        Signature.parse({"inputs": [tensor], "outputs": [tensor], "content_types": types})


def test_licence_and_card_are_read_from_the_model_card(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("weights")
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Model\nlicense: none\n")
    manifest = artifact.build(tmp_path).manifest
    assert (manifest.license, manifest.model_card) == ("mit", "README.md")
    assert artifact.build(tmp_path, license="Apache-2.0").manifest.license == "Apache-2.0"


def test_a_lock_is_preferred_to_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "requirements.txt").write_text("numpy\n")
    (tmp_path / "code" / "requirements.lock").write_text("numpy==2.4.6\n")
    assert artifact.build(tmp_path).manifest.requirements == ("numpy==2.4.6",)


def test_a_difference_is_listed_and_equality_is_none(tmp_path: Path) -> None:
    for name, files in {"a": {"x": "1", "y": "1"}, "b": {"x": "2", "z": "1"}}.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    before, after = (artifact.build(tmp_path / name).manifest for name in "ab")

    found = artifact.diff(before, after)

    assert (found.added, found.removed, found.changed) == (("z",), ("y",), ("x",))
    assert found.new_bytes == 1  # z holds what y held
    assert str(found) == "+ z\n- y\n~ x\n1 new bytes"
    assert not artifact.diff(before, before)
