"""One process that runs a Lambda function, event after event, as an execution environment does on AWS.

    sandbox = Sandbox(spec, folder, keeper=..., log=stream.write)
    outcome = sandbox.invoke(event, request_id)     # -> Outcome(payload, error, ...)
    sandbox.alive                                   # False after a timeout, a crash, or too much memory

The process is `windlass.runtime.function`. Its time and its memory are limited from here: a handler that loops is ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from windlass.local.cloudwatch.logs import follow
from windlass.local.processes import Child, Keeper
from windlass.runtime.function import END_MARK, receive, send

INIT_SECONDS = 10.0
"""AWS's own limit on the loading of a function; a slow one is not ended then but counted into its first invocation."""

_LOOK_SECONDS = 0.05
_LOG_SECONDS = 5.0
_MIB = 1 << 20


@dataclass(frozen=True)
class FunctionSpec:
    """What a process needs to be that function.

    Attributes:
        environment: the whole environment of the process but for what `Sandbox` sets.
        key: equal for two specs that one process can serve.
    """

    name: str
    arn: str
    version: str
    handler: str
    timeout_seconds: float
    memory_mib: int
    environment: Mapping[str, str]
    log_group: str
    key: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one event.

    Attributes:
        payload: JSON, of the result or of the error.
        failed: whether it is an error's.
        log: what the function wrote, from START to REPORT.
    """

    payload: str
    failed: bool
    seconds: float
    log: str


class Sandbox:
    """A process with a function in it.

    Args:
        folder: with the function's unpacked code; not removed.
        open_log: opens the log stream of that name; gives what takes a line.
    """

    def __init__(
        self, spec: FunctionSpec, folder: Path, *, keeper: Keeper, open_log: Callable[[str], Callable[[str], None]]
    ) -> None:
        self.spec, self.last_used = spec, time.monotonic()
        self._stream_name = f"{datetime.now(UTC):%Y/%m/%d}/[{spec.version}]{uuid.uuid4().hex}"
        self._write_log = open_log(self._stream_name)
        self._lines: list[str] = []
        self._ended = threading.Condition()
        self._marks: set[str] = set()
        self._first = True
        self._peak_mib = 0.0
        self._connection: socket.socket | None = None
        self._started = time.monotonic()
        # Paths of sockets are at most 108 bytes long, so it lies outside of the state folder.
        self._socket_folder = Path(tempfile.mkdtemp(prefix="windlass-"))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._socket_folder / "s"))
        self._listener.listen(1)
        self._child = self._launch(folder, keeper)

    def _launch(self, folder: Path, keeper: Keeper) -> Child:
        reading, writing = os.pipe()
        environment = {
            **self.spec.environment,
            "_HANDLER": self.spec.handler,
            "LAMBDA_TASK_ROOT": str(folder),
            "AWS_LAMBDA_FUNCTION_NAME": self.spec.name,
            "AWS_LAMBDA_FUNCTION_VERSION": self.spec.version,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.spec.memory_mib),
            "AWS_LAMBDA_LOG_GROUP_NAME": self.spec.log_group,
            "AWS_LAMBDA_LOG_STREAM_NAME": self._stream_name,
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
            "WINDLASS_FUNCTION_SOCKET": str(self._socket_folder / "s"),
        }
        try:
            command = [sys.executable, "-m", "windlass.runtime.function"]
            child = keeper.start(command, env=environment, cwd=folder, output=writing)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        threading.Thread(
            target=follow, args=(reading, self._take_line), name=f"log-{self.spec.name}", daemon=True
        ).start()
        return child

    @property
    def alive(self) -> bool:
        """Whether it can take another event."""
        return self._child.poll() is None and (self._first or self._connection is not None)

    @property
    def idle_seconds(self) -> float:
        """Since it last had anything to do."""
        return time.monotonic() - self.last_used

    def invoke(self, event: str, request_id: str) -> Outcome:
        """Give it an event, and wait for the answer, at most as long as the function may take."""
        self.last_used = time.monotonic()
        self._say(f"START RequestId: {request_id} Version: {self.spec.version}")
        began = time.monotonic()
        init_seconds = None
        problem = None
        message: dict[str, Any] | None = None
        if self._first:
            problem = self._wait_for(self._listener, began + max(INIT_SECONDS, self.spec.timeout_seconds))
            began = time.monotonic()
            init_seconds, self._first = began - self._started, False
        if problem is None and self._connection is not None:
            deadline = began + self.spec.timeout_seconds
            try:
                send(self._connection, {"event": event, "context": self._context(request_id)})
                problem = self._wait_for(self._connection, deadline)
                if problem is None and (message := receive(self._connection)) is None:
                    problem = self._exit_reason()
            except OSError:
                problem = self._exit_reason()
        seconds = time.monotonic() - began
        if message is not None:
            self._await_mark(request_id)
            payload, failed = str(message["payload"]), bool(message["failed"])
        else:
            payload, failed = self._end(problem or self._exit_reason(), request_id), True
        self._say(f"END RequestId: {request_id}")
        self._say(self._report(request_id, seconds, init_seconds))
        self.last_used = time.monotonic()
        with self._ended:
            log, self._lines = "\n".join(self._lines), []
        return Outcome(payload, failed, seconds, log)

    def _context(self, request_id: str) -> dict[str, Any]:
        return {
            "aws_request_id": request_id,
            "invoked_function_arn": self.spec.arn,
            "function_name": self.spec.name,
            "function_version": self.spec.version,
            "memory_limit_in_mb": str(self.spec.memory_mib),
            "log_group_name": self.spec.log_group,
            "log_stream_name": self._stream_name,
            "deadline": time.time() + self.spec.timeout_seconds,
        }

    def _wait_for(self, source: socket.socket, deadline: float) -> tuple[str, str] | None:
        """Until there is something to read. Otherwise why there will be nothing: (AWS's error type, its message)."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "Sandbox.Timedout", f"Task timed out after {self.spec.timeout_seconds:.2f} seconds"
            readable, _, _ = select.select([source], [], [], min(left, _LOOK_SECONDS))
            if readable and source is self._listener:
                self._connection, _ = self._listener.accept()
                # The connection stands before the module is loaded; its first message says that it is.
                source = self._connection
                continue
            if readable:
                if self._first and receive(source) is None:
                    return self._exit_reason()
                return None
            if self._memory("VmRSS") > self.spec.memory_mib:
                return "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"
            if self._child.poll() is not None and not select.select([source], [], [], 0)[0]:
                return self._exit_reason()

    def _exit_reason(self) -> tuple[str, str]:
        code = self._child.wait(1.0)
        if code is None or code == 0:
            return "Runtime.ExitError", "Runtime exited without providing a reason"
        how = f"exit status {code}" if code > 0 else f"signal: {-code}"
        return "Runtime.ExitError", f"Runtime exited with error: {how}"

    def _end(self, problem: tuple[str, str], request_id: str) -> str:
        """End the process for that reason; returns the payload that says so."""
        kind, message = problem
        self._peak_mib = max(self._peak_mib, self._memory("VmHWM"))
        self.stop()
        if kind == "Sandbox.Timedout":
            self._say(f"{datetime.now(UTC).isoformat(timespec='milliseconds')[:-6]}Z {request_id} {message}")
        else:
            self._say(f"RequestId: {request_id} Error: {message}")
            self._say(kind)
        quoted = message.replace('"', '\\"')
        return f'{{"errorType": "{kind}", "errorMessage": "RequestId: {request_id} Error: {quoted}"}}'

    def _report(self, request_id: str, seconds: float, init_seconds: float | None) -> str:
        spent = seconds * 1000
        self._peak_mib = max(self._peak_mib, self._memory("VmHWM"))
        used = min(self._peak_mib, self.spec.memory_mib)
        report = (
            f"REPORT RequestId: {request_id}\tDuration: {spent:.2f} ms\tBilled Duration: {int(spent) + 1} ms\t"
            f"Memory Size: {self.spec.memory_mib} MB\tMax Memory Used: {used:.0f} MB"
        )
        return report if init_seconds is None else f"{report}\tInit Duration: {init_seconds * 1000:.2f} ms"

    def _memory(self, what: str) -> float:
        """MiB that the process has, or has had at most; 0 when it is gone."""
        try:
            status = Path(f"/proc/{self._child.pid}/status").read_text(encoding="ascii")
        except OSError:
            return 0.0
        line = next((line for line in status.splitlines() if line.startswith(what)), None)
        return int(line.split()[1]) * 1024 / _MIB if line else 0.0

    # -- the log --------------------------------------------------------------------------------------------------------

    def _take_line(self, line: str) -> None:
        text, mark, request_id = line.partition(END_MARK)
        if text:
            self._say(text)
        if mark:
            with self._ended:
                self._marks.add(request_id)
                self._ended.notify_all()

    def _await_mark(self, request_id: str) -> None:
        """All that the handler printed is in the log before its END is."""
        with self._ended:
            self._ended.wait_for(lambda: request_id in self._marks, _LOG_SECONDS)
            self._marks.discard(request_id)

    def _say(self, line: str) -> None:
        with self._ended:
            self._lines.append(line)
        self._write_log(line)

    def stop(self) -> None:
        """End the process with all that it started."""
        self._child.kill()
        self._child.wait(5.0)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with contextlib.suppress(OSError):  # closed already
            self._listener.close()
        shutil.rmtree(self._socket_folder, ignore_errors=True)
