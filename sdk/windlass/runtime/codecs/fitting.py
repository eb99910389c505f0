"""Which media types carry what a signature describes. Pure: what the readers and writers beside it refuse for its sake alone.

fitting.takes(signature.inputs)                    # -> ("application/json", "text/csv", ...)
fitting.gives(signature.outputs)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from windlass.runtime.codecs import images
from windlass.runtime.codecs.media import (
    ARROW,
    CSV,
    IMAGES,
    IN,
    JPEG,
    JSON,
    JSON_LINES,
    NPY,
    NPZ,
    OCTETS,
    OUT,
    PARQUET,
    PNG,
)

if TYPE_CHECKING:
    from windlass.artifact import Tensor


def takes(inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """Those of `media.IN` in which a request can be right."""
    kinds = {JSON, NPZ}
    if _tabular(inputs) and all(tensor.shape for tensor in inputs):
        kinds |= {JSON_LINES, *_tables(inputs)}
    if len(inputs) == 1:
        tensor = inputs[0]
        kinds.add(NPY)
        if len(tensor.shape) in (1, 2) and _kind(tensor) != "b":  # CSV has numbers and texts
            kinds.add(CSV)
        if _kind(tensor) in "biufc" and sum(isinstance(size, str) for size in tensor.shape) <= 1:
            kinds.add(OCTETS)
        if images.layout(tensor)[0]:
            kinds |= set(IMAGES)
    return tuple(kind for kind in IN if kind in kinds)


def gives(outputs: Sequence[Tensor]) -> tuple[str, ...]:
    """Those of `media.OUT` that a prediction which is as the signature says fits; one output alone comes without its name."""
    kinds = {NPZ}
    if all(_kind(tensor) != "c" for tensor in outputs):
        kinds |= {JSON, JSON_LINES}
    if _tabular(outputs) and (len(outputs) == 1 or all(tensor.shape for tensor in outputs)):
        kinds |= _tables(outputs)
    if len(outputs) == 1:
        tensor = outputs[0]
        kinds.add(NPY)
        if len(tensor.shape) <= 2:
            kinds.add(CSV)
        if _kind(tensor) in "biufc":
            kinds.add(OCTETS)
        if images.writable(tensor):
            kinds |= {PNG, JPEG}
    return tuple(kind for kind in OUT if kind in kinds)


def _tabular(tensors: Sequence[Tensor]) -> bool:
    """Whether they can have equally many rows."""
    rows = [tensor.shape[0] for tensor in tensors if tensor.shape]
    return len({count for count in rows if isinstance(count, int)}) <= 1


def _tables(tensors: Sequence[Tensor]) -> set[str]:
    return set() if any(_kind(tensor) == "c" for tensor in tensors) else {ARROW, PARQUET}


def _kind(tensor: Tensor) -> str:
    """As `numpy.dtype.kind` names it."""
    name = tensor.dtype.lstrip("<>=|")
    return "U" if name in ("str", "object") or name[0] == "U" else name[0]
