"""IAM that bites: what policies do not allow is refused as AWS refuses it, and what they allow works."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, WaiterError

from tests.cloud import test_verbs as verbs
from windlass.local import LocalCloud

ACCOUNT = "123456789012"
BUCKET = "iam-data"
Keys = tuple[str, str, str | None]


@dataclass
class Enforcing:
    """A cloud that enforces IAM, and clients of it by whoever they are to be."""

    cloud: LocalCloud
    _clients: dict[tuple[str, Keys], Any] = field(default_factory=dict)
    _users: int = 0

    @property
    def root(self) -> Keys:
        return self.cloud.env["AWS_ACCESS_KEY_ID"], self.cloud.env["AWS_SECRET_ACCESS_KEY"], None

    def client(self, service: str, keys: Keys | None = None) -> Any:
        who = keys or self.root
        if (service, who) not in self._clients:
            access, secret, token = who
            self._clients[service, who] = boto3.client(
                service,
                endpoint_url=self.cloud.url,
                region_name="us-east-1",
                aws_access_key_id=access,
                aws_secret_access_key=secret,
                aws_session_token=token,
            )
        return self._clients[service, who]

    def user(self, *statements: dict[str, Any], **more: Any) -> Keys:
        """A new user with that inline policy."""
        self._users += 1
        name, iam = f"user{self._users}", self.client("iam")
        iam.create_user(UserName=name, **more)
        if statements:
            iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document(*statements))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        return made["AccessKeyId"], made["SecretAccessKey"], None

    def role(self, name: str, trusted: dict[str, Any], *statements: dict[str, Any], **more: Any) -> str:
        iam = self.client("iam")
        trust = document({"Effect": "Allow", "Principal": trusted, "Action": "sts:AssumeRole"})
        arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust, **more)["Role"]["Arn"]
        if statements:
            iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=document(*statements))
        return arn

    def assume(self, arn: str, keys: Keys | None = None, **more: Any) -> Keys:
        answer = self.client("sts", keys).assume_role(RoleArn=arn, RoleSessionName="me", **more)["Credentials"]
        return answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {**allow(action, resource, **more), "Effect": "Deny"}


def refused(call: Callable[..., Any], /, **params: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call(**params)
    return caught.value


def message(error: ClientError) -> str:
    return str(error.response["Error"]["Message"])


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enforcing]:
    with LocalCloud.up(tmp_path_factory.mktemp("iam"), lifeline=True, enforce_iam=True) as cloud:
        aws = Enforcing(cloud)
        aws.client("s3").create_bucket(Bucket=BUCKET)
        aws.client("s3").put_object(Bucket=BUCKET, Key="in/a b.txt", Body=b"text")
        yield aws
        aws.close()


# --- who asks ---

# Service, operation, parameters, code, status, and what the message names. Codes: each service's own "common errors".
TRAINING = {
    "TrainingJobName": "Job",
    "RoleArn": f"arn:aws:iam::{ACCOUNT}:role/some-role-of-mine",
    "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
    "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
}
DENIALS: list[tuple[str, str, dict[str, Any], str, int, str]] = [
    ("sagemaker", "create_training_job", TRAINING, "AccessDeniedException", 400,
     f"sagemaker:CreateTrainingJob on resource: arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/job"),
    ("sagemaker", "list_models", {}, "AccessDeniedException", 400, "sagemaker:ListModels on resource: *"),
    ("sagemaker-runtime", "invoke_endpoint", {"EndpointName": "e", "Body": b"1"}, "AccessDeniedException", 403,
     f"sagemaker:InvokeEndpoint on resource: arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint/e"),
    ("s3", "get_object", {"Bucket": BUCKET, "Key": "in/a b.txt"}, "AccessDenied", 403,
     f's3:GetObject on resource: "arn:aws:s3:::{BUCKET}/in/a b.txt"'),
    ("s3", "list_objects_v2", {"Bucket": BUCKET}, "AccessDenied", 403, f's3:ListBucket on resource: "arn:aws:s3:::{BUCKET}"'),
    ("s3", "create_multipart_upload", {"Bucket": BUCKET, "Key": "k"}, "AccessDenied", 403, "s3:PutObject"),
    ("s3", "put_bucket_encryption", {"Bucket": BUCKET, "ServerSideEncryptionConfiguration": {"Rules": [{}]}},
     "AccessDenied", 403, "s3:PutEncryptionConfiguration"),
    ("iam", "list_users", {}, "AccessDenied", 403, "iam:ListUsers on resource: *"),
    ("sts", "assume_role", {"RoleArn": f"arn:aws:iam::{ACCOUNT}:role/none-such-role", "RoleSessionName": "s1"},
     "AccessDenied", 403, f"sts:AssumeRole on resource: arn:aws:iam::{ACCOUNT}:role/none-such-role"),
    ("cloudformation", "describe_stacks", {"StackName": "s"}, "AccessDenied", 403,
     f"cloudformation:DescribeStacks on resource: arn:aws:cloudformation:us-east-1:{ACCOUNT}:stack/s/*"),
    ("sns", "create_topic", {"Name": "t"}, "AuthorizationError", 403,
     f"SNS:CreateTopic on resource: arn:aws:sns:us-east-1:{ACCOUNT}:t"),
    ("sqs", "create_queue", {"QueueName": "q"}, "AccessDenied", 403,
     f"sqs:createqueue on resource: arn:aws:sqs:us-east-1:{ACCOUNT}:q"),
    ("cloudwatch", "put_metric_data", {"Namespace": "N", "MetricData": [{"MetricName": "m", "Value": 1}]},
     "AccessDenied", 403, "cloudwatch:PutMetricData on resource: *"),
    ("logs", "create_log_group", {"logGroupName": "/g"}, "AccessDeniedException", 400,
     f"logs:CreateLogGroup on resource: arn:aws:logs:us-east-1:{ACCOUNT}:log-group:/g"),
    ("events", "put_rule", {"Name": "r", "ScheduleExpression": "rate(1 minute)"}, "AccessDeniedException", 400,
     f"events:PutRule on resource: arn:aws:events:us-east-1:{ACCOUNT}:rule/r"),
    ("lambda", "invoke", {"FunctionName": "f"}, "AccessDeniedException", 403,
     f"lambda:InvokeFunction on resource: arn:aws:lambda:us-east-1:{ACCOUNT}:function:f"),
    ("ssm", "get_parameter", {"Name": "/a/b"}, "AccessDeniedException", 400,
     f"ssm:GetParameter on resource: arn:aws:ssm:us-east-1:{ACCOUNT}:parameter/a/b"),
    ("kms", "create_key", {}, "AccessDeniedException", 400, "kms:CreateKey on resource: *"),
]  # fmt: skip


@pytest.fixture(scope="module")
def nobody(aws: Enforcing) -> Keys:
    """A user without any policy."""
    return aws.user()


@pytest.mark.parametrize(
    ("service", "operation", "params", "code", "status", "named"), DENIALS, ids=[f"{d[0]}.{d[1]}" for d in DENIALS]
)
def test_what_no_policy_allows_is_refused_in_the_form_of_its_service(
    aws: Enforcing,
    nobody: Keys,
    service: str,
    operation: str,
    params: dict[str, Any],
    code: str,
    status: int,
    named: str,
) -> None:
    error = refused(getattr(aws.client(service, nobody), operation), **params)
    assert error.response["Error"]["Code"] == code
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == status
    arn = aws.client("sts", nobody).get_caller_identity()["Arn"]
    assert message(error).startswith(f"User: {arn} is not authorized to perform: {named}")
    kind = "resource-based" if service == "sts" else "identity-based"
    assert f"because no {kind} policy allows the " in message(error)


def test_a_head_request_is_refused_without_a_message(aws: Enforcing, nobody: Keys) -> None:
    error = refused(aws.client("s3", nobody).head_object, Bucket=BUCKET, Key="in/a b.txt")
    assert (error.response["Error"]["Code"], error.response["Error"]["Message"]) == ("403", "Forbidden")


def test_everybody_may_ask_who_they_are(aws: Enforcing, nobody: Keys) -> None:
    assert ":user/user" in aws.client("sts", nobody).get_caller_identity()["Arn"]
    assert aws.client("sts").get_caller_identity()["Arn"] == f"arn:aws:iam::{ACCOUNT}:root"


@pytest.mark.parametrize(
    ("service", "operation", "unknown", "forged"),
    [
        ("s3", "list_buckets", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
        ("iam", "list_users", "InvalidClientTokenId", "SignatureDoesNotMatch"),
        ("sagemaker", "list_models", "UnrecognizedClientException", "InvalidSignatureException"),
        ("lambda", "list_functions", "UnrecognizedClientException", "InvalidSignatureException"),
        ("cloudwatch", "list_metrics", "InvalidClientTokenId", "SignatureDoesNotMatch"),
    ],
)
def test_keys_that_nobody_has_and_secrets_that_are_wrong(
    aws: Enforcing, nobody: Keys, service: str, operation: str, unknown: str, forged: str
) -> None:
    for keys, code in ((("AKIANOBODYHASTHISKEY", "x", None), unknown), ((nobody[0], "wrong", None), forged)):
        error = refused(getattr(aws.client(service, keys), operation))
        assert error.response["Error"]["Code"] == code


def test_a_key_that_is_inactive_or_deleted_is_unknown(aws: Enforcing) -> None:
    keys = aws.user(allow("s3:ListAllMyBuckets"))
    aws.client("s3", keys).list_buckets()
    name = aws.client("sts", keys).get_caller_identity()["Arn"].rpartition("/")[2]
    aws.client("iam").update_access_key(UserName=name, AccessKeyId=keys[0], Status="Inactive")
    assert refused(aws.client("s3", keys).list_buckets).response["Error"]["Code"] == "InvalidAccessKeyId"


def test_who_signs_nothing_is_nobody(aws: Enforcing) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{aws.cloud.url}/{BUCKET}/in/a%20b.txt")
    with caught.value as error:
        assert error.code == 403
        assert b"<Code>AccessDenied</Code><Message>Access Denied</Message>" in error.read()


def test_a_presigned_url_carries_the_signer_s_permissions(aws: Enforcing, nobody: Keys) -> None:
    reader = aws.user(allow("s3:GetObject", f"arn:aws:s3:::{BUCKET}/in/*"))
    asked = {"Params": {"Bucket": BUCKET, "Key": "in/a b.txt"}}
    good, bad = (aws.client("s3", who).generate_presigned_url("get_object", **asked) for who in (reader, nobody))
    with urllib.request.urlopen(good) as answer:
        assert answer.read() == b"text"
    for url in (bad, good.replace("Signature=", "Signature=x"), good.replace("a%20b", "b")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url)
        with caught.value as error:
            assert error.code == 403


# --- policies ---


def test_groups_managed_policies_and_explicit_denies(aws: Enforcing) -> None:
    iam, keys = aws.client("iam"), aws.user()
    name = aws.client("sts", keys).get_caller_identity()["Arn"].rpartition("/")[2]
    s3 = aws.client("s3", keys)
    # Given a group with AWS's own managed policy
    iam.create_group(GroupName="readers")
    iam.attach_group_policy(GroupName="readers", PolicyArn="arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess")
    refused(s3.list_buckets)
    # When the user is in it, they read
    iam.add_user_to_group(GroupName="readers", UserName=name)
    assert s3.get_object(Bucket=BUCKET, Key="in/a b.txt")["Body"].read() == b"text"
    # And a deny of a managed policy of the account wins, in its default version alone
    made = iam.create_policy(PolicyName="closed", PolicyDocument=document(deny("s3:*", "arn:aws:s3:::other/*")))[
        "Policy"
    ]
    iam.attach_user_policy(UserName=name, PolicyArn=made["Arn"])
    s3.list_buckets()
    closed = document(deny("s3:Get*", f"arn:aws:s3:::{BUCKET}/in/*"))
    iam.create_policy_version(PolicyArn=made["Arn"], PolicyDocument=closed, SetAsDefault=True)
    assert message(refused(s3.get_object, Bucket=BUCKET, Key="in/a b.txt")).endswith(
        "with an explicit deny in an identity-based policy"
    )


def test_a_permissions_boundary_of_a_user(aws: Enforcing) -> None:
    iam = aws.client("iam")
    boundary = iam.create_policy(PolicyName="edge", PolicyDocument=document(allow("s3:List*")))["Policy"]["Arn"]
    keys = aws.user(allow("*"), PermissionsBoundary=boundary)
    name = aws.client("sts", keys).get_caller_identity()["Arn"].rpartition("/")[2]
    assert iam.get_user(UserName=name)["User"]["PermissionsBoundary"]["PermissionsBoundaryArn"] == boundary
    aws.client("s3", keys).list_buckets()
    error = refused(aws.client("sqs", keys).list_queues)
    assert "because no permissions boundary allows the sqs:listqueues action" in message(error)
    iam.delete_user_permissions_boundary(UserName=name)
    aws.client("sqs", keys).list_queues()


def test_condition_keys_of_requests(aws: Enforcing) -> None:
    home = {"StringLike": {"s3:prefix": ["${aws:username}/*"]}}
    ours = {"StringEquals": {"cloudwatch:namespace": ["Ours"]}}
    keys = aws.user(
        allow("s3:ListBucket", f"arn:aws:s3:::{BUCKET}", Condition=home),
        allow("cloudwatch:PutMetricData", Condition=ours),
        allow("s3:CreateBucket", Condition={"Bool": {"aws:SecureTransport": "true"}}),
        allow("sqs:CreateQueue", Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}),
    )
    name = aws.client("sts", keys).get_caller_identity()["Arn"].rpartition("/")[2]
    s3, cloudwatch = aws.client("s3", keys), aws.client("cloudwatch", keys)
    s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{name}/x")
    refused(s3.list_objects_v2, Bucket=BUCKET, Prefix="else/")
    refused(s3.list_objects_v2, Bucket=BUCKET)
    datum = [{"MetricName": "m", "Value": 1.0}]
    cloudwatch.put_metric_data(Namespace="Ours", MetricData=datum)
    refused(cloudwatch.put_metric_data, Namespace="Theirs", MetricData=datum)
    many = [{"MetricName": "m", "Value": float(n)} for n in range(900)]  # gzipped by boto3
    refused(cloudwatch.put_metric_data, Namespace="Theirs", MetricData=many)
    s3.create_bucket(Bucket="tls-bucket")
    refused(aws.client("sqs", keys).create_queue, QueueName="elsewhere")


# --- roles ---


def test_a_role_is_assumed_by_whom_it_trusts_within_its_session(aws: Enforcing) -> None:
    ann, bob = aws.user(), aws.user(allow("sts:AssumeRole"))
    arn_of_ann = aws.client("sts", ann).get_caller_identity()["Arn"]
    arn = aws.role("trusts-ann", {"AWS": arn_of_ann}, allow("s3:*"))
    assert "no resource-based policy allows the sts:AssumeRole action" in message(
        refused(aws.client("sts", bob).assume_role, RoleArn=arn, RoleSessionName="s1")
    )
    session = aws.assume(arn, ann)
    assert aws.client("sts", session).get_caller_identity()["Arn"].endswith(":assumed-role/trusts-ann/me")
    aws.client("s3", session).list_buckets()
    # A session policy narrows, inline or by its ARN
    narrow = aws.assume(arn, ann, Policy=document(allow("s3:GetObject")))
    aws.client("s3", narrow).get_object(Bucket=BUCKET, Key="in/a b.txt")
    assert "because no session policy allows" in message(refused(aws.client("s3", narrow).list_buckets))
    read_only = "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"
    narrow = aws.assume(arn, ann, PolicyArns=[{"arn": read_only}])
    refused(aws.client("s3", narrow).put_object, Bucket=BUCKET, Key="k", Body=b"")
    # The wrong token is nobody's
    wrong = (session[0], session[1], "no such token")
    assert refused(aws.client("s3", wrong).list_buckets).response["Error"]["Code"] == "InvalidAccessKeyId"


def test_a_role_that_trusts_the_account_leaves_it_to_policies(aws: Enforcing, nobody: Keys) -> None:
    trust = {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
    arn = aws.role("trusts-account", trust, allow("s3:ListAllMyBuckets"))
    error = refused(aws.client("sts", nobody).assume_role, RoleArn=arn, RoleSessionName="s1")
    assert "because no identity-based policy allows the sts:AssumeRole action" in message(error)
    aws.client("s3", aws.assume(arn, aws.user(allow("sts:AssumeRole", arn)))).list_buckets()
    aws.client("s3", aws.assume(arn)).list_buckets()  # the root, too
    condition = {"StringEquals": {"sts:ExternalId": "77"}}
    statement = {"Effect": "Allow", "Principal": trust, "Action": "sts:AssumeRole", "Condition": condition}
    aws.client("iam").update_assume_role_policy(RoleName="trusts-account", PolicyDocument=document(statement))
    refused(aws.client("sts").assume_role, RoleArn=arn, RoleSessionName="s1")
    aws.assume(arn, ExternalId="77")


def test_passing_a_role_takes_a_permission_of_its_own(aws: Enforcing) -> None:
    role = aws.role("trainer", {"Service": "sagemaker.amazonaws.com"})
    request = {**TRAINING, "TrainingJobName": "passes", "RoleArn": role}
    to_lambda = {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}
    keys = aws.user(allow("sagemaker:*"), allow("iam:PassRole", role, Condition=to_lambda))
    error = refused(aws.client("sagemaker", keys).create_training_job, **request)
    assert f"is not authorized to perform: iam:PassRole on resource: {role} because" in message(error)


# --- what resources say ---


def test_a_bucket_s_policy_allows_and_denies(aws: Enforcing) -> None:
    keys, s3 = aws.user(), aws.client("s3")
    arn = aws.client("sts", keys).get_caller_identity()["Arn"]
    s3.create_bucket(Bucket="with-policy")
    s3.put_object(Bucket="with-policy", Key="open/a", Body=b"1")
    objects = "arn:aws:s3:::with-policy/*"
    plain = {"Bool": {"aws:SecureTransport": "false"}}
    policy = document(
        {**allow("s3:GetObject", "arn:aws:s3:::with-policy/open/*"), "Principal": {"AWS": arn}},
        {**deny("s3:PutObject", objects), "Principal": "*"},
        {**deny("s3:*", objects, Condition=plain), "Principal": "*"},
    )
    s3.put_bucket_policy(Bucket="with-policy", Policy=policy)
    assert aws.client("s3", keys).get_object(Bucket="with-policy", Key="open/a")["Body"].read() == b"1"
    refused(aws.client("s3", keys).get_object, Bucket="with-policy", Key="else")
    # An explicit deny binds the root, too; it can mend the policy all the same
    error = refused(s3.put_object, Bucket="with-policy", Key="open/a", Body=b"2")
    assert message(error).endswith("with an explicit deny in a resource-based policy")
    closed = {**deny("s3:*", "arn:aws:s3:::with-policy"), "Principal": "*"}
    s3.put_bucket_policy(Bucket="with-policy", Policy=document(closed))
    refused(s3.list_objects_v2, Bucket="with-policy")
    s3.delete_bucket_policy(Bucket="with-policy")
    s3.list_objects_v2(Bucket="with-policy")


def test_an_encrypted_object_takes_its_key(aws: Enforcing) -> None:
    kms, s3 = aws.client("kms"), aws.client("s3")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    s3.create_bucket(Bucket="encrypted")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}}
    s3.put_bucket_encryption(Bucket="encrypted", ServerSideEncryptionConfiguration={"Rules": [rule]})
    s3.put_object(Bucket="encrypted", Key="a", Body=b"1")
    plain = aws.user(allow("s3:*", "arn:aws:s3:::encrypted/*"))
    error = refused(aws.client("s3", plain).get_object, Bucket="encrypted", Key="a")
    assert f"is not authorized to perform: kms:Decrypt on resource: {key} because no identity-based" in message(error)
    refused(aws.client("s3", plain).put_object, Bucket="encrypted", Key="b", Body=b"2")
    through_s3 = {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}
    whole = aws.user(
        allow("s3:*", "arn:aws:s3:::encrypted/*"),
        allow(["kms:Decrypt", "kms:GenerateDataKey"], key, Condition=through_s3),
    )
    aws.client("s3", whole).put_object(Bucket="encrypted", Key="b", Body=b"2")
    assert aws.client("s3", whole).get_object(Bucket="encrypted", Key="b")["Body"].read() == b"2"
    refused(aws.client("kms", whole).generate_data_key, KeyId=key, KeySpec="AES_256")  # not by way of S3
    # The key's policy decides: what it does not leave to the account, no policy of a user can allow
    user = aws.client("sts", plain).get_caller_identity()["Arn"]
    kms.put_key_policy(
        KeyId=key,
        PolicyName="default",
        Policy=document({**allow("kms:*"), "Principal": {"AWS": [user]}}),
    )
    assert "no resource-based policy allows the kms:Decrypt" in message(
        refused(aws.client("s3", whole).get_object, Bucket="encrypted", Key="b")
    )
    aws.client("s3", plain).get_object(Bucket="encrypted", Key="a")


def test_an_alarm_publishes_where_the_topic_and_its_key_let_it(aws: Enforcing) -> None:
    cloudwatch, sns, sqs = (aws.client(name) for name in ("cloudwatch", "sns", "sqs"))
    topic = sns.create_topic(Name="alarms")["TopicArn"]
    queue = sqs.create_queue(QueueName="alarms")["QueueUrl"]
    queue_arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue_arn)
    cloudwatch.put_metric_alarm(
        AlarmName="a", Namespace="N", MetricName="m", Statistic="Sum", Period=60, EvaluationPeriods=1, Threshold=1,
        ComparisonOperator="GreaterThanThreshold", AlarmActions=[topic],
    )  # fmt: skip

    def fire() -> str:
        """What the alarm's history says of its action."""
        cloudwatch.set_alarm_state(AlarmName="a", StateValue="OK", StateReason="test")
        before = len(history())
        cloudwatch.set_alarm_state(AlarmName="a", StateValue="ALARM", StateReason="test")
        while len(history()) == before:
            pass
        return str(history()[0]["HistorySummary"])

    def history() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cloudwatch.describe_alarm_history(AlarmName="a", HistoryItemType="Action")[
            "AlarmHistoryItems"
        ]
        return found

    # The topic's default policy lets services of the account publish, but the queue lets nobody send
    assert fire().startswith("Successfully executed action")
    assert "Messages" not in sqs.receive_message(QueueUrl=queue)
    # With a policy of its own, the queue hears of it
    of_topic = {"ArnEquals": {"aws:SourceArn": topic}}
    may_send = {
        **allow("sqs:SendMessage", queue_arn, Condition=of_topic),
        "Principal": {"Service": "sns.amazonaws.com"},
    }
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": document(may_send)})
    fire()
    assert "ALARM" in sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=10)["Messages"][0]["Body"]
    # A topic that lets only another account's resources publish refuses the alarm, and the history says so
    elsewhere = {"StringEquals": {"aws:SourceAccount": "999999999999"}}
    closed = {**allow("sns:Publish", topic, Condition=elsewhere), "Principal": {"Service": "cloudwatch.amazonaws.com"}}
    sns.set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue=document(closed))
    told = fire()
    assert told.startswith(f"Failed to execute action {topic}")
    assert "cloudwatch.amazonaws.com is not authorized to perform: SNS:Publish" in told


