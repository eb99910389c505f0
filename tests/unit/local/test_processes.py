"""The keeper: nothing that it starts outlives it, the server, or its own first process."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from windlass.local.processes import Child, Keeper

ENV = {"PATH": os.environ["PATH"]}
SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)

# A grandchild in the same session, and one that leaves it the way daemons do. Both ignore SIGTERM.
FAMILY = f"""
import os, subprocess, sys
one = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])
two = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    print('pids', one.pid, two.pid, os.getpid(), flush=True)
    import time; time.sleep(600)
import time; time.sleep(600)
"""


class Output:
    """The reading end of a child's output."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.text = ""

    def until(self, done: Callable[[str], bool]) -> str:
        """What was said by the time that ``done`` holds of it."""
        while not done(self.text):
            readable, _, _ = select.select([self.reading], [], [], 20)
            assert readable, f"no more output after: {self.text!r}"
            chunk = os.read(self.reading, 4096)
            assert chunk, f"the output ended after: {self.text!r}"
            self.text += chunk.decode()
        return self.text

    def rest(self) -> str:
        while chunk := os.read(self.reading, 4096):
            self.text += chunk.decode()
        return self.text


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.close()


@pytest.fixture
def output() -> Iterator[Output]:
    output = Output()
    yield output
    os.close(output.reading)


def start(keeper: Keeper, code: str, output: Output, cwd: Path = Path("/")) -> Child:
    child = keeper.start([sys.executable, "-c", code], env=ENV, cwd=cwd, output=output.writing)
    os.close(output.writing)
    return child


def start_family(keeper: Keeper, output: Output) -> tuple[Child, list[int]]:
    child = start(keeper, FAMILY, output)
    said = output.until(lambda text: text.count("ready") == 2 and "pids" in text and text.endswith("\n"))
    line = next(line for line in said.splitlines() if line.startswith("pids"))
    return child, [child.pid, *map(int, line.split()[1:])]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int], timeout: float = 10.0) -> bool:
    """Whether all of them are gone in time. They are nobody's to wait for."""
    deadline = time.monotonic() + timeout
    while any(map(alive, pids)) and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    return not any(map(alive, pids))


def test_a_child_runs_in_its_folder_with_its_environment_alone(keeper: Keeper, output: Output, tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), sorted(os.environ)); print('wrong', file=sys.stderr); sys.exit(3)"

    child = start(keeper, code, output, tmp_path)

    assert child.wait(20) == 3
    said = output.rest()
    assert str(tmp_path) in said
    assert "wrong" in said
    assert "HOME" not in said


def test_a_signal_reaches_the_process_and_shows_in_its_code(keeper: Keeper, output: Output) -> None:
    child = start(keeper, SLEEP, output)
    assert child.poll() is None
    assert child.wait(0.01) is None

    child.signal(signal.SIGTERM)

    assert child.wait(20) == -signal.SIGTERM


def test_a_program_that_does_not_exist_is_an_error(keeper: Keeper, output: Output) -> None:
    with pytest.raises(OSError, match="no-such-program"):
        keeper.start(["no-such-program"], env=ENV, cwd=Path("/"), output=output.writing)
    with pytest.raises(OSError, match="/no/such/folder"):
        keeper.start([sys.executable], env=ENV, cwd=Path("/no/such/folder"), output=output.writing)
    os.close(output.writing)


def test_large_requests_pass_whole(keeper: Keeper, output: Output) -> None:
    value = "é\n'\"$(x)" * 10_000

    child = keeper.start(
        [sys.executable, "-c", "import os; print(len(os.environ['BIG']))"],
        env={**ENV, "BIG": value[:60_000]},
        cwd=Path("/"),
        output=output.writing,
    )
    os.close(output.writing)

    assert child.wait(20) == 0
    assert output.rest().strip() == "60000"


def test_a_hundred_short_children_each_report_their_own_code(keeper: Keeper) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)

    children = [
        keeper.start(["/bin/sh", "-c", f"exit {n}"], env=ENV, cwd=Path("/"), output=nothing) for n in range(100)
    ]
    os.close(nothing)

    assert [child.wait(20) for child in children] == list(range(100))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a tree that left its session is found through /proc")
