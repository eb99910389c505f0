"""A request on its way through the pool of workers, and what comes back.

job = pool.submit(body, headers, deadline)         # Busy when the queue is full
answer = await job.future                          # Answer, or Failed
chunk = await answer.stream.next()                 # where answer.body is None
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# A stream whose reader is slower than the model is held back at the model, not in memory: so much waits here at most, and what
# was on its way when the model was told.
_STREAM_BYTES = 1 << 20

Headers = Sequence[tuple[bytes, bytes]]


class Busy(Exception):
    """The queue is full, or too long for the deadline. ``retry_after_seconds`` is when there should be room."""

    def __init__(self, what: str, retry_after_seconds: int) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"{what} Retry after {retry_after_seconds} s.")


class Failed(Exception):
    """The worker died with this request alone in its hands."""


@dataclass(slots=True)
class Answer:
    """What the hooks made of a request. A body of ``None`` comes in `stream`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | None
    error: str | None
    stream: Stream | None = None


class Source(Protocol):
    """The worker that a stream comes from; its streams have numbers."""

    def hold(self, number: int) -> None: ...

    def go_on(self, number: int) -> None: ...

    def stop(self, number: int) -> None: ...


class Stream:
    """Chunks on their way from a worker to a caller.

    Attributes:
        held: the worker has been told to wait for the reader.
    """

    def __init__(self, worker: Source, number: int) -> None:
        self._worker, self._number = worker, number
        self._chunks: deque[bytes] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self._ended = self.held = False
        self.error: str | None = None

    def put(self, chunk: bytes) -> None:
        if self._ended:
            return  # stopped, and the worker has not heard of it yet
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        if self._bytes > _STREAM_BYTES and not self.held:
            self.held = True
            self._worker.hold(self._number)
        self._more.set()

    def end(self, error: str | None) -> None:
        self.error, self._ended, self.held = error, True, False
        self._more.set()

    def stop(self) -> None:
        """The caller is gone."""
        if not self._ended:
            if self.held:
                self._worker.go_on(self._number)
            self.end(None)
            self._worker.stop(self._number)

    async def next(self) -> bytes | None:
        """All that has come since the last call; ``None`` at the end."""
        while not self._chunks:
            if self._ended:
                return None
            self._more.clear()
            await self._more.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._bytes = 0
        if self.held:
            self.held = False
            self._worker.go_on(self._number)
        return data


class Job:
    """One request. The times are those of `time.monotonic`; 0 is not yet."""

    __slots__ = ("alone", "batch_size", "body", "deadline", "future", "headers", "model_seconds", "queued", "started")

    def __init__(
        self, body: bytes, headers: Headers, queued: float, deadline: float, future: asyncio.Future[Answer]
    ) -> None:
        self.body, self.headers, self.deadline, self.future = body, headers, deadline, future
        self.queued, self.started, self.model_seconds = queued, 0.0, 0.0
        self.batch_size = 0
        self.alone = False

    def fail(self, error: BaseException) -> None:
        """There will be no answer, unless there is one."""
        if not self.future.done():
            self.future.set_exception(error)

    @property
    def queue_seconds(self) -> float:
        return (self.started or time.monotonic()) - self.queued
