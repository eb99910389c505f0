"""A container without Docker: the Linux namespaces in which a child finds ``/opt/ml`` at its real path.

    how = probe()                                            # "root", "user", "bubblewrap", or "" when nothing works here
    pid = clone(how)                                         # like os.fork(), but the child is the first of its own processes
    if pid == 0:
        enter(how, {"folder": "/state/jobs/digits/algo-1"}, uid, gid)

The keeper loads it by path, so it uses the standard library alone. The child gets a view of the file system of its own: what is
mounted in it is seen by nobody else and goes with its last process, so nothing is left on the machine. As the child is PID 1 of
its own process namespace, the kernel itself kills whatever it started when it ends, however that came about.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile

BASE = "/opt/ml"
"""Where SageMaker's containers find everything."""

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x04000000, 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x2, 0x4, 0x8
SIGCHLD = 17
CLONE_CALL = {"x86_64": 56, "aarch64": 220, "riscv64": 220}  # its number; the machines that SageMaker's images run on

# PyDLL holds the interpreter's lock during a call: the child of clone() must not wait for a lock whose owner it left behind.
libc = ctypes.PyDLL(None, use_errno=True)


def probe() -> str:
    """What this machine allows: ``root``, ``user`` (unprivileged user namespaces), ``bubblewrap``, or nothing."""
    if not sys.platform.startswith("linux"):
        return ""
    folder = tempfile.mkdtemp(prefix="windlass-")
    try:
        if os.uname().machine in CLONE_CALL:
            for how in ("root", "user") if os.geteuid() == 0 else ("user",):
                if _works(how, {"folder": folder}):
                    return how
        if shutil.which("bwrap") and _ends_well(bubblewrap({"folder": folder}, ["/bin/sh", "-c", f"test -d {BASE}"])):
            return "bubblewrap"
        return ""
    finally:
        os.rmdir(folder)  # noqa: PTH106  (importing pathlib costs as much as all the rest)


def clone(how: str) -> int:
    """Like os.fork(), into new namespaces. The caller must be single-threaded. Raises OSError."""
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | (CLONE_NEWUSER if how == "user" else 0)
    number = CLONE_CALL[os.uname().machine]
    pid: int = libc.syscall(number, ctypes.c_ulong(flags | SIGCHLD), None, None, None, None)
    if pid < 0:
        raise _error("clone")
    return pid


def enter(how: str, container: dict[str, str], uid: int, gid: int) -> None:
    """Make this process, fresh from clone(), see what its container holds.

    Args:
        how: as clone() was told.
        container: ``folder`` becomes /opt/ml, the file ``hosts`` becomes /etc/hosts, ``hostname`` the name of the machine.
        uid, gid: who it was before clone(), and stays.

    Raises:
        OSError: this machine does not allow it.
    """
    if how == "user":  # in a new user namespace nobody is anybody yet
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    if not os.path.isdir(BASE):  # noqa: PTH112
        _cover(os.path.dirname(BASE))  # noqa: PTH120
        os.mkdir(BASE)  # noqa: PTH102
    _mount(container["folder"], BASE, None, MS_BIND | MS_REC)
    if hosts := container.get("hosts"):
        _mount(hosts, "/etc/hosts", None, MS_BIND)
    hostname = container.get("hostname", "").encode()
    if hostname and libc.sethostname(hostname, ctypes.c_size_t(len(hostname))) != 0:
        raise _error("sethostname")
    # Where the machine hides parts of its own /proc, the kernel shows no fresh one: the old one stays, with too much in it.
    with contextlib.suppress(OSError):
        _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def bubblewrap(container: dict[str, str], argv: list[str]) -> list[str]:
    """The same by bwrap, where it alone may make namespaces: the command line that runs ``argv`` inside."""
    command = [
        "bwrap",
        "--dev-bind",
        "/",
        "/",
        "--unshare-pid",
        "--unshare-uts",
        "--die-with-parent",
        "--proc",
        "/proc",
    ]
    if not os.path.isdir(BASE):  # noqa: PTH112
        parent = os.path.dirname(BASE)  # noqa: PTH120
        command += ["--tmpfs", parent]
        for entry in os.scandir(parent):
            command += ["--symlink", os.readlink(entry.path)] if entry.is_symlink() else ["--dev-bind", entry.path]  # noqa: PTH115
            command.append(entry.path)
    command += ["--bind", container["folder"], BASE]
    if hosts := container.get("hosts"):
        command += ["--bind", hosts, "/etc/hosts"]
    if hostname := container.get("hostname"):
        command += ["--hostname", hostname]
    return [*command, "--", *argv]


def _cover(folder: str) -> None:
    """Lay a file system of our own over a folder, with all that it holds still there, so that more can be put beside it."""
    below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV)
        for name in os.listdir(below):  # noqa: PTH208
            # Through the descriptor, because the path leads to the new file system by now.
            source, target = f"/proc/self/fd/{below}/{name}", f"{folder}/{name}"
            if os.path.islink(source):  # noqa: PTH114
                os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211
                continue
            if os.path.isdir(source):  # noqa: PTH112
                os.mkdir(target)  # noqa: PTH102
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
            _mount(source, target, None, MS_BIND | MS_REC)
    finally:
        os.close(below)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind)]
    if libc.mount(*arguments, ctypes.c_ulong(flags), None) != 0:
        raise _error(f"mount {source} on {target}")


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _works(how: str, container: dict[str, str]) -> bool:
    uid, gid = os.geteuid(), os.getegid()
    try:
        pid = clone(how)
    except OSError:
        return False
    if pid == 0:
        try:
            enter(how, container, uid, gid)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _ends_well(argv: list[str]) -> bool:
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=nothing)
    return os.waitpid(pid, 0)[1] == 0
