"""The one form of every benchmark: measure ours and a named peer in turn, and hold their ratio to a bound.

    def measure(quick: bool) -> list[Row]:
        return [compare("import windlass", ours, peer, peer_name="import boto3", unit="ms", bound="<= 0.15", rounds=9)]

    if __name__ == "__main__":
        sys.exit(main("imports", measure, packages=["windlass", "boto3"]))

Absolute figures drift with the machine and with what else runs on it; a ratio of two things measured in turn, in the same
minute, drifts far less. So the bounds are on ratios.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: what was measured.
        ours, peer: the two measurements, in `unit`.
        peer_name: what `peer` is.
        bound: what the ratio ours / peer must keep: ``<= 0.15`` or ``>= 2``; ``none``: it is there to be read.
    """

    what: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    bound: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(<=|>=) \d+(\.\d+)?|none", self.bound):
            raise ValueError(f"Bound {self.bound!r} of {self.what!r}: write '<= 0.15' or '>= 2'")
        if not self.peer > 0:
            raise ValueError(f"{self.what}: the peer {self.peer_name!r} measured {self.peer}; there is no ratio to it")

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def holds(self) -> bool:
        if self.bound == "none":
            return True
        relation, limit = self.bound.split()
        return self.ratio <= float(limit) if relation == "<=" else self.ratio >= float(limit)


def compare(
    what: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    peer_name: str,
    unit: str,
    bound: str,
    rounds: int,
) -> Row:
    """Call `ours` and `peer` in turn and compare the medians of what they return.

    A first call of each is thrown away: it fills caches. Who goes first alternates, so that what slows the machine down
    for a while slows both.
    """
    measured: dict[str, list[float]] = {"ours": [], "peer": []}
    pair = [("ours", ours), ("peer", peer)]
    for _, measure in pair:
        measure()
    for index in range(rounds):
        for name, measure in pair if index % 2 == 0 else reversed(pair):
            measured[name].append(measure())
    medians = {name: statistics.median(values) for name, values in measured.items()}
    return Row(what, medians["ours"], medians["peer"], peer_name, unit, bound)


def touch_memory(size: int) -> None:
    """Take that many bytes of memory from the hypervisor, in large pages as caches of files have them, and leave them free.

    A virtual machine gives back what has lain free for a second or two, and whoever writes next pays for getting it again.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1


def main(
    name: str, measure: Callable[[bool], list[Row]], *, packages: Sequence[str], arguments: Sequence[str] | None = None
) -> int:
    """Measure, print the table, write it if asked to. The exit code: 1 when a bound does not hold.

    Args:
        name: of the benchmark.
        measure: is told whether to be quick, and returns the rows.
        packages: whose versions are recorded.
        arguments: instead of the command line's.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 50 seconds")
    options = parser.parse_args(arguments)

    rows = measure(options.quick)
    report = {
        "benchmark": name,
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "quick": options.quick,
        "rows": [{**asdict(row), "ratio": row.ratio, "holds": row.holds} for row in rows],
        "versions": {package: metadata.version(package) for package in packages},
        "machine": machine(),
    }
    _print(report)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row.holds for row in rows) else 1


def machine() -> dict[str, str | int]:
    """What a reader needs to compare figures, and nothing that names one machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": _processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if named:
            return named.group(1).strip()
    return platform.processor() or "unknown"


def _print(report: dict[str, Any]) -> None:
    table = Table(title=report["benchmark"] + (" (quick)" if report["quick"] else ""), title_justify="left")
    table.add_column("what")
    for column in ("ours", "peer", "ratio", "bound"):
        table.add_column(column, justify="right")
    table.add_column("holds")
    for row in report["rows"]:
        table.add_row(
            row["what"],
            f"{row['ours']:.3g} {row['unit']}",
            f"{row['peer']:.3g} {row['unit']} ({row['peer_name']})",
            f"{row['ratio']:.3g}",
            row["bound"],
            "-" if row["bound"] == "none" else "[green]yes[/]" if row["holds"] else "[red]NO[/]",
        )
    # A pipe has no width of its own, and 80 columns would cut the table.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    console.print(f"{versions}; {', '.join(str(fact) for fact in report['machine'].values())}", highlight=False)
