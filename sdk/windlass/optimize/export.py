"""Any framework's model as a folder that serves itself: the model in its own format, and the signature of what goes in and out.

    export("out/model", network, {"image": torch.zeros(2, 1, 28, 28)}, outputs=("logits",))     # a torch module
    export("out/model", estimator, X[:4])                                                       # scikit-learn, by skops
    export("out/model", "classifier.onnx")                                                      # ONNX: a file or a ModelProto
    export("out/model", "my-transformers-folder/")
    wl.register("out/model", model="digits")

No pickle is written, and loading needs no class of yours. The ``inference.py`` that serves it comes into the bundle when
that is built (``artifact.loaders``).

| model | written | checked against the model itself |
|---|---|---|
| torch.nn.Module, ExportedProgram | ``model.pt2``, by torch.export | at batch sizes 1 and that of the example |
| ONNX | ``model.onnx`` | the ONNX checker; with an example, that ONNX Runtime computes it |
| scikit-learn estimator | ``model.skops`` | predictions are equal |
| transformers folder or model | its own files, weights as safetensors | |
| folder with ``inference.py`` | as it is | |
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass import artifact
from windlass.artifact import archive, loaders
from windlass.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    import torch

PROGRAM, GRAPH, ESTIMATOR = "model.pt2", "model.onnx", "model.skops"
_PROTOBUF_MOST = 2_000_000_000  # bytes; larger graphs keep their weights beside them (protobuf's limit is 2 GiB)


def export(
    dest: str | Path,
    model: Any,
    example: Any = None,
    *,
    outputs: Sequence[str] = ("output",),
    tokenizer: Any = None,
    trusted_types: Sequence[str] = (),
) -> Path:
    """Write a model, with what serves it, into a folder.

    Args:
        dest: absent or empty; it appears whole or not at all.
        model: see the table above.
        example: torch: a batch of at least two for each input by name, in the order in which the model takes them.
            scikit-learn: some rows. ONNX: an array for each input by name; may be left out.
        outputs: torch: a name for each output.
        tokenizer: of a transformers model that is given as an object.
        trusted_types: scikit-learn: types that skops does not know and that you vouch for.

    Raises:
        InvalidInput: nothing here can be served, or what was written does not answer as the model does.
        MissingExtra: the model's library is not installed.
    """
    where = f"Exporting {_called(model)}"
    libraries = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if isinstance(model, str | Path):
        model = Path(model)
        if not model.exists():
            raise InvalidInput(f"{model} does not exist", where=where)
    with artifact.appears(Path(dest), where) as folder:
        if isinstance(model, Path) and model.is_dir():
            _folder(folder, model, where)
        elif isinstance(model, Path) and model.suffix == ".pt2":
            torch = require("torch", "train")
            _torch(folder, torch.export.load(model), example, outputs, where)
        elif (isinstance(model, Path) and model.suffix == ".onnx") or "onnx" in libraries:
            _onnx(folder, model, example, where)
        elif "transformers" in libraries:
            _pretrained(folder, model, tokenizer, where)
        elif "torch" in libraries:
            _torch(folder, model, example, outputs, where)
        elif "sklearn" in libraries:
            _sklearn(folder, model, example, trusted_types, where)
        else:
            hint = (
                "Give a torch module, an ExportedProgram, an ONNX graph, an estimator, or a folder with inference.py."
            )
            raise InvalidInput("no loader serves it", where=where, hint=hint)
    return Path(dest)


def _called(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else f"a {type(model).__name__}"


def require(module: str, extra: str, why: str = "Exporting this model") -> Any:
    """A library of the model's, or the extra that has it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(error.name or module, extra, why) from error


def describe(folder: Path, signature: Mapping[str, Any], packages: Sequence[str]) -> None:
    """Put the signature and the versions of what serves it beside a model."""
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "signature.json").write_text(json.dumps(signature, indent=1), encoding="utf-8")
    pins = [f"{package}=={metadata.version(package).partition('+')[0]}" for package in packages]
    (folder / "code" / "requirements.txt").write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------- folders


