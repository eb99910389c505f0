"""Which requests run together."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.runtime.batching import Batch, Batcher

Cost = Callable[[Sequence[int]], float]  # of a batch, by the lengths of its requests
ONE_BY_ONE: Cost = lambda lengths: 0.010 * len(lengths)  # noqa: E731 - a cost, like those below
ALL_AT_ONCE: Cost = lambda lengths: 0.010  # noqa: E731


def settle(batcher: Batcher, cost: Cost, batches: int = 50) -> int:
    """The size it takes when plenty of one length wait."""
    for _ in range(batches):
        batch = batcher.choose([100] * 1000, 1000)
        batcher.observe(batch, cost([100] * len(batch.positions)))
    return len(batcher.choose([100] * 1000, 1000).positions)


def test_a_model_that_gains_nothing_from_batches_gets_one_request_at_a_time() -> None:
    assert settle(Batcher(32), ONE_BY_ONE) == 1


def test_a_model_whose_batches_cost_the_same_whatever_their_size_gets_the_largest() -> None:
    assert settle(Batcher(32), ALL_AT_ONCE) == 32


def test_the_size_where_the_gain_ends_is_found() -> None:
    def cost(lengths: Sequence[int]) -> float:
        return 0.008 + 0.001 * len(lengths) if len(lengths) <= 8 else 0.003 * len(lengths)

    assert settle(Batcher(32), cost) == 8


def test_it_finds_out_when_costs_change() -> None:
    batcher = Batcher(16)
    assert settle(batcher, ONE_BY_ONE) == 1
    assert settle(batcher, ALL_AT_ONCE, batches=5000) == 16
    assert settle(batcher, ONE_BY_ONE, batches=5000) == 1


def test_no_more_are_taken_than_wait_or_than_allowed() -> None:
    batcher = Batcher(6)
    assert settle(batcher, ALL_AT_ONCE) == 6
    assert len(batcher.choose([100] * 3, 3).positions) == 3
    assert len(batcher.choose([100] * 9, 2).positions) == 2
    assert len(batcher.choose([100], 0).positions) == 1
    assert len(Batcher(1).choose([100] * 9, 1).positions) == 1


def test_what_a_request_costs_is_known_after_the_first_batch() -> None:
    batcher = Batcher(8)
    assert batcher.request_seconds == 0
    batcher.observe(Batch(range(4), 100, 400), 0.020)
    assert batcher.request_seconds == pytest.approx(0.005)


def serve(batcher: Batcher, cost: Cost, *, seed: int, batches: int) -> tuple[float, int]:
    """Requests per second of the last half, of a queue that holds 32 of mixed lengths; and the most that one was overtaken."""
    random_length = random.Random(seed).randint
    waiting = deque((0, random_length(5, 200)) for _ in range(32))
    done, spent, overtaken = 0, 0.0, 0
    for turn in range(batches):
        batch = batcher.choose([length for _, length in waiting], len(waiting))
        taken = [waiting[index] for index in batch.positions]
        overtaken = max(overtaken, *(turn - came for came, _ in taken))
        seconds = cost([length for _, length in taken])
        batcher.observe(batch, seconds)
        if turn > batches // 2:
            done, spent = done + len(taken), spent + seconds
        for index in reversed(batch.positions):
            del waiting[index]
        waiting.extend((turn, random_length(5, 200)) for _ in taken)
    return done / spent, overtaken


def test_texts_are_batched_by_length_where_padding_costs() -> None:
    """A model that takes 1 ms a batch and 10 us for each token, padding included."""
    learnt, _ = serve(Batcher(32), lambda lengths: 1e-3 + 1e-5 * len(lengths) * max(lengths), seed=1, batches=400)
    without_padding_or_overhead = 1 / (1e-5 * 102.5)
    assert learnt > 0.7 * without_padding_or_overhead


def test_pictures_are_batched_whatever_their_length() -> None:
    """A model that takes 10 ms a batch and 0.1 ms a request."""
    learnt, _ = serve(Batcher(32), lambda lengths: 1e-2 + 1e-4 * len(lengths), seed=1, batches=400)
    assert learnt > 0.9 * 32 / (1e-2 + 32e-4)


def test_texts_are_not_sorted_for_a_model_that_pads_nothing() -> None:
    """A model that takes 5 ms a batch and 10 us for each token, none of them padding: large batches in the order they came."""
    learnt, _ = serve(Batcher(16), lambda lengths: 5e-3 + 1e-5 * sum(lengths), seed=1, batches=400)
    assert learnt > 0.9 * 16 / (5e-3 + 16 * 102.5e-5)


@given(st.floats(0, 0.1), st.floats(0, 1e-2), st.floats(1e-7, 1e-4), st.integers(0, 99))
def test_none_starves(batch: float, request: float, token: float, seed: int) -> None:
    """Each batch takes the oldest, so that one is overtaken at most by those that waited before it came."""
    cost = lambda lengths: batch + len(lengths) * (request + token * max(lengths))  # noqa: E731
    _, overtaken = serve(Batcher(32), cost, seed=seed, batches=100)
    assert overtaken <= 32


@given(st.lists(st.lists(st.integers(0, 10_000), min_size=1, max_size=60), min_size=1), st.integers(1, 40), st.data())
def test_the_oldest_always_goes_and_never_too_many(queues: list[list[int]], most: int, data: st.DataObject) -> None:
    batcher = Batcher(most)
    for lengths in queues:
        count = data.draw(st.integers(0, 60))
        batch = batcher.choose(lengths[:most], count)
        chosen = list(batch.positions)
        assert chosen[0] == 0
        assert chosen == sorted(set(chosen))
        assert len(chosen) <= max(1, min(count, most, len(lengths)))
        assert batch.longest == max(lengths[index] for index in chosen)
        batcher.observe(batch, data.draw(st.floats(0, 1)))


@given(st.floats(0, 0.1), st.floats(1e-6, 1e-2), st.integers(1, 64))
def test_the_cheapest_size_is_learnt_although_the_first_batch_of_each_is_slow(
    batch: float, request: float, most: int
) -> None:
    """A hundred times as slow, as when an engine compiles. Five batches of each size must do."""

    def cost(count: int) -> float:
        return batch + count * request

    batcher, seen = Batcher(most), set[int]()
    for _ in range(5 * 7):
        count = len(batcher.choose([100] * 99, 99).positions)
        batcher.observe(Batch(range(count), 100, 100 * count), cost(count) * (1 if count in seen else 100))
        seen.add(count)
    chosen = len(batcher.choose([100] * 99, 99).positions)
    cheapest = cost(most) / most
    assert cost(chosen) / chosen <= cheapest * 1.05**6 * 1.0001
    assert cost(1) <= cheapest * 1.05 or chosen > 1 or most == 1