def test_a_bucket_tells_a_queue_that_lets_it(aws: Enforcing) -> None:
    s3, sqs = aws.client("s3"), aws.client("sqs")
    queue = sqs.create_queue(QueueName="objects")["QueueUrl"]
    queue_arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    s3.create_bucket(Bucket="tells")
    telling = {
        "Bucket": "tells",
        "NotificationConfiguration": {
            "QueueConfigurations": [{"QueueArn": queue_arn, "Events": ["s3:ObjectCreated:*"]}],
        },
    }
    error = refused(s3.put_bucket_notification_configuration, **telling)
    assert "s3.amazonaws.com is not authorized to perform: sqs:sendmessage" in message(error)
    of_bucket = {"ArnLike": {"aws:SourceArn": "arn:aws:s3:::tells"}, "StringEquals": {"aws:SourceAccount": ACCOUNT}}
    may_send = {
        **allow("sqs:SendMessage", queue_arn, Condition=of_bucket),
        "Principal": {"Service": "s3.amazonaws.com"},
    }
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": document(may_send)})
    s3.put_bucket_notification_configuration(**telling)
    s3.put_object(Bucket="tells", Key="k", Body=b"x")
    told = [sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=10)["Messages"][0]["Body"] for _ in range(2)]
    assert json.loads(told[0])["Event"] == "s3:TestEvent"
    assert json.loads(told[1])["Records"][0]["s3"]["object"]["key"] == "k"


