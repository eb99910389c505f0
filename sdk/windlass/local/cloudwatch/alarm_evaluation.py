"""How the data points of an alarm become its state. Pure; the engine is in alarms.py.

    test = Test("GreaterThanThreshold", threshold=1.0, periods=3, to_alarm=2, missing="breaching")
    verdict = test.judge(datapoints)          # oldest first, over the evaluation range
    verdict.state                             # -> "ALARM", or None: stay as it is
    test.reason(verdict, "OK")                # -> AWS's wording

The rules are those of the CloudWatch User Guide, "Configuring how CloudWatch alarms treat missing data": CloudWatch looks at
some periods more than it evaluates (the evaluation range), prefers real data points to filling in, fills in as few as
possible, and does not wait for more data when everything recent is breaching or missing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

# The guide shows 5 periods for an alarm that evaluates 3. It gives no formula; two more for every alarm agrees with it.
EXTRA_PERIODS = 2

MISSING = {"missing": "Missing", "ignore": "Ignored", "breaching": "Breaching", "notBreaching": "NonBreaching"}

_OPERATORS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "GreaterThanThreshold": (operator.gt, "greater than"),
    "GreaterThanOrEqualToThreshold": (operator.ge, "greater than or equal to"),
    "LessThanThreshold": (operator.lt, "less than"),
    "LessThanOrEqualToThreshold": (operator.le, "less than or equal to"),
}
OPERATORS = tuple(_OPERATORS)


@dataclass(frozen=True)
class Datapoint:
    """One period. `value` is None when it has no data.

    Attributes:
        start: seconds since the epoch.
        samples: how many samples the value comes from, where that is known.
        enough: whether they are significant for the alarm's percentile.
    """

    start: float
    value: float | None
    samples: float | None = None
    enough: bool = True


@dataclass(frozen=True)
class Verdict:
    """What an evaluation says.

    Attributes:
        state: None when the alarm stays in the state it has.
        used: the real data points that were evaluated, oldest first.
        filled: how many missing ones were filled in.
    """

    state: str | None
    used: tuple[Datapoint, ...] = ()
    filled: int = 0


@dataclass(frozen=True)
class Test:
    """An alarm's condition: `to_alarm` of `periods` data points beyond the threshold.

    Attributes:
        missing: one of MISSING.
        out_of: whether the user asked for M out of N, which AWS words differently.
        ignore_low_samples: stay when a percentile comes from too few samples.
    """

    __test__ = False  # not a test of pytest's

    operator: str
    threshold: float
    periods: int
    to_alarm: int
    missing: str = "missing"
    out_of: bool = False
    ignore_low_samples: bool = False

    def breaches(self, datapoint: Datapoint) -> bool:
        return datapoint.value is not None and _OPERATORS[self.operator][0](datapoint.value, self.threshold)

    def judge(self, datapoints: Sequence[Datapoint]) -> Verdict:
        """The state that follows from the evaluation range, `datapoints` oldest first."""
        real = [point for point in datapoints if point.value is not None]
        used = tuple(real[-self.periods :])
        filled = self.periods - len(used)
        if self.ignore_low_samples and any(not point.enough for point in used):
            return Verdict(None, used, filled)
        breaching = sum(map(self.breaches, used))
        if filled and self.missing == "breaching":
            breaching += filled
        if breaching >= self.to_alarm:
            return Verdict("ALARM", used, filled)
        if filled and self.missing in ("missing", "ignore"):
            stay = None if self.missing == "ignore" else "INSUFFICIENT_DATA"
            if not used:
                return Verdict(stay, used, filled)
            if all(map(self.breaches, used)):
                # Too little to say yes, and nothing to say no. With the oldest as old as `to_alarm` periods, no data that may
                # still come can make a difference: AWS's "premature alarm state".
                age = next(age for age, point in enumerate(reversed(datapoints), 1) if point is used[0])
                if self.missing == "ignore":
                    return Verdict(None, used, filled)
                return Verdict("ALARM" if age >= self.to_alarm else "OK", used, filled)
        return Verdict("OK", used, filled)

    def reason(self, verdict: Verdict, before: str) -> str:
        """AWS's StateReason for a verdict that changes the state from `before`."""
        if verdict.state == "INSUFFICIENT_DATA":
            return f"Insufficient Data: {_count(verdict.filled, 'datapoint')} {_was(verdict.filled)} unknown."
        missing = (
            f"{_count(verdict.filled, 'missing datapoint')} {_was(verdict.filled)} treated as [{MISSING[self.missing]}]"
            if verdict.filled
            else ""
        )
        if not verdict.used:
            return f"Threshold Crossed: no datapoints were received for {_count(self.periods, 'period')} and {missing}."
        wanted = verdict.state == "ALARM"
        deciding = [point for point in reversed(verdict.used) if self.breaches(point) == wanted]
        if not deciding:
            return f"Threshold Crossed: {missing}."
        listed = ", ".join(f"{point.value!r} ({_day(point.start)})" for point in deciding)
        number = (
            f"{len(deciding)} out of the last {self.periods} datapoints"
            if self.out_of
            else _count(len(deciding), "datapoint")
        )
        comparison = f"{'' if wanted else 'not '}{_OPERATORS[self.operator][1]} the threshold ({self.threshold!r})"
        text = f"Threshold Crossed: {number} [{listed}] {_was(len(deciding))} {comparison}"
        if missing:
            text += f" and {missing}"
        if self.out_of:
            least = self.to_alarm if wanted else self.periods - self.to_alarm + 1
            text += f" (minimum {_count(least, 'datapoint')} for {before} -> {verdict.state} transition)"
        return text + "."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d/%m/%y %H:%M:%S")
