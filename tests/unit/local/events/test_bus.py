from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.unit.local.in_process import REGION, InProcess, in_process
from windlass.local.events.bus import Unavailable, Undeliverable, json_path, pipeline_target, target_input
from windlass.local.faults import Fault

EVENT = {
    "source": "windlass",
    "detail-type": "Deployed",
    "resources": ["arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits"],
    "detail": {"endpoint": "digits", "state": {"value": "ALARM"}, "latency": 120.5, "tags": ["a", "b"], "ok": False},
}

ROLE = "arn:aws:iam::123456789012:role/events"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("cloud")) as started:
        yield started


@pytest.fixture
def events(cloud: InProcess) -> Iterator[Any]:
    client = cloud.client("events")
    yield client
    assert cloud.events.drain()
    for rule in client.list_rules()["Rules"]:
        targets = client.list_targets_by_rule(Rule=rule["Name"])["Targets"]
        if targets:
            client.remove_targets(Rule=rule["Name"], Ids=[target["Id"] for target in targets])
        client.delete_rule(Name=rule["Name"])


def send(cloud: InProcess, event: Mapping[str, Any] = EVENT) -> None:
    entry = {"Source": event["source"], "DetailType": event["detail-type"], "Resources": event["resources"]}
    answer = cloud.client("events").put_events(Entries=[{**entry, "Detail": json.dumps(event["detail"])}])
    assert answer["FailedEntryCount"] == 0
    assert cloud.events.drain()


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ({"source": ["windlass"]}, True),
        ({"source": ["other", "windlass"]}, True),
        ({"source": ["other"]}, False),
        ({"source": ["windlass"], "detail-type": ["Other"]}, False),
        ({"detail": {"state": {"value": ["ALARM"]}}}, True),
        ({"detail": {"state": {"value": ["OK"]}}}, False),
        ({"detail": {"endpoint": [{"prefix": "dig"}]}}, True),
        ({"detail": {"endpoint": [{"prefix": "x"}]}}, False),
        ({"detail": {"endpoint": [{"suffix": "its"}]}}, True),
        ({"detail": {"endpoint": [{"anything-but": ["letters"]}]}}, True),
        ({"detail": {"endpoint": [{"anything-but": "digits"}]}}, False),
        ({"detail": {"endpoint": [{"anything-but": {"prefix": "dig"}}]}}, False),
        ({"detail": {"latency": [{"numeric": [">", 100, "<=", 120.5]}]}}, True),
        ({"detail": {"latency": [{"numeric": ["<", 100]}]}}, False),
        ({"detail": {"latency": [{"exists": True}]}}, True),
        ({"detail": {"missing": [{"exists": False}]}}, True),
        ({"detail": {"latency": [{"exists": False}]}}, False),
        ({"detail": {"tags": ["b"]}}, True),
        ({"detail": {"ok": [False]}}, True),
        ({"resources": [{"prefix": "arn:aws:sagemaker"}]}, True),
        ({"$or": [{"source": ["other"]}, {"detail": {"endpoint": ["digits"]}}]}, True),
    ],
)
def test_patterns_decide_what_a_target_gets(
    cloud: InProcess, events: Any, pattern: dict[str, Any], matches: bool
) -> None:
    events.put_rule(Name="rule", EventPattern=json.dumps(pattern))
    events.put_targets(Rule="rule", Targets=[{"Id": "queue", "Arn": cloud.queue("patterns")}])
    send(cloud)
    assert len(cloud.received("patterns")) == int(matches)
    event = {"version": "0", "id": "1", "account": "1", "time": "2026-01-01T00:00:00Z", "region": REGION, **EVENT}
    tested = events.test_event_pattern(EventPattern=json.dumps(pattern), Event=json.dumps(event))
    assert tested["Result"] is matches


