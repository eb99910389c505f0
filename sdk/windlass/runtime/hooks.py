"""The user's `inference.py`, with the hooks of the official PyTorch and Hugging Face inference toolkits.

    def model_fn(model_dir): ...                          # -> model
    def input_fn(body, content_type): ...                 # -> data
    def predict_fn(data, model): ...                      # -> prediction
    def output_fn(prediction, accept): ...                # -> body, or (body, content type)

    def transform_fn(model, body, content_type, accept):  # or this one in place of the last three
    def model_warmup_fn(model_dir, model): ...            # before the first request
    def predict_batch_fn(datas, model): ...               # -> as many predictions: predict_fn for several requests at once

    max_concurrency = 32                                  # so many calls at once, in threads: the model batches by itself
    thread_safe = True                                    # the workers may be threads: the engine releases the GIL

Each may take one more parameter, the `Context`. A hook that is not there has a default: typed by the signature in
``windlass.json``, else by what came; without a `model_fn`, the model is one that loads itself (see `engines`). Predictions of
a `transformers` pipeline are read and written as the Hugging Face toolkit does (see `pipelines`), tensors as the PyTorch
toolkit does: by way of Python's numbers, so that NPY holds 64-bit floats. As in the official toolkits, JSON and CSV bodies
reach `input_fn` and `transform_fn` as str and all others as bytes, and an Accept that is absent or ``*/*`` reaches `output_fn`
as the default one.

    handler = Handler.load(Path("/opt/ml/model"), Path("/opt/ml/model/code"), "inference.py", "application/json")
    reply = handler(Invocation(body, headers))
    replies = handler.answer(invocations)                 # in one batch, where the model takes batches

A model takes batches when there is a `predict_batch_fn`, which gets a list of what `input_fn` gave and returns a list as
long; or when in the signature the first dimension of every input and output has one name (`batch`, say), so that requests can
be joined and predictions be cut along it. A request that makes a batch fail fails alone.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from windlass.runtime import codecs, engines, joint, pipelines
from windlass.runtime.measures import Measures

if TYPE_CHECKING:
    from windlass.artifact import Signature, Tensor

INFERENCE_ID = "x-amzn-sagemaker-inference-id"
REQUEST_ID = "x-amzn-requestid"
CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"

# What the official toolkits call each hook with, before the optional context.
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "pre_model_fn": ("model_dir",),
    "model_fn": ("model_dir",),
    "model_warmup_fn": ("model_dir", "model"),
    "input_fn": ("body", "content_type"),
    "predict_fn": ("data", "model"),
    "output_fn": ("prediction", "accept"),
    "transform_fn": ("model", "body", "content_type", "accept"),
    "predict_batch_fn": ("datas", "model"),
}


HOOKS = frozenset(_ARGUMENTS)


class HookError(Exception):
    """`inference.py` breaks the contract. The message says how; there is no traceback worth showing."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One request. Header names are in lower case. ``cancelled`` tells whether nobody waits for the answer any more."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    cancelled: Callable[[], bool] = bool  # never: bool() is False


