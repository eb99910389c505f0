"""An ONNX graph as a torch module, for the operators that networks are mostly made of; others are refused by name.

    module = OnnxModule(onnx.load("model.onnx"), ["x"])      # forward takes the inputs in that order; weights are parameters

The two libraries that do this on PyPI need torchvision, and import it for every graph.
Semantics: the ONNX operator reference, opset 13 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from onnx import numpy_helper

from windlass.errors import InvalidInput

Attributes = Mapping[str, Any]
_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64, onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16, onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT8: torch.int8, onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.BOOL: torch.bool,
}  # fmt: skip


class OnnxModule(torch.nn.Module):
    """Runs a graph node by node.

    Raises:
        InvalidInput: lists the operators that have no counterpart here, or says which inputs the graph has.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[str]) -> None:
        super().__init__()
        where, graph = "Reading an ONNX graph", model.graph
        missing = sorted({node.op_type for node in graph.node} - OPERATORS.keys())
        if missing:
            hint = "Serve it as ONNX: windlass.optimize.export(dest, graph)."
            raise InvalidInput(f"no counterpart in torch for {', '.join(missing)}", where=where, hint=hint)
        opset = max((item.version for item in model.opset_import if not item.domain), default=0)
        if opset < 13:
            hint = "Convert it first: onnx.version_converter.convert_version(model, 17)."
            raise InvalidInput(f"opset {opset} is older than 13", where=where, hint=hint)
        weights = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
        taken = [value.name for value in graph.input if value.name not in weights]
        if sorted(taken) != sorted(inputs):
            raise InvalidInput(f"it has the inputs {', '.join(taken)}, not {', '.join(inputs)}", where=where)
        self._inputs, self._outputs = tuple(inputs), tuple(value.name for value in graph.output)
        self._places: dict[str, str] = {}
        # What says how to compute (axes, shapes) is used as numbers; what is computed with follows devices and dtypes.
        self._numbers = {name: value.tolist() for name, value in weights.items() if not value.is_floating_point()}
        for index, (name, value) in enumerate(weights.items()):
            self._places[name] = f"weight_{index}"
            if value.is_floating_point():
                self.register_parameter(self._places[name], torch.nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(self._places[name], value)
        self._nodes = []
        for node in graph.node:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Constant":
                self._constant(node.output[0], attributes, len(self._places))
                continue
            self._nodes.append((node.op_type, tuple(node.input), tuple(node.output), attributes))

    def _constant(self, name: str, attributes: Attributes, index: int) -> None:
        kind, value = next(iter(attributes.items()))
        tensor = torch.from_numpy(numpy_helper.to_array(value).copy()) if kind == "value" else torch.tensor(value)
        self._places[name] = f"weight_{index}"
        self.register_buffer(self._places[name], tensor)
        if not tensor.is_floating_point():
            self._numbers[name] = tensor.tolist()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        values |= {name: getattr(self, place) for name, place in self._places.items()}
        for kind, names, outputs, attributes in self._nodes:
            run, numeric = OPERATORS[kind]
            given = [
                None if not name else self._number(name, kind) if position in numeric else values[name]
                for position, name in enumerate(names)
            ]
            answer = run({**attributes, "outputs": len(outputs)}, *given)
            values |= zip(outputs, answer if isinstance(answer, tuple) else (answer,), strict=False)
        return tuple(values[name] for name in self._outputs)

    def _number(self, name: str, kind: str) -> Any:
        if name not in self._numbers:
            hint = "Serve it as ONNX: windlass.optimize.export(dest, graph)."
            raise InvalidInput(f"{kind} computes its {name!r} as it runs", where="Running an ONNX graph", hint=hint)
        return self._numbers[name]


def _gemm(at: Attributes, a: Any, b: Any, c: Any = None) -> Any:
    a, b = a.T if at.get("transA") else a, b.T if at.get("transB") else b
    product = at.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + at.get("beta", 1.0) * c


def _reshape(at: Attributes, x: Any, shape: list[int]) -> Any:
    # A size of 0 keeps the input's.
    return x.reshape(
        [x.shape[axis] if size == 0 and not at.get("allowzero") else size for axis, size in enumerate(shape)]
    )


def _flatten(at: Attributes, x: Any) -> Any:
    axis = at.get("axis", 1) % x.ndim
    return x.flatten(axis).flatten(0, axis - 1) if axis else x.reshape(1, -1)


def _padding(at: Attributes, spatial: int) -> list[int]:
    if at.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise InvalidInput(f"auto_pad {at['auto_pad'].decode()} has no counterpart", where="Running an ONNX graph")
    pads = list(at.get("pads", [0] * 2 * spatial))
    # ONNX: all begins, then all ends; torch: pairs, the last axis first.
    return [pads[axis + end * spatial] for axis in reversed(range(spatial)) for end in (0, 1)]


def _conv(at: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    spatial = weight.ndim - 2
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial]
    x = F.pad(x, _padding(at, spatial))
    strides, dilations = at.get("strides", [1] * spatial), at.get("dilations", [1] * spatial)
    return run(x, weight, bias, strides, 0, dilations, at.get("group", 1))


def _max_pool(at: Attributes, x: Any) -> Any:
    size = at["kernel_shape"]
    if at.get("ceil_mode"):
        raise InvalidInput("MaxPool with ceil_mode has no counterpart", where="Running an ONNX graph")
    run = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(size)]
    x = F.pad(x, _padding(at, len(size)), value=float("-inf"))
    return run(x, size, at.get("strides", [1] * len(size)), 0, at.get("dilations", [1] * len(size)))


