"""Who a process is, when each container counts its processes from 1.

A script prints ``IDENTITY``; ``living(what it printed)`` and ``process(what it printed)`` look for it from outside.
"""

from __future__ import annotations

from pathlib import Path

IDENTITY = (
    "__import__('os').readlink('/proc/self/ns/pid') + '/' + str(__import__('os').getpid())"
    " + '/' + open('/proc/self/stat').read().rpartition(') ')[2].split()[19]"
)
"""A Python expression: the process namespace, the number in it, and when the process started, in the kernel's ticks.

Without the last, a process could have the identity of the one before it: the kernel gives a new namespace the inode of one that
has ended.
"""


def living(identity: str) -> bool:
    """Whether that process still runs."""
    return _find(identity) is not None


def process(identity: str) -> int:
    """The number of that process outside its container."""
    found = _find(identity)
    assert found is not None, f"{identity} does not run"
    return found


def _find(identity: str) -> int | None:
    namespace, number, *_ = identity.split("/")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            alive = status["State"][0] not in "ZX" and status["NSpid"].split()[-1] == number
            if alive and str((entry / "ns" / "pid").readlink()) == namespace:
                return int(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return None
