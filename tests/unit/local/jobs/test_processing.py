"""Processing jobs at limits that a test on a shared machine must set lower than an instance type's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.local.jobs.test_training import REGION, SmallCloud, cloud
from windlass.local.jobs.processing import ProcessingJobs

if os.name != "posix":
    pytest.skip("processes of jobs need POSIX", allow_module_level=True)

__all__ = ["cloud"]


@pytest.fixture
def processing(cloud: SmallCloud) -> Iterator[ProcessingJobs]:
    processing = ProcessingJobs(cloud, slots=2, memory_bytes=200_000_000)  # type: ignore[arg-type]
    yield processing
    processing.close()


def request(name: str, script: str) -> dict[str, Any]:
    cluster = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}
    return {
        "ProcessingJobName": name,
        "RoleArn": "arn:aws:iam::123456789012:role/any",
        "AppSpecification": {"ImageUri": "x", "ContainerEntrypoint": ["python3", "-c", script]},
        "ProcessingResources": {"ClusterConfig": cluster},
    }


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "import time; food = bytearray(300_000_000); time.sleep(600)",
            "ClientError: Please use an instance type with more memory",
        ),
        (
            "import os, time\n"
            "for n in range(6): os.posix_fallocate(os.open(f'{n}', 65), 0, 200_000_000)\n"
            "time.sleep(600)",
            "The job filled its disk: algo-1 holds 1.",
        ),
        (
            "import os\n"
            "for n in range(6): os.posix_fallocate(os.open(f'{n}', 65), 0, 200_000_000)\n"
            "raise OSError(28, 'No space left on device')",
            "The job filled its disk: algo-1 holds 1.",  # seen by who watches, or from the program's own end
        ),
    ],
)
def test_a_job_that_takes_too_much_fails_alone_and_says_so(
    processing: ProcessingJobs, script: str, reason: str
) -> None:
    processing.create(REGION, request("modest", "import time; time.sleep(600)"))

    processing.create(REGION, request("greedy", script))

    assert processing.wait(REGION, "greedy", 20) == "Failed"
    assert reason in processing.describe(REGION, "greedy")["FailureReason"]
    assert processing.describe(REGION, "modest")["ProcessingJobStatus"] == "InProgress"
