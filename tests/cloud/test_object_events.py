"""What buckets tell of their objects, and who hears it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.cloud.conftest import Rig
from tests.cloud.test_cloudwatch import queue

TELL = """
import boto3, json, os
def handler(event, context):
    boto3.client("sqs").send_message(QueueUrl=os.environ["QUEUE"], MessageBody=json.dumps(event))
"""


@pytest.fixture
def bucket(rig: Rig) -> str:
    name = rig.unique("tells")
    rig.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def heard(rig: Rig) -> tuple[str, str]:
    """(URL, ARN) of a queue."""
    return queue(rig, rig.unique("heard"))


@pytest.fixture
def function(rig: Rig, heard: tuple[str, str]) -> Iterator[str]:
    """The ARN of a function that hands on to the queue what it is invoked with."""
    name, packed = rig.unique("tell"), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("index.py", TELL)
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = rig.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    made = rig.client("lambda").create_function(
        FunctionName=name,
        Runtime="python3.12",
        Role=role,
        Handler="index.handler",
        Code={"ZipFile": packed.getvalue()},
        Timeout=30,
        Environment={"Variables": {"QUEUE": heard[0]}},
    )
    yield str(made["FunctionArn"])
    rig.client("lambda").delete_function(FunctionName=name)


def allow(rig: Rig, function: str, bucket: str, **more: Any) -> None:
    rig.client("lambda").add_permission(
        FunctionName=function,
        StatementId="s3",
        Action="lambda:InvokeFunction",
        Principal="s3.amazonaws.com",
        SourceArn=f"arn:aws:s3:::{bucket}",
        **more,
    )


def configure(rig: Rig, bucket: str, configuration: dict[str, Any], **more: Any) -> None:
    rig.client("s3").put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration=configuration, **more
    )


def next_message(rig: Rig, url: str) -> dict[str, Any]:
    """The next message of a queue, which is deleted."""
    (message,) = rig.client("sqs").receive_message(QueueUrl=url, WaitTimeSeconds=20)["Messages"]
    rig.client("sqs").delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    body: dict[str, Any] = json.loads(message["Body"])
    return body


def names(rig: Rig, url: str, count: int) -> list[tuple[str, str]]:
    """(event, key) of the next records."""
    records = [next_message(rig, url)["Records"][0] for _ in range(count)]
    return [(record["eventName"], record["s3"]["object"]["key"]) for record in records]


def test_a_put_invokes_a_function_that_lets_it(rig: Rig, bucket: str, heard: tuple[str, str], function: str) -> None:
    rule = {"Id": "new", "LambdaFunctionArn": function, "Events": ["s3:ObjectCreated:*"]}
    filtered = rule | {"Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "data/"}]}}}
    # Given a function whose policy does not name the bucket, the configuration is refused
    with pytest.raises(ClientError, match="Unable to validate the following destination configurations"):
        configure(rig, bucket, {"LambdaFunctionConfigurations": [filtered]})
    # and kept as soon as it does
    allow(rig, function, bucket)
    configure(rig, bucket, {"LambdaFunctionConfigurations": [filtered]})

    rig.client("s3").put_object(Bucket=bucket, Key="other/a.csv", Body=b"no")
    put = rig.client("s3").put_object(Bucket=bucket, Key="data/a b+ü.csv", Body=b"1,2")

    (record,) = next_message(rig, heard[0])["Records"]
    assert (record["eventSource"], record["eventName"]) == ("aws:s3", "ObjectCreated:Put")
    assert record["s3"]["bucket"]["arn"] == f"arn:aws:s3:::{bucket}"
    assert record["s3"]["configurationId"] == "new"
    told = record["s3"]["object"]
    assert (told["key"], told["size"], told["eTag"]) == ("data/a+b%2B%C3%BC.csv", 3, put["ETag"].strip('"'))


def test_a_function_that_forbids_it_later_is_not_invoked(
    rig: Rig, bucket: str, heard: tuple[str, str], function: str
) -> None:
    allow(rig, function, bucket)
    url, arn = queue(rig, rig.unique("also"))
    created, gone = ["s3:ObjectCreated:*"], ["s3:ObjectRemoved:*"]
    configure(
        rig,
        bucket,
        {
            "LambdaFunctionConfigurations": [{"LambdaFunctionArn": function, "Events": created}],
            "QueueConfigurations": [{"QueueArn": arn, "Events": gone}],
        },
    )
    assert next_message(rig, url)["Event"] == "s3:TestEvent"
    rig.client("lambda").remove_permission(FunctionName=function, StatementId="s3")
    rig.client("s3").put_object(Bucket=bucket, Key="k", Body=b"x")
    rig.client("s3").delete_object(Bucket=bucket, Key="k")
    # Deliveries go out in order: when the queue has heard of the end, the function has been passed by
    assert names(rig, url, 1) == [("ObjectRemoved:Delete", "k")]
    allow(rig, function, bucket)
    rig.client("s3").put_object(Bucket=bucket, Key="second", Body=b"x")
    assert names(rig, heard[0], 1) == [("ObjectCreated:Put", "second")]


def test_each_way_to_make_and_to_end_an_object_is_told_once(rig: Rig, bucket: str, heard: tuple[str, str]) -> None:
    s3, (url, arn) = rig.client("s3"), heard
    every = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:ObjectTagging:*", "s3:ObjectAcl:Put"]
    configure(rig, bucket, {"QueueConfigurations": [{"QueueArn": arn, "Events": every}]})
    assert next_message(rig, url)["Event"] == "s3:TestEvent"

    s3.put_object(Bucket=bucket, Key="put", Body=b"x", Tagging="a=b")
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "put"})
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=b"x")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload=parts)
    s3.put_object_tagging(Bucket=bucket, Key="put", Tagging={"TagSet": [{"Key": "c", "Value": "d"}]})
    s3.delete_object_tagging(Bucket=bucket, Key="put")
    s3.delete_object(Bucket=bucket, Key="never was")
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "put"}, {"Key": "copy"}]})
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    version = s3.put_object(Bucket=bucket, Key="versioned", Body=b"x")["VersionId"]
    s3.delete_object(Bucket=bucket, Key="versioned")
    s3.delete_object(Bucket=bucket, Key="versioned", VersionId=version)

    assert names(rig, url, 10) == [
        ("ObjectCreated:Put", "put"),
        ("ObjectCreated:Copy", "copy"),
        ("ObjectCreated:CompleteMultipartUpload", "parts"),
        ("ObjectTagging:Put", "put"),
        ("ObjectTagging:Delete", "put"),
        ("ObjectRemoved:Delete", "put"),
        ("ObjectRemoved:Delete", "copy"),
        ("ObjectCreated:Put", "versioned"),
        ("ObjectRemoved:DeleteMarkerCreated", "versioned"),
        ("ObjectRemoved:Delete", "versioned"),
    ]


def test_topics_and_eventbridge_hear_of_objects(rig: Rig, bucket: str, heard: tuple[str, str]) -> None:
    sns, events, (url, arn) = rig.client("sns"), rig.client("events"), heard
    topic = sns.create_topic(Name=rig.unique("objects"))["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    rule = rig.unique("objects")
    pattern = {"source": ["aws.s3"], "detail-type": ["Object Deleted"], "detail": {"bucket": {"name": [bucket]}}}
    events.put_rule(Name=rule, EventPattern=json.dumps(pattern))
    routed, routed_arn = queue(rig, rig.unique("routed"))
    events.put_targets(Rule=rule, Targets=[{"Id": "q", "Arn": routed_arn}])
    wanted = {
        "TopicConfigurations": [{"Id": "t", "TopicArn": topic, "Events": ["s3:ObjectCreated:Put"]}],
        "EventBridgeConfiguration": {},
    }
    configure(rig, bucket, wanted)
    kept = rig.client("s3").get_bucket_notification_configuration(Bucket=bucket)
    assert {name: value for name, value in kept.items() if name != "ResponseMetadata"} == wanted
    assert json.loads(next_message(rig, url)["Message"])["Event"] == "s3:TestEvent"

    rig.client("s3").put_object(Bucket=bucket, Key="a b", Body=b"xyz")
    rig.client("s3").delete_object(Bucket=bucket, Key="a b")

    notification = next_message(rig, url)
    (record,) = json.loads(notification["Message"])["Records"]
    assert (notification["Subject"], record["s3"]["object"]["key"]) == ("Amazon S3 Notification", "a+b")
    event = next_message(rig, routed)
    assert (event["source"], event["resources"]) == ("aws.s3", [f"arn:aws:s3:::{bucket}"])
    assert (event["detail"]["object"]["key"], event["detail"]["deletion-type"]) == ("a b", "Permanently Deleted")


def rule(arn: str, *events: str, prefix: str = "", suffix: str = "") -> dict[str, Any]:
    """A notification to a queue."""
    filters = [{"Name": name, "Value": value} for name, value in (("prefix", prefix), ("suffix", suffix)) if value]
    return {
        "QueueArn": arn,
        "Events": list(events),
        **({"Filter": {"Key": {"FilterRules": filters}}} if filters else {}),
    }


PUT, ALL, COPY = "s3:ObjectCreated:Put", "s3:ObjectCreated:*", "s3:ObjectCreated:Copy"


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        (((PUT,), {}), ((ALL,), {}), True),
        (((PUT,), {}), ((COPY,), {}), False),
        (((ALL,), {"prefix": "a"}), ((PUT,), {"prefix": "b"}), False),
        (((ALL,), {"prefix": "a", "suffix": ".csv"}), ((PUT,), {"prefix": "a/b", "suffix": "x.csv"}), True),
        (((ALL,), {"suffix": ".csv"}), ((PUT,), {"suffix": ".json"}), False),
    ],
)
def test_rules_that_overlap_are_refused(
    rig: Rig, bucket: str, heard: tuple[str, str], first: Any, second: Any, overlap: bool
) -> None:
    rules = {"QueueConfigurations": [rule(heard[1], *events, **filters) for events, filters in (first, second)]}
    if overlap:
        with pytest.raises(ClientError, match=r"InvalidArgument.*Configurations overlap"):
            configure(rig, bucket, rules)
    else:
        configure(rig, bucket, rules)


def test_a_destination_that_is_not_there_is_refused_unless_it_is_not_to_be_looked_at(rig: Rig, bucket: str) -> None:
    lost = {"QueueConfigurations": [rule("arn:aws:sqs:us-east-1:123456789012:lost", PUT)]}
    with pytest.raises(ClientError, match=r"Unable to validate .*:lost"):
        configure(rig, bucket, lost)
    assert "QueueConfigurations" not in rig.client("s3").get_bucket_notification_configuration(Bucket=bucket)
    configure(rig, bucket, lost, SkipDestinationValidation=True)
    rig.client("s3").put_object(Bucket=bucket, Key="k", Body=b"x")  # what cannot be delivered fails no request
