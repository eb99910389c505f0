"""What computes an ONNX operator in torch, and what computes it on sizes alone.

Semantics: the ONNX operator reference, opset 13 and later. What has no counterpart is refused by name, as are the modes of an
operator that have none.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from onnx import numpy_helper

from windlass.errors import InvalidInput

Attributes = Mapping[str, Any]
TYPES = {
    onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64, onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16, onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT8: torch.int8, onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.BOOL: torch.bool,
}  # fmt: skip


def _refuse(what: str) -> InvalidInput:
    return InvalidInput(f"{what} has no counterpart", where="Running an ONNX graph")


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


def _from_start(x: Any, index: Any, at: Attributes) -> Any:
    """Indices that count from the end, counted from the start."""
    return torch.where(index < 0, index + x.shape[at.get("axis", 0)], index).long()


def _gather(at: Attributes, x: Any, index: Any) -> Any:
    axis = at.get("axis", 0)
    flat = x.index_select(axis, _from_start(x, index, at).reshape(-1))
    return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis:][1:]])


def _clip(at: Attributes, x: Any, low: Any = None, high: Any = None) -> Any:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _plain(run: Callable[..., Any]) -> tuple[Callable[..., Any], frozenset[int]]:
    return (lambda at, *inputs: run(*inputs)), frozenset()


def _with(run: Callable[..., Any], *numeric: int) -> tuple[Callable[..., Any], frozenset[int]]:
    """``numeric``: positions of inputs that are numbers, known before it runs."""
    return run, frozenset(numeric)


def _divide(a: Any, b: Any) -> Any:
    return torch.div(a, b, rounding_mode="trunc") if not a.is_floating_point() else a / b


def _expand(at: Attributes, x: Any, shape: list[int]) -> Any:
    sizes = [1] * (len(shape) - x.ndim) + list(x.shape)
    wanted = [1] * (x.ndim - len(shape)) + list(shape)
    return x.expand([size if want == 1 else want for size, want in zip(sizes, wanted, strict=True)])


def _filled(at: Attributes, shape: list[int]) -> Any:
    value = torch.from_numpy(numpy_helper.to_array(at["value"]).copy()) if "value" in at else torch.zeros(1)
    return torch.full(shape, value.item(), dtype=value.dtype)


def _gather_nd(at: Attributes, x: Any, index: Any) -> Any:
    batch, spread = at.get("batch_dims", 0), index.ndim - 1
    lead = [torch.arange(x.shape[d]).reshape([-1 if i == d else 1 for i in range(spread)]) for d in range(batch)]
    return x[(*lead, *index.unbind(-1))]


def _variadic(run: Callable[..., Any]) -> Callable[..., Any]:
    def fold(at: Attributes, first: Any, *others: Any) -> Any:
        for other in others:
            first = run(first, other)
        return first

    return fold


def _pad(at: Attributes, x: Any, pads: list[int], value: Any = None, axes: list[int] | None = None) -> Any:
    axes = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    begins, ends = dict(zip(axes, pads[: len(axes)], strict=True)), dict(zip(axes, pads[len(axes) :], strict=True))
    flat = [size for axis in reversed(range(x.ndim)) for size in (begins.get(axis, 0), ends.get(axis, 0))]
    mode = at.get("mode", b"constant").decode()
    if mode == "constant":
        return F.pad(x, flat, value=0.0 if value is None else value)
    while flat[-2:] == [0, 0]:
        flat = flat[:-2]
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    return F.pad(x, flat, mode=names[mode]) if flat else x


def _average_pool(at: Attributes, x: Any) -> Any:
    size, pads = at["kernel_shape"], at.get("pads", [0] * 2 * len(at["kernel_shape"]))
    half = len(size)
    if at.get("auto_pad", b"NOTSET") != b"NOTSET" or at.get("dilations", [1] * half) != [1] * half or half > 3:
        raise _refuse("AveragePool with auto_pad or dilations")
    if pads[:half] != pads[half:]:
        raise _refuse("AveragePool with uneven pads")
    run = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[half]
    strides, counted = at.get("strides", [1] * half), bool(at.get("count_include_pad", 0))
    return run(x, size, strides, pads[:half], bool(at.get("ceil_mode", 0)), counted)


def _conv_transpose(at: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    spatial = weight.ndim - 2
    pads = at.get("pads", [0] * 2 * spatial)
    if at.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in at or pads[:spatial] != pads[spatial:]:
        raise _refuse("ConvTranspose with auto_pad, output_shape or uneven pads")
    run = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial]
    extra, dilations = at.get("output_padding", [0] * spatial), at.get("dilations", [1] * spatial)
    return run(x, weight, bias, at.get("strides", [1] * spatial), pads[:spatial], extra, at.get("group", 1), dilations)


def _group_norm(at: Attributes, x: Any, scale: Any, bias: Any) -> Any:
    return F.group_norm(x, at["num_groups"], scale, bias, at.get("epsilon", 1e-5))


def _rms_norm(at: Attributes, x: Any, scale: Any) -> Any:
    return F.rms_norm(x, list(x.shape[at.get("axis", -1) :]), scale, at.get("epsilon", 1e-5))


def _resize(at: Attributes, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    mode, places = at.get("mode", b"nearest").decode(), at.get("coordinate_transformation_mode", b"half_pixel").decode()
    if at.get("antialias") or "axes" in at or (scales and list(scales[:2]) != [1, 1]):
        raise _refuse("Resize with axes, antialias, or of the batch and channels")
    size = list(sizes[2:]) if sizes else None
    scale = list(scales[2:]) if scales and not sizes else None
    if mode == "nearest":
        exact = places == "half_pixel" and at.get("nearest_mode", b"round_prefer_floor") == b"round_prefer_floor"
        if not exact and not (places == "asymmetric" and at.get("nearest_mode") == b"floor"):
            raise _refuse(f"Resize by nearest, {places}")
        return F.interpolate(x, size, scale, mode="nearest-exact" if exact else "nearest")
    if places not in ("half_pixel", "pytorch_half_pixel", "align_corners") or x.ndim not in (3, 4, 5):
        raise _refuse(f"Resize by {mode}, {places}")
    if mode == "cubic" and at.get("cubic_coeff_a", -0.75) != -0.75:
        raise _refuse("Resize by another cubic than torch's")
    name = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim], "cubic": "bicubic"}[mode]
    return F.interpolate(x, size, scale, mode=name, align_corners=places == "align_corners")


def _top_k(at: Attributes, x: Any, k: Any) -> Any:
    return tuple(torch.topk(x, k[0] if isinstance(k, list) else k, at.get("axis", -1), bool(at.get("largest", 1))))


def _cumulate(at: Attributes, x: Any, axis: Any) -> Any:
    if at.get("exclusive") or at.get("reverse"):
        raise _refuse("CumSum, exclusive or in reverse,")
    return x.cumsum(axis[0] if isinstance(axis, list) else axis)


def _triangle(at: Attributes, x: Any, k: Any = 0) -> Any:
    k = k[0] if isinstance(k, list) else k or 0
    return x.triu(k) if at.get("upper", 1) else x.tril(k)


def _mod(at: Attributes, a: Any, b: Any) -> Any:
    return torch.fmod(a, b) if at.get("fmod") else torch.remainder(a, b)


def _hard_sigmoid(at: Attributes, x: Any) -> Any:
    return (at.get("alpha", 0.2) * x + at.get("beta", 0.5)).clamp(0, 1)


def _p_relu(at: Attributes, x: Any, slope: Any) -> Any:
    return torch.where(x < 0, x * slope, x)


# torch orders the gates of a cell in its own way: blocks of rows of ONNX's, in torch's order.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}


def _recurrent(kind: str) -> Callable[..., Any]:
    """LSTM or GRU of one layer, forwards or both ways, with the functions that both define by default."""

    def run(
        at: Attributes,
        x: Any,
        w: Any,
        r: Any,
        b: Any = None,
        lengths: Any = None,
        h: Any = None,
        c: Any = None,
        p: Any = None,
    ) -> Any:
        direction = at.get("direction", b"forward").decode()
        special = [name for name in ("clip", "input_forget", "layout") if at.get(name)]
        special += ["activations"] * ("activations" in at) + ["sequence_lens"] * (lengths is not None)
        special += ["peepholes"] * (p is not None) + ["direction reverse"] * (direction == "reverse")
        if kind == "GRU" and not at.get("linear_before_reset"):
            special.append("linear_before_reset=0")
        if special:
            raise _refuse(f"{kind} with {', '.join(special)}")

        def ordered(matrix: Any) -> Any:
            blocks = matrix.chunk(len(_GATES[kind]), 0)
            return torch.cat([blocks[gate] for gate in _GATES[kind]], 0)

        size, batch, ways = at["hidden_size"], x.shape[1], w.shape[0]
        flat = []
        for way in range(ways):
            flat += [ordered(w[way]), ordered(r[way])]
            if b is not None:
                flat += [ordered(half) for half in b[way].chunk(2)]
        start = x.new_zeros(ways, batch, size) if h is None else h
        rest = (b is not None, 1, 0.0, False, ways == 2, False)
        if kind == "LSTM":
            state = (start, x.new_zeros(ways, batch, size) if c is None else c)
            y, *last = torch.lstm(x, state, flat, *rest)
        else:
            y, *last = torch.gru(x, start, flat, *rest)
        return (y.reshape(x.shape[0], batch, ways, size).permute(0, 2, 1, 3), *last)

    return run


def _depth_to_space(at: Attributes, x: Any) -> Any:
    if at.get("mode", b"DCR") != b"CRD":
        raise _refuse("DepthToSpace by depth first")
    return F.pixel_shuffle(x, at["blocksize"])


OPERATORS: Mapping[str, tuple[Callable[..., Any], frozenset[int]]] = {
    "Abs": _plain(torch.abs), "Add": _plain(torch.add), "And": _plain(torch.logical_and), "Div": _plain(_divide),
    "Equal": _plain(torch.eq), "Erf": _plain(torch.erf), "Exp": _plain(torch.exp), "Greater": _plain(torch.gt),
    "Identity": _plain(lambda x: x), "Less": _plain(torch.lt), "Log": _plain(torch.log), "MatMul": _plain(torch.matmul),
    "Max": _with(_variadic(torch.maximum)), "Min": _with(_variadic(torch.minimum)),
    "Mul": _plain(torch.mul), "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not), "Or": _plain(torch.logical_or),
    "Pow": _plain(lambda x, y: torch.pow(x, y).to(x.dtype)), "Relu": _plain(torch.relu),
    "Reciprocal": _plain(torch.reciprocal), "Sigmoid": _plain(torch.sigmoid), "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(torch.sub), "Tanh": _plain(torch.tanh), "Where": _plain(torch.where),
    "ArgMax": _with(lambda at, x: x.argmax(at.get("axis", 0), keepdim=bool(at.get("keepdims", 1)))),
    "BatchNormalization": _with(_batch_norm), "Cast": _with(lambda at, x: x.to(TYPES[at["to"]])),
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
    "Ceil": _plain(torch.ceil), "Cos": _plain(torch.cos), "Floor": _plain(torch.floor), "IsInf": _plain(torch.isinf),
    "IsNaN": _plain(torch.isnan), "Round": _plain(torch.round), "Sign": _plain(torch.sign), "Sin": _plain(torch.sin),
    "GreaterOrEqual": _plain(torch.ge), "LessOrEqual": _plain(torch.le), "Xor": _plain(torch.logical_xor), "Mod": _with(_mod),
    "HardSwish": _plain(F.hardswish), "Mish": _plain(F.mish), "Softplus": _plain(F.softplus), "Softsign": _plain(F.softsign),
    "Elu": _with(lambda at, x: F.elu(x, at.get("alpha", 1.0))), "Celu": _with(lambda at, x: F.celu(x, at.get("alpha", 1.0))),
    "HardSigmoid": _with(_hard_sigmoid), "PRelu": _with(_p_relu),
    "Swish": _with(lambda at, x: x * torch.sigmoid(at.get("alpha", 1.0) * x)),
    "Sum": _with(_variadic(torch.add)), "Einsum": _with(lambda at, *xs: torch.einsum(at["equation"].decode(), *xs)),
    "ArgMin": _with(lambda at, x: x.argmin(at.get("axis", 0), keepdim=bool(at.get("keepdims", 1)))),
    "ReduceL1": _with(_reduce(lambda x, **to: x.abs().sum(**to)), 1),
    "ReduceL2": _with(_reduce(lambda x, **to: x.square().sum(**to).sqrt()), 1),
    "ReduceLogSumExp": _with(_reduce(torch.logsumexp), 1),
    "ReduceSumSquare": _with(_reduce(lambda x, **to: x.square().sum(**to)), 1),
    "AveragePool": _with(_average_pool), "ConvTranspose": _with(_conv_transpose),
    "GlobalMaxPool": _with(lambda at, x: x.amax(tuple(range(2, x.ndim)), keepdim=True)),
    "GroupNormalization": _with(_group_norm), "RMSNormalization": _with(_rms_norm),
    "InstanceNormalization": _with(
        lambda at, x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=at.get("epsilon", 1e-5))
    ),
    "DepthToSpace": _with(_depth_to_space), "Resize": _with(_resize, 2, 3), "Pad": _with(_pad, 1, 2, 3),
    "ConstantOfShape": _with(_filled, 0), "Expand": _with(_expand, 1), "Tile": _with(lambda at, x, times: x.tile(times), 1),
    "Range": _with(lambda at, start, limit, step: torch.arange(start, limit, step), 0, 1, 2),
    "CumSum": _with(_cumulate, 1), "TopK": _with(_top_k, 1), "Trilu": _with(_triangle, 1),
    "GatherElements": _with(lambda at, x, index: x.gather(at.get("axis", 0), _from_start(x, index, at))),
    "GatherND": _with(_gather_nd), "GRU": _with(_recurrent("GRU")), "LSTM": _with(_recurrent("LSTM")),
    "Shape": _with(lambda at, x: list(x.shape[at.get("start", 0) : at.get("end")])),
    "Size": _plain(lambda x: x.numel()),
}  # fmt: skip
"""Operator -> what computes it, and the positions of inputs that must be constants."""


# ----------------------------------------------------------------------------------------------------------------- on sizes


def _each(run: Callable[..., Any]) -> Callable[..., Any]:
    """Of numbers and lists of them, element by element."""

    def compute(at: Attributes, *inputs: Any) -> Any:
        lists = [value for value in inputs if isinstance(value, list)]
        if not lists:
            return run(*inputs)
        length = max(map(len, lists))
        spread = [
            v * length if isinstance(v, list) and len(v) == 1 else v if isinstance(v, list) else [v] * length
            for v in inputs
        ]
        return [run(*items) for items in zip(*spread, strict=True)]

    return compute


def _gather_sizes(at: Attributes, x: list[Any], index: Any) -> Any:
    return [x[i] for i in index] if isinstance(index, list) else x[index]


def _join_sizes(at: Attributes, *parts: Any) -> list[Any]:
    return [item for part in parts for item in part]


def _slice_sizes(
    at: Attributes, x: list[Any], starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> list[Any]:
    return x[starts[0] : min(ends[0], len(x)) : steps[0] if steps else 1]


def _reduce_sizes(run: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(at: Attributes, x: Any, axes: Any = None) -> Any:
        answer = run(x)
        return [answer] if at.get("keepdims", 1) else answer

    return reduce


ON_SIZES: Mapping[str, Callable[..., Any]] = {
    "Add": _each(operator.add), "Sub": _each(operator.sub), "Mul": _each(operator.mul), "Div": _each(operator.floordiv),
    "Equal": _each(operator.eq), "Where": _each(lambda condition, a, b: a if condition else b),
    "Max": _each(lambda *values: functools.reduce(torch.sym_max, values)),
    "Min": _each(lambda *values: functools.reduce(torch.sym_min, values)),
    "Cast": lambda at, x: NotImplemented if TYPES[at["to"]].is_floating_point else x,
    "Identity": lambda at, x: x, "Gather": _gather_sizes, "Concat": _join_sizes, "Slice": _slice_sizes,
    "Unsqueeze": lambda at, x, axes: [x], "Squeeze": lambda at, x, axes=None: x[0] if isinstance(x, list) else x,
    "Reshape": lambda at, x, shape: (x if isinstance(x, list) else [x]) if shape else (x[0] if isinstance(x, list) else x),
    "ReduceProd": _reduce_sizes(math.prod), "ReduceSum": _reduce_sizes(sum), "ReduceMax": _reduce_sizes(max),
}  # fmt: skip
"""Operator -> what computes it where all inputs are numbers that follow from the shapes of tensors."""
