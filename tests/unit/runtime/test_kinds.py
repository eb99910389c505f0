"""What the workers are: threads, forks or processes that each load the model; and what each costs and survives."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.runtime.serving import DEADLINE_SECONDS, Server, Start
from windlass.runtime import memory
from windlass.runtime.settings import BadSetting, Settings
from windlass.runtime.workers import environment

TWO = {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
# Says which process and thread answered, and how often the model was loaded. Both workers must be there for "meet".
WHO = """
    import json, os, threading
    THREAD_SAFE
    barrier = threading.Barrier(2)
    def model_fn(model_dir):
        with open(model_dir + "/loads", "a") as loads:
            loads.write("x")
        return model_dir
    def model_warmup_fn(model_dir, model):
        open(model + "/warm", "a").close()
    def transform_fn(model, body, content_type, accept):
        if body == "die":
            os.abort()
        if body == "hang":
            threading.Event().wait()
        if body == "meet":
            barrier.wait(20)
        if body == "gate" and not os.path.exists(model + "/waited"):
            open(model + "/waited", "w").close()
            with open(model + "/gate") as gate:
                gate.read()
        return json.dumps([os.getpid(), threading.current_thread() is threading.main_thread()])
"""


def who(threads: bool = False) -> str:
    return WHO.replace("THREAD_SAFE", f"thread_safe = {threads}")


def loads(server: Server) -> int:
    return len((server.base / "model" / "loads").read_text())


def ready(server: Server, workers: int) -> list[dict[str, Any]]:
    """The log lines of so many workers."""
    server.listen()
    return [server.event("worker ready") for _ in range(workers)]


def answering(server: Server, count: int) -> set[int]:
    """The processes that answer, once there are so many of them."""
    deadline, pids = time.monotonic() + DEADLINE_SECONDS, set[int]()
    with ThreadPoolExecutor(8) as threads:
        while len(pids) < count:
            pids |= {reply.json()[0] for reply in threads.map(server.invoke, [b"1"] * 16)}
            assert time.monotonic() < deadline, pids
    return pids


def test_processes_are_forked_from_one_that_is_loaded_and_warm(start: Start) -> None:
    running = start(who(), SAGEMAKER_MODEL_SERVER_WORKERS="3")
    lines = ready(running, 3)
    assert {line["kind"] for line in lines} == {"fork"}
    assert answering(running, 3) == {line["pid"] for line in lines}
    assert loads(running) == 1
    assert (running.base / "model" / "warm").exists()


def test_threads_where_the_code_says_that_it_is_safe(start: Start) -> None:
    running = start(who(threads=True), **TWO)
    assert ready(running, 1)[0]["kind"] == "thread"
    with ThreadPoolExecutor(2) as threads:
        replies = [reply.json() for reply in threads.map(running.invoke, [b"meet"] * 2)]
    assert replies[0] == replies[1]
    assert replies[0][1] is False
    assert "windlass_workers 2" in running.client.get("/metrics").text.splitlines()


@pytest.mark.parametrize(
    ("asked", "safe", "kind", "times"),
    [("process", True, "fork", 1), ("spawn", True, "spawn", 2), ("thread", False, "thread", 1)],
)
def test_the_host_has_the_last_word(start: Start, asked: str, safe: bool, kind: str, times: int) -> None:
    running = start(who(safe), WINDLASS_WORKER_KIND=asked, **TWO)
    assert {line["kind"] for line in ready(running, 1 if kind == "thread" else 2)} == {kind}
    assert loads(running) == times


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(BadSetting, match="WINDLASS_WORKER_KIND='fibre' is not one of auto, thread, process, spawn"):
        Settings.read({"WINDLASS_WORKER_KIND": "fibre"})


@pytest.mark.parametrize(
    ("holds", "why"),
    [
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "1 threads of its own"),
        ("held = open(__file__)", "holds open .*inference.py"),
        ("import socket; held = socket.socketpair()", "holds open socket:"),
    ],
    ids=["a thread", "a file", "a socket"],
)
def test_what_does_not_survive_a_fork_is_not_forked(start: Start, holds: str, why: str) -> None:
    running = start(f"{who()}\n    {holds}\n", **TWO)
    first, second = ready(running, 2)
    assert (first["kind"], second["kind"], loads(running)) == ("spawn", "spawn", 2)
    assert re.search(why, first["why"])
    assert len(answering(running, 2)) == 2


# --- what they survive


@pytest.mark.parametrize("threads", [False, True], ids=["forks", "threads"])
def test_a_crash_fails_the_one_request_that_crashed(start: Start, threads: bool) -> None:
    running = start(who(threads), **TWO)
    ready(running, 1 if threads else 2)
    with ThreadPoolExecutor(2) as callers:
        beside = callers.submit(running.invoke, b"gate")
        with running.open_gate():
            died = callers.submit(running.invoke, b"die")
            assert running.event("worker died")["ended"] == "signal 6 (SIGABRT)"
        assert beside.result(DEADLINE_SECONDS).status_code == 200
        failed = died.result(DEADLINE_SECONDS)
    assert failed.status_code == 500
    assert failed.text == "the model's process ended with signal 6 (SIGABRT) during this request.\n"
    assert len(answering(running, 1 if threads else 2)) == (1 if threads else 2)
    assert loads(running) == (3 if threads else 1)  # what was asked once more died once more


@pytest.mark.parametrize("threads", [False, True], ids=["forks", "threads"])
def test_a_hang_is_a_504_and_its_process_is_replaced(start: Start, threads: bool) -> None:
    running = start(who(threads), SAGEMAKER_MODEL_SERVER_TIMEOUT="1", **TWO)
    before = {line["pid"] for line in ready(running, 1 if threads else 2)}
    assert running.invoke(b"hang").status_code == 504
    running.event("worker hung")
    new = running.event("worker ready")["pid"]
    assert new not in before
    assert new in answering(running, 1 if threads else 2)


def children(server: Server) -> set[int]:
    pid = server.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def ended(pids: set[int]) -> None:
    """Wait until the processes are no more."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(handle) as opened:
            assert select.select([opened], [], [], DEADLINE_SECONDS)[0]