def test_a_function_acts_as_its_role(aws: Enforcing) -> None:
    code = io.BytesIO()
    source = f"""
import boto3
def handler(event, context):
    s3 = boto3.client("s3")
    try:
        return s3.get_object(Bucket="{BUCKET}", Key=event["key"])["Body"].read().decode()
    except s3.exceptions.ClientError as error:
        return str(error)
"""
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("index.py", source)
    role = aws.role(
        "function", {"Service": "lambda.amazonaws.com"}, allow("s3:GetObject", f"arn:aws:s3:::{BUCKET}/in/*")
    )
    functions = aws.client("lambda")
    functions.create_function(
        FunctionName="reads",
        Runtime="python3.11",
        Role=role,
        Handler="index.handler",
        Code={"ZipFile": code.getvalue()},
    )

    def ask(key: str) -> str:
        answer = functions.invoke(FunctionName="reads", Payload=json.dumps({"key": key}))
        return str(json.loads(answer["Payload"].read()))

    assert ask("in/a b.txt") == "text"
    assert f"assumed-role/function/reads is not authorized to perform: s3:GetObject on resource: \"arn:aws:s3:::{BUCKET}/x" in (
        ask("x")
    )  # fmt: skip
    # Its log, too, is its role's to write
    refused(aws.client("logs").describe_log_streams, logGroupName="/aws/lambda/reads")


