"""EventBridge's schedule expressions.

    schedule = Schedule.parse("cron(0 10 ? * MON-FRI *)")     # or "rate(5 minutes)"
    schedule.next_after(time)                                 # seconds since the epoch; None when there is none

The rules are those of the EventBridge user guide, "Setting a schedule pattern": UTC, six fields, one of the two days a ``?``.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

_RATE = re.compile(r"rate\((\d+) (minute|minutes|hour|hours|day|days)\)")
_CRON = re.compile(r"cron\((.*)\)")
_SECONDS = {"minute": 60, "hour": 3600, "day": 86_400}
_MONTHS = [name.upper() for name in calendar.month_abbr]
_DAYS = ["", "SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]  # AWS counts from Sunday = 1
_YEARS = (1970, 2199)


@dataclass(frozen=True)
class Schedule:
    """Either `every` seconds, or what `cron` says."""

    text: str
    every: int | None = None
    cron: _Cron | None = None

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Raises ValueError for what EventBridge refuses."""
        if match := _RATE.fullmatch(text):
            number, unit = int(match[1]), match[2]
            # "rate(1 minute)" and "rate(2 minutes)", and neither the other way round.
            if number < 1 or (number == 1) == unit.endswith("s"):
                raise ValueError(text)
            return cls(text, every=number * _SECONDS[unit.removesuffix("s")])
        if match := _CRON.fullmatch(text):
            return cls(text, cron=_Cron.parse(match[1]))
        raise ValueError(text)

    def next_after(self, time: float) -> float | None:
        """The first run after that time; for a rate, counted from it."""
        if self.every is not None:
            return time + self.every
        assert self.cron is not None
        return self.cron.next_after(time)


@dataclass(frozen=True)
class _Cron:
    minutes: frozenset[int]
    hours: frozenset[int]
    day_of_month: str
    months: frozenset[int]
    day_of_week: str
    years: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> _Cron:
        fields = text.split()
        if len(fields) != 6:
            raise ValueError(text)
        minutes, hours, day_of_month, months, day_of_week, years = (field.upper() for field in fields)
        if (day_of_month == "?") == (day_of_week == "?"):
            raise ValueError(text)
        cron = cls(
            _numbers(minutes, 0, 59),
            _numbers(hours, 0, 23),
            day_of_month,
            _numbers(months, 1, 12, _MONTHS),
            day_of_week,
            _numbers(years, *_YEARS),
        )
        cron._days(2024, 2)  # raises for what is wrong in the days
        return cron

    def next_after(self, time: float) -> float | None:
        start = datetime.fromtimestamp(time, UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        for year in sorted(year for year in self.years if year >= start.year):
            for month in sorted(self.months):
                if (year, month) < (start.year, start.month):
                    continue
                for day in sorted(self._days(year, month)):
                    today = date(year, month, day)
                    if today < start.date():
                        continue
                    for hour in sorted(self.hours):
                        for minute in sorted(self.minutes):
                            at = datetime(year, month, day, hour, minute, tzinfo=UTC)
                            if at >= start:
                                return at.timestamp()
        return None

    def _days(self, year: int, month: int) -> frozenset[int]:
        last = calendar.monthrange(year, month)[1]
        return self._of_month(year, month, last) if self.day_of_week == "?" else self._of_week(year, month, last)

    def _of_month(self, year: int, month: int, last: int) -> frozenset[int]:
        field = self.day_of_month
        if field == "L":
            return frozenset({last})
        if field == "LW" or (match := re.fullmatch(r"(\d+)W", field)):
            wanted = last if field == "LW" else int(match[1]) if match else 0
            if not 1 <= wanted <= 31:
                raise ValueError(field)
            return frozenset({_nearest_weekday(year, month, wanted, last)} if wanted <= last else ())
        return frozenset(day for day in _numbers(field, 1, 31) if day <= last)

    def _of_week(self, year: int, month: int, last: int) -> frozenset[int]:
        field = self.day_of_week
        if field == "L":
            field = "7"
        weekdays = {day: date(year, month, day).isoweekday() % 7 + 1 for day in range(1, last + 1)}
        if match := re.fullmatch(r"(\w+)#([1-5])", field):
            [wanted] = _numbers(match[1], 1, 7, _DAYS)
            days = [day for day, weekday in weekdays.items() if weekday == wanted]
            return frozenset(days[int(match[2]) - 1 : int(match[2])])
        if match := re.fullmatch(r"(\w+)L", field):
            [wanted] = _numbers(match[1], 1, 7, _DAYS)
            return frozenset({max(day for day, weekday in weekdays.items() if weekday == wanted)})
        chosen = _numbers(field, 1, 7, _DAYS)
        return frozenset(day for day, weekday in weekdays.items() if weekday in chosen)


def _nearest_weekday(year: int, month: int, day: int, last: int) -> int:
    """In the same month, as cron's W has it."""
    weekday = date(year, month, day).isoweekday()
    if weekday == 6:
        return day - 1 if day > 1 else day + 2
    if weekday == 7:
        return day + 1 if day < last else day - 2
    return day


def _numbers(field: str, low: int, high: int, names: list[str] | None = None) -> frozenset[int]:
    """``*``, ``1,4-6``, ``0/15``, ``MON-FRI``: as the numbers that they stand for. Raises ValueError."""

    def number(text: str) -> int:
        value = names.index(text) if names and text and text in names else int(text)
        if not low <= value <= high:
            raise ValueError(field)
        return value

    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        if slash and int(step) < 1:
            raise ValueError(field)
        if span == "*":
            first, last = low, high
        elif "-" in span:
            start, _, end = span.partition("-")
            first, last = number(start), number(end)
        else:
            first = number(span)
            last = high if slash else first
        # A span may go over the end, as in FRI-MON.
        steps = range(first, last + 1) if first <= last else [*range(first, high + 1), *range(low, last + 1)]
        found.update(list(steps)[:: int(step) if slash else 1])
    return frozenset(found)
