"""Models that need no `inference.py`: the file says how to compute, the signature in ``windlass.json`` what goes in and out.

    predict = engines.load(Path("/opt/ml/model"), signature)       # None: there is no such file
    predict(array)                                                 # -> array, or {name: array} for several outputs

| file | engine |
|---|---|
| \\*.onnx | ONNX Runtime, with as many threads as the worker has cores |
| \\*.pt2 | torch: an ExportedProgram as `torch.export.save` writes it |

Safetensors hold weights and no computation, so they cannot be served without code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windlass.artifact import Signature

Predict = Callable[[Any], Any]


class Unservable(Exception):
    """There is a model file, but it cannot be served as the manifest says. The message says why."""


def load(model_dir: Path, signature: Signature | None) -> Predict | None:
    """The model's own computation.

    Raises:
        Unservable: several such files, no signature, a signature that is not the model's, or an engine that is not installed.
    """
    found = sorted(path for suffix in ("onnx", "pt2") for path in model_dir.glob(f"*.{suffix}"))
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise Unservable(f"{model_dir} holds {names}. Leave one, or write code/inference.py with model_fn(model_dir).")
    if signature is None:
        raise Unservable(
            f"{found[0].name} can be served without code only with a signature: put a signature.json beside it."
        )
    return _onnx(found[0], signature) if found[0].suffix == ".onnx" else _exported(found[0], signature)


def _onnx(path: Path, signature: Signature) -> Predict:
    try:
        import onnxruntime
    except ImportError as error:
        raise Unservable(f"{path.name} needs ONNX Runtime: add onnxruntime to code/requirements.txt.") from error
    options = onnxruntime.SessionOptions()
    # It counts the machine's cores, not this worker's share of them.
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    outputs = [tensor.name for tensor in signature.outputs]
    _same(path, "inputs", [tensor.name for tensor in signature.inputs], [node.name for node in session.get_inputs()])
    missing = set(outputs) - {node.name for node in session.get_outputs()}
    if missing:
        raise Unservable(
            f"{path.name} has no output {', '.join(map(repr, sorted(missing)))}, which the signature names."
        )

    def predict(data: Any) -> Any:
        feeds = _named(data, signature)
        arrays = {name: value.numpy() if hasattr(value, "numpy") else value for name, value in feeds.items()}
        return _answer(session.run(outputs, arrays), outputs)

    return predict


def _exported(path: Path, signature: Signature) -> Predict:
    try:
        import torch
    except ImportError as error:
        raise Unservable(f"{path.name} needs PyTorch: add torch to code/requirements.txt.") from error
    module = torch.export.load(path).module()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module.to(device)
    outputs = [tensor.name for tensor in signature.outputs]

    def predict(data: Any) -> Any:
        feeds = _named(data, signature)
        with torch.inference_mode():
            result = module(*(feeds[tensor.name] for tensor in signature.inputs))
        if isinstance(result, Mapping):
            return {name: result[name] for name in outputs} if len(outputs) > 1 else result[outputs[0]]
        return _answer(result if isinstance(result, tuple | list) else [result], outputs)

    return predict


def _named(data: Any, signature: Signature) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {signature.inputs[0].name: data}


def _answer(values: Sequence[Any], names: Sequence[str]) -> Any:
    if len(values) != len(names):
        raise ValueError(f"the model gave {len(values)} outputs; the signature names {', '.join(names)}")
    return values[0] if len(names) == 1 else dict(zip(names, values, strict=True))


def _same(path: Path, what: str, said: Sequence[str], found: Sequence[str]) -> None:
    if set(said) != set(found):
        raise Unservable(f"{path.name} has the {what} {', '.join(found)}; the signature says {', '.join(said)}.")
