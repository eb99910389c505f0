"""Serves the encoder of this bundle without padding, many requests at once. Written by Windlass; change it as you like.

Takes ``"a text"``, ``["several", "texts"]``, or an object with either below the signature's name, ``{"inputs": ...}``. The
answer has a row for each text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from windlass_packing import Encoder
from windlass_tensors import BadRequest, described, output_fn

__all__ = ["input_fn", "model_fn", "model_warmup_fn", "output_fn", "predict_batch_fn", "predict_fn", "thread_safe"]

thread_safe = (
    True  # the engine computes without Python's lock, so that Windlass's server may call it from several threads
)


def model_fn(model_dir: str) -> Encoder:
    # Engines count the machine's cores, not the workers' share of them.
    workers = int(os.environ.get("SAGEMAKER_MODEL_SERVER_WORKERS") or 1) if "WINDLASS_THREADS" in os.environ else 1
    return Encoder(
        model_dir, workers, int(os.environ.get("WINDLASS_THREADS") or os.environ.get("OMP_NUM_THREADS") or 0)
    )


def model_warmup_fn(model_dir: str, model: Encoder) -> None:
    model.warm_up()


def input_fn(body: str | bytes, content_type: str | None) -> list[str]:
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "text/plain"):
        raise BadRequest(f"content type {content_type!r} is not read here. Valid: application/json, text/plain", 415)
    try:
        text = body if isinstance(body, str) else body.decode()
        data = json.loads(text) if kind == "application/json" else [text]
    except ValueError as error:
        raise BadRequest(f"the body is not {kind}: {error}") from error
    name = described("inputs")[0]["name"]
    if isinstance(data, dict):
        if data.keys() != {name}:
            raise BadRequest(f"expected a text, a list of texts, or an object with {name} alone")
        data = data[name]
    texts = [data] if isinstance(data, str) else data
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{name} is neither a text nor a list of texts")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{name} holds half of a surrogate pair, which is no character") from error
    return texts


def predict_fn(data: Sequence[str], model: Encoder) -> dict[str, Any]:
    return {model.output: model(data)}


def predict_batch_fn(datas: Sequence[Sequence[str]], model: Encoder) -> list[dict[str, Any]]:
    found, at, answers = model([text for texts in datas for text in texts]), 0, []
    for texts in datas:
        answers.append({model.output: found[at : at + len(texts)]})
        at += len(texts)
    return answers