@dataclass(slots=True)
class Reply:
    """One answer.

    Attributes:
        error: the traceback for the log when a hook raised.
        stream: the parts of the body, when the hook gave a generator: they go out as they come, see `chunks`.
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None
    stream: Iterator[Any] | None = None


class Context:
    """What the hooks may ask about the request, and say about the answer.

        context.inference_id, context.custom_attributes, context.headers["x-my-header"]
        context.set_response_header(0, "X-Model", "v2")
        context.metrics.add_metric("Confidence", 0.93)        # to CloudWatch and /metrics: see `measures`
        for step in steps:
            if context.cancelled: break                       # the caller has hung up, or its deadline is past

    The methods with an index are those of the official toolkits' context, where a batch may hold several requests; here a
    context always belongs to one, and the index is ignored.
    """

    def __init__(
        self,
        system_properties: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        metrics: Measures | None = None,
        cancelled: Callable[[], bool] = bool,
    ) -> None:
        self.system_properties, self._cancelled = system_properties, cancelled
        self.metrics = metrics or Measures()
        self.headers: Mapping[str, str] = headers or {}
        self.response_status = 200
        self.response_headers: dict[str, str] = {}
        self._request_id = ""

    @property
    def model_name(self) -> str:
        """In multi-model mode the name that it was loaded under."""
        return str(self.system_properties.get("model_name", "model"))

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more, in a batch not one of the callers. It costs microseconds to ask."""
        return self._cancelled()

    @property
    def inference_id(self) -> str | None:
        """``X-Amzn-SageMaker-Inference-Id``: what late labels refer to."""
        return self.headers.get(INFERENCE_ID)

    @property
    def custom_attributes(self) -> str | None:
        """``X-Amzn-SageMaker-Custom-Attributes``, as the caller sent it."""
        return self.headers.get(CUSTOM_ATTRIBUTES)

    @property
    def request_processor(self) -> list[Context]:
        return [self]

    def get_request_properties(self) -> Mapping[str, str]:
        return self.headers

    def get_all_request_header(self, idx: int = 0) -> Mapping[str, str]:
        return self.headers

    def get_request_header(self, idx: int, key: str) -> str | None:
        return self.headers.get(key.lower())

    def get_request_id(self, idx: int = 0) -> str:
        if not self._request_id:
            import uuid

            self._request_id = self.headers.get(REQUEST_ID) or str(uuid.uuid4())
        return self._request_id

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int = 0) -> str | None:
        return self.response_headers.get("content-type")

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        if not 200 <= code <= 599:
            raise ValueError(f"response status {code!r} is not between 200 and 599")
        self.response_status = code

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        key, value = str(key).lower(), str(value)
        if not key.isascii() or not key.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{key!r} is no name for a response header")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"response header {key!r} holds what HTTP does not carry: {value!r}")
        self.response_headers[key] = value


def _cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


class _Hook:
    """A function of the user's, called with the context only if it has a parameter for it."""

    __slots__ = ("_function", "_wants_context")

    def __init__(self, name: str, function: Any) -> None:
        arguments = _ARGUMENTS[name]
        if not callable(function):
            raise HookError(f"{name} is not a function but {function!r}.")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise HookError(f"{name} is async. Hooks are plain functions: they run in threads of their own.")
        # The same rule as the official toolkit's: it goes by the number of parameters alone.
        takes = len(inspect.signature(function).parameters)
        if takes not in (len(arguments), len(arguments) + 1):
            line = function.__code__.co_firstlineno if inspect.isfunction(function) else "?"
            raise HookError(
                f"{name} (line {line}) takes {takes} parameters. Define it as {name}({', '.join(arguments)}) or "
                f"{name}({', '.join(arguments)}, context)."
            )
        self._function: Callable[..., Any] = function
        self._wants_context = takes > len(arguments)

    @property
    def wants_context(self) -> bool:
        return self._wants_context

    def __call__(self, context: Context, *arguments: Any) -> Any:
        return self._function(*arguments, context) if self._wants_context else self._function(*arguments)


class _Call:
    """One invocation on its way through the hooks."""

    __slots__ = ("accept", "context", "data", "invocation", "prediction", "reply")

    def __init__(self, invocation: Invocation, context: Context, accept: str) -> None:
        self.invocation, self.context, self.accept = invocation, context, accept
        self.data: Any = None
        self.prediction: Any = None
        self.reply: Reply | None = None


