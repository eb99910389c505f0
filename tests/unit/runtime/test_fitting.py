"""The media types that a signature is said to take and give: the codecs themselves are asked, with values that fit it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from windlass.artifact import Tensor
from windlass.runtime import codecs
from windlass.runtime.codecs import fitting

SIGNATURES: dict[str, list[Tensor]] = {
    "rows": [Tensor("x", "float32", ("batch", 3))],
    "whole rows": [Tensor("x", "int64", ("batch", 3))],
    "numbers": [Tensor("x", "float64", ("batch",))],
    "one number": [Tensor("x", "float32", ())],
    "cubes": [Tensor("x", "float32", ("batch", 2, 2))],
    "flags": [Tensor("x", "bool", ("batch", 3))],
    "complex": [Tensor("x", "complex64", ("batch", 3))],
    "texts": [Tensor("x", "str", ("batch",))],
    "pairs of texts": [Tensor("x", "str", ("batch", 2))],
    "two open dimensions": [Tensor("x", "float32", ("batch", "length"))],
    "pictures": [Tensor("x", "uint8", ("batch", 5, 5, 3))],
    "channels first": [Tensor("x", "float32", (1, 3, 5, 5))],
    "a grey picture": [Tensor("x", "float32", (5, 5))],
    "half precision": [Tensor("x", "float16", ("batch", 3))],
    "two": [Tensor("x", "float32", ("batch", 3)), Tensor("n", "int32", ("batch",))],
    "two that are never as long": [Tensor("x", "float32", (2, 3)), Tensor("n", "int32", (3,))],
    "one with rows and one without": [Tensor("x", "float32", ("batch", 3)), Tensor("t", "float32", ())],
}

LOSSY = ("image/jpeg", "image/gif", "image/webp")


def example(tensor: Tensor) -> Any:
    shape = [2 if isinstance(size, str) and tensor.shape[1:] != (5, 5, 3) else size for size in tensor.shape]
    shape = [1 if isinstance(size, str) else size for size in shape]  # one picture
    count = int(np.prod(shape))
    if tensor.dtype == "str":
        return np.array([f"text {n}" for n in range(count)]).reshape(shape)
    return (np.arange(count) % 2).astype(tensor.dtype).reshape(shape)


def values(tensors: list[Tensor]) -> Any:
    named = {tensor.name: example(tensor) for tensor in tensors}
    return named if len(tensors) > 1 else named["x"]


def written(value: Any, kind: str) -> bytes:
    """The request as a caller writes it."""
    if kind in codecs.IMAGES:
        from windlass.runtime.codecs import images

        return images.write(value, kind)
    if kind in (codecs.JSON, codecs.JSON_LINES, codecs.CSV) and not isinstance(value, dict) and value.dtype.kind == "c":
        value = value.real
    if kind in (codecs.ARROW, codecs.PARQUET) and not isinstance(value, dict):
        value = {"x": value}
    return codecs.encode(value, kind)


@pytest.mark.parametrize("kind", codecs.IN)
@pytest.mark.parametrize("name", SIGNATURES)
def test_a_request_is_read_where_the_signature_is_said_to_take_it(name: str, kind: str) -> None:
    tensors = SIGNATURES[name]
    came: Any = None
    try:
        came = codecs.decode(written(values(tensors), kind), kind, tensors)
    except codecs.Refused as error:
        refused = str(error)
    else:
        refused = ""

    assert (kind in fitting.takes(tensors)) == (not refused), refused
    if not refused and kind not in LOSSY:
        for tensor in tensors:
            got = came[tensor.name] if len(tensors) > 1 else came
            np.testing.assert_array_equal(np.asarray(got), example(tensor))


@pytest.mark.parametrize("kind", codecs.OUT)
@pytest.mark.parametrize("name", SIGNATURES)
def test_a_prediction_is_written_where_the_signature_is_said_to_give_it(name: str, kind: str) -> None:
    tensors = SIGNATURES[name]
    try:
        codecs.encode(values(tensors), kind)
    except (codecs.Refused, codecs.Unwritable) as error:
        refused = str(error)
    else:
        refused = ""

    assert (kind in fitting.gives(tensors)) == (not refused), refused
