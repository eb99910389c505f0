"""Requests to arrays and arrays to answers, as the signature in windlass.json says.

Written by Windlass; change it as you like.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"


class BadRequest(ValueError):
    """What came cannot be read. ``status_code`` is what the caller gets."""

    def __init__(self, message: str, status_code: int = 400) -> None:
        self.status_code = status_code
        super().__init__(message)


@lru_cache(maxsize=1)
def manifest() -> Mapping[str, Any]:
    """What the bundle says of itself."""
    body: Mapping[str, Any] = json.loads((Path(__file__).parent.parent / "windlass.json").read_text(encoding="utf-8"))
    return body


def described(what: str) -> list[Mapping[str, Any]]:
    """The signature's ``inputs`` or ``outputs``; none when the bundle has no signature."""
    return list((manifest().get("signature") or {}).get(what, []))


def input_fn(body: str | bytes, content_type: str | None) -> Any:
    """An array for each input by its name. Without a signature: what JSON holds, or one array."""
    kind = (content_type or JSON).partition(";")[0].strip().lower()
    try:
        if kind == JSON:
            data = json.loads(body)
        elif kind == CSV:
            rows = csv.reader(io.StringIO(body if isinstance(body, str) else body.decode()))
            data = [[float(cell) for cell in row] for row in rows if row]
        elif kind == NPY:
            data = np.load(io.BytesIO(body if isinstance(body, bytes) else body.encode()), allow_pickle=False)
        else:
            raise BadRequest(f"content type {content_type!r} is not read here. Valid: {JSON}, {CSV}, {NPY}", 415)
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"the body is not {kind}: {error}") from error
    inputs = described("inputs")
    if not inputs:
        return data
    if len(inputs) == 1 and not isinstance(data, dict):
        data = {inputs[0]["name"]: data}
    names = [tensor["name"] for tensor in inputs]
    if not isinstance(data, dict) or sorted(data) != sorted(names):
        raise BadRequest(f"expected an object with {', '.join(names)}")
    return {tensor["name"]: _array(data[tensor["name"]], tensor) for tensor in inputs}


def _array(value: Any, tensor: Mapping[str, Any]) -> Any:
    name, dtype, shape = tensor["name"], tensor["dtype"], tuple(tensor["shape"])
    try:
        array = np.asarray(value, dtype=np.str_ if dtype == "str" else _DTYPES.get(dtype, dtype))
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest(f"input {name!r} is no {dtype} array: {error}") from error
    fits = len(array.shape) == len(shape)
    fits = fits and all(isinstance(n, str) or n == found for n, found in zip(shape, array.shape, strict=True))
    if not fits:
        raise BadRequest(f"input {name!r}: shape {array.shape} came, ({', '.join(map(str, shape))}) is expected")
    return array


_DTYPES = {"bfloat16": "float32"}  # NumPy has none; the model casts


def output_fn(prediction: Any, accept: str | None) -> tuple[str | bytes, str]:
    """JSON; CSV and NPY where the prediction is one array."""
    arrays = {name: np.asarray(value) for name, value in prediction.items()}
    for kind in (part.partition(";")[0].strip().lower() for part in (accept or JSON).split(",")):
        one = next(iter(arrays.values())) if len(arrays) == 1 else None
        if kind == NPY and one is not None:
            file = io.BytesIO()
            np.save(file, one, allow_pickle=False)
            return file.getvalue(), NPY
        if kind == CSV and one is not None and one.ndim <= 2:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(one.reshape(len(one), -1).tolist())
            return text.getvalue(), CSV
        if kind in (JSON, "application/*", "*/*"):
            return json.dumps({name: array.tolist() for name, array in arrays.items()}), JSON
    raise BadRequest(f"cannot answer as {accept!r}. Valid: {JSON}, and {CSV} or {NPY} for one array", 406)


def named(values: Any) -> dict[str, Any]:
    """A model's answer by the names of the signature's outputs."""
    if isinstance(values, Mapping):
        return dict(values)
    listed = list(values) if isinstance(values, tuple | list) else [values]
    names = [tensor["name"] for tensor in described("outputs")] or [f"output_{n}" for n in range(len(listed))]
    if len(names) != len(listed):
        raise ValueError(f"the model gave {len(listed)} outputs; the signature names {', '.join(names)}")
    return dict(zip(names, listed, strict=True))


def only(model_dir: str | Path, pattern: str) -> Path:
    """The one file of a kind."""
    found = sorted(Path(model_dir).glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{model_dir} holds {len(found)} files {pattern}, not one")
    return found[0]
