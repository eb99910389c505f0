"""How servers of two workers end, and what their callers see of it: nothing that was accepted is lost without a word."""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.unit.runtime.serving import DEADLINE_SECONDS, Server, Start

TWO = {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
MODEL = """
    import os, threading
    def model_fn(model_dir):
        if os.path.exists(model_dir + "/slow"):
            with open(model_dir + "/gate") as gate:
                gate.read()
        return model_dir
    def transform_fn(model, body, content_type, accept):
        if body == "hang":
            with open(model + "/gate") as gate:
                gate.read()
            threading.Event().wait()
        if body == "stream":
            def parts():
                yield "first "
                with open(model + "/gate") as gate:
                    yield gate.read()
            return parts()
        return str(os.getpid())
"""
KINDS = pytest.mark.parametrize("kind", ["thread", "process", "spawn"])


def started(start: Start, kind: str, **more: str) -> Server:
    running = start(MODEL, WINDLASS_WORKER_KIND=kind, **TWO, **more).listen()
    for _ in range(1 if kind == "thread" else 2):
        running.event("worker ready")
    return running


def call_until_told(server: Server, outcomes: list[tuple[int, str]]) -> None:
    """Ask again and again, until the server says that it takes no more, or listens no more."""
    with httpx.Client(base_url=server.client.base_url, timeout=DEADLINE_SECONDS) as client:
        while True:
            try:
                reply = client.post("/invocations", content=b"1", headers={"content-type": "application/json"})
            except httpx.ConnectError:
                return
            outcomes.append((reply.status_code, reply.text))
            if reply.headers.get("connection") == "close":
                return


@KINDS
def test_sigterm_under_load_loses_nothing(start: Start, kind: str) -> None:
    running = started(start, kind)
    outcomes: list[tuple[int, str]] = []
    with ThreadPoolExecutor(16) as pool:
        callers = [pool.submit(call_until_told, running, outcomes) for _ in range(16)]
        for _ in range(200):
            running.event("request")
        running.process.terminate()
        running.process.terminate()  # once more changes nothing
        for caller in callers:
            caller.result(DEADLINE_SECONDS)
    assert running.exit() == (0, "")
    assert {status for status, _ in outcomes} <= {200, 503}
    assert sum(status == 503 for status, _ in outcomes) <= 16


@KINDS
def test_a_worker_that_is_killed_under_load_fails_its_own_requests_alone(start: Start, kind: str) -> None:
    running = started(start, kind)
    outcomes: list[tuple[int, str]] = []
    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call_until_told, running, outcomes) for _ in range(8)]
        for _ in range(3):
            for _ in range(50):
                running.event("request", status=200)
            answered = [text for status, text in outcomes if status == 200]
            os.kill(int(answered[-1]), signal.SIGKILL)
            running.event("worker ready")
        running.process.terminate()
        for caller in callers:
            caller.result(DEADLINE_SECONDS)
    assert running.exit()[0] == 0
    failed = Counter(text for status, text in outcomes if status not in (200, 503))
    assert set(failed) <= {"the model's process ended with signal 9 (SIGKILL) during this request.\n"}
    assert failed.total() <= 3 * (2 if kind == "thread" else 1)


@KINDS
def test_sigterm_lets_a_stream_end(start: Start, kind: str) -> None:
    running = started(start, kind)
    headers = {"content-type": "application/json"}
    with running.client.stream("POST", "/invocations", content=b"stream", headers=headers) as reply:
        parts = reply.iter_text()
        first = next(parts)
        with running.open_gate() as gate:
            running.process.terminate()
            running.event("draining")
            gate.write("last")
        assert first + "".join(parts) == "first last"
    assert running.exit() == (0, "")


@KINDS
def test_sigterm_while_the_workers_start(start: Start, kind: str) -> None:
    def slow(model: os.PathLike[str]) -> None:
        with open(os.fspath(model) + "/slow", "w"):  # noqa: PTH123
            pass

    running = start(MODEL, slow, WINDLASS_WORKER_KIND=kind, **TWO).listen()
    with running.open_gate():  # model_fn waits
        assert running.invoke(b"1").status_code == 503
        running.process.terminate()
        assert running.exit() == (0, "")


@KINDS
def test_sigterm_with_a_worker_that_hangs(start: Start, kind: str) -> None:
    """It is given the grace, is answered a 503, and does not outlive the server."""
    running = started(start, kind, WINDLASS_DRAIN_SECONDS="1")
    pid = int(running.invoke(b"1").text)
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(running.invoke, b"hang")
        running.open_gate().close()
        while running.invoke(b"1").status_code != 200:
            pass
        running.process.terminate()
        assert hung.result(DEADLINE_SECONDS).status_code == 503
    code, stderr = running.exit()
    assert (code, "abandoned" in stderr) == (1, True)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
