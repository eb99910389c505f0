"""Models served with no code of the user's."""

from __future__ import annotations

import json
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from windlass.runtime.engines import Callers
from windlass.runtime.hooks import Handler, HookError, Invocation

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}],
    "outputs": [
        {"name": "sum", "dtype": "float32", "shape": ["batch"]},
        {"name": "twice", "dtype": "float32", "shape": ["batch", 2]},
    ],
}


JSON = {"content-type": "application/json"}


class Unknown:
    """A type that no library has."""


def manifest(folder: Path, signature: dict[str, Any] | None, **more: Any) -> None:
    (folder / "windlass.json").write_text(json.dumps({"format": 1, "files": {}, "signature": signature, **more}))


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
    doubling(tmp_path / "model.onnx")
    reply = load(tmp_path)(Invocation(b"[[1, 2]]", {"content-type": "application/json"}))
    assert json.loads(reply.body) == [[2.0, 4.0]]
    manifest(tmp_path, SIGNATURE)
    with pytest.raises(HookError, match=r"model\.onnx has no output 'sum', which the signature names"):
        load(tmp_path)


def test_models_are_warm_before_the_first_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each with the types that requests give it; what fails is logged, and the first request pays."""
    torch = pytest.importorskip("torch")
    skops = pytest.importorskip("skops.io")
    from sklearn.linear_model import LogisticRegression

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x.sum(dim=1), x * 2

    for name in ("onnx", "torch", "sklearn"):
        (tmp_path / name).mkdir()
    doubling(tmp_path / "onnx" / "model.onnx")
    example = (torch.ones(2, 2),)
    program = torch.export.export(Model(), example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "torch" / "model.pt2")
    manifest(tmp_path / "torch", SIGNATURE)
    skops.dump(LogisticRegression().fit([[0, 0], [1, 1]], [0, 1]), tmp_path / "sklearn" / "model.skops")
    outputs = [{"name": "label", "dtype": "int64", "shape": ["batch"]}]
    manifest(tmp_path / "sklearn", {"inputs": SIGNATURE["inputs"], "outputs": outputs})

    with caplog.at_level("INFO"):
        for name in ("onnx", "torch", "sklearn"):
            load(tmp_path / name)

    assert not [record.getMessage() for record in caplog.records if "warm-up" in record.getMessage()]


def doubling(path: Path) -> None:
    """Write an ONNX graph, and what it takes and gives."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["twice"])],
        "double",
        [helper.make_tensor_value_info("x", kind, ["batch", 2])],
        [helper.make_tensor_value_info("twice", kind, ["batch", 2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    manifest(path.parent, {"inputs": SIGNATURE["inputs"], "outputs": SIGNATURE["outputs"][1:]})


def test_an_onnx_graph_has_a_thread_for_each_worker_and_they_share_the_cores(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    doubling(tmp_path / "model.onnx")
    options: list[Any] = []
    session = onnxruntime.InferenceSession

    def opened(path: str, given: Any, **more: Any) -> Any:
        options.append(given)
        return session(path, given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", opened)
        handler = Handler.load(tmp_path, tmp_path / "code", "inference.py", callers=Callers(threads=2, workers=2))
    assert handler.threads == 2
    assert options[0].intra_op_num_threads == 3  # and with the two callers' own, of which one is among them, four
    with ThreadPoolExecutor(2) as threads:
        replies = list(threads.map(handler, [Invocation(b"[[%d, 2]]" % n, JSON) for n in range(50)]))
    assert [json.loads(reply.body) for reply in replies] == [[[2.0 * n, 4.0]] for n in range(50)]


@pytest.mark.parametrize("pinned", [False, True])
def test_an_openvino_graph_is_served_by_threads_that_share_the_cores(tmp_path: Path, pinned: bool) -> None:
    openvino = pytest.importorskip("openvino")
    doubling(tmp_path / "model.onnx")
    openvino.save_model(openvino.Core().read_model(tmp_path / "model.onnx"), tmp_path / "model.xml")
    (tmp_path / "model.onnx").unlink()
    callers = Callers(threads=1, workers=2, pinned=pinned)
    handler = Handler.load(tmp_path, tmp_path / "code", "inference.py", callers=callers)
    assert handler.threads == 2
    assert handler._model.get_property("ENABLE_CPU_PINNING") is pinned
    assert handler._model.get_property("INFERENCE_NUM_THREADS") == 2
    assert handler._model.get_property("NUM_STREAMS") == 2
    with ThreadPoolExecutor(2) as threads:
        replies = list(threads.map(handler, [Invocation(b"[[%d, 2]]" % n, JSON) for n in range(50)]))
    assert [json.loads(reply.body) for reply in replies] == [[[2.0 * n, 4.0]] for n in range(50)]


def test_a_model_of_python_has_one_caller(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "model.pt2")
    manifest(tmp_path, {"inputs": SIGNATURE["inputs"], "outputs": SIGNATURE["outputs"][1:]})
    assert Handler.load(tmp_path, tmp_path / "code", "inference.py", callers=Callers(workers=2)).threads == 1


def test_a_skops_file_is_served_as_its_outputs_are_named(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from skops import io

    model = LogisticRegression().fit([[0.0, 0.0], [1.0, 1.0], [0.2, 0.0], [0.9, 1.0]], [0, 1, 0, 1])
    io.dump(model, tmp_path / "model.skops")
    signature = {
        "inputs": SIGNATURE["inputs"],
        "outputs": [
            {"name": "label", "dtype": "int64", "shape": ["batch"]},
            {"name": "probabilities", "dtype": "float64", "shape": ["batch", 2]},
        ],
    }
    manifest(tmp_path, signature)
    handler = load(tmp_path)
    reply = json.loads(handler(Invocation(b"[[0, 0], [1, 1]]", JSON)).body)
    assert reply["label"] == [0, 1]
    assert reply["probabilities"] == model.predict_proba([[0.0, 0.0], [1.0, 1.0]]).tolist()
    assert handler(Invocation(b"[[0]]", JSON)).status == 400
    manifest(tmp_path, {**signature, "outputs": [{"name": "transform", "dtype": "float64", "shape": ["batch"]}]})
    with pytest.raises(
        HookError, match=r"model.skops has no transform\(\), which the signature's output 'transform' needs"
    ):
        load(tmp_path)


def test_a_skops_file_of_unknown_types_is_not_loaded(tmp_path: Path) -> None:
    from skops import io

    io.dump(Unknown(), tmp_path / "model.skops")
    manifest(tmp_path, SIGNATURE)
    with pytest.raises(HookError, match=r"types that skops does not know to be safe: .*Unknown"):
        load(tmp_path)


def test_torchscript_is_served_without_signature_or_with(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 2)).save(tmp_path / "model.pt")
    assert load(tmp_path)(Invocation(b"[[1, 2]]", JSON)).body == b"[[1.0, 2.0]]"
    manifest(tmp_path, {**SIGNATURE, "outputs": SIGNATURE["outputs"][1:]})
    handler = load(tmp_path)
    assert handler.batches
    assert handler(Invocation(b"[[1]]", JSON)).status == 400


def test_a_state_dict_is_no_torchscript(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(HookError, match=r"model.pth is no TorchScript, .* Write code/inference.py with model_fn"):
        load(tmp_path)


def test_hooks_may_go_with_a_model_that_loads_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 2)).save(tmp_path / "model.pt")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(
        "def predict_fn(data, model): return type(model).__module__, model(data)\n"
        "def output_fn(prediction, accept): return str(prediction[1].tolist())\n"
    )
    path = list(sys.path)
    try:
        assert load(tmp_path)(Invocation(b"[[1, 2]]", JSON)).body == b"[[1.0, 2.0]]"
    finally:
        sys.path[:] = path
        sys.modules.pop("inference", None)


def test_the_manifest_chooses_among_several(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 2)).save(tmp_path / "model.pt")
    (tmp_path / "model.onnx").touch()
    manifest(tmp_path, SIGNATURE, loader="torchscript")
    assert load(tmp_path)(Invocation(b"[[1, 2]]", JSON)).status == 200
    manifest(tmp_path, SIGNATURE, loader="skops")
    with pytest.raises(HookError, match="says loader 'skops'"):
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
