"""The pool as a state machine: whatever its workers and callers do, each request is answered once, and N workers come back.

Time and processes are the machine's own, so that nothing here waits.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windlass.runtime.jobs import Answer, Busy, Failed, Job, Stream
from windlass.runtime.workers import Pool

TIMEOUT, MAX_BATCH, FOREVER = 60.0, 4, 1e9
CHUNK = bytes((1 << 20) + 1)  # more than waits for a reader


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time passes when it is told to."""

    now = 1000.0

    def __init__(self) -> None:
        super().__init__()
        self.raised: list[BaseException] = []
        self.set_exception_handler(lambda _, context: self.raised.append(context["exception"]))

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run what is due, and what that makes due."""
        for _ in range(6):
            self.call_soon(self.stop)
            self.run_forever()
        if self.raised:
            raise self.raised[0]


class Process:
    """A worker process that does what the machine says."""

    pids = itertools.count(100)

    def __init__(self, loop: Loop, owner: Any, template: bool, forked: bool) -> None:
        self.loop, self.owner, self.may_be_template, self.forked = loop, owner, template, forked
        self.pid = 0 if forked else next(self.pids)
        self.runs: dict[int, list[bytes]] = {}  # in the order in which they came
        self.lanes = 1
        self.streams: dict[int, bool] = {}  # by run: whether its caller has left
        self.held: set[int] = set()  # streams that wait for their readers
        self.stopped: set[int] = set()  # what it has been told that nobody waits for
        self.state = "loading"
        self.ended = False
        self.code: int | None = None

    @property
    def begun(self) -> list[int]:
        """The runs that it is at; the others have come before their time."""
        return list(self.runs)[: self.lanes]

    # --- what the pool asks

    def send(self, message: tuple[Any, ...]) -> None:
        assert self.state == "ready", "sent to one that is not"
        if message[0] == "run":
            self.runs[message[1]] = [body for body, _ in message[2]]
            return
        what, number = message
        assert number in self.runs, "told of a run that has ended"
        if what == "stop":
            assert number not in self.stopped, "stopped twice"
            self.stopped.add(number)
            self.held.discard(number)
            if number in self.streams:
                self.streams[number] = True
        elif what == "hold":
            assert number not in self.held
            self.held.add(number)
        else:
            assert what == "go on"
            self.held.remove(number)

    def poll(self) -> int | None:
        return self.code

    def wait(self) -> int | None:
        assert self.code is not None or not self.pid, "the server would wait for a process that lives"
        return self.code

    def kill(self) -> None:
        self.die(-9)

    def close(self) -> None:
        self.die(0)

    # --- what the machine makes it do

    def die(self, code: int) -> None:
        if self.state != "dead":
            self.state, self.code = "dead", code
            self.loop.call_soon(self._lost)

    def _lost(self) -> None:
        self.ended = True
        self.owner.lost()

    def say(self, *message: Any) -> None:
        self.owner.received(message)


class Starter:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.processes: list[Process] = []

    def _add(self, process: Process) -> Process:
        self.processes.append(process)
        return process

    def start(self, owner: Any, *, template: bool) -> Process:
        return self._add(Process(self.loop, owner, template, forked=False))

    def fork(self, template: Process, owner: Any) -> Process:
        process = self._add(Process(self.loop, owner, template=False, forked=True))
        if template.state == "dead":
            process.die(0)
        return process

    def close(self) -> None:
        pass

    def those(self, state: str) -> list[Process]:
        return [process for process in self.processes if process.state == state]


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.starter = Starter(self.loop)
        self.jobs: dict[bytes, Job] = {}
        self.died: Counter[bytes] = Counter()  # with how many processes that were at it
        self.buried: list[Process] = []
        self.gone: set[bytes] = set()
        self.streams: list[Stream] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize(
        kind=st.sampled_from(["thread", "fork", "spawn"]),
        workers=st.integers(1, 3),
        queue_size=st.integers(0, 12),
        batches=st.booleans(),
        own=st.sampled_from([1, 1, 3]),
        delay=st.sampled_from([0.0, 0.01]),
    )
    def make(self, kind: str, workers: int, queue_size: int, batches: bool, own: int, delay: float) -> None:
        self.kind = "spawn" if workers == 1 or (kind == "thread" and own > 1) else kind
        self.workers, self.queue_size, self.batches, self.own = workers, queue_size, batches, own
        self.lanes = workers if self.kind == "thread" else own
        self.ahead = own == 1 and (self.kind == "thread" or workers == 1)

        async def start() -> Pool:
            return Pool(
                self.starter,  # type: ignore[arg-type]
                workers=workers,
                queue_size=queue_size,
                max_batch_size=MAX_BATCH,
                batch_delay_seconds=delay,
                timeout_seconds=TIMEOUT,
                log=lambda event, **fields: None,
                measured=lambda measured: None,
                clock=self.loop.time,
            )

        self.pool = self.run(start())
        self.loads(0)

    def act(self, do: Callable[[], object]) -> None:
        """What comes from outside comes in the loop's thread, as a callback of its own."""
        self.loop.call_soon(do)
        self.loop.settle()
        for process in self.starter.those("dead"):
            if process not in self.buried:
                self.buried.append(process)
                self.died.update(body for number in process.begun for body in process.runs[number])
                self.seen.update((process.pid, number) for number in process.runs)  # some perhaps in this very turn
        for process in self.starter.processes:
            for number, bodies in process.runs.items():
                if (process.pid, number) not in self.seen:
                    self.seen.add((process.pid, number))
                    self.begun(process, bodies)

    seen: set[tuple[int, int]]

    def begun(self, process: Process, bodies: list[bytes]) -> None:
        """A run that has just been handed over: right in size, in order, and alone if it is asked again."""
        assert 1 <= len(bodies) <= (MAX_BATCH if self.batches and self.own == 1 else 1)
        assert all(self.died[body] <= 1 for body in bodies)
        if any(self.died[body] for body in bodies):
            assert len(bodies) == 1
            assert len(process.runs) == 1, "asked again, but not alone"
        else:
            waiting = [body for body in self.unanswered() if body not in self.held() and not self.died[body]]
            assert not waiting or min(bodies) < min(waiting), "the oldest was passed over"

    def held(self) -> set[bytes]:
        """What is in a process that lives."""
        alive = self.starter.those("ready")
        return {body for process in alive for bodies in process.runs.values() for body in bodies}

    def unanswered(self) -> list[bytes]:
        return [body for body, job in self.jobs.items() if not job.future.done()]

    # --- what processes do

    def pick(self, state: str, which: int) -> Process | None:
        found = self.starter.those(state)
        return found[which % len(found)] if found else None

    @rule(which=st.integers(0, 5))
    def loads(self, which: int) -> None:
        """A process that has been slow to start is there."""
        if not hasattr(self, "seen"):
            self.seen = set()
        if (process := self.pick("loading", which)) is None:
            return

        def tell() -> None:
            if process.forked:
                process.pid = next(Process.pids)
                process.say("forked", process.pid)
            if self.kind == "fork" and process.may_be_template:
                process.state = "template"
                process.say("template")
            else:
                process.state = "ready"
                process.lanes = self.lanes
                kind = self.kind if process.forked or self.kind != "fork" else "spawn"
                process.say("ready", kind, self.batches, self.own, "")

        self.act(tell)

    @rule(which=st.integers(0, 5), batch=st.integers(0, 5), streams=st.booleans())
    def answers(self, which: int, batch: int, streams: bool) -> None:
        busy = [process for process in self.starter.those("ready") if set(process.begun) - set(process.streams)]
        if not busy:
            return
        process = busy[which % len(busy)]
        numbers = sorted(set(process.begun) - set(process.streams))
        number = numbers[batch % len(numbers)]
        bodies = process.runs[number]
        if streams and len(bodies) == 1:
            process.streams[number] = False
            self.act(lambda: process.say("replies", number, 0.01, [(200, [], None, None)]))
            job = self.jobs[bodies[0]]
            if job.future.done() and not job.future.cancelled() and job.future.exception() is None:
                stream = job.future.result().stream
                assert stream
                self.streams.append(stream)
        else:
            del process.runs[number]
            self.act(lambda: process.say("replies", number, 0.01, [(200, [], body, None) for body in bodies]))

    @rule(which=st.integers(0, 5), ends=st.booleans())
    def streams_on(self, which: int, ends: bool) -> None:
        found = [(process, number) for process in self.starter.those("ready") for number in process.streams]
        found = [(process, number) for process, number in found if number in process.runs]
        if not found:
            return
        process, number = found[which % len(found)]
        if ends or process.streams[number]:
            del process.streams[number], process.runs[number]
            process.held.discard(number)  # its last part may be one part too many
            self.act(lambda: process.say("end", number, 0.02, None))
        else:
            if number not in process.held:  # as the worker does: it waits
                self.act(lambda: process.say("chunk", number, CHUNK))

    @rule(state=st.sampled_from(["ready", "ready", "template", "loading"]), which=st.integers(0, 5))
    def dies(self, state: str, which: int) -> None:
        if (process := self.pick(state, which)) and self.pool.loaded.done():
            self.act(lambda: process.die(-11))

    @rule(which=st.integers(0, 5))
    def dies_at_work(self, which: int) -> None:
        if busy := [process for process in self.starter.those("ready") if process.runs]:
            self.act(lambda: busy[which % len(busy)].die(-9))

    @rule()
    def hangs(self) -> None:
        """Longer than any batch may run."""
        self.passes(TIMEOUT + 1)

    @rule(seconds=st.sampled_from([0.001, 0.02, 1.0, 10.0]))
    def passes(self, seconds: float) -> None:
        self.loop.now += seconds
        for body in self.unanswered():  # as the server does in each of its rounds
            job = self.jobs[body]
            if job.deadline < self.loop.now:
                self.loop.call_soon(lambda job=job: job.future.done() or job.future.set_exception(TimeoutError()))
        self.act(lambda: None)
        for process in self.starter.those("ready"):
            for number, bodies in process.runs.items():
                nobody = number not in process.streams and all(self.jobs[body].future.done() for body in bodies)
                assert seconds < 0.1 or not nobody or number in process.stopped, "works for nobody"

    # --- what callers do

    @rule(timeouts=st.lists(st.sampled_from([FOREVER, FOREVER, 0.5, 5.0]), min_size=1, max_size=6))
    def ask(self, timeouts: list[float]) -> None:
        """Some at once."""
        self.act(lambda: [self.submit(timeout) for timeout in timeouts])

    def submit(self, timeout: float) -> None:
        body = b"%06d" % len(self.jobs)
        full = self.pool.waiting >= self.queue_size
        try:
            self.jobs[body] = self.pool.submit(body, [], self.loop.now + timeout)
        except Busy as error:
            refused = error
        else:
            return
        assert full or timeout != FOREVER, refused
        assert refused.retry_after_seconds >= 1

    @rule(which=st.integers(0, 9))
    def leaves(self, which: int) -> None:
        if not (waiting := self.unanswered()):
            return
        body = waiting[which % len(waiting)]
        self.gone.add(body)
        self.act(lambda: self.jobs[body].future.set_exception(ConnectionAbortedError()))

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 5))
    def leaves_a_stream(self, which: int) -> None:
        stream = self.streams.pop(which % len(self.streams))
        self.act(stream.stop)

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 5))
    def reads_a_stream(self, which: int) -> None:
        """All that there is."""
        reading: list[asyncio.Task[bytes | None]] = []
        stream = self.streams[which % len(self.streams)]
        self.act(lambda: reading.append(self.loop.create_task(stream.next())))
        if not reading[0].done():
            reading[0].cancel()
            self.loop.settle()

    @rule()
    def a_reader_rests(self) -> None:
        """For longer than a batch may run, which ends no stream that is held for it."""
        held = [
            process for process in self.starter.those("ready") if process.runs and set(process.begun) == process.held
        ]
        self.passes(TIMEOUT + 1)
        assert not [process for process in held if process.state != "ready"]

    # --- what always holds

    @invariant()
    def what_waits_for_readers_is_little(self) -> None:
        assert all(stream._bytes <= len(CHUNK) for stream in self.streams)

    @invariant()
    def those_that_are_held_are_those_that_lag_behind(self) -> None:
        held = sum(len(process.held) for process in self.starter.those("ready"))
        assert held == sum(stream.held for stream in self.streams)

    @invariant()
    def none_is_lost(self) -> None:
        queued = Counter(job.body for job in (getattr(self, "pool", None) and self.pool._waiting) or ())
        assert not queued or max(queued.values()) == 1
        held = self.held() if queued or self.jobs else set()
        for body in self.unanswered():
            assert (body in queued) + (body in held) == 1, "lost, or in two places"

    @invariant()
    def no_worker_has_more_than_it_takes(self) -> None:
        for process in self.starter.those("ready"):
            assert len(process.runs) <= self.lanes * (2 if self.ahead else 1)

    @invariant()
    def there_are_never_more_workers_than_asked_for(self) -> None:
        wanted = 1 if getattr(self, "kind", "") == "thread" else getattr(self, "workers", 1)
        living = self.starter.those("ready") + self.starter.those("loading")
        assert len(living) <= wanted
        assert len(self.starter.those("template")) <= 1

    @invariant()
    def who_waits_is_served_by_who_is_free(self) -> None:
        if self.jobs and any(not process.runs for process in self.starter.those("ready")) and not self.pool._delay:
            assert not [job for job in self.pool._waiting if not job.future.done()]

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.recovers()
            self.passes(1.0)  # those whose callers have left leave the queue when their batch is due
            draining = self.loop.create_task(self.pool.drain(FOREVER))
            self.loop.settle()
            assert draining.result() is True
            self.run(self.pool.close(0))
            self.loop.settle()
            assert not asyncio.all_tasks(self.loop)
            assert all(process.state == "dead" for process in self.starter.processes)
        for job in self.jobs.values():
            if not job.future.cancelled():
                job.future.exception()
        self.loop.close()

    def recovers(self) -> None:
        """When all load and answer again, all is answered, and the workers are back."""
        for _ in range(100):
            for _ in self.starter.those("loading"):
                self.loads(0)
            while any(process.runs for process in self.starter.those("ready")):
                self.streams_on(0, ends=True)
                self.answers(0, 0, streams=False)
            if not self.unanswered() and self.pool.alive == self.workers:
                break
            self.passes(1.0)
        assert self.pool.alive == self.workers
        for body, job in self.jobs.items():
            assert job.future.done()
            error = job.future.exception()
            if error is None:
                answer = job.future.result()
                assert isinstance(answer, Answer)
                assert answer.body in (body, None), "another's answer"
            else:
                assert isinstance(error, Failed | TimeoutError) or body in self.gone


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("own", [1, 3])
def test_a_stream_waits_for_its_reader_and_is_not_taken_for_hung(own: int) -> None:
    machine = PoolMachine()
    machine.make("spawn", workers=1, queue_size=10, batches=False, own=own, delay=0.0)
    machine.ask([FOREVER])
    machine.answers(0, 0, streams=True)
    (process,) = machine.starter.those("ready")

    for _ in range(3):
        machine.streams_on(0, ends=False)
        assert process.held == set(process.runs)
        machine.passes(TIMEOUT + 1)
        machine.those_that_are_held_are_those_that_lag_behind()
        machine.reads_a_stream(0)
        machine.passes(0.06)  # it has had no time yet
        assert (process.held, process.state) == (set(), "ready")

    machine.passes(TIMEOUT + 1)
    assert process.state == "dead"
    machine.teardown()


