"""A model from one format to another, with its outputs compared before and after.

    worst = migrate(network, "onnx/", to="onnx", example={"x": torch.zeros(2, 4)})
    worst = migrate("onnx/model.onnx", "torch/", to="torch-export", example={"x": torch.zeros(2, 4)}, outputs=("y",))
    worst = migrate(network, "small/", to="torch-export", dtype="bfloat16", example=example, tolerance=0.05)

ExportedProgram and ONNX are written by torch's own exporters. An ONNX graph is read operator by operator (``onnx_graph``), and
refused when it holds others. What is written is a folder that serves itself, as ``export`` writes it. Weights alone, without a
computation, are for ``weights.convert``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from windlass.errors import InvalidInput, choices
from windlass.optimize.export import batched, export, listed, require

if TYPE_CHECKING:
    import torch

FORMATS = ("onnx", "torch-export")
DTYPES = ("float32", "bfloat16", "float16")


def migrate(
    model: Any,
    dest: str | Path,
    *,
    to: Literal["onnx", "torch-export"],
    example: Mapping[str, torch.Tensor],
    outputs: Sequence[str] = ("output",),
    dtype: str | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Convert a model, and make sure that it still says the same.

    Args:
        model: a torch module, an ExportedProgram or its ``.pt2`` file, an ONNX ModelProto or its ``.onnx`` file.
        dest: absent or empty; it appears whole or not at all.
        example: a batch of at least two for each input by name, in the order in which the model takes them.
        outputs: a name for each output.
        dtype: of the weights and the computation afterwards; inputs and outputs keep theirs.
        tolerance: the most that any output may differ, relative to the largest output.

    Returns:
        The largest relative difference of outputs, at the example and at its first row.

    Raises:
        InvalidInput: an operator has no counterpart, or outputs differ too much. Nothing is written.
    """
    where = f"Converting to {to}"
    if to not in FORMATS:
        raise InvalidInput(f"to={to!r}", where=where, hint=choices(to, FORMATS))
    if dtype is not None and dtype not in DTYPES:
        raise InvalidInput(f"dtype={dtype!r}", where=where, hint=choices(dtype, DTYPES))
    torch = require("torch", "train")
    before, module = _loaded(model, list(example), where)
    after = _cast(module, dtype) if dtype else module
    batches = (example, {name: tensor[:1] for name, tensor in example.items()})
    expected = [before(batch) for batch in batches]
    dest = Path(dest)
    if to == "onnx":
        proto = _to_onnx(after, example, outputs, where)
        found = [_run(proto, batch, outputs) for batch in batches]
        worst = _worst(expected, found, tolerance, where)
        export(dest, proto, example)
    else:
        with torch.no_grad():
            found = [listed(after(*batch.values())) for batch in batches]
        worst = _worst(expected, found, tolerance, where)
        export(dest, after, example, outputs=outputs)  # which compares the program with the module
    return worst


def _loaded(model: Any, inputs: Sequence[str], where: str) -> tuple[Callable[[Mapping[str, Any]], list[Any]], Any]:
    """What the model says now, by its own engine, and the model as a torch module."""
    torch = require("torch", "train")
    if isinstance(model, str | Path):
        path = Path(model)
        if path.suffix == ".pt2":
            model = torch.export.load(path)
        elif path.suffix == ".onnx":
            model = require("onnx", "optimize").load(path)
        else:
            raise InvalidInput(f"{path} is neither *.pt2 nor *.onnx", where=where)
    if type(model).__module__.partition(".")[0] == "onnx":
        from windlass.optimize.onnx_graph import OnnxModule

        module = OnnxModule(model, inputs)
        names = [value.name for value in model.graph.output]
        return lambda batch: _run(model, batch, names), module
    if isinstance(model, torch.export.ExportedProgram):
        module = model.module()
    elif isinstance(model, torch.nn.Module):
        module = copy.deepcopy(model).eval()
    else:
        raise InvalidInput(f"a {type(model).__name__} is neither a torch model nor an ONNX graph", where=where)

    def run(batch: Mapping[str, Any]) -> list[Any]:
        with torch.no_grad():
            return listed(module(*batch.values()))

    return run, module


def _cast(module: torch.nn.Module, dtype: str) -> torch.nn.Module:
    torch = require("torch", "train")

    class Cast(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Computes in another dtype; its inputs and outputs keep theirs."""

        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(module).to(getattr(torch, dtype))

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            kind = getattr(torch, dtype)
            answers = self.model(*(tensor.to(kind) if tensor.is_floating_point() else tensor for tensor in inputs))
            return tuple(a.float() if a.is_floating_point() else a for a in listed(answers))

    return Cast()


def _to_onnx(module: torch.nn.Module, example: Mapping[str, torch.Tensor], outputs: Sequence[str], where: str) -> Any:
    torch = require("torch", "train")
    require("onnxscript", "optimize")
    inputs = tuple(example.values())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about itself
            program = torch.export.export(module, inputs, dynamic_shapes=batched(module, inputs))
            made = torch.onnx.export(
                program, inputs, input_names=list(example), output_names=list(outputs), dynamo=True, verbose=False
            )
    except Exception as error:  # torch's exporter raises many types
        first = str(error).strip().splitlines()[0]
        raise InvalidInput(f"torch cannot write it as ONNX: {first}", where=where) from error
    return made.model_proto


def _run(proto: Any, batch: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
    torch = require("torch", "train")
    runtime = require("onnxruntime", "optimize")
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in batch.items()}
    return [torch.from_numpy(value) for value in session.run(list(outputs), feeds)]


def _worst(before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]], tolerance: float, where: str) -> float:
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if len(old) != len(new) or any(a.shape != b.shape for a, b in zip(old, new, strict=True)):
            raise InvalidInput("its outputs have other shapes than before", where=where, hint="Nothing was written.")
        for a, b in zip(old, new, strict=True):
            a, b = a.double(), b.double()
            if a.numel():
                worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)))
    if not worst <= tolerance:
        hint = "Nothing was written. Allow more with tolerance=, or keep the dtype."
        raise InvalidInput(f"outputs differ by {worst:.3g}, above {tolerance:g}", where=where, hint=hint)
    return worst
