"""Stacks on a running local cloud, by boto3: what is complete exists, what failed is undone and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, WaiterError

from windlass.local import LocalCloud

TOPIC = {"Type": "AWS::SNS::Topic", "Properties": {"TopicName": "alerts"}}
PARAMETER = {"Type": "AWS::SSM::Parameter", "Properties": {"Name": "/a/b", "Type": "String", "Value": "one"}}


class Clients:
    """boto3 clients of one local cloud."""

    def __init__(self, cloud: LocalCloud) -> None:
        self._session = boto3.session.Session(
            aws_access_key_id="test", aws_secret_access_key="test", region_name=cloud.region
        )
        self._url = cloud.url

    def __getattr__(self, service: str) -> Any:
        client = self._session.client(service, endpoint_url=self._url)
        setattr(self, service, client)
        return client


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    with LocalCloud.up(Path(tmp_path_factory.mktemp("cloud")), lifeline=True) as cloud:
        yield Clients(cloud)


@pytest.fixture
def stack(clients: Clients, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for a stack, and its removal."""
    name = "".join(part.capitalize() for part in request.node.originalname.split("_")[1:])[:60]
    yield name
    clients.cloudformation.delete_stack(StackName=name)
    with pytest.raises(ClientError, match="does not exist"):
        clients.cloudformation.describe_stacks(StackName=name)


def body(outputs: Mapping[str, Any] | None = None, **resources: Any) -> str:
    text: dict[str, Any] = {"Resources": resources}
    if outputs:
        text["Outputs"] = {name: {"Value": value} for name, value in outputs.items()}
    return json.dumps(text)


def with_(resource: Mapping[str, Any], **properties: Any) -> dict[str, Any]:
    return {**resource, "Properties": {**resource["Properties"], **properties}}


def state(clients: Clients, stack: str) -> str:
    found: str = clients.cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]
    return found


def events(clients: Clients, stack: str) -> list[tuple[str, str, str]]:
    """Oldest first: resource, status, reason."""
    raw = clients.cloudformation.describe_stack_events(StackName=stack)["StackEvents"]
    return [(e["LogicalResourceId"], e["ResourceStatus"], e.get("ResourceStatusReason", "")) for e in reversed(raw)]


def physical(clients: Clients, stack: str) -> dict[str, str]:
    resources = clients.cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
    return {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in resources}


def change_set(clients: Clients, stack: str, kind: str, template: str, **more: Any) -> dict[str, Any]:
    arn = clients.cloudformation.create_change_set(
        StackName=stack, ChangeSetName="change", ChangeSetType=kind, TemplateBody=template, **more
    )["Id"]
    answer: dict[str, Any] = clients.cloudformation.describe_change_set(ChangeSetName=arn)
    return answer


# ----------------------------------------------------------------------------------------------------------------- failures


def test_a_type_that_is_not_known_fails_the_stack_and_leaves_nothing(clients: Clients, stack: str) -> None:
    # Given a template with a type that the local cloud does not know, after one that it does
    queue = {"Type": "AWS::Quantum::Teleporter", "DependsOn": "Topic"}
    # When it is created
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(Topic=TOPIC, Teleporter=queue))
    # Then boto3's own waiter fails, the event names the type, and the topic is gone
    with pytest.raises(WaiterError, match="ROLLBACK_COMPLETE"):
        clients.cloudformation.get_waiter("stack_create_complete").wait(StackName=stack)
    failed = [(name, reason) for name, status, reason in events(clients, stack) if status == "CREATE_FAILED"]
    assert failed == [("Teleporter", "The local cloud does not implement the resource type AWS::Quantum::Teleporter")]
    assert ("Topic", "DELETE_COMPLETE", "") in events(clients, stack)
    assert clients.sns.list_topics()["Topics"] == []
    assert physical(clients, stack) == {}


def test_a_property_that_would_be_dropped_fails_the_stack(clients: Clients, stack: str) -> None:
    bucket = {"Type": "AWS::S3::Bucket", "Properties": {"ReplicationConfiguration": {}}}
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(Bucket=bucket))
    assert state(clients, stack) == "ROLLBACK_COMPLETE"
    assert (
        "Bucket",
        "CREATE_FAILED",
        "The local cloud does not implement ReplicationConfiguration of AWS::S3::Bucket",
    ) in (events(clients, stack))