# --- what SageMaker does as a role ---

SCRIPT = """
import os, pathlib
pathlib.Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "model", "weights").write_text("1")
print("loss=1.5")
"""
MAY_READ = [
    allow("s3:ListBucket", f"arn:aws:s3:::{BUCKET}"),
    allow("s3:GetObject", f"arn:aws:s3:::{BUCKET}/in/*"),
]
MAY_LOG = allow(["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"])
MAY_MEASURE = allow("cloudwatch:PutMetricData")


def train(aws: Enforcing, name: str, *statements: dict[str, Any]) -> dict[str, Any]:
    """The description of a job, once it is over, that ran as a role with that policy."""
    role = aws.role(f"role-of-{name}", {"Service": "sagemaker.amazonaws.com"}, *statements)
    sagemaker = aws.client("sagemaker")
    data = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/in/", "S3DataDistributionType": "FullyReplicated"}
    sagemaker.create_training_job(
        **{
            **TRAINING,
            "TrainingJobName": name,
            "RoleArn": role,
            "AlgorithmSpecification": {
                "TrainingImage": "image",
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["python", "-c", SCRIPT],
                "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}],
            },
            "InputDataConfig": [{"ChannelName": "train", "DataSource": {"S3DataSource": data}}],
        }
    )
    with contextlib.suppress(WaiterError):  # it has failed, which is what some are about
        sagemaker.get_waiter("training_job_completed_or_stopped").wait(
            TrainingJobName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )
    described: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=name)
    return described


