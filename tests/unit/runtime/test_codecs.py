"""Codecs: what is well-formed comes back, what is not is refused with a 4xx, and nothing else ever happens."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from windlass.artifact import Tensor
from windlass.runtime import codecs
from windlass.runtime.codecs import (
    ARROW,
    CSV,
    JSON,
    JSON_LINES,
    NPY,
    NPZ,
    OCTETS,
    PARQUET,
    PNG,
    Refused,
    Unwritable,
)

IMAGE = (Tensor("image", "uint8", ("batch", 2, 2)),)
PAIR = (Tensor("left", "float32", ("batch", 3)), Tensor("right", "int64", ("batch",)))
TEXTS = (Tensor("text", "str", ("batch",)),)
PICTURE = (Tensor("picture", "float32", ("batch", 3, 2, 4)),)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def status_of(call: Callable[[], Any]) -> int:
    """200, or the status it is refused with. Any other exception fails the test."""
    try:
        call()
    except Refused as error:
        return error.status
    return 200


# --- media types


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", JSON),
        ("*/*", JSON),
        ("text/*", CSV),
        ("text/csv;q=0.2, application/x-npy;q=0.9", NPY),
        ("audio/ogg, Text/CSV", CSV),
        ("application/json;q=0, text/csv", CSV),
        ("application/json;q=0, text/csv;q=0, application/jsonlines;q=0, */*", NPY),
        ("text/*;q=0.9, text/csv;q=0.1, application/x-npz;q=0.5", NPZ),
        ("application/x-ndjson", "application/x-ndjson"),
    ],
)
def test_negotiate_takes_what_the_caller_wants_most(accept: str, kind: str) -> None:
    assert codecs.negotiate(accept, codecs.OUT)[0] == kind


@pytest.mark.parametrize(
    "accept", ["audio/ogg", "application/json;q=0", "application/json;q=much", "text/csv;q=7", ";,"]
)
def test_negotiate_refuses_what_is_not_offered(accept: str) -> None:
    with pytest.raises(Refused, match="This model answers as") as refused:
        codecs.negotiate(accept, codecs.OUT)
    assert refused.value.status == 406


@given(st.text(max_size=60))
def test_any_header_is_parsed_or_refused(header: str) -> None:
    codecs.media_type(header)
    assert status_of(lambda: codecs.negotiate(header, codecs.OUT)) in (200, 406)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "says"),
    [
        (b"\xff", "application/json", 400, "not utf-8: invalid start byte at byte 0"),
        (b"[1]", "application/json; charset=klingon", 415, "klingon"),
        (b"[1]", "application/json; charset=hex", 415, "hex"),
        (b"[1]", "audio/ogg", 415, "'audio/ogg' is not supported"),
        (b"[1]", None, 415, "no Content-Type"),
        (b"", JSON, 400, "malformed JSON: the body is empty"),
        (b"[1,", JSON, 400, "malformed JSON"),
        (b"[NaN]", JSON, 400, "NaN is not a JSON value"),
        (b"[[1, -1e999]]", JSON, 400, "larger than 64-bit floating point holds"),
        (b"[1" + b"0" * 400 + b".0]", JSON, 400, "larger than 64-bit floating point holds"),
        (b"[" * 100_000, JSON, 400, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", JSON, 400, "malformed JSON"),
        (b"", CSV, 400, "empty"),
        (b"1,2\n3", CSV, 400, "number of columns changed"),
        (b"1,x", CSV, 400, "could not convert string 'x'"),
        (b"", NPY, 400, "malformed NPY"),
        (npy(np.zeros(3))[:-1], NPY, 400, "is 24 bytes, 23 came"),
        (npy(np.zeros(3)) + b"!", NPY, 400, "is 24 bytes, 25 came"),
        (pickle.dumps([1]), NPY, 400, "malformed NPY"),
        (npy(np.array([{}], dtype=object)), NPY, 400, "Pickles are never loaded"),
        (npy(np.zeros(2, dtype=[("a", "i4")])), NPY, 400, r"dtype \["),
        (npy(np.array(["2020-01-01"], dtype="M8[D]")), NPY, 400, "M8"),
        (npy(np.zeros(3)), NPZ, 400, "malformed NPZ"),
        (npz(a=np.array([{}], dtype=object)), NPZ, 400, "in NPZ member 'a'"),
    ],
)
def test_decode_refuses_malformed_bodies(body: bytes, content_type: str | None, status: int, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        codecs.decode(body, content_type)
    assert refused.value.status == status


def test_npy_header_that_claims_terabytes_is_refused_before_memory_is_asked_for() -> None:
    header = npy(np.zeros(1)).replace(b"(1,), }", b"(1" + b"0" * 12 + b",), }")
    body = header[: 128 + 12]
    with pytest.raises(Refused, match="malformed NPY"):
        codecs.decode(body, NPY)


@pytest.mark.parametrize(
    ("descr", "shape", "body"),
    [
        ("<f3", (0,), b""),
        ("<f8", (0, 2**40, 2**40), b""),
        ("<f8", (-1,), b""),
        ("<f8", [1], bytes(8)),
        ("<f8", (True,), bytes(8)),
        ("<U1", (1,), b"\xff" * 4),
        ("<f8", (0,) * 40, b""),
    ],
)
def test_npy_headers_that_no_array_has_are_refused(descr: str, shape: Any, body: bytes) -> None:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    with pytest.raises(Refused) as refused:
        codecs.decode(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body, NPY)
    assert refused.value.status == 400


def test_npz_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs.arrays, "MAX_UNPACKED_BYTES", 10_000)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1 << 20))
    with pytest.raises(Refused, match="more than 10000 bytes") as refused:
        codecs.decode(stream.getvalue(), NPZ)
    assert refused.value.status == 413


# --- without a signature


def test_json_numbers_become_an_array_and_the_rest_stays_plain() -> None:
    assert codecs.decode(b"[[1, 2.5]]", JSON).tolist() == [[1, 2.5]]
    assert codecs.decode(b'{"inputs": ["a"]}', JSON) == {"inputs": ["a"]}
    assert codecs.decode(b'["a", "b"]', JSON) == ["a", "b"]
    assert codecs.decode(b"[[1], [2, 3]]", JSON) == [[1], [2, 3]]


def test_csv_has_the_shapes_of_the_official_toolkit() -> None:
    assert codecs.decode(b"1,2\n3,4\n", CSV).shape == (2, 2)
    assert codecs.decode(b"1,2,3\n", CSV).shape == (3,)


# --- held to the signature


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[[[1,2],[3,4]]]", JSON),
        (b'{"image": [[[1,2],[3,4]]]}', JSON),
        (npy(np.array([[[1, 2], [3, 4]]], np.uint8)), NPY),
        (npy(np.asfortranarray(np.array([[[1, 2], [3, 4]]], np.uint8))), NPY),
        (npz(image=np.array([[[1, 2], [3, 4]]], np.uint8)), NPZ),
        (npz(arr_0=np.array([[[1, 2], [3, 4]]], np.uint8)), NPZ),
    ],
)
def test_one_input_is_the_same_array_whatever_carried_it(body: bytes, content_type: str) -> None:
    array = codecs.decode(body, content_type, IMAGE)
    assert array.dtype == np.uint8
    assert array.flags.writeable
    assert array.tolist() == [[[1, 2], [3, 4]]]


def test_several_inputs_come_by_name() -> None:
    body = json.dumps({"right": [7], "left": [[1, 2.5, 3]]}).encode()
    arrays = codecs.decode(body, JSON, PAIR)
    assert {name: array.dtype.name for name, array in arrays.items()} == {"left": "float32", "right": "int64"}


def test_texts_come_as_lists() -> None:
    assert codecs.decode(b'["a", "b"]', JSON, TEXTS) == ["a", "b"]
    assert codecs.decode(b'a\n"b,c"\n', CSV, TEXTS) == ["a", "b,c"]


def test_csv_numbers_take_the_dtype_of_the_signature() -> None:
    array = codecs.decode(b"1,2,3\n", CSV, (Tensor("x", "float32", ("batch", 3)),))
    assert (array.dtype, array.shape) == (np.float32, (1, 3))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([[1, 2], [3, 4]], r"input 'image': shape \(2, 2\) came, \(batch, 2, 2\) is expected. .* wrap it in a list"),
        ([[[1, 2, 3]]], r"shape \(1, 1, 3\) came"),
        ([[[1, 2], [3]]], "unequal length or depth came, an array of uint8"),
        ([[[1, 2], [3, 0.5]]], r"fractions came \(0.5 at \[0, 1, 1\]\), uint8 is expected"),
        ([[[1, 2], [3, 256]]], r"256 at \[0, 1, 1\] is outside uint8 \(0 to 255\)"),
        ([[[1, 2], [3, -1]]], r"-1 at \[0, 1, 1\] is outside uint8"),
        ([[[1, 2], [3, "4"]]], r'strings came \("4" at \[0, 1, 1\]\)'),
        ([[[1, 2], [3, None]]], r"other than 64-bit numbers came \(null at \[0, 1, 1\]\)"),
        ([[[1, 2], [3, 2**70]]], r"other than 64-bit numbers came \(1180591620717411303424 at"),
        ([[[True, False], [True, True]]], "booleans came"),
        ([], r"shape \(0,\) came"),
        (7, r"shape \(\) came"),
        (None, r"shape \(\) came"),
        ({"imge": []}, "unknown input 'imge'. Did you mean 'image'"),
        ({}, "input 'image' is missing. Came: none. Expected: 'image'"),
        ({"image": {}}, "an object came"),
    ],
)
def test_a_misfit_says_which_input_what_came_and_what_was_expected(value: Any, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        codecs.decode(json.dumps(value).encode(), JSON, IMAGE)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("body", "content_type", "says"),
    [
        (b'{"left": [[1,2,3]], "right": [1, 2]}', JSON, "input 'right': dimension 'batch' is 2, but 1 in input 'left'"),
        (b'{"left": [[1,2,3]]}', JSON, "'right' is missing. Came: 'left'"),
        (b'{"left": [[1,2,1e39]], "right": [1]}', JSON, r"1e\+39 at \[0, 2\] is too large for float32"),
        (b"[[1,2,3]]", JSON, "one array came, but this model has the inputs 'left', 'right'"),
        (b"1,2,3", CSV, "CSV carries one array"),
    ],
)
def test_several_inputs_are_checked_together(body: bytes, content_type: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        codecs.decode(body, content_type, PAIR)


def test_npy_is_held_to_its_own_dtype() -> None:
    with pytest.raises(Refused, match="dtype float64 came, uint8 is expected"):
        codecs.decode(npy(np.zeros((1, 2, 2))), NPY, IMAGE)
    widened = codecs.decode(npy(np.ones((1, 3), np.float16)), NPY, (Tensor("x", "float32", ("batch", 3)),))
    assert widened.dtype == np.float32


def test_numbers_are_no_texts() -> None:
    with pytest.raises(Refused, match="strings are expected"):
        codecs.decode(b'["a", 1]', JSON, TEXTS)


def test_a_dtype_that_numpy_lacks_is_found_early() -> None:
    with pytest.raises(ValueError, match="'x' has dtype 'uint9'"):
        codecs.check_dtypes([Tensor("x", "uint9", (1,))])


# --- there and back

numbers = npst.arrays(
    dtype=st.sampled_from(["uint8", "int64", "float32", "float64", "bool", ">i4", "<f2"]),
    shape=npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    elements={"allow_nan": False, "allow_infinity": False},
)


@given(numbers)
def test_npy_and_npz_come_back_as_they_were(array: np.ndarray[Any, Any]) -> None:
    for kind in (NPY, NPZ):
        back = codecs.decode(codecs.encode(array, kind), kind)
        back = back["arr_0"] if kind == NPZ else back
        assert back.dtype == array.dtype.newbyteorder("=")
        assert back.shape == array.shape
        assert np.array_equal(back, array)


@given(numbers.filter(lambda array: array.ndim > 0 and array.size > 0))
def test_json_comes_back_equal(array: np.ndarray[Any, Any]) -> None:
    signature = (Tensor("x", array.dtype.name, tuple(f"d{n}" for n in range(array.ndim))),)
    back = codecs.decode(codecs.encode(array, JSON), JSON, signature)
    assert back.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(back, array)


@given(npst.arrays("float64", st.tuples(st.integers(1, 5), st.integers(1, 5)), elements={"allow_nan": False}))
def test_csv_comes_back_equal(array: np.ndarray[Any, Any]) -> None:
    back = codecs.decode(codecs.encode(array, CSV), CSV, (Tensor("x", "float64", ("rows", "columns")),))
    assert np.array_equal(back, array)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(json_values, st.sampled_from([(), IMAGE, PAIR, TEXTS]))
def test_any_json_is_decoded_or_refused(value: Any, inputs: tuple[Tensor, ...]) -> None:
    assert status_of(lambda: codecs.decode(json.dumps(value), JSON, inputs)) in (200, 400)


@given(st.binary(max_size=200), st.sampled_from(codecs.IN), st.sampled_from([(), IMAGE, PAIR, TEXTS, PICTURE]))
def test_any_bytes_are_decoded_or_refused(body: bytes, kind: str, inputs: tuple[Tensor, ...]) -> None:
    assert status_of(lambda: codecs.decode(body, kind, inputs)) in (200, 400, 415)


COLUMNS = {"left": np.ones((2, 3), np.float32), "right": np.arange(2), "text": np.array(["a", "b"])}
GOOD = {
    NPY: npy(np.arange(4, dtype=np.int16)),
    NPZ: npz(a=np.arange(4), b=np.ones(2)),
    ARROW: codecs.encode(COLUMNS, ARROW),
    PARQUET: codecs.encode(COLUMNS, PARQUET),
    PNG: codecs.encode(np.arange(24, dtype=np.uint8).reshape(2, 4, 3), PNG),
    codecs.JPEG: codecs.encode(np.arange(24, dtype=np.uint8).reshape(2, 4, 3), codecs.JPEG),
}


@given(st.sampled_from(list(GOOD)), st.data())
def test_damaged_arrays_are_decoded_or_refused(kind: str, data: st.DataObject) -> None:
    body = bytearray(GOOD[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert status_of(lambda: codecs.decode(bytes(body), kind)) in (200, 400, 413)


@given(st.sampled_from(list(GOOD)), st.data())
def test_bodies_that_are_cut_off_are_refused(kind: str, data: st.DataObject) -> None:
    body = GOOD[kind][: data.draw(st.integers(0, len(GOOD[kind]) - 1))]
    # An Arrow stream may end after any of its batches, a picture without its end mark.
    may_end = kind in (ARROW, PNG, codecs.JPEG)
    assert status_of(lambda: codecs.decode(body, kind)) in ((200, 400) if may_end else (400,))


@given(st.text(alphabet="{}()[]'\",: <>=|fiuOcVUSM0123456789descrortanhpFalseTrue_-\\\n", max_size=120))
def test_hostile_npy_headers_are_refused(header: str) -> None:
    raw = header.encode()
    body = b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw
    assert status_of(lambda: codecs.decode(body, NPY)) == 400


# --- out


def test_encode_reaches_arrays_and_tensors_inside() -> None:
    import torch

    value = {"label": [np.int64(3)], "score": torch.tensor([0.5], requires_grad=True), "half": torch.ones(1).bfloat16()}
    assert json.loads(codecs.encode(value, JSON)) == {"label": [3], "score": [0.5], "half": [1.0]}


def test_json_is_byte_for_byte_that_of_json_dumps() -> None:
    assert codecs.encode([[0.1, 2]], JSON) == json.dumps([[0.1, 2]]).encode()


def test_a_line_of_json_ends_at_its_own_end() -> None:
    body = '["a\u2028b\x85c"]\r\n["d"]\n'.encode()

    assert codecs.decode(body, codecs.JSON_LINES, [Tensor("x", "str", ("batch", 1))]) == [["a\u2028b\x85c"], ["d"]]


def test_csv_as_excel_writes_it_is_read() -> None:
    np.testing.assert_array_equal(codecs.decode(b"\xef\xbb\xbf1,2\r\n", codecs.CSV), [1, 2])


def test_what_a_line_cannot_hold_is_named() -> None:
    with pytest.raises(Unwritable, match=r"in line 2: output 'a' is nan, which JSON cannot hold"):
        codecs.encode({"a": np.array([1.0, np.nan])}, codecs.JSON_LINES)


@pytest.mark.parametrize("kind", [NPY, codecs.NPZ, codecs.CSV, codecs.OCTETS, codecs.ARROW, codecs.PARQUET])
def test_formats_of_floating_point_carry_nan_and_infinities_both_ways(kind: str) -> None:
    odd = np.array([[np.nan, np.inf], [-np.inf, 1.0]], np.float32)
    value = {"x": odd} if kind in (codecs.NPZ, codecs.ARROW, codecs.PARQUET) else odd

    came = codecs.decode(codecs.encode(value, kind), kind, [Tensor("x", "float32", ("batch", 2))])

    np.testing.assert_array_equal(came, odd)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": [1.0, float("nan")]}, r"output 'a' is nan at \[1\], which JSON cannot hold.*application/x-npz"),
        (np.array([[1.0, -np.inf]]), r"the prediction is -inf at \[0\]\[1\], .* application/x-npy"),
        (float("nan"), "the prediction is nan, which"),
        ([object()], "value of type object. Write an output_fn"),
        ({(1, 2): 3}, "keys must be str"),
        ([b"raw"], "type bytes"),
    ],
)
def test_what_json_cannot_hold_is_named(value: Any, says: str) -> None:
    with pytest.raises(Unwritable, match=says):
        codecs.encode(value, JSON)


def test_a_prediction_that_holds_itself_is_no_json() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Unwritable):
        codecs.encode(loop, JSON)


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ({"a": [1]}, CSV, "named values"),
        (np.zeros((2, 2, 2)), CSV, r"shape \(2, 2, 2\) does not fit"),
        ([[1], [2, 3]], NPY, "no array"),
        ([None], NPY, "no array of numbers"),
    ],
)
def test_a_prediction_that_fits_another_format_is_not_acceptable(value: Any, kind: str, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        codecs.encode(value, kind)
    assert refused.value.status == 406


def test_csv_writes_one_value_a_line_and_quotes_texts() -> None:
    assert codecs.encode([1, 2], CSV) == b"1\n2\n"
    assert codecs.encode(3, CSV) == b"3\n"
    assert codecs.encode([["a,b", "c"]], CSV) == b'"a,b",c\n'


# --- JSON Lines, octets, encodings


def test_json_lines_are_records() -> None:
    assert codecs.decode(b"[1, 2, 3]\n\n[4, 5, 6]\n", JSON_LINES, PAIR[:1]).tolist() == [[1, 2, 3], [4, 5, 6]]
    named = codecs.decode(b'{"left": [1, 2, 3], "right": 7}\n{"right": 8, "left": [4, 5, 6]}', JSON_LINES, PAIR)
    assert named["right"].tolist() == [7, 8]
    assert named["left"].dtype == np.float32
    assert codecs.decode(b'"a"\n"b"\n', JSON_LINES, TEXTS) == ["a", "b"]
    assert codecs.decode(b'{"a": 1}\n{"b": 2}', JSON_LINES) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\n", "the body is empty"),
        (b"[1, 2, 3]\n[4, 5,\n", "in line 2: malformed JSON"),
        (b'{"left": [1, 2, 3], "right": 7}\n{"left": [1, 2, 3]}', "record 2 is not as the first"),
        (b'{"left": [1, 2, 3], "right": 7}\n[4]', "record 2 is not as the first"),
        (b'{"left": [1, 2], "right": 7}', r"input 'left': shape \(1, 2\) came, \(batch, 3\) is expected"),
    ],
)
def test_json_lines_that_do_not_fit(body: bytes, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        codecs.decode(body, JSON_LINES, PAIR)
    assert refused.value.status == 400


def test_json_lines_are_written_row_by_row() -> None:
    assert codecs.encode(np.eye(2), JSON_LINES) == b"[1.0, 0.0]\n[0.0, 1.0]\n"
    assert codecs.encode({"a": [1, 2], "b": ["x", "y"]}, JSON_LINES) == b'{"a": 1, "b": "x"}\n{"a": 2, "b": "y"}\n'
    assert codecs.encode({"mean": 2.0}, JSON_LINES) == b'{"mean": 2.0}\n'
    assert codecs.encode(3, JSON_LINES) == b"3\n"


@given(npst.arrays("float32", st.tuples(st.integers(0, 4), st.just(3)), elements={"allow_nan": False}))
def test_octets_come_back_as_they_were(array: np.ndarray[Any, Any]) -> None:
    body = codecs.encode(array, OCTETS)
    assert body == array.astype("<f4").tobytes()
    back = codecs.decode(body, OCTETS, PAIR[:1])
    assert back.dtype == np.float32
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    ("inputs", "body", "status", "says"),
    [
        (PAIR[:1], b"12345", 400, r"'left': 5 bytes came, a multiple of 12 bytes of float32 \(batch, 3\)"),
        ((Tensor("x", "int16", (2,)),), b"123", 400, "3 bytes came, 4 bytes of int16"),
        ((Tensor("x", "bool", ("n",)),), b"\x02", 400, "other than 0 and 1"),
        (PAIR, b"", 415, "one array of numbers"),
        (TEXTS, b"abc", 415, "one array of numbers"),
    ],
)
def test_octets_that_do_not_fit(inputs: tuple[Tensor, ...], body: bytes, status: int, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        codecs.decode(body, OCTETS, inputs)
    assert refused.value.status == status


def test_octets_without_a_signature_are_left_alone() -> None:
    assert codecs.decode(b"\x00raw", OCTETS) == b"\x00raw"
    assert codecs.encode(b"\x00raw", OCTETS) == b"\x00raw"


def test_half_a_surrogate_pair_is_no_character() -> None:
    with pytest.raises(Refused, match="half of a surrogate pair"):
        codecs.decode(b'["\\ud800"]', JSON, TEXTS)


def test_gzip_is_unpacked_and_bombs_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert codecs.unpacked(gzip.compress(b"[1]"), "GZIP") == b"[1]"
    assert codecs.unpacked(b"[1]", "identity") == b"[1]"
    for body, encoding, status in (
        (b"[1]", "gzip", 400),
        (gzip.compress(b"[1]")[:-1], "gzip", 400),
        (gzip.compress(b"[1]") + b"!", "gzip", 400),
        (b"[1]", "br", 415),
        (b"[1]", "gzip, gzip", 415),
    ):
        assert status_of(partial(codecs.unpacked, body, encoding)) == status
    monkeypatch.setattr(codecs, "MAX_UNPACKED_BYTES", 1000)
    assert status_of(lambda: codecs.unpacked(gzip.compress(bytes(2000)), "gzip")) == 413


def test_the_first_type_that_the_prediction_fits_is_answered() -> None:
    assert codecs.respond({"a": [1]}, "text/csv, application/json;q=0.5") == (b'{"a": [1]}', JSON)
    with pytest.raises(Refused, match="named values") as refused:
        codecs.respond({"a": [1]}, "text/csv, image/png;q=0.1")
    assert refused.value.status == 406


@pytest.mark.parametrize(("kind", "package"), [(PARQUET, "pyarrow"), (PNG, "pillow")])
def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, kind: str, package: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    codecs.missing.cache_clear()
    with pytest.raises(Refused, match=f"needs {package}, which is not installed here") as refused:
        codecs.decode(b"", kind)
    assert refused.value.status == 415
    with pytest.raises(Refused, match=f"needs {package}") as refused:
        codecs.encode([1], kind)
    assert refused.value.status == 406
    codecs.missing.cache_clear()