def test_what_a_service_refuses_is_the_events_reason(clients: Clients, stack: str) -> None:
    alias = {"Type": "AWS::KMS::Alias", "Properties": {"AliasName": "alias/x", "TargetKeyId": "no-such-key"}}
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(Alias=alias))
    (reason,) = [reason for _, status, reason in events(clients, stack) if status == "CREATE_FAILED"]
    assert "no-such-key" in reason
    assert "CreateAlias: NotFoundException, 400" in reason


def test_a_missing_property_is_named(clients: Clients, stack: str) -> None:
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(Alias={"Type": "AWS::KMS::Alias"}))
    assert ("Alias", "CREATE_FAILED", "The property 'AliasName' is required") in events(clients, stack)


def test_a_failed_update_puts_everything_back(clients: Clients, stack: str) -> None:
    # Given a stack with a parameter
    clients.cloudformation.create_stack(
        StackName=stack, TemplateBody=body({"Value": {"Fn::GetAtt": ["P", "Value"]}}, P=PARAMETER)
    )
    # When an update changes it, adds a topic, and then fails
    broken = {"Type": "AWS::Quantum::Teleporter", "DependsOn": ["P", "Topic"]}
    clients.cloudformation.update_stack(
        StackName=stack, TemplateBody=body(P=with_(PARAMETER, Value="two"), Topic=TOPIC, X=broken)
    )
    # Then all is as before, the outputs too
    found = clients.cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    assert found["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
    assert found["Outputs"] == [{"OutputKey": "Value", "OutputValue": "one"}]
    assert clients.ssm.get_parameter(Name="/a/b")["Parameter"]["Value"] == "one"
    assert clients.sns.list_topics()["Topics"] == []
    assert physical(clients, stack) == {"P": "/a/b"}


def test_retain_holds_in_a_rollback_and_retain_except_on_create_does_not(clients: Clients, stack: str) -> None:
    kept = {**TOPIC, "Properties": {"TopicName": "kept"}, "DeletionPolicy": "Retain"}
    gone = {**TOPIC, "Properties": {"TopicName": "gone"}, "DeletionPolicy": "RetainExceptOnCreate"}
    broken = {"Type": "AWS::Quantum::Teleporter", "DependsOn": ["Kept", "Gone"]}
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(Kept=kept, Gone=gone, X=broken))
    (topic,) = clients.sns.list_topics()["Topics"]
    assert topic["TopicArn"].endswith(":kept")
    clients.sns.delete_topic(**topic)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        ({"TemplateBody": body(R={"Type": "AWS::IAM::Role"})}, "InsufficientCapabilitiesException", "CAPABILITY_IAM"),
        ({"TemplateBody": "{}"}, "ValidationError", "At least one Resources member"),
        (
            {"TemplateBody": body(T=TOPIC), "Parameters": [{"ParameterKey": "X", "ParameterValue": "1"}]},
            "ValidationError",
            r"Parameters: \[X\] do not exist in the template",
        ),
        (
            {"TemplateBody": json.dumps({"Parameters": {"P": {"Type": "String"}}, "Resources": {"T": TOPIC}})},
            "ValidationError",
            r"Parameters: \[P\] must have values",
        ),
        (
            {
                "TemplateBody": json.dumps(
                    {"Parameters": {"P": {"Type": "String", "AllowedPattern": "[a-z]+"}}, "Resources": {"T": TOPIC}}
                ),
                "Parameters": [{"ParameterKey": "P", "ParameterValue": "UP"}],
            },
            "ValidationError",
            r"Parameter P failed to satisfy constraint: must match pattern \[a-z\]\+",
        ),
        (
            {
                "TemplateBody": json.dumps(
                    {"Parameters": {"P": {"Type": "AWS::SSM::Parameter::Value<String>"}}, "Resources": {"T": TOPIC}}
                ),
                "Parameters": [{"ParameterKey": "P", "ParameterValue": "/not/there"}],
            },
            "ValidationError",
            r"Unable to fetch parameters \[/not/there\] from parameter store for this account",
        ),
    ],
)
def test_a_bad_request_makes_no_stack(clients: Clients, request_: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(ClientError, match=message) as caught:
        clients.cloudformation.create_stack(StackName="bad", **request_)
    assert caught.value.response["Error"]["Code"] == code
    assert not [s for s in clients.cloudformation.describe_stacks()["Stacks"] if s["StackName"] == "bad"]


# -------------------------------------------------------------------------------------------------------------- change sets


def test_a_change_set_creates_with_outputs(clients: Clients, stack: str) -> None:
    template = body({"Topic": {"Ref": "T"}, "Name": {"Fn::GetAtt": ["T", "TopicName"]}}, T=TOPIC)
    # Given a change set for a new stack
    made = change_set(clients, stack, "CREATE", template)
    assert (made["Status"], made["ExecutionStatus"]) == ("CREATE_COMPLETE", "AVAILABLE")
    assert [change["ResourceChange"]["Action"] for change in made["Changes"]] == ["Add"]
    # Then nothing exists before it is executed
    assert state(clients, stack) == "REVIEW_IN_PROGRESS"
    assert clients.sns.list_topics()["Topics"] == []
    # When it is executed
    clients.cloudformation.execute_change_set(ChangeSetName="change", StackName=stack)
    # Then the stack is complete, and its outputs are there
    clients.cloudformation.get_waiter("stack_create_complete").wait(StackName=stack)
    outputs = clients.cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["Outputs"]
    topic = "arn:aws:sns:us-east-1:123456789012:alerts"
    assert {o["OutputKey"]: o["OutputValue"] for o in outputs} == {"Topic": topic, "Name": "alerts"}


def test_a_change_set_without_changes_fails_as_on_aws(clients: Clients, stack: str) -> None:
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(P=PARAMETER))
    made = change_set(clients, stack, "UPDATE", body(P=PARAMETER))
    assert (made["Status"], made["ExecutionStatus"]) == ("FAILED", "UNAVAILABLE")
    assert made["StatusReason"].startswith("The submitted information didn't contain changes.")
    with pytest.raises(ClientError, match="cannot be executed in its current execution status"):
        clients.cloudformation.execute_change_set(ChangeSetName=made["ChangeSetId"])
    with pytest.raises(ClientError, match=r"No updates are to be performed\."):
        clients.cloudformation.update_stack(StackName=stack, TemplateBody=body(P=PARAMETER))


