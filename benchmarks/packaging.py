"""Bundles of 1 GiB of float32 weights and 200 small files: building, opening and publishing them.

    python -m benchmarks.packaging

Build: against what the official SDK does (tarfile "w:gz"), and against cp + sha256sum, which do no less than must be done.
Open: verify every byte and have the first tensor, against reading the weights once; both with nothing of them in memory yet.
Publish: to the S3 of a local cloud, through a relay that counts the bytes which leave; the first time, again, and with the code
changed. Each part runs in a process of its own, which reports its peak memory.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import numpy as np
from safetensors.numpy import save_file

from benchmarks.harness import Row, main
from benchmarks.wire import Wire
from windlass.local import LocalCloud

TENSORS = 64
FILES = 200
MEMORY = 200  # MB

BUILD = """
from windlass import artifact
def work(folder, archive):
    artifact.build(folder, archive)
"""
OPEN = """
import torch
from safetensors import safe_open
from windlass import artifact
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
def work(folder):
    artifact.open(folder)
    with safe_open(f"{folder}/model.safetensors", framework="pt", device=DEVICE) as weights:
        weights.get_tensor(weights.keys()[0]).sum().item()
"""
READ = """
def work(path):
    buffer = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
"""
PUBLISH = """
from windlass import artifact, publish
publish.aws.client("s3")
def work(folder, bucket, base):
    global said
    bundle = artifact.build(folder, cache=artifact.DigestCache())
    sent = publish.publish(bundle, f"s3://{bucket}/{bundle.digest}/", base=base)
    said = {"uri": sent.uri, "bytes": sent.bytes}