def test_events_from_inside_and_from_users_look_alike(cloud: InProcess, events: Any) -> None:
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))
    events.put_targets(Rule="rule", Targets=[{"Id": "queue", "Arn": cloud.queue("alike")}])
    send(cloud)
    identity = cloud.events.put(REGION, dict(EVENT))
    assert cloud.events.drain()
    by_user, from_inside = (json.loads(body) for body in cloud.received("alike"))
    assert from_inside["id"] == identity
    assert {**by_user, "id": identity} == from_inside
    assert from_inside == {
        "version": "0",
        "id": identity,
        "detail-type": "Deployed",
        "source": "windlass",
        "account": "123456789012",
        "time": "2026-01-01T00:00:00Z",
        "region": REGION,
        "resources": EVENT["resources"],
        "detail": EVENT["detail"],
    }


def test_sns_targets_and_disabled_rules(cloud: InProcess, events: Any) -> None:
    topic = cloud.client("sns").create_topic(Name="events")["TopicArn"]
    cloud.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=cloud.queue("from-topic"))
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))
    events.put_targets(Rule="rule", Targets=[{"Id": "topic", "Arn": topic}])
    send(cloud)
    (body,) = cloud.received("from-topic")
    assert json.loads(json.loads(body)["Message"])["detail"] == EVENT["detail"]
    events.disable_rule(Name="rule")
    send(cloud)
    assert cloud.received("from-topic") == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"Input": '{"fixed": true}'}, '{"fixed": true}'),
        ({"InputPath": "$.detail.state"}, '{"value": "ALARM"}'),
        ({"InputPath": "$.detail.state.value"}, '"ALARM"'),
        (
            {
                "InputTransformer": {
                    "InputPathsMap": {
                        "name": "$.detail.endpoint",
                        "state": "$.detail.state",
                        "first": "$.resources[0]",
                    },
                    "InputTemplate": '{"text": "<name> has \\"gone\\" to <first>", "name": <name>, '
                    '"state": <state>, "x": "<none>"}',
                }
            },
            '{"text": "digits has \\"gone\\" to arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits", "name": "digits", '
            '"state": {"value": "ALARM"}, "x": "<none>"}',
        ),
        (
            {"InputTransformer": {"InputPathsMap": {"ms": "$.detail.latency"}, "InputTemplate": '"It took <ms> ms"'}},
            '"It took 120.5 ms"',
        ),
        ({"InputTransformer": {"InputTemplate": '{"rule": "<aws.events.rule-name>"}'}}, '{"rule": "rule"}'),
        (
            {"InputTransformer": {"InputTemplate": "<aws.events.event>"}},
            json.dumps({k: v for k, v in EVENT.items() if k != "detail"}),
        ),
        ({"InputTransformer": {"InputTemplate": "<aws.events.event.json>"}}, json.dumps(EVENT)),
    ],
)
def test_the_input_of_a_target(target: dict[str, Any], expected: str) -> None:
    assert target_input(target, EVENT, rule_name="rule") == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$", EVENT),
        ("$.detail.endpoint", "digits"),
        ("$.detail-type", "Deployed"),
        ("$['detail']['endpoint']", "digits"),
        ("$.detail.tags[1]", "b"),
        ("$.detail.tags[2]", None),
        ("$.detail.nothing.below", None),
        ("$.detail[0]", None),
        ("$..endpoint", None),
    ],
)
def test_json_paths(path: str, expected: Any) -> None:
    assert json_path(EVENT, path) == expected


def test_other_buses_get_what_is_sent_on_to_them_once(cloud: InProcess, events: Any) -> None:
    bus = events.create_event_bus(Name="other")["EventBusArn"]
    events.put_rule(Name="forward", EventPattern=json.dumps({"source": ["windlass"]}))
    events.put_targets(Rule="forward", Targets=[{"Id": "bus", "Arn": bus}])
    events.put_rule(Name="there", EventBusName="other", EventPattern=json.dumps({"source": ["windlass"]}))
    events.put_targets(
        Rule="there",
        EventBusName="other",
        Targets=[{"Id": "queue", "Arn": cloud.queue("other")}, {"Id": "back", "Arn": bus}],
    )
    send(cloud)
    assert len(cloud.received("other")) == 1


