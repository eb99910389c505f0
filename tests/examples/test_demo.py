"""The digits demo: on a local cloud that was started by hand, and interrupted in every way, which leaves no process behind."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from windlass.local import LocalCloud

DEMO = Path(__file__).resolve().parents[2] / "examples" / "digits" / "demo.py"
PATIENCE_SECONDS = 300
GONE_SECONDS = 15


@pytest.mark.xdist_group("demo")
def test_the_demo_runs_on_a_local_cloud_started_by_hand(tmp_path: Path) -> None:
    with LocalCloud.up(tmp_path / "state", lifeline=True) as cloud:
        aws = {name: value for name, value in cloud.env.items() if name.startswith("AWS_")}
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLUMNS": "200", **aws}
        done = subprocess.run(
            [sys.executable, str(DEMO)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    assert done.returncode == 0, done.stdout + done.stderr
    # Every row of the table names the operation that it was read with.
    table = done.stdout.partition("read back from the services")[2]
    rows = [re.split(r"[│\s]{2,}", line.strip("│ ")) for line in table.splitlines()]
    said = {row[0]: row[1] for row in rows if len(row) == 3}
    assert float(said["digits/1 held-out accuracy"]) >= 0.97
    assert float(said["accuracy of digits/1 after the rollback"]) >= 0.97
    assert float(said["accuracy of digits/2 in service"]) <= 0.3
    assert said["serves"] == "digits/1"
    assert re.match(r"InService on digits-v1-", said["endpoint"])
    assert "ALARM" in said["why it went back"]
    page = (tmp_path / "report.html").read_text()
    assert "back on digits/1" in page
    assert "accuracy below the promise" in page


# ---------------------------------------------------------------------------------------------------- interrupted


class Process:
    """One process of this machine, told from a later one of the same id by when it started."""

    def __init__(self, pid: int) -> None:
        self.pid, self._folder = pid, Path(f"/proc/{pid}")
        fields = self._stat()
        self.parent, self.started = (int(fields[1]), fields[19]) if fields else (0, b"")

    def _stat(self) -> list[bytes]:
        try:
            return (self._folder / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return []

    @property
    def lives(self) -> bool:
        fields = self._stat()
        return bool(fields) and fields[0] not in (b"Z", b"X") and fields[19] == self.started

    @property
    def command(self) -> bytes:
        return self._read("cmdline")

    def carries(self, mark: str) -> bool:
        """Whether its command line or its environment holds that text."""
        return mark.encode() in self.command + self._read("environ")

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return b""  # it has ended, or is another user's

    def __repr__(self) -> str:
        return f"{self.pid}: {self.command.decode(errors='replace')}"


def everyone() -> list[Process]:
    return [Process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def until(done: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what()
        select.select([], [], [], 0.05)


class Demo:
    """``windlass local run -- python demo.py`` in a session of its own."""

    def __init__(self, folder: Path) -> None:
        # The processes of jobs and endpoints see nothing of this environment but TMPDIR, and it is in the server's
        # command line; so this one word marks every process of the run but the keeper, which is some process's child.
        self.mark = f"demo-{uuid.uuid4().hex}"
        self.scratch = folder / self.mark
        self.scratch.mkdir()
        env = {**os.environ, "WINDLASS_TEST_RUN": self.mark, "TMPDIR": str(self.scratch), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "windlass.cli", "local", "run", "--", sys.executable, str(DEMO)],
            cwd=self.scratch,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell starts what runs in its background with Ctrl-C ignored, which processes inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.said = ""

    def says(self, text: str) -> None:
        """Return when it has printed that."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.said:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 1 << 16) if readable else b""
            assert chunk, f"no {text!r} in {PATIENCE_SECONDS} s:\n{self.said}"
            self.said += chunk.decode(errors="replace")

    def runs(self, module: str) -> None:
        """Return when one of its processes is that program."""
        until(
            lambda: any(module.encode() in process.command and process.carries(self.mark) for process in everyone()),
            PATIENCE_SECONDS,
            lambda: f"no {module} in {self.processes()}",
        )

    @property
    def server(self) -> Process:
        [found] = [p for p in everyone() if b"windlass.local\0" in p.command and p.carries(self.mark)]
        return found

    @property
    def port(self) -> int:
        [record] = self.scratch.glob("windlass-*/state/cloud.json")
        return urlsplit(json.loads(record.read_text())["url"]).port or 0

    def processes(self) -> list[Process]:
        """Everything that belongs to it: what carries its mark, and all descendants."""
        table = everyone()
        mine = {process.pid for process in table if process.carries(self.mark)} | {self.process.pid}
        while more := {process.pid for process in table if process.parent in mine} - mine:
            mine |= more
        return [process for process in table if process.pid in mine and process.lives]

    def kill(self) -> None:
        for process in self.processes():
            if process.pid != os.getpid():
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.kill()


def starting(demo: Demo) -> None:
    demo.runs("windlass.local\0")


def foundation(demo: Demo) -> None:
    demo.says("Deploy the foundation")


def training(demo: Demo) -> None:
    demo.runs("windlass.runtime.training")


def serving(demo: Demo) -> None:
    demo.says("digits/1: accuracy")
    demo.runs("windlass.runtime.server")


def baking(demo: Demo) -> None:
    demo.says("digits/2: accuracy")


def interrupt(demo: Demo) -> None:
    """Ctrl-C, which a terminal sends to the whole group."""
    os.killpg(demo.process.pid, signal.SIGINT)


def kill_the_cloud(demo: Demo) -> None:
    os.kill(demo.server.pid, signal.SIGKILL)


def kill_the_run(demo: Demo) -> None:
    demo.process.kill()


@pytest.mark.xdist_group("interrupted")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="who belongs to whom is read from /proc")
@pytest.mark.parametrize(
    ("moment", "act"),
    [
        (starting, interrupt),
        (foundation, interrupt),
        (training, interrupt),
        (serving, interrupt),
        (baking, interrupt),
        (training, kill_the_run),
        (serving, kill_the_cloud),
    ],
    ids=lambda function: function.__name__,
)
def test_an_interrupted_demo_leaves_nothing(
    demo: Demo, moment: Callable[[Demo], None], act: Callable[[Demo], None]
) -> None:
    # Given a demo at that moment
    moment(demo)
    before = demo.processes()
    port = None if moment is starting else demo.port

    # When that happens to it
    act(demo)

    # Then it ends as something that did not succeed, and nothing of it is left, neither process nor port
    ended = time.monotonic() + GONE_SECONDS
    code = demo.process.wait(GONE_SECONDS)
    assert code != 0

    def left() -> list[Process]:
        return [process for process in [*before, *demo.processes()] if process.lives]

    until(lambda: not left(), ended - time.monotonic(), left)
    if port:
        until(lambda: not answers(port), ended - time.monotonic(), lambda: f"port {port} answers")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