def test_a_process_that_is_killed_is_given_nothing_more() -> None:
    machine = PoolMachine()
    machine.make("thread", workers=2, queue_size=3, batches=False, own=1, delay=0.0)
    machine.ask([FOREVER])

    machine.loop.now += TIMEOUT + 1
    machine.ask([FOREVER])  # in the turn in which the first is taken for hung

    machine.passes(1.0)
    machine.loads(0)
    (process,) = machine.starter.those("ready")
    assert list(process.runs.values()) == [[b"000001"]]
    assert not machine.jobs[b"000001"].alone
    machine.teardown()


def test_callers_who_ask_again_at_once_come_to_batches_of_one_size() -> None:
    """30 of them and two lanes: as many wait as each lane runs, though they came as 20, 7 and 3."""
    loop, callers, milliseconds = Loop(), 30, 1e-3
    starter = Starter(loop)

    async def start() -> Pool:
        return Pool(
            starter,  # type: ignore[arg-type]
            workers=2,
            queue_size=100,
            max_batch_size=32,
            batch_delay_seconds=0.0,
            timeout_seconds=TIMEOUT,
            log=lambda event, **fields: None,
            measured=lambda measured: None,
            clock=loop.time,
        )

    pool = loop.run_until_complete(start())
    (process,) = starter.processes
    process.state, process.lanes = "ready", 2
    process.say("ready", "thread", True, 1, "")
    loop.settle()
    ends: dict[int, float] = {}
    sizes: list[int] = []

    def ask(count: int) -> None:
        for _ in range(count):
            pool.submit(b"x" * 100, [], loop.now + FOREVER)
        loop.settle()

    def run(milliseconds_long: int) -> None:
        for _ in range(milliseconds_long):
            loop.now += milliseconds
            loop.settle()
            for number in process.begun:
                cost = (10 + len(process.runs[number])) * milliseconds
                ends.setdefault(number, loop.now + cost)
            for number in [number for number, end in ends.items() if end <= loop.now]:
                del ends[number]
                bodies = process.runs.pop(number)
                sizes.append(len(bodies))
                process.say("replies", number, 0.01, [(200, [], body, None) for body in bodies])
                loop.settle()
                ask(len(bodies))

    for group in (20, 7, 3):
        ask(group)
    run(10_000)
    sizes.clear()
    run(10_000)
    usual = Counter(sizes).most_common(1)[0][0]
    assert usual == callers / 3
    assert sizes.count(usual) > 0.7 * len(sizes)  # now and then another size is tried
    loop.run_until_complete(pool.close(0))
    loop.settle()
    loop.close()