def test_log_groups_get_events(cloud: InProcess, events: Any) -> None:
    # moto's logs refuse what is two weeks old by the machine's clock.
    offset = time.time() - cloud.clock.now()
    cloud.clock.advance(offset)
    logs = cloud.client("logs")
    logs.create_log_group(logGroupName="/aws/events/all")
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))
    arn = f"arn:aws:logs:{REGION}:123456789012:log-group:/aws/events/all"
    events.put_targets(Rule="rule", Targets=[{"Id": "logs", "Arn": arn}])
    send(cloud)
    cloud.clock.advance(-offset)
    (stream,) = logs.describe_log_streams(logGroupName="/aws/events/all")["logStreams"]
    (entry,) = logs.get_log_events(logGroupName="/aws/events/all", logStreamName=stream["logStreamName"])["events"]
    assert json.loads(entry["message"])["detail"] == EVENT["detail"]


def test_archives_go_on_working(cloud: InProcess, events: Any) -> None:
    bus = events.describe_event_bus()["Arn"]
    events.create_archive(ArchiveName="all", EventSourceArn=bus)
    send(cloud)
    assert events.describe_archive(ArchiveName="all")["EventCount"] == 1
    events.delete_archive(ArchiveName="all")


def test_a_target_that_is_gone_is_in_the_log(cloud: InProcess, events: Any, caplog: pytest.LogCaptureFixture) -> None:
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))
    targets = [f"arn:aws:{kind}:{REGION}:123456789012:gone" for kind in ("sns", "sqs")]
    events.put_targets(Rule="rule", Targets=[{"Id": arn[8:11], "Arn": arn} for arn in targets])
    send(cloud)
    for arn in targets:
        assert f"to {arn}" in caplog.text


def test_targets_that_cannot_be_delivered_to_are_refused(cloud: InProcess, events: Any) -> None:
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))
    arn = f"arn:aws:lambda:{REGION}:123456789012:function:f"
    with pytest.raises(ClientError, match=f"delivers no events to {arn}"):
        events.put_targets(Rule="rule", Targets=[{"Id": "function", "Arn": arn}])
    assert events.list_targets_by_rule(Rule="rule")["Targets"] == []


@pytest.mark.parametrize("text", ["rate(1 hours)", "rate(0 minutes)", "cron(0 10 * * * *)", "hourly"])
def test_schedules_that_eventbridge_refuses(events: Any, text: str) -> None:
    with pytest.raises(ClientError, match="ScheduleExpression is not valid"):
        events.put_rule(Name="often", ScheduleExpression=text)


def test_schedules_run_again_and_again_until_they_are_deleted(cloud: InProcess, events: Any) -> None:
    queue = cloud.queue("scheduled")
    rule = events.put_rule(Name="often", ScheduleExpression="rate(5 minutes)")["RuleArn"]
    events.put_targets(Rule="often", Targets=[{"Id": "queue", "Arn": queue}])

    def later(minutes: float) -> list[str]:
        cloud.clock.advance(minutes * 60)
        cloud.events.agenda.tick()
        assert cloud.events.drain()
        return cloud.received("scheduled")

    assert later(4.9) == []
    (body,) = later(0.2)
    event = json.loads(body)
    assert (event["source"], event["detail-type"]) == ("aws.events", "Scheduled Event")
    assert (event["resources"], event["detail"]) == ([rule], {})
    assert len(later(5)) == 1
    events.disable_rule(Name="often")
    assert later(5) == []
    events.enable_rule(Name="often")
    assert len(later(5)) == 1
    # another schedule takes the place of the first
    events.put_rule(Name="often", ScheduleExpression="rate(1 minute)")
    assert len(later(1.1)) == 1
    events.remove_targets(Rule="often", Ids=["queue"])
    events.delete_rule(Name="often")
    assert later(60) == []


def test_what_cannot_be_delivered_goes_to_the_dead_letter_queue(cloud: InProcess, events: Any) -> None:
    dead, gone = cloud.queue("dead"), f"arn:aws:sqs:{REGION}:123456789012:gone"
    rule = events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))["RuleArn"]
    events.put_targets(Rule="rule", Targets=[{"Id": "gone", "Arn": gone, "DeadLetterConfig": {"Arn": dead}}])
    send(cloud)
    (message,) = received_whole(cloud, "dead")
    assert json.loads(message["Body"])["detail"] == EVENT["detail"]
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert (attributes["RULE_ARN"], attributes["TARGET_ARN"], attributes["RETRY_ATTEMPTS"]) == (rule, gone, "0")
    assert attributes["ERROR_MESSAGE"]


