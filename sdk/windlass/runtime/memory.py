"""How much memory there is, and who holds it: what multi-model mode asks before and after it loads a model.

memory.available()                # bytes that processes may still take before the kernel ends one
memory.held([4711, 4712])         # bytes that processes hold together
memory.of_files(Path("/opt/ml/models/a1b2/model"))
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """The lesser of what the machine and the container's limit leave. A system that says neither has enough."""
    free = sys.maxsize
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    except OSError:
        return free
    return min(free, _left_in_cgroup())


def _left_in_cgroup() -> int:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if not limit.isdecimal():
            return sys.maxsize
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no cgroup version 2
        return sys.maxsize
    # Pages of files that nobody uses now: the kernel gives them back before it kills.
    return int(limit) - used + int(statistics.get("inactive_file", 0))


def held(pids: Iterable[int]) -> int:
    """What the processes hold, in bytes, each page that several share counted once. A process that is gone holds nothing."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def of_files(folder: Path) -> int:
    """The size of what lies in a folder: a model rarely takes less."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
