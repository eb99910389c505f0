"""Which requests run together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.runtime.batching import Sizer, alike


def settle(sizer: Sizer, seconds: Callable[[int], float], batches: int = 50) -> int:
    """The size it takes when plenty wait and a batch of n takes seconds(n)."""
    size = 0
    for _ in range(batches):
        size = sizer.best(1000)
        sizer.observe(size, seconds(size))
    return size


def test_a_model_that_gains_nothing_from_batches_gets_one_request_at_a_time() -> None:
    assert settle(Sizer(32), lambda size: 0.010 * size) == 1


def test_a_model_whose_batches_cost_the_same_whatever_their_size_gets_the_largest() -> None:
    assert settle(Sizer(32), lambda size: 0.010) == 32


def test_the_size_where_the_gain_ends_is_found() -> None:
    def seconds(size: int) -> float:
        return 0.008 + 0.001 * size if size <= 8 else 0.003 * size

    assert settle(Sizer(32), seconds) == 8


def test_it_finds_out_when_costs_change() -> None:
    sizer = Sizer(16)
    assert settle(sizer, lambda size: 0.010 * size) == 1
    assert settle(sizer, lambda size: 0.010, batches=5000) == 16


def test_no_more_are_taken_than_wait_or_than_allowed() -> None:
    sizer = Sizer(6)
    assert settle(sizer, lambda size: 0.010) == 6
    assert sizer.best(waiting=3) == 3
    assert sizer.best(waiting=0) == 1
    assert Sizer(1).best(100) == 1


def test_what_a_request_costs_is_known_after_the_first_batch() -> None:
    sizer = Sizer(8)
    assert sizer.request_seconds == 0
    sizer.observe(4, 0.020)
    assert sizer.request_seconds == pytest.approx(0.005)


def test_the_oldest_goes_with_those_of_its_length() -> None:
    assert list(alike([50, 900, 52, 10, 48, 700], 3)) == [0, 2, 4]
    assert list(alike([900, 10, 11, 800, 12, 850], 3)) == [0, 3, 5]
    assert list(alike([5, 5], 8)) == [0, 1]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60), st.integers(1, 40))
def test_the_oldest_always_goes_and_each_goes_once(lengths: list[int], count: int) -> None:
    chosen = list(alike(lengths, count))
    assert chosen[0] == 0
    assert len(chosen) == len(set(chosen)) == min(count, len(lengths))
    assert chosen == sorted(chosen)
