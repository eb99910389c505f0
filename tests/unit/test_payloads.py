"""What goes to a model and comes back, in the user's own types."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from windlass.artifact import Signature
from windlass.errors import DeploymentFailed, InvalidInput
from windlass.payloads import decode, encode
from windlass.runtime import codecs

DIGITS = Signature.parse(
    {
        "inputs": [{"name": "image", "dtype": "uint8", "shape": ["batch", 2, 2]}],
        "outputs": [{"name": "label", "dtype": "int32", "shape": ["batch"]}],
    }
)
TWO = Signature.parse(
    {
        "inputs": [
            {"name": "age", "dtype": "int64", "shape": ["batch"]},
            {"name": "city", "dtype": "str", "shape": ["batch"]},
        ],
        "outputs": [{"name": "score", "dtype": "float32", "shape": ["batch"]}],
    }
)
PIXELS = np.array([[1, 2], [3, 4]], np.uint8)


def received(data: Any, signature: Signature | None = None, content_type: str | None = None) -> Any:
    """What the model server makes of it."""
    sent = encode(data, content_type, signature=signature)
    return codecs.decode(sent.body, sent.content_type, signature.inputs if signature else ())


@given(arrays.arrays(st.sampled_from([np.uint8, np.int64, np.float32, np.bool_]), arrays.array_shapes(max_dims=4)))
def test_an_array_arrives_as_it_was(array: Any) -> None:
    sent = encode(array)

    assert sent.content_type == "application/x-npy"
    np.testing.assert_array_equal(codecs.decode(sent.body, sent.content_type), array)


@pytest.mark.parametrize("of", ["numpy", "torch", "PIL", "list", "dict"])
def test_every_type_is_the_same_to_the_model(of: str) -> None:
    given_: dict[str, Any] = {
        "numpy": PIXELS,
        "torch": torch.from_numpy(PIXELS),
        "PIL": Image.fromarray(PIXELS),
        "list": PIXELS.tolist(),
        "dict": {"image": PIXELS.tolist()},
    }

    # One example without its batch dimension: it goes as a batch of one.
    np.testing.assert_array_equal(received(given_[of], DIGITS), PIXELS[None])


def test_an_array_takes_the_dtype_of_the_signature_where_no_value_changes() -> None:
    assert received(PIXELS.astype(np.float64), DIGITS).dtype == np.uint8
    assert received({"image": PIXELS.astype(np.int64)}, DIGITS).tolist() == [PIXELS.tolist()]


def test_a_frame_goes_by_the_names_of_the_signature() -> None:
    frame = pandas.DataFrame({"city": ["Roma", "東京"], "age": [3, 4]})

    arrived = received(frame, TWO)

    assert arrived["age"].tolist() == [3, 4]
    assert arrived["city"] == ["Roma", "東京"]


def test_a_frame_goes_as_csv_where_nothing_is_known() -> None:
    sent = encode(pandas.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}))

    assert (sent.content_type, sent.body) == ("text/csv", b"1,0.5\n2,1.5\n")


def test_an_image_goes_as_png_where_nothing_is_known() -> None:
    sent = encode(Image.fromarray(PIXELS))

    assert sent.content_type == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent.body))), PIXELS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (np.zeros((3, 2, 3), np.uint8), r"input 'image': shape \(3, 2, 3\) came, \(batch, 2, 2\) is expected"),
        (np.full((1, 2, 2), 0.5), "input 'image': dtype float64 came, uint8 is expected"),
        ([[[1, 2], [3, 256]]], r"input 'image': 256 at \[0, 1, 1\] is outside uint8"),
        ([[[1, 2], [3]]], "input 'image': lists of unequal length"),
        ({"picture": PIXELS}, "unknown input 'picture'. Valid: image"),
        ({}, "input 'image' is missing"),
        ("a cat", "input 'image'"),
        (None, "input 'image'"),
    ],
)
def test_a_wrong_input_is_refused_with_what_came_and_what_was_expected(data: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        encode(data, signature=DIGITS, where="Predicting with 'digits'")

    assert str(caught.value).startswith("Predicting with 'digits': ")
    assert "The model takes image: uint8 (batch, 2, 2)." in str(caught.value)


@pytest.mark.parametrize("data", [object(), {"ids": {1, 2}}, [float("nan")], {1: object()}])
def test_what_no_format_holds_is_refused(data: Any) -> None:
    with pytest.raises(InvalidInput, match="cannot be sent"):
        encode(data)


def test_bytes_need_a_content_type_and_go_as_they_are() -> None:
    with pytest.raises(InvalidInput, match="without content_type="):
        encode(b"1,2")

    assert encode(b"1,2", "text/csv", signature=DIGITS).body == b"1,2"


def test_python_values_keep_their_json() -> None:
    value = {"text": "naïve ☃", "n": [1, 2.5, None, True]}

    assert json.loads(encode(value).body) == value


def test_missing_values_of_a_frame_are_sent_as_nan_which_the_server_reads() -> None:
    sent = encode(pandas.DataFrame({"a": [1.0, None], "b": [0.5, 1.5]}))

    assert (sent.content_type, sent.body) == ("text/csv", b"1.0,0.5\nnan,1.5\n")
    np.testing.assert_array_equal(codecs.decode(sent.body, sent.content_type), [[1.0, 0.5], [np.nan, 1.5]])


def test_nan_in_json_is_refused_with_what_holds_it() -> None:
    with pytest.raises(InvalidInput, match="JSON has no NaN and no infinity: give a NumPy array"):
        encode([[1.0, float("nan")]])


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas", "plain"])
def test_the_answer_is_of_the_types_that_came(form: Any) -> None:
    output = decode(b'{"label": [7, 8]}', "application/json; charset=utf-8", form, DIGITS)

    values = output["label"]
    if form == "plain":
        assert output == {"label": [7, 8]}
    else:
        assert type(values).__module__.partition(".")[0] in (form, "pandas" if form == "pandas" else form)
        assert str(values.dtype).removeprefix("torch.") == "int32"
        assert values.tolist() == [7, 8]


def test_an_answer_that_breaks_the_signature_is_not_bent_to_it() -> None:
    assert decode(b'{"label": [0.5]}', "application/json", "numpy", DIGITS)["label"].dtype == np.float64
    assert decode(b'{"label": ["seven"], "why": "so"}', "application/json", "numpy", DIGITS) == {
        "label": ["seven"],
        "why": "so",
    }


@pytest.mark.parametrize(
    ("raw", "kind"), [(b"{", "application/json"), (b"\x93NUMPY", "application/x-npy"), (b"PK", "application/x-npz")]
)
def test_an_answer_that_is_not_what_it_says_is_an_error(raw: bytes, kind: str) -> None:
    with pytest.raises(DeploymentFailed, match=f"the model's answer is not {kind}"):
        decode(raw, kind)


def test_text_and_anything_else_come_as_they_are() -> None:
    assert decode("é".encode(), "text/plain") == "é"
    assert decode(b"\0\1", "application/octet-stream") == b"\0\1"
    assert decode(b"\0", "") == b"\0"
