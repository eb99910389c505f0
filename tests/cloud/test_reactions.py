"""What alarms set off, on a local cloud whose minutes last a second: functions run, and variants grow."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cloud.conftest import TRUST, Rig
from tests.cloud.test_cloudwatch import eventually, queue
from windlass.local import LocalCloud

ECHO = """
def model_fn(model_dir): return None
def input_fn(body, content_type): return body
def predict_fn(data, model): return data
def output_fn(prediction, accept): return prediction
"""

TELL = """
import boto3, json, os
def handler(event, context):
    boto3.client("sqs").send_message(QueueUrl=os.environ["QUEUE"], MessageBody=json.dumps(event))
"""


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with LocalCloud.up(tmp_path_factory.mktemp("fast"), lifeline=True, speed=60) as cloud:
        rig = Rig(env=cloud.env, cloud=cloud, bucket="fast")
        rig.client("s3").create_bucket(Bucket=rig.bucket)
        trust = json.loads(json.dumps(TRUST))
        trust["Statement"][0]["Principal"]["Service"] = ["sagemaker.amazonaws.com", "lambda.amazonaws.com"]
        created = rig.client("iam").create_role(RoleName="fast", AssumeRolePolicyDocument=json.dumps(trust))
        rig.role = created["Role"]["Arn"]
        yield rig
        rig.close()


def function(rig: Rig, url: str) -> str:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("index.py", TELL)
    made: dict[str, Any] = rig.client("lambda").create_function(
        FunctionName="tell",
        Runtime="python3.12",
        Role=rig.role,
        Handler="index.handler",
        Code={"ZipFile": packed.getvalue()},
        Timeout=30,
        Environment={"Variables": {"QUEUE": url}},
    )
    return str(made["FunctionArn"])


def test_a_variant_grows_under_load_and_a_function_hears_of_it(fast: Rig) -> None:
    sagemaker, runtime, scaling = (
        fast.client(name) for name in ("sagemaker", "sagemaker-runtime", "application-autoscaling")
    )
    # Given an endpoint of one instance that is to have five invocations a minute for each
    data = fast.upload_source({"code/inference.py": ECHO})
    container = {"Image": "image", "ModelDataUrl": data}
    sagemaker.create_model(ModelName="echo", ExecutionRoleArn=fast.role, PrimaryContainer=container)
    variant = {"VariantName": "main", "ModelName": "echo", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="echo", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="echo", EndpointConfigName="echo")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="echo", WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    where = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/echo/variant/main",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**where, MinCapacity=1, MaxCapacity=2)
    policy = scaling.put_scaling_policy(
        **where,
        PolicyName="track",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 5,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        },
    )
    # and a rule that tells a function of alarms
    url, _ = queue(fast, "heard")
    arn = function(fast, url)
    pattern = {"source": ["aws.cloudwatch"], "detail": {"state": {"value": ["ALARM"]}}}
    rule = fast.client("events").put_rule(Name="alarms", EventPattern=json.dumps(pattern))["RuleArn"]
    fast.client("events").put_targets(Rule="alarms", Targets=[{"Id": "tell", "Arn": arn}])
    fast.client("lambda").add_permission(
        FunctionName="tell",
        StatementId="events",
        Action="lambda:InvokeFunction",
        Principal="events.amazonaws.com",
        SourceArn=rule,
    )

    # When there are many more, for what the cloud takes for minutes
    def grown() -> bool:
        for _ in range(20):
            runtime.invoke_endpoint(EndpointName="echo", Body=b"x", ContentType="text/plain")
        [summary] = sagemaker.describe_endpoint(EndpointName="echo")["ProductionVariants"]
        return bool(summary["CurrentInstanceCount"] == 2)

    # Then a second instance answers, an activity says why, and the function was called
    eventually(grown, 60)
    (activity,) = scaling.describe_scaling_activities(ServiceNamespace="sagemaker")["ScalingActivities"]
    assert activity["StatusCode"] == "Successful"
    assert policy["Alarms"][0]["AlarmName"] in activity["Cause"]
    (message,) = fast.client("sqs").receive_message(QueueUrl=url, WaitTimeSeconds=20)["Messages"]
    assert json.loads(message["Body"])["detail"]["alarmName"] == policy["Alarms"][0]["AlarmName"]
    # and what the instances use is measured
    found = fast.client("cloudwatch").list_metrics(Namespace="/aws/sagemaker/Endpoints")["Metrics"]
    assert {metric["MetricName"] for metric in found} == {"CPUUtilization", "MemoryUtilization", "DiskUtilization"}