class Handler:
    """Answers invocations with a loaded model. Calls may come from several threads at once."""

    def __init__(
        self,
        model: Any,
        hooks: Mapping[str, _Hook],
        model_dir: Path,
        signature: Signature | None,
        default_accept: str = "",
        predict: Callable[[Any], Any] | None = None,
        concurrency: int = 1,
        threads: int = 1,
        measures: Measures | None = None,
    ) -> None:
        self._model, self.concurrency, self.threads = model, concurrency, threads
        self.measures = measures or Measures()
        self._default_accept = default_accept or (signature.accept_types[0] if signature else codecs.JSON)
        self._device = "cuda" if _cuda() else "cpu"
        self._properties = _properties(model_dir)
        self._transform, self._input = hooks.get("transform_fn"), hooks.get("input_fn")
        self._predict, self._output = hooks.get("predict_fn"), hooks.get("output_fn")
        self._predict_batch = hooks.get("predict_batch_fn")
        self._inputs: tuple[Tensor, ...] = tuple(signature.inputs) if signature else ()
        self._joint = None
        # A predict_fn with a context asks about one request, so it gets one.
        if signature and not self._transform and not (self._predict and self._predict.wants_context):
            self._joint = joint.Axis.of(signature)
        # User code answers as under the toolkits, byte for byte; a model without code answers as its signature says.
        self._through_lists = bool(hooks) or not signature
        self._as_pipeline = not signature and ("HF_TASK" in os.environ or pipelines.is_pipeline(model))
        self._torch: Any = sys.modules.get("torch")
        self._default_predict: Callable[[Any], Any] | None = None
        if self._transform:
            return
        if not self._predict and not self._predict_batch:
            self._default_predict = predict or _predictor(model)
        if not self._input and not self._as_pipeline:
            # The first request should not pay for the import, and a signature that nobody can meet is the bundle's fault.
            importlib.import_module("numpy")
            try:
                codecs.check_dtypes(self._inputs)
            except ValueError as error:
                raise HookError(str(error)) from error

    @classmethod
    def load(
        cls,
        model_dir: Path,
        code_dir: Path,
        program: str,
        default_accept: str = "",
        callers: engines.Callers = engines.ONE_CALLER,
    ) -> Handler:
        """Import the user's module, load the model, warm it up. With no module or no `model_fn`, the model loads itself.

        Args:
            default_accept: for requests that accept anything; empty is what the signature names first, or JSON.
            callers: the workers that will ask it; where the model does not allow threads, it is for one of them.

        Raises:
            HookError: there is neither a module nor a model that loads itself, or the module breaks the contract.
            Exception: whatever the user's own code raised.
        """
        signature, loader = _manifest(model_dir)
        module = _import(code_dir, program) if (code_dir / program).is_file() else None
        hooks, concurrency = (_hooks(module, program), _concurrency(module, program)) if module else ({}, 1)
        measures = Measures()
        context = Context(_properties(model_dir), metrics=measures)
        if "pre_model_fn" in hooks:
            hooks["pre_model_fn"](context, str(model_dir))
        if concurrency > 1 or (module and not callers.safe and not _flag(module, "thread_safe", program)):
            callers = callers.one
        predict = None
        if "model_fn" in hooks:
            model = hooks["model_fn"](context, str(model_dir))
        else:
            try:
                loaded = engines.load(model_dir, signature, loader, callers)
            except engines.Unservable as error:
                raise HookError(str(error)) from error
            if loaded is None:
                raise HookError(_nothing_to_load(code_dir, program))
            model, predict = loaded.model, loaded.predict
            if not module and not loaded.threads and not callers.safe:
                callers = callers.one
        threads = callers.workers
        handler = cls(model, hooks, model_dir, signature, default_accept, predict, concurrency, threads, measures)
        if "model_warmup_fn" in hooks:
            hooks["model_warmup_fn"](context, str(model_dir), model)
        elif predict and signature and not hooks:
            engines.warm_up(lambda data: predict(handler._as_tensors(data, b"")), signature)
        return handler

    @property
    def batches(self) -> bool:
        """Whether it is worth giving it several invocations at once."""
        return self._predict_batch is not None or self._joint is not None

    def __call__(self, invocation: Invocation) -> Reply:
        """Never raises: what a hook raises becomes a 500 with the traceback, or the status that the exception carries."""
        return self.answer([invocation])[0]

    def answer(self, invocations: Sequence[Invocation]) -> list[Reply]:
        """A reply for each, in order; one prediction for all, where the model takes batches. Never raises."""
        calls = [self._begin(invocation) for invocation in invocations]
        for call in calls:
            self._step(call, self._transformed if self._transform else self._decode)
        calls_left = [call for call in calls if call.reply is None]
        if self._predict_batch:
            self._together(calls_left, self._hook_batch)
        elif self._joint and len(calls_left) > 1:
            for group in self._joint.groups([call.data for call in calls_left]):
                self._together([calls_left[index] for index in group], self._joint_batch)
        else:
            for call in calls_left:
                self._step(call, self._predict_one)
        for call in calls_left:
            if call.reply is None:
                self._step(call, self._encode)
        return [call.reply or Reply(b"", status=500) for call in calls]

    def _begin(self, invocation: Invocation) -> _Call:
        accept = invocation.headers.get("accept")
        if not accept or accept == "*/*":
            accept = self._default_accept
        context = Context(self._properties, invocation.headers, self.measures, invocation.cancelled)
        return _Call(invocation, context, accept)

    def _step(self, call: _Call, step: Callable[[_Call], None]) -> None:
        try:
            step(call)
        except BaseException as error:  # noqa: BLE001 - the user's code may raise anything, also SystemExit; the server goes on
            call.reply = failure(error)

    def _body(self, call: _Call) -> tuple[bytes | str, str | None]:
        headers = call.invocation.headers
        body, content_type = call.invocation.body, headers.get("content-type")
        if "content-encoding" in headers:
            body = codecs.unpacked(body, headers["content-encoding"])
        if content_type and codecs.media_type(content_type)[0] in codecs.TEXT:
            return codecs.text(body, content_type), content_type
        return body, content_type

    def _transformed(self, call: _Call) -> None:
        assert self._transform
        result = self._transform(call.context, self._model, *self._body(call), call.accept)
        self._finish(call, result)

    def _decode(self, call: _Call) -> None:
        body, content_type = self._body(call)
        call.data = self._input(call.context, body, content_type) if self._input else self._read(body, content_type)

    def _predict_one(self, call: _Call) -> None:
        if self._default_predict:
            call.prediction = self._default_predict(call.data)
        else:
            assert self._predict
            call.prediction = self._predict(call.context, call.data, self._model)

    def _together(self, calls: Sequence[_Call], predict: Callable[[Sequence[_Call]], None]) -> None:
        """Predict as one batch. When that fails, halves of it, until the ones that make it fail stand alone."""
        if not calls:
            return
        try:
            predict(calls)
        except joint.Mismatch as error:
            failed = failure(HookError(str(error)))
            for call in calls:
                call.reply = failed
        except BaseException as error:  # noqa: BLE001 - as in _step
            if len(calls) == 1 or calls[0].invocation.cancelled():
                for call in calls:
                    call.reply = failure(error)
                return
            middle = len(calls) // 2
            self._together(calls[:middle], predict)
            self._together(calls[middle:], predict)

    def _hook_batch(self, calls: Sequence[_Call]) -> None:
        assert self._predict_batch
        predictions = self._predict_batch(calls[0].context, [call.data for call in calls], self._model)
        try:
            count = len(predictions)
        except TypeError:
            raise joint.Mismatch(
                f"predict_batch_fn returned {type(predictions).__name__}, which has no length. Return a list with one "
                "prediction for each of the requests."
            ) from None
        if count != len(calls):
            raise joint.Mismatch(f"predict_batch_fn returned {count} predictions for {len(calls)} requests.")
        for call, prediction in zip(calls, predictions, strict=True):
            call.prediction = prediction

    def _joint_batch(self, calls: Sequence[_Call]) -> None:
        if self._joint is None or len(calls) == 1:
            for call in calls:
                self._step(call, self._predict_one)
            return
        whole = _Call(calls[0].invocation, calls[0].context, "")
        whole.data = self._joint.join([call.data for call in calls])
        self._predict_one(whole)
        try:
            parts = self._joint.split(whole.prediction, [self._joint.rows(call.data) for call in calls])
        except joint.Mismatch as error:
            # The signature promises a batch that the code does not keep. Each alone is slower, and right.
            print(f"Requests are predicted one by one: {error}", file=sys.stderr, flush=True)
            self._joint = None
            self._joint_batch(calls)
            return
        for call, part in zip(calls, parts, strict=True):
            call.prediction = part

    def _encode(self, call: _Call) -> None:
        if self._output:
            result = self._output(call.context, call.prediction, call.accept)
        else:
            result = self._written(call.prediction, call.accept)
        self._finish(call, result)

    def _written(self, prediction: Any, accept: str) -> Any:
        """The default output_fn."""
        if isinstance(prediction, Iterator):
            return prediction  # streamed
        if self._as_pipeline:
            return pipelines.respond(prediction, accept)
        if self._through_lists and self._torch is not None and type(prediction) is self._torch.Tensor:
            prediction = codecs.plain(prediction)
        return codecs.respond(prediction, accept)

    def _finish(self, call: _Call, result: Any) -> None:
        # A tuple is (body, content type): older than the context, and still in many scripts.
        answer, kind = (
            result[:2] if isinstance(result, tuple) and len(result) > 1 else (result, _first_type(call.accept))
        )
        reply = Reply(b"", str(kind), call.context.response_status)
        if isinstance(answer, Iterator):
            reply.stream = answer
        else:
            reply.body = _body(answer)
        for name, value in call.context.response_headers.items():
            if name == "content-type":
                reply.content_type = value
            elif name != "content-length":
                reply.headers.append((name, value))
        call.reply = reply

    def _read(self, body: bytes | str, content_type: str | None) -> Any:
        """The default input_fn. Arrays become tensors where the user's code or the engine has imported torch."""
        if self._as_pipeline:
            return pipelines.read(body, content_type)
        return self._as_tensors(codecs.decode(body, content_type, self._inputs), body)

    def _as_tensors(self, data: Any, body: bytes | str) -> Any:
        if self._torch is None:
            return data
        if isinstance(data, dict) and self._inputs:
            return {name: self._tensor(array, body) for name, array in data.items()}
        return self._tensor(data, body)

    def _tensor(self, value: Any, body: bytes | str) -> Any:
        numpy = sys.modules["numpy"]
        if not isinstance(value, numpy.ndarray):
            return value
        tensor = self._torch.from_numpy(value)
        if not self._inputs and isinstance(body, str):
            tensor = tensor.float()  # the official PyTorch toolkit's rule for JSON and CSV: always a FloatTensor
        return tensor.to(self._device)


