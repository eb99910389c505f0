"""Models served with no code of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from windlass.runtime.hooks import Handler, HookError, Invocation

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}],
    "outputs": [
        {"name": "sum", "dtype": "float32", "shape": ["batch"]},
        {"name": "twice", "dtype": "float32", "shape": ["batch", 2]},
    ],
}


def manifest(folder: Path, signature: dict[str, Any] | None) -> None:
    (folder / "windlass.json").write_text(json.dumps({"format": 1, "files": {}, "signature": signature}))


def load(folder: Path) -> Handler:
    return Handler.load(folder, folder / "code", "inference.py")


def test_an_exported_program_is_served_and_batched(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x.sum(dim=1), x * 2

    example = (torch.ones(2, 2),)
    program = torch.export.export(Model(), example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    manifest(tmp_path, SIGNATURE)
    handler = load(tmp_path)
    assert handler.batches
    kind = {"content-type": "application/json"}
    one, two, wrong = handler.answer(
        [Invocation(body, kind) for body in (b"[[1, 2]]", b'{"x": [[3, 4], [5, 6]]}', b"[[1]]")]
    )
    assert json.loads(one.body) == {"sum": [3.0], "twice": [[2.0, 4.0]]}
    assert json.loads(two.body) == {"sum": [7.0, 11.0], "twice": [[6.0, 8.0], [10.0, 12.0]]}
    assert (wrong.status, wrong.body) == (400, b"input 'x': shape (1, 1) came, (batch, 2) is expected.\n")


def test_an_onnx_graph_is_served(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["twice"])],
        "double",
        [helper.make_tensor_value_info("x", kind, ["batch", 2])],
        [helper.make_tensor_value_info("twice", kind, ["batch", 2])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )
    manifest(tmp_path, {"inputs": SIGNATURE["inputs"], "outputs": SIGNATURE["outputs"][1:]})
    reply = load(tmp_path)(Invocation(b"[[1, 2]]", {"content-type": "application/json"}))
    assert json.loads(reply.body) == [[2.0, 4.0]]
    manifest(tmp_path, SIGNATURE)
    with pytest.raises(HookError, match=r"model\.onnx has no output 'sum', which the signature names"):
        load(tmp_path)


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").touch()
    with pytest.raises(HookError, match=r"only with a signature: put a signature.json beside it"):
        load(tmp_path)
    (tmp_path / "other.onnx").touch()
    with pytest.raises(HookError, match=r"holds model.pt2, other.onnx. Leave one"):
        load(tmp_path)
    (tmp_path / "model.pt2").unlink()
    (tmp_path / "other.onnx").rename(tmp_path / "model.safetensors")
    with pytest.raises(HookError, match=r"no inference\.py"):
        load(tmp_path)
