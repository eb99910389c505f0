"""Run every benchmark, each in its own process, and say which bounds do not hold.

python -m benchmarks
python -m benchmarks --quick --json benchmarks/results
"""

from __future__ import annotations

import argparse
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks

NOT_BENCHMARKS = {"__main__", "harness", "wire"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write NAME.json for each benchmark")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 50 seconds each")
    options = parser.parse_args(arguments)

    names = sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - NOT_BENCHMARKS)
    failed = []
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += ["--quick"] if options.quick else []
        command += ["--json", str(options.json / f"{name}.json")] if options.json else []
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
    print(f"{len(names) - len(failed)} of {len(names)} hold" + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
