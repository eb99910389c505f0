"""Who a process is, when each container counts its processes from 1.

A script prints ``IDENTITY``; ``living(what it printed)`` looks for it from outside.
"""

from __future__ import annotations

from pathlib import Path

IDENTITY = "__import__('os').readlink('/proc/self/ns/pid') + '/' + str(__import__('os').getpid())"
"""A Python expression: the process namespace and the number in it."""


def living(identity: str) -> bool:
    """Whether that process still runs."""
    namespace, _, number = identity.partition("/")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            alive = status["State"][0] not in "ZX" and status["NSpid"].split()[-1] == number
            if alive and str((entry / "ns" / "pid").readlink()) == namespace:
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return False
