"""The time, as the local cloud sees it. Injected, so that tests turn hours into no time at all."""

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