def test_what_fails_for_the_moment_is_tried_again(cloud: InProcess, events: Any) -> None:
    tried: list[float] = []

    def deliver(target: Mapping[str, Any], text: str, event: dict[str, Any]) -> None:
        tried.append(cloud.clock.now())
        raise Unavailable("come back later")

    cloud.events.support("states", deliver)
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))
    target = {
        "Id": "busy",
        "Arn": f"arn:aws:states:{REGION}:123456789012:stateMachine:m",
        "RetryPolicy": {"MaximumRetryAttempts": 2, "MaximumEventAgeInSeconds": 3600},
        "DeadLetterConfig": {"Arn": cloud.queue("busy-dead")},
    }
    events.put_targets(Rule="rule", Targets=[target])
    send(cloud)
    for _ in range(20):
        cloud.clock.advance(1)
        cloud.events.agenda.tick()
        assert cloud.events.drain()
    assert len(tried) == 3
    assert tried[1] - tried[0] < tried[2] - tried[1]
    (message,) = received_whole(cloud, "busy-dead")
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert (attributes["EXHAUSTED_RETRY_CONDITION"], attributes["RETRY_ATTEMPTS"]) == ("MaximumRetryAttempts", "2")


def test_pipelines_are_started_with_parameters_from_the_event(cloud: InProcess, events: Any) -> None:
    started: list[tuple[str, dict[str, str], str]] = []

    def start(arn: str, parameters: dict[str, str], token: str) -> None:
        started.append((arn, parameters, token))
        if "gone" in arn:
            raise Fault("ResourceNotFound", "Pipeline gone does not exist.")

    cloud.events.support("sagemaker", pipeline_target(start))
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))
    arn = f"arn:aws:sagemaker:{REGION}:123456789012:pipeline/retrain"
    parameters = [{"Name": "Endpoint", "Value": "$.detail.endpoint"}, {"Name": "Epochs", "Value": "5"}]
    dead = {"Arn": cloud.queue("pipeline-dead")}
    events.put_targets(
        Rule="rule",
        Targets=[
            {
                "Id": "p",
                "Arn": arn,
                "RoleArn": ROLE,
                "SageMakerPipelineParameters": {"PipelineParameterList": parameters},
            },
            {"Id": "gone", "Arn": arn.replace("retrain", "gone"), "RoleArn": ROLE, "DeadLetterConfig": dead},
        ],
    )
    send(cloud)
    assert started[0][:2] == (arn, {"Endpoint": "digits", "Epochs": "5"})
    assert started[0][2] == started[1][2]
    (message,) = received_whole(cloud, "pipeline-dead")
    assert "does not exist" in message["MessageAttributes"]["ERROR_MESSAGE"]["StringValue"]


def received_whole(cloud: InProcess, queue: str) -> list[dict[str, Any]]:
    sqs = cloud.client("sqs")
    url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
    messages: list[dict[str, Any]] = answer.get("Messages", [])
    return messages


def test_other_parts_can_deliver(cloud: InProcess, events: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def deliver(target: Mapping[str, Any], text: str, event: dict[str, Any]) -> None:
        seen.append(json.loads(text)["detail"]["endpoint"])
        if target["Id"] == "broken":
            raise Undeliverable("out of order")

    cloud.events.support("states", deliver)
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["windlass"]}))
    arn = f"arn:aws:states:{REGION}:123456789012:stateMachine:m"
    events.put_targets(Rule="rule", Targets=[{"Id": "fine", "Arn": arn}, {"Id": "broken", "Arn": arn}])
    send(cloud)
    assert seen == ["digits", "digits"]
    assert "out of order" in caplog.text


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({"DetailType": "t", "Detail": "{}"}, "InvalidArgument"),
        ({"Source": "s", "Detail": "{}"}, "InvalidArgument"),
        ({"Source": "s", "DetailType": "t"}, "InvalidArgument"),
        ({"Source": "s", "DetailType": "t", "Detail": "{"}, "MalformedDetail"),
        ({"Source": "s", "DetailType": "t", "Detail": "[]"}, "MalformedDetail"),
    ],
)
def test_entries_that_eventbridge_refuses(events: Any, entry: dict[str, str], code: str) -> None:
    answer = events.put_events(Entries=[entry])
    assert answer["FailedEntryCount"] == 1
    assert answer["Entries"][0]["ErrorCode"] == code


