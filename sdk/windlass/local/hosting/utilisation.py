"""How much of the machine the processes of endpoints and jobs use, as SageMaker publishes it each minute.

    usage = Usage(metrics, clock)
    usage.watch("us-east-1", JOBS, {"Host": "digits/algo-1"}, child, folder)      # until the child ends

CPUUtilization is the sum over the cores, so 0 to 100 for each; MemoryUtilization and DiskUtilization are shares of what there
is. Names and dimensions: the guide "Amazon SageMaker AI metrics in Amazon CloudWatch". A process counts with all it started.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from windlass.local.clock import Clock
from windlass.local.cloudwatch.metric_store import Datum, Metric, MetricStore
from windlass.local.processes import Child

log = logging.getLogger(__name__)

ENDPOINTS, JOBS = "/aws/sagemaker/Endpoints", "/aws/sagemaker/TrainingJobs"

INTERVAL_SECONDS = 2.0
"""AWS looks once a minute, for hours; a job here may be over in seconds."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES


@dataclass
class _Watched:
    region: str
    namespace: str
    dimensions: Mapping[str, str]
    child: Child
    folder: Path
    looked: float = field(default_factory=time.monotonic)
    cpu_seconds: float = 0.0


class Usage:
    """Looks at processes every few real seconds, for as long as there are any."""

    def __init__(self, metrics: MetricStore, clock: Clock) -> None:
        self._metrics, self._clock = metrics, clock
        self._lock = threading.Lock()
        self._watched: list[_Watched] = []
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, region: str, namespace: str, dimensions: Mapping[str, str], child: Child, folder: Path) -> None:
        """Publish what that process and its own children use, under these dimensions, until it ends."""
        with self._lock:
            self._watched.append(_Watched(region, namespace, dimensions, child, folder))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._wake.wait(INTERVAL_SECONDS)
            with self._lock:
                self._watched = [each for each in self._watched if each.child.poll() is None]
                if not self._watched or self._wake.is_set():
                    self._watched.clear()
                    self._thread = None
                    return
            try:
                self.look()
            except Exception:
                # A process that goes while we look must not end the measuring of all others.
                log.exception("Measuring the processes failed inside the local cloud")

    def look(self) -> None:
        """Publish what each process uses now, its CPU since the last look."""
        with self._lock:
            watched = list(self._watched)
        table = _processes()
        data: dict[str, list[Datum]] = defaultdict(list)
        now = self._clock.now()
        for each in watched:
            if each.child.pid not in table:
                continue
            cpu_seconds, memory_bytes = _of_tree(table, each.child.pid)
            moment = time.monotonic()
            # A child that has ended takes what it used along, if nobody waited for it.
            used = max(0.0, cpu_seconds - each.cpu_seconds) / max(moment - each.looked, 1e-3)
            each.looked, each.cpu_seconds = moment, cpu_seconds
            disk = shutil.disk_usage(each.folder)
            for name, value in (
                ("CPUUtilization", 100 * used),
                ("MemoryUtilization", 100 * memory_bytes / _MEMORY_BYTES),
                ("DiskUtilization", 100 * disk.used / disk.total),
            ):
                metric = Metric.of(each.namespace, name, each.dimensions)
                data[each.region].append(Datum(metric, now, ((value, 1.0),), None, "Percent"))
        for region, gathered in data.items():
            self._metrics.put_many(region, gathered)

    def close(self) -> None:
        """Look at nothing any more."""
        self._wake.set()
        thread = self._thread
        if thread is not None:
            thread.join(5)
        self._wake.clear()


def memory_of(roots: Iterable[int]) -> dict[int, int]:
    """Bytes of memory that each of these processes holds with all that it started. One that has ended is left out."""
    table = _processes()
    return {root: _of_tree(table, root)[1] for root in roots if root in table}


@dataclass(frozen=True)
class _Process:
    parent: int
    cpu_seconds: float
    memory_bytes: int


def _processes() -> dict[int, _Process]:
    """Every process of this machine by its id, as far as /proc shows them."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended since
        # The name, in brackets, may hold anything. See proc(5) for what follows it.
        fields = text.rpartition(")")[2].split()
        ticks = sum(int(each) for each in fields[11:15])  # its own, and those of the children it waited for
        found[int(entry.name)] = _Process(int(fields[1]), ticks / _TICKS, int(fields[21]) * _PAGE_BYTES)
    return found


def _of_tree(table: Mapping[int, _Process], root: int) -> tuple[float, int]:
    """(CPU seconds, bytes of memory) of a process and all below it."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid, process in table.items():
        children[process.parent].append(pid)
    cpu_seconds, memory_bytes, waiting = 0.0, 0, [root]
    while waiting:
        pid = waiting.pop()
        cpu_seconds += table[pid].cpu_seconds
        memory_bytes += table[pid].memory_bytes
        waiting += children[pid]
    return cpu_seconds, memory_bytes
