"""What `import windlass` and `windlass --help` cost, against `import boto3`.

    python -m benchmarks.imports

A command line tool is started many times a day, and a library is imported by programs that may never use it. So
`import windlass` loads nothing that it does not need yet, boto3 least of all.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import Row, compare, main


def measure(quick: bool) -> list[Row]:
    rounds = 7 if quick else 25
    windlass = Path(sys.executable).parent / "windlass"
    return [
        compare(
            "import windlass (-X importtime)",
            import_time("windlass"),
            import_time("boto3"),
            peer_name="import boto3",
            unit="ms",
            bound="<= 0.15",
            rounds=rounds,
        ),
        compare(
            "windlass --help (wall time)",
            wall_time([str(windlass), "--help"]),
            wall_time([sys.executable, "-c", "import boto3"]),
            peer_name="python -c 'import boto3'",
            unit="ms",
            bound="<= 1.0",
            rounds=rounds,
        ),
    ]


def import_time(module: str) -> Callable[[], float]:
    """Milliseconds that the interpreter itself counts for the import of `module` and all that it imports."""

    def once() -> float:
        trace = _run([sys.executable, "-X", "importtime", "-c", f"import {module}"])
        line = re.search(rf"^import time:\s+\d+ \|\s+(\d+) \| {module}$", trace, re.MULTILINE)
        if line is None:
            sys.exit(f"python -X importtime named no {module}:\n{trace[-2000:]}")
        return int(line.group(1)) / 1000

    return once


def wall_time(command: Sequence[str]) -> Callable[[], float]:
    """Milliseconds from the start of `command` to its end."""

    def once() -> float:
        start = time.perf_counter()
        _run(command)
        return (time.perf_counter() - start) * 1000

    return once


def _run(command: Sequence[str]) -> str:
    """What `command` wrote to stderr. A command that fails has no time worth comparing, so it ends the benchmark."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stderr


if __name__ == "__main__":
    sys.exit(main("imports", measure, packages=["windlass", "boto3", "typer", "rich"]))