def test_a_job_does_only_what_its_role_may(aws: Enforcing) -> None:
    write = allow("s3:PutObject", f"arn:aws:s3:::{BUCKET}/out/*")
    # Nothing may be read: refused before it starts, as on AWS
    with pytest.raises(ClientError, match='has "s3:ListBucket" permissions on bucket') as caught:
        train(aws, "reads-nothing", write)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    # The list may be read, but not what it names
    job = train(aws, "lists", MAY_READ[0], write)
    assert job["TrainingJobStatus"] == "Failed"
    assert "is not authorized to perform: s3:GetObject" in job["FailureReason"]
    assert "assumed-role/role-of-lists/SageMaker" in job["FailureReason"]
    # The result may not be written
    job = train(aws, "keeps", *MAY_READ)
    assert job["FailureReason"].startswith("ClientError: Artifact upload failed: User: arn:aws:sts::")
    # Without the permission to write a log or metrics, a job runs all the same, unseen
    job = train(aws, "mute", *MAY_READ, write)
    assert job["TrainingJobStatus"] == "Completed"
    assert streams(aws, "mute") == metrics(aws, "mute") == []
    job = train(aws, "whole", *MAY_READ, write, MAY_LOG, MAY_MEASURE)
    assert job["TrainingJobStatus"] == "Completed"
    assert len(streams(aws, "whole")) == len(metrics(aws, "whole")) == 1