def test_every_lane_is_given_one_ahead_where_requests_go_one_by_one() -> None:
    machine = PoolMachine()
    machine.make("thread", workers=2, queue_size=10, batches=False, own=1, delay=0.0)
    for _ in range(4):
        machine.ask([FOREVER])
    (process,) = machine.starter.those("ready")
    assert len(process.runs) == 4
    machine.teardown()


def test_requests_leave_nothing_behind() -> None:
    """Counted in objects, after so many that each table has what it will ever have."""
    machine = PoolMachine()
    machine.make("fork", workers=2, queue_size=100, batches=True, own=1, delay=0.0)
    for _ in range(3):
        machine.loads(0)

    def requests(count: int) -> int:
        for _ in range(count):
            jobs = [machine.pool.submit(b"x" * 10, [(b"a", b"b")], machine.loop.now + 60) for _ in range(5)]
            machine.loop.settle()
            while any(process.runs for process in machine.starter.those("ready")):
                for process in machine.starter.those("ready"):
                    for number, bodies in list(process.runs.items()):
                        del process.runs[number]
                        process.say("replies", number, 0.01, [(200, [], body, None) for body in bodies])
                machine.loop.settle()
            assert all(job.future.result().body == job.body for job in jobs)
            machine.loop.now += 0.1
        del jobs
        gc.collect()
        return len(gc.get_objects())

    before = requests(200)
    assert requests(1000) - before < 100
    machine.teardown()


def test_workers_that_die_leave_nothing_behind() -> None:
    machine = PoolMachine()
    machine.make("fork", workers=2, queue_size=100, batches=True, own=1, delay=0.0)

    def deaths(count: int) -> int:
        for _ in range(count):
            machine.loads(0)
            machine.loads(0)
            machine.dies("ready", 0)
            machine.passes(31.0)
            machine.starter.processes = [each for each in machine.starter.processes if each.state != "dead"]
        machine.seen.clear()
        machine.buried.clear()
        gc.collect()
        return len(gc.get_objects())

    before = deaths(20)
    assert deaths(200) - before < 100
    machine.teardown()
