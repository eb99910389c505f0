"""What is asked again, how soon, and what it may cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.errors import InvalidInput, ModelFailed, ServiceError, Throttled, Unreachable, WaitTimeout
from windlass.retries import NEVER, Budget, Retry


def unreachable(*, sent: bool) -> Unreachable:
    error = Unreachable("no answer")
    error.sent = sent
    return error


@pytest.mark.parametrize(
    ("error", "at_first", "where_harmless"),
    [
        (Throttled("too many", status=400), True, True),
        (unreachable(sent=False), True, True),
        (unreachable(sent=True), False, True),
        (ModelFailed("the queue is full", status=503), True, True),
        (ModelFailed("it raised", status=500), False, True),
        (ModelFailed("a wrong shape", status=400), False, False),
        (ServiceError("ServiceUnavailable", status=503), True, True),
        (ServiceError("InternalFailure", status=500), False, True),
        (WaitTimeout("no answer"), False, False),
        (ValueError("ours"), False, False),
    ],
)
def test_only_what_the_model_cannot_have_seen_is_asked_again(
    error: Exception, at_first: bool, where_harmless: bool
) -> None:
    assert (Retry().allows(error), Retry(idempotent=True).allows(error)) == (at_first, where_harmless)


def test_statuses_are_configurable() -> None:
    assert Retry(statuses=frozenset({500})).allows(ModelFailed("it raised", status=500))
    assert not Retry(statuses=frozenset()).allows(ModelFailed("the queue is full", status=503))


@given(attempt=st.integers(1, 10_000), chance=st.floats(0, 1))
def test_pauses_grow_up_to_the_longest_and_are_spread(attempt: int, chance: float) -> None:
    retry = Retry(first_pause_seconds=0.1, longest_pause_seconds=2)

    assert 0 <= retry.pause(attempt, chance) <= 2
    assert retry.pause(attempt, 0) == 0
    assert retry.pause(1, 1) == 0.1
    assert retry.pause(attempt, 1) <= retry.pause(attempt + 1, 1)


@given(st.lists(st.booleans(), max_size=300))
def test_a_budget_never_gives_more_than_it_had_and_earned(requests: list[bool]) -> None:
    budget = Budget(share=0.1, most=10)
    earned, spent = 0, 0

    for retry in requests:
        if retry:
            spent += budget.spend()
        else:
            budget.earn()
            earned += 1

    assert spent <= 10 + 0.1 * earned + 1e-6


def test_an_endpoint_that_fails_altogether_meets_a_tenth_more() -> None:
    budget = Budget(share=0.1, most=10)
    retries = 0

    for _ in range(1000):
        budget.earn()
        retries += budget.spend() + budget.spend()

    assert retries == pytest.approx(110, abs=2)


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first_pause_seconds": -1}, {"longest_pause_seconds": float("nan")}]
)
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=f"{next(iter(wrong))}=.* is too small"):
        Retry(**wrong)  # type: ignore[arg-type]


def test_never_is_one_attempt() -> None:
    assert NEVER.attempts == 1
