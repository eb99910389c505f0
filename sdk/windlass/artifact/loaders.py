"""How a bundle is loaded whose author wrote no ``inference.py``: found by its files, driven by its manifest. Files only.

    loaders.find(names)                 # -> "onnx"; "" when no file says how to compute
    loaders.code("onnx")                # -> {"code/inference.py": Path, ...}: what goes into the bundle

The code is plain: the hooks of the official toolkits and the model's own library, so that it serves in any of their containers.
Joblib, a pickle, is never found; it has to be asked for by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from windlass.errors import InvalidInput, choices

TORCH_EXPORT, ONNX, SKOPS, TRANSFORMERS, JOBLIB = "torch-export", "onnx", "skops", "transformers", "joblib"
PACKED = "packed"
LOADERS = (TORCH_EXPORT, ONNX, SKOPS, TRANSFORMERS, PACKED, JOBLIB)
INFERENCE = "code/inference.py"
PACKING = "packed.json"
"""Beside the graph of an encoder without padding: what the code that runs it has to know."""
TRUSTED = "trusted_types.json"
"""Beside a skops file: types that skops does not know and that whoever exported it vouches for."""

_BY_SUFFIX = {".pt2": TORCH_EXPORT, ".onnx": ONNX, ".skops": SKOPS}
_CODE = Path(__file__).parent / "serving"


def find(names: Collection[str]) -> str:
    """The loader for the files of a model folder, by their names in the bundle."""
    roots = [name for name in names if "/" not in name]
    if PACKING in roots:
        return PACKED
    found = [_BY_SUFFIX[PurePosixPath(name).suffix] for name in roots if PurePosixPath(name).suffix in _BY_SUFFIX]
    if len(found) == 1:
        return found[0]
    weights = {"model.safetensors", "model.safetensors.index.json"}
    return TRANSFORMERS if not found and "config.json" in roots and weights.intersection(roots) else ""


def code(loader: str) -> Mapping[str, Path]:
    """Name in the bundle -> file, of the code that serves what the loader loads.

    Raises:
        InvalidInput: there is no such loader; the message lists those there are.
    """
    if loader not in LOADERS:
        raise InvalidInput(f"loader={loader!r}", where="Building an artifact", hint=choices(loader, LOADERS))
    files = {INFERENCE: _CODE / f"{loader.replace('-', '_')}.py"}
    shared = {TRANSFORMERS: [], PACKED: ["windlass_tensors.py", "windlass_packing.py"]}.get(
        loader, ["windlass_tensors.py"]
    )
    return {**files, **{f"code/{name}": _CODE / name for name in shared}}