def _folder(dest: Path, source: Path, where: str) -> None:
    files = dict(archive.members(source))
    code = {"inference.py", loaders.INFERENCE}.intersection(files)
    if not code and "config.json" in files and "pytorch_model.bin" in files and not loaders.find(files):
        transformers = require("transformers", "train")
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind = getattr(transformers, (config.architectures or ["AutoModel"])[0])
        # The library reads it with weights_only.
        model = kind.from_pretrained(source)
        model.save_pretrained(dest)
        files = {name: path for name, path in files.items() if not name.endswith(".bin")}
    elif not code and not loaders.find(files):
        hint = "It needs code/inference.py, or one of *.pt2, *.onnx, *.skops, or config.json with model.safetensors."
        raise InvalidInput("no file in it says how to compute", where=where, hint=hint)
    for name, path in files.items():
        if not (dest / name).exists():
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, dest / name)
    if not code and (dest / "config.json").is_file() and not (dest / "code" / "signature.json").is_file():
        _describe_transformers(dest)


def _pretrained(dest: Path, model: Any, tokenizer: Any, where: str) -> None:
    if not hasattr(model, "save_pretrained"):
        raise InvalidInput("it has no save_pretrained", where=where, hint="Give the model that the pipeline holds.")
    model.save_pretrained(dest, safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(dest)
    _describe_transformers(dest)


def _describe_transformers(folder: Path) -> None:
    sentences = (folder / "modules.json").is_file()
    hidden = json.loads((folder / "config.json").read_bytes()).get("hidden_size", "hidden")
    answer = {"name": "answer", "dtype": "object", "shape": ["batch"]}
    embedding = {"name": "embedding", "dtype": "float32", "shape": ["batch", hidden]}
    signature = {
        "inputs": [{"name": "inputs", "dtype": "str", "shape": ["batch"]}],
        "outputs": [embedding if sentences else answer],
        "content_types": ["application/json", "text/plain"],
        "example": {"inputs": ["a text"]},
    }
    describe(folder, signature, ("torch", "transformers", "safetensors"))


# ------------------------------------------------------------------------------------------------------------------ torch


def _torch(
    dest: Path,
    model: Any,
    example: Mapping[str, torch.Tensor] | None,
    outputs: Sequence[str],
    where: str,
) -> None:
    torch = require("torch", "train")
    if not isinstance(example, Mapping) or not example:
        raise InvalidInput("no example was given", where=where, hint='As in {"x": torch.zeros(2, 4)}.')
    batches = {tensor.shape[0] if tensor.ndim else 0 for tensor in example.values()}
    if len(batches) != 1 or min(batches) < 2:
        raise InvalidInput("give each input as a batch, of one size of at least 2", where=where)
    inputs = tuple(example.values())
    with torch.no_grad():
        if isinstance(model, torch.export.ExportedProgram):
            program, expected = model, None
        else:
            training = model.training
            model.eval()
            program = torch.export.export(model, inputs, dynamic_shapes=batched(model, inputs))
            expected = listed(model(*(tensor[:1] for tensor in inputs)))
            model.train(training)
        answers = listed(program.module()(*inputs))
        single = listed(program.module()(*(tensor[:1] for tensor in inputs)))
    if len(answers) != len(outputs):
        raise InvalidInput(f"{len(answers)} outputs, and {len(outputs)} names for them", where=where)
    for name, before, after in zip(outputs, expected or single, single, strict=True):
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise InvalidInput(f"output {name!r} of the exported program differs from the module's", where=where)
    signature = {
        "inputs": [_tensor(name, tensor) for name, tensor in example.items()],
        "outputs": [_tensor(name, tensor) for name, tensor in zip(outputs, answers, strict=True)],
        "content_types": _types(len(example)),
        "accept_types": _types(len(outputs)),
        "example": {name: tensor[:1].tolist() for name, tensor in example.items()},
    }
    describe(dest, signature, ("torch", "numpy"))
    torch.export.save(program, dest / PROGRAM)


def batched(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
    """Dynamic shapes for torch.export: the first dimension of each input is the batch."""
    import torch

    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    # A module with ``*inputs`` takes them as one tuple.
    return (shapes,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else shapes


def listed(answer: Any) -> list[Any]:
    """A model's answer as a list of tensors."""
    if isinstance(answer, Mapping):
        return list(answer.values())
    return list(answer) if isinstance(answer, tuple | list) else [answer]


def _tensor(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    return {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["batch", *tensor.shape[1:]]}


def _types(arrays: int) -> list[str]:
    """Content types of so many arrays: CSV and NPY hold one."""
    return ["application/json", "text/csv", "application/x-npy"] if arrays == 1 else ["application/json"]


# ------------------------------------------------------------------------------------------------------------------- ONNX


def _onnx(dest: Path, model: Any, example: Mapping[str, Any] | None, where: str) -> None:
    onnx = require("onnx", "optimize")
    runtime = require("onnxruntime", "optimize")
    try:
        graph = onnx.load(model) if isinstance(model, Path) else model
        large = graph.ByteSize() > _PROTOBUF_MOST
        onnx.save_model(graph, dest / GRAPH, save_as_external_data=large, location=f"{GRAPH}.data")
        onnx.checker.check_model(dest / GRAPH)
        session = runtime.InferenceSession(str(dest / GRAPH), providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types: protobuf's, the checker's, the runtime's own
        raise InvalidInput(f"no ONNX graph that ONNX Runtime runs: {error}", where=where) from error
    inputs = [_node(node, where) for node in session.get_inputs()]
    outputs = [_node(node, where) for node in session.get_outputs()]
    signature: dict[str, Any] = {"inputs": inputs, "outputs": outputs}
    signature |= {"content_types": _types(len(inputs)), "accept_types": _types(len(outputs))}
    if example is not None:
        session.run(None, {name: _numpy(value) for name, value in example.items()})
        signature["example"] = {name: _numpy(value)[:1].tolist() for name, value in example.items()}
    describe(dest, signature, ("onnxruntime", "numpy"))


_ONNX_TYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16", "bool": "bool", "string": "str",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}  # fmt: skip


def _node(node: Any, where: str) -> dict[str, Any]:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _ONNX_TYPES:
        hint = "Sequences and maps have no dtype and shape: export the graph without its ZipMap."
        raise InvalidInput(f"{node.name!r} is a {node.type}", where=where, hint=hint)
    # A dimension without a name is dynamic, too; the first one is then the batch.
    shape = [
        size if isinstance(size, int | str) and size != "" else ("batch" if axis == 0 else f"{node.name}_{axis}")
        for axis, size in enumerate(node.shape)
    ]
    return {"name": node.name, "dtype": _ONNX_TYPES[kind], "shape": shape}


def _numpy(value: Any) -> Any:
    import numpy as np

    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


# ----------------------------------------------------------------------------------------------------------- scikit-learn


def _sklearn(dest: Path, model: Any, example: Any, trusted_types: Sequence[str], where: str) -> None:
    skops = require("skops.io", "train")
    import numpy as np

    if example is None:
        raise InvalidInput("no example was given", where=where, hint="Give some rows, as in X[:4].")
    rows = np.asarray(example)
    if rows.ndim != 2 or not len(rows) or rows.dtype == object:
        raise InvalidInput(
            f"the example has shape {rows.shape} and dtype {rows.dtype}, not rows of one dtype", where=where
        )
    skops.dump(model, dest / ESTIMATOR)
    strange = [n for n in skops.get_untrusted_types(file=dest / ESTIMATOR) if n not in trusted_types]
    if strange:
        hint = f"If you vouch for them: trusted_types={strange!r}."
        raise InvalidInput(f"skops does not know {', '.join(strange)}", where=where, hint=hint)
    back = skops.load(dest / ESTIMATOR, trusted=list(trusted_types))
    before, after = _predictions(model, rows), _predictions(back, rows)
    for name, value in before.items():
        if not np.array_equal(value, after[name], equal_nan=value.dtype.kind == "f"):
            raise InvalidInput(f"{name} of the estimator differs after it was written and read", where=where)

    def array(name: str, value: Any) -> dict[str, Any]:
        dtype = "str" if value.dtype.kind in "UO" else str(value.dtype)
        return {"name": name, "dtype": dtype, "shape": ["batch", *value.shape[1:]]}

    signature = {
        "inputs": [array("features", rows)],
        "outputs": [array(name, value) for name, value in before.items()],
        "content_types": _types(1),
        "accept_types": _types(len(before)),
        "example": {"features": rows[:1].tolist()},
    }
    describe(dest, signature, ("scikit-learn", "skops", "numpy"))
    if trusted_types:
        (dest / loaders.TRUSTED).write_text(json.dumps(sorted(trusted_types)), encoding="utf-8")


def _predictions(model: Any, rows: Any) -> dict[str, Any]:
    """As the code that serves it (``artifact/serving/skops.py``) answers."""
    import numpy as np

    if not hasattr(model, "predict"):
        return {"output": np.asarray(model.transform(rows))}
    answers = {"prediction": np.asarray(model.predict(rows))}
    if hasattr(model, "predict_proba"):
        answers["probabilities"] = np.asarray(model.predict_proba(rows))
    return answers
