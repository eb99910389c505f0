from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from windlass.comparison import compare, mcnemar
from windlass.errors import InvalidInput


def evaluation(correct: str, where: str = "set", **metrics: float) -> dict[str, object]:
    values = {name: {"value": value} for name, value in metrics.items()}
    return {"multiclass_classification_metrics": values, "correct": correct, "evaluation_set": where}


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_p_value_is_that_of_the_binomial_test(only_first: int, only_second: int) -> None:
    total = only_first + only_second
    expected = binomtest(only_first, total).pvalue if total else 1.0
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_the_better_version_is_named_with_its_evidence() -> None:
    before = evaluation("1" * 80 + "0" * 20, accuracy=0.80, f1=0.7)
    after = evaluation("1" * 78 + "00" + "1" * 18 + "00", accuracy=0.96, f1=0.9)

    answer = compare("digits/1", before, "digits/2", after)

    assert (answer.samples, answer.only_first, answer.only_second) == (100, 2, 18)
    assert answer.difference == pytest.approx(0.16)
    assert answer.interval[0] < 0.16 < answer.interval[1]
    assert answer.better == "digits/2"
    assert answer.metrics == {"accuracy": (0.80, 0.96), "f1": (0.7, 0.9)}
    assert compare("digits/2", after, "digits/1", before).better == "digits/2"


def test_a_difference_that_may_be_chance_is_called_so() -> None:
    answer = compare("a/1", evaluation("1" * 95 + "0" * 5), "a/2", evaluation("1" * 98 + "00"))

    assert answer.difference > 0
    assert answer.better == ""
    assert "no significant difference" in str(answer)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw, covered = random.Random(0), 0
    for _ in range(400):
        first = "".join("01"[draw.random() < 0.8] for _ in range(500))
        second = "".join("01"[draw.random() < 0.85] for _ in range(500))
        low, high = compare("a/1", evaluation(first), "a/2", evaluation(second)).interval
        covered += low <= 0.05 <= high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (evaluation("01"), evaluation("01", "other"), "different data"),
        (evaluation("01"), evaluation("011"), "different data"),
        (evaluation("01"), {"samples": 2}, "evaluation of a/2 does not say"),
        (evaluation("02"), evaluation("01"), "evaluation of a/1 does not say"),
        (evaluation(""), evaluation(""), "does not say"),
        (evaluation("01", ""), evaluation("01", ""), "does not say"),
    ],
)
def test_what_cannot_be_compared_is_said(before: dict[str, object], after: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        compare("a/1", before, "a/2", after)


def test_the_page_is_whole_and_escapes_what_it_shows() -> None:
    page = compare("<b>/1", evaluation("01", accuracy=0.5), "a&b/2", evaluation("10", accuracy=0.5)).to_html()

    assert page.startswith("<!doctype html>")
    assert "<b>" not in page
    assert "a&amp;b/2" in page
    assert not re.search(r"https?://|<script|src=", page)
    assert json.dumps(page)


@pytest.mark.parametrize(
    ("metric", "colour"), [("accuracy", "up"), ("loss", "down"), ("val_error", "down"), ("p99_latency_ms", "down")]
)
def test_more_is_not_always_better(metric: str, colour: str) -> None:
    page = compare("a/1", evaluation("01", **{metric: 0.5}), "a/2", evaluation("10", **{metric: 0.6})).to_html()
    assert f"<td class={colour}>+0.1000" in page