def test_a_change_set_tells_modification_from_replacement(clients: Clients, stack: str) -> None:
    policy = {
        "Type": "AWS::SNS::TopicPolicy",
        "Properties": {"Topics": [{"Ref": "T"}], "PolicyDocument": {"Version": "2012-10-17", "Statement": []}},
    }
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(T=TOPIC, P=PARAMETER, Policy=policy))
    # When the topic gets another name, the parameter another value, and a second parameter comes
    new = body(
        T=with_(TOPIC, TopicName="pages"),
        P=with_(PARAMETER, Value="two"),
        Policy=policy,
        Q=with_(PARAMETER, Name="/c"),
    )
    changes = [c["ResourceChange"] for c in change_set(clients, stack, "UPDATE", new)["Changes"]]
    # Then what depends on the topic changes with it
    assert {(c["LogicalResourceId"], c["Action"], c.get("Replacement", "")) for c in changes} == {
        ("T", "Modify", "True"),
        ("P", "Modify", "False"),
        ("Policy", "Modify", "False"),
        ("Q", "Add", ""),
    }
    clients.cloudformation.execute_change_set(ChangeSetName="change", StackName=stack)
    assert state(clients, stack) == "UPDATE_COMPLETE"
    (topic,) = clients.sns.list_topics()["Topics"]
    assert topic["TopicArn"].endswith(":pages")
    assert clients.ssm.get_parameter(Name="/a/b")["Parameter"]["Value"] == "two"


def test_a_resource_that_the_template_drops_is_deleted(clients: Clients, stack: str) -> None:
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(T=TOPIC, P=PARAMETER))
    clients.cloudformation.update_stack(StackName=stack, TemplateBody=body(P=PARAMETER))
    assert clients.sns.list_topics()["Topics"] == []
    assert physical(clients, stack) == {"P": "/a/b"}


def test_a_change_set_of_a_missing_stack_is_refused(clients: Clients) -> None:
    with pytest.raises(ClientError, match=r"Stack \[nowhere\] does not exist"):
        change_set(clients, "nowhere", "UPDATE", body(T=TOPIC))
    with pytest.raises(ClientError) as caught:
        clients.cloudformation.describe_change_set(ChangeSetName="none", StackName="nowhere")
    assert caught.value.response["Error"]["Code"] == "ChangeSetNotFound"


