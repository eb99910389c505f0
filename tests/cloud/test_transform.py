"""CreateTransformJob sends what lies on S3 through a model's server, as seen through boto3."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.cloud.conftest import Rig

CODE = """
import os, time
def model_fn(model_dir):
    return int(os.environ.get("FACTOR", "2"))
def input_fn(body, content_type):
    return body if isinstance(body, str) else body.decode()
def predict_fn(text, factor):
    if "die" in text: os._exit(7)
    if "slow" in text: time.sleep(600)
    lines = text.split(chr(10))
    if "whole" in text: return f"whole of {len(lines)}"
    if "batch" in os.environ: return f"{len(lines)} records, {os.environ['SAGEMAKER_BATCH']}"
    return chr(10).join(str(sum(float(v) for v in line.split(",")) * factor) for line in lines)
def output_fn(prediction, accept):
    return prediction, accept
"""


@pytest.fixture(scope="module")
def model(rig: Rig) -> str:
    name = rig.unique("model")
    data = rig.upload_source({"code/inference.py": CODE})
    rig.client("sagemaker").create_model(
        ModelName=name, ExecutionRoleArn=rig.role, PrimaryContainer={"Image": "image", "ModelDataUrl": data}
    )
    return name


def request(rig: Rig, model: str, files: dict[str, bytes], **changes: Any) -> dict[str, Any]:
    """A CreateTransformJob request over these files, one CSV record a line."""
    name = rig.unique("transform")
    for key, body in files.items():
        rig.upload(f"{name}/in/{key}", body)
    given = {
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{rig.bucket}/{name}/in/"}},
        "ContentType": "text/csv",
        "SplitType": "Line",
        **changes.pop("given", {}),
    }
    target = {
        "S3OutputPath": f"s3://{rig.bucket}/{name}/out",
        "Accept": "text/csv",
        "AssembleWith": "Line",
        **changes.pop("target", {}),
    }
    return {
        "TransformJobName": name,
        "ModelName": model,
        "TransformInput": given,
        "TransformOutput": target,
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
        "ModelClientConfig": {"InvocationsMaxRetries": 0},
        **changes,
    }


def start(rig: Rig, model: str, files: dict[str, bytes], **changes: Any) -> str:
    asked = request(rig, model, files, **changes)
    rig.client("sagemaker").create_transform_job(**asked)
    return str(asked["TransformJobName"])


def finish(rig: Rig, job: str) -> dict[str, Any]:
    waiter = rig.client("sagemaker").get_waiter("transform_job_completed_or_stopped")
    try:
        waiter.wait(TransformJobName=job, WaiterConfig={"Delay": 0.05, "MaxAttempts": 1200})
    except Exception as error:
        if "terminal failure" not in str(error):
            raise
    described: dict[str, Any] = rig.client("sagemaker").describe_transform_job(TransformJobName=job)
    return described


def run(rig: Rig, model: str, files: dict[str, bytes], **changes: Any) -> dict[str, Any]:
    return finish(rig, start(rig, model, files, **changes))


def outputs(rig: Rig, job: dict[str, Any]) -> dict[str, str]:
    prefix = f"{job['TransformJobName']}/out/"
    found = rig.client("s3").list_objects_v2(Bucket=rig.bucket, Prefix=prefix).get("Contents", [])
    return {
        item["Key"].removeprefix(prefix): rig.download(f"s3://{rig.bucket}/{item['Key']}").decode() for item in found
    }


def logged(rig: Rig, job: str, suffix: str = "") -> list[str]:
    logs, group = rig.client("logs"), "/aws/sagemaker/TransformJobs"
    found = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")["logStreams"]
    names = [stream["logStreamName"] for stream in found if stream["logStreamName"].endswith(suffix)]
    pages = (logs.get_log_events(logGroupName=group, logStreamName=name, startFromHead=True) for name in names)
    return [event["message"] for page in pages for event in page["events"]]


def test_every_file_is_transformed_line_by_line(rig: Rig, model: str) -> None:
    files = {"a.csv": b"1,2\n3,4\n", "deep/b.csv": b"5,6"}

    job = run(
        rig,
        model,
        files,
        MaxConcurrentTransforms=2,
        MaxPayloadInMB=1,
        BatchStrategy="SingleRecord",
        Environment={"FACTOR": "10"},
        Tags=[{"Key": "team", "Value": "vision"}],
    )

    assert job["TransformJobStatus"] == "Completed"
    assert outputs(rig, job) == {"a.csv.out": "30.0\n70.0\n", "deep/b.csv.out": "110.0\n"}
    assert job["CreationTime"] <= job["TransformStartTime"] <= job["TransformEndTime"]
    assert job["DataProcessing"] == {"InputFilter": "$", "OutputFilter": "$", "JoinSource": "None"}
    assert any(
        line.endswith("[sagemaker logs]: MaxConcurrentTransforms=2, MaxPayloadInMB=1, BatchStrategy=SINGLE_RECORD")
        for line in logged(rig, job["TransformJobName"], "data-log")
    )
    sagemaker = rig.client("sagemaker")
    [summary] = sagemaker.list_transform_jobs(NameContains=job["TransformJobName"])["TransformJobSummaries"]
    assert summary["TransformJobStatus"] == "Completed"
    assert sagemaker.list_tags(ResourceArn=job["TransformJobArn"])["Tags"] == [{"Key": "team", "Value": "vision"}]


def test_order_holds_over_many_batches_and_several_instances(rig: Rig, model: str) -> None:
    files = {f"{name}.csv": "\n".join(f"{name},{row}" for row in range(200)).encode() for name in range(3)}

    job = run(
        rig,
        model,
        files,
        BatchStrategy="SingleRecord",
        MaxConcurrentTransforms=4,
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 2},
    )

    assert outputs(rig, job) == {
        f"{name}.csv.out": "".join(f"{float(name + row) * 2}\n" for row in range(200)) for name in range(3)
    }


def test_records_are_packed_with_multi_record(rig: Rig, model: str) -> None:
    body = b"\n".join(b"x" * 400_000 for _ in range(5))

    job = run(rig, model, {"a": body}, MaxPayloadInMB=1, BatchStrategy="MultiRecord", Environment={"batch": "1"})

    assert outputs(rig, job) == {"a.out": "2 records, true\n2 records, true\n1 records, true\n"}


def test_without_split_an_object_is_one_record(rig: Rig, model: str) -> None:
    job = run(
        rig,
        model,
        {"a.txt": b"whole\n2\n3"},
        given={"SplitType": "None", "ContentType": "text/plain"},
        target={"AssembleWith": "None"},
    )

    assert outputs(rig, job) == {"a.txt.out": "whole of 3"}


def test_compressed_objects_and_manifests(rig: Rig, model: str) -> None:
    rows = gzip.compress(b"1,1\n2,2\n")
    prefix = rig.unique("packed")
    rig.upload(f"{prefix}/data/a.csv.gz", rows)
    rig.upload(f"{prefix}/data/b.csv.gz", rows)
    listed = json.dumps([{"prefix": f"s3://{rig.bucket}/{prefix}/data/"}, "a.csv.gz"])
    uri = rig.upload(f"{prefix}/manifest", listed.encode())

    job = run(
        rig,
        model,
        {},
        given={
            "CompressionType": "Gzip",
            "DataSource": {"S3DataSource": {"S3DataType": "ManifestFile", "S3Uri": uri}},
        },
    )

    assert outputs(rig, job) == {"a.csv.gz.out": "4.0\n8.0\n"}


def test_answers_are_joined_with_their_records(rig: Rig, model: str) -> None:
    job = run(
        rig,
        model,
        {"a.csv": b"first,1,2\nsecond,3,4\n"},
        DataProcessing={"InputFilter": "$[1:]", "JoinSource": "Input", "OutputFilter": "$[0,-1]"},
    )

    assert outputs(rig, job) == {"a.csv.out": "first,6.0\nsecond,14.0\n"}


def test_a_bad_file_fails_the_job_and_the_others_are_still_done(rig: Rig, model: str) -> None:
    job = run(rig, model, {"bad.csv": b"1\nx\n", "good.csv": b"1\n"})

    name = job["TransformJobName"]
    assert job["TransformJobStatus"] == "Failed"
    assert job["FailureReason"].startswith(
        f"AlgorithmError: See job logs for more information. {rig.bucket}/{name}/in/bad.csv: 500"
    )
    assert "could not convert string to float: 'x'" in job["FailureReason"]
    assert outputs(rig, job) == {"good.csv.out": "2.0\n"}
    assert any("bad.csv: AlgorithmError: 500" in line for line in logged(rig, name, "data-log"))


def test_a_record_beyond_the_payload_fails_its_file(rig: Rig, model: str) -> None:
    job = run(rig, model, {"a.csv": b"1" * (1 << 20) + b"1"}, MaxPayloadInMB=1)

    assert job["TransformJobStatus"] == "Failed"
    assert "too large for one request, MaxPayloadInMB is 1" in job["FailureReason"]


def test_a_server_that_dies_or_never_comes_up_fails_the_job(rig: Rig, model: str) -> None:
    died = run(rig, model, {"a.csv": b"die"})
    broken = run(rig, model, {"a.csv": b"1"}, Environment={"FACTOR": "no number"})

    assert died["TransformJobStatus"] == broken["TransformJobStatus"] == "Failed"
    assert "the model's process ended with exit code" in died["FailureReason"]
    assert "did not pass the ping health check" in broken["FailureReason"]
    assert "no number" in broken["FailureReason"]


def test_data_that_is_missing_fails_the_job(rig: Rig, model: str) -> None:
    job = run(rig, model, {})

    assert job["TransformJobStatus"] == "Failed"
    assert "No S3 objects found under S3 URL" in job["FailureReason"]


def test_stop_ends_the_server(rig: Rig, model: str) -> None:
    name = start(rig, model, {"a.csv": b"slow"})
    sagemaker = rig.client("sagemaker")
    deadline = time.monotonic() + 30
    while not any("data-log" in line for line in streams(rig, name)):
        assert time.monotonic() < deadline

    sagemaker.stop_transform_job(TransformJobName=name)

    job = finish(rig, name)
    assert job["TransformJobStatus"] == "Stopped"
    assert outputs(rig, job) == {}


def streams(rig: Rig, job: str) -> list[str]:
    logs, group = rig.client("logs"), "/aws/sagemaker/TransformJobs"
    try:
        found = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")["logStreams"]
    except logs.exceptions.ResourceNotFoundException:
        return []
    return [stream["logStreamName"] for stream in found]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ModelName": "no-such-model"}, "Could not find model"),
        ({"MaxConcurrentTransforms": 20, "MaxPayloadInMB": 6}, "cannot exceed 100 MB"),
        ({"given": {"SplitType": "RecordIO"}}, "SplitType RecordIO"),
        ({"target": {"S3OutputPath": "s3://no-such-bucket-anywhere/x"}}, "does not exist"),
        (
            {
                "given": {
                    "DataSource": {
                        "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://no-such-bucket-anywhere/x"}
                    }
                }
            },
            "TransformInput.DataSource.S3DataSource.S3Uri .* does not exist",
        ),
        ({"DataProcessing": {"InputFilter": "$..id"}}, "not a supported JSONPath"),
        ({"DataProcessing": {"JoinSource": "Input"}, "given": {"ContentType": "image/png"}}, "must both be text/csv"),
        ({"BatchStrategy": "Wrong"}, "batchStrategy"),
    ],
)
def test_what_aws_refuses_is_refused_with_the_field(
    rig: Rig, model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClientError, match=message) as refused:
        rig.client("sagemaker").create_transform_job(**request(rig, model, {}, **changes))

    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_requirements_of_the_model_that_cannot_be_installed_fail_the_job(rig: Rig) -> None:
    name = rig.unique("model")
    wanted = "./no-such-folder-anywhere"
    data = rig.upload_source({"code/inference.py": CODE, "code/requirements.txt": wanted})
    rig.client("sagemaker").create_model(
        ModelName=name, ExecutionRoleArn=rig.role, PrimaryContainer={"Image": "image", "ModelDataUrl": data}
    )

    job = run(rig, name, {"a.csv": b"1"})

    assert job["TransformJobStatus"] == "Failed"
    assert "requirements.txt of the model cannot be installed" in job["FailureReason"]