def streams(aws: Enforcing, job: str) -> list[Any]:
    logs, group = aws.client("logs"), "/aws/sagemaker/TrainingJobs"
    if not logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        return []
    found: list[Any] = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")["logStreams"]
    return found


def metrics(aws: Enforcing, job: str) -> list[Any]:
    where = [{"Name": "TrainingJobName", "Value": job}]
    found: list[Any] = aws.client("cloudwatch").list_metrics(MetricName="loss", Dimensions=where)["Metrics"]
    return found


# --- the least policy ---


def test_the_least_policy_allows_exactly_what_was_seen(aws: Enforcing) -> None:
    role = aws.role("least", {"Service": "sagemaker.amazonaws.com"})
    topic = aws.client("sns").create_topic(Name="least")["TopicArn"]

    def calls(keys: Keys) -> None:
        s3, cloudwatch, sagemaker = (aws.client(name, keys) for name in ("s3", "cloudwatch", "sagemaker"))
        s3.put_object(Bucket=BUCKET, Key="least/ü.txt", Body=b"1")
        s3.get_object(Bucket=BUCKET, Key="least/ü.txt")
        s3.head_object(Bucket=BUCKET, Key="least/ü.txt")
        s3.list_objects_v2(Bucket=BUCKET, Prefix="least/")
        s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "least/ü.txt"}]})
        cloudwatch.put_metric_data(Namespace="Least", MetricData=[{"MetricName": "m", "Value": 1}])
        cloudwatch.get_metric_statistics(
            Namespace="Least", MetricName="m", StartTime=0, EndTime=60, Period=60, Statistics=["Sum"]
        )
        aws.client("sns", keys).publish(TopicArn=topic, Message="m")
        container = {"Image": "image", "ContainerHostname": "c"}
        sagemaker.create_model(ModelName="least", ExecutionRoleArn=role, PrimaryContainer=container)
        sagemaker.describe_model(ModelName="least")
        sagemaker.delete_model(ModelName="least")

    # Given calls of the root since a mark
    aws.cloud.mark()
    calls(aws.root)
    policy = aws.cloud.least_policy()
    # When a user gets that policy and no other, the same calls succeed
    keys = aws.user(*policy["Statement"])
    calls(keys)
    # And what is only a little different does not
    s3, cloudwatch, sagemaker = (aws.client(name, keys) for name in ("s3", "cloudwatch", "sagemaker"))
    refused(s3.get_object, Bucket=BUCKET, Key="least/u.txt")
    refused(s3.put_object, Bucket=BUCKET, Key="in/a b.txt", Body=b"2")
    refused(s3.list_objects_v2, Bucket="tls-bucket")
    refused(cloudwatch.put_metric_data, Namespace="More", MetricData=[{"MetricName": "m", "Value": 1}])
    refused(cloudwatch.list_metrics)
    refused(sagemaker.describe_model, ModelName="more")
    other = aws.role("least-other", {"Service": "sagemaker.amazonaws.com"})
    container = {"Image": "image"}
    refused(sagemaker.create_model, ModelName="least", ExecutionRoleArn=other, PrimaryContainer=container)
    refused(aws.client("sns", keys).publish, TopicArn=topic.replace("least", "more"), Message="m")
    # And what the user called takes just that policy: what was refused is not in it
    assert aws.cloud.least_policy(aws.client("sts", keys).get_caller_identity()["Arn"]) == policy
    (passed,) = [s for s in policy["Statement"] if s["Action"] == ["iam:PassRole"]]
    assert passed["Resource"] == [role]
    assert passed["Condition"] == {"StringEquals": {"iam:PassedToService": ["sagemaker.amazonaws.com"]}}


