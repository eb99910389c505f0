from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.local.manual_clock import ManualClock
from windlass.local.cloudwatch.metric_store import Metric, MetricStore
from windlass.local.hosting.utilisation import JOBS, Usage
from windlass.local.processes import Child, Keeper

REGION = "us-east-1"
HOST = {"Host": "job/algo-1"}

# A child of the process that we watch is busy, and holds 64 MiB.
BUSY = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(1 << 26)\\nwhile True: pass'])"


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.close()


def start(keeper: Keeper, code: str) -> Child:
    with Path(os.devnull).open("w") as nowhere:
        return keeper.start(
            [sys.executable, "-c", code], env={"PATH": os.defpath}, cwd=Path("/"), output=nowhere.fileno()
        )


def values(store: MetricStore, name: str) -> list[float]:
    found: list[float] = store.read(REGION, Metric.of(JOBS, name, HOST), 0, 4e9).low.tolist()
    return found


def test_a_busy_process_and_its_children_are_measured_until_they_end(tmp_path: Path, keeper: Keeper) -> None:
    store = MetricStore(tmp_path / "m.sqlite", ManualClock())
    usage = Usage(store, ManualClock())
    child = start(keeper, BUSY)
    usage.watch(REGION, JOBS, HOST, child, tmp_path)
    usage.look()
    held = 100 * (1 << 26) / (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))

    def most(name: str) -> float:
        return max(values(store, name), default=0.0)

    deadline = time.monotonic() + 30  # it is busy before it holds anything: Python starts
    while not (most("CPUUtilization") > 20 and most("MemoryUtilization") > held) and time.monotonic() < deadline:
        child.wait(0.3)  # it does not end: this is how long we let it be busy
        usage.look()
    assert 20 < most("CPUUtilization") < 100 * (os.cpu_count() or 1) + 50
    assert most("MemoryUtilization") > held
    assert all(0 < value <= 100 for value in values(store, "DiskUtilization"))
    child.kill()
    assert child.wait(10) is not None
    before = len(values(store, "CPUUtilization"))
    usage.look()
    assert len(values(store, "CPUUtilization")) == before
    usage.close()
    store.close()
