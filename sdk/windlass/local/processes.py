"""Processes that never outlive the local cloud.

    keeper = Keeper()
    child = keeper.start([sys.executable, "train.py"], env={...}, cwd=folder, output=log.fileno())
    child.signal(signal.SIGTERM)
    child.wait(timeout=120) or child.kill()

    keeper.start(argv, env=..., cwd=Path("/opt/ml/code"), output=..., container=Container(folder, hostname="algo-1"))

The server starts none itself: `keeper.py` does, in a process of its own, because a parent that is killed cannot clean up.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from windlass.local import keeper

log = logging.getLogger(__name__)

_SCRIPT = Path(keeper.__file__)
_LENGTH = struct.Struct(">I")

BASE = Path("/opt/ml")
"""Where SageMaker's containers find everything."""


@dataclass(frozen=True)
class Container:
    """What a child takes for the machine that it runs on, where `Keeper.isolation` says that this machine can do it.

    Attributes:
        folder: what it finds at ``/opt/ml``.
        hostname: what its machine is called.
        hosts: what it finds at ``/etc/hosts``.
    """

    folder: Path
    hostname: str = ""
    hosts: Path | None = None

    def _message(self) -> dict[str, str]:
        named = {"folder": self.folder, "hostname": self.hostname, "hosts": self.hosts}
        return {name: str(value) for name, value in named.items() if value}


class Child:
    """One process under the keeper, with everything that it starts.

    Attributes:
        pid: of the process itself.
    """

    def __init__(self, line: _Line, number: int) -> None:
        self.pid = 0
        self._line, self._number = line, number
        self._started = threading.Event()
        self._ended = threading.Event()
        self._error = ""
        self._code: int | None = None

    def __repr__(self) -> str:
        return f"Child(pid={self.pid}, code={self._code})"

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._code

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, negative for a signal; None if it still runs after ``timeout`` seconds."""
        self._ended.wait(timeout)
        return self._code

    def signal(self, signum: int) -> None:
        """Send a signal to the process itself. One that has ended gets nothing."""
        self._line.send({"do": "signal", "id": self._number, "signum": int(signum)})

    def kill(self) -> None:
        """SIGKILL it and all that it started. Returns at once: ``wait()`` for the end."""
        self._line.send({"do": "kill", "id": self._number})

    def _report(self, message: dict[str, object]) -> None:
        if "pid" in message:
            self.pid = int(str(message["pid"]))
        elif "error" in message:
            self._error = str(message["error"])
        else:
            self._code = int(str(message["exit"]))
            self._ended.set()
        self._started.set()


class Keeper:
    """The parent of all children. Closing it, or the death of this process, ends them all.

    Args:
        isolation: how containers are made; by default the best way that this machine allows.
    """

    def __init__(self, isolation: str | None = None) -> None:
        self._wanted = isolation
        self._lock = threading.Lock()
        self._line: _Line | None = None
        self._closed = False

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        output: int,
        container: Container | None = None,
        file_bytes: int | None = None,
    ) -> Child:
        """Run a program.

        Args:
            argv: the program, looked up on ``env["PATH"]``, and its arguments.
            env: its whole environment.
            cwd: the folder that it starts in, as it sees it.
            output: a file descriptor for stdout and stderr. The caller may close its own copy afterwards.
            container: what it finds at ``/opt/ml``; ignored where `isolation` is empty.
            file_bytes: no file that it writes can become larger.

        Raises:
            OSError: the program cannot be run.
        """
        message: dict[str, object] = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "file_bytes": file_bytes}
        line = self._open()
        if container and line.isolation:
            message["container"] = container._message()
        return line.start(message, output)

    @property
    def isolation(self) -> str:
        """How a child is given its own ``/opt/ml``: ``root``, ``user`` or ``bubblewrap``; empty where nothing can."""
        return self._open().isolation

    def base(self, folder: Path) -> Path:
        """Where a child in the container of that folder finds it: ``/opt/ml``, or the folder itself without isolation."""
        return BASE if self.isolation else folder

    def _open(self) -> _Line:
        with self._lock:
            if self._closed:
                raise OSError("The local cloud is shutting down: nothing more can be started")
            if self._line is None or self._line.broken:
                self._line = _Line(self._wanted)
            return self._line

    @property
    def pid(self) -> int | None:
        """The keeper's own process id; None before the first child."""
        return self._line.process.pid if self._line else None

    def kill_all(self) -> None:
        """End every child with all that it started, and return when none is left. More can be started afterwards."""
        with self._lock:
            line, self._line = self._line, None
        if line:
            line.close()

    def close(self) -> None:
        """End every child with all that it started, and the keeper."""
        self._closed = True
        self.kill_all()


