"""A stack of all that watches and reacts: each resource is made, changed and deleted in its own service, by whoever may."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cloud.conftest import Rig
from tests.cloud.test_reactions import ECHO

CODE = """
import os
def handler(event, context):
    return {"greeting": os.environ["GREETING"], "name": event["name"]}
"""
WHERE = {
    "ResourceId": "endpoint/stacked/variant/main",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    "ServiceNamespace": "sagemaker",
}


def trust(service: str) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return {"Version": "2012-10-17", "Statement": [statement]}


def send(to: Any) -> dict[str, Any]:
    principal = {"Service": "events.amazonaws.com"}
    statement = {"Effect": "Allow", "Principal": principal, "Action": "sqs:SendMessage", "Resource": to}
    return {"Version": "2012-10-17", "Statement": [statement]}


def arn(name: str) -> dict[str, Any]:
    return {"Fn::GetAtt": [name, "Arn"]}


def alarm(name: str) -> dict[str, Any]:
    settings = {"Namespace": "N", "MetricName": "m", "Statistic": "Sum", "Period": 60, "EvaluationPeriods": 1}
    limit = {"Threshold": 1, "ComparisonOperator": "GreaterThanThreshold"}
    return {"Type": "AWS::CloudWatch::Alarm", "Properties": {"AlarmName": name, **settings, **limit}}


TEMPLATE: dict[str, Any] = {
    "Resources": {
        "First": alarm("stacked-first"),
        "Second": alarm("stacked-second"),
        "Both": {
            "Type": "AWS::CloudWatch::CompositeAlarm",
            "Properties": {"AlarmName": "stacked-both", "AlarmRule": "ALARM(stacked-first) AND ALARM(stacked-second)"},
            "DependsOn": ["First", "Second"],
        },
        "Board": {
            "Type": "AWS::CloudWatch::Dashboard",
            "Properties": {
                "DashboardName": "stacked",
                "DashboardBody": json.dumps({"widgets": [{"type": "text", "properties": {"markdown": "one"}}]}),
            },
        },
        "Queue": {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "stacked", "VisibilityTimeout": 20}},
        "QueuePolicy": {
            "Type": "AWS::SQS::QueuePolicy",
            "Properties": {"Queues": [{"Ref": "Queue"}], "PolicyDocument": send(arn("Queue"))},
        },
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"RoleName": "stacked", "AssumeRolePolicyDocument": trust("lambda.amazonaws.com")},
        },
        "Policy": {
            "Type": "AWS::IAM::Policy",
            "Properties": {"PolicyName": "send", "Roles": [{"Ref": "Role"}], "PolicyDocument": {
                "Version": "2012-10-17",
                "Statement": {"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": arn("Queue")},
            }},
        },
        "Function": {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "FunctionName": "stacked", "Runtime": "python3.12", "Handler": "index.handler", "Role": arn("Role"),
                "Code": {"ZipFile": CODE}, "Environment": {"Variables": {"GREETING": "hello"}}, "Timeout": "10",
            },
        },
        "Rule": {
            "Type": "AWS::Events::Rule",
            "Properties": {
                "Name": "stacked", "EventPattern": {"source": ["stacked"]},
                "Targets": [{"Id": "q", "Arn": arn("Queue")}, {"Id": "f", "Arn": arn("Function")}],
            },
        },
        "Permission": {
            "Type": "AWS::Lambda::Permission",
            "Properties": {
                "Action": "lambda:InvokeFunction", "FunctionName": {"Ref": "Function"},
                "Principal": "events.amazonaws.com", "SourceArn": arn("Rule"),
            },
        },
        "Logs": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "/stacked", "RetentionInDays": "7"}},
        "Target": {
            "Type": "AWS::ApplicationAutoScaling::ScalableTarget",
            "Properties": {**WHERE, "MinCapacity": 1, "MaxCapacity": 2, "RoleARN": "arn:aws:iam::123456789012:role/scaling"},
        },
        "Tracking": {
            "Type": "AWS::ApplicationAutoScaling::ScalingPolicy",
            "Properties": {
                "PolicyName": "stacked", "PolicyType": "TargetTrackingScaling", "ScalingTargetId": {"Ref": "Target"},
                "TargetTrackingScalingPolicyConfiguration": {
                    "TargetValue": "70",
                    "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
                },
            },
        },
        "Build": {
            "Type": "AWS::CodeBuild::Project",
            "Properties": {
                "Name": "stacked", "ServiceRole": arn("Role"), "Artifacts": {"Type": "NO_ARTIFACTS"},
                "Source": {"Type": "S3", "Location": "bucket/source.zip", "BuildSpec": "version: 0.2"},
                "Environment": {"Type": "LINUX_CONTAINER", "ComputeType": "BUILD_GENERAL1_SMALL", "Image": "image:1"},
            },
        },
    },
    "Outputs": {"Queue": {"Value": {"Ref": "Queue"}}},
}  # fmt: skip


@pytest.fixture
def endpoint(rig: Rig) -> Iterator[None]:
    """What there is to scale."""
    sagemaker = rig.client("sagemaker")
    container = {"Image": "image", "ModelDataUrl": rig.upload_source({"code/inference.py": ECHO})}
    sagemaker.create_model(ModelName="stacked", ExecutionRoleArn=rig.role, PrimaryContainer=container)
    variant = {"VariantName": "main", "ModelName": "stacked", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="stacked", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="stacked", EndpointConfigName="stacked")
    waits = {"WaiterConfig": {"Delay": 1, "MaxAttempts": 120}}
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="stacked", **waits)
    yield
    sagemaker.delete_endpoint(EndpointName="stacked")


def test_what_watches_and_reacts_is_made_changed_and_deleted(rig: Rig, endpoint: None) -> None:
    cloudformation, cloudwatch, sqs, iam, functions, events, logs, scaling, builds = (
        rig.client(name)
        for name in (
            *("cloudformation", "cloudwatch", "sqs", "iam", "lambda", "events", "logs"),
            *("application-autoscaling", "codebuild"),
        )
    )

    def state() -> str:
        (stack,) = cloudformation.describe_stacks(StackName="stacked")["Stacks"]
        failed = [
            event["ResourceStatusReason"]
            for event in cloudformation.describe_stack_events(StackName="stacked")["StackEvents"]
            if event["ResourceStatus"].endswith("FAILED")
        ]
        assert failed == []
        return str(stack["StackStatus"])

    named = {"Capabilities": ["CAPABILITY_NAMED_IAM"]}
    # Given the stack
    cloudformation.create_stack(StackName="stacked", TemplateBody=json.dumps(TEMPLATE), **named)
    assert state() == "CREATE_COMPLETE"
    # Then each service has what the template says
    (composite,) = cloudwatch.describe_alarms(AlarmNames=["stacked-both"], AlarmTypes=["CompositeAlarm"])[
        "CompositeAlarms"
    ]
    assert composite["AlarmRule"] == "ALARM(stacked-first) AND ALARM(stacked-second)"
    assert "one" in cloudwatch.get_dashboard(DashboardName="stacked")["DashboardBody"]
    url = sqs.get_queue_url(QueueName="stacked")["QueueUrl"]
    held = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert (held["VisibilityTimeout"], json.loads(held["Policy"])["Statement"][0]["Action"]) == (
        "20",
        "sqs:SendMessage",
    )
    assert iam.list_role_policies(RoleName="stacked")["PolicyNames"] == ["send"]
    assert logs.describe_log_groups(logGroupNamePrefix="/stacked")["logGroups"][0]["retentionInDays"] == 7
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[WHERE["ResourceId"]])[
        "ScalableTargets"
    ]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 2)
    (policy,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 70
    (project,) = builds.batch_get_projects(names=["stacked"])["projects"]
    assert project["environment"]["image"] == "image:1"

    def asked() -> dict[str, Any]:
        payload = functions.invoke(FunctionName="stacked", Payload=json.dumps({"name": "ann"}))["Payload"].read()
        answer: dict[str, Any] = json.loads(payload)
        return answer

    assert asked() == {"greeting": "hello", "name": "ann"}
    # And what it makes works together: an event reaches the queue
    events.put_events(Entries=[{"Source": "stacked", "DetailType": "d", "Detail": "{}"}])
    (got,) = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=10)["Messages"]
    assert json.loads(got["Body"])["source"] == "stacked"
    # The same again is no update
    with pytest.raises(cloudformation.exceptions.ClientError, match=r"No updates are to be performed\."):
        cloudformation.update_stack(StackName="stacked", TemplateBody=json.dumps(TEMPLATE), **named)
    # When each changes
    after = copy.deepcopy(TEMPLATE)
    properties = {name: body["Properties"] for name, body in after["Resources"].items()}
    properties["Both"]["AlarmRule"] = "ALARM(stacked-first) OR ALARM(stacked-second)"
    properties["Board"]["DashboardBody"] = properties["Board"]["DashboardBody"].replace("one", "two")
    properties["Queue"]["VisibilityTimeout"] = 40
    properties["Function"]["Environment"]["Variables"]["GREETING"] = "good day"
    properties["Function"]["Code"]["ZipFile"] = CODE.replace('"name": event', '"who": event')
    del properties["Rule"]["Targets"][1]
    properties["Logs"]["RetentionInDays"] = 14
    properties["Target"]["MaxCapacity"] = 3
    properties["Tracking"]["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] = 50
    properties["Build"]["Environment"]["Image"] = "image:2"
    del after["Resources"]["Policy"], after["Resources"]["QueuePolicy"], after["Resources"]["Permission"]
    cloudformation.update_stack(StackName="stacked", TemplateBody=json.dumps(after), **named)
    assert state() == "UPDATE_COMPLETE"
    # Then it has changed, and what the template no longer has is gone
    (composite,) = cloudwatch.describe_alarms(AlarmNames=["stacked-both"], AlarmTypes=["CompositeAlarm"])[
        "CompositeAlarms"
    ]
    assert " OR " in composite["AlarmRule"]
    assert "two" in cloudwatch.get_dashboard(DashboardName="stacked")["DashboardBody"]
    held = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert held["VisibilityTimeout"] == "40"
    assert not held.get("Policy")
    assert iam.list_role_policies(RoleName="stacked")["PolicyNames"] == []
    assert asked() == {"greeting": "good day", "who": "ann"}
    assert [each["Id"] for each in events.list_targets_by_rule(Rule="stacked")["Targets"]] == ["q"]
    assert logs.describe_log_groups(logGroupNamePrefix="/stacked")["logGroups"][0]["retentionInDays"] == 14
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert target["MaxCapacity"] == 3
    (project,) = builds.batch_get_projects(names=["stacked"])["projects"]
    assert project["environment"]["image"] == "image:2"
    # When an update fails in the middle, all is as it was
    broken = copy.deepcopy(after)
    broken["Resources"]["Logs"]["Properties"]["RetentionInDays"] = 30
    broken["Resources"]["Odd"] = {"Type": "AWS::Strange::Thing", "DependsOn": ["Logs", "Queue", "Both"]}
    cloudformation.update_stack(StackName="stacked", TemplateBody=json.dumps(broken), **named)
    (stack,) = cloudformation.describe_stacks(StackName="stacked")["Stacks"]
    assert stack["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
    reasons = [
        event.get("ResourceStatusReason", "")
        for event in cloudformation.describe_stack_events(StackName="stacked")["StackEvents"]
    ]
    assert any("AWS::Strange::Thing" in reason for reason in reasons)
    assert logs.describe_log_groups(logGroupNamePrefix="/stacked")["logGroups"][0]["retentionInDays"] == 14
    # When it is deleted, so is everything
    cloudformation.delete_stack(StackName="stacked")
    assert cloudwatch.describe_alarms(AlarmNamePrefix="stacked-")["MetricAlarms"] == []
    assert cloudwatch.list_dashboards()["DashboardEntries"] == []
    assert sqs.list_queues(QueueNamePrefix="stacked").get("QueueUrls", []) == []
    assert [f for f in functions.list_functions()["Functions"] if f["FunctionName"] == "stacked"] == []
    assert events.list_rules(NamePrefix="stacked")["Rules"] == []
    assert scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []
    assert scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []
    assert builds.list_projects()["projects"] == []