def test_deleting_a_change_set_that_is_not_there_is_no_error_as_on_aws(clients: Clients, stack: str) -> None:
    # The CDK CLI deletes its change set before it makes one
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(P=PARAMETER))
    clients.cloudformation.delete_change_set(StackName=stack, ChangeSetName="none")
    with pytest.raises(ClientError, match="does not exist"):
        clients.cloudformation.delete_change_set(StackName="nowhere", ChangeSetName="none")


def test_previous_values_and_templates_stay(clients: Clients, stack: str) -> None:
    template = json.dumps(
        {
            "Parameters": {"V": {"Type": "String"}, "W": {"Type": "String", "Default": "w"}},
            "Resources": {"P": with_(PARAMETER, Value={"Fn::Join": ["", [{"Ref": "V"}, {"Ref": "W"}]]})},
        }
    )
    clients.cloudformation.create_stack(
        StackName=stack, TemplateBody=template, Parameters=[{"ParameterKey": "V", "ParameterValue": "v"}]
    )
    clients.cloudformation.update_stack(
        StackName=stack,
        UsePreviousTemplate=True,
        Parameters=[{"ParameterKey": "V", "UsePreviousValue": True}, {"ParameterKey": "W", "ParameterValue": "!"}],
    )
    assert clients.ssm.get_parameter(Name="/a/b")["Parameter"]["Value"] == "v!"


# -------------------------------------------------------------------------------------------------------------------- types


def test_an_alarm_is_one_that_cloudwatch_has(clients: Clients, stack: str) -> None:
    alarm = {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmActions": [{"Ref": "T"}],
            "ComparisonOperator": "LessThanThreshold",
            "Dimensions": [{"Name": "EndpointName", "Value": "digits"}],
            "EvaluationPeriods": 1,
            "MetricName": "Accuracy",
            "Namespace": "Windlass",
            "Period": "10",
            "Statistic": "Average",
            "Threshold": 0.9,
        },
    }
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(T=TOPIC, A=alarm))
    assert state(clients, stack) == "CREATE_COMPLETE", [e[2] for e in events(clients, stack)]
    ids = physical(clients, stack)
    (found,) = clients.cloudwatch.describe_alarms(AlarmNames=[ids["A"]])["MetricAlarms"]
    assert (found["Threshold"], found["Period"], found["AlarmActions"]) == (0.9, 10, [ids["T"]])
    clients.cloudformation.delete_stack(StackName=stack)
    assert clients.cloudwatch.describe_alarms(AlarmNames=[ids["A"]])["MetricAlarms"] == []


ALARM = {
    "AlarmName": "tagged",
    "ComparisonOperator": "GreaterThanThreshold",
    "EvaluationPeriods": 1,
    "MetricName": "M",
    "Namespace": "N",
    "Period": 60,
    "Statistic": "Sum",
    "Threshold": 1,
}
FUNCTION = {
    "Code": {"ZipFile": "def handler(event, context): ..."},
    "FunctionName": "tagged",
    "Handler": "index.handler",
    "Role": "arn:aws:iam::123456789012:role/of-the-function",
    "Runtime": "python3.12",
}


def tags_of_alarm(clients: Clients, arn: str) -> dict[str, str]:
    found = clients.cloudwatch.list_tags_for_resource(ResourceARN=arn)["Tags"]
    return {tag["Key"]: tag["Value"] for tag in found}


def tags_of_function(clients: Clients, arn: str) -> dict[str, str]:
    found: dict[str, str] = getattr(clients, "lambda").list_tags(Resource=arn)["Tags"]
    return found


def tags_of_group(clients: Clients, arn: str) -> dict[str, str]:
    found: dict[str, str] = clients.logs.list_tags_for_resource(resourceArn=arn.removesuffix(":*"))["tags"]
    return found