def test_the_command_prints_it(aws: Enforcing) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-m", "windlass.cli", "local", "policy", "--state", str(aws.cloud.state), *arguments]
        return subprocess.run(whole, capture_output=True, text=True, check=False)

    assert command("--mark").returncode == 0
    aws.client("ssm").describe_parameters()
    printed = json.loads(command().stdout)
    assert printed["Statement"] == [{"Effect": "Allow", "Action": ["ssm:DescribeParameters"], "Resource": ["*"]}]


# --- the foundation's own roles ---

JOURNEY = """
import json
import windlass as wl

run = wl.train("source/train.py", {"train": "data"}, hyperparameters={"epochs": 2})
scores = wl.evaluate(run, {"test": "data"})
good = wl.register(run, "digits", evaluation=scores, approve=True)
endpoint = wl.deploy(good, slos=[wl.Slo.p99_latency(ms=5000), wl.Slo.accuracy(0.5)], capture_percent=100)
other = wl.register(wl.train("source/train.py", {"train": "data"}), "digits", approve=True)
endpoint = wl.deploy(other, bake_seconds=0)
result = endpoint.predict({"number": 4})
endpoint.label(result.inference_id, 4)
wl.monitor.quality(endpoint)
endpoint.rollback()
print(json.dumps({"output": result.output, "accuracy": run.metrics["validation:accuracy"], "log": len(list(run.log_lines()))}))
endpoint.delete()
"""


