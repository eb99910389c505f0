"""One model server: its process under the container contract, its health, its restarts, and the requests it is asked.

Health, drains and restarts run on real time whatever the cloud's clock says: processes do.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from windlass.images import vendor_server
from windlass.local.cloudwatch.logs import follow
from windlass.local.jobs import environments
from windlass.local.jobs.environments import Environments, RequirementsFailed
from windlass.local.processes import BASE, Child, Container, Keeper

if TYPE_CHECKING:
    from windlass.local.hosting.multi_model import Repository

Started = Callable[[str, Child, Path], None]

PAYLOAD_LIMIT_BYTES = 6 * 1024 * 1024
"""Of a body, both ways: the service model's own maximum."""

INVOCATION_TIMEOUT_SECONDS = 60.0
"""How long a model may take to answer: InvokeEndpoint's limit."""

PATIENCE_SECONDS = 55.0
"""How long a request waits for what has to be started or loaded for it, before it is told to come again."""

CHUNK_BYTES = 64 * 1024
"""The most of a streamed answer that is passed on at once."""

STOP_GRACE_SECONDS = 10.0
"""From SIGTERM to SIGKILL, for a server that has nothing left to answer."""

IDLE_CONNECTION_SECONDS = 4.0
"""Kept connections are younger than this: the usual servers close theirs after 5 s."""

LOG_TAIL_LINES = 200
FAILURE_REASON_LENGTH = 1024
_PORTS = range(20_000, 32_000)  # below the range from which Linux takes ports for outgoing connections


def told(
    content_type: str | None,
    accept: str | None,
    custom_attributes: str | None,
    inference_id: str | None,
    **others: str | None,
) -> dict[str, str]:
    """The headers a container gets with a request; those that have no value are left out."""
    values = {
        "Content-Type": content_type,
        "Accept": accept,
        "X-Amzn-SageMaker-Custom-Attributes": custom_attributes,
        "X-Amzn-SageMaker-Inference-Id": inference_id,
        **others,
    }
    return {name: value for name, value in values.items() if value}


class FleetFailed(Exception):
    """A fleet did not come up; ``str()`` is the endpoint's FailureReason."""


class NotReady(Exception):
    """What is to answer is still being started or loaded; ``str()`` says what."""


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
        repository: where the models are that a multi-model server loads when they are asked for.
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
    repository: Repository | None = None
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
    def base(self) -> Path:
        """Where its process finds its folder."""
        return self._keeper.base(self.folder)

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
        if server := vendor_server(self.spec.image):
            raise FleetFailed(
                f"The local cloud runs no container images, and {self.spec.image} for production variant {self.spec.name} "
                f"holds {server}, which it cannot stand in for. Deploy to AWS, or name an image whose code/inference.py the "
                "model server of Windlass can run."
            )
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
            "WINDLASS_PIN_THREADS": "0",  # other instances and jobs compute on the same cores
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