@pytest.mark.parametrize(
    ("kind", "properties", "tags"),
    [
        ("CloudWatch::Alarm", ALARM, tags_of_alarm),
        ("CloudWatch::CompositeAlarm", {"AlarmName": "tagged", "AlarmRule": "FALSE"}, tags_of_alarm),
        ("Lambda::Function", FUNCTION, tags_of_function),
        ("Logs::LogGroup", {"LogGroupName": "tagged"}, tags_of_group),
    ],
)
def test_an_update_changes_adds_and_removes_tags(
    clients: Clients,
    stack: str,
    request: pytest.FixtureRequest,
    kind: str,
    properties: Mapping[str, Any],
    tags: Callable[[Clients, str], dict[str, str]],
) -> None:
    def tagged(**pairs: str) -> str:
        given = [{"Key": key, "Value": value} for key, value in pairs.items()]
        resource = {"Type": f"AWS::{kind}", "Properties": {**properties, "Tags": given}}
        return body({"Arn": {"Fn::GetAtt": ["R", "Arn"]}}, R=resource)

    if properties is FUNCTION:
        trusted = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
        trust = json.dumps({"Version": "2012-10-17", "Statement": trusted})
        clients.iam.create_role(RoleName="of-the-function", AssumeRolePolicyDocument=trust)
        request.addfinalizer(lambda: clients.iam.delete_role(RoleName="of-the-function"))
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=tagged(a="1", b="2"))
    arn = clients.cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["Outputs"][0]["OutputValue"]
    assert tags(clients, arn) == {"a": "1", "b": "2"}

    clients.cloudformation.update_stack(StackName=stack, TemplateBody=tagged(a="3", c="4"))

    assert state(clients, stack) == "UPDATE_COMPLETE"
    assert tags(clients, arn) == {"a": "3", "c": "4"}


def test_a_subscription_delivers(clients: Clients, stack: str) -> None:
    queue = clients.sqs.create_queue(QueueName="inbox")["QueueUrl"]
    arn = clients.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    subscription = {
        "Type": "AWS::SNS::Subscription",
        "Properties": {"TopicArn": {"Ref": "T"}, "Protocol": "sqs", "Endpoint": arn, "RawMessageDelivery": True},
    }
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body(T=TOPIC, S=subscription))
    clients.sns.publish(TopicArn=physical(clients, stack)["T"], Message="hello")
    assert clients.sqs.receive_message(QueueUrl=queue)["Messages"][0]["Body"] == "hello"


def test_a_registry_group_that_holds_versions_blocks_deletion_until_it_is_retained(clients: Clients) -> None:
    # Given a stack with a registry group, and a version in it
    group = {"Type": "AWS::SageMaker::ModelPackageGroup", "Properties": {"ModelPackageGroupName": "digits"}}
    clients.cloudformation.create_stack(StackName="registry", TemplateBody=body(G=group, T=TOPIC))
    clients.sagemaker.create_model_package(ModelPackageGroupName="digits", ModelPackageDescription="one")
    # When the stack is deleted
    clients.cloudformation.delete_stack(StackName="registry")
    # Then it says what is in the way, and the rest is gone
    assert state(clients, "registry") == "DELETE_FAILED"
    assert clients.sns.list_topics()["Topics"] == []
    # When the group is left out
    clients.cloudformation.delete_stack(StackName="registry", RetainResources=["G"])
    # Then the stack is gone, and the group is not
    with pytest.raises(ClientError, match="does not exist"):
        clients.cloudformation.describe_stacks(StackName="registry")
    assert clients.sagemaker.describe_model_package_group(ModelPackageGroupName="digits")


def test_a_type_of_motos_own_still_works(clients: Clients, stack: str) -> None:
    table = {
        "Type": "AWS::DynamoDB::Table",
        "Properties": {
            "TableName": "things",
            "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
            "BillingMode": "PAY_PER_REQUEST",
        },
    }
    clients.cloudformation.create_stack(StackName=stack, TemplateBody=body({"Table": {"Ref": "D"}}, D=table))
    assert state(clients, stack) == "CREATE_COMPLETE", [e[2] for e in events(clients, stack)]
    assert clients.dynamodb.list_tables()["TableNames"] == ["things"]
    clients.cloudformation.delete_stack(StackName=stack)
    assert clients.dynamodb.list_tables()["TableNames"] == []


def test_a_template_from_a_bucket_of_the_local_cloud(clients: Clients, stack: str) -> None:
    clients.s3.create_bucket(Bucket="templates")
    clients.s3.put_object(Bucket="templates", Key="t.json", Body=body(T=TOPIC).encode())
    url = f"{clients.s3.meta.endpoint_url}/templates/t.json"
    clients.cloudformation.create_stack(StackName=stack, TemplateURL=url)
    assert state(clients, stack) == "CREATE_COMPLETE"