def test_a_template_that_dies_takes_no_worker_with_it_and_is_made_anew(start: Start) -> None:
    running = start(who(), **TWO)
    workers = {line["pid"] for line in ready(running, 2)}
    (template,) = children(running) - workers
    os.kill(template, signal.SIGKILL)
    running.event("template died")
    assert answering(running, 2) == workers
    lost = min(workers)
    os.kill(lost, signal.SIGKILL)
    new = running.event("worker ready")["pid"]
    assert answering(running, 2) == {*workers, new} - {lost}
    assert loads(running) == 2
    os.kill(new, signal.SIGKILL)
    running.event("worker ready")
    assert loads(running) == 2  # forked again


@pytest.mark.parametrize("threads", [False, True], ids=["forks", "threads"])
def test_no_process_outlives_the_server_however_it_ends(start: Start, threads: bool) -> None:
    running = start(who(threads), **TWO)
    ready(running, 1 if threads else 2)
    family = children(running)
    with ThreadPoolExecutor(1) as callers:
        busy = callers.submit(running.invoke, b"gate")
        with running.open_gate():
            running.process.kill()
            ended(family)
        assert isinstance(busy.exception(DEADLINE_SECONDS), httpx.HTTPError)


@pytest.mark.parametrize("threads", [False, True], ids=["forks", "threads"])
def test_workers_that_die_leave_no_file_open_and_no_process_behind(start: Start, threads: bool) -> None:
    running = start(who(threads), **TWO)
    pid = ready(running, 1 if threads else 2)[-1]["pid"]
    files = Path(f"/proc/{running.process.pid}/fd")

    def deaths(count: int, pid: int) -> tuple[int, int, int]:
        for _ in range(count):
            os.kill(pid, signal.SIGKILL)
            pid = running.event("worker ready")["pid"]
        return pid, len(list(files.iterdir())), len(children(running))

    pid, *before = deaths(1, pid)
    assert deaths(5, pid)[1:] == tuple(before)


