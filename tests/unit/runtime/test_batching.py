"""Which requests run together."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.runtime.batching import Batcher, Sizer, unpadded


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
    assert list(unpadded([50, 900, 52, 10, 48, 700], 8)) == [0, 2, 4]
    assert list(unpadded([900, 10, 11, 850, 12, 890], 2)) == [0, 5]
    assert list(unpadded([5, 5], 8)) == [0, 1]
    assert list(unpadded([5, 500], 8)) == [0]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60), st.integers(1, 40))
def test_the_oldest_always_goes_and_padding_stays_small(lengths: list[int], count: int) -> None:
    chosen = list(unpadded(lengths, count))
    assert chosen[0] == 0
    assert len(chosen) == len(set(chosen)) <= count
    assert chosen == sorted(chosen)
    longest = max(lengths[index] for index in chosen)
    assert sum(lengths[index] for index in chosen) >= 0.84 * longest * len(chosen)


def batches(batcher: Batcher, seconds: Callable[[list[int]], float]) -> float:
    """Requests per second, once it has learnt, of a queue that holds 32 of mixed lengths."""
    shuffled = random.Random(1)
    waiting = [shuffled.randint(5, 200) for _ in range(32)]
    done, spent = 0, 0.0
    for turn in range(3000):
        batch = batcher.choose(waiting, len(waiting))
        taken = [waiting[index] for index in batch.positions]
        cost = seconds(taken)
        batcher.observe(batch, cost)
        if turn > 1000:
            done, spent = done + len(taken), spent + cost
        waiting = [length for index, length in enumerate(waiting) if index not in set(batch.positions)]
        waiting += [shuffled.randint(5, 200) for _ in taken]
    return done / spent


def test_texts_are_batched_by_length_where_padding_costs() -> None:
    """A model that takes 1 ms a batch and 10 us for each token, padding included."""
    learnt = batches(Batcher(32), lambda lengths: 1e-3 + 1e-5 * len(lengths) * max(lengths))
    without_padding_or_overhead = 1 / (1e-5 * 102.5)
    assert learnt > 0.7 * without_padding_or_overhead


def test_pictures_are_batched_whatever_their_length() -> None:
    """A model that takes 10 ms a batch and 0.1 ms a request."""
    learnt = batches(Batcher(32), lambda lengths: 1e-2 + 1e-4 * len(lengths))
    assert learnt > 0.8 * 32 / (1e-2 + 32e-4)
