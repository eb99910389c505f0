"""What is asked again, how soon, and what it may cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.errors import InvalidInput, ModelFailed, ServiceError, Throttled, Unreachable, WaitTimeout
from windlass.retries import NEVER, Budget, Retry, asked_seconds


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


NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        (" 120 ", 120.0),
        ("0", 0.0),
        ("9" * 400, float("inf")),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),  # the two obsolete forms
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0),  # past
        ("", 0.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("\u0663", 0.0),
        ("soon", 0.0),
        ("Sun, 99 Nov 1994 08:49:47 GMT", 0.0),
    ],
)
def test_what_a_server_asks_for_is_read(header: str, seconds: float) -> None:
    assert asked_seconds(Throttled("busy", status=429, retry_after=header), NOW) == seconds


@given(st.text())
def test_any_header_is_read_as_some_time(header: str) -> None:
    assert asked_seconds(Throttled("busy", status=429, retry_after=header), NOW) >= 0


@pytest.mark.parametrize(
    ("status", "words", "seconds"),
    [
        (503, "all workers are busy and the queue is full. Retry after 7 s.\n", 7.0),
        (429, "Retry after 7 s.", 7.0),
        (500, "Retry after 7 s.", 0.0),  # a model that raised, whatever it says
        (503, "Retry after 7 s. Or not.", 0.0),
    ],
)
def test_the_words_of_a_model_server_are_read_where_sagemaker_drops_its_headers(
    status: int, words: str, seconds: float
) -> None:
    assert asked_seconds(ModelFailed(words, status=status), NOW) == seconds


def test_pauses_are_no_shorter_than_asked_for_and_spread_all_the_same() -> None:
    retry = Retry(first_pause_seconds=0.1, longest_asked_seconds=20)

    assert retry.pause(1, 0, 3) == 3
    assert retry.pause(1, 1, 3) == pytest.approx(3.1)
    assert retry.pause(1, 0, 21) == float("inf")


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
