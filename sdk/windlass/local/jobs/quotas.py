"""What one host of a job may use: the memory of its instance type, and the volume that was asked for.

Both are watched, not walled in: SageMaker's walls are a machine's own, which namespaces alone cannot build. Where the whole
machine runs out of memory first, the kernel takes the job and not the cloud (see `keeper.py`).
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

GIB = 1 << 30
WATCH_SECONDS = 0.25
"""How often the limits of a running job are looked at."""

# GiB of memory for each vCPU, by family, and vCPUs by size: https://aws.amazon.com/ec2/instance-types/
_GIB_PER_CPU = {"c": 2.0, "m": 4.0, "r": 8.0, "g": 4.0, "p": 8.0, "trn": 8.0, "inf": 2.0}
_CPUS = {"medium": 2, "large": 2, "xlarge": 4}


def memory_bytes(instance_type: str) -> int | None:
    """The memory of an instance type: ``ml.m5.xlarge`` has 16 GiB. None for types whose size does not follow the rule."""
    matched = re.fullmatch(r"ml\.([a-z]+)(\w+)\.(\d*)(medium|large|xlarge)", instance_type)
    if not matched:
        return None
    family, _, count, size = matched.groups()
    if family == "t":  # burstable: 4 GiB for medium, 8 for large, then twice as much for each size
        return {"medium": 4 * GIB, "large": 8 * GIB}.get(size, 16 * GIB * int(count or 1))
    if family not in _GIB_PER_CPU:
        return None
    return int(_GIB_PER_CPU[family] * _CPUS[size] * int(count or 1) * GIB)


def memory_used(pid: int) -> int:
    """Bytes that a process and all its descendants hold. What they share counts once."""
    family = _family(pid)
    return sum(_proportional(member) for member in family)


def memory_bound(pid: int) -> int:
    """An upper bound of memory_used() that costs next to nothing: what is shared counts for each."""
    return sum(_resident(member) for member in _family(pid))


class Volume:
    """How much of its volume a folder fills. Large folders are counted less often.

    Args:
        limit_bytes: VolumeSizeInGB.
    """

    COST = 20  # a count may take this part of the time

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self.limit_bytes = folder, limit_bytes
        self._next = 0.0

    def overfull(self) -> int | None:
        """The bytes in it, if they are more than the limit; None if they are not, or it is too soon to count again."""
        began = time.monotonic()
        if began < self._next:
            return None
        used = disk_used(self._folder)
        self._next = began + self.COST * (time.monotonic() - began)
        return used if used > self.limit_bytes else None


class Quota:
    """What one host of a job may use, watched while it runs.

    Args:
        host: its name, as reasons have it.
        folder: what it finds at ``/opt/ml``.
        volume_gib: VolumeSizeInGB.
        most_memory: bytes, instead of what the instance type has.
    """

    def __init__(
        self, host: str, instance_type: str, folder: Path, volume_gib: int, most_memory: int | None = None
    ) -> None:
        self._host, self._instance_type, self._volume_gib = host, instance_type, volume_gib
        self._volume, self._folder = Volume(folder, volume_gib * GIB), folder
        self._memory = most_memory or memory_bytes(instance_type) or 0

    def exceeded(self, pid: int) -> str:
        """FailureReason of a host that uses more than it may; nothing if it does not.

        Args:
            pid: of its process; 0 when that has ended.
        """
        if filled := self._volume.overfull():
            return f"ClientError: {self._filled(filled)}"
        return self.short_of_memory(pid)

    def short_of_memory(self, pid: int) -> str:
        """The same, of memory alone."""
        # The bound costs little, and suffices for a job that behaves.
        if self._memory and pid and memory_bound(pid) > self._memory and (used := memory_used(pid)) > self._memory:
            return (
                "ClientError: Please use an instance type with more memory, or reduce the size of training data processed"
                f" on an instance: {self._host} used {used / GIB:.2f} GiB of memory, and {self._instance_type} has"
                f" {self._memory / GIB:.2f} GiB."
            )
        return ""

    def full(self) -> str:
        """What to tell of a program that failed while its disk was full; nothing if it was not."""
        used = disk_used(self._folder)
        return self._filled(used) if used >= 0.99 * self._volume.limit_bytes else ""

    def _filled(self, used: int) -> str:
        return (
            f"The job filled its disk: {self._host} holds {used / GIB:.2f} GiB in /opt/ml, and VolumeSizeInGB is"
            f" {self._volume_gib}. Ask for a larger volume."
        )


def disk_used(folder: Path) -> int:
    """Bytes that the files in a folder take up on disk."""
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except (FileNotFoundError, NotADirectoryError):
            continue  # the job deletes while we count
    return total


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  (several times a second; pathlib takes three times as long)
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stream:  # noqa: PTH123
                    parent = int(stream.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _proportional(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:
        return _resident(pid)
    return sum(int(kib) for kib in re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)) * 1024
