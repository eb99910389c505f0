"""``windlass local run``: one command inside a local cloud of its own, and how either of the two ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from windlass.local import LocalCloud

COMMAND = """
import signal, time
print("interruptible", signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)
time.sleep(600)
"""


def start(state: Path) -> subprocess.Popen[str]:
    """Run that command, and return when it runs."""
    arguments = ["local", "run", "--state", str(state), "--", sys.executable, "-c", COMMAND]
    process = subprocess.Popen(
        [sys.executable, "-m", "windlass.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "interruptible True\n"
    return process


def test_sigterm_ends_the_command_and_then_the_cloud(tmp_path: Path) -> None:
    process = start(tmp_path)

    process.terminate()
    process.communicate(timeout=30)

    assert process.returncode == 128 + signal.SIGTERM
    assert LocalCloud.find(tmp_path) is None


def test_a_cloud_that_dies_ends_the_command_and_says_so(tmp_path: Path) -> None:
    process, cloud = start(tmp_path), LocalCloud.find(tmp_path)
    assert cloud is not None

    os.kill(cloud.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=30)

    assert process.returncode == 128 + signal.SIGTERM
    assert "The local cloud has ended before the command" in said


def test_an_interrupt_before_the_command_is_there_is_the_command_s(tmp_path: Path) -> None:
    # Given Ctrl-C at the last moment at which only windlass can hear it
    late = f"""
import os, signal, subprocess, sys
from windlass.cli import main
start = subprocess.Popen
def interrupted(command, *args, **options):
    if command[-1] == {COMMAND!r}:
        os.kill(os.getpid(), signal.SIGINT)
    return start(command, *args, **options)
subprocess.Popen = interrupted
sys.argv = ["windlass", "local", "run", "--state", {str(tmp_path)!r}, "--", sys.executable, "-c", {COMMAND!r}]
sys.exit(main())
"""

    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert LocalCloud.find(tmp_path) is None
