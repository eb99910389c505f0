"""Fleets: real processes, of a model server so small that it starts at once."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.local.identity import IDENTITY, living
from tests.unit.local.jobs.test_environments import wheel
from windlass.local.hosting.fleet import Fleet, NoCapacity
from windlass.local.hosting.instance import FleetFailed, Unanswered, VariantSpec, last_traceback, with_cause
from windlass.local.jobs.containers import FetchFailed
from windlass.local.jobs.environments import Environments
from windlass.local.processes import Keeper

# What the tests' model servers run: /invocations answers with its process id, or does what the body says.
SERVER = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer(200, b"")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body == b"die":
            os._exit(3)
        if body == b"hang":
            time.sleep(30)
        if body == b"half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 500)
            self.close_connection = True
            return
        if body == b"leak":
            leaked.append(bytearray(os.urandom(1 << 20)) * 64)
        if body == b"trickle":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
            return
        if body == b"bad":
            self.answer(400, b"wrong shape")
        self.answer(200, IDENTITY.encode())
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
leaked = []
print("serving", os.environ["SAGEMAKER_BASE_DIR"], flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
""".replace("IDENTITY", f"({IDENTITY})")


class Streams:
    """CloudWatch Logs, as far as a fleet needs it."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}
        self.written = threading.Condition()

    def open(self, stream: str) -> Any:
        lines, written = self.lines.setdefault(stream, []), self.written

        class Stream:
            def write(self, line: str) -> None:
                with written:
                    lines.append(line)
                    written.notify_all()

        return Stream()

    @property
    def all(self) -> list[str]:
        return [line for lines in self.lines.values() for line in lines]

    def wait_for(self, test: Callable[[], bool]) -> bool:
        with self.written:
            return self.written.wait_for(test, 10)


@pytest.fixture
def streams() -> Streams:
    return Streams()


MakeFleet = Callable[..., Fleet]


@pytest.fixture
def make_fleet(tmp_path: Path, streams: Streams) -> Iterator[MakeFleet]:
    keeper = Keeper()
    made: list[Fleet] = []

    def make(*variants: VariantSpec, config: str = "config") -> Fleet:
        folder = tmp_path / f"{len(made)}"
        fleet = Fleet(config, variants or (spec(),), folder, keeper=keeper, open_log=streams.open)
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.stop(drain_seconds=0, grace_seconds=0)
    keeper.close()


def spec(name: str = "main", *, code: str = SERVER, **changes: Any) -> VariantSpec:
    given: dict[str, Any] = {
        "name": name,
        "model": "digits",
        "image": "image",
        "instances": 1,
        "weight": 1.0,
        "fetch": lambda folder: None,
        "environment": {"PATH": os.defpath},
        "startup_timeout_seconds": 10.0,
        "command": (sys.executable, "-c", code),
        **changes,
    }
    return VariantSpec(**given)


def ask(fleet: Fleet, body: bytes = b"", *, timeout: float = 10, variant: str = "main") -> str:
    instance = fleet.acquire(variant)
    try:
        return instance.request("POST", "/invocations", {}, body, timeout).body.decode()
    finally:
        fleet.release(instance)


def test_every_instance_is_a_process_with_its_own_model_and_log(make_fleet: MakeFleet, streams: Streams) -> None:
    def fetch(folder: Path) -> None:
        (folder / "weights").touch()

    fleet = make_fleet(spec(instances=2, fetch=fetch))

    fleet.start()

    assert fleet.healthy() == {"main": 2}
    assert len({ask(fleet) for _ in range(4)}) == 2
    assert len(list(fleet.folder.glob("main/*/model/weights"))) == 2
    assert all(name.startswith("main/i-") for name in streams.lines)
    assert streams.wait_for(lambda: sum("serving" in line for line in streams.all) == 2)


def test_the_requirements_of_the_models_code_are_installed_under_it(
    make_fleet: MakeFleet, streams: Streams, tmp_path: Path
) -> None:
    keeper = Keeper()
    thing = wheel(tmp_path, "layered_thing", "1.0")

    def fetch(folder: Path) -> None:
        (folder / "code").mkdir()
        (folder / "code" / "requirements.txt").write_text(f"--no-index\n--find-links {thing.parent}\nlayered_thing\n")

    layers = Environments(keeper, tmp_path / "cache")
    fleet = make_fleet(spec(code=f"import layered_thing\n{SERVER}", fetch=fetch, layers=layers))

    fleet.start()

    assert fleet.healthy() == {"main": 1}
    assert any("Successfully installed" in line for line in streams.all)
    keeper.close()


def test_requirements_that_cannot_be_installed_fail_the_fleet_in_pips_words(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    keeper = Keeper()

    def fetch(folder: Path) -> None:
        (folder / "code").mkdir()
        (folder / "code" / "requirements.txt").write_text("--no-index\nno-such-package-here\n")

    fleet = make_fleet(spec(fetch=fetch, layers=Environments(keeper, tmp_path / "cache")))

    with pytest.raises(FleetFailed, match="ERROR: No matching distribution found for no-such-package-here"):
        fleet.start()
    keeper.close()


def test_the_folder_of_a_server_is_opt_ml(make_fleet: MakeFleet, streams: Streams) -> None:
    environment = {"PATH": os.defpath, "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"}
    code = (
        "import os; print('code', os.environ['SAGEMAKER_SUBMIT_DIRECTORY'], os.listdir('/opt/ml/model'), flush=True)\n"
    )

    def fetch(folder: Path) -> None:
        (folder / "weights").touch()

    fleet = make_fleet(spec(code=code + SERVER, environment=environment, fetch=fetch))

    fleet.start()

    assert streams.wait_for(lambda: "code /opt/ml/model/code ['weights']" in streams.all)
    assert "serving /opt/ml" in streams.all


def test_a_vendors_image_is_refused_by_name(make_fleet: MakeFleet) -> None:
    with pytest.raises(
        FleetFailed, match=r"runs no container images, and vllm/vllm-openai:v1 .* holds vLLM, which it cannot"
    ):
        make_fleet(spec(image="vllm/vllm-openai:v1")).start()


def test_stopping_ends_the_processes_and_removes_the_folder(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start()
    identity = ask(fleet)

    fleet.stop()

    assert not living(identity)
    assert not fleet.folder.exists()
    with pytest.raises(NoCapacity):
        fleet.acquire("main")


def test_a_server_that_raises_fails_the_fleet_with_its_traceback(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(spec(code="def model_fn(): raise ValueError('no such layer: conv9')\nmodel_fn()"))

    with pytest.raises(FleetFailed) as failed:
        fleet.start()

    reason = str(failed.value)
    assert reason.startswith("The primary container for production variant main did not pass the ping health check.")
    assert "Traceback (most recent call last):" in reason
    assert reason.endswith("ValueError: no such layer: conv9")
    assert not fleet.folder.exists()


def test_a_server_that_never_listens_fails_after_its_timeout(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(
        spec(code="print('loading', flush=True)\nimport time; time.sleep(60)", startup_timeout_seconds=0.5)
    )

    with pytest.raises(FleetFailed, match=r"(?s)did not pass the ping health check.*loading"):
        fleet.start()


def test_an_abort_ends_the_start(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(spec(code="import time; time.sleep(60)"))

    with pytest.raises(FleetFailed, match="alarm"):
        fleet.start(lambda: "the alarm rings")


def test_missing_model_data_fails_the_fleet(make_fleet: MakeFleet) -> None:
    def fetch(folder: Path) -> None:
        raise FetchFailed("Failed to download model data")

    with pytest.raises(FleetFailed, match="Failed to download model data"):
        make_fleet(spec(fetch=fetch)).start()


def test_a_server_that_dies_leaves_its_request_unanswered_and_comes_back(
    make_fleet: MakeFleet, streams: Streams
) -> None:
    fleet = make_fleet()
    fleet.start()
    before = ask(fleet)

    with pytest.raises(Unanswered, match="model process exited"):
        ask(fleet, b"die")

    assert streams.wait_for(lambda: sum("serving" in line for line in streams.all) == 2)
    [instance] = fleet
    assert instance.wait_ready(10)
    assert ask(fleet) != before
    assert "The model server exited with code 3; starting it again" in streams.all


def test_a_server_that_hangs_is_given_up_on(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start()

    with pytest.raises(Unanswered, match="timed out while waiting for a response from container primary"):
        ask(fleet, b"hang", timeout=0.2)


def test_an_answer_that_trickles_in_does_not_get_around_the_limit(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start()

    with pytest.raises(Unanswered, match="timed out while waiting for a response from container primary"):
        ask(fleet, b"trickle", timeout=0.4)


def test_half_an_answer_is_none(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start()

    with pytest.raises(Unanswered, match="model process exited"):
        ask(fleet, b"half")


def test_a_server_that_leaks_is_ended_and_started_again(make_fleet: MakeFleet, streams: Streams) -> None:
    fleet = make_fleet(spec(memory_bytes=128 << 20))
    fleet.start()
    before = ask(fleet)
    fleet.cap_memory()
    assert ask(fleet) == before
    for _ in range(2):
        ask(fleet, b"leak")

    fleet.cap_memory()

    assert streams.wait_for(lambda: sum("serving" in line for line in streams.all) == 2)
    [instance] = fleet
    assert instance.wait_ready(10)
    assert ask(fleet) != before
    assert any(
        "The model server was ended: it used 0.1" in line and "its instance type has 0.12 GiB" in line
        for line in streams.all
    )


def test_connections_are_kept_and_errors_are_answers(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start()
    [instance] = fleet

    statuses = [instance.request("POST", "/invocations", {}, body).status for body in (b"", b"bad", b"")]

    assert statuses == [200, 400, 200]
    assert instance.kept_connections == 1


def test_the_least_busy_instance_answers(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(spec(instances=3))
    fleet.start()

    first, second, third = (fleet.acquire("main") for _ in range(3))
    fleet.release(second)

    assert len({first.id, second.id, third.id}) == 3
    assert fleet.acquire("main") is second


def test_draining_waits_for_outstanding_requests(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start()
    busy = fleet.acquire("main")
    assert not fleet.drain(0.05)

    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(fleet.drain, 10)
        fleet.release(busy)
        assert drained.result()


def test_a_fleet_grows_and_shrinks_without_losing_what_it_was_asked(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start()
    fleet.grow({"main": 3})
    assert fleet.healthy() == {"main": 3}
    busy = [fleet.acquire("main") for _ in range(3)]

    with ThreadPoolExecutor(1) as pool:
        shrunk = pool.submit(fleet.shrink, {"main": 1})
        answers = [instance.request("POST", "/invocations", {}, b"", 10).status for instance in busy]
        assert not shrunk.done()
        for instance in busy:
            fleet.release(instance)
        shrunk.result(10)

    assert answers == [200, 200, 200]
    assert fleet.healthy() == {"main": 1}
    assert len(list(fleet.folder.glob("main/*"))) == 1


def test_a_batch_that_does_not_come_up_leaves_the_fleet_as_it_was(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start()

    with pytest.raises(FleetFailed, match="the alarm rings"):
        fleet.grow({"main": 3}, lambda: "the alarm rings")

    assert fleet.healthy() == {"main": 1}
    assert living(ask(fleet))


def test_the_cause_of_a_failure_is_the_last_traceback() -> None:
    log = [
        "starting",
        "Traceback (most recent call last):",
        '  File "a.py", line 1',
        "KeyError: 'old'",
        "retrying",
        "Traceback (most recent call last):",
        '  File "b.py", line 2',
        "",
        "ValueError: new",
        "bye",
    ]

    assert last_traceback(log)[-1] == "ValueError: new"
    assert last_traceback(["no", "trace"]) == []
    long = with_cause("Head.", ["Traceback (most recent call last):", "  x" * 2000, "OSError: the end"])
    assert len(long) == 1024
    assert long.startswith("Head.")
    assert long.endswith("OSError: the end")
