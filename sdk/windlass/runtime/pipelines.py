"""Pipelines of `transformers`, read, called and answered as the official Hugging Face inference toolkit does by default.

    pipeline = pipelines.load(Path("/opt/ml/model"))              # of HF_TASK, or of the architecture in config.json
    data = pipelines.read(b'{"inputs": "good", "parameters": {"top_k": 2}}', "application/json")
    body, kind = pipelines.respond(pipelines.predict(pipeline, data), "application/json")

JSON goes in as it is and comes out compact, with its letters as they are. CSV has a header with ``inputs``, or ``question`` and
``context``; pictures and sound are the input of a pipeline that takes them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from windlass.runtime import codecs

_AUDIO = ("audio/x-flac", "audio/mpeg", "audio/wave", "audio/ogg", "audio/x-audio")
_ANY_IMAGE = "image/x-image"
_OUT = (codecs.JSON, codecs.CSV, codecs.NPY, codecs.PNG, codecs.JPEG)

# The toolkit's own table: the end of an architecture's name, and the task that it is for.
_TASKS = {
    "TapasForQuestionAnswering": "table-question-answering",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "text-classification",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "MTModel": "text2text-generation",
    "EncoderDecoderModel": "text2text-generation",
    "GPT2LMHeadModel": "text-generation",
    "T5WithLMHeadModel": "text2text-generation",
}


class UnknownTask(Exception):
    """Neither HF_TASK nor the architecture says what the model is for."""


def load(model_dir: Path) -> Any:
    """The pipeline of the task in HF_TASK, or that config.json's architecture is for.

    Raises:
        UnknownTask: neither says it.
    """
    import torch
    import transformers

    task = os.environ.get("HF_TASK") or _task(model_dir)
    trust = os.environ.get("HF_TRUST_REMOTE_CODE", "").lower() in ("y", "yes", "t", "true", "on", "1")
    device = 0 if torch.cuda.is_available() else -1
    # The pipeline itself finds the tokenizer or the image processor in the folder.
    return transformers.pipeline(task, model=str(model_dir), device=device, trust_remote_code=trust)


def _task(model_dir: Path) -> str:
    architectures = json.loads((model_dir / "config.json").read_bytes()).get("architectures") or [""]
    for end, task in _TASKS.items():
        if str(architectures[0]).endswith(end):
            return task
    raise UnknownTask(f"no task is known for the architecture {architectures[0]!r} in config.json. Set HF_TASK.")


def is_pipeline(model: Any) -> bool:
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.Pipeline)


def read(body: bytes | str, content_type: str | None) -> Any:
    """The default input_fn.

    Raises:
        Refused: 415, another content type; 400, the body is malformed.
    """
    kind = codecs.media_type(content_type)[0] if content_type else ""
    if kind in codecs.TEXT:
        content = body if isinstance(body, str) else codecs.text(body, kind)
        return codecs.read_json(content) if kind == codecs.JSON else {"inputs": _rows(content)}
    raw = body.encode() if isinstance(body, str) else body
    if kind in _AUDIO:
        return {"inputs": raw}
    if kind in codecs.IMAGES or kind == _ANY_IMAGE:
        if why := codecs.missing(codecs.PNG):
            raise codecs.Refused(415, f"{why}.")
        from windlass.runtime.codecs import images

        return {"inputs": images.opened(raw, None if kind == _ANY_IMAGE else kind).convert("RGB")}
    if kind == codecs.NPY:
        return codecs.decode(raw, kind)
    known = (codecs.JSON, codecs.CSV, codecs.NPY, *codecs.IMAGES, *_AUDIO)
    raise codecs.Refused(415, f"content type {content_type!r} is not supported. Send one of {', '.join(known)}.")


def _rows(body: str) -> list[Any]:
    try:
        rows = list(csv.DictReader(io.StringIO(body), strict=True))
    except csv.Error as error:
        raise codecs.Refused(400, f"malformed CSV: {error}.") from error
    if not rows or not {"inputs", "question", "context"} & set(rows[0]):
        raise codecs.Refused(
            400, "malformed CSV: a header with inputs, or question and context, and rows are expected."
        )
    return [row["inputs"] for row in rows] if "inputs" in rows[0] else rows


def predict(pipeline: Any, data: Any) -> Any:
    """The default predict_fn: ``{"inputs": ..., "parameters": {...}}``, or the inputs alone."""
    if not isinstance(data, Mapping):
        return pipeline(data)
    rest = dict(data)
    parameters = rest.pop("parameters", None)
    inputs = rest.pop("inputs", rest)
    if parameters is not None and not isinstance(parameters, Mapping):
        raise codecs.Refused(400, "parameters is no object of names and values.")
    return pipeline(inputs, **(parameters or {}))


def respond(prediction: Any, accept: str) -> tuple[bytes, str]:
    """The default output_fn.

    Raises:
        Refused: 406, the prediction fits none of the types that are accepted.
        Unwritable: NaN, or a value that JSON has no form for.
    """
    kinds = codecs.negotiate(accept, _OUT)
    for kind in kinds:
        if kind == codecs.JSON:
            return codecs.write_json(prediction, default=_plain, ensure_ascii=False, separators=(",", ":")), kind
        if kind == codecs.CSV and isinstance(prediction, list) and prediction and isinstance(prediction[0], Mapping):
            stream = io.StringIO()
            writer = csv.DictWriter(stream, list(prediction[0]))
            writer.writeheader()
            writer.writerows(prediction)
            return stream.getvalue().encode(), kind
        if kind == codecs.NPY or (kind in (codecs.PNG, codecs.JPEG) and hasattr(prediction, "save")):
            return codecs.encode(prediction, kind), kind
    raise codecs.Refused(406, f"the prediction does not fit {', '.join(kinds)}. Accept {codecs.JSON}.")


def _plain(value: Any) -> Any:
    """What JSON has no form for, as the toolkit writes it: times as text, pictures as PNG in base64."""
    if type(value).__module__ == "datetime":
        return str(value)
    if hasattr(value, "save") and type(value).__module__.startswith("PIL."):
        import base64

        return base64.b64encode(codecs.encode(value, codecs.PNG)).decode()
    return codecs.plain(value)
