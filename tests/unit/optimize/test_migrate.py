"""Models from format to format: what they say is the same before and after, or nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from windlass import artifact
from windlass.errors import InvalidInput
from windlass.optimize.migrate import migrate
from windlass.optimize.onnx_graph import OnnxModule

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's exporter, of torch's own


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 24), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1)
        return self.head(torch.nn.functional.gelu(weights @ v).mean(1))


CONVOLUTION = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3, padding=1, stride=2),
    torch.nn.BatchNorm2d(4),
    torch.nn.ReLU(),
    torch.nn.MaxPool2d(2),
    torch.nn.Flatten(),
    torch.nn.Linear(16, 3),
    torch.nn.LogSoftmax(1),
).eval()


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.lstm = torch.nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.gru, self.head = torch.nn.GRU(12, 5, batch_first=True), torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.lstm(self.embed(x))[0])[0][:, -1])


class Decoder(torch.nn.Module):
    """What a language model is made of: its shapes, positions and mask follow from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.start = torch.nn.Embedding(50, 16), torch.nn.Parameter(torch.randn(1, 1, 16))
        self.block = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x) + torch.arange(x.shape[1])[None, :, None] * 0.01
        h = torch.cat([self.start.expand(x.shape[0], -1, -1), h], 1)
        q = h.reshape(h.shape[0], h.shape[1], 4, 4).transpose(1, 2)
        h = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2)
        return torch.nn.functional.rms_norm(self.block(h.reshape(x.shape[0], -1, 16)), [16])


class Upsampling(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ConvTranspose2d(8, 8, 2, 2)
        self.norm, self.out = torch.nn.GroupNorm(4, 8), torch.nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.silu(self.norm(self.up(self.down(x))))
        y = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(y, 2), scale_factor=2.0)
        return self.out(torch.nn.functional.hardswish(y))


IDS = torch.randint(0, 50, (2, 7))
NETWORKS = {
    "recurrent": (Recurrent().eval(), {"x": IDS}),
    "decoder": (Decoder().eval(), {"x": IDS}),
    "upsampling": (Upsampling().eval(), {"x": torch.randn(2, 3, 16, 16)}),
    "attention": (Attention().eval(), {"x": torch.randn(2, 5, 8)}),
    "convolution": (CONVOLUTION, {"x": torch.randn(2, 1, 8, 8)}),
}


def answers(folder: Path, x: torch.Tensor) -> Any:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return session.run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_to_onnx_to_torch_and_back(tmp_path: Path, name: str) -> None:
    network, example = NETWORKS[name]
    more = example["x"][torch.tensor([0, 1, 1, 0, 0, 1, 0])].roll(1, -1)

    there = migrate(network, tmp_path / "onnx", to="onnx", example=example, outputs=("y",))
    back = migrate(
        tmp_path / "onnx" / "model.onnx", tmp_path / "torch", to="torch-export", example=example, outputs=("y",)
    )
    again = migrate(tmp_path / "torch" / "model.pt2", tmp_path / "again", to="onnx", example=example, outputs=("y",))

    assert max(there, back, again) < 1e-4
    expected = network(more).detach()
    program = torch.export.load(tmp_path / "torch" / "model.pt2").module()
    assert torch.allclose(program(more)[0], expected, atol=1e-4)
    for folder in ("onnx", "again"):
        assert np.allclose(answers(tmp_path / folder, more), expected, atol=1e-4)
    manifest = artifact.build(tmp_path / "onnx").manifest
    assert manifest.signature is not None
    assert (manifest.loader, manifest.signature.inputs[0].shape[1:]) == ("onnx", tuple(example["x"].shape[1:]))


