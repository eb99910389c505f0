"""boto3's own waiters, which look at nothing but the answers, come to the end that AWS's answers would lead them to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import WaiterError

from tests.cloud.conftest import Rig
from tests.cloud.test_training import SAVE, request

QUICK = {"Delay": 0.1, "MaxAttempts": 300}
INFERENCE = """
def model_fn(folder):
    return None

def transform_fn(model, body, content_type, accept):
    return body, accept
"""


def wait(rig: Rig, waiter: str, service: str = "sagemaker", **names: str) -> None:
    rig.client(service).get_waiter(waiter).wait(**names, WaiterConfig=QUICK)


def started(rig: Rig, script: str) -> str:
    asked = request(rig, script)
    rig.client("sagemaker").create_training_job(**asked)
    return str(asked["TrainingJobName"])


def test_a_training_job_that_completes(rig: Rig) -> None:
    wait(rig, "training_job_completed_or_stopped", TrainingJobName=started(rig, SAVE.format("x")))


def test_a_training_job_that_is_stopped(rig: Rig) -> None:
    job = started(rig, "import time; time.sleep(600)")
    rig.client("sagemaker").stop_training_job(TrainingJobName=job)

    wait(rig, "training_job_completed_or_stopped", TrainingJobName=job)


def test_a_training_job_that_fails(rig: Rig) -> None:
    with pytest.raises(WaiterError, match="terminal failure"):
        wait(rig, "training_job_completed_or_stopped", TrainingJobName=started(rig, "raise SystemExit(3)"))


def test_a_job_that_does_not_exist(rig: Rig) -> None:
    with pytest.raises(WaiterError, match="ValidationException"):
        wait(rig, "training_job_completed_or_stopped", TrainingJobName=rig.unique("none"))


def endpoint(rig: Rig, files: dict[str, str]) -> str:
    sagemaker, name = rig.client("sagemaker"), rig.unique("endpoint")
    container = {"Image": "pytorch", "ModelDataUrl": rig.upload_source(files)}
    container["Environment"] = {"SAGEMAKER_PROGRAM": "inference.py"}  # type: ignore[assignment]
    sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=rig.role)
    variant = {"VariantName": "all", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    return name


def test_an_endpoint_from_its_start_to_its_end(rig: Rig) -> None:
    name = endpoint(rig, {"code/inference.py": INFERENCE})
    wait(rig, "endpoint_in_service", EndpointName=name)

    answer = rig.client("sagemaker-runtime").invoke_endpoint(EndpointName=name, Body=b"{}", Accept="application/json")
    assert json.load(answer["Body"]) == {}
    rig.client("sagemaker").delete_endpoint(EndpointName=name)

    wait(rig, "endpoint_deleted", EndpointName=name)


def test_an_endpoint_that_does_not_come_up(rig: Rig) -> None:
    name = endpoint(rig, {"code/inference.py": "raise RuntimeError('no model')"})

    with pytest.raises(WaiterError, match="terminal failure"):
        wait(rig, "endpoint_in_service", EndpointName=name)


def test_a_bucket_and_an_object(rig: Rig) -> None:
    bucket = rig.unique("bucket")
    rig.client("s3").create_bucket(Bucket=bucket)
    wait(rig, "bucket_exists", "s3", Bucket=bucket)
    rig.client("s3").put_object(Bucket=bucket, Key="k", Body=b"x")
    wait(rig, "object_exists", "s3", Bucket=bucket, Key="k")
    rig.client("s3").delete_object(Bucket=bucket, Key="k")
    wait(rig, "object_not_exists", "s3", Bucket=bucket, Key="k")
    rig.client("s3").delete_bucket(Bucket=bucket)
    wait(rig, "bucket_not_exists", "s3", Bucket=bucket)


def test_an_alarm_and_a_stack(rig: Rig) -> None:
    alarm, stack = rig.unique("alarm"), rig.unique("stack")
    settings: dict[str, Any] = {"Statistic": "Average", "Period": 60, "EvaluationPeriods": 1, "Threshold": 1.0}
    rig.client("cloudwatch").put_metric_alarm(
        AlarmName=alarm, Namespace="N", MetricName="M", ComparisonOperator="GreaterThanThreshold", **settings
    )
    wait(rig, "alarm_exists", "cloudwatch", AlarmNames=[alarm])  # type: ignore[arg-type]
    template = json.dumps({"Resources": {"Queue": {"Type": "AWS::SQS::Queue"}}})
    rig.client("cloudformation").create_stack(StackName=stack, TemplateBody=template)
    wait(rig, "stack_create_complete", "cloudformation", StackName=stack)
    rig.client("cloudformation").delete_stack(StackName=stack)
    wait(rig, "stack_delete_complete", "cloudformation", StackName=stack)