# --- what they cost

WEIGHTS_MIB = 128


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({"weight": torch.zeros(WEIGHTS_MIB << 8, 1024)}, path)  # of 4 bytes each
    return path


def test_workers_cost_the_weights_once(start: Start, weights: Path) -> None:
    """Also where the code copies them into its own memory, as most does."""
    source = """
        import torch
        from safetensors.torch import load_file
        def model_fn(model_dir):
            model = torch.nn.Linear(1024, WEIGHTS, bias=False)
            model.load_state_dict(load_file(model_dir + "/model.safetensors"))
            return model.eval()
        def transform_fn(model, body, content_type, accept):
            with torch.inference_mode():
                return str(model(torch.zeros(1, 1024)).sum().item())
    """.replace("WEIGHTS", str(WEIGHTS_MIB << 8))

    def held(workers: int) -> int:
        def link(model: Path) -> None:
            (model / "model.safetensors").symlink_to(weights)

        running = start(source, link, SAGEMAKER_MODEL_SERVER_WORKERS=str(workers))
        ready(running, workers)
        with ThreadPoolExecutor(2 * workers) as callers:  # all have read all of the weights
            assert {reply.text for reply in callers.map(running.invoke, [b"1"] * 8 * workers)} == {"0.0"}
        return memory.held(children(running)) >> 20

    one, three = held(1), held(3)
    assert one > WEIGHTS_MIB
    assert three < one + WEIGHTS_MIB / 2


@pytest.mark.parametrize(
    ("workers", "cores", "said", "now", "later"),
    [
        (1, 8, {}, "8", "8"),
        (2, 8, {}, "1", "4"),
        (3, 8, {}, "1", "2"),
        (9, 8, {}, "1", "1"),
        (2, 8, {"OMP_NUM_THREADS": "3"}, "1", "3"),
        (2, 8, {"OMP_NUM_THREADS": "many"}, "1", "4"),
    ],
)
def test_the_workers_share_the_cores(workers: int, cores: int, said: dict[str, str], now: str, later: str) -> None:
    found = environment({"PATH": "/bin", **said}, workers, cores, shared=False)
    assert (found["OMP_NUM_THREADS"], found["WINDLASS_THREADS"], found["PATH"]) == (now, later, "/bin")


@pytest.mark.parametrize(
    ("workers", "shared", "said", "pinned"),
    [
        (2, False, {}, "1"),
        (8, False, {}, "1"),
        (1, False, {}, "0"),
        (3, False, {}, "0"),
        (2, True, {}, "0"),
        (2, False, {"WINDLASS_PIN_THREADS": "0"}, "0"),
        (2, True, {"WINDLASS_PIN_THREADS": "1"}, "1"),
        (2, False, {"OMP_NUM_THREADS": "3"}, "0"),
    ],
)
def test_threads_are_pinned_where_workers_have_all_cores(
    workers: int, shared: bool, said: dict[str, str], pinned: str
) -> None:
    assert environment(said, workers, 8, shared=shared)["WINDLASS_PIN_THREADS"] == pinned


@pytest.mark.parametrize("kind", ["process", "spawn", "thread"])
def test_each_worker_computes_with_its_share(start: Start, kind: str) -> None:
    pytest.importorskip("torch")
    running = start(
        """
        import json, os, torch
        def model_fn(model_dir): return None
        def transform_fn(model, body, content_type, accept):
            return json.dumps([torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]])
        """,
        WINDLASS_WORKER_KIND=kind,
        OMP_NUM_THREADS="3",
        **TWO,
    )
    ready(running, 1 if kind == "thread" else 2)
    assert running.invoke().json() == [3, "3"]
