"""An ONNX graph as a torch module, for the operators that networks are mostly made of; others are refused by name.

    module = OnnxModule(onnx.load("model.onnx"), ["x"])      # forward takes the inputs in that order; weights are parameters

The libraries on PyPI that do this need torchvision, and import it for every graph; the best known had its last release in 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from windlass.errors import InvalidInput
from windlass.optimize.onnx_operators import ON_SIZES, OPERATORS, Attributes


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
        self._numbers: dict[str, Any] = {
            name: value.tolist()
            for name, value in weights.items()
            if not value.is_floating_point() or value.numel() <= 8
        }
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
        if not tensor.is_floating_point() or tensor.numel() <= 8:
            self._numbers[name] = tensor.tolist()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Sizes, and what is computed from them alone, are Python's numbers and lists: so a shape may depend on the batch.
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        values |= {name: getattr(self, place) for name, place in self._places.items()}
        for kind, names, outputs, attributes in self._nodes:
            answer = self._answer(kind, names, {**attributes, "outputs": len(outputs)}, values)
            values |= zip(outputs, answer if isinstance(answer, tuple) else (answer,), strict=False)
        return tuple(_tensor(values[name]) for name in self._outputs)

    def _answer(self, kind: str, names: Sequence[str], attributes: Attributes, values: Mapping[str, Any]) -> Any:
        numbers = [self._numbers.get(name, values[name]) if name else None for name in names]
        of_sizes = any(name and not isinstance(values[name], torch.Tensor) for name in names)
        if of_sizes and kind in ON_SIZES and not any(isinstance(number, torch.Tensor) for number in numbers):
            answer = ON_SIZES[kind](attributes, *numbers)
            if answer is not NotImplemented:
                return answer
        run, numeric = OPERATORS[kind]
        given: list[Any] = []
        for position, name in enumerate(names):
            number = numbers[position]
            if position not in numeric:
                given.append(_tensor(values[name]) if name else None)
            elif isinstance(number, torch.Tensor):
                hint = "Serve it as ONNX: windlass.optimize.export(dest, graph)."
                raise InvalidInput(f"{kind} computes its {name!r} as it runs", where="Running an ONNX graph", hint=hint)
            else:
                given.append(number)
        return run(attributes, *given)


def _tensor(value: Any) -> Any:
    """Numbers as ONNX has them, where a tensor is wanted."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list):
        return torch.stack([_tensor(item) for item in value]) if value else torch.zeros(0, dtype=torch.int64)
    dtype = torch.bool if isinstance(value, bool | torch.SymBool) else torch.int64
    return torch.scalar_tensor(value, dtype=dtype)
