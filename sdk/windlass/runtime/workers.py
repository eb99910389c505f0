"""Threads that call the model, behind a queue with an end.

    workers = Workers(load, threads=1, queue_size=100)     # load() -> the function that answers an item
    error = await workers.loaded                           # None, or what load() raised
    reply = await workers.submit(invocation).future        # Busy when the queue is full

The event loop never runs the user's code, so `/ping` answers while a prediction runs. One thread is the default, because
few models may be called from two at once; it loads the model, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Busy(Exception):
    """The queue is full. ``retry_after_seconds`` is when there should be room."""

    def __init__(self, retry_after_seconds: int) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"all workers are busy and the queue is full. Retry after {retry_after_seconds} s.")


class Job(Generic[Item, Result]):
    """One call. The times are those of `time.monotonic`; 0 is not yet."""

    __slots__ = ("finished", "future", "item", "queued", "started")

    def __init__(self, item: Item, future: asyncio.Future[Result]) -> None:
        self.item, self.future = item, future
        self.queued, self.started, self.finished = time.monotonic(), 0.0, 0.0

    @property
    def queue_ms(self) -> float:
        return ((self.started or time.monotonic()) - self.queued) * 1e3

    @property
    def model_ms(self) -> float:
        return (self.finished - self.started) * 1e3 if self.finished else 0.0


class WorkFailed(Exception):
    """The work raised, which it should not; ``__cause__`` is what."""


class Workers(Generic[Item, Result]):
    """Made and used in the event loop's thread; ``load`` and what it returns are called in the workers'.

    Args:
        load: makes the function that answers one item. Called once, by the first thread.
        threads: how many calls run at once.
        queue_size: how many may wait beyond those.

    Attributes:
        loaded: done when ``load`` has returned (``None``) or raised (the exception, as a value: it may be SystemExit).
    """

    def __init__(self, load: Callable[[], Callable[[Item], Result]], *, threads: int, queue_size: int) -> None:
        self._load, self._limit = load, threads + queue_size
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._queue: queue.SimpleQueue[Job[Item, Result] | None] = queue.SimpleQueue()
        self._pending = 0
        self._mean_seconds = 0.0  # of a call, moving
        # Daemons: a call that never returns must not keep the process from ending.
        self._threads = [threading.Thread(target=self._first, name="model-0", daemon=True)]
        self._count = threads
        self._threads[0].start()

    def submit(self, item: Item) -> Job[Item, Result]:
        """Queue one call. Cancel its future and it is skipped, unless it has begun.

        Raises:
            Busy: the queue is full.
        """
        if self._pending >= self._limit:
            waiting_seconds = self._mean_seconds * self._pending / len(self._threads)
            raise Busy(max(1, math.ceil(waiting_seconds)))
        job: Job[Item, Result] = Job(item, self._loop.create_future())
        self._pending += 1
        self._queue.put(job)
        return job

    def stop(self, timeout_seconds: float) -> bool:
        """End the threads after what is queued. False: one is still in the user's code."""
        deadline = time.monotonic() + timeout_seconds
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _first(self) -> None:
        try:
            work = self._load()
        except BaseException as error:  # noqa: BLE001 - the user's code may raise anything, and the caller decides
            self._tell(self._set_loaded, None, error)
        else:
            self._tell(self._set_loaded, work, None)
            self._run(work)

    def _set_loaded(self, work: Callable[[Item], Result] | None, error: BaseException | None) -> None:
        if work is not None:
            for n in range(1, self._count):
                self._threads.append(threading.Thread(target=self._run, args=(work,), name=f"model-{n}", daemon=True))
                self._threads[-1].start()
        if not self.loaded.done():
            self.loaded.set_result(error)

    def _run(self, work: Callable[[Item], Result]) -> None:
        while (job := self._queue.get()) is not None:
            result: Result | None = None
            error: BaseException | None = None
            if not job.future.cancelled():
                job.started = time.monotonic()
                try:
                    result = work(job.item)
                except BaseException as raised:  # noqa: BLE001 - it belongs to the caller, and the thread must live on
                    error = raised
                job.finished = time.monotonic()
            self._tell(self._settle, job, result, error)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending, and nobody waits
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _settle(self, job: Job[Item, Result], result: Any, error: BaseException | None) -> None:
        self._pending -= 1
        if job.finished:
            self._mean_seconds += 0.1 * (job.finished - job.started - self._mean_seconds)
        if job.future.done():
            return  # cancelled: its caller has stopped waiting
        if error is None:
            job.future.set_result(result)
        else:
            failed = WorkFailed(f"{type(error).__name__}: {error}")
            failed.__cause__ = error
            job.future.set_exception(failed)
