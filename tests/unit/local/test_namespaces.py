"""Containers: a child finds /opt/ml at its real path, is alone with its own processes, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.local.test_processes import ENV, FAMILY, Output, alive, gone
from windlass.local.processes import BASE, Child, Container, Keeper


def mechanisms() -> list[str]:
    """Those that this machine allows."""
    keeper = Keeper()
    best = keeper.isolation
    keeper.close()
    found = {"root": ["root", "user"], "user": ["user"]}.get(best, [])
    return [*found, *(["bubblewrap"] if best and shutil.which("bwrap") else [])]


MECHANISMS = mechanisms()
pytestmark = pytest.mark.skipif(not MECHANISMS, reason="this machine allows no namespaces")


@pytest.fixture(params=MECHANISMS or ["none"])
def keeper(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    keeper = Keeper(isolation=request.param)
    yield keeper
    keeper.close()


@pytest.fixture
def output() -> Iterator[Output]:
    output = Output()
    yield output
    os.close(output.reading)


def start(keeper: Keeper, argv: list[str], output: Output, container: Container, cwd: Path = BASE) -> Child:
    child = keeper.start(argv, env=ENV, cwd=cwd, output=output.writing, container=container)
    os.close(output.writing)
    return child


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


LOOK = """
import json, os, socket
print(json.dumps({
    "cwd": os.getcwd(), "opt": sorted(os.listdir("/opt")), "ml": sorted(os.listdir("/opt/ml")), "name": socket.gethostname(),
    "peer": socket.gethostbyname("algo-2"), "processes": len([p for p in os.listdir("/proc") if p.isdigit()]),
    "user": os.getuid(),
}))
open("/opt/ml/written", "w").write("inside")
"""


def test_a_child_finds_its_folder_at_opt_ml_and_the_rest_of_the_machine_around_it(
    keeper: Keeper, output: Output, tmp_path: Path
) -> None:
    before = sorted(path.name for path in Path("/opt").iterdir())
    (tmp_path / "ml" / "model").mkdir(parents=True)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.9.8.7 algo-2\n")

    child = start(keeper, python(LOOK), output, Container(tmp_path / "ml", hostname="algo-1", hosts=hosts))

    assert child.wait(20) == 0, output.rest()
    seen = json.loads(output.rest())
    assert seen["cwd"] == "/opt/ml"
    assert seen["ml"] == ["model"]
    assert set(before) <= set(seen["opt"])
    assert seen["name"] == "algo-1"
    assert seen["peer"] == "127.9.8.7"
    assert seen["processes"] <= 3
    assert seen["user"] == os.getuid()
    assert (tmp_path / "ml" / "written").read_text() == "inside"
    assert sorted(path.name for path in Path("/opt").iterdir()) == before


def test_codes_and_signals_are_reported_as_without_a_container(keeper: Keeper, tmp_path: Path) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    scripts = {"exit 0": 0, "exit 7": 7, "kill -KILL $$": -signal.SIGKILL, "kill -SEGV $$": -signal.SIGSEGV}

    children = {
        script: keeper.start(
            ["/bin/sh", "-c", script], env=ENV, cwd=BASE, output=nothing, container=Container(tmp_path)
        )
        for script in scripts
    }
    os.close(nothing)

    assert {script: child.wait(20) for script, child in children.items()} == scripts


def test_what_cannot_be_run_is_an_error(keeper: Keeper, tmp_path: Path) -> None:
    if keeper.isolation == "bubblewrap":
        pytest.skip("there bwrap itself starts well, and then ends with the program's error")
    with pytest.raises(OSError, match="no-such-program"):
        keeper.start(["no-such-program"], env=ENV, cwd=BASE, output=2, container=Container(tmp_path))
    with pytest.raises(OSError, match="no-such-folder"):
        keeper.start(["/bin/true"], env=ENV, cwd=BASE, output=2, container=Container(tmp_path / "no-such-folder"))


def test_sigterm_reaches_the_program_itself(keeper: Keeper, output: Output, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(5)))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    child = start(keeper, python(code), output, Container(tmp_path))
    output.until(lambda text: "ready" in text)

    child.signal(signal.SIGTERM)

    assert child.wait(20) == 5
    assert "saved" in output.rest()


def test_sigterm_reaches_what_a_shell_runs_and_lets_it_finish(keeper: Keeper, output: Output, tmp_path: Path) -> None:
    if keeper.isolation == "bubblewrap":
        pytest.skip("bwrap's own init ends with the shell")
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('/opt/ml/saved').touch(), sys.exit(0)))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    script = tmp_path / "train.py"
    script.write_text(code)
    line = f"{sys.executable} train.py && echo never"
    child = start(keeper, ["/bin/bash", "-c", line], output, Container(tmp_path))
    output.until(lambda text: "ready" in text)

    child.signal(signal.SIGTERM)

    assert child.wait(20) == -signal.SIGTERM
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("victim", ["child", "kill", "keeper", "close"])
def test_whoever_is_killed_nothing_in_the_container_is_left(
    keeper: Keeper, output: Output, tmp_path: Path, victim: str
) -> None:
    # Given a family of processes that left their sessions and ignore SIGTERM
    child = start(keeper, python(FAMILY), output, Container(tmp_path))
    output.until(lambda text: text.count("ready") == 2 and "pids" in text and text.endswith("\n"))
    assert keeper.pid
    pids = [keeper.pid, *descendants(keeper.pid)]
    assert len(pids) >= 5

    # When one is killed
    if victim == "child":
        os.kill(child.pid, signal.SIGKILL)
    elif victim == "kill":
        child.kill()
    elif victim == "keeper":
        os.kill(keeper.pid, signal.SIGKILL)
    else:
        keeper.close()

    # Then all are gone
    assert child.wait(20) is not None
    left = pids[1:] if victim in ("child", "kill") else pids
    assert gone(left), [pid for pid in left if alive(pid)]


def test_no_file_grows_beyond_the_limit(keeper: Keeper, output: Output, tmp_path: Path) -> None:
    code = "open('/opt/ml/big', 'wb').write(b'x' * 2_000_000)"

    child = keeper.start(
        python(code), env=ENV, cwd=BASE, output=output.writing, container=Container(tmp_path), file_bytes=1_000_000
    )
    os.close(output.writing)

    assert child.wait(20) == 1
    assert "File too large" in output.rest()
    assert (tmp_path / "big").stat().st_size == 1_000_000


def test_without_namespaces_the_folder_itself_stands_for_opt_ml(output: Output, tmp_path: Path) -> None:
    keeper = Keeper(isolation="")
    try:
        child = start(
            keeper, python("import os; print(os.getcwd())"), output, Container(tmp_path), keeper.base(tmp_path)
        )

        assert child.wait(20) == 0
        assert output.rest().strip() == str(tmp_path)
    finally:
        keeper.close()


def descendants(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {root})
