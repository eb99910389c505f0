"""What CacheConfig and RetryPolicies of a step mean."""

from __future__ import annotations

import math
from typing import Any

import pytest

from windlass.local.pipelines.policies import BadPolicy, Cache, Retry


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("P30D", 30 * 86_400),
        ("p30d", 30 * 86_400),
        ("30d", 30 * 86_400),
        ("T12H", 43_200),
        ("PT12H", 43_200),
        ("P4DT12H30M5S", 4 * 86_400 + 12 * 3600 + 30 * 60 + 5),
        ("P1Y2M1W", (365 + 60 + 7) * 86_400),
        (None, math.inf),
    ],
)
def test_results_stay_good_for_an_iso_8601_duration(given: str | None, seconds: float) -> None:
    assert Cache.read({"Enabled": True, "ExpireAfter": given}) == Cache(seconds)


def test_a_cache_can_be_off() -> None:
    assert Cache.read({"Enabled": False, "ExpireAfter": "P1D"}) is None


@pytest.mark.parametrize(
    "given",
    [None, {}, {"Enabled": "yes"}, *({"Enabled": True, "ExpireAfter": bad} for bad in ("P", "", "soon", "12", 5))],
)
def test_a_cache_config_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(BadPolicy, match="CacheConfig"):
        Cache.read(given)


def test_attempts_come_further_and_further_apart_until_there_are_none_left() -> None:
    policy = Retry.read(
        {"ExceptionType": ["Step.THROTTLING"], "IntervalSeconds": 10, "BackoffRate": 3, "MaxAttempts": 3}
    )

    assert [policy.delay(attempt, 0) for attempt in (1, 2, 3, 4)] == [10, 30, 90, None]


def test_attempts_end_with_their_time() -> None:
    policy = Retry.read({"ExceptionType": "SageMaker.CAPACITY_ERROR", "ExpireAfterMin": 2})

    assert policy.delay(50, 119.9) is not None
    assert policy.delay(1, 120) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no", "ExceptionType of RetryPolicies must be some of"),
        ({"MaxAttempts": 1}, "ExceptionType of RetryPolicies must be some of"),
        ({"ExceptionType": ["Step.OTHER"], "MaxAttempts": 1}, "not \\['Step.OTHER'\\]"),
        ({"ExceptionType": ["Step.THROTTLING"]}, "exactly one of MaxAttempts and ExpireAfterMin"),
        ({"ExceptionType": ["Step.THROTTLING"], "MaxAttempts": 1, "ExpireAfterMin": 1}, "exactly one of"),
        (
            {"ExceptionType": ["Step.THROTTLING"], "MaxAttempts": 21},
            "MaxAttempts of RetryPolicies must be a number from 1 to 20",
        ),
        ({"ExceptionType": ["Step.THROTTLING"], "MaxAttempts": "many"}, "not 'many'"),
        ({"ExceptionType": ["Step.THROTTLING"], "MaxAttempts": 2, "IntervalSeconds": 0}, "IntervalSeconds"),
    ],
)
def test_a_retry_policy_that_is_none_is_refused(given: Any, message: str) -> None:
    with pytest.raises(BadPolicy, match=message):
        Retry.read(given)
