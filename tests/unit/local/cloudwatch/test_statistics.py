"""Against NumPy, or against numbers worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.local.cloudwatch.statistics import POINT, Points, Statistic


def samples(values: Sequence[float], counts: Sequence[float] | None = None) -> Points:
    counts = counts or [1.0] * len(values)
    return Points.of(np.array([(0, v * c, c, v, v, 1, 0, 1) for v, c in zip(values, counts, strict=True)], POINT))


def of_one_bucket(name: str, points: Points) -> float | None:
    present, values = Statistic.parse(name).over(points, np.zeros(len(points), np.int64))
    return float(values[0]) if len(present) else None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SampleCount", 6.0),
        ("Sum", 14.0),
        ("Average", 14 / 6),
        ("Minimum", 1.0),
        ("Maximum", 3.0),
        ("p0", 1.0),
        ("p50", 2.5),  # of 1 2 2 3 3 3, half way between the third and the fourth
        ("p100", 3.0),
        ("p20", 2.0),
        ("tm50", (1 + 2 + 2) / 3),
        ("TM(50%:)", 3.0),
        ("TM(1:2)", 2.0),  # values above 1 and up to 2
        ("tc50", 3.0),
        ("TC(1:)", 5.0),
        ("ts50", 5.0),
        ("TS(:2)", 5.0),
        ("PR(:2)", 50.0),
        ("PR(2:)", 50.0),
        ("IQM", (0.5 * 2 + 2 + 3 + 0.5 * 3) / 3),  # 25 % to 75 %: half a 2, a 2, a 3 and half a 3
        ("wm50", (1 + 2 * 5) / 6),  # everything above the median's value counts as 2
    ],
)
def test_statistics_of_counted_values(name: str, expected: float) -> None:
    counted = samples([3.0, 1.0, 2.0], [3, 1, 2])
    assert of_one_bucket(name, counted) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.integers(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], rank: int) -> None:
    assert of_one_bucket(f"p{rank}", samples(values)) == pytest.approx(np.percentile(values, rank))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1e6)), min_size=1, max_size=60))
def test_buckets_do_not_disturb_each_other(pairs: list[tuple[int, float]]) -> None:
    points, buckets = samples([value for _, value in pairs]), np.array([bucket for bucket, _ in pairs], np.int64)
    for name, work in [
        ("Sum", np.sum),
        ("Average", np.mean),
        ("Minimum", np.min),
        ("Maximum", np.max),
        ("p50", np.median),
    ]:
        present, values = Statistic.parse(name).over(points, buckets)
        assert present.tolist() == sorted({bucket for bucket, _ in pairs})
        for bucket, value in zip(present, values, strict=True):
            assert value == pytest.approx(work([each for other, each in pairs if other == bucket]))


def test_a_statistic_set_has_no_percentiles_unless_all_its_values_are_one() -> None:
    spread = Points.of(np.array([(0, 30.0, 3.0, 5.0, 15.0, 1, 0, 1)], POINT))
    same = Points.of(np.array([(0, 30.0, 3.0, 10.0, 10.0, 1, 0, 1)], POINT))
    assert of_one_bucket("Average", spread) == 10
    assert of_one_bucket("p50", spread) is None
    assert of_one_bucket("tm90", spread) is None
    assert of_one_bucket("p50", same) == 10


def test_negative_values_have_no_percentiles_on_aws() -> None:
    assert of_one_bucket("p50", samples([-1.0, 2.0])) is None
    assert of_one_bucket("Minimum", samples([-1.0, 2.0])) == -1


def test_no_points_give_no_values() -> None:
    for name in ("Sum", "p99"):
        assert [len(part) for part in Statistic.parse(name).over(samples([]), np.empty(0, np.int64))] == [0, 0]


@pytest.mark.parametrize(
    "name", ["", "average", "p101", "p", "p-1", "TM(:)", "TM(90%:10%)", "TM(10%:110%)", "median", "PR(%)"]
)
def test_unknown_statistics(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(name)}$"):
        Statistic.parse(name)


@pytest.mark.parametrize(
    ("name", "count", "enough"),
    [("p99", 999, False), ("p99", 1001, True), ("p50", 20, True), ("p10", 99, False), ("Average", 1, True)],
)
def test_what_aws_calls_statistically_significant(name: str, count: float, enough: bool) -> None:
    assert Statistic.parse(name).enough_samples(count) is enough


@pytest.mark.parametrize("name", ["p50", "p99.9", "tm90", "Average", "Maximum"])
def test_many_plain_points_are_the_same_as_each_bucket_alone(name: str) -> None:
    values = np.random.default_rng(7).uniform(0, 100, 400)
    points, buckets = samples(values.tolist()), np.arange(400) % 4
    present, found = Statistic.parse(name).over(points, buckets)
    assert present.tolist() == [0, 1, 2, 3]
    alone = [of_one_bucket(name, samples(values[buckets == bucket].tolist())) for bucket in range(4)]
    assert found.tolist() == pytest.approx(alone)


@pytest.mark.parametrize("counts", [[1.0, 1.0], [1.0, 3.0]])
def test_points_survive_packing(counts: list[float]) -> None:
    points = samples([1.5, 2.5], counts)
    packed = Points.unpack(points.pack())
    assert packed.is_plain is points.is_plain is (counts == [1.0, 1.0])
    both = Points.join([packed, points[::-1], samples([7.0])])
    assert both.low.tolist() == [1.5, 2.5, 2.5, 1.5, 7.0]
    assert both.count.tolist() == [*counts, *counts[::-1], 1.0]
    assert both.total.tolist() == [low * count for low, count in zip(both.low, both.count, strict=True)]
