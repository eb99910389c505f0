"""What a step may do instead of running, and after it has failed: take the results of an earlier run, or try again.

    cache = Cache.read({"Enabled": True, "ExpireAfter": "P30D"})      # cache.seconds
    retries = [Retry.read(each) for each in step["RetryPolicies"]]    # retry.delay(attempt)

The guides: "Caching Pipeline Steps" and "Retry Policy for Pipeline Steps".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SERVICE_FAULT = "Step.SERVICE_FAULT"
THROTTLING = "Step.THROTTLING"
INTERNAL_ERROR = "SageMaker.JOB_INTERNAL_ERROR"
CAPACITY_ERROR = "SageMaker.CAPACITY_ERROR"
RESOURCE_LIMIT = "SageMaker.RESOURCE_LIMIT"
EXCEPTION_TYPES = (SERVICE_FAULT, THROTTLING, INTERNAL_ERROR, CAPACITY_ERROR, RESOURCE_LIMIT)

_DURATION = re.compile(
    r"P?(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", re.IGNORECASE
)
_SECONDS = (365 * 86_400, 30 * 86_400, 7 * 86_400, 86_400, 3600, 60, 1)


class BadPolicy(ValueError):
    """The policy is none; ``str()`` says why."""


@dataclass(frozen=True)
class Cache:
    """CacheConfig: how old the results of an earlier run may be. ``seconds`` is infinite without ExpireAfter."""

    seconds: float = math.inf

    @classmethod
    def read(cls, given: Any) -> Cache | None:
        """None when caching is off. Raises BadPolicy."""
        if not isinstance(given, Mapping) or not isinstance(given.get("Enabled"), bool):
            raise BadPolicy("CacheConfig must have Enabled, true or false.")
        if not given["Enabled"]:
            return None
        if given.get("ExpireAfter") is None:
            return cls()
        matched = _DURATION.fullmatch(str(given["ExpireAfter"]))
        if matched is None or not any(matched.groups()):
            raise BadPolicy(
                f"CacheConfig.ExpireAfter must be a duration of ISO 8601, such as P30D or PT12H, not '{given['ExpireAfter']}'."
            )
        return cls(sum(int(part or 0) * size for part, size in zip(matched.groups(), _SECONDS, strict=True)))


@dataclass(frozen=True)
class Retry:
    """One of a step's RetryPolicies: for which exceptions it is tried again, how often, and how long after."""

    exceptions: frozenset[str]
    interval_seconds: float = 1
    backoff: float = 2.0
    most_attempts: float = math.inf
    minutes: float = math.inf

    @classmethod
    def read(cls, given: Any) -> Retry:
        """Raises BadPolicy."""
        kinds = given.get("ExceptionType") if isinstance(given, Mapping) else None
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not kinds or not isinstance(kinds, list) or (unknown := set(kinds) - set(EXCEPTION_TYPES)):
            named = f", not {sorted(unknown)}" if kinds and isinstance(kinds, list) else ""
            raise BadPolicy(f"ExceptionType of RetryPolicies must be some of {', '.join(EXCEPTION_TYPES)}{named}.")
        if bool(given.get("MaxAttempts")) == bool(given.get("ExpireAfterMin")):
            raise BadPolicy("RetryPolicies must have exactly one of MaxAttempts and ExpireAfterMin.")
        values = {}
        for member, low, high in (
            ("IntervalSeconds", 1, math.inf),
            ("BackoffRate", 0, math.inf),
            ("MaxAttempts", 1, 20),
            ("ExpireAfterMin", 1, 14_400),
        ):
            if (value := given.get(member)) is not None:
                if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                    raise BadPolicy(f"{member} of RetryPolicies must be a number from {low} to {high}, not '{value}'.")
                values[member] = value
        return cls(
            frozenset(kinds),
            values.get("IntervalSeconds", 1),
            values.get("BackoffRate", 2.0),
            values.get("MaxAttempts", math.inf),
            values.get("ExpireAfterMin", math.inf),
        )

    def delay(self, attempt: int, passed_seconds: float) -> float | None:
        """Seconds until the attempt after that one, the first of which is 1; None when there is none.

        Args:
            passed_seconds: since the step has started.
        """
        if attempt > self.most_attempts or passed_seconds >= self.minutes * 60:
            return None
        return self.interval_seconds * self.backoff ** (attempt - 1)
