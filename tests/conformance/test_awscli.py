"""The AWS CLI, as it is, with nothing but the exports of `windlass local up`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cloud import test_pipelines as pipelines
from tests.cloud import test_processing as processing
from tests.cloud import test_transform as transform
from tests.cloud import test_tuning as tuning
from tests.cloud.conftest import Rig
from tests.cloud.test_training import SAVE, request
from tests.conformance.conftest import Foreign


class Aws(Foreign):
    def __call__(self, *arguments: str) -> Any:
        """What a command prints, read as JSON where it is."""
        done = self.run("aws", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout

    def refused(self, *arguments: str) -> str:
        done = self.run("aws", *arguments)
        assert done.returncode != 0, done.stdout
        return done.stderr


@pytest.fixture(scope="module")
def aws(rig: Rig) -> Aws:
    return Aws("awscli", rig)


def test_files_go_to_s3_and_come_back(aws: Aws, rig: Rig, tmp_path: Path) -> None:
    folder, prefix = tmp_path / "up", f"s3://{rig.bucket}/{rig.unique('cli')}"
    (folder / "sub").mkdir(parents=True)
    (folder / "small.txt").write_text("text")
    (folder / "sub" / "large.bin").write_bytes(os.urandom(20 << 20))

    aws("s3", "sync", str(folder), prefix)
    assert "sub/large.bin" in aws("s3", "ls", "--recursive", prefix)
    aws("s3", "sync", prefix, str(tmp_path / "down"))
    aws("s3", "rm", "--recursive", prefix)

    for name in ("small.txt", "sub/large.bin"):
        assert (tmp_path / "down" / name).read_bytes() == (folder / name).read_bytes()
    assert "sub/large.bin" not in aws.refused("s3", "ls", "--recursive", prefix)


def test_a_training_job_from_its_request_to_its_log(aws: Aws, rig: Rig, tmp_path: Path) -> None:
    asked = request(rig, SAVE.format("x") + "print('trained by the CLI')\n")
    (tmp_path / "request.json").write_text(json.dumps(asked))
    job = asked["TrainingJobName"]

    created = aws("sagemaker", "create-training-job", "--cli-input-json", f"file://{tmp_path}/request.json")
    rig.client("sagemaker").get_waiter("training_job_completed_or_stopped").wait(
        TrainingJobName=job, WaiterConfig={"Delay": 0.1, "MaxAttempts": 300}
    )
    aws("sagemaker", "wait", "training-job-completed-or-stopped", "--training-job-name", job)

    described = aws("sagemaker", "describe-training-job", "--training-job-name", job)
    assert (described["TrainingJobArn"], described["TrainingJobStatus"]) == (created["TrainingJobArn"], "Completed")
    listed = aws("sagemaker", "list-training-jobs", "--name-contains", job)
    assert [each["TrainingJobName"] for each in listed["TrainingJobSummaries"]] == [job]
    group = ["--log-group-name", "/aws/sagemaker/TrainingJobs"]
    events = aws("logs", "filter-log-events", *group, "--log-stream-name-prefix", job)["events"]
    assert "trained by the CLI" in [event["message"] for event in events]


def test_jobs_of_every_other_kind_and_a_pipeline(aws: Aws, rig: Rig, tmp_path: Path) -> None:
    sagemaker = rig.client("sagemaker")
    model, data = rig.unique("cli"), rig.upload_source({"code/inference.py": transform.CODE})
    sagemaker.create_model(
        ModelName=model, ExecutionRoleArn=rig.role, PrimaryContainer={"Image": "image", "ModelDataUrl": data}
    )
    given = tuning.definition(rig, lambda script: rig.upload_source({"train.py": script}))
    search = {"HyperParameterTuningJobConfig": tuning.config(most=1, limits={"MaxParallelTrainingJobs": 1})}
    step = pipelines.Site(rig).process("Only", "print('stepped')")
    asked = {
        "processing": processing.request(rig, "print('processed')"),
        "transform": transform.request(rig, model, {"a.csv": b"1,2\n"}),
        "hyper-parameter-tuning": {
            "HyperParameterTuningJobName": rig.unique("cli"),
            "TrainingJobDefinition": given,
            **search,
        },
    }
    ended = {}
    for kind, body in asked.items():
        (tmp_path / "request.json").write_text(json.dumps(body))
        aws("sagemaker", f"create-{kind}-job", "--cli-input-json", f"file://{tmp_path}/request.json")
    for kind, finish in (("processing", processing), ("transform", transform), ("hyper-parameter-tuning", tuning)):
        noun = f"{kind.title().replace('-', '')}Job"
        name = asked[kind][f"{noun}Name"]
        finish.finish(rig, name)
        described = aws("sagemaker", f"describe-{kind}-job", f"--{kind}-job-name", name)
        ended[kind] = described[f"{noun}Status"]
    assert ended == dict.fromkeys(asked, "Completed")

    pipeline = rig.unique("cli")
    (tmp_path / "pipeline.json").write_text(pipelines.definition(step))
    aws(
        *("sagemaker", "create-pipeline", "--pipeline-name", pipeline, "--role-arn", rig.role),
        *("--pipeline-definition", f"file://{tmp_path}/pipeline.json"),
    )
    execution = aws("sagemaker", "start-pipeline-execution", "--pipeline-name", pipeline)["PipelineExecutionArn"]
    pipelines.Site(rig).finish(execution)
    listed = aws("sagemaker", "list-pipeline-execution-steps", "--pipeline-execution-arn", execution)
    assert [(each["StepName"], each["StepStatus"]) for each in listed["PipelineExecutionSteps"]] == [
        ("Only", "Succeeded")
    ]


def test_metrics_and_alarms(aws: Aws, rig: Rig) -> None:
    alarm = rig.unique("cli")
    aws("cloudwatch", "put-metric-data", "--namespace", alarm, "--metric-name", "M", "--value", "2.5")
    aws(
        *("cloudwatch", "put-metric-alarm", "--alarm-name", alarm, "--namespace", alarm, "--metric-name", "M"),
        *("--statistic", "Maximum", "--period", "60", "--evaluation-periods", "1", "--threshold", "9"),
        *("--comparison-operator", "GreaterThanThreshold"),
    )

    assert [each["MetricName"] for each in aws("cloudwatch", "list-metrics", "--namespace", alarm)["Metrics"]] == ["M"]
    described = aws("cloudwatch", "describe-alarms", "--alarm-names", alarm)["MetricAlarms"]
    assert [(each["AlarmName"], each["Threshold"]) for each in described] == [(alarm, 9.0)]


def test_errors_are_awss(aws: Aws) -> None:
    assert "(ValidationException)" in aws.refused("sagemaker", "describe-endpoint", "--endpoint-name", "none")
    unknown = aws.refused("sagemaker", "list-clusters")
    assert "(UnknownOperationException)" in unknown
    assert "ListClusters" in unknown
    assert "(404)" in aws.refused("s3api", "head-bucket", "--bucket", "no-such-bucket-here")
