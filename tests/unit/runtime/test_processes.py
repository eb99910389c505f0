"""Worker processes, as the server sees them end."""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
from typing import Any

import pytest

from windlass.runtime import processes
from windlass.runtime.processes import Process

# Forks one that does nothing, and ends when it is told to.
BETWEEN = """
import os, signal, sys
child = os.fork()
if not child:
    signal.pause()
print(child, flush=True)
sys.stdin.read()
if {reaps}:
    os.waitpid(child, 0)
os._exit(0)
"""


class Owner:
    def received(self, message: Any) -> None:
        pass

    def lost(self) -> None:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to whom it is told to")
@pytest.mark.parametrize(("reaps", "code"), [(False, -9), (True, processes.UNKNOWN)])
def test_a_fork_is_ours_when_its_parent_has_ended_or_nobody_s(reaps: bool, code: int) -> None:
    assert processes._become_subreaper()
    between = subprocess.Popen(
        [sys.executable, "-c", BETWEEN.format(reaps=reaps)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert between.stdin
        assert between.stdout
        with socket.socket() as ours:
            process = Process(Owner(), ours, None, None)
            process.pid = int(between.stdout.readline())
            assert process.poll() is None

            process.kill()
            between.communicate("")
            assert process.wait() == code
            assert process.poll() == code
    finally:
        between.kill()
        between.wait()
        ctypes.CDLL(None).prctl(processes._SUBREAPER, 0, 0, 0, 0)