def _properties(model_dir: Path) -> Mapping[str, Any]:
    """Under the names of the official context."""
    return {
        "model_dir": str(model_dir),
        "model_name": os.environ.get("WINDLASS_MODEL_NAME", "model"),
        "gpu_id": 0 if _cuda() else None,
        "batch_size": 1,
        "server_name": "windlass",
    }


def _manifest(model_dir: Path) -> tuple[Signature | None, str]:
    """The signature and the loader that ``windlass.json`` names."""
    if not (model_dir / "windlass.json").exists():
        return None, ""
    from windlass import artifact, errors

    try:
        manifest = artifact.read_manifest(model_dir)
    except errors.InvalidInput as error:
        raise HookError(str(error)) from error
    return (manifest.signature, manifest.loader) if manifest else (None, "")


def _hooks(module: ModuleType, program: str) -> dict[str, _Hook]:
    hooks = {}
    for name in _ARGUMENTS:
        if (function := getattr(module, name, None)) is not None:
            hooks[name] = _Hook(name, function)
    parts = [name for name in ("input_fn", "predict_fn", "output_fn", "predict_batch_fn") if name in hooks]
    if "transform_fn" in hooks and parts:
        raise HookError(f"{program} defines transform_fn together with {', '.join(parts)}. Use one or the other.")
    return hooks


