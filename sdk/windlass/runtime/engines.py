"""Models that load themselves, where no ``model_fn`` does: the file says how to compute, the signature what goes in and out.

    loaded = engines.load(Path("/opt/ml/model"), signature)        # None: there is no such file
    loaded.predict(array)                                          # -> array, or {name: array} for several outputs

| what is there | engine | signature | workers |
|---|---|---|---|
| \\*.onnx | ONNX Runtime | needed | threads |
| \\*.xml with its \\*.bin | OpenVINO | needed | threads |
| \\*.pt2 | torch: an ExportedProgram as `torch.export.save` writes it | needed | processes |
| \\*.skops | scikit-learn, of which skops loads only types that it knows to be safe | needed | processes |
| config.json | transformers: the pipeline of its task, or with a signature of numbers the model itself | | processes |
| model.pt, or one \\*.pt or \\*.pth | torch: TorchScript, as the official PyTorch toolkit's default `model_fn` | | threads |

Those whose workers are threads compute outside Python, without its lock, and may be called from several threads at once. Each
is told how many cores are its own: OpenMP's variable reaches neither ONNX Runtime nor OpenVINO, which count the machine's.

Where there are several, ``loader`` in ``windlass.json`` chooses. Safetensors alone hold weights and no computation, so they
cannot be served without code.
"""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windlass.artifact import Signature


class Unservable(Exception):
    """There is a model file, but it cannot be served as the manifest says. The message says why."""


@dataclass(frozen=True)
class Loaded:
    """A model and how it is called.

    Attributes:
        model: what a `predict_fn` of the user's would get.
        predict: what stands for `predict_fn` where there is none; ``None``: whatever the model itself offers.
        threads: it may be called from several threads at once, and they gain by it.
    """

    model: Any
    predict: Callable[[Any], Any] | None = None
    threads: bool = False


@dataclass(frozen=True)
class Callers:
    """Who will ask the model, and with how many cores.

    Attributes:
        threads: inside an operation, for each worker; 0: the engine's own choice.
        workers: how many there should be, as threads where the model allows that.
        safe: whether it allows it is not the model's to say.
        pinned: whether each of their threads may stay on a core of its own.
    """

    threads: int = 0
    workers: int = 1
    safe: bool = False
    pinned: bool = False

    @property
    def one(self) -> Callers:
        return Callers(self.threads)


ONE_CALLER = Callers()


def load(
    model_dir: Path, signature: Signature | None, loader: str = "", callers: Callers = ONE_CALLER
) -> Loaded | None:
    """The model in the folder.

    Args:
        loader: the manifest's, which decides where several models lie: ``torch-export``, ``transformers``, ``onnx``, ``skops``
            or ``torchscript``.
        callers: the workers that will ask it.

    Raises:
        Unservable: several such models, no signature, a signature that is not the model's, or an engine that is not installed.
    """
    found = {name: paths for name, pattern in _PATTERNS.items() if (paths := pattern(model_dir))}
    if loader in found:
        found = {loader: found[loader]}
    elif loader:
        raise Unservable(f"windlass.json says loader {loader!r}, and {model_dir} holds no such model.")
    if not found:
        return None
    paths = [path for group in found.values() for path in group]
    if len(paths) > 1:
        names = ", ".join(sorted(path.name for path in paths))
        raise Unservable(f"{model_dir} holds {names}. Leave one, or write code/inference.py with model_fn(model_dir).")
    engine, path = next(iter(found)), paths[0]
    if engine == "torchscript":
        return _torchscript(path)
    if engine == "transformers":
        return _transformers(model_dir, signature)
    if signature is None:
        raise Unservable(
            f"{path.name} can be served without code only with a signature: put a signature.json beside it."
        )
    if engine in ("onnx", "openvino"):
        return {"onnx": _onnx, "openvino": _openvino}[engine](path, signature, callers)
    return {"torch-export": _exported, "skops": _skops}[engine](path, signature)


