"""Serve the digit classifier: the four hooks that SageMaker's PyTorch container and `windlass local` call.

    POST /invocations   {"image": [[0, 3, 16, ...] x 8]}            one image, or [N, 8, 8] of them
    -> 200              {"label": [7], "probability": [0.998]}      one entry for each image

The body is JSON, or a NumPy array as np.save writes it (content type application/x-npy). Values are whole, 0..16.
evaluate.py calls the same hooks, so what was measured is what is served.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import IMAGE_SIZE, MAX_LEVEL, DigitClassifier
from safetensors.torch import load_file

JSON, NPY = "application/json", "application/x-npy"


def model_fn(model_dir: str) -> DigitClassifier:
    """The model, ready to predict, from the folder into which model.tar.gz was unpacked."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DigitClassifier()
    model.load_state_dict(load_file(Path(model_dir) / "model.safetensors"))
    return model.eval().to(device)


def input_fn(body: bytes | bytearray | str, content_type: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The request as uint8 [N, 8, 8]. Raises ValueError, which says what is wrong with it."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON:
        image = _from_json(body)
    elif kind == NPY:
        image = _from_npy(body)
    else:
        raise ValueError(f"Content type {content_type!r} is not read here. Valid: {JSON}, {NPY}")
    return _checked(image)


def predict_fn(images: np.ndarray[Any, np.dtype[np.uint8]], model: DigitClassifier) -> dict[str, np.ndarray[Any, Any]]:
    """label: int64 [N]; probability: float32 [N], the model's own confidence in that label."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        probabilities = model(torch.from_numpy(images).to(device)).softmax(dim=1)
        best = probabilities.max(dim=1)
    return {"label": best.indices.cpu().numpy(), "probability": best.values.cpu().numpy()}


def output_fn(prediction: dict[str, np.ndarray[Any, Any]], accept: str) -> str:
    """The answer as JSON, the only format that carries both names."""
    kinds = [choice.partition(";")[0].strip().lower() for choice in accept.split(",")]
    if not {JSON, "application/*", "*/*", ""} & set(kinds):
        raise ValueError(f"Accept {accept!r} is not written here. Valid: {JSON}")
    return json.dumps({name: values.tolist() for name, values in prediction.items()})


def _from_json(body: bytes | bytearray | str) -> np.ndarray[Any, Any]:
    try:
        request = json.loads(body)
    except ValueError as error:
        raise ValueError(f"The body is not JSON: {error}") from error
    if not isinstance(request, dict) or set(request) != {"image"}:
        found = sorted(request) if isinstance(request, dict) else type(request).__name__
        raise ValueError(f'An object with the one key "image" is expected, found {found}')
    try:
        return np.asarray(request["image"])
    except ValueError as error:  # rows of different lengths
        raise ValueError("image: rows of one length are expected, 8 by 8 values each") from error


def _from_npy(body: bytes | bytearray | str) -> np.ndarray[Any, Any]:
    raw = body.encode("latin-1") if isinstance(body, str) else body
    try:
        # allow_pickle=False: an array of objects would run code of the sender's.
        return np.asarray(np.load(io.BytesIO(raw), allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise ValueError("The body is not an array of numbers as np.save writes it") from error


def _checked(image: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    size = IMAGE_SIZE
    if image.ndim not in (2, 3) or image.shape[-2:] != (size, size) or not len(image):
        raise ValueError(f"image: shape [{size}, {size}] or [N, {size}, {size}] is expected, found {list(image.shape)}")
    if image.dtype.kind not in "uif":
        raise ValueError(f"image: numbers are expected, found {image.dtype}")
    low, high = image.min(), image.max()
    # Written this way round, a NaN fails too.
    if not (low >= 0 and high <= MAX_LEVEL):
        raise ValueError(f"image: values of 0 to {MAX_LEVEL} are expected, found {low} to {high}")
    levels = np.ascontiguousarray(image, dtype=np.uint8)
    if (levels != image).any():
        raise ValueError("image: whole numbers are expected, found fractions")
    return levels.reshape(-1, size, size)