def test_the_deployer_trains_deploys_and_predicts_and_does_no_more(aws: Enforcing, tmp_path: Path) -> None:
    # Given a foundation that the root has deployed
    def run(code: list[str], keys: Keys) -> str:
        env = {**os.environ, **aws.cloud.env, "AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1]}
        env |= {"AWS_SESSION_TOKEN": keys[2]} if keys[2] else {}
        done = subprocess.run(
            [sys.executable, *code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run(["-m", "windlass.cli", "infra", "deploy"], aws.root)
    stack = aws.client("cloudformation").describe_stacks(StackName="windlass-foundation")["Stacks"][0]
    outputs = {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}
    deployer = aws.assume(outputs["DeployerRoleArn"])
    # When the deployer goes the whole way
    (tmp_path / "source").mkdir()
    for name, text in (("train", verbs.TRAIN), ("evaluate", verbs.EVALUATE), ("inference", verbs.INFERENCE)):
        (tmp_path / "source" / f"{name}.py").write_text(text)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers.json").write_text(json.dumps(list(range(20))))
    (tmp_path / "journey.py").write_text(JOURNEY)
    told = json.loads(run(["journey.py"], deployer).splitlines()[-1])
    # Then it works
    assert told["output"] == {"label": 4}
    assert told["accuracy"] == 1.0
    assert told["log"] > 0
    # And what is not the deployer's is closed
    sagemaker, iam, s3 = (aws.client(name, deployer) for name in ("sagemaker", "iam", "s3"))
    stranger = aws.role("stranger", {"Service": "sagemaker.amazonaws.com"})
    assert "iam:PassRole" in message(refused(sagemaker.create_training_job, **{**TRAINING, "RoleArn": stranger}))
    refused(iam.put_role_policy, RoleName="stranger", PolicyName="p", PolicyDocument=document(allow("*")))
    refused(s3.get_object, Bucket=BUCKET, Key="in/a b.txt")
    refused(s3.delete_bucket_policy, Bucket=outputs["Bucket"])
    refused(aws.client("kms", deployer).schedule_key_deletion, KeyId=outputs["KeyArn"])
    refused(aws.client("cloudformation", deployer).delete_stack, StackName="windlass-foundation")
    refused(aws.client("sts", deployer).assume_role, RoleArn=outputs["RoleArn"], RoleSessionName="s1")


def test_a_stack_makes_what_its_deployer_may_or_what_its_role_may(aws: Enforcing) -> None:
    template = json.dumps(
        {"Resources": {"Queue": {"Type": "AWS::SNS::Topic", "Properties": {"TopicName": "of-stack"}}}}
    )
    keys = aws.user(allow("cloudformation:*"))
    mine = aws.client("cloudformation", keys)
    mine.create_stack(StackName="mine", TemplateBody=template)
    reasons = [e.get("ResourceStatusReason", "") for e in mine.describe_stack_events(StackName="mine")["StackEvents"]]
    assert any("is not authorized to perform: SNS:CreateTopic" in reason for reason in reasons)
    assert mine.describe_stacks(StackName="mine")["Stacks"][0]["StackStatus"] == "ROLLBACK_COMPLETE"
    # With a service role, it is that role that counts, if it may be passed
    role = aws.role("stacks", {"Service": "cloudformation.amazonaws.com"}, allow("sns:*"))
    assert "iam:PassRole" in message(refused(mine.create_stack, StackName="its", TemplateBody=template, RoleARN=role))
    passing = aws.user(allow("cloudformation:*"), allow("iam:PassRole", role))
    theirs = aws.client("cloudformation", passing)
    theirs.create_stack(StackName="its", TemplateBody=template, RoleARN=role)
    assert theirs.describe_stacks(StackName="its")["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"


def test_users_and_their_policies_outlive_a_restart(tmp_path: Path) -> None:
    read_only = "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"
    # Given a user of a cloud that does not enforce, with one of AWS's own policies
    with LocalCloud.up(tmp_path / "state", lifeline=True) as cloud:
        before = Enforcing(cloud)
        keys = before.user()
        before.client("iam").attach_user_policy(UserName="user1", PolicyArn=read_only)
        before.client("s3", ("any", "key", None)).create_bucket(Bucket="kept")
        before.close()
    # When it is started again, to enforce
    with LocalCloud.up(tmp_path / "state", lifeline=True, enforce_iam=True) as cloud:
        after = Enforcing(cloud)
        # Then the key works as far as that policy goes
        assert [bucket["Name"] for bucket in after.client("s3", keys).list_buckets()["Buckets"]] == ["kept"]
        refused(after.client("s3", keys).create_bucket, Bucket="more")
        after.close()
    assert (tmp_path / "state" / "services.pickle").stat().st_size < 1_000_000  # not all of AWS's policies