def warm_up(predict: Callable[[Any], Any], signature: Signature) -> None:
    """One prediction of zeros, for what is made at the first only. A model that takes none is warmed by its first request."""
    import numpy as np

    try:
        zeros = {
            tensor.name: np.zeros([_size(axis) for axis in tensor.shape], tensor.dtype) for tensor in signature.inputs
        }
        predict(zeros if len(zeros) > 1 else next(iter(zeros.values())))  # as `codecs.decode` gives them
    except Exception as error:  # noqa: BLE001 - zeros are our idea, so that they do not fit is not the model's fault
        logging.getLogger(__name__).info("no warm-up: %s", error)


def _size(axis: int | str) -> int:
    return axis if isinstance(axis, int) and axis > 0 else 1


def _of_suffix(suffix: str) -> Callable[[Path], list[Path]]:
    return lambda model_dir: sorted(model_dir.glob(f"*.{suffix}"))


def _openvino_graphs(model_dir: Path) -> list[Path]:
    return [path for path in _of_suffix("xml")(model_dir) if path.with_suffix(".bin").is_file()]


def _torchscript_files(model_dir: Path) -> list[Path]:
    usual = model_dir / "model.pt"
    return [usual] if usual.is_file() else sorted([*model_dir.glob("*.pt"), *model_dir.glob("*.pth")])


def _transformers_config(model_dir: Path) -> list[Path]:
    path = model_dir / "config.json"
    try:
        is_one = "model_type" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        is_one = False
    return [path] if is_one else []


_PATTERNS: Mapping[str, Callable[[Path], list[Path]]] = {
    "onnx": _of_suffix("onnx"),
    "openvino": _openvino_graphs,
    "torch-export": _of_suffix("pt2"),
    "skops": _of_suffix("skops"),
    "transformers": _transformers_config,
    "torchscript": _torchscript_files,
}


def _onnx(path: Path, signature: Signature, callers: Callers) -> Loaded:
    try:
        import onnxruntime
    except ImportError as error:
        raise Unservable(f"{path.name} needs ONNX Runtime: add onnxruntime to code/requirements.txt.") from error
    options = onnxruntime.SessionOptions()
    if callers.threads:
        # The session has one set of threads for all callers, each of which computes, too.
        options.intra_op_num_threads = callers.workers * (callers.threads - 1) + 1
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

    return Loaded(session, predict, threads=True)


def _openvino(path: Path, signature: Signature, callers: Callers) -> Loaded:
    try:
        import openvino
    except ImportError as error:
        raise Unservable(f"{path.name} needs OpenVINO: add openvino to code/requirements.txt.") from error
    settings: dict[str, Any] = {"NUM_STREAMS": callers.workers}
    if callers.threads:
        settings["INFERENCE_NUM_THREADS"] = callers.workers * callers.threads
        # OpenVINO counts from the first core, as if the process were alone.
        settings["ENABLE_CPU_PINNING"] = callers.pinned
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    names = [tensor.name for tensor in signature.inputs]
    outputs = [tensor.name for tensor in signature.outputs]
    _same(path, "inputs", names, [port.any_name for port in model.inputs])
    if missing := set(outputs) - {name for port in model.outputs for name in port.names}:
        raise Unservable(
            f"{path.name} has no output {', '.join(map(repr, sorted(missing)))}, which the signature names."
        )
    own = threading.local()  # a request holds the tensors of one inference

    def predict(data: Any) -> Any:
        if not hasattr(own, "request"):
            own.request = model.create_infer_request()
        feeds = _named(data, signature)
        arrays = {name: value.numpy() if hasattr(value, "numpy") else value for name, value in feeds.items()}
        found = own.request.infer(arrays)
        return _answer([found[name].copy() for name in outputs], outputs)

    return Loaded(model, predict, threads=True)


def _exported(path: Path, signature: Signature) -> Loaded:
    torch = _torch(path)
    module = torch.export.load(path).module()
    module.to(_device(torch))
    outputs = [tensor.name for tensor in signature.outputs]

    def predict(data: Any) -> Any:
        feeds = _named(data, signature)
        with torch.inference_mode():
            result = module(*(feeds[tensor.name] for tensor in signature.inputs))
        if isinstance(result, Mapping):
            return {name: result[name] for name in outputs} if len(outputs) > 1 else result[outputs[0]]
        return _answer(result if isinstance(result, tuple | list) else [result], outputs)

    return Loaded(module, predict)