def _concurrency(module: ModuleType, program: str) -> int:
    value = getattr(module, "max_concurrency", 1)
    if type(value) is not int or not 1 <= value <= 1024:
        raise HookError(f"max_concurrency in {program} is {value!r}. It is a whole number from 1 to 1024.")
    return value


def _flag(module: ModuleType, name: str, program: str) -> bool:
    value = getattr(module, name, False)
    if type(value) is not bool:
        raise HookError(f"{name} in {program} is {value!r}. It is True or False.")
    return value


def _nothing_to_load(code_dir: Path, program: str) -> str:
    if (code_dir / program).is_file():
        return f"{program} defines no model_fn. Define model_fn(model_dir), which returns the model."
    others = sorted(file.name for file in code_dir.glob("*.py")) if code_dir.is_dir() else []
    found = f"It holds {', '.join(others[:5])}: set SAGEMAKER_PROGRAM." if others else "It holds no Python file."
    if not code_dir.is_dir():
        found = "That folder does not exist."
    return (
        f"no {program} in {code_dir}. {found} The bundle needs code/{program} with model_fn(model_dir) and, if the "
        "defaults do not fit, input_fn, predict_fn and output_fn."
    )


def _import(code_dir: Path, program: str) -> ModuleType:
    path = code_dir / program
    sys.path.append(str(Path(__file__).parent / "compat"))  # what scripts import of a toolkit that is not installed
    sys.path.insert(0, str(code_dir))
    if path.parent != code_dir:
        sys.path.insert(0, str(path.parent))
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HookError(f"{path} is not a Python file. Set SAGEMAKER_PROGRAM to one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickle and the user's other modules look it up by name
    spec.loader.exec_module(module)
    return module


def _predictor(model: Any) -> Callable[[Any], Any]:
    """The default predict_fn: what the model itself offers."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        model.to("cuda" if _cuda() else "cpu").eval()

        def forward(data: Any) -> Any:
            with torch.no_grad():
                return model(**data) if isinstance(data, dict) else model(data)

        return forward
    if pipelines.is_pipeline(model):
        return partial(pipelines.predict, model)
    if callable(getattr(model, "predict", None)):
        predict: Callable[[Any], Any] = model.predict
        return predict
    if callable(model):

        def call(data: Any) -> Any:
            return pipelines.predict(model, data) if isinstance(data, dict) and "inputs" in data else model(data)

        return call
    raise HookError(
        f"model_fn returned {type(model).__name__}, which is no torch module, has no predict() and cannot be called. "
        "Define predict_fn(data, model)."
    )


def _first_type(accept: str) -> str:
    """The content type of an answer whose output_fn named none: what the caller wants most, if that is one type."""
    return next((kind for kind in codecs.accepted(accept) if "*" not in kind), codecs.JSON)


def chunks(parts: Iterator[Any]) -> Iterator[bytes]:
    """The parts of a streamed answer as bytes: text and bytes as they are, anything else as a line of JSON."""
    for part in parts:
        if isinstance(part, str | bytes | bytearray | memoryview):
            chunk = _body(part)
        else:
            chunk = codecs.encode(part, codecs.JSON) + b"\n"
        if chunk:
            yield chunk


def _body(answer: Any) -> bytes:
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, str):
        return answer.encode()
    if isinstance(answer, bytearray | memoryview):
        return bytes(answer)
    return codecs.write_json(answer, indent=2)  # as the model servers under the official toolkits do with other objects


def _status(error: BaseException) -> int:
    """The status that an exception carries: `sagemaker_inference` calls it status_code, Multi Model Server error_code."""
    for attribute in ("status_code", "error_code"):
        status = getattr(error, attribute, None)
        if type(status) is int and 400 <= status <= 599:
            return status
    return 500


def failure(error: BaseException) -> Reply:
    """What the caller is told: the reason, with the traceback when it is the model's fault."""
    if isinstance(error, codecs.Refused):
        return Reply(f"{error}\n".encode(), status=error.status)
    if isinstance(error, codecs.Unwritable | HookError):
        return Reply(f"{error}\n".encode(), status=500, error=str(error))
    trace = user_traceback(error)
    return Reply(f"{_message(error)}\n{trace}".encode(errors="replace"), status=_status(error), error=trace)


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory: Python's own error, or torch's on the CPU and on a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))
    )


def _message(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


_OURS = (str(Path(__file__).parent) + os.sep, "<frozen importlib", "<frozen runpy")


def user_traceback(error: BaseException) -> str:
    """The traceback as if the user had called the hook: without the frames of this package and of the import system."""
    if isinstance(error, HookError):
        return f"{error}\n"
    report = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    chain: list[traceback.TracebackException | None] = [report]
    while chain:
        part = chain.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if not frame.filename.startswith(_OURS)]
        chain += [part.__cause__, part.__context__]
    return "".join(report.format())
