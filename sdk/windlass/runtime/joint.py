"""Requests joined into one batch along the first dimension, and predictions cut along it again.

    axis = Axis.of(signature)                          # None: the signature promises no such dimension
    for group in axis.groups(datas): ...               # positions of those that fit together
    batch = axis.join([datas[index] for index in group])
    parts = axis.split(predict(batch), [axis.rows(datas[index]) for index in group])

Only what is exactly as the signature says is joined or cut: a guess here would hand one caller's answer to another.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windlass.artifact import Signature, Tensor


class Mismatch(Exception):
    """What came back from the model cannot be shared out among the requests."""


class Axis:
    """The first dimension of every input and output, when all give it one name."""

    def __init__(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._kinds = {tensor.name: tensor for tensor in inputs}

    @classmethod
    def of(cls, signature: Signature) -> Axis | None:
        tensors = (*signature.inputs, *signature.outputs)
        first = {tensor.shape[0] if tensor.shape else 0 for tensor in tensors}
        inner = {size for tensor in tensors for size in tensor.shape[1:]}
        name = next(iter(first))
        if len(first) != 1 or not isinstance(name, str) or name in inner:
            return None
        return cls(signature.inputs, signature.outputs)

    def rows(self, data: Any) -> int:
        return len(next(iter(data.values())) if isinstance(data, Mapping) else data)

    def groups(self, datas: Sequence[Any]) -> list[list[int]]:
        """Positions of those whose inner shapes and types are the same. What the signature does not describe stands alone."""
        groups: dict[Hashable, list[int]] = {}
        for index, data in enumerate(datas):
            groups.setdefault(self._key(data) or index, []).append(index)
        return list(groups.values())

    def join(self, datas: Sequence[Any]) -> Any:
        if isinstance(datas[0], Mapping):
            return {name: _concatenate([data[name] for data in datas]) for name in datas[0]}
        return _concatenate(datas)

    def split(self, prediction: Any, rows: Sequence[int]) -> list[Any]:
        """The prediction, shared out by the number of rows that each request brought.

        Raises:
            Mismatch: it is not as the signature's outputs say.
        """
        total, names = sum(rows), [tensor.name for tensor in self._outputs]
        bounds = [sum(rows[:index]) for index in range(len(rows) + 1)]
        cuts = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
        if isinstance(prediction, Mapping):
            if set(prediction) != set(names):
                raise Mismatch(
                    f"the prediction holds {sorted(map(str, prediction))}; the signature's outputs are {names}."
                )
            for name, value in prediction.items():
                _check(value, total, f"output {name!r}")
            return [{name: value[cut] for name, value in prediction.items()} for cut in cuts]
        if len(names) > 1:
            if not isinstance(prediction, list | tuple) or len(prediction) != len(names):
                raise Mismatch(
                    f"the prediction is one {type(prediction).__name__}; the signature's outputs are {names}."
                )
            for name, value in zip(names, prediction, strict=True):
                if not hasattr(value, "shape"):
                    raise Mismatch(f"output {name!r} is no array but {type(value).__name__}.")
                _check(value, total, f"output {name!r}")
            return [type(prediction)([value[cut] for value in prediction]) for cut in cuts]
        _check(prediction, total, f"output {names[0]!r}")
        return [prediction[cut] for cut in cuts]

    def _key(self, data: Any) -> Hashable:
        """Equal for requests that can be joined; ``None``: this one cannot."""
        if isinstance(data, Mapping):
            if data.keys() != self._kinds.keys():
                return None
            parts = [(name, self._part(self._kinds[name], value)) for name, value in data.items()]
        elif len(self._inputs) == 1:
            parts = [("", self._part(self._inputs[0], data))]
        else:
            return None
        counts = {part[0] for _, part in parts if part}
        if len(counts) != 1 or not all(part for _, part in parts):
            return None
        return type(data), tuple((name, part[1:]) for name, part in parts if part)

    def _part(self, tensor: Tensor, value: Any) -> tuple[Any, ...] | None:
        if isinstance(value, list):
            return (len(value), "list") if tensor.dtype in ("str", "object") or tensor.dtype[0] in "U<" else None
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) != len(tensor.shape):
            return None
        return shape[0], type(value), str(value.dtype), tuple(shape[1:]), str(getattr(value, "device", ""))


def _check(value: Any, total: int, what: str) -> None:
    if not isinstance(value, list) and not getattr(value, "shape", None):
        raise Mismatch(f"{what} is no array but {type(value).__name__}.")
    if len(value) != total:
        raise Mismatch(f"{what} has {len(value)} rows for {total} that were asked for.")


def _concatenate(values: Sequence[Any]) -> Any:
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values[0], torch.Tensor):
        return torch.cat(list(values))
    import numpy as np

    return np.concatenate(values)