def _torchscript(path: Path) -> Loaded:
    torch = _torch(path)
    try:
        with warnings.catch_warnings(
            action="ignore", category=DeprecationWarning
        ):  # of TorchScript: too late for this file
            model = torch.jit.load(path, map_location=_device(torch))
    except RuntimeError as error:
        raise Unservable(
            f"{path.name} is no TorchScript, so it cannot be served without code. Write code/inference.py with "
            "model_fn(model_dir), or save the model with torch.export.save or torch.jit.save."
        ) from error
    return Loaded(model.eval(), threads=True)


def _skops(path: Path, signature: Signature) -> Loaded:
    try:
        from skops import io
    except ImportError as error:
        raise Unservable(f"{path.name} needs skops and scikit-learn: add skops to code/requirements.txt.") from error
    vouched = path.with_name("trusted_types.json")  # by whoever exported it, see `artifact.loaders`
    trusted = json.loads(vouched.read_bytes()) if vouched.is_file() else []
    if unknown := set(io.get_untrusted_types(file=path)) - set(trusted):
        names = ", ".join(sorted(map(str, unknown)))
        raise Unservable(
            f"{path.name} holds types that skops does not know to be safe: {names}. Load it in a model_fn that trusts them."
        )
    estimator = io.load(path, trusted=trusted)
    calls = {tensor.name: getattr(estimator, _method(tensor.name), None) for tensor in signature.outputs}
    for name, call in calls.items():
        if call is None:
            raise Unservable(f"{path.name} has no {_method(name)}(), which the signature's output {name!r} needs.")

    def predict(data: Any) -> Any:
        import numpy as np

        columns = [_named(data, signature)[tensor.name] for tensor in signature.inputs]
        table = columns[0] if len(columns) == 1 else np.column_stack(columns)
        return _answer([call(table) for call in calls.values() if call], list(calls))

    return Loaded(estimator, predict)


def _method(output: str) -> str:
    """scikit-learn's method for an output."""
    if output in ("probabilities", "probability", "predict_proba"):
        return "predict_proba"
    return output if output in ("decision_function", "transform", "predict_log_proba") else "predict"


def _transformers(model_dir: Path, signature: Signature | None) -> Loaded:
    try:
        import transformers
    except ImportError as error:
        raise Unservable("config.json needs transformers: add it to code/requirements.txt.") from error
    from windlass.runtime import pipelines

    if signature is None or all(_texts(tensor.dtype) for tensor in signature.inputs):
        try:
            pipeline = pipelines.load(model_dir)
        except pipelines.UnknownTask as error:
            raise Unservable(str(error)) from error
        return Loaded(pipeline, pipeline if signature else None)
    import torch

    config = transformers.AutoConfig.from_pretrained(model_dir)
    model = getattr(transformers, (config.architectures or ["AutoModel"])[0]).from_pretrained(model_dir)
    model.to(_device(torch)).eval()
    outputs = [tensor.name for tensor in signature.outputs]

    def predict(data: Any) -> Any:
        with torch.inference_mode():
            result = model(**_named(data, signature))
        return _answer([result[name] for name in outputs], outputs)

    return Loaded(model, predict)


def _texts(dtype: str) -> bool:
    return dtype in ("str", "object") or dtype.startswith(("U", "<U"))


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise Unservable(f"{path.name} needs PyTorch: add torch to code/requirements.txt.") from error
    return torch


def _device(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _named(data: Any, signature: Signature) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {signature.inputs[0].name: data}


def _answer(values: Sequence[Any], names: Sequence[str]) -> Any:
    if len(values) != len(names):
        raise ValueError(f"the model gave {len(values)} outputs; the signature names {', '.join(names)}")
    return values[0] if len(names) == 1 else dict(zip(names, values, strict=True))


def _same(path: Path, what: str, said: Sequence[str], found: Sequence[str]) -> None:
    if set(said) != set(found):
        raise Unservable(f"{path.name} has the {what} {', '.join(found)}; the signature says {', '.join(said)}.")
