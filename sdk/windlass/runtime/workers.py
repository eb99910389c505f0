"""The workers as the server sees them: a queue with an end, batches, replacement.

    pool = Pool(Starter(command, environment), workers=2, queue_size=100, ...)
    error = await pool.loaded                          # None, or why the model did not load
    job = pool.submit(body, headers, deadline)         # Busy when the queue is full
    answer = await job.future                          # Answer, or Failed

The server's own process never runs the user's code: `/ping` and refusals are answered whatever a model does. What the workers
are is the model's to say, once it is loaded (see `worker`):

| | |
|---|---|
| thread | one process with a thread for each worker, for engines that release the GIL: the weights are there once |
| fork | processes forked from one that has loaded the model and then waits: they share its memory |
| spawn | processes that each load the model, where it holds what no fork survives: threads, open files, a GPU |

Where there is one process, it is given its next batch a moment before the last one's end, and waits for none: an even share of
all requests that are here, so that batches do not fall apart into large and small ones.

A worker that dies is replaced. One that runs past the time limit is replaced too: its process is killed, also where it is a
thread, for nothing ends a thread that does not want to. What else ran in a process that died is asked once more, each request
with nothing beside it in its process, so that one that kills workers takes nobody with it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from windlass.runtime.batching import Batch, Batcher
from windlass.runtime.jobs import Answer, Busy, Failed, Headers, Job, Stream
from windlass.runtime.measures import Measure
from windlass.runtime.processes import Owner, Process

_TICK_SECONDS = 0.05
# Before the first, second, ... attempt to replace what does not load.
_RESTART_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)

# After so much of a batch's expected time, less that many seconds, its worker is given the next. Batches end early, too, and a
# batch takes that long on its way there and back.
_AHEAD_SHARE, _AHEAD_SECONDS = 0.75, 0.001
_SMALL = 2 / 3  # of an even share is not worth to be given ahead


class _Run:
    """A batch in a worker's hands. It begins when one of the worker's lanes is done with what was there before."""

    __slots__ = ("alone", "batch", "jobs", "released", "releasing", "started", "stopped")

    def __init__(self, jobs: Sequence[Job], batch: Batch | None) -> None:
        self.jobs, self.batch = jobs, batch
        self.alone = jobs[0].alone
        self.started = math.inf
        self.releasing: asyncio.Handle | None = None
        self.released = False  # the next has been asked for, or may be
        self.stopped = False  # the worker has been told that nobody waits for it

    @property
    def begun(self) -> bool:
        return self.started < math.inf

    def begin(self, now: float) -> None:
        self.started, size = now, len(self.jobs)
        for job in self.jobs:
            job.started, job.batch_size = now, size


class _Worker:
    """One process and what it is doing: as many batches at once as it has lanes."""

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool, self.number = pool, number
        self.process: Process
        self.ready = False
        self.lanes = 1
        self.runs: dict[int, _Run] = {}
        self.ahead: deque[_Run] = deque()  # those of them that have not begun
        self._streams: dict[int, Stream] = {}
        self.failure, self.out_of_memory = "", False
        self.killed = False  # for it hung

    @property
    def has_free_lane(self) -> bool:
        return len(self.runs) - len(self.ahead) < self.lanes

    def run(self, number: int, run: _Run) -> None:
        self.runs[number] = run
        self.process.send(("run", number, [(job.body, job.headers) for job in run.jobs]))

    def hold(self, number: int) -> None:
        self.process.send(("hold", number))

    def go_on(self, number: int) -> None:
        self.runs[number].started = self._pool.clock()  # it was not its fault that nothing came
        self.process.send(("go on", number))

    def stop(self, number: int) -> None:
        run = self.runs[number]
        if not run.stopped:
            run.stopped = True
            self.process.send(("stop", number))

    def stop_what_nobody_waits_for(self) -> None:
        for number, run in self.runs.items():
            if number not in self._streams and all(job.future.done() for job in run.jobs):
                self.stop(number)

    def hung(self, before: float) -> list[_Run]:
        """What has run since before that time, but for streams that wait for their readers."""
        return [
            run
            for number, run in self.runs.items()
            if run.started < before and not ((stream := self._streams.get(number)) and stream.held)
        ]

    # --- Owner

    def received(self, message: Any) -> None:
        kind = message[0]
        if kind == "replies":
            self._replies(message[1], message[2], message[3])
        elif kind == "chunk":
            self.runs[message[1]].started = self._pool.clock()  # it lives
            if (stream := self._streams.get(message[1])) is not None:
                stream.put(message[2])
        elif kind == "end":
            if (stream := self._streams.pop(message[1], None)) is not None:
                stream.end(message[3])
            self._pool.finished(self, self.runs.pop(message[1]))
        elif kind == "measured":
            self._pool.measured(message[1])
        elif kind == "loading":
            self._pool.loading_at = f": {message[1]}"
        elif kind == "template":
            self._pool.loaded_template(self)
        elif kind == "forked":
            self.process.pid = message[1]
        elif kind == "ready":
            self._pool.ready(self, *message[1:])
        else:
            self.failure, self.out_of_memory = message[1], message[2]

    def _replies(self, number: int, seconds: float, answers: Sequence[tuple[Any, ...]]) -> None:
        streams = False
        run = self.runs[number]
        for job, (status, headers, body, error) in zip(run.jobs, answers, strict=True):
            job.model_seconds = seconds
            answer = Answer(status, headers, body, error)
            if body is None:
                streams = True
                self._streams[number] = answer.stream = Stream(self, number)
            if not job.future.done():
                job.future.set_result(answer)
            elif answer.stream:
                answer.stream.stop()
        if not streams:
            del self.runs[number]
            self._pool.finished(self, run)

    def lost(self) -> None:
        self.ready = False
        for stream in self._streams.values():
            stream.end("the worker died")
        self._pool.lost(self)


class Starts(Protocol):
    """What starts the processes: a `processes.Starter`."""

    def start(self, owner: Owner, *, template: bool) -> Process: ...

    def fork(self, template: Process, owner: Owner) -> Process: ...

    def close(self) -> None: ...


class Pool:
    """Made and used in the event loop's thread.

    Args:
        starter: of the processes.
        workers: how many batches are predicted at once: processes or threads.
        queue_size: how many requests may wait beyond those that run.
        max_batch_size: the most that one batch may hold, for models that take batches.
        batch_delay_seconds: how long the first of a batch may wait for others. 0: a batch is what waits when a worker is free.
        timeout_seconds: a batch that runs longer has hung, and its process is killed.
        log: is told what happens to workers: ``log(event, **fields)``.
        measured: is told what hooks measure.
        clock: of deadlines and time limits. Timers are the event loop's.

    Attributes:
        loaded: done when the first worker has loaded the model (``None``) or failed to (the report).
        out_of_memory: whether it failed for want of memory.
        loading_at: where the load is, as in ``: in model_fn, at inference.py line 7``; empty until a worker has said it.
    """

    def __init__(
        self,
        starter: Starts,
        *,
        workers: int,
        queue_size: int,
        max_batch_size: int,
        batch_delay_seconds: float,
        timeout_seconds: float,
        log: Callable[..., None],
        measured: Callable[[Sequence[Measure]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._starter, self.clock, self.measured = starter, clock, measured
        self._queue_size, self._max_batch = queue_size, max_batch_size
        self._delay, self._timeout, self._log = batch_delay_seconds, timeout_seconds, log
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[str | None] = self._loop.create_future()
        self._waiting: deque[Job] = deque()
        self._idle: list[_Worker] = []  # once for each lane that is free, or about to be
        # Lanes that are about to be free; batches that were given to such ones, and the requests in them.
        self._about, self._ahead, self._ahead_jobs = 0, 0, 0
        self._count = workers
        self._processes = 1  # how many there should be: one until it is known what they are
        self._threads = 1  # workers in each
        self._numbers = itertools.count()
        self._batcher = Batcher(1)
        self._due: asyncio.Handle | None = None
        self._closing = self.out_of_memory = False
        self.loading_at = ""
        self._batches_itself = self._hands_ahead = False
        self._template: _Worker | None = None
        self._forks: bool | None = (
            None  # whether there should be a template; None: the first that loads the model decides
        )
        self._quiet: asyncio.Future[None] | None = None
        self._attempts = 0
        self.restarts = self.batches_answered = 0
        self._workers: set[_Worker] = set()
        self._fill()  # the first; when it has loaded the model, the others
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
        """How many requests have not begun."""
        return len(self._waiting) + self._ahead_jobs

    @property
    def alive(self) -> int:
        """How many workers can answer."""
        return self._threads * sum(worker.ready for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._all if worker.process.pid]

    @property
    def _all(self) -> list[_Worker]:
        return [*self._workers, self._template] if self._template else list(self._workers)

    def cancel_loading(self, why: str) -> None:
        """`loaded` becomes `why`, unless the model is loaded."""
        if not self.loaded.done():
            self.loaded.set_result(why)

    async def drain(self, timeout_seconds: float) -> bool:
        """Return when nothing waits or runs. Whether that was in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._waiting or any(worker.runs for worker in self._workers):
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
        waiting = self.waiting
        if waiting >= self._queue_size + len(self._idle) + self._ahead - self._about:
            raise Busy("all workers are busy and the queue is full.", self._retry_after())
        job = Job(body, headers, self.clock(), deadline, self._loop.create_future())
        most = self._batcher.request_seconds * waiting  # if one worker had to do it all, which is quicker to say
        if job.queued + most > deadline and job.queued + self._expected_seconds() > deadline:
            raise Busy("what waits already takes longer than this request's deadline allows.", self._retry_after())
        self._waiting.append(job)
        if self._idle and self._due is None:
            # At the end of this turn of the loop, so that what came together goes together.
            self._due = self._loop.call_soon(self._dispatch)
        return job

    def _expected_seconds(self) -> float:
        """How long what waits will take."""
        return self._batcher.request_seconds * self.waiting / max(1, self.alive)

    def _retry_after(self) -> int:
        return max(1, math.ceil(self._expected_seconds()))

    async def close(self, timeout_seconds: float) -> None:
        """End the workers: those that are idle at once, the others killed after the time given."""
        self._closing = True
        self._ticking.cancel()
        self._starter.close()
        processes = [worker.process for worker in self._all]
        for process in processes:
            process.close()
        loaded = self.loaded.done() and not self.loaded.cancelled()
        # Nobody waits for a model that is still loading.
        deadline = self.clock() + (timeout_seconds if loaded else 0)
        for process in processes:
            while process.poll() is None and self.clock() < deadline:
                await asyncio.sleep(0.005)
            process.kill()
            process.wait()

    # --- batches

    def _dispatch(self) -> None:
        self._due = None
        while self._idle and self._waiting:
            now = self.clock()
            oldest = self._waiting[0]
            if oldest.future.done() or oldest.deadline <= now:
                self._waiting.popleft()  # its caller has been answered, or is gone
                continue
            if self._delay and len(self._waiting) < self._max_batch and now < oldest.queued + self._delay:
                self._due = self._loop.call_later(oldest.queued + self._delay - now, self._dispatch)
                return
            worker, most = self._idle[-1], self._max_batch
            if not (free := worker.has_free_lane):
                most = self._even_share(worker)
                if len(self._waiting) < most * _SMALL:
                    return  # until it is done, or more wait: a small batch costs its way there and back like a large one
            worker = self._free_lane(oldest.alone)
            run = _Run(*self._take(now, most))
            if free:
                self._begin(worker, run, now)
            else:
                worker.ahead.append(run)
                self._ahead += 1
                self._ahead_jobs += len(run.jobs)
            worker.run(next(self._numbers), run)

    def _begin(self, worker: _Worker, run: _Run, now: float) -> None:
        """A lane runs it from now on. A little before the end it is given the next, so that it need not wait for that.

        Not much before: what comes meanwhile may make a better batch. And not where another process may be free earlier.
        """
        run.begin(now)
        if not self._hands_ahead or run.alone or self._batches_itself or worker.killed:
            return
        left = self._batcher.expected_seconds(run.batch) * _AHEAD_SHARE - _AHEAD_SECONDS if run.batch else 0.0
        if left > 0:
            run.releasing = self._loop.call_later(left, self._release, worker, run)
        else:
            self._release(worker, run)

    def _release(self, worker: _Worker, run: _Run) -> None:
        run.released, run.releasing = True, None
        self._about += 1
        self._idle.append(worker)
        if self._waiting and self._due is None:
            self._due = self._loop.call_soon(self._dispatch)

    def _free_lane(self, alone: bool) -> _Worker:
        """The worker with the least to do; for what runs alone, with all of its lanes.

        A process of several lanes has then nothing to do: what it did when it died is what now runs alone, before all others.
        """
        worker = self._idle[-1]
        if worker.lanes == 1:
            return self._idle.pop()
        worker = min(self._idle, key=lambda each: len(each.runs))
        if alone:
            self._idle = [other for other in self._idle if other is not worker]
        else:
            self._idle.remove(worker)
        return worker

    def _even_share(self, worker: _Worker) -> int:
        """Of all requests that are here, where as many wait as each lane runs.

        Callers who ask again when they are answered come back together. A batch of all that wait would take turns with small
        ones forever.
        """
        here = len(self._waiting) + sum(len(run.jobs) for run in worker.runs.values())
        return min(self._max_batch, -(-here // (worker.lanes + 1)))

    def _take(self, now: float, most: int) -> tuple[Sequence[Job], Batch | None]:
        """The next batch, of so many at most."""
        waiting = self._waiting
        if self._max_batch == 1 or waiting[0].alone:
            return [waiting.popleft()], None
        # Only so many are looked at for ones of like length: further ones would overtake those in between.
        # Those that are past their time leave the queue here; those that run alone stay in it until they are the first.
        seen: list[Job] = []
        kept: list[Job] = []
        for _ in range(min(len(waiting), self._max_batch)):
            job = waiting.popleft()
            if job.alone:
                kept.append(job)
            elif not job.future.done() and job.deadline > now:
                seen.append(job)
        count = min(most, -(-(len(seen) + len(waiting)) // (len(self._idle) + 1)))  # the idle workers share what waits
        batch = self._batcher.choose([len(job.body) for job in seen], count)
        if len(batch.positions) == len(seen) and not kept:
            return seen, batch
        picked = set(batch.positions)
        kept += [job for index, job in enumerate(seen) if index not in picked]
        waiting.extendleft(reversed(kept))
        return [seen[index] for index in batch.positions], batch

    def finished(self, worker: _Worker, run: _Run) -> None:
        """A worker has answered a batch."""
        self.batches_answered += 1
        now = self.clock()
        if run.batch and not run.stopped:
            # With the way there and back, which small batches pay more often than large ones.
            self._batcher.observe(run.batch, now - run.started)
        self._forget(run)
        if not worker.killed and not run.released:
            self._idle.extend([worker] * (worker.lanes if run.alone else 1))
        if worker.ahead:
            ahead = worker.ahead.popleft()
            self._forget(ahead)
            self._begin(worker, ahead, now)
        self._one_less()
        if self._waiting and self._idle and self._due is None:
            self._due = self._loop.call_soon(self._dispatch)

    def _forget(self, run: _Run) -> None:
        """As what it was: one that had begun, or one that had been given ahead."""
        if not run.begun:
            self._ahead -= 1
            self._ahead_jobs -= len(run.jobs)
        elif run.released:
            self._about -= 1
        elif run.releasing:
            run.releasing.cancel()

    # --- the life of workers

    def _fill(self) -> None:
        """Start what is missing."""
        if self._closing:
            return
        missing = self._processes - len(self._workers)
        if self._forks and not self._template:  # one loads the model for all
            missing = min(missing, 1 - sum(not worker.ready for worker in self._workers))
        for _ in range(missing):
            worker = _Worker(self, next(self._numbers))
            self._workers.add(worker)
            if self._template:
                worker.process = self._starter.fork(self._template.process, worker)
            else:
                worker.process = self._starter.start(worker, template=self._count > 1 and self._forks is not False)

    def loaded_template(self, worker: _Worker) -> None:
        """It has loaded the model, and waits to be forked."""
        self._workers.discard(worker)
        self._template, self._forks = worker, True
        self._processes = self._count
        self._fill()

    def ready(self, worker: _Worker, kind: str, batches: bool, concurrency: int, why: str) -> None:
        """It can answer.

        Args:
            kind: ``thread``, ``fork`` or ``spawn``.
            concurrency: how many requests the model takes at once to batch by itself.
            why: it is not one that others are forked from.
        """
        if not batches or concurrency > 1:
            self._max_batch = 1
        self._batches_itself = concurrency > 1
        if kind == "thread":
            self._threads = concurrency = self._count
        else:
            self._processes = self._count
        self._forks = kind == "fork"
        self._hands_ahead = self._processes == 1
        worker.ready, worker.lanes = True, concurrency
        if not self.loaded.done():
            self._batcher = Batcher(self._max_batch)
            self.loaded.set_result(None)
        self._attempts = 0
        self._log(
            "worker ready", worker=worker.number, pid=worker.process.pid, kind=kind, **({"why": why} if why else {})
        )
        self._fill()
        self._idle.extend([worker] * worker.lanes)
        self._dispatch()

    def lost(self, worker: _Worker) -> None:
        """Its socket is closed: it is dead, or will be."""
        self._workers.discard(worker)
        self._one_less()
        self._idle = [other for other in self._idle if other is not worker]
        worker.process.kill()
        code = worker.process.wait()
        if self._closing:
            return
        if worker is self._template:
            self._template = None  # the next that is missing loads the model, and takes its place
            self._log("template died", worker=worker.number, ended=_ending(code))
            return
        if not self.loaded.done():
            # The kernel's way to say that there is no memory left is SIGKILL.
            self.out_of_memory = worker.out_of_memory if worker.failure else code == -signal.SIGKILL
            self.loaded.set_result(
                worker.failure or f"The model's process ended with {_ending(code)} while it loaded.\n"
            )
            return
        self.restarts += 1
        requests = sum(len(run.jobs) for run in worker.runs.values())
        self._log("worker died", worker=worker.number, ended=_ending(code), requests=requests, error=worker.failure)
        self._again(worker, code)
        pause = _RESTART_SECONDS[min(self._attempts, len(_RESTART_SECONDS) - 1)]
        self._attempts += 1
        self._loop.call_later(pause, self._fill)

    def _again(self, worker: _Worker, code: int | None) -> None:
        """Ask once more what a process had in its hands when it died, but for what may have killed it."""
        runs = list(worker.runs.values())
        worker.runs.clear()
        begun = [run for run in runs if run.begun]
        known = len(begun) == 1 and len(begun[0].jobs) == 1
        for run in reversed(runs):
            self._forget(run)
            for job in reversed([job for job in run.jobs if not job.future.done()]):
                if run.begun and (known or job.alone or self._batches_itself):
                    job.fail(Failed(f"the model's process ended with {_ending(code)} during this request."))
                    continue
                if run.begun:
                    job.alone, job.started = True, 0.0
                self._waiting.appendleft(job)
        if self._waiting and self._idle and self._due is None:
            self._due = self._loop.call_soon(self._dispatch)

    def _tick(self) -> None:
        now = self.clock()
        for worker in self._all:
            worker.stop_what_nobody_waits_for()
            if not worker.killed and self._hangs(worker, now):
                self._retire(worker)
                worker.process.kill()  # lost() follows
            elif worker.process.poll() is not None and not worker.process.ended:
                worker.process.close()  # a process of the user's keeps its socket open
        self._ticking = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _retire(self, worker: _Worker) -> None:
        """It is about to be killed, and is given nothing more: that would be taken for what killed it."""
        worker.killed = True
        self._idle = [other for other in self._idle if other is not worker]
        for run in worker.runs.values():
            if run.begun:
                self._forget(run)
                run.released, run.releasing = False, None

    def _hangs(self, worker: _Worker, now: float) -> bool:
        hung = worker.hung(now - self._timeout)
        for run in hung:
            self._log("worker hung", worker=worker.number, seconds=round(now - run.started, 1))
            for job in run.jobs:  # their deadlines have passed, too: they began before the batch did
                job.fail(TimeoutError())
        return bool(hung)


def _ending(code: int | None) -> str:
    if code is None:
        return "no process: it could not be forked"
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"


def environment(base: Mapping[str, str], workers: int, cores: int, *, shared: bool) -> Mapping[str, str]:
    """The workers' environment: as many threads inside an operation as each worker has cores, unless the host has said.

    `worker` reads WINDLASS_THREADS, and WINDLASS_PIN_THREADS: where workers have all cores and share them with nobody, their
    engine's threads lose nothing by staying where their caches are.

    Until the model is loaded, one that others may be forked from has one thread: libraries start theirs at the first use, and
    no thread survives a fork.
    """
    said = base.get("OMP_NUM_THREADS", "").partition(",")[0]  # OpenMP takes a list: one for each level of nesting
    threads = said if said.isdigit() and int(said) else str(max(1, cores // workers))
    now = threads if workers == 1 else "1"
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    pinned = str(int(not shared and workers > 1 and workers * int(threads) == cores))
    own = {"OMP_NUM_THREADS": now, "WINDLASS_THREADS": threads}
    return {**dict.fromkeys(names, now), "WINDLASS_PIN_THREADS": pinned, **base, **own}
