"""Asynchronous endpoints as boto3 sees them: S3 in, S3 out, and notifications, on a server that was really started."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.cloud.conftest import TRUST, Rig
from tests.cloud.test_hosting import CODE, Workshop, refused, until
from windlass.local import LocalCloud


class Office(Workshop):
    """A workshop whose endpoint is asynchronous, with a queue that hears of its answers."""

    def __init__(self, rig: Any) -> None:
        super().__init__(rig)
        self.folder = f"s3://{self.bucket}/{self.endpoint}"
        name = rig.unique("results")
        self.topic = rig.client("sns").create_topic(Name=name)["TopicArn"]
        self.sqs = rig.client("sqs")
        self.queue = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        arn = f"arn:aws:sqs:{rig.env['AWS_REGION']}:{self.topic.split(':')[4]}:{name}"
        rig.client("sns").subscribe(TopicArn=self.topic, Protocol="sqs", Endpoint=arn)

    def open(self, code: str = CODE, **client: Any) -> None:
        """Create the endpoint."""
        config = {
            "OutputConfig": {
                "S3OutputPath": f"{self.folder}/out/",
                "S3FailurePath": f"{self.folder}/failed",
                "NotificationConfig": {
                    "SuccessTopic": self.topic,
                    "ErrorTopic": self.topic,
                    "IncludeInferenceResponseIn": ["SUCCESS_NOTIFICATION_TOPIC", "ERROR_NOTIFICATION_TOPIC"],
                },
            },
            **({"ClientConfig": client} if client else {}),
        }
        assert self.create(self.config("v1", code, AsyncInferenceConfig=config))["EndpointStatus"] == "InService"

    def submit(self, data: Any, **more: Any) -> dict[str, Any]:
        location = self.rig.upload(f"{self.endpoint}/in/{self.rig.unique('input')}.json", json.dumps(data).encode())
        answer: dict[str, Any] = self.runtime.invoke_endpoint_async(
            EndpointName=self.endpoint, InputLocation=location, ContentType="application/json", **more
        )
        return {**answer, "InputLocation": location}

    def message(self) -> dict[str, Any]:
        """The next notification."""
        [message] = until(
            lambda: self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=1).get("Messages", []), bool
        )
        self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        notified: dict[str, Any] = json.loads(json.loads(message["Body"])["Message"])
        return notified

    def scale(self, count: int) -> None:
        change = {"VariantName": "main", "DesiredInstanceCount": count}
        self.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=self.endpoint, DesiredWeightsAndCapacities=[change]
        )
        self.settled()


@pytest.fixture
def office(rig: Any) -> Iterator[Office]:
    office = Office(rig)
    yield office
    office.close()


@pytest.fixture(scope="module")
def shared(rig: Any) -> Iterator[Office]:
    office = Office(rig)
    office.open()
    yield office
    office.close()


def test_an_answer_goes_to_s3_and_a_notification_to_sns(shared: Office) -> None:
    accepted = shared.submit([1, 2], InferenceId="id-1", CustomAttributes="trace=1", Accept="application/json")

    message = shared.message()
    assert accepted["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert accepted["InferenceId"] == "id-1"
    assert accepted["OutputLocation"].startswith(f"{shared.folder}/out/")
    assert json.loads(shared.rig.download(accepted["OutputLocation"])) == {"version": "v1", "echo": [1, 2]}
    assert {
        key: message[key] for key in ("invocationStatus", "inferenceId", "eventSource", "eventName", "eventVersion")
    } == {
        "invocationStatus": "Completed",
        "inferenceId": "id-1",
        "eventSource": "aws:sagemaker",
        "eventName": "InferenceResult",
        "eventVersion": "1.0",
    }
    assert message["requestParameters"] == {
        "accept": "application/json",
        "contentType": "application/json",
        "customAttributes": "trace=1",
        "endpointName": shared.endpoint,
        "inputLocation": accepted["InputLocation"],
    }
    assert message["responseParameters"] == {
        "contentType": "application/json",
        "outputLocation": accepted["OutputLocation"],
    }
    assert json.loads(base64.b64decode(message["responseBody"]["content"]))["echo"] == [1, 2]
    assert message["receivedTime"] <= message["eventTime"]


def test_an_inline_body_and_a_named_output(shared: Office) -> None:
    accepted = shared.runtime.invoke_endpoint_async(
        EndpointName=shared.endpoint,
        Body=b'"inline"',
        ContentType="application/json",
        S3OutputPathExtension="runs/7",
        Filename="answer.json",
    )

    assert accepted["OutputLocation"] == f"{shared.folder}/out/runs/7/answer.json"
    assert shared.message()["invocationStatus"] == "Completed"
    assert json.loads(shared.rig.download(accepted["OutputLocation"]))["echo"] == "inline"


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        ("raise", "ClientError: Received server error (500) from model.", "three channels expected"),
        ("die", "ClientError: ", ""),
    ],
)
def test_what_the_model_cannot_answer_goes_to_the_failure_path(
    shared: Office, data: str, reason: str, said: str
) -> None:
    accepted = shared.submit(data)

    message = shared.message()
    assert message["invocationStatus"] == "Failed"
    assert message["failureReason"].startswith(reason)
    assert accepted["FailureLocation"].startswith(f"{shared.folder}/failed/")
    assert said in shared.rig.download(accepted["FailureLocation"]).decode()
    key = accepted["OutputLocation"].removeprefix(f"s3://{shared.bucket}/")
    assert not shared.s3.list_objects_v2(Bucket=shared.bucket, Prefix=key)["KeyCount"]
    until(lambda: shared.metric("InvocationFailures", "Maximum"), lambda it: it == 1)


def test_an_input_that_is_not_there_fails_alone(shared: Office) -> None:
    shared.runtime.invoke_endpoint_async(EndpointName=shared.endpoint, InputLocation=f"{shared.folder}/absent")
    shared.submit("there")

    outcomes = {shared.message()["invocationStatus"] for _ in range(2)}
    assert outcomes == {"Completed", "Failed"}
    until(lambda: shared.metric("RequestDownloadFailures", "Sum"), lambda it: it == 1)


def test_requests_wait_for_an_instance_and_the_backlog_is_measured(office: Office) -> None:
    office.open()
    office.scale(0)
    assert office.describe()["ProductionVariants"][0]["CurrentInstanceCount"] == 0
    for number in range(3):
        office.submit(number)
    until(lambda: office.metric("ApproximateBacklogSize", "Maximum", variant=None), lambda it: it == 3)
    until(lambda: office.metric("HasBacklogWithoutCapacity", "Maximum", variant=None), lambda it: it == 1)
    until(
        lambda: office.metric("ApproximateAgeOfOldestRequest", "Maximum", variant=None),
        lambda it: it is not None and it > 0,
    )

    office.scale(1)

    assert [office.message()["invocationStatus"] for _ in range(3)] == ["Completed"] * 3
    until(lambda: office.metric("InvocationsProcessed", "Sum"), lambda it: it == 3)
    until(lambda: office.metric("ApproximateBacklogSize", "Minimum", variant=None), lambda it: it == 0)
    assert office.metric("TimeInBacklog")


@pytest.fixture
def fast_office(tmp_path: Path) -> Iterator[Office]:
    """In a cloud in which a minute takes a second."""
    with LocalCloud.up(tmp_path, lifeline=True, speed=60) as cloud:
        rig = Rig(env=cloud.env, cloud=cloud, bucket="fast")
        rig.client("s3").create_bucket(Bucket=rig.bucket)
        role = rig.client("iam").create_role(RoleName="fast", AssumeRolePolicyDocument=json.dumps(TRUST))
        rig.role = role["Role"]["Arn"]
        office = Office(rig)
        yield office
        office.close()
        rig.close()


def test_scaling_goes_from_zero_with_the_first_request_and_back_when_the_queue_is_empty(fast_office: Office) -> None:
    """As the guide "Autoscale an asynchronous endpoint" sets it up: target tracking, and a step that wakes from zero."""
    office = fast_office
    office.open()
    office.scale(0)
    scaling = office.rig.client("application-autoscaling")
    where = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{office.endpoint}/variant/main",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    dimensions = [{"Name": "EndpointName", "Value": office.endpoint}]
    scaling.register_scalable_target(**where, MinCapacity=0, MaxCapacity=2)
    scaling.put_scaling_policy(
        **where,
        PolicyName="follow",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 5,
            "CustomizedMetricSpecification": {
                "MetricName": "ApproximateBacklogSizePerInstance",
                "Namespace": "AWS/SageMaker",
                "Dimensions": dimensions,
                "Statistic": "Average",
            },
        },
    )
    step = {
        "AdjustmentType": "ChangeInCapacity",
        "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
    }
    wake = scaling.put_scaling_policy(
        **where, PolicyName="wake", PolicyType="StepScaling", StepScalingPolicyConfiguration=step
    )
    office.cloudwatch.put_metric_alarm(
        AlarmName="backlog",
        AlarmActions=[wake["PolicyARN"]],
        Namespace="AWS/SageMaker",
        MetricName="HasBacklogWithoutCapacity",
        Dimensions=dimensions,
        Statistic="Average",
        Period=60,
        EvaluationPeriods=2,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
    )

    accepted = office.submit("wake up")

    message = office.message()
    assert (message["invocationStatus"], message["inferenceId"]) == ("Completed", accepted["InferenceId"])
    until(office.describe, lambda it: it["ProductionVariants"][0]["DesiredInstanceCount"] == 0, seconds=60)
    done = [each["Description"] for each in scaling.describe_scaling_activities(**where)["ScalingActivities"]]
    assert done == [f"Setting desired instance count to {count}." for count in (0, 1)]


@contextmanager
def unchecked(rig: Any) -> Iterator[Any]:
    """A client that leaves all checks to the server: boto3 makes some of them itself."""
    names = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    names |= {"endpoint_url": "AWS_ENDPOINT_URL", "region_name": "AWS_REGION"}
    given = {name: rig.env[variable] for name, variable in names.items()}
    client = boto3.client("sagemaker-runtime", config=Config(parameter_validation=False), **given)
    yield client
    client.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"InputLocation": None}, "Exactly one of Body and InputLocation"),
        ({"Body": b"{}"}, "Exactly one of Body and InputLocation"),
        ({"InputLocation": "file:///etc/passwd"}, "inputLocation"),
        ({"RequestTTLSeconds": 59}, "requestTTLSeconds"),
        ({"InvocationTimeoutSeconds": 3601}, "invocationTimeoutSeconds"),
        ({"Filename": "a.b.c"}, "filename"),
        ({"S3OutputPathExtension": "s3://elsewhere"}, "s3OutputPathExtension"),
        ({"InputLocation": None, "Body": b"0" * 128_001}, "less than or equal to 128000"),
    ],
)
def test_bad_requests_are_refused_before_they_are_queued(shared: Office, change: dict[str, Any], said: str) -> None:
    request = {"EndpointName": shared.endpoint, "InputLocation": f"{shared.folder}/in.json", **change}
    given = {name: value for name, value in request.items() if value is not None}

    with unchecked(shared.rig) as runtime:
        code, message = refused(lambda: runtime.invoke_endpoint_async(**given))

    assert code == "ValidationError"
    assert said in message


def test_an_asynchronous_endpoint_refuses_what_waits_for_an_answer(shared: Office) -> None:
    code, message = refused(shared.invoke)

    assert (code, "InvokeEndpointAsync" in message) == ("ValidationError", True)


@pytest.mark.parametrize("call", ["async", "zero"])
def test_an_endpoint_that_answers_at_once_has_no_queue(workshop: Workshop, call: str) -> None:
    workshop.create(workshop.config("v1"))
    change = [{"VariantName": "main", "DesiredInstanceCount": 0}]
    calls: dict[str, Callable[[], Any]] = {
        "async": lambda: workshop.runtime.invoke_endpoint_async(
            EndpointName=workshop.endpoint, InputLocation="s3://bucket/in"
        ),
        "zero": lambda: workshop.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=workshop.endpoint, DesiredWeightsAndCapacities=change
        ),
    }

    code, message = refused(calls[call])

    assert code in ("ValidationError", "ValidationException")
    assert "not an asynchronous" in message or "greater than or equal to 1" in message


@pytest.fixture
def workshop(rig: Any) -> Iterator[Workshop]:
    workshop = Workshop(rig)
    yield workshop
    workshop.close()
