"""Shares that hold at every moment."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.local.hosting.split import Split


@given(part=st.floats(0.001, 0.999), choices=st.integers(1, 500), seed=st.integers())
def test_of_two_options_each_is_off_by_less_than_one_choice(part: float, choices: int, seed: int) -> None:
    split: Split[str] = Split(random.Random(seed))

    chosen = [split.choose({"new": part, "old": 1 - part}) for _ in range(choices)]

    for number in range(1, choices + 1):
        assert abs(chosen[:number].count("new") - part * number) < 1 + 1e-6


@given(weights=st.lists(st.floats(0, 1000), min_size=1, max_size=6), seed=st.integers())
def test_many_options_hold_their_weights_closely(weights: list[float], seed: int) -> None:
    split: Split[int] = Split(random.Random(seed))
    options = dict(enumerate(weights))
    if not any(weights):
        with pytest.raises(LookupError):
            split.choose(options)
        return

    chosen = Counter(split.choose(options) for _ in range(1000))

    for option, weight in options.items():
        assert chosen[option] == pytest.approx(1000 * weight / sum(weights), abs=len(weights))
        assert weight or not chosen[option]


def test_no_caller_keeps_in_step_with_it() -> None:
    # given a caller that alternates between two kinds of request, and halves that would alternate too
    split: Split[str] = Split(random.Random(1))

    chosen = [split.choose({"a": 1, "b": 1}) for _ in range(400)]

    # then each kind meets both
    assert 60 < chosen[::2].count("a") < 140


def test_other_weights_begin_anew() -> None:
    split: Split[str] = Split()
    for _ in range(7):
        split.choose({"a": 1, "b": 3})

    assert [split.choose({"a": 1}) for _ in range(3)] == ["a"] * 3
    with pytest.raises(LookupError):
        split.choose({})
