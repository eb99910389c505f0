"""What a training job costs in the local cloud: one alone, twenty at once, and the thousandth.

python -m benchmarks.local_jobs
python -m benchmarks.local_jobs --quick        # 200 jobs in place of 1,000

The two limits are promises in seconds, so their peer is the second. Growth compares a job in a local cloud that has run many
with one in a fresh local cloud, in turn.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3

from benchmarks.harness import Row, compare, main
from windlass.local import LocalCloud

SCRIPT = (
    "import os\nopen(os.path.join(os.environ['SM_MODEL_DIR'], 'model.txt'), 'w').write('trained')\nprint('loss=0.5')\n"
)
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}
POLL_SECONDS = 0.005
"""Much less than a job takes: a step of 20 ms made a job that took 2 ms longer look as if it took a quarter more."""


class Client:
    """Creates training jobs, and waits for them as a user's program would: by asking."""

    def __init__(self, cloud: LocalCloud) -> None:
        options: Any = {
            "endpoint_url": cloud.url,
            "region_name": cloud.region,
            "aws_access_key_id": "windlass-local",
            "aws_secret_access_key": "windlass-local",
        }
        self._sagemaker = boto3.client("sagemaker", **options)
        s3, iam = boto3.client("s3", **options), boto3.client("iam", **options)
        s3.create_bucket(Bucket="bench")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            member = tarfile.TarInfo("train.py")
            member.size = len(SCRIPT)
            tar.addfile(member, io.BytesIO(SCRIPT.encode()))
        s3.put_object(Bucket="bench", Key="source.tar.gz", Body=packed.getvalue())
        s3.put_object(Bucket="bench", Key="data/a.csv", Body=b"1,2,3\n")
        self._role = iam.create_role(RoleName="bench", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
        self._count = 0

    def create(self) -> str:
        """Start a trivial job: a channel, a script, a model, a metric. Returns its name."""
        self._count += 1
        name = f"job-{self._count}"
        self._sagemaker.create_training_job(
            TrainingJobName=name,
            RoleArn=self._role,
            AlgorithmSpecification={
                "TrainingImage": "pytorch",
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}],
            },
            HyperParameters={
                "sagemaker_program": "train.py",
                "sagemaker_submit_directory": "s3://bench/source.tar.gz",
            },
            InputDataConfig=[
                {
                    "ChannelName": "training",
                    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bench/data"}},
                }
            ],
            OutputDataConfig={"S3OutputPath": "s3://bench/output"},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            StoppingCondition={"MaxRuntimeInSeconds": 600},
        )
        return name

    def finish(self, name: str) -> None:
        """Return when it is Completed."""
        while True:
            described = self._sagemaker.describe_training_job(TrainingJobName=name)
            if described["TrainingJobStatus"] == "Completed":
                return
            if described["TrainingJobStatus"] != "InProgress":
                raise RuntimeError(f"{name} is {described['TrainingJobStatus']}: {described.get('FailureReason')}")
            time.sleep(POLL_SECONDS)

    def run(self, count: int = 1) -> float:
        """Seconds from the first CreateTrainingJob until that many are Completed."""
        began = time.perf_counter()
        for name in [self.create() for _ in range(count)]:
            self.finish(name)
        return time.perf_counter() - began


def measure(quick: bool) -> list[Row]:
    jobs, rounds = (200, 25) if quick else (1000, 50)
    with tempfile.TemporaryDirectory() as scratch:
        used_up = LocalCloud.up(Path(scratch) / "used", lifeline=True)
        fresh_up = LocalCloud.up(Path(scratch) / "fresh", lifeline=True)
        with used_up, fresh_up:
            used, fresh = Client(used_up), Client(fresh_up)
            used.run()  # imports, caches
            alone = statistics.median(used.run() for _ in range(9))
            together = used.run(20)
            for _ in range(jobs // 20):
                used.run(20)
            growth = compare(
                f"a job after {jobs} others",
                used.run,
                fresh.run,
                peer_name="in a fresh local cloud",
                unit="s",
                bound="<= 1.25",
                rounds=rounds,
            )
    return [
        Row("a trivial job, from CreateTrainingJob to Completed", alone, 1.0, "the second", "s", "<= 1.5"),
        Row("20 of them at once", together, 1.0, "the second", "s", "<= 20"),
        growth,
    ]


if __name__ == "__main__":
    sys.exit(main("local_jobs", measure, packages=["windlass", "moto", "boto3"]))
