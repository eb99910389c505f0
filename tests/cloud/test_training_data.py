"""Channels in every mode that SageMaker has and the local cloud does, as a script finds them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.cloud.conftest import Rig
from tests.cloud.test_training import channel, logged, run

LIST = """
import json, os, pathlib
root = pathlib.Path(os.environ["SM_CHANNEL_TRAINING"])
files = {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}
config = json.loads(os.environ["SM_INPUT_DATA_CONFIG"])
print(json.dumps({"host": os.environ["SM_CURRENT_HOST"], "files": files, "config": config}))
"""
READ_TWICE = """
import json, os
epochs = [open(f"/opt/ml/input/data/training_{n}", "rb").read().decode() for n in range(2)]
first_bytes = open("/opt/ml/input/data/training_2", "rb").read(1).decode()   # has enough, and closes
epochs.append(open("/opt/ml/input/data/training_3", "rb").read().decode())
print(json.dumps([epochs, first_bytes]))
"""


def seen(rig: Rig, described: dict[str, Any]) -> list[dict[str, Any]]:
    """What each host printed, by host."""
    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    found = [json.loads(line) for line in logged(rig, described["TrainingJobName"]) if line.startswith("{")]
    return sorted(found, key=lambda each: str(each["host"]))


@pytest.fixture(scope="module")
def prefix(rig: Rig) -> str:
    """Five objects: 0.txt to 4.txt."""
    for number in range(5):
        rig.upload(f"numbers/{number}.txt", f"n{number};".encode())
    return f"s3://{rig.bucket}/numbers"


def test_shards_are_disjoint_and_complete(rig: Rig, prefix: str) -> None:
    sharded = channel(prefix, source={"S3DataDistributionType": "ShardedByS3Key"})
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}

    hosts = seen(rig, run(rig, LIST, InputDataConfig=sharded, ResourceConfig=resources))

    assert [sorted(host["files"]) for host in hosts] == [["0.txt", "2.txt", "4.txt"], ["1.txt", "3.txt"]]
    assert hosts[0]["config"]["training"]["S3DistributionType"] == "ShardedByS3Key"


def test_a_manifest_names_its_files(rig: Rig, prefix: str) -> None:
    listed = [{"prefix": f"{prefix}/"}, "3.txt", "1.txt"]
    uri = rig.upload("manifests/two.json", json.dumps(listed).encode())

    [host] = seen(rig, run(rig, LIST, InputDataConfig=channel(uri, source={"S3DataType": "ManifestFile"})))

    assert host["files"] == {"1.txt": "n1;", "3.txt": "n3;"}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"no json", "is not JSON"),
        (b'["a.txt"]', "must be a JSON list"),
        (json.dumps([{"prefix": "s3://no-such-bucket-here/"}, "a"]).encode(), "does not exist"),
        (json.dumps([{"prefix": "s3://no-such-bucket-here/"}, "../../a"]).encode(), "does not exist"),
    ],
)
def test_a_manifest_that_is_none_fails_the_job_with_its_name(rig: Rig, manifest: bytes, message: str) -> None:
    uri = rig.upload("manifests/bad.json", manifest)

    described = run(rig, LIST, InputDataConfig=channel(uri, source={"S3DataType": "ManifestFile"}))

    assert described["TrainingJobStatus"] == "Failed"
    assert described["FailureReason"].startswith("ClientError: Data download failed for channel 'training': ")
    assert message in described["FailureReason"]


def test_fast_file_looks_like_files(rig: Rig, prefix: str) -> None:
    [host] = seen(rig, run(rig, LIST, InputDataConfig=channel(prefix, InputMode="FastFile")))

    assert len(host["files"]) == 5
    assert host["config"]["training"]["TrainingInputMode"] == "File"


def test_a_pipe_gives_everything_once_for_each_epoch(rig: Rig, prefix: str) -> None:
    described = run(rig, READ_TWICE, InputDataConfig=channel(prefix, InputMode="Pipe"))

    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    epochs, first = json.loads(logged(rig, described["TrainingJobName"])[0])
    assert epochs == ["n0;n1;n2;n3;n4;"] * 3
    assert first == "n"


def test_a_pipe_decompresses(rig: Rig) -> None:
    for number in range(2):
        rig.upload(f"zipped/{number}.gz", gzip.compress(f"part {number};".encode()))
    zipped = channel(f"s3://{rig.bucket}/zipped", InputMode="Pipe", CompressionType="Gzip")
    script = "print(open('/opt/ml/input/data/training_0').read())"

    described = run(rig, script, InputDataConfig=zipped)

    assert logged(rig, described["TrainingJobName"]) == ["part 0;part 1;"]


def test_a_pipe_of_what_is_not_gzip_fails_the_job_even_when_its_script_is_content(rig: Rig) -> None:
    rig.upload("half-zipped/a.gz", gzip.compress(b"fine;"))
    uri = rig.upload("half-zipped/b.gz", b"not compressed")
    zipped = channel(f"s3://{rig.bucket}/half-zipped", InputMode="Pipe", CompressionType="Gzip")

    described = run(rig, "open('/opt/ml/input/data/training_0').read()", InputDataConfig=zipped)

    assert described["TrainingJobStatus"] == "Failed"
    assert described["FailureReason"].startswith(
        f"ClientError: Data download failed for channel 'training': '{uri}' is not compressed with gzip"
    )


def test_a_pipe_shuffles_differently_for_each_epoch_and_alike_for_each_seed(rig: Rig, prefix: str) -> None:
    shuffled = channel(prefix, InputMode="Pipe", ShuffleConfig={"Seed": 7})

    jobs = [run(rig, READ_TWICE, InputDataConfig=shuffled) for _ in range(2)]

    first, second = (json.loads(logged(rig, job["TrainingJobName"])[0])[0] for job in jobs)
    assert first == second
    assert len(set(first)) > 1
    assert all(sorted(epoch.split(";")) == ["", "n0", "n1", "n2", "n3", "n4"] for epoch in first)


def test_a_pipe_that_nobody_reads_does_not_keep_the_job(rig: Rig, prefix: str) -> None:
    described = run(rig, "print('not interested')", InputDataConfig=channel(prefix, InputMode="Pipe"))

    assert described["TrainingJobStatus"] == "Completed"
