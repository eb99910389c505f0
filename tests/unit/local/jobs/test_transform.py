"""Transform jobs at limits that a test on a shared machine must set lower than an instance type's own."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.local.jobs.test_training import REGION, SmallCloud, cloud, until
from windlass.local import storage
from windlass.local.jobs.transform import TransformJobs

if os.name != "posix":
    pytest.skip("processes of jobs need POSIX", allow_module_level=True)

__all__ = ["cloud"]

ROLE = "arn:aws:iam::123456789012:role/any"
CODE = """
import pathlib, time
def model_fn(folder): return None
def input_fn(body, kind): return body if isinstance(body, str) else body.decode()
def predict_fn(text, model):
    if "greedy" in text:
        food = bytearray(900_000_000)
        time.sleep(600)
    marker = pathlib.Path(text.strip())
    marker.with_suffix(".started").touch()
    while not marker.exists(): time.sleep(0.02)
    return "done"
def output_fn(said, accept): return said, accept
"""


@pytest.fixture
def transform(cloud: SmallCloud) -> Iterator[TransformJobs]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("code/inference.py")
        member.size = len(CODE)
        tar.addfile(member, io.BytesIO(CODE.encode()))
    storage.write("s3://bucket/model.tar.gz", packed.getvalue())
    model = SimpleNamespace(
        name="model",
        container={"Image": "image", "ModelDataUrl": "s3://bucket/model.tar.gz"},
        request={"ExecutionRoleArn": ROLE},
    )
    configs = SimpleNamespace(model=lambda region, name: model)
    cloud.hosting = SimpleNamespace(configs=configs)  # type: ignore[attr-defined]
    transform = TransformJobs(cloud, slots=2, memory_bytes=700_000_000)  # type: ignore[arg-type]
    yield transform
    transform.close()


def request(name: str, record: str) -> dict[str, Any]:
    storage.write(f"s3://bucket/{name}/in.txt", record.encode())
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://bucket/{name}/"}
    return {
        "TransformJobName": name,
        "ModelName": "model",
        "TransformInput": {"DataSource": {"S3DataSource": source}, "ContentType": "text/plain"},
        "TransformOutput": {"S3OutputPath": "s3://bucket/out"},
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
    }


def test_a_job_whose_model_takes_too_much_memory_fails_alone_and_says_so(
    transform: TransformJobs, cloud: SmallCloud
) -> None:
    marker = cloud.state / "go-on"
    transform.create(REGION, request("modest", str(marker)))
    until(marker.with_suffix(".started").exists)

    transform.create(REGION, request("greedy", "greedy"))

    assert transform.wait(REGION, "greedy", 30) == "Failed"
    reason = transform.describe(REGION, "greedy")["FailureReason"]
    assert reason.startswith("ClientError: Please use an instance type with more memory")
    assert "algo-1 used" in reason
    assert transform.describe(REGION, "modest")["TransformJobStatus"] == "InProgress"
    marker.touch()
    assert transform.wait(REGION, "modest", 30) == "Completed"
    assert storage.read("s3://bucket/out/in.txt.out") == b"done"
