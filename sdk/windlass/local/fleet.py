"""The model servers behind an endpoint: processes, their health, and who answers the next request.

``Fleet(...).start()`` runs InitialInstanceCount processes for each production variant and returns when all of them are healthy;
``acquire(variant)`` hands out the instance with the fewest outstanding requests; ``Fleet.stop()`` lets the outstanding
ones finish before any process ends. Health, drains and restarts run on real time whatever the cloud's clock says: processes do.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import logging
import math
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from windlass.local import environments, quotas
from windlass.local.containers import FetchFailed
from windlass.local.environments import Environments, RequirementsFailed
from windlass.local.logs import follow
from windlass.local.processes import BASE, Child, Container, Keeper
from windlass.local.split import Split
from windlass.local.utilisation import memory_of

log = logging.getLogger(__name__)

Started = Callable[[str, Child, Path], None]

PAYLOAD_LIMIT_BYTES = 6 * 1024 * 1024
"""Of a body, both ways: the service model's own maximum."""

INVOCATION_TIMEOUT_SECONDS = 60.0
"""How long a model may take to answer: InvokeEndpoint's limit."""

CHUNK_BYTES = 64 * 1024
"""The most of a streamed answer that is passed on at once."""

STOP_GRACE_SECONDS = 10.0
"""From SIGTERM to SIGKILL, for a server that has nothing left to answer."""

IDLE_CONNECTION_SECONDS = 4.0
"""Kept connections are younger than this: the usual servers close theirs after 5 s."""

LOG_TAIL_LINES = 200
FAILURE_REASON_LENGTH = 1024
_PORTS = range(20_000, 32_000)  # below the range from which Linux takes ports for outgoing connections


class FleetFailed(Exception):
    """A fleet did not come up; ``str()`` is the endpoint's FailureReason."""


class NoCapacity(Exception):
    """No instance of the variant is healthy at this moment."""


class Unanswered(Exception):
    """The model server gave no answer; ``str()`` says why in AWS's words."""


class TimedOut(Unanswered):
    """It took too long."""


class LogSink(Protocol):
    """Where a server's output goes: a CloudWatch log stream."""

    def write(self, line: str) -> None: ...


