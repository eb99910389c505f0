"""Requests joined along the batch dimension, and predictions cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from windlass.artifact import Signature
from windlass.runtime.joint import Axis, Mismatch


def axis(inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], dtype: str = "float32") -> Axis | None:
    def tensors(named: dict[str, list[Any]]) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": dtype, "shape": shape} for name, shape in named.items()]

    return Axis.of(Signature.parse({"inputs": tensors(inputs), "outputs": tensors(outputs)}))


def one() -> Axis:
    found = axis({"x": ["batch", 2]}, {"y": ["batch"]})
    assert found
    return found


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"x": [3, 2]}, {"y": ["batch"]}),  # one fixed size
        ({"x": ["batch", 2]}, {"y": ["items"]}),  # another name
        ({"x": ["batch", 2]}, {"y": []}),  # a scalar for the whole batch
        ({"x": ["batch", 2]}, {"y": ["batch", "batch"]}),  # a matrix of all against all
    ],
)
def test_without_one_first_dimension_there_is_no_batch(inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    assert axis(inputs, outputs) is None


def test_arrays_are_joined_and_predictions_cut_by_rows() -> None:
    datas = [np.ones((1, 2), np.float32), np.zeros((3, 2), np.float32)]
    assert one().groups(datas) == [[0, 1]]
    batch = one().join(datas)
    parts = one().split(batch.sum(axis=1), [one().rows(data) for data in datas])
    assert [part.tolist() for part in parts] == [[2.0], [0.0, 0.0, 0.0]]


def test_dicts_are_joined_by_name_and_cut_by_name() -> None:
    found = axis({"a": ["n", 2], "b": ["n"]}, {"y": ["n"], "z": ["n", 2]})
    assert found
    datas = [{"a": np.full((n, 2), n), "b": np.full(n, n)} for n in (1, 2)]
    assert found.groups(datas) == [[0, 1]]
    batch = found.join(datas)
    parts = found.split({"y": batch["b"], "z": batch["a"]}, [1, 2])
    assert parts[1]["y"].tolist() == [2, 2]
    assert parts[1]["z"].tolist() == [[2, 2], [2, 2]]
    several = found.split((batch["b"], batch["a"]), [1, 2])
    assert [value.tolist() for value in several[0]] == [[1], [[1, 1]]]


def test_texts_are_joined_as_lists() -> None:
    found = axis({"text": ["batch"]}, {"y": ["batch"]}, dtype="str")
    assert found
    datas = [["a"], ["b", "c"]]
    assert found.groups(datas) == [[0, 1]]
    assert found.join(datas) == ["a", "b", "c"]


def test_what_differs_is_not_joined() -> None:
    datas: list[Any] = [
        np.ones((1, 2), np.float32),
        np.ones((1, 2), np.float64),
        np.ones((1, 3), np.float32),
        np.ones(2, np.float32),  # not the rank that the signature says
        [[1.0, 2.0]],  # no array
        {"other": np.ones((1, 2), np.float32)},
        np.ones((4, 2), np.float32),
    ]
    assert one().groups(datas) == [[0, 6], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize(
    "prediction",
    [np.ones(4), np.float32(3), [1, 2], {"y": np.ones(3), "extra": 1}, {"z": np.ones(3)}, "abcd", None, 7],
)
def test_what_is_not_as_the_signature_says_is_not_cut(prediction: Any) -> None:
    with pytest.raises(Mismatch):
        one().split(prediction, [1, 2])


def test_two_outputs_are_never_taken_for_two_rows() -> None:
    found = axis({"x": ["batch"]}, {"y": ["batch"], "z": ["batch"]})
    assert found
    with pytest.raises(Mismatch):
        found.split([[1, 2], [3, 4]], [1, 1])  # lists: rows of pairs, or a pair of rows?
    with pytest.raises(Mismatch):
        found.split(np.ones((2, 2)), [1, 1])
