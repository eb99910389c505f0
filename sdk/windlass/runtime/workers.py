"""The worker processes as the server sees them: a queue with an end, batches, replacement.

    pool = Pool(command, workers=2, queue_size=100, ...)
    error = await pool.loaded                          # None, or why the model did not load
    job = pool.submit(body, headers, deadline)         # Busy when the queue is full
    answer = await job.future                          # Answer, or Failed

The server's own process never runs the user's code: `/ping` and refusals are answered whatever a model does. A worker that dies
or runs past the time limit is killed and another takes its place. What was in its batch is asked once more, each request alone
in a batch of its own, so that one that kills workers takes nobody with it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from windlass.runtime import wire
from windlass.runtime.batching import Batch, Batcher

_TICK_SECONDS = 0.05
_RESTART_SECONDS = (
    0.0,
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
)  # before the first, second, ... attempt to replace what does not load
# A stream whose reader is slower than the model is held back at the model, not in memory.
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


class Stream:
    """Chunks on their way from a worker to a caller."""

    def __init__(self, worker: _Worker, number: int) -> None:
        self._worker, self._number = worker, number
        self._chunks: deque[bytes] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self._ended = False
        self.error: str | None = None

    def put(self, chunk: bytes) -> None:
        if self._ended:
            return  # stopped, and the worker has not heard of it yet
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        if self._bytes > _STREAM_BYTES:
            self._worker.pause()
        self._more.set()

    def end(self, error: str | None) -> None:
        self.error, self._ended = error, True
        self._more.set()

    def stop(self) -> None:
        """The caller is gone."""
        if not self._ended:
            self.end(None)
            self._worker.stop_stream(self._number)
            self._worker.resume()

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
        self._worker.resume()
        return data


class Job:
    """One request. The times are those of `time.monotonic`; 0 is not yet."""

    __slots__ = ("alone", "batch_size", "body", "deadline", "future", "headers", "model_seconds", "queued", "started")

    def __init__(self, body: bytes, headers: Headers, deadline: float, future: asyncio.Future[Answer]) -> None:
        self.body, self.headers, self.deadline, self.future = body, headers, deadline, future
        self.queued, self.started, self.model_seconds = time.monotonic(), 0.0, 0.0
        self.batch_size = 0
        self.alone = False

    @property
    def queue_seconds(self) -> float:
        return (self.started or time.monotonic()) - self.queued


class _Worker(asyncio.Protocol):
    """One process and what it is doing: one batch at a time, or as many single requests at once as its model takes."""

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool, self.number = pool, number
        self.ready = False
        self.jobs: Sequence[Job] = ()
        self.concurrency = 1
        self._running: dict[int, Job] = {}  # by the number of its run, where there may be several
        self._streams: dict[int, Stream] = {}
        self.batch: Batch | None = None
        self.started = 0.0
        self.failure, self.out_of_memory = "", False
        self.ended = self.hung = False
        self._reader = wire.Reader()
        self._transport: Any = None
        self._paused = False
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            self.process = subprocess.Popen(
                [*pool.command, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=pool.environment
            )
        ours.setblocking(False)
        self._ours = ours

    async def connect(self) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=self._ours)

    def run(self, number: int, jobs: Sequence[Job], batch: Batch | None) -> None:
        self.jobs, self.batch = jobs, batch
        if self.concurrency > 1:
            self._running[number] = jobs[0]
            self.jobs = tuple(self._running.values())
        self.started = now = time.monotonic()
        size = len(jobs)
        for job in jobs:
            job.started, job.batch_size = now, size
        self._transport.write(wire.pack(("run", number, [(job.body, job.headers) for job in jobs])))

    @property
    def has_room(self) -> bool:
        """Whether it takes another request beside those that run."""
        return len(self._running) < self.concurrency

    def stop_stream(self, number: int) -> None:
        self._transport.write(wire.pack(("stop", number)))

    def pause(self) -> None:
        if not self._paused and self.concurrency == 1:  # a slow reader must not hold up the others
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.ended:
            self._paused = False
            self._transport.resume_reading()

    @property
    def held_back(self) -> bool:
        """Whether it waits for the reader of a stream."""
        return self._paused

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        else:
            self._ours.close()

    # --- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            kind = message[0]
            if kind == "replies":
                self._replies(message[1], message[2], message[3])
            elif kind == "chunk":
                self.started = time.monotonic()  # it lives
                if (stream := self._streams.get(message[1])) is not None:
                    stream.put(message[2])
            elif kind == "end":
                if (stream := self._streams.pop(message[1], None)) is not None:
                    stream.end(message[3])
                self._finished(message[1])
            elif kind == "loading":
                self._pool.loading_at = f": {message[1]}"
            elif kind == "ready":
                self.ready, self.concurrency = True, message[2]
                self._pool.ready(self, batches=message[1])
            else:
                self.failure, self.out_of_memory = message[1], message[2]

    def _replies(self, batch: int, seconds: float, answers: Sequence[tuple[Any, ...]]) -> None:
        streams = False
        jobs = self.jobs if self.concurrency == 1 else [self._running[batch]]
        for job, (status, headers, body, error) in zip(jobs, answers, strict=True):
            job.model_seconds = seconds
            answer = Answer(status, headers, body, error)
            if body is None:
                streams = True
                self._streams[batch] = answer.stream = Stream(self, batch)
            if not job.future.done():
                job.future.set_result(answer)
            elif answer.stream:
                answer.stream.stop()
        if not streams:
            self._finished(batch)

    def _finished(self, number: int) -> None:
        if self.concurrency > 1:
            del self._running[number]
            self.jobs = tuple(self._running.values())
            self.started = time.monotonic()
        else:
            self.jobs = ()
        self._pool.finished(self)

    def connection_lost(self, _: Exception | None) -> None:
        self.ended, self.ready = True, False
        for stream in self._streams.values():
            stream.end("the worker died")
        self._pool.lost(self)


class Pool:
    """Made and used in the event loop's thread.

    Args:
        command: what starts a worker; the number of its socket is added.
        environment: of the workers.
        workers: how many processes.
        queue_size: how many requests may wait beyond those that run.
        max_batch_size: the most that one batch may hold, for models that take batches.
        batch_delay_seconds: how long the first of a batch may wait for others. 0: a batch is what waits when a worker is free.
        timeout_seconds: a batch that runs longer has hung, and its worker is killed.
        log: is told what happens to workers: ``log(event, **fields)``.

    Attributes:
        loaded: done when the first worker has loaded the model (``None``) or failed to (the report).
        out_of_memory: whether it failed for want of memory.
        loading_at: where the load is, as in ``: in model_fn, at inference.py line 7``; empty until a worker has said it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        workers: int,
        queue_size: int,
        max_batch_size: int,
        batch_delay_seconds: float,
        timeout_seconds: float,
        log: Callable[..., None],
    ) -> None:
        self.command, self.environment = command, environment
        self._queue_size, self._max_batch = queue_size, max_batch_size
        self._delay, self._timeout, self._log = batch_delay_seconds, timeout_seconds, log
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[str | None] = self._loop.create_future()
        self._waiting: deque[Job] = deque()
        self._idle: list[_Worker] = []
        self._count, self._numbers = workers, itertools.count()
        self._batcher = Batcher(1)
        self._due: asyncio.Handle | None = None
        self._closing = self.out_of_memory = False
        self.loading_at = ""
        self._concurrent = False
        self._quiet: asyncio.Future[None] | None = None
        self._attempts = 0
        self.restarts = self.batches_answered = 0
        self._starting: set[asyncio.Task[None]] = set()
        self._workers: set[_Worker] = set()
        self._start()  # the first; when it has loaded the model, the others
        self._ticking = self._loop.call_later(_TICK_SECONDS, self._tick)

    # --- what the server asks

    @property
    def why_unhealthy(self) -> str:
        """Empty while a worker can answer."""
        if any(worker.ready for worker in self._workers):
            return ""
        return "the model's worker died and is being replaced" if self.loaded.done() else "the model is loading"

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> int:
        return sum(worker.ready for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def cancel_loading(self, why: str) -> None:
        """`loaded` becomes `why`, unless the model is loaded."""
        if not self.loaded.done():
            self.loaded.set_result(why)

    async def drain(self, timeout_seconds: float) -> bool:
        """Return when nothing waits or runs. Whether that was in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._waiting or any(worker.jobs for worker in self._workers):
                    self._quiet = self._loop.create_future()
                    await self._quiet
        except TimeoutError:
            return False
        return True

    def _one_less(self) -> None:
        """For `drain`: a batch has ended, well or not."""
        if self._quiet and not self._quiet.done():
            self._quiet.set_result(None)

    def submit(self, body: bytes, headers: Headers, deadline: float) -> Job:
        """Queue a request. Cancel its future and it is dropped, unless it has begun.

        Raises:
            Busy: the queue is full, or what waits already takes longer than the deadline allows.
        """
        waiting = len(self._waiting)
        if waiting >= self._queue_size + len(self._idle):
            raise Busy("all workers are busy and the queue is full.", self._retry_after())
        job = Job(body, headers, deadline, self._loop.create_future())
        if waiting and job.queued + self._expected_seconds() > deadline:
            raise Busy("what waits already takes longer than this request's deadline allows.", self._retry_after())
        self._waiting.append(job)
        if self._idle and self._due is None:
            # At the end of this turn of the loop, so that what came together goes together.
            self._due = self._loop.call_soon(self._dispatch)
        return job

    def _expected_seconds(self) -> float:
        """How long what waits will take."""
        return self._batcher.request_seconds * len(self._waiting) / max(1, self.alive)

    def _retry_after(self) -> int:
        return max(1, math.ceil(self._expected_seconds()))

    async def close(self, timeout_seconds: float) -> None:
        """End the workers: those that are idle at once, the others killed after the time given."""
        self._closing = True
        self._ticking.cancel()
        for task in self._starting:
            task.cancel()
        workers = list(self._workers)
        for worker in workers:
            worker.close()
        loaded = self.loaded.done() and not self.loaded.cancelled()
        deadline = time.monotonic() + (
            timeout_seconds if loaded else 0
        )  # nobody waits for a model that is still loading
        for worker in workers:
            while worker.process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
            worker.process.kill()
            worker.process.wait()

    # --- batches

    def _dispatch(self) -> None:
        self._due = None
        while self._idle and self._waiting:
            now = time.monotonic()
            oldest = self._waiting[0]
            if oldest.future.done() or oldest.deadline <= now:
                self._waiting.popleft()  # its caller has been answered, or is gone
                continue
            if self._delay and len(self._waiting) < self._max_batch and now < oldest.queued + self._delay:
                self._due = self._loop.call_later(oldest.queued + self._delay - now, self._dispatch)
                return
            worker = self._idle.pop()
            worker.run(next(self._numbers), *self._take())
            if worker.concurrency > 1 and worker.has_room:
                self._idle.insert(0, worker)  # the others first

    def _take(self) -> tuple[Sequence[Job], Batch | None]:
        waiting = self._waiting
        if self._max_batch == 1 or waiting[0].alone:
            return [waiting.popleft()], None
        # Only so many are looked at for ones of like length: further ones would overtake those in between.
        # Those that are past their time leave the queue here; those that run alone stay in it until they are the first.
        now = time.monotonic()
        seen: list[Job] = []
        kept: list[Job] = []
        for _ in range(min(len(waiting), self._max_batch)):
            job = waiting.popleft()
            if job.alone:
                kept.append(job)
            elif not job.future.done() and job.deadline > now:
                seen.append(job)
        count = -(-(len(seen) + len(waiting)) // (len(self._idle) + 1))  # the idle workers share what waits
        batch = self._batcher.choose([len(job.body) for job in seen], count)
        picked = set(batch.positions)
        kept += [job for index, job in enumerate(seen) if index not in picked]
        waiting.extendleft(reversed(kept))
        return [seen[index] for index in batch.positions], batch

    def finished(self, worker: _Worker) -> None:
        """A worker has answered its batch."""
        self.batches_answered += 1
        if worker.batch:
            # With the way there and back, which small batches pay more often than large ones.
            self._batcher.observe(worker.batch, time.monotonic() - worker.started)
        if not worker.jobs:
            worker.started = 0.0
        if worker.concurrency == 1 or worker not in self._idle:
            self._idle.append(worker)
        self._one_less()
        if self._waiting and self._due is None:
            self._due = self._loop.call_soon(self._dispatch)

    # --- the life of workers

    def _start(self) -> None:
        worker = _Worker(self, next(self._numbers))
        self._workers.add(worker)
        task = self._loop.create_task(worker.connect())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def ready(self, worker: _Worker, *, batches: bool) -> None:
        if not batches or worker.concurrency > 1:
            self._max_batch = 1
        self._concurrent = worker.concurrency > 1
        if not self.loaded.done():
            self._batcher = Batcher(self._max_batch)
            self.loaded.set_result(None)
            for _ in range(1, self._count):
                self._start()
        self._attempts = 0
        self._log("worker ready", worker=worker.number, pid=worker.process.pid)
        self._idle.append(worker)
        self._dispatch()

    def lost(self, worker: _Worker) -> None:
        """Its socket is closed: it is dead, or will be."""
        self._workers.discard(worker)
        self._one_less()
        if worker in self._idle:
            self._idle.remove(worker)
        worker.kill()
        code = worker.process.wait()
        if self._closing:
            return
        if not self.loaded.done():
            # The kernel's way to say that there is no memory left is SIGKILL.
            self.out_of_memory = worker.out_of_memory if worker.failure else code == -signal.SIGKILL
            self.loaded.set_result(
                worker.failure or f"The model's process ended with {_ending(code)} while it loaded.\n"
            )
            return
        self.restarts += 1
        self._log(
            "worker died", worker=worker.number, ended=_ending(code), requests=len(worker.jobs), error=worker.failure
        )
        if worker.hung:
            for job in worker.jobs:  # their deadlines have passed, too: they began before the batch did
                if not job.future.done():
                    job.future.set_exception(TimeoutError())
        else:
            self._again(worker.jobs, code)
        pause = _RESTART_SECONDS[min(self._attempts, len(_RESTART_SECONDS) - 1)]
        self._attempts += 1
        self._loop.call_later(pause, self._replace)

    def _replace(self) -> None:
        if not self._closing:
            self._start()

    def _again(self, jobs: Sequence[Job], code: int) -> None:
        left = [job for job in jobs if not job.future.done()]
        if len(jobs) == 1 or any(job.alone for job in left) or self._concurrent:
            for job in left:
                job.future.set_exception(Failed(f"the model's process ended with {_ending(code)} during this request."))
            return
        for job in reversed(left):
            job.alone, job.started = True, 0.0
            self._waiting.appendleft(job)

    def _tick(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.jobs and not worker.held_back and now > worker.started + self._timeout:
                self._log("worker hung", worker=worker.number, seconds=round(now - worker.started, 1))
                worker.hung = True
                worker.kill()  # lost() follows
            elif worker.process.poll() is not None and not worker.ended:
                worker.close()  # a process of the user's keeps its socket open
        self._ticking = self._loop.call_later(_TICK_SECONDS, self._tick)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"


def environment(base: Mapping[str, str], threads: int) -> Mapping[str, str]:
    """The workers' environment: as many threads inside an operation as each worker has cores, unless the host has said."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**{name: str(threads) for name in names}, **base}
