"""What the local cloud has to do later: the next run of a schedule, the next attempt of a delivery.

    agenda = Agenda(pace, bus.later)
    agenda.after(60, retry)      # in a minute of the pace

The work is handed to another thread when its time has come; nothing here waits for it.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

from windlass.local.clock import Clock

Work = Callable[[], None]

_LOOK_SECONDS, _WAIT_SECONDS = 0.02, 0.2
_SOON_SECONDS = 60


class Agenda:
    """Work by its time. Safe to use from many threads.

    Args:
        pace: what the times are of.
        hand_over: takes the work that is due.
    """

    def __init__(self, pace: Clock, hand_over: Callable[[Work], None]) -> None:
        self._pace, self._hand_over = pace, hand_over
        self._changed = threading.Condition()
        self._entries: list[tuple[float, int, Work]] = []
        self._numbers = itertools.count()
        self._closing = False
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, work: Work) -> None:
        """Do it that many seconds of the pace from now."""
        self.at(self._pace.now() + seconds, work)

    def at(self, time: float, work: Work) -> None:
        """Do it at that time of the pace; at once when that is over."""
        with self._changed:
            heapq.heappush(self._entries, (time, next(self._numbers), work))
            self._changed.notify_all()

    def tick(self) -> None:
        """Hand over all that is due: what the own thread does, again and again."""
        now = self._pace.now()
        due: list[Work] = []
        with self._changed:
            while self._entries and self._entries[0][0] <= now:
                due.append(heapq.heappop(self._entries)[2])
        for work in due:
            self._hand_over(work)

    def start(self) -> None:
        """Look for what is due from now on. A second call changes nothing."""
        with self._changed:
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="agenda", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                # The pace may be any clock, so it is asked again and again instead of trusted to keep time with ours.
                soon = self._entries and self._entries[0][0] < self._pace.now() + _SOON_SECONDS
                self._changed.wait(_LOOK_SECONDS if soon else _WAIT_SECONDS)
            self.tick()

    def reset(self) -> None:
        """Forget everything."""
        with self._changed:
            self._entries.clear()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(5)