def _batch_norm(at: Attributes, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, at.get("epsilon", 1e-5))


def _layer_norm(at: Attributes, x: Any, scale: Any, bias: Any = None) -> Any:
    return F.layer_norm(x, x.shape[at.get("axis", -1) :], scale, bias, at.get("epsilon", 1e-5))


def _reduce(run: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(at: Attributes, x: Any, axes: Any = None) -> Any:
        # Axes were an attribute before opset 18.
        chosen = axes if axes is not None else at.get("axes", list(range(x.ndim)))
        return run(x, dim=chosen, keepdim=bool(at.get("keepdims", 1)))

    return reduce


def _slice(at: Attributes, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    for axis, start, end, step in zip(
        axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
    ):
        if step < 1:
            raise InvalidInput("Slice backwards has no counterpart", where="Running an ONNX graph")
        cut = [slice(None)] * x.ndim
        cut[axis] = slice(start, None if end >= 2**31 - 1 else end, step)
        x = x[tuple(cut)]
    return x


def _split(at: Attributes, x: Any, sizes: list[int] | None = None) -> Any:
    axis = at.get("axis", 0)
    return x.split(sizes if sizes is not None else -(-x.shape[axis] // at["outputs"]), axis)


def _unsqueeze(at: Attributes, x: Any, axes: list[int]) -> Any:
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(at: Attributes, x: Any, index: Any) -> Any:
    axis = at.get("axis", 0)
    flat = x.index_select(axis, index.reshape(-1).long())
    return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis:][1:]])


def _clip(at: Attributes, x: Any, low: Any = None, high: Any = None) -> Any:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _plain(run: Callable[..., Any]) -> tuple[Callable[..., Any], frozenset[int]]:
    return (lambda at, *inputs: run(*inputs)), frozenset()


def _with(run: Callable[..., Any], *numeric: int) -> tuple[Callable[..., Any], frozenset[int]]:
    """``numeric``: positions of inputs that are numbers, known before it runs."""
    return run, frozenset(numeric)


OPERATORS: Mapping[str, tuple[Callable[..., Any], frozenset[int]]] = {
    "Abs": _plain(torch.abs), "Add": _plain(torch.add), "And": _plain(torch.logical_and), "Div": _plain(torch.div),
    "Equal": _plain(torch.eq), "Erf": _plain(torch.erf), "Exp": _plain(torch.exp), "Greater": _plain(torch.gt),
    "Identity": _plain(lambda x: x), "Less": _plain(torch.lt), "Log": _plain(torch.log), "MatMul": _plain(torch.matmul),
    "Max": _plain(torch.maximum), "Min": _plain(torch.minimum), "Mul": _plain(torch.mul), "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not), "Or": _plain(torch.logical_or), "Pow": _plain(torch.pow), "Relu": _plain(torch.relu),
    "Reciprocal": _plain(torch.reciprocal), "Sigmoid": _plain(torch.sigmoid), "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(torch.sub), "Tanh": _plain(torch.tanh), "Where": _plain(torch.where),
    "ArgMax": _with(lambda at, x: x.argmax(at.get("axis", 0), keepdim=bool(at.get("keepdims", 1)))),
    "BatchNormalization": _with(_batch_norm), "Cast": _with(lambda at, x: x.to(_TYPES[at["to"]])),
    "Clip": _with(_clip), "Concat": _with(lambda at, *xs: torch.cat(xs, at["axis"])),
    "Constant": _plain(lambda: None), "Conv": _with(_conv), "Dropout": _with(lambda at, x, *rest: x),
    "Flatten": _with(_flatten),
    "Gather": _with(_gather), "Gelu": _with(lambda at, x: F.gelu(x, approximate=at.get("approximate", b"none").decode())),
    "Gemm": _with(_gemm), "GlobalAveragePool": _with(lambda at, x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
    "LayerNormalization": _with(_layer_norm), "LeakyRelu": _with(lambda at, x: F.leaky_relu(x, at.get("alpha", 0.01))),
    "LogSoftmax": _with(lambda at, x: F.log_softmax(x, at.get("axis", -1))), "MaxPool": _with(_max_pool),
    "ReduceMax": _with(_reduce(torch.amax), 1), "ReduceMean": _with(_reduce(torch.mean), 1),
    "ReduceMin": _with(_reduce(torch.amin), 1), "ReduceSum": _with(_reduce(torch.sum), 1),
    "Reshape": _with(_reshape, 1), "Slice": _with(_slice, 1, 2, 3, 4),
    "Softmax": _with(lambda at, x: F.softmax(x, at.get("axis", -1))),
    "Split": _with(_split, 1),
    "Squeeze": _with(lambda at, x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes)), 1),
    "Transpose": _with(lambda at, x: x.permute(at.get("perm", list(reversed(range(x.ndim)))))),
    "Unsqueeze": _with(_unsqueeze, 1),
}  # fmt: skip
"""Operator -> what computes it, and the positions of inputs that must be constants."""
