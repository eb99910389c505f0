"""The keeper: one small process that is the parent of everything the local cloud runs.

Run by path with ``python -I -S keeper.py FD``: it uses the standard library alone and is up in about 20 ms.
It is single-threaded, so that it may fork, and so that PR_SET_PDEATHSIG, which is tied to the *thread* that forked, means
the death of the keeper. What it owes to the rest:

- when the server dies, by SIGKILL too, the socket FD reads EOF, and the keeper kills every descendant and then itself;
- when the keeper dies, the kernel kills its children (PR_SET_PDEATHSIG);
- when a child exits, what it left running is killed, as a container ends with its first process;
- nobody in a terminal reaches any of them with Ctrl-C: the keeper and each child lead sessions of their own.

The wire: messages of JSON, each with a 4-byte big-endian length in front. Requests: ``{"do": "start", "id", "argv", "env",
"cwd"}`` with one file descriptor attached (the child's stdout and stderr), ``{"do": "signal", "id", "signum"}``,
``{"do": "kill", "id"}``. Reports: ``{"id", "pid"}``, ``{"id", "error"}``, ``{"id", "exit"}``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NoReturn

LINUX = sys.platform.startswith("linux")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MARK = "WINDLASS_CHILD"  # in each child's environment, so that a grandchild that left its session is still known
LENGTH = struct.Struct(">I")
PATIENCE = 5.0  # seconds for killed processes to be gone; only one that hangs inside the kernel takes longer


def _load_prctl() -> Callable[[int, int], int]:
    if not LINUX:
        return lambda option, value: 0
    import ctypes

    return ctypes.CDLL(None).prctl


prctl = _load_prctl()


class Keeper:
    def __init__(self, server: socket.socket) -> None:
        # A child that held it would keep the server from noticing the death of the keeper.
        server.set_inheritable(False)
        self.server = server
        self.buffer = bytearray()
        self.fds: list[int] = []  # received, not yet claimed by their "start" message; both arrive in the same order
        self.children: dict[int, int] = {}  # pid -> id
        self.pids: dict[int, int] = {}  # id -> pid

    def run(self) -> NoReturn:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.end())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with selectors.DefaultSelector() as selector:
            selector.register(self.server, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self.server:
                        self.receive()
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake, 4096)
                        self.reap()

    def receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.server, 1 << 16, 16)
        except ConnectionError:
            data, fds = b"", []
        if not data:
            self.end()
        for fd in fds:
            os.set_inheritable(fd, False)
        self.buffer += data
        self.fds += fds
        while len(self.buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self.buffer)
            if len(self.buffer) < LENGTH.size + length:
                return
            message = json.loads(self.buffer[LENGTH.size : LENGTH.size + length])
            del self.buffer[: LENGTH.size + length]
            getattr(self, message.pop("do"))(**message)

    def report(self, **message: object) -> None:
        body = json.dumps(message).encode()
        try:
            self.server.sendall(LENGTH.pack(len(body)) + body)
        except OSError:
            self.end()

    # Requests

    def start(self, id: int, argv: list[str], env: dict[str, str], cwd: str) -> None:  # noqa: A002  (the wire's word)
        output = self.fds.pop(0) if self.fds else None
        me = os.getpid()
        failed = failing = None
        try:
            if output is None:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # the kernel drops what has no room
            failed, failing = os.pipe()  # closed by a successful exec; carries the error of one that fails
            pid = os.fork()
        except OSError as error:  # a limit on processes or open files; the others must live on
            for fd in (output, failed, failing):
                if fd is not None:
                    os.close(fd)
            self.report(id=id, error=f"{type(error).__name__}: {error}")
            return
        if pid == 0:
            try:
                os.setsid()
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != me:  # the keeper died between fork and prctl
                    os._exit(1)
                for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(signum, signal.SIG_DFL)
                nothing = os.open(os.devnull, os.O_RDONLY)
                os.dup2(nothing, 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.chdir(cwd)
                os.execvpe(argv[0], argv, {**env, MARK: f"{me}.{id}"})  # noqa: S606
            except BaseException as error:  # noqa: BLE001  (there is nothing above this in a forked child)
                os.write(failing, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(127)
        os.close(failing)
        os.close(output)
        with os.fdopen(failed, "rb") as stream:
            reason = stream.read().decode()
        if reason:
            os.waitpid(pid, 0)
            self.report(id=id, error=reason)
        else:
            self.children[pid], self.pids[id] = id, pid
            self.report(id=id, pid=pid)

    def signal(self, id: int, signum: int) -> None:  # noqa: A002
        # Safe from reuse of the pid: only this process reaps, and it forgets the pid when it does.
        if id in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[id], signum)

    def kill(self, id: int) -> None:  # noqa: A002
        if id in self.pids:
            self.sweep(self.pids[id])

    # Ends

    def reap(self) -> None:
        while True:
            try:
                # Look first, reap last: until it is reaped, the pid (and so the session) cannot be taken by another.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self.children:
                self.sweep(pid)
            _, status = os.waitpid(pid, 0)
            if pid in self.children:
                id = self.children.pop(pid)  # noqa: A001
                del self.pids[id]
                self.report(id=id, exit=os.waitstatus_to_exitcode(status))

    def sweep(self, pid: int) -> None:
        """Kill one child's whole tree: its session, its descendants, and those that carry its mark."""
        mark = f"{MARK}={os.getpid()}.{self.children[pid]}".encode()

        def tree() -> set[int]:
            table = processes()
            mine = {p for p, (_, session) in table.items() if p == pid or session == pid}
            mine |= {p for p in descendants(table, {os.getpid()}) - mine if mark in environment(p)}
            return mine | descendants(table, mine)

        kill_until_gone(tree, group=pid)

    def end(self) -> NoReturn:
        """Kill every descendant, and go."""
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        kill_until_gone(lambda: descendants(processes(), {os.getpid()}))
        os._exit(0)


def kill_until_gone(tree: Callable[[], set[int]], group: int | None = None) -> None:
    """SIGKILL what ``tree()`` finds until it finds nothing that lives: a process may fork while others are killed."""
    if not LINUX:
        if group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        return
    deadline = time.monotonic() + PATIENCE
    while (found := tree()) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def processes() -> dict[int, tuple[int, int]]:
    """Every living process: pid -> (parent, session). Zombies are left out."""
    table = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  (importing pathlib costs as much as all the rest)
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stream:  # noqa: PTH123
                    fields = stream.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] not in (b"Z", b"X"):
                table[int(entry)] = (int(fields[1]), int(fields[3]))
    return table


def descendants(table: dict[int, tuple[int, int]], roots: set[int]) -> set[int]:
    """Those of the table whose line of parents leads to one of the roots."""
    found, grown = set(roots), True
    while grown:
        more = {pid for pid, (parent, _) in table.items() if parent in found and pid not in found}
        grown = bool(more)
        found |= more
    return found - roots


def environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:  # noqa: PTH123
            return stream.read().split(b"\0")
    except OSError:
        return []


if __name__ == "__main__":
    Keeper(socket.socket(fileno=int(sys.argv[1]))).run()
