"""The keeper: one small process that is the parent of everything the local cloud runs.

Run by path with ``python -I -S keeper.py FD``: it uses the standard library alone and is up in about 20 ms.
It is single-threaded, so that it may fork, and so that PR_SET_PDEATHSIG, which is tied to the *thread* that forked, means
the death of the keeper. What it owes to the rest:

- when the server dies, by SIGKILL too, the socket FD reads EOF, and the keeper kills every descendant and then itself;
- when the keeper dies, the kernel kills its children (PR_SET_PDEATHSIG);
- when a child exits, what it left running is killed, as a container ends with its first process;
- a child with a container gets the namespaces of `namespaces.py`. Its first process is a small init here (`Init`), which takes
  in orphans, hands signals on, and with which everything in the container ends: the kernel sees to that;
- nobody in a terminal reaches any of them with Ctrl-C: the keeper and each child lead sessions of their own.

The wire: messages of JSON, each with a 4-byte big-endian length in front. Requests: ``{"do": "start", "id", "argv", "env",
"cwd"}``, perhaps with ``"container"`` and ``"file_bytes"``, and with one file descriptor attached (the child's stdout and
stderr), ``{"do": "signal", "id", "signum"}``, ``{"do": "kill", "id"}``. Reports: ``{"isolation"}`` first of all, then
``{"id", "pid"}``, ``{"id", "error"}``, ``{"id", "exit"}``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import resource
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

LINUX = sys.platform.startswith("linux")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MARK = "WINDLASS_CHILD"  # in each child's environment, so that a grandchild that left its session is still known
LENGTH = struct.Struct(">I")
PATIENCE = 5.0  # seconds for killed processes to be gone; only one that hangs inside the kernel takes longer


def _load_namespaces() -> ModuleType:
    # By path: isolated mode leaves this folder out of sys.path, and the package would cost more than all the rest.
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "namespaces.py")  # noqa: PTH100, PTH118, PTH120
    spec = importlib.util.spec_from_file_location("namespaces", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


namespaces = _load_namespaces()


def _load_prctl() -> Callable[[int, int], int]:
    if not LINUX:
        return lambda option, value: 0
    import ctypes

    return ctypes.CDLL(None).prctl


prctl = _load_prctl()


class Keeper:
    def __init__(self, server: socket.socket, isolation: str | None) -> None:
        # A child that held it would keep the server from noticing the death of the keeper.
        server.set_inheritable(False)
        self.server = server
        self.isolation: str = namespaces.probe() if isolation is None else isolation
        self.buffer = bytearray()
        self.fds: list[int] = []  # received, not yet claimed by their "start" message; both arrive in the same order
        self.children: dict[int, int] = {}  # pid -> id
        self.pids: dict[int, int] = {}  # id -> pid
        self.inits: dict[int, int] = {}  # pid of an Init -> the end of a pipe on which it tells how the program ended
        self.wrapped: set[int] = set()  # pids of bwrap

    def run(self) -> NoReturn:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.report(isolation=self.isolation)
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

    def start(
        self,
        id: int,  # noqa: A002  (the wire's word)
        argv: list[str],
        env: dict[str, str],
        cwd: str,
        container: dict[str, str] | None = None,
        file_bytes: int | None = None,
    ) -> None:
        output = self.fds.pop(0) if self.fds else None
        me, uid, gid = os.getpid(), os.geteuid(), os.getegid()
        inside = bool(container) and self.isolation in ("root", "user")
        environment = {**env, MARK: f"{me}.{id}"}
        pipes: list[int] = []
        try:
            if container and self.isolation == "bubblewrap":
                argv = namespaces.bubblewrap(container, ["/bin/sh", "-c", 'cd "$0" && exec "$@"', cwd, *argv])
                cwd = "/"
            if output is None:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # the kernel drops what has no room
            pipes += os.pipe()  # closed by a successful exec; carries the error of one that fails
            pipes += os.pipe()  # an Init's word on how the program ended
            pid = namespaces.clone(self.isolation) if inside else os.fork()
        except OSError as error:  # a limit on processes, namespaces or open files; the others must live on
            for fd in (output, *pipes):
                if fd is not None:
                    os.close(fd)
            self.report(id=id, error=f"{type(error).__name__}: {error}")
            return
        failed, failing, told, telling = pipes
        if pid == 0:
            try:
                os.setsid()
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                os.close(told)
                if LINUX and not reader_lives(telling):  # the keeper died between fork and prctl
                    os._exit(1)
                if inside:
                    namespaces.enter(self.isolation, container, uid, gid)
                    program = os.fork()
                    if program:
                        Init(program, telling, output, failing).run()
                    os.setsid()
                if container:
                    # When the machine runs out of memory, the kernel is to take these, and never the server or the keeper.
                    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
                        file.write("1000")
                if file_bytes is not None:
                    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                    most = file_bytes if hard == resource.RLIM_INFINITY else min(file_bytes, hard)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
                for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(signum, signal.SIG_DFL)
                nothing = os.open(os.devnull, os.O_RDONLY)
                os.dup2(nothing, 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.chdir(cwd)
                os.execvpe(argv[0], argv, environment)  # noqa: S606
            except BaseException as error:  # noqa: BLE001  (there is nothing above this in a forked child)
                os.write(failing, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(127)
        os.close(telling)
        os.close(failing)
        os.close(output)
        with os.fdopen(failed, "rb") as stream:
            reason = stream.read().decode()
        if reason:
            os.waitpid(pid, 0)
            os.close(told)
            self.report(id=id, error=reason)
            return
        if inside:
            self.inits[pid] = told
        else:
            os.close(told)
        if container and self.isolation == "bubblewrap":
            self.wrapped.add(pid)
        self.children[pid], self.pids[id] = id, pid
        self.report(id=id, pid=pid)

    def signal(self, id: int, signum: int) -> None:  # noqa: A002
        # Safe from reuse of the pid: only this process reaps, and it forgets the pid when it does.
        if id in self.pids:
            pid = self.pids[id]
            with contextlib.suppress(ProcessLookupError):
                os.kill(innermost(pid) if pid in self.wrapped else pid, signum)

    def kill(self, id: int) -> None:  # noqa: A002
        if id in self.pids:
            pid = self.pids[id]
            if pid in self.inits:
                os.kill(pid, signal.SIGKILL)  # the kernel ends the rest of its container
            else:
                self.sweep(pid)

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
            if pid in self.children and pid not in self.inits:
                self.sweep(pid)
            _, status = os.waitpid(pid, 0)
            if pid in self.children:
                id = self.children.pop(pid)  # noqa: A001
                del self.pids[id]
                if pid in self.inits:
                    with os.fdopen(self.inits.pop(pid), "rb") as told:
                        status = int(told.read() or status)
                code = os.waitstatus_to_exitcode(status)
                if pid in self.wrapped:
                    self.wrapped.discard(pid)
                    code = 128 - code if code > 128 else code  # bwrap ends as a shell would
                self.report(id=id, exit=code)

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


class Init:
    """The first process of a container: hands signals on to the program, takes in orphans, and ends with the program.

    A shell that dies of SIGTERM leaves what it ran behind. Then SIGTERM goes on to those that are left, so that a script may
    save its work, and the container ends when they have ended, or when the keeper kills it.
    """

    FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, program: int, telling: int, output: int, failing: int) -> None:
        self.program, self.telling = program, telling
        for signum in self.FORWARDED:
            signal.signal(signum, self.forward)
        signal.set_wakeup_fd(-1)
        for fd in (output, failing):
            os.close(fd)  # only now: with that the keeper knows that signals may be sent
        os.closerange(0, telling)
        os.closerange(telling + 1, 4096)

    def forward(self, signum: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.program, signum)

    def run(self) -> NoReturn:
        ended = None
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                break
            if pid == self.program:
                ended = status
                for signum in self.FORWARDED:
                    signal.signal(signum, signal.SIG_IGN)
                if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM):
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGTERM)
        os.write(self.telling, str(ended).encode())
        os._exit(0)


def reader_lives(pipe: int) -> bool:
    """Whether anybody can still read what is written to that end of a pipe."""
    poll = select.poll()
    poll.register(pipe, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def innermost(pid: int) -> int:
    """The program that a bwrap process runs: bwrap itself, its own init, and then the program."""
    table = processes()
    for _ in range(2):
        pid = min((child for child, (parent, _) in table.items() if parent == pid), default=pid)
    return pid


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
    Keeper(socket.socket(fileno=int(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else None).run()
