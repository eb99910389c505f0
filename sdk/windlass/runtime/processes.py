"""Worker processes and the messages to and from them: started anew, or forked from one that has loaded the model.

    starter = Starter([sys.executable, "-m", "windlass.runtime.worker"], environment)
    process = starter.start(owner)                     # loads the model; owner.received(message), owner.lost()
    other = starter.fork(process, another_owner)       # once `process` has said that it is a template

A fork shares the memory of its template page by page until one of them writes, so that any number of workers cost the weights
once, and a worker is replaced in milliseconds, however long the model takes to load. The forks are children of this process
like the others: the template forks twice, and what its child leaves behind comes to the nearest subreaper, which is this
process. So a template that dies takes no worker with it, and each worker's end is this process's to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from windlass.runtime import wire

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
_BUFFER_BYTES = 1 << 20

UNKNOWN = 255
"""The exit code of a process whose end was another's to see; asyncio says the same."""


class Owner(Protocol):
    """What hears from a process."""

    def received(self, message: Any) -> None: ...

    def lost(self) -> None:
        """Its end of the socket is closed: it is dead, or will be."""


class Process(asyncio.Protocol):
    """One worker process.

    Attributes:
        pid: 0 while a fork has not yet said its own.
        ended: its socket is closed.
    """

    def __init__(
        self, owner: Owner, ours: socket.socket, child: subprocess.Popen[bytes] | None, control: socket.socket | None
    ) -> None:
        self._owner, self._ours, self._child, self.control = owner, ours, child, control
        self.pid = child.pid if child else 0
        self.ended = False
        self._code: int | None = None
        self._transport: Any = None
        self._reader = wire.Reader()

    async def connect(self) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=self._ours)

    def send(self, message: tuple[Any, ...]) -> None:
        self._transport.write(wire.pack(message))

    def poll(self) -> int | None:
        """How it ended, as in `subprocess`; ``None`` while it runs."""
        if self._child:
            return self._child.poll()
        if self._code is None and self.pid:
            self._reap(os.WNOHANG)
        return self._code

    def wait(self) -> int | None:
        """Return when it has ended. ``None``: a fork that never came to be."""
        if self._child:
            return self._child.wait()
        if self._code is None and self.pid:
            self._reap(0)
        return self._code

    def _reap(self, options: int) -> None:
        while True:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                # What forked it has not ended yet, so it is not ours yet: see above. That is a matter of microseconds.
                if not _exists(self.pid):  # or has seen to it: how it ended nobody else will hear
                    self._code = UNKNOWN
                    return
                if options & os.WNOHANG:
                    return
                time.sleep(0)
                continue
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            return

    def kill(self) -> None:
        if self.pid and self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so that its id is nobody else's

    def close(self) -> None:
        """Let it end: it does when it has nothing to do."""
        if self.control:
            self.control.close()
        if self._transport is not None:
            self._transport.close()
        else:
            self._ours.close()

    # --- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._owner.received(message)

    def connection_lost(self, _: Exception | None) -> None:
        self.ended = True
        if self.control:
            self.control.close()
        self._owner.lost()


class Starter:
    """Made and used in the event loop's thread.

    Args:
        command: what starts a worker; the numbers of its two sockets are added, see `windlass.runtime.worker`.
        environment: of the workers.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = command, environment
        self._forks = _become_subreaper()
        self._connecting: set[asyncio.Task[None]] = set()

    def start(self, owner: Owner, *, template: bool) -> Process:
        """A process that loads the model.

        Args:
            template: whether it may wait to be forked, where it holds nothing that a fork does not survive.
        """
        ours, theirs = _pair()
        with contextlib.ExitStack() as passed:
            ends, control = [passed.enter_context(theirs).fileno()], None
            if template and self._forks:
                control, controlled = socket.socketpair()
                ends.append(passed.enter_context(controlled).fileno())
            child = subprocess.Popen([*self._command, *map(str, ends)], pass_fds=ends, env=self._environment)
        return self._connected(Process(owner, ours, child, control))

    def fork(self, template: Process, owner: Owner) -> Process:
        """A copy of a template. Where it cannot fork, the owner is told that the copy is lost."""
        ours, theirs = _pair()
        assert template.control
        # Where the template is gone, so is what would have been the fork's end of the socket.
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(template.control, [b"f"], [theirs.fileno()])
        return self._connected(Process(owner, ours, None, None))

    def _connected(self, process: Process) -> Process:
        task = asyncio.get_running_loop().create_task(process.connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return process

    def close(self) -> None:
        for task in self._connecting:
            task.cancel()


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    ours.setblocking(False)
    return ours, theirs


def _exists(pid: int) -> bool:
    """Also when it has ended and nobody has seen to it yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _become_subreaper() -> bool:
    """Whether processes whose parent ends become ours."""
    if sys.platform != "linux":
        return False
    import ctypes

    return bool(ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0) == 0)
