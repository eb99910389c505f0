"""The time, as the local cloud sees it. Injected, so that tests turn hours into no time at all.

Timestamps are always true, in what clients send and in what they get: they come from a `Clock`. How long AWS makes one wait
(for the period of an alarm, a bake, a schedule) is counted by a `Pace`, which `windlass local up --speed 60` makes run faster.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the local cloud asks the time of."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def sleep(self, seconds: float) -> None:
        """Return after that many seconds of this clock."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Pace:
    """A clock that runs `speed` times as fast as another, from the minute on in which it was made.

    Args:
        speed: 1 is the other clock itself.
    """

    def __init__(self, clock: Clock, speed: float = 1) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be more than 0; it is {speed}")
        self.speed, self._clock = speed, clock
        self._start = clock.now() // 60 * 60

    def now(self) -> float:
        return self.of(self._clock.now())

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds / self.speed)

    def of(self, at: float) -> float:
        """The time of this clock when the other shows `at`."""
        return at if self.speed == 1 else self._start + (at - self._start) * self.speed

    def true(self, at: float) -> float:
        """What the other clock shows at that time of this one."""
        return at if self.speed == 1 else self._start + (at - self._start) / self.speed