class _Line:
    """The socket to one keeper process, and the children that it holds."""

    def __init__(self, isolation: str | None) -> None:
        self._socket, theirs = socket.socketpair()
        wanted = [] if isolation is None else [isolation]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SCRIPT), str(theirs.fileno()), *wanted],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.defpath},
                start_new_session=True,
            )
        self.broken = False
        self._children: dict[int, Child] = {}
        self._numbers = itertools.count(1)
        self._isolation = ""
        self._known = threading.Event()
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="keeper", daemon=True)
        self._reader.start()

    @property
    def isolation(self) -> str:
        self._known.wait()
        return self._isolation

    def start(self, message: dict[str, object], output: int) -> Child:
        child = Child(self, next(self._numbers))
        self._children[child._number] = child
        self.send({"do": "start", "id": child._number, **message}, output)
        if self.broken:
            self._abandon(child)
        child._started.wait()
        if child._error:
            raise OSError(child._error)
        return child

    def send(self, message: dict[str, object], fd: int | None = None) -> None:
        body = json.dumps(message).encode()
        data = _LENGTH.pack(len(body)) + body
        with self._sending:
            try:
                if fd is None:
                    self._socket.sendall(data)
                else:
                    sent = socket.send_fds(self._socket, [data], [fd])
                    self._socket.sendall(data[sent:])
            except OSError:
                # The reader thread sees the same break, and reports every child as killed.
                log.debug("The keeper is gone; dropped %s", message.get("do"))

    def _read(self) -> None:
        with self._socket.makefile("rb") as stream:
            while True:
                try:
                    head = stream.read(_LENGTH.size)
                    body = stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
                except OSError:
                    body = b""
                if not body:
                    break
                message = json.loads(body)
                if "isolation" in message:
                    self._isolation = message["isolation"]
                    self._known.set()
                    continue
                child = self._children[message.pop("id")]
                if "pid" not in message:
                    del self._children[child._number]
                child._report(message)
        self.broken = True
        if self.process.wait() != 0:
            self._sweep()
        self._known.set()
        if self.process.wait() != 0:
            self._sweep()
        for child in list(self._children.values()):
            self._abandon(child)
        with self._sending:
            self._socket.close()

    def _sweep(self) -> None:
        """Kill what a killed keeper leaves: the kernel has killed its children, but not theirs."""
        mark = f"{keeper.MARK}={self.process.pid}.".encode()
        keeper.kill_until_gone(
            lambda: {
                pid
                for pid in keeper.processes()
                if any(variable.startswith(mark) for variable in keeper.environment(pid))
            }
        )

    def _abandon(self, child: Child) -> None:
        """The keeper is gone, and the kernel has killed its children."""
        if not child.pid:
            child._error = "The keeper of the local cloud's processes was killed"
        child._report({"exit": -signal.SIGKILL})

    def close(self) -> None:
        with self._sending, contextlib.suppress(OSError):  # it may have broken off by itself
            self._socket.shutdown(socket.SHUT_WR)
        # It walks /proc until nothing of its own lives; that takes milliseconds, unless a process hangs in the kernel.
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            log.error("The keeper (pid %d) did not end within 10 s; killing it", self.process.pid)
            self.process.kill()
        self._reader.join()
