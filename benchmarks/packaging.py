"""Bundles of 1 GiB of float32 weights and 200 small files: building, opening and publishing them.

    python -m benchmarks.packaging

Build: against what the official SDK does (tarfile "w:gz"), and against cp + sha256sum, which do no less than must be done.
Open: verify every byte and have the first tensor, against reading the weights once; both with nothing of them in memory yet.
The host of a virtual machine may still hold the file: reading then takes 0.3 s instead of 1.2, less than SHA-256 would on two
cores.
Publish: to the S3 of a local cloud, through a relay that counts the bytes which leave; the first time, again, and with the code
changed; as a prefix, and as an archive. An archive that goes up while it is written, against one that is written, then sent.
Each part runs in a process of its own, which reports its peak memory.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import numpy as np
from safetensors.numpy import save_file

from benchmarks.harness import Row, compare, main, touch_memory
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
# Out of memory just before the clock starts, after the imports: a virtual machine gives back to its host what has lain free for
# a second or two, and reading the same file then takes twice as long.
COLD = """
import os
def before(folder):
    with open(f"{folder}/model.safetensors", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
"""
OPEN = f"""
{COLD}
import torch
from safetensors import safe_open
from windlass import artifact
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
def work(folder):
    artifact.open(folder)
    with safe_open(f"{{folder}}/model.safetensors", framework="pt", device=DEVICE) as weights:
        weights.get_tensor(weights.keys()[0]).sum().item()
"""
READ = f"""
{COLD}
def work(folder):
    buffer = bytearray(1 << 20)
    with open(f"{{folder}}/model.safetensors", "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
"""
PUBLISH = """
from windlass import artifact, publish
publish.aws.client("s3")
def work(folder, bucket, base):
    global said
    bundle = artifact.build(folder, cache=artifact.DigestCache())
    sent = publish.publish(bundle, f"s3://{bucket}/{bundle.digest}/%s", base=base)
    said = {"uri": sent.uri, "bytes": sent.bytes}
"""
STREAM = """
from windlass import artifact, publish
publish.aws.client("s3")
def work(folder, bucket, key):
    publish.publish(artifact.build(folder), f"s3://{bucket}/{key}/model.tar.gz")
"""
THEN = """
from pathlib import Path
from windlass import artifact, publish
from windlass.plans import Upload
publish.aws.client("s3")
def work(folder, bucket, key):
    built = artifact.build(folder, Path(folder).with_name("built.tar.gz"))
    publish.aws.put(Upload(built.path, f"s3://{bucket}/{key}/model.tar.gz"))
    built.path.unlink()
"""
# Imports are not what is measured; they are the same for one file and for a thousand. The peak is Linux's VmHWM: getrusage
# would count what the parent had at the fork.
TIMED = """
import json, re, sys, time
said = {}
def before(*arguments): pass
%s
before(*sys.argv[1:])
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
        return [*_build(folder, scratch, rounds), *_open(scratch, rounds), *_publish(folder, scratch, rounds)]


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
    total = _size(folder)

    def ours() -> dict[str, Any]:
        archive.unlink(missing_ok=True)
        _settle(total)
        return _timed(BUILD, folder, archive)

    def copied() -> float:
        shutil.rmtree(copy, ignore_errors=True)
        _settle(total)
        start = time.perf_counter()
        subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
        files = [str(path) for path in copy.rglob("*") if path.is_file()]
        subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    ours(), copied()  # fill caches
    built, copies, tarfile_seconds = [], [], 0.0
    for turn in range(rounds):
        # Before and after, so that what else the machine does falls on both.
        built.append(ours())
        copies += [copied(), copied()]
        built.append(ours())
        # It takes a minute, in which a machine that does other things changes; so a part of it runs in each round.
        tarfile_seconds += _official(folder, scratch / "peer.tar.gz", turn, rounds)
    shutil.rmtree(copy)
    seconds = statistics.median(item["seconds"] for item in built)
    peak = max(item["peak"] for item in built)
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

    opened = scratch / "opened"
    artifact.extract(scratch / "model.tar.gz", opened)
    (scratch / "model.tar.gz").unlink()
    ours: list[float] = []
    reads: list[float] = []
    for turn in range(2 * rounds + 1):
        pair = [(reads, READ), (ours, OPEN)]
        for measured, work in pair if turn % 2 else reversed(pair):  # who reads second finds the disk's own cache warm
            measured.append(float(_timed(work, opened)["seconds"]))
    shutil.rmtree(opened)
    what = "open, verify, first tensor on device"
    return [Row(what, statistics.median(ours), statistics.median(reads), "reading the file once", "s", "<= 1.3")]


def _publish(folder: Path, scratch: Path, rounds: int) -> list[Row]:
    with LocalCloud.up(scratch / "cloud", lifeline=True) as cloud:
        address = urlsplit(cloud.url)
        with Wire(str(address.hostname), address.port or 80) as wire:
            environment = {**os.environ, **cloud.env, "WINDLASS_CACHE": str(scratch)}
            # Explicit credentials: those of the environment are not there, or are somebody's real ones.
            s3 = boto3.client(
                "s3",
                endpoint_url=cloud.url,
                region_name=cloud.env["AWS_REGION"],
                aws_access_key_id=cloud.env["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=cloud.env["AWS_SECRET_ACCESS_KEY"],
            )
            s3.create_bucket(Bucket="models")
            through = {**environment, "AWS_ENDPOINT_URL": wire.url}
            rows = _sent(folder, wire, through, "prefix", "") + _sent(folder, wire, through, "archive", "model.tar.gz")
        return [*rows, *_streamed(folder, environment, s3, rounds)]


def _sent(folder: Path, wire: Wire, environment: dict[str, str], form: str, name: str) -> list[Row]:
    """The first time, again, and with changed code."""

    def put(base: str = "") -> tuple[dict[str, Any], int]:
        before = wire.sent
        done = _timed(PUBLISH % name, folder, "models", base, environment=environment)
        return done, wire.sent - before

    first, _ = put()
    again, again_bytes = put()
    code = folder / "code" / "module_0.py"
    before = code.read_bytes()
    code.write_text("changed = True\n", encoding="utf-8")
    _, code_bytes = put(first["uri"])
    code.write_bytes(before)
    kib = 1 << 10
    return [
        Row(f"peak memory of a publish, {form}", first["peak"], MEMORY, "promised", "MB", "<= 1"),
        Row(f"publish again, time, {form}", again["seconds"], 1, "promised", "s", "<= 1"),
        Row(f"publish again, bytes of bodies, {form}", again["bytes"], kib, "less than any tensor", "B", "<= 0"),
        Row(f"publish again, all bytes sent, {form}", again_bytes / kib, 16, "a few headers", "KiB", "<= 1"),
        Row(f"publish with changed code, bytes sent, {form}", code_bytes / kib, kib, "promised", "KiB", "<= 1"),
    ]


def _streamed(folder: Path, environment: dict[str, str], s3: Any, rounds: int) -> list[Row]:
    keys = (f"{number}" for number in itertools.count())

    def run(work: str) -> float:
        key = next(keys)
        _settle(2 * _size(folder))
        seconds = float(_timed(work, folder, "models", key, environment=environment)["seconds"])
        s3.delete_object(Bucket="models", Key=f"{key}/model.tar.gz")
        return seconds

    what = "archive built and sent, while it is written"
    then = "written, then sent"
    return [
        compare(what, lambda: run(STREAM), lambda: run(THEN), peer_name=then, unit="s", bound="<= 1.1", rounds=rounds)
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _settle(written: int) -> None:
    """Before what writes that many bytes: what was written earlier is not for it to pay, nor memory that the host has."""
    os.sync()
    touch_memory(2 * written)


def _timed(work: str, *arguments: object, environment: dict[str, str] | None = None) -> dict[str, Any]:
    command = [sys.executable, "-c", TIMED % work, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"a measured process ended with {done.returncode}:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main("packaging", measure, packages=["windlass", "safetensors", "boto3"]))
