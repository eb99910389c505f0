"""Shadow variants: they answer copies of production requests, and nobody waits for what they say.

A copy is held by an instance of the shadow from the moment its original was routed, so a fleet drains of copies, too. When too
many wait, further ones are let go: a slow shadow must cost production nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)

WORKERS = 8
WAITING = 128
"""Copies that may be under way at a time, over all endpoints."""


class Mirror:
    """Threads that answer copies."""

    def __init__(self) -> None:
        self._room = threading.BoundedSemaphore(WAITING)
        self._making = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, take: Callable[[], Callable[[], None] | None]) -> None:
        """Have a copy answered, if there is room.

        Args:
            take: reserves an instance for it, now, and gives what is to be done with that; None if there is none.
        """
        if not self._room.acquire(blocking=False):
            log.debug("A shadow is behind; a copy is let go")
            return
        work = take()
        if work is None:
            self._room.release()
            return

        def run() -> None:
            try:
                work()
            except Exception:
                log.exception("A copy of a request was not answered")
            finally:
                self._room.release()

        with self._making:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="shadow")
            pool = self._pool
        try:
            pool.submit(run)
        except RuntimeError:  # this process may start no more threads
            run()

    def close(self) -> None:
        """Let what is under way end; its model servers must have been told to."""
        with self._making:
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown()