class TestNothingIsLeft:
    def test_kill_takes_the_whole_tree_and_spares_the_others(self, keeper: Keeper, output: Output) -> None:
        other = keeper.start([sys.executable, "-c", SLEEP], env=ENV, cwd=Path("/"), output=output.writing)
        child, pids = start_family(keeper, output)

        child.kill()

        assert child.wait(20) == -signal.SIGKILL
        assert gone(pids)
        assert other.poll() is None

    def test_when_the_first_process_exits_the_rest_of_its_tree_goes_too(self, keeper: Keeper, output: Output) -> None:
        child, pids = start_family(keeper, output)

        child.signal(signal.SIGTERM)  # the first process alone does not ignore it

        assert child.wait(20) == -signal.SIGTERM
        assert not any(map(alive, pids))
        output.rest()  # and so the pipe ends

    def test_close_ends_all(self, keeper: Keeper, output: Output) -> None:
        child, pids = start_family(keeper, output)

        keeper.close()

        assert not any(map(alive, pids))
        assert child.wait(20) == -signal.SIGKILL
        with pytest.raises(OSError, match="shutting down"):
            keeper.start(["/bin/true"], env=ENV, cwd=Path("/"), output=2)

    def test_after_kill_all_more_can_be_started(self, keeper: Keeper, output: Output) -> None:
        _, pids = start_family(keeper, output)

        keeper.kill_all()

        assert not any(map(alive, pids))
        nothing = os.open(os.devnull, os.O_WRONLY)
        assert keeper.start(["/bin/true"], env=ENV, cwd=Path("/"), output=nothing).wait(20) == 0
        os.close(nothing)

    def test_sigkill_of_the_keeper_ends_its_children_and_is_noticed(self, keeper: Keeper, output: Output) -> None:
        child = start(keeper, STUBBORN, output)
        output.until(lambda text: "ready" in text)
        assert keeper.pid

        os.kill(keeper.pid, signal.SIGKILL)

        assert child.wait(20) == -signal.SIGKILL
        assert gone([child.pid])
        nothing = os.open(os.devnull, os.O_WRONLY)
        assert keeper.start(["/bin/true"], env=ENV, cwd=Path("/"), output=nothing).wait(20) == 0
        os.close(nothing)

    def test_sigkill_of_the_keeper_ends_what_its_children_have_started(self, keeper: Keeper, output: Output) -> None:
        child, pids = start_family(keeper, output)
        assert keeper.pid

        os.kill(keeper.pid, signal.SIGKILL)

        assert child.wait(20) == -signal.SIGKILL
        assert not any(map(alive, pids))  # before anybody can start something in their place

    def test_a_limit_that_stops_one_start_ends_no_other_child(self, keeper: Keeper, output: Output) -> None:
        # Given a keeper that may open one file more: the output, but no pipe
        child = start(keeper, STUBBORN, output)
        output.until(lambda text: "ready" in text)
        assert keeper.pid
        used = len(list(Path(f"/proc/{keeper.pid}/fd").iterdir()))
        limits = resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (used + 1, limits[1]))
        nothing = os.open(os.devnull, os.O_WRONLY)

        with pytest.raises(OSError, match="Too many open files"):
            keeper.start(["/bin/true"], env=ENV, cwd=Path("/"), output=nothing)

        assert child.poll() is None
        resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, limits)
        assert keeper.start(["/bin/true"], env=ENV, cwd=Path("/"), output=nothing).wait(20) == 0
        os.close(nothing)

    def test_sigkill_of_the_server_leaves_nothing(self, output: Output) -> None:
        # Given a process that holds a keeper with a family of children
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, FAMILY],
            stdout=output.writing,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(output.writing)
        said = output.until(lambda text: text.count("ready") == 2 and "pids" in text and "keeper" in text)
        pids = [
            int(word) for line in said.splitlines() if line.startswith(("pids", "keeper")) for word in line.split()[1:]
        ]
        assert len(pids) == 5
        assert all(map(alive, pids))

        # When it is killed, it has no chance to clean up
        server.kill()
        server.wait()

        # Then the keeper does
        assert gone(pids)


SERVER = """
import os, sys, time
from pathlib import Path
from windlass.local.processes import Keeper
keeper = Keeper()
child = keeper.start([sys.executable, '-c', sys.argv[1]], env={'PATH': os.environ['PATH']}, cwd=Path('/'), output=1)
print('keeper', keeper.pid, child.pid, flush=True)
time.sleep(600)
"""
