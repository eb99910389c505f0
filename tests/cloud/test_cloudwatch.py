"""CloudWatch alarms from the outside: metrics in, state changes out, on a local cloud that really runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.cloud.conftest import Rig


def eventually(look: Callable[[], Any], seconds: float = 30) -> Any:
    """What `look` finds, as soon as it finds anything."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
    pytest.fail(f"Nothing within {seconds} s")


def queue(rig: Rig, name: str) -> tuple[str, str]:
    """(URL, ARN) of a new queue."""
    url = rig.client("sqs").create_queue(QueueName=name)["QueueUrl"]
    attributes = rig.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return url, attributes["Attributes"]["QueueArn"]


def test_a_bad_metric_reaches_whoever_listens(rig: Rig) -> None:
    # Given an alarm with a topic and a rule behind it
    cloudwatch, sns, sqs, events = (rig.client(name) for name in ("cloudwatch", "sns", "sqs", "events"))
    name = rig.unique("accuracy")
    notified, notified_arn = queue(rig, rig.unique("notified"))
    routed, routed_arn = queue(rig, rig.unique("routed"))
    topic = sns.create_topic(Name=rig.unique("alerts"))["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=notified_arn)
    pattern = {"source": ["aws.cloudwatch"], "detail": {"alarmName": [name], "state": {"value": ["ALARM"]}}}
    events.put_rule(Name=name, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=name, Targets=[{"Id": "queue", "Arn": routed_arn, "InputPath": "$.detail.state.value"}])
    dimensions = [{"Name": "EndpointName", "Value": name}]
    cloudwatch.put_metric_alarm(
        AlarmName=name,
        Namespace="Windlass",
        MetricName="Accuracy",
        Dimensions=dimensions,
        Statistic="Average",
        Period=10,
        EvaluationPeriods=1,
        Threshold=0.9,
        ComparisonOperator="LessThanThreshold",
        TreatMissingData="ignore",
        AlarmActions=[topic],
    )

    # When accuracy drops
    start = datetime.now(UTC)
    cloudwatch.put_metric_data(
        Namespace="Windlass",
        MetricData=[{"MetricName": "Accuracy", "Dimensions": dimensions, "Value": 0.1, "StorageResolution": 1}],
    )

    # Then the alarm goes off within seconds of the period's end, and both hear of it
    def alarming() -> Any:
        return cloudwatch.describe_alarms(AlarmNames=[name], StateValue="ALARM")["MetricAlarms"]

    (alarm,) = eventually(alarming)
    boundary = datetime.fromtimestamp(start.timestamp() // 10 * 10 + 10, UTC)
    assert timedelta(0) < alarm["StateTransitionedTimestamp"] - boundary < timedelta(seconds=5)
    message = sqs.receive_message(QueueUrl=notified, WaitTimeSeconds=10)["Messages"][0]
    assert json.loads(json.loads(message["Body"])["Message"])["NewStateValue"] == "ALARM"
    assert sqs.receive_message(QueueUrl=routed, WaitTimeSeconds=10)["Messages"][0]["Body"] == '"ALARM"'
    types = [item["HistoryItemType"] for item in cloudwatch.describe_alarm_history(AlarmName=name)["AlarmHistoryItems"]]
    assert types == ["Action", "StateUpdate", "ConfigurationUpdate"]


def test_latencies_come_back_as_percentiles(rig: Rig) -> None:
    cloudwatch, now = rig.client("cloudwatch"), datetime.now(UTC)
    dimensions = [{"Name": "EndpointName", "Value": rig.unique("latency")}]
    cloudwatch.put_metric_data(
        Namespace="Windlass",
        MetricData=[
            {
                "MetricName": "Latency",
                "Dimensions": dimensions,
                "Timestamp": now,
                "Values": [float(value) for value in range(1, 101)],
                "Counts": [1.0] * 100,
                "Unit": "Milliseconds",
                "StorageResolution": 1,
            }
        ]
        * 10,  # large enough for botocore to compress it
    )
    metric = {"Namespace": "Windlass", "MetricName": "Latency", "Dimensions": dimensions}
    answer = cloudwatch.get_metric_data(
        MetricDataQueries=[
            {"Id": name.lower(), "MetricStat": {"Metric": metric, "Period": 60, "Stat": name}}
            for name in ("p50", "p99", "tm90", "SampleCount")
        ],
        StartTime=now - timedelta(minutes=5),
        EndTime=now + timedelta(minutes=5),
    )
    found = {result["Id"]: result["Values"][0] for result in answer["MetricDataResults"]}
    assert found == {
        "p50": 50.5,
        "p99": pytest.approx(99.0, abs=0.1),
        "tm90": pytest.approx(45.5),
        "samplecount": 1000,
    }
