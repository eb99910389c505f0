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


class Owner:
    def received(self, message: Any) -> None:
        pass

    def lost(self) -> None:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to whom it is told to")
def test_a_fork_whose_parent_has_not_ended_yet_is_not_ours_yet() -> None:
    assert processes._become_subreaper()
    script = "sleep 1000 & echo $!; read line"
    between = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert between.stdin
        assert between.stdout
        with socket.socket() as ours:
            process = Process(Owner(), ours, None, None)
            process.pid = int(between.stdout.readline())
            assert process.poll() is None

            process.kill()
            between.communicate("")
            assert process.wait() == -9
            assert process.poll() == -9
    finally:
        between.kill()
        between.wait()
        ctypes.CDLL(None).prctl(processes._SUBREAPER, 0, 0, 0, 0)
