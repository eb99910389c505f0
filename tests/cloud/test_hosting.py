"""Endpoints as boto3 sees them, on a server that was really started."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

CODE = """
import json, os
def model_fn(model_dir):
    return os.environ["VERSION"]
def input_fn(body, content_type):
    return json.loads(body)
def predict_fn(data, model):
    if data == "die":
        os._exit(7)
    if data == "raise":
        raise ValueError("three channels expected")
    return {"version": model, "echo": data}
def output_fn(prediction, accept):
    return json.dumps(prediction), "application/json"
"""


class Workshop:
    """Models, configs and an endpoint under names that no other test has; the endpoint is deleted at the end."""

    def __init__(self, rig: Any) -> None:
        self.rig, self.bucket = rig, rig.bucket
        self.sagemaker, self.runtime, self.s3 = (rig.client(name) for name in ("sagemaker", "sagemaker-runtime", "s3"))
        self.cloudwatch, self.logs = rig.client("cloudwatch"), rig.client("logs")
        self.endpoint = rig.unique("endpoint")

    def config(self, version: str, code: str = CODE, **more: Any) -> str:
        """A model of that version and an endpoint config for it; returns the name of both."""
        name = str(self.rig.unique(version))
        data = self.rig.upload_source({"code/inference.py": code})
        container = {"Image": "image", "ModelDataUrl": data, "Environment": {"VERSION": version}}
        self.sagemaker.create_model(ModelName=name, ExecutionRoleArn=self.rig.role, PrimaryContainer=container)
        variant = {"VariantName": "main", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], **more)
        return name

    def create(self, config: str, **more: Any) -> dict[str, Any]:
        self.sagemaker.create_endpoint(EndpointName=self.endpoint, EndpointConfigName=config, **more)
        return self.settled()

    def update(self, config: str, **more: Any) -> None:
        self.sagemaker.update_endpoint(EndpointName=self.endpoint, EndpointConfigName=config, **more)

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = self.sagemaker.describe_endpoint(EndpointName=self.endpoint)
        return described

    def settled(self) -> dict[str, Any]:
        return until(self.describe, lambda it: it["EndpointStatus"] not in ("Creating", "Updating", "RollingBack"))

    def invoke(self, data: Any = 1, **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.runtime.invoke_endpoint(
            EndpointName=self.endpoint, Body=json.dumps(data), ContentType="application/json", **more
        )
        return {**answer, "Prediction": json.loads(answer["Body"].read())}

    def metric(
        self, name: str, statistic: str = "Sum", namespace: str = "AWS/SageMaker", variant: str | None = "main"
    ) -> float | None:
        """Over all that is known of it; None before anything is."""
        now = datetime.now(UTC)
        named = {"EndpointName": self.endpoint, **({"VariantName": variant} if variant else {})}
        points = self.cloudwatch.get_metric_statistics(
            Namespace=namespace,
            MetricName=name,
            Dimensions=[{"Name": key, "Value": value} for key, value in named.items()],
            StartTime=now - timedelta(hours=1),
            EndTime=now + timedelta(minutes=2),
            Period=7200,
            Statistics=[statistic],
        )["Datapoints"]
        return max((point[statistic] for point in points), default=None)

    def close(self) -> None:
        for described in self.sagemaker.list_endpoints(NameContains=self.endpoint)["Endpoints"]:
            self.settled()
            self.sagemaker.delete_endpoint(EndpointName=described["EndpointName"])


def until(look: Callable[[], Any], test: Callable[[Any], bool], *, seconds: float = 30, pause: float = 0.1) -> Any:
    """What ``look`` sees as soon as ``test`` holds: the service has no call that waits."""
    paused, deadline = threading.Event(), datetime.now(UTC) + timedelta(seconds=seconds)
    while not test(seen := look()):
        assert datetime.now(UTC) < deadline, seen
        paused.wait(pause)
    return seen


@pytest.fixture
def workshop(rig: Any) -> Iterator[Workshop]:
    workshop = Workshop(rig)
    yield workshop
    workshop.close()


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(ClientError) as error:
        call()
    return error.value.response["Error"]["Code"], error.value.response["Error"]["Message"]


def test_an_endpoint_goes_from_create_to_delete(workshop: Workshop) -> None:
    config = workshop.config("v1")

    described = workshop.create(config, Tags=[{"Key": "team", "Value": "digits"}])

    assert described["EndpointStatus"] == "InService"
    answer = workshop.invoke([1, 2], InferenceId="id-1", CustomAttributes="trace=1")
    assert answer["Prediction"] == {"version": "v1", "echo": [1, 2]}
    assert answer["InvokedProductionVariant"] == "main"
    assert answer["ContentType"] == "application/json"
    tags = workshop.sagemaker.list_tags(ResourceArn=described["EndpointArn"])["Tags"]
    assert tags == [{"Key": "team", "Value": "digits"}]
    workshop.sagemaker.delete_endpoint(EndpointName=workshop.endpoint)
    waiter = workshop.sagemaker.get_waiter("endpoint_deleted")
    waiter.wait(EndpointName=workshop.endpoint, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    code, message = refused(workshop.invoke)
    assert (code, message.split()[0]) == ("ValidationError", "Endpoint")


def test_errors_of_the_model_arrive_as_model_errors(workshop: Workshop) -> None:
    workshop.create(workshop.config("v1"))

    with pytest.raises(workshop.runtime.exceptions.ModelError) as raised:
        workshop.invoke("raise")

    response = raised.value.response
    assert response["OriginalStatusCode"] == 500
    assert "three channels expected" in response["OriginalMessage"]
    assert f"log-group:/aws/sagemaker/Endpoints/{workshop.endpoint}" in response["LogStreamArn"]


def test_a_server_that_crashes_is_replaced(workshop: Workshop) -> None:
    workshop.create(workshop.config("v1"))

    with pytest.raises(workshop.runtime.exceptions.ModelError, match="process ended with exit code"):
        workshop.invoke("die")

    assert until(workshop.describe, lambda it: it["ProductionVariants"][0]["CurrentInstanceCount"] == 1)
    assert workshop.invoke()["Prediction"]["version"] == "v1"


@pytest.mark.parametrize(
    ("operation", "request_", "code", "said"),
    [
        ("describe_model", {"ModelName": "absent"}, "ValidationException", 'Could not find model "arn:aws:sagemaker:'),
        (
            "describe_endpoint",
            {"EndpointName": "absent"},
            "ValidationException",
            'Could not find endpoint "arn:aws:sagemaker:',
        ),
        (
            "delete_endpoint",
            {"EndpointName": "absent"},
            "ValidationException",
            'Could not find endpoint "arn:aws:sagemaker:',
        ),
        (
            "create_endpoint",
            {"EndpointName": "e", "EndpointConfigName": "absent"},
            "ValidationException",
            'Could not find endpoint configuration "arn:aws:sagemaker:',
        ),
        (
            "create_endpoint",
            {"EndpointName": "no good", "EndpointConfigName": "c"},
            "ValidationException",
            "Value 'no good' at 'endpointName' failed to satisfy constraint",
        ),
    ],
)
def test_bad_requests_get_the_answer_of_aws(
    workshop: Workshop, operation: str, request_: dict[str, Any], code: str, said: str
) -> None:
    got, message = refused(lambda: getattr(workshop.sagemaker, operation)(**request_))

    assert got == code
    assert said in message


def test_a_script_that_raises_is_quoted_in_the_failure_reason(workshop: Workshop) -> None:
    described = workshop.create(workshop.config("v1", "raise RuntimeError('weights of another model')"))

    assert described["EndpointStatus"] == "Failed"
    assert "did not pass the ping health check" in described["FailureReason"]
    assert "RuntimeError: weights of another model" in described["FailureReason"]
    events = workshop.logs.filter_log_events(logGroupName=f"/aws/sagemaker/Endpoints/{workshop.endpoint}")["events"]
    assert any("weights of another model" in event["message"] for event in events)


def test_metrics_and_captured_data_come_out_of_the_traffic(workshop: Workshop) -> None:
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{workshop.bucket}/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
    }
    workshop.create(workshop.config("v1", DataCaptureConfig=capture))
    for number in range(5):
        workshop.invoke(number, InferenceId=f"id-{number}")

    def records() -> list[Any]:
        found = workshop.s3.list_objects_v2(Bucket=workshop.bucket, Prefix=f"captured/{workshop.endpoint}/main/")
        bodies = [
            workshop.s3.get_object(Bucket=workshop.bucket, Key=each["Key"])["Body"]
            for each in found.get("Contents", [])
        ]
        return [json.loads(line) for body in bodies for line in body.read().splitlines()]

    captured = until(records, lambda it: len(it) == 5)
    assert {record["eventMetadata"]["inferenceId"] for record in captured} == {f"id-{number}" for number in range(5)}
    now = datetime.now(UTC)
    statistics = workshop.cloudwatch.get_metric_statistics(
        Namespace="AWS/SageMaker",
        MetricName="Invocations",
        Dimensions=[{"Name": "EndpointName", "Value": workshop.endpoint}, {"Name": "VariantName", "Value": "main"}],
        StartTime=now - timedelta(minutes=10),
        EndTime=now + timedelta(minutes=1),
        Period=60,
        Statistics=["Sum"],
    )
    assert sum(point["Sum"] for point in statistics["Datapoints"]) == 5


def guarded(alarm: str, *, bake: int) -> dict[str, Any]:
    routing = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
    return {
        "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": bake},
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": alarm}]},
    }


def test_an_alarm_rolls_an_update_back(workshop: Workshop) -> None:
    old, new, alarm = workshop.config("v1"), workshop.config("v2"), workshop.rig.unique("accuracy")
    workshop.create(old)
    workshop.cloudwatch.put_metric_alarm(
        AlarmName=alarm,
        Namespace="Tests",
        MetricName=alarm,
        Statistic="Average",
        Period=10,
        EvaluationPeriods=1,
        Threshold=0.9,
        ComparisonOperator="LessThanThreshold",
        TreatMissingData="ignore",
    )
    workshop.update(new, DeploymentConfig=guarded(alarm, bake=300))
    assert workshop.describe()["PendingDeploymentSummary"]["EndpointConfigName"] == new
    until(workshop.invoke, lambda it: it["Prediction"]["version"] == "v2")

    workshop.cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="the test says so")

    described = workshop.settled()
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", old)
    assert alarm in described["FailureReason"]
    assert workshop.invoke()["Prediction"]["version"] == "v1"


def test_no_request_is_lost_during_an_update(workshop: Workshop) -> None:
    old, new = workshop.config("v1"), workshop.config("v2")
    workshop.create(old)
    seen: list[str] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            seen.append(workshop.invoke()["Prediction"]["version"])

    client = threading.Thread(target=load)
    client.start()
    workshop.update(new)
    described = workshop.settled()
    done.set()
    client.join()

    assert described["EndpointConfigName"] == new
    assert {"v1", "v2"} == set(seen)
    assert seen == sorted(seen)  # a plain update goes over once, and never back
    assert workshop.invoke()["Prediction"]["version"] == "v2"
