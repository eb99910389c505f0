"""Weights in shards, merged, lazily read and converted; what transformers writes and reads is laid out alike."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from windlass import artifact
from windlass.errors import CorruptArtifact, DiskFull, InvalidInput
from windlass.optimize import weights as w
from windlass.optimize.weights import Check, Weights


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "encoder.weight": torch.randn(64, 32),
        "encoder.bias": torch.randn(64).to(torch.bfloat16),
        "head.weight": torch.randn(10, 64, dtype=torch.float64),
        "head.steps": torch.arange(7),
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(3.0),
    }


@pytest.fixture
def model(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return folder


def same(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    with Weights(path) as found:
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("max_size", [1, 3000, 9000, 1 << 30])
def test_shards_hold_the_same_and_merge_back(
    model: Path, state: dict[str, torch.Tensor], tmp_path: Path, max_size: int
) -> None:
    shards = w.shard(model, tmp_path / "sharded", max_size=max_size)

    same(tmp_path / "sharded", state)
    for path in shards:
        with safe_open(path, framework="pt") as one:
            assert sum(one.get_tensor(n).nbytes for n in one.keys()) <= max_size or len(one.keys()) <= 3  # noqa: SIM118
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    merged = load_file(w.merge(tmp_path / "sharded", tmp_path / "one.safetensors"))
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in state.items())


def test_a_tensor_comes_in_the_dtype_asked_for(model: Path, state: dict[str, torch.Tensor]) -> None:
    with Weights(model) as found:
        tensor = found.tensor("encoder.weight", dtype=torch.bfloat16)
        assert torch.equal(tensor, state["encoder.weight"].to(torch.bfloat16))
        assert found.size == sum(tensor.nbytes for tensor in state.values())
        with pytest.raises(KeyError):
            found["absent"]


def run(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    x = torch.linspace(-1, 1, 32)
    return weights["bert.weight"].float() @ x + weights["bert.bias"].float()


def test_a_conversion_casts_renames_and_checks(model: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    worst = w.convert(
        model, tmp_path / "bf16", dtype="bfloat16", rename={"encoder.": "bert."}, check=Check(run, tolerance=0.02)
    )

    assert worst is not None
    assert 0 < worst < 0.02
    found = load_file(tmp_path / "bf16" / "model.safetensors")
    assert torch.equal(found["bert.weight"], state["encoder.weight"].bfloat16())
    assert torch.equal(found["head.steps"], state["head.steps"])
    assert found["scalar"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"dtype": "bfloat16", "rename": {"encoder.": "bert."}, "check": Check(run, tolerance=1e-6)},
            "outputs differ by",
        ),
        ({"rename": {"encoder.weight": "x", "head.weight": "x"}}, "several tensors would be called 'x'"),
        ({"dtype": "int8"}, "Valid: bfloat16, float16, float32, float64"),
    ],
)
def test_a_conversion_that_fails_writes_nothing(
    model: Path, tmp_path: Path, options: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        w.convert(model, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.tensor([1e30])}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInput, match="do not fit float16"):
        w.convert(tmp_path / "model.safetensors", tmp_path / "out", dtype="float16")


def test_an_index_that_lies_is_found(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    w.shard(model, folder, max_size=9000)
    index = json.loads((folder / w.INDEX).read_text())
    name = index["weight_map"].pop("head.weight")
    (folder / w.INDEX).write_text(json.dumps(index))
    with pytest.raises(CorruptArtifact, match=r"head\.weight"):
        Weights(folder)
    index["weight_map"] |= {"head.weight": name, "more": name}
    (folder / w.INDEX).write_text(json.dumps(index))
    with pytest.raises(CorruptArtifact, match="no shard holds more"):
        Weights(folder)
    (folder / name).unlink()
    with pytest.raises(CorruptArtifact, match="is missing"):
        Weights(folder)


def test_a_shard_outside_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / w.INDEX).write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(CorruptArtifact, match="missing"):
        Weights(tmp_path)


def test_a_folder_without_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="neither"):
        Weights(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode(),
        json.dumps({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "y": 1}).encode(),
        json.dumps({"x": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}, "y": {}}).encode(),
    ],
)
def test_headers_that_do_not_fit_are_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CorruptArtifact):
        w.read_header(tmp_path / "x.safetensors")


@given(body=st.binary(max_size=64))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(body)
    with pytest.raises(CorruptArtifact):
        w.read_header(path)


@pytest.mark.parametrize(
    "write",
    [
        lambda model, out: w.shard(model, out, max_size=1 << 30),
        lambda model, out: w.merge(model, out / "one.safetensors"),
        lambda model, out: w.convert(model, out, dtype="bfloat16"),
        lambda model, out: artifact.build(model, out / "b.tar.gz"),
    ],
    ids=["shard", "merge", "convert", "build"],
)
def test_a_disk_that_fills_in_the_middle_leaves_nothing(
    tmp_path: Path, write: Callable[[Path, Path], object], few_bytes: None
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DiskFull, match="no room"):
        write(tmp_path / "model", out)
    assert not out.exists() or list(out.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == ["model"]


@pytest.fixture
def few_bytes(tmp_path: Path) -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB, as if the disk were full then."""
    (tmp_path / "model").mkdir()
    save_file({"x": torch.randn(1 << 16)}, tmp_path / "model" / "model.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
