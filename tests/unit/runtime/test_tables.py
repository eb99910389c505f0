"""Arrow and Parquet: columns to inputs, outputs to columns."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from windlass.artifact import Tensor
from windlass.runtime import codecs
from windlass.runtime.codecs import ARROW, PARQUET, Refused, tables

PAIR = (Tensor("left", "float32", ("batch", 3)), Tensor("right", "int64", ("batch",)))
ROWS = (Tensor("x", "float64", ("batch", 2)),)
KINDS = pytest.mark.parametrize("kind", [ARROW, PARQUET])


def written(table: pa.Table, kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == PARQUET:
        pq.write_table(table, stream)
    else:
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
    return stream.getvalue()


@KINDS
def test_columns_are_inputs(kind: str) -> None:
    left = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4, 5, 6], pa.float32()), 3)
    named = codecs.decode(written(pa.table({"left": left, "right": [7, 8]}), kind), kind, PAIR)
    assert named["left"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (named["right"].dtype, named["right"].tolist()) == (np.int64, [7, 8])
    texts = codecs.decode(written(pa.table({"text": ["a", "b"]}), kind), kind, (Tensor("text", "str", ("batch",)),))
    assert texts == ["a", "b"]


@KINDS
def test_plain_columns_together_are_the_rows_of_one_input(kind: str) -> None:
    body = written(pa.table({"age": [1.0, 2.0], "height": [3.0, 4.0]}), kind)
    assert codecs.decode(body, kind, ROWS).tolist() == [[1, 3], [2, 4]]


def test_an_arrow_file_is_told_from_a_stream() -> None:
    stream = io.BytesIO()
    table = pa.table({"right": [1, 2]})
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    kind = "application/vnd.apache.arrow.file"
    assert codecs.decode(stream.getvalue(), kind, PAIR[1:]).tolist() == [1, 2]


@KINDS
@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"left": [[1.0, 2.0, 3.0]]}, "input 'left': dtype float64 came, float32 is expected"),
        ({"left": pa.array([[1.0, 2.0]], pa.list_(pa.float32())), "right": [1]}, r"shape \(1, 2\) came"),
        ({"left": [[1.0], [2.0, 3.0]], "right": [1, 2]}, "column 'left' holds lists of unequal length"),
        ({"right": [1, None]}, "column 'right' has no value in row 1"),
        ({"right": [{"a": 1}]}, "column 'right' has the type struct"),
        ({"wrong": [1]}, "unknown input 'wrong'"),
        ({}, "input 'left' is missing"),
    ],
)
def test_columns_that_do_not_fit(kind: str, columns: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        codecs.decode(written(pa.table(columns), kind), kind, PAIR)
    assert refused.value.status == 400


@KINDS
def test_two_columns_of_one_name_are_refused(kind: str) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["right", "right"])
    with pytest.raises(Refused, match="two columns have one name"):
        codecs.decode(written(table, kind), kind, PAIR)


@KINDS
def test_more_than_memory_should_hold_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Runs of zeros: 80 kB in memory, a few hundred bytes of Parquet.
    body = written(pa.table({"right": np.zeros(10_000, np.int64)}), kind)
    monkeypatch.setattr(tables, "MAX_UNPACKED_BYTES", 9_000)
    with pytest.raises(Refused, match="unpacks to more") as refused:
        codecs.decode(body, kind, PAIR[1:])
    assert refused.value.status == 413


@KINDS
def test_outputs_are_columns(kind: str) -> None:
    import torch

    body = codecs.encode({"label": ["a", "b"], "score": torch.tensor([[0.5, 1.0], [0.25, 2.0]])}, kind)
    table = pq.read_table(io.BytesIO(body)) if kind == PARQUET else pa.ipc.open_stream(body).read_all()
    assert table.to_pylist() == [{"label": "a", "score": [0.5, 1.0]}, {"label": "b", "score": [0.25, 2.0]}]
    with pytest.raises(Refused, match="unequal numbers of rows") as refused:
        codecs.encode({"a": [1], "b": [1, 2]}, kind)
    assert refused.value.status == 406


@given(
    npst.arrays(
        dtype=st.sampled_from(["uint8", "int64", "float32", "float64", "bool"]),
        shape=npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4),
        elements={"allow_nan": False},
    ),
    st.sampled_from([ARROW, PARQUET]),
)
def test_arrays_come_back_as_they_were(array: np.ndarray[Any, Any], kind: str) -> None:
    signature = (Tensor("output", array.dtype.name, tuple(f"d{n}" for n in range(array.ndim))),)
    back = codecs.decode(codecs.encode(array, kind), kind, signature)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array)
