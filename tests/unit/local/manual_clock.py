"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading


class ManualClock:
    """Starts at the beginning of a minute, an hour and a day of 2026."""

    START = 1_767_225_600.0  # 2026-01-01T00:00:00Z

    def __init__(self) -> None:
        self._now = self.START
        self._moved = threading.Condition()
        self._released = False

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        with self._moved:
            self._now += seconds
            self._moved.notify_all()
        return self._now

    def sleep(self, seconds: float) -> None:
        with self._moved:
            until = self._now + seconds
            self._moved.wait_for(lambda: self._released or self._now >= until)

    def release(self) -> None:
        """Wake up whoever sleeps, for good."""
        with self._moved:
            self._released = True
            self._moved.notify_all()