"""
# Imports are not what is measured; they are the same for one file and for a thousand. The peak is Linux's VmHWM: getrusage
# would count what the parent had at the fork.
TIMED = """
import json, re, sys, time
said = {}
%s
start = time.perf_counter()
work(*sys.argv[1:])
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"seconds": seconds, "peak": peak, **said}))
"""


def measure(quick: bool) -> list[Row]:
    size, rounds = (128 << 20, 3) if quick else (1 << 30, 3)
    with tempfile.TemporaryDirectory(prefix="packaging-") as name:
        scratch = Path(name)
        folder = scratch / "model"
        _make(folder, size)
        return [*_build(folder, scratch, rounds), *_open(scratch, rounds), *_publish(folder, scratch)]


def _make(folder: Path, size: int) -> None:
    """Weights as training leaves them, and as much code and text as goes along."""
    (folder / "code").mkdir(parents=True)
    noise = np.random.default_rng(0)
    shape = (size // TENSORS // 4096, 1024)
    weights = {f"layer.{n}": noise.standard_normal(shape, dtype=np.float32) * 0.02 for n in range(TENSORS)}
    save_file(weights, folder / "model.safetensors")
    source = Path(__file__).read_text(encoding="utf-8")
    for number in range(FILES):
        (folder / "code" / f"module_{number}.py").write_text(f"# {number}\n{source}", encoding="utf-8")


def _build(folder: Path, scratch: Path, rounds: int) -> list[Row]:
    archive, copy = scratch / "model.tar.gz", scratch / "copy"

    def ours() -> dict[str, Any]:
        archive.unlink(missing_ok=True)
        return _timed(BUILD, folder, archive)

    def copied() -> float:
        shutil.rmtree(copy, ignore_errors=True)
        start = time.perf_counter()
        subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
        files = [str(path) for path in copy.rglob("*") if path.is_file()]
        subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    ours(), copied()  # fill caches
    built, copies, tarfile_seconds = [], [], 0.0
    for turn in range(rounds):
        built.append(ours())
        copies.append(copied())
        # It takes a minute, in which a machine that does other things changes; so a part of it runs in each round.
        tarfile_seconds += _official(folder, scratch / "peer.tar.gz", turn, rounds)
    shutil.rmtree(copy)
    seconds = statistics.median(item["seconds"] for item in built)
    peak = max(item["peak"] for item in built)
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    mib = total / (1 << 20)
    gz, cp = "tarfile w:gz", "cp + sha256sum"
    return [
        Row("build model.tar.gz, speed", mib / seconds, mib / tarfile_seconds, gz, "MiB/s", ">= 20"),
        Row("build model.tar.gz, time", seconds, statistics.median(copies), cp, "s", "<= 1.5"),
        Row("size of model.tar.gz", archive.stat().st_size / (1 << 20), mib, "its files", "MiB", "<= 1.01"),
        Row("peak memory of a build", peak, MEMORY, "promised", "MB", "<= 1"),
    ]


def _official(folder: Path, dest: Path, turn: int, rounds: int) -> float:
    """Seconds that tarfile "w:gz" takes for one part in ``rounds`` of the weights and of the files."""
    weights = folder / "model.safetensors"
    start = time.perf_counter()
    with tarfile.open(dest, "w:gz") as tar, weights.open("rb") as file:
        size = weights.stat().st_size
        part = tarfile.TarInfo("model.safetensors")
        part.size = size * (turn + 1) // rounds - size * turn // rounds
        file.seek(size * turn // rounds)
        tar.addfile(part, file)
        for path in sorted((folder / "code").iterdir())[turn::rounds]:
            tar.add(path)
    seconds = time.perf_counter() - start
    dest.unlink()
    return seconds


def _open(scratch: Path, rounds: int) -> list[Row]:
    from windlass import artifact

    artifact.extract(scratch / "model.tar.gz", scratch / "opened")
    weights = scratch / "opened" / "model.safetensors"
    (scratch / "model.tar.gz").unlink()

    def cold(work: Callable[[], dict[str, Any]]) -> float:
        with weights.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return float(work()["seconds"])

    ours, reads = [], []
    for _ in range(rounds + 2):
        reads.append(cold(lambda: _timed(READ, weights)))
        ours.append(cold(lambda: _timed(OPEN, scratch / "opened")))
    shutil.rmtree(scratch / "opened")
    what = "open, verify, first tensor on device"
    return [Row(what, statistics.median(ours), statistics.median(reads), "reading the file once", "s", "<= 1.3")]


def _publish(folder: Path, scratch: Path) -> list[Row]:
    with LocalCloud.up(scratch / "cloud", lifeline=True) as cloud:
        address = urlsplit(cloud.url)
        with Wire(str(address.hostname), address.port or 80) as wire:
            environment = {**os.environ, **cloud.env, "AWS_ENDPOINT_URL": wire.url, "WINDLASS_CACHE": str(scratch)}
            # Explicit credentials: those of the environment are not there, or are somebody's real ones.
            s3 = boto3.client(
                "s3",
                endpoint_url=cloud.url,
                region_name=cloud.env["AWS_REGION"],
                aws_access_key_id=cloud.env["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=cloud.env["AWS_SECRET_ACCESS_KEY"],
            )
            s3.create_bucket(Bucket="models")

            def put(base: str = "") -> tuple[dict[str, Any], int]:
                before = wire.sent
                done = _timed(PUBLISH, folder, "models", base, environment=environment)
                return done, wire.sent - before

            first, _ = put()
            again, again_bytes = put()
            (folder / "code" / "module_0.py").write_text("changed = True\n", encoding="utf-8")
            _, code_bytes = put(first["uri"])
    kib = 1 << 10
    return [
        Row("peak memory of a publish", first["peak"], MEMORY, "promised", "MB", "<= 1"),
        Row("publish again, time", again["seconds"], 1, "promised", "s", "<= 1"),
        Row("publish again, bytes of bodies", again["bytes"], kib, "less than any tensor", "B", "<= 0"),
        Row("publish again, all bytes sent", again_bytes / kib, 16, "a few headers", "KiB", "<= 1"),
        Row("publish with changed code, bytes sent", code_bytes / kib, kib, "promised", "KiB", "<= 1"),
    ]


def _timed(work: str, *arguments: object, environment: dict[str, str] | None = None) -> dict[str, Any]:
    command = [sys.executable, "-c", TIMED % work, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"a measured process ended with {done.returncode}:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main("packaging", measure, packages=["windlass", "safetensors", "boto3"]))