def test_eleven_entries_are_too_many(events: Any) -> None:
    entry = {"Source": "s", "DetailType": "t", "Detail": "{}"}
    with pytest.raises(ClientError, match="less than or equal to 10"):
        events.put_events(Entries=[entry] * 11)


def test_what_eventbridge_has_and_we_do_not_is_refused_by_name(events: Any) -> None:
    with pytest.raises(ClientError, match="is not implemented by the local cloud") as caught:
        events.deauthorize_connection(Name="c")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_publishing_to_a_topic_that_is_gone(cloud: InProcess) -> None:
    for topic in ("arn:aws:sns:us-east-1:123456789012:gone", "nonsense"):
        with pytest.raises(Undeliverable):
            cloud.events.publish(topic, "hello")


def test_one_failing_delivery_does_not_end_the_thread(
    tmp_path: Path, cloud: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    cloud.events.later(lambda: seen.append(1 // 0))
    cloud.events.later(lambda: seen.append(2))
    assert cloud.events.drain()
    assert seen == [2]
    assert "A delivery failed" in caplog.text


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"Input": "{}", "InputPath": "$.detail"}, "Only one of Input, InputPath, or InputTransformer must be provided"),
        ({"Input": "{"}, "JSON syntax error in input for target t."),
        ({"Arn": f"arn:aws:sagemaker:{REGION}:123456789012:pipeline/p"}, "RoleArn is required for target arn:aws:sagemaker:"),
    ],
)  # fmt: skip
def test_targets_that_are_refused(cloud: InProcess, target: dict[str, Any], message: str) -> None:
    events = cloud.client("events")
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["app"]}))
    with pytest.raises(ClientError) as caught:
        events.put_targets(Rule="rule", Targets=[{"Id": "t", "Arn": cloud.queue("q"), **target}])
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    assert caught.value.response["Error"]["Message"].startswith(message)


def test_a_rule_has_at_most_five_targets(cloud: InProcess) -> None:
    events, arn = cloud.client("events"), cloud.queue("q")
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["app"]}))
    events.put_targets(Rule="rule", Targets=[{"Id": str(n), "Arn": arn} for n in range(5)])
    events.put_targets(Rule="rule", Targets=[{"Id": "4", "Arn": arn}])  # one that it has
    with pytest.raises(ClientError, match="LimitExceededException"):
        events.put_targets(Rule="rule", Targets=[{"Id": "5", "Arn": arn}])


def test_nobody_speaks_for_aws(cloud: InProcess) -> None:
    entries = [{"Source": source, "DetailType": "d", "Detail": "{}"} for source in ("aws.cloudwatch", "app")]
    answer = cloud.client("events").put_events(Entries=entries)
    assert answer["FailedEntryCount"] == 1
    assert answer["Entries"][0]["ErrorCode"] == "NotAuthorizedForSourceException"


def test_names_and_patterns_of_rules(cloud: InProcess) -> None:
    events, good = cloud.client("events"), json.dumps({"source": ["app"]})
    with pytest.raises(ClientError, match="failed to satisfy constraint"):
        events.put_rule(Name="a rule", EventPattern=good)
    for call in (lambda text: events.put_rule(Name="rule", EventPattern=text),
                 lambda text: events.test_event_pattern(EventPattern=text, Event=json.dumps(EVENT))):  # fmt: skip
        with pytest.raises(ClientError, match="InvalidEventPatternException"):
            call(json.dumps({"source": [{"prefx": "a"}]}))
