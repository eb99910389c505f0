"""Pictures as inputs and outputs."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from windlass.artifact import Tensor
from windlass.runtime import codecs
from windlass.runtime.codecs import JPEG, PNG, Refused

RGB = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)


def saved(array: Any, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("uint8", (2, 5, 3), RGB),
        ("uint8", ("batch", 2, 5, 3), RGB[None]),
        ("uint8", ("batch", 3, "height", "width"), RGB.transpose(2, 0, 1)[None]),
        ("float32", ("batch", 3, 2, 5), RGB.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)),
    ],
)
def test_a_picture_is_laid_out_as_the_signature_says(
    dtype: str, shape: tuple[int | str, ...], expected: np.ndarray[Any, Any]
) -> None:
    array = codecs.decode(saved(RGB), PNG, (Tensor("image", dtype, shape),))
    assert array.dtype == dtype
    assert np.array_equal(array, expected)


def test_a_picture_is_made_grey_or_coloured_as_the_signature_says() -> None:
    grey = codecs.decode(saved(RGB), PNG, (Tensor("image", "uint8", ("batch", 1, "height", "width")),))
    assert grey.shape == (1, 1, 2, 5)
    colour = codecs.decode(saved(RGB[:, :, 0]), PNG, (Tensor("image", "uint8", ("height", "width", 3)),))
    assert np.array_equal(colour[:, :, 1], RGB[:, :, 0])
    assert codecs.decode(saved(RGB), PNG).shape == (2, 5, 3)  # no signature


@pytest.mark.parametrize(
    ("body", "kind", "inputs", "status", "says"),
    [
        (
            saved(RGB),
            PNG,
            (Tensor("image", "uint8", ("b", 3, 9, 9)),),
            400,
            r"shape \(1, 3, 2, 5\) came, \(b, 3, 9, 9\)",
        ),
        (saved(RGB), JPEG, (), 400, "malformed image/jpeg"),
        (saved(RGB)[:40], PNG, (), 400, "malformed image/png"),
        (b"", PNG, (), 400, "malformed image/png"),
        (saved(RGB), PNG, (Tensor("x", "float32", ("batch", 4)),), 415, "'x' takes no pictures"),
        (saved(RGB), PNG, (Tensor("x", "int64", ("b", 3, 2, 5)),), 415, "'x' takes no pictures"),
        (saved(RGB), PNG, (Tensor("a", "uint8", (2, 5, 3)), Tensor("b", "uint8", (1,))), 415, "carries one picture"),
    ],
)
def test_pictures_that_do_not_fit(body: bytes, kind: str, inputs: tuple[Tensor, ...], status: int, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        codecs.decode(body, kind, inputs)
    assert refused.value.status == status


def test_a_picture_of_a_billion_pixels_is_refused_before_it_is_unpacked() -> None:
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    with pytest.raises(Refused, match="too many pixels") as refused:
        codecs.decode(body, PNG)
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (RGB, RGB),
        (RGB[None].transpose(0, 3, 1, 2), RGB),
        ({"image": RGB[:, :, :1] / 255.0}, RGB[:, :, 0]),
        (Image.fromarray(RGB), RGB),
    ],
)
def test_predictions_that_are_pictures(value: Any, expected: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(np.array(Image.open(io.BytesIO(codecs.encode(value, PNG)))), expected)
    assert Image.open(io.BytesIO(codecs.encode(value, JPEG))).size == (5, 2)


@pytest.mark.parametrize(
    "value", [[1, 2], np.zeros((2, 2, 7)), np.zeros((0, 2), np.uint8), np.full((2, 2), 3.0), ["a"]]
)
def test_predictions_that_are_none(value: Any) -> None:
    with pytest.raises(Refused) as refused:
        codecs.encode(value, PNG)
    assert refused.value.status == 406