def test_a_computation_in_bfloat16_keeps_its_inputs_and_outputs(tmp_path: Path) -> None:
    network, example = NETWORKS["convolution"]
    worst = migrate(network, tmp_path / "m", to="torch-export", example=example, dtype="bfloat16", tolerance=0.1)
    program = torch.export.load(tmp_path / "m" / "model.pt2")
    assert 0 < worst < 0.1
    assert program.module()(example["x"])[0].dtype == torch.float32
    assert {v.dtype for v in program.state_dict.values() if v.is_floating_point()} == {torch.bfloat16}
    assert network[0].weight.dtype == torch.float32  # the module that was given is left alone


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "torch-export", "dtype": "bfloat16", "tolerance": 1e-9}, "outputs differ by"),
        ({"to": "onxx"}, "Did you mean 'onnx'"),
        ({"to": "onnx", "dtype": "int4"}, "Valid: float32"),
    ],
)
def test_what_changes_too_much_is_not_written(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    network, example = NETWORKS["convolution"]
    with pytest.raises(InvalidInput, match=says):
        migrate(network, tmp_path / "m", example=example, **options)
    assert list(tmp_path.iterdir()) == []


def one(
    kind: str, shape: list[int | str], *constants: np.ndarray[Any, Any], outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    names = [f"c{index}" for index in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *names], ["y", "more"][:outputs], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in zip(names, constants, strict=True)],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    "model",
    [
        one("Flatten", [2, 3, 4], axis=2),
        one("Flatten", [2, 3, 4], axis=0),
        one("Flatten", [2, 3, 4], axis=-1),
        one("Slice", [2, 3, 4], ints(1, 0), ints(2**63 - 1, -1), ints(2, 1), ints(2, 1)),
        one("ReduceSum", [2, 3, 4], ints(1), keepdims=0),
        one("ReduceMax", [2, 3, 4], ints(-1)),
        one("Reshape", [2, 3, 4], ints(0, -1)),
        one("Transpose", [2, 3, 4]),
        one("Unsqueeze", [2, 3, 4], ints(0, -1)),
        one("Squeeze", [2, 1, 4], ints(1)),
        one("Gather", [2, 3, 4], np.array([[2, 0]], np.int64), axis=1),
        one("Clip", [2, 3, 4], np.float32(-0.5), np.float32(0.5)),
        one("Gemm", [2, 3], np.ones((4, 3), np.float32), np.ones(4, np.float32), transB=1, alpha=0.5, beta=2.0),
        one("Softmax", [2, 3, 4], axis=1),
        one("LeakyRelu", [2, 3], alpha=0.2),
        one("Conv", [2, 2, 9], np.ones((4, 1, 3), np.float32), group=2, pads=[2, 1], strides=[2], dilations=[2]),
        one("MaxPool", [2, 2, 9], kernel_shape=[3], pads=[1, 0], strides=[2]),
        one("Pow", [2, 3], np.float32(2)),
        one("Gather", [2, 3, 4], np.array([-1, 0], np.int64), axis=1),
        one("GatherElements", [2, 3], np.array([[-1, 0, 1]], np.int64), axis=0),
        one("GatherND", [2, 3, 4], np.array([[1, -1], [0, 0]], np.int64)),
        one("GatherND", [2, 3, 4], np.array([[[1]], [[0]]], np.int64), batch_dims=1),
        one("Expand", [2, 1, 4], ints(3, 1, 5, 1)),
        one("Tile", [2, 3], ints(2, 3)),
        one("Trilu", [3, 4], np.int64(1), upper=0),
        one("CumSum", [2, 3], np.int64(1)),
        one("TopK", [2, 5], ints(2), outputs=2),
        one("Pad", [2, 3, 4], ints(0, 1, 0, 0, 0, 2), np.float32(7)),
        one("Pad", [1, 2, 5], ints(0, 0, 1, 0, 0, 2), mode="reflect"),
        one("AveragePool", [2, 2, 9], kernel_shape=[3], pads=[1, 1], strides=[2], count_include_pad=1),
        one("ConvTranspose", [1, 2, 5], np.ones((2, 3, 2), np.float32), strides=[2], pads=[1, 1], output_padding=[1]),
        one("Resize", [1, 1, 4, 6], np.array([], np.float32), np.array([1, 1, 2, 2], np.float32), mode="linear"),
        one("InstanceNormalization", [2, 3, 4], np.ones(3, np.float32), np.ones(3, np.float32)),
        one("DepthToSpace", [1, 8, 2, 3], blocksize=2, mode="CRD"),
        one("PRelu", [2, 3], np.float32([0.1, 0.2, 0.3])),
        one("HardSigmoid", [2, 3], alpha=0.3),
        one("ReduceL2", [2, 3, 4], ints(1)),
        one("Max", [2, 3], np.float32(0.1), np.float32(0.2)),
        one("Mod", [2, 3], np.float32(0.3), fmod=1),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_each_operator_answers_as_onnx_runtime_does(model: onnx.ModelProto) -> None:
    shape = [item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    found = OnnxModule(model, ["x"])(torch.from_numpy(x))[0]
    assert found.shape == expected.shape
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (one("NonMaxSuppression", [2]), ["x"], "no counterpart in torch for NonMaxSuppression"),
        (one("Relu", [2]), ["y"], "inputs x, not y"),
    ],
)
def test_a_graph_that_torch_cannot_run_is_refused(model: onnx.ModelProto, inputs: list[str], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        OnnxModule(model, inputs)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (one("AveragePool", [1, 1, 4], kernel_shape=[2], auto_pad="SAME_UPPER"), "AveragePool with auto_pad"),
        (one("CumSum", [1, 4], np.int64(1), reverse=1), "CumSum, exclusive or in reverse, has no counterpart"),
        (one("DepthToSpace", [1, 4, 2, 2], blocksize=2), "DepthToSpace by depth first"),
        (one("GRU", [1, 1, 1], *[np.ones((1, 3, 1), np.float32)] * 2, hidden_size=1), "linear_before_reset=0"),
    ],
)
def test_a_mode_that_torch_lacks_is_refused(model: onnx.ModelProto, says: str) -> None:
    shape = [item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim]
    with pytest.raises(InvalidInput, match=says):
        OnnxModule(model, ["x"])(torch.zeros(shape))