@dataclass(frozen=True)
class Reply:
    """What a model server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Streamed:
    """What a model server answers, piece by piece.

    Attributes:
        chunks: of the body, as they come; raises Unanswered. Closing it hangs up.
    """

    status: int
    headers: Mapping[str, str]
    chunks: Generator[bytes, None, None]


@dataclass(frozen=True)
class VariantSpec:
    """One production variant of an endpoint config, resolved to what a server needs.

    Attributes:
        fetch: puts the model's files into a folder; raises :class:`containers.FetchFailed`.
        environment: the whole environment of the process but for the contract's own variables.
        startup_timeout_seconds: ContainerStartupHealthCheckTimeoutInSeconds.
        shadow: whether it gets copies of requests instead of requests. Of all requests, in the ratio of its weight to that of
            the production variants.
        layers: installs what the requirements.txt of the model's code asks for.
        memory_bytes: what a server may hold, which is what its instance type has; None: all that there is.
    """

    name: str
    model: str
    image: str
    instances: int
    weight: float
    fetch: Callable[[Path], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    startup_timeout_seconds: float = 240.0
    layers: Environments | None = None
    shadow: bool = False
    memory_bytes: int | None = None
    command: Sequence[str] = (sys.executable, "-m", "windlass.runtime.server")


class Instance:
    """One model server process, restarted when it dies."""

    def __init__(
        self,
        spec: VariantSpec,
        folder: Path,
        *,
        keeper: Keeper,
        open_log: Callable[[str], LogSink],
        started: Started | None = None,
    ) -> None:
        self.id = f"i-{random.getrandbits(68):017x}"
        self.spec, self.folder = spec, folder
        self._ready = threading.Event()
        self.outstanding = 0
        self.last_used = 0
        self.restarts = 0
        self.stream = f"{spec.name}/{self.id}"
        self._keeper, self._log, self._started = keeper, open_log(self.stream), started
        self._child: Child | None = None
        self._port = 0
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self._reader: threading.Thread | None = None
        self._stopping = threading.Event()
        self._layer: list[Path] = []
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._pool = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether it is healthy and takes requests."""
        return self._ready.is_set()

    @ready.setter
    def ready(self, ready: bool) -> None:
        if ready:
            self._ready.set()
        else:
            self._ready.clear()

    @property
    def stopping(self) -> bool:
        """Whether it is being ended on purpose."""
        return self._stopping.is_set()

    @property
    def launched(self) -> bool:
        """Whether its process has been started at all."""
        return self._child is not None

    @property
    def pid(self) -> int:
        """Of its process; 0 before there is one."""
        return self._child.pid if self._child else 0

    def wait_ready(self, timeout: float) -> bool:
        """Whether it is healthy within ``timeout`` seconds."""
        return self._ready.wait(timeout)

    @property
    def kept_connections(self) -> int:
        """Open connections that the next requests will use."""
        with self._pool:
            return len(self._idle)

    # -- life ---------------------------------------------------------------------------------------------------------

    def install(self, abort: Callable[[], str | None] = lambda: None) -> None:
        """What the model's code requires, into a layer over this interpreter's packages.

        Raises:
            FleetFailed: it cannot be installed, or ``abort`` gave a reason.
        """
        requirements = self.folder / "model" / "code" / "requirements.txt"
        if self.spec.layers is None:
            return
        try:
            layer = self.spec.layers.layer(requirements, say=self._log.write, cancelled=lambda: abort() is not None)
        except RequirementsFailed as error:
            head = f"The requirements.txt of the model for production variant {self.spec.name} cannot be installed:"
            raise FleetFailed(abort() or f"{head}\n{error}"[:FAILURE_REASON_LENGTH]) from error
        self._layer = [layer] if layer else []

    def launch(self) -> None:
        """Start the process. It is not healthy yet."""
        self._port = _free_port()
        base = self._keeper.base(self.folder)
        reading, writing = os.pipe()
        environment = {
            # Where there is no /opt/ml, a variable that points into it is pointed into the instance's own folder.
            **{name: _moved(value, base) for name, value in self.spec.environment.items()},
            "SAGEMAKER_BASE_DIR": str(base),
            "SAGEMAKER_BIND_TO_PORT": str(self._port),
            "SM_MODEL_DIR": str(base / "model"),
            "WINDLASS_BIND_HOST": "127.0.0.1",  # nobody else may reach it, as on AWS
        }
        environment |= environments.variables(self._layer, environment)
        program, *arguments = self.spec.command
        if program == sys.executable:
            program = environments.python(self._layer)
        try:
            child = self._keeper.start(
                [program, *arguments], env=environment, cwd=base, output=writing, container=Container(self.folder)
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with self._pool:
            self._child = child
        if self._started:
            self._started(self.spec.name, child, self.folder)
        self._reader = threading.Thread(
            target=follow, args=(reading, self._take_line), name=f"log-{self.id}", daemon=True
        )
        self._reader.start()

    def wait_healthy(self, deadline: float, abort: Callable[[], str | None] = lambda: None) -> None:
        """Return when ``GET /ping`` answers 200.

        Args:
            deadline: in ``time.monotonic()`` seconds.
            abort: asked between pings; a reason ends the wait.

        Raises:
            FleetFailed: the process ended, the deadline passed, or ``abort`` gave a reason.
        """
        lost_ports = 0
        pause = 0.02
        while True:
            if reason := abort():
                raise FleetFailed(reason)
            if self._child is None or self._child.poll() is not None:
                if lost_ports < 3 and self._output_holds("address already in use"):
                    lost_ports += 1  # another program took the port between our look and the server's bind
                    self._tail.clear()
                    self.launch()
                    continue
                raise FleetFailed(self._health_failure())
            if self._ping():
                self.ready = True
                return
            if time.monotonic() >= deadline:
                raise FleetFailed(self._health_failure())
            self._child.wait(pause)
            pause = min(pause * 1.3, 0.25)

    def watch(self) -> None:
        """Restart the process whenever it dies, until :meth:`stop`. Runs in a thread of its own."""
        backoff = 0.1
        while not self._stopping.is_set():
            child = self._child
            code = child.wait() if child else None
            self.ready = False
            if self._stopping.is_set():
                return
            if child:
                self._log.write(f"The model server exited with code {code}; starting it again")
            self.restarts += 1
            self._drop_connections()
            if self._stopping.wait(backoff):
                return
            try:
                self.launch()
                started = time.monotonic()
                self.wait_healthy(started + self.spec.startup_timeout_seconds, self._abort_restart)
                backoff = 0.1
            except (FleetFailed, OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
                self._log.write(f"The model server did not come back: {error}")
                backoff = min(backoff * 2, 10.0)
                if self._child and self._child.poll() is None:
                    self._child.kill()

    def wait_ended(self) -> None:
        """Return when the process has ended, by itself or not."""
        if self._child:
            self._child.wait()
        self.ready = False

    def kill(self, why: str) -> None:
        """End the process at once; the log says why."""
        self.ready = False
        self._log.write(why)
        if self._child:
            self._child.kill()

    def _abort_restart(self) -> str | None:
        return "stopping" if self._stopping.is_set() else None

    def terminate(self) -> None:
        """Ask the process to end: SIGTERM."""
        self._stopping.set()
        self.ready = False
        if self._child:
            self._child.signal(signal.SIGTERM)

    def stop(self, grace: float) -> None:
        """End the process: SIGTERM, then SIGKILL after ``grace`` seconds."""
        self.terminate()
        if self._child:
            if grace > 0:
                self._child.wait(grace)
            self._child.kill()  # also what it started itself
            self._child.wait(5.0)
        if self._reader:
            self._reader.join(1.0)
        self._drop_connections()

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        timeout: float = INVOCATION_TIMEOUT_SECONDS,
    ) -> Reply:
        """One request to the server over a kept connection.

        Raises:
            Unanswered: it took too long, or the process died.
        """
        child, deadline = self._child, time.monotonic() + timeout
        connection, reused = self._connection(timeout)
        with self._answering(child, lambda: connection.close()):
            try:
                reply = self._exchange(connection, method, path, headers, body, deadline)
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()
                # A kept connection may close just as we write to it: nothing was read, and the server lives. Ask again.
                if not reused or child is None or child.poll() is not None:
                    raise
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
                reply = self._exchange(connection, method, path, headers, body, deadline)
        with self._pool:
            if connection.sock is not None and not self._stopping.is_set():
                self._idle.append((time.monotonic(), connection))
                return reply
        connection.close()
        return reply

    def request_stream(
        self, path: str, headers: Mapping[str, str], body: bytes, timeout: float = INVOCATION_TIMEOUT_SECONDS
    ) -> Streamed:
        """One POST to the server, whose answer is read as it comes.

        Args:
            timeout: in seconds, until the answer begins, and then between its parts.

        Raises:
            Unanswered: it took too long, or the process died.
        """
        child = self._child
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        with self._answering(child, connection.close):
            connection.request("POST", path, body=body, headers=dict(headers))
            response = connection.getresponse()

        def chunks() -> Generator[bytes, None, None]:
            with contextlib.closing(connection), self._answering(child, connection.close):
                while chunk := response.read1(CHUNK_BYTES):
                    yield chunk
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)

        return Streamed(response.status, {name.lower(): value for name, value in response.getheaders()}, chunks())

    @contextlib.contextmanager
    def _answering(self, child: Child | None, give_up: Callable[[], None]) -> Iterator[None]:
        """Say in AWS's words why the server does not answer."""
        try:
            yield
        except TimeoutError as error:
            give_up()
            raise TimedOut(
                "Your invocation timed out while waiting for a response from container primary. Review the latency metrics "
                "for each container in Amazon CloudWatch, resolve the issue, and try again."
            ) from error
        except (http.client.HTTPException, OSError) as error:
            give_up()
            self._look_dead(child)
            raise Unanswered("An error occurred while handling request as the model process exited.") from error

    def _look_dead(self, child: Child | None) -> None:
        """Take no more requests if the process that broke off is dead: its end may be reported only in a moment."""
        if child and child.wait(0.2) is not None:
            with self._pool:
                if self._child is child:  # or else it has been replaced already
                    self.ready = False

    @staticmethod
    def _exchange(
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        deadline: float,
    ) -> Reply:
        connection.request(method, path, body=body, headers=dict(headers))
        socket = connection.sock
        response = connection.getresponse()
        chunks = []
        # The socket's own timeout is for each read: an answer that trickles in would never reach it.
        while chunk := response.read1(1 << 16):
            chunks.append(chunk)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer was not complete in time")
            socket.settimeout(left)
        chunks.append(response.read())  # nothing is left, but for a server that broke off, and only this marks the end
        if response.length:
            raise http.client.IncompleteRead(b"".join(chunks), response.length)
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, b"".join(chunks))

    def _connection(self, timeout: float) -> tuple[http.client.HTTPConnection, bool]:
        youngest = time.monotonic() - IDLE_CONNECTION_SECONDS
        with self._pool:
            while self._idle:
                kept, connection = self._idle.pop()
                if kept >= youngest and connection.sock is not None:
                    connection.sock.settimeout(timeout)
                    return connection, True
                connection.close()
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout), False

    def _drop_connections(self) -> None:
        with self._pool:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _ping(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2.0)
        try:
            return self._exchange(connection, "GET", "/ping", {}, b"", time.monotonic() + 2.0).status == 200
        except (OSError, http.client.HTTPException):
            return False  # not listening yet, or not speaking HTTP: the caller asks again until its deadline
        finally:
            connection.close()

    # -- output -------------------------------------------------------------------------------------------------------

    def _take_line(self, line: str) -> None:
        self._tail.append(line)
        self._log.write(line)

    def _output_holds(self, text: str) -> bool:
        return any(text in line.lower() for line in self._whole_tail())

    def _whole_tail(self) -> list[str]:
        if self._reader and self._child and self._child.poll() is not None:
            self._reader.join(1.0)  # the last lines may still be in the pipe
        return list(self._tail)

    def _health_failure(self) -> str:
        head = (
            f"The primary container for production variant {self.spec.name} did not pass the ping health check. "
            "Please check CloudWatch logs for this endpoint."
        )
        return with_cause(head, self._whole_tail())


