from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass import monitor
from windlass.errors import InvalidInput

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def label(truth: object, at: str = "2026-01-02T12:00:10+00:00") -> monitor._Label:
    return monitor._Label(truth, at)


def test_accuracy_counts_matches_and_lag() -> None:
    seen = [
        (NOON, {"label": [7]}, label(7)),
        (NOON, {"label": [3]}, label(4)),
        (NOON, {"label": [1, 2]}, label([1, 2])),
    ]
    quality = monitor._judge("digits/1", seen, 0.5, "label", "here")
    assert (quality.accuracy, quality.samples, quality.lag_seconds) == (0.75, 4, 10.0)
    assert quality.coverage_percent == 50
    assert quality.lower_bound < quality.accuracy


@pytest.mark.parametrize(
    ("answer", "truth", "says"),
    [({"class": [1]}, 1, "no 'label'; it has class"), ({"label": [1, 2]}, 1, "2 predictions but 1 labels")],
)
def test_an_answer_that_cannot_be_judged_is_explained(answer: object, truth: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        monitor._judge("digits/1", [(NOON, answer, label(truth))], 1.0, "label", "here")


@pytest.mark.parametrize(
    ("right", "total", "expected"), [(95, 100, 0.8882), (0, 10, 0.0), (10, 10, 0.7225), (50, 100, 0.4038)]
)
def test_wilson_bound_matches_published_values(right: int, total: int, expected: float) -> None:
    assert monitor.wilson_lower_bound(right, total) == pytest.approx(expected, abs=5e-4)


@given(st.integers(1, 10_000), st.data())
def test_the_bound_is_a_share_below_the_point_estimate(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    assert 0 <= monitor.wilson_lower_bound(right, total) <= right / total + 1e-12