def with_cause(head: str, lines: Sequence[str]) -> str:
    """``head`` and the last traceback among ``lines`` (or else the last lines), within FailureReason's 1,024 characters."""
    cause = last_traceback(lines) or [line for line in lines if line.strip()][-5:]
    room = FAILURE_REASON_LENGTH - len(head) - 1
    text = "\n".join(cause)
    if len(text) > room:
        # The exception stands at the end, so the beginning goes.
        text = "..." + text[-(room - 3) :]
    return f"{head}\n{text}" if text else head


def last_traceback(lines: Sequence[str]) -> list[str]:
    """The last Python traceback in a log, with its exception; empty if there is none."""
    starts = [index for index, line in enumerate(lines) if "Traceback (most recent call last):" in line]
    if not starts:
        return []
    block = [lines[starts[-1]]]
    margin = len(block[0]) - len(block[0].lstrip())
    for line in lines[starts[-1] + 1 :]:
        block.append(line)
        if line.strip() and len(line) - len(line.lstrip()) <= margin:
            break  # the first line that is not indented is the exception
    return block


class Fleet:
    """All instances of one endpoint config.

    Args:
        config: the endpoint config's name.
        folder: the fleet's own; removed by :meth:`stop`.
        open_log: opens the log stream of that name.
        started: is told of each process: (variant, process, folder).
    """

    payload_limit_bytes = PAYLOAD_LIMIT_BYTES

    def __init__(
        self,
        config: str,
        variants: Sequence[VariantSpec],
        folder: Path,
        *,
        keeper: Keeper,
        open_log: Callable[[str], LogSink],
        started: Started | None = None,
    ) -> None:
        self.config, self.variants, self.folder = config, {spec.name: spec for spec in variants}, folder
        self.weights = {spec.name: spec.weight for spec in variants}
        self._changed = threading.Condition()
        self._uses, self._numbers = itertools.count(1), itertools.count()
        self._keeper, self._open_log, self._started = keeper, open_log, started
        self._instances: dict[str, list[Instance]] = {spec.name: [] for spec in variants}
        self._starting: list[Instance] = []
        self._sampling: dict[str, Split[bool]] = {spec.name: Split() for spec in variants if spec.shadow}

    def _instance(self, spec: VariantSpec) -> Instance:
        folder = self.folder / spec.name / str(next(self._numbers))
        return Instance(spec, folder, keeper=self._keeper, open_log=self._open_log, started=self._started)

    @property
    def production(self) -> dict[str, float]:
        """The weights of the variants that answer requests."""
        return {name: weight for name, weight in self.weights.items() if not self.variants[name].shadow}

    def shadows(self) -> list[str]:
        """The shadow variants that get a copy of the next request."""
        if not self._sampling:
            return []
        production = sum(self.production.values())
        chosen = []
        with self._changed:
            for name, sampling in self._sampling.items():
                part = min(1.0, self.weights[name] / production) if production else 0.0
                if sampling.choose({True: part, False: 1 - part}):
                    chosen.append(name)
        return chosen

    def instances(self, variant: str) -> list[Instance]:
        """Those of one variant."""
        return list(self._instances[variant])

    def __iter__(self) -> Iterator[Instance]:
        return itertools.chain.from_iterable(self._instances.values())

    def start(self, abort: Callable[[], str | None] = lambda: None) -> None:
        """Fetch the models, start every instance, and return when all are healthy.

        Raises:
            FleetFailed: one of them is not; the others have been ended.
        """
        try:
            self.grow({name: spec.instances for name, spec in self.variants.items()}, abort)
        except BaseException:
            self.stop(drain_seconds=0, grace_seconds=1)
            raise

    @staticmethod
    def _bring_up(instances: Sequence[Instance], abort: Callable[[], str | None], *, restart: bool = True) -> None:
        try:
            for instance in instances:
                model = instance.folder / "model"
                model.mkdir(parents=True)
                instance.spec.fetch(model)
                instance.install(abort)
                instance.launch()
                if reason := abort():
                    raise FleetFailed(reason)
        except FetchFailed as error:
            raise FleetFailed(str(error)) from error
        except OSError as error:
            raise FleetFailed(f"The model server could not be started: {error}") from error
        started = time.monotonic()
        for instance in instances:
            instance.wait_healthy(started + instance.spec.startup_timeout_seconds, abort)
        for instance in instances if restart else ():
            threading.Thread(target=instance.watch, name=f"watch-{instance.id}", daemon=True).start()

    def counts(self) -> dict[str, int]:
        """How many instances each variant has, healthy or not."""
        return {name: len(group) for name, group in self._instances.items()}

    def grow(self, counts: Mapping[str, int], abort: Callable[[], str | None] = lambda: None) -> None:
        """Have at least so many instances of each variant: the new ones take requests once all of them are healthy.

        Raises:
            FleetFailed: a new one is not; they have been ended, and the fleet is what it was before.
        """
        new = {
            name: [self._instance(self.variants[name]) for _ in range(count - len(self._instances[name]))]
            for name, count in counts.items()
        }
        everyone = list(itertools.chain.from_iterable(new.values()))
        with self._changed:
            self._starting = everyone
        try:
            self._bring_up(everyone, abort)
        except BaseException:
            self._end(everyone, grace_seconds=1)
            raise
        finally:
            with self._changed:
                self._starting = []
        with self._changed:
            for name, group in new.items():
                self._instances[name] = self._instances[name] + group

    def shrink(self, counts: Mapping[str, int]) -> None:
        """Have at most so many instances of each variant: those that go finish what they have been asked."""
        gone: list[Instance] = []
        with self._changed:
            for name, count in counts.items():
                group = self._instances[name]
                # Whoever cannot answer goes first.
                ordered = sorted(group, key=lambda instance: not instance.ready)
                gone += ordered[count:]
                self._instances[name] = [instance for instance in group if instance in ordered[:count]]
            self._changed.wait_for(
                lambda: not any(instance.outstanding for instance in gone), INVOCATION_TIMEOUT_SECONDS
            )
        self._end(gone, STOP_GRACE_SECONDS)
        for instance in gone:
            shutil.rmtree(instance.folder, ignore_errors=True)

    @staticmethod
    def _end(instances: Sequence[Instance], grace_seconds: float) -> None:
        """End these processes, all at once: they share the grace."""
        for instance in instances:
            instance.terminate()
        end = time.monotonic() + grace_seconds
        for instance in instances:
            instance.stop(max(0.0, end - time.monotonic()))

    def cap_memory(self) -> None:
        """End each server that holds more memory than it may, as the kernel of an instance would; it is started again."""
        capped = [instance for instance in self if instance.spec.memory_bytes and instance.ready]
        if not capped:
            return
        bounds = memory_of([instance.pid for instance in capped])
        for instance in capped:
            limit = instance.spec.memory_bytes or 0
            # The bound counts what processes share for each of them. It costs little, and suffices for a server that behaves.
            if bounds.get(instance.pid, 0) > limit and (used := quotas.memory_used(instance.pid)) > limit:
                has = f"its instance type has {limit / quotas.GIB:.2f} GiB"
                instance.kill(f"The model server was ended: it used {used / quotas.GIB:.2f} GiB of memory, and {has}.")

    def healthy(self) -> dict[str, int]:
        """How many instances of each variant can answer now."""
        return {name: sum(instance.ready for instance in group) for name, group in self._instances.items()}

    def wait_healthy(self, timeout: float) -> bool:
        """Whether each variant that has instances has one that can answer within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not all(ready or not self._instances[name] for name, ready in self.healthy().items()):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            next(instance for instance in self if not instance.ready).wait_ready(min(left, 0.1))
        return True

    def acquire(self, variant: str, limit: float = math.inf) -> Instance:
        """The healthy instance of ``variant`` with the fewest outstanding requests, which now has one more.

        Args:
            limit: of outstanding requests on one instance.

        Raises:
            NoCapacity: none is healthy and below the limit.
        """
        with self._changed:
            ready = [each for each in self._instances[variant] if each.ready and each.outstanding < limit]
            if not ready:
                raise NoCapacity(variant)
            chosen = min(ready, key=lambda instance: (instance.outstanding, instance.last_used))
            chosen.outstanding += 1
            chosen.last_used = next(self._uses)
            return chosen

    def prepare(self, instance: Instance) -> None:
        """Do what remains to be done before an acquired instance can be asked. Raises FleetFailed."""

    def release(self, instance: Instance) -> None:
        """The request given to ``instance`` is over."""
        with self._changed:
            instance.outstanding -= 1
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait until no request is outstanding. The router must have let go of this fleet before."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(instance.outstanding for instance in self), timeout)

    def terminate(self) -> None:
        """Ask every process to end, and wait for none."""
        for instance in [*self, *self._starting]:
            instance.terminate()

    def stop(
        self, *, drain_seconds: float = INVOCATION_TIMEOUT_SECONDS, grace_seconds: float = STOP_GRACE_SECONDS
    ) -> None:
        """Let the outstanding requests finish, end the processes, remove the folder."""
        if drain_seconds and not self.drain(drain_seconds):
            log.warning("Fleet %s still had requests after %.0f s; ending it", self.config, drain_seconds)
        self._end([*self, *self._starting], grace_seconds)
        shutil.rmtree(self.folder, ignore_errors=True)


def _moved(value: str, base: Path) -> str:
    """A path in ``/opt/ml`` as the same path in what stands for it; any other value as it is."""
    inside = value == str(BASE) or value.startswith(f"{BASE}/")
    return f"{base}{value.removeprefix(str(BASE))}" if inside else value


def _free_port() -> int:
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"No free port between {_PORTS.start} and {_PORTS.stop}")
