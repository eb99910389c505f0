"""Lambda functions as boto3 sees them, in real processes."""

from __future__ import annotations

import base64
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.unit.local.in_process import REGION, InProcess, in_process
from windlass.local.clock import Clock
from windlass.local.cloud import Cloud, client_environment
from windlass.local.cloudwatch.alarms import AlarmEngine
from windlass.local.cloudwatch.metric_store import Metric, MetricStore
from windlass.local.events import functions as local_functions
from windlass.local.events import notifications
from windlass.local.events.bus import EventBus
from windlass.local.events.functions import Functions
from windlass.local.processes import Keeper

ACCOUNT = "123456789012"


@dataclass
class Host:
    """What functions need of a cloud."""

    state: Path
    clock: Clock
    keeper: Keeper
    metrics: MetricStore
    events: EventBus
    alarms: AlarmEngine
    url: str

    process_environment = Cloud.process_environment

    def environment(self, region: str) -> dict[str, str]:
        return client_environment(self.url, region)


@dataclass
class Running:
    cloud: InProcess
    functions: Functions

    def client(self, service: str) -> Any:
        return self.cloud.client(service)

    def settle(self, seconds: float = 0) -> None:
        """Let that much time pass, and do all that follows."""
        self.cloud.clock.advance(seconds)
        self.cloud.events.agenda.tick()
        assert self.cloud.events.drain()
        assert self.functions.drain()
        assert self.cloud.events.drain()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with in_process(tmp_path_factory.mktemp("cloud")) as started:
        host = Host(
            tmp_path_factory.mktemp("state"),
            started.clock,
            Keeper(),
            started.metrics,
            started.events,
            started.alarms,
            started.url,
        )
        functions = Functions(host)
        local_functions.register(functions)
        notifications.register(started.events, functions.deliver)
        started.events.support("lambda", functions.target)
        started.alarms.support("lambda", functions.act)
        try:
            yield Running(started, functions)
        finally:
            functions.close()
            host.keeper.close()


@pytest.fixture(scope="module")
def role(cloud: Running) -> str:
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    made = cloud.client("iam").create_role(RoleName="runs", AssumeRolePolicyDocument=document)
    return str(made["Role"]["Arn"])


def packed(code: str, name: str = "index.py") -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr(name, code)
    return body.getvalue()


Make = Callable[..., str]


@pytest.fixture
def make(cloud: Running, role: str) -> Iterator[Make]:
    """Creates a function of that code; returns its name."""
    client, made = cloud.client("lambda"), []

    def create(code: str, name: str = "f", **more: Any) -> str:
        defaults = {"Runtime": "python3.12", "Handler": "index.handler", "Role": role, "Timeout": 20}
        client.create_function(**{"FunctionName": name, "Code": {"ZipFile": packed(code)}, **defaults, **more})
        made.append(name)
        return name

    yield create
    for name in made:
        client.delete_function(FunctionName=name)


def call(cloud: Running, name: str, event: Any = None, **more: Any) -> tuple[Any, dict[str, Any]]:
    answer = cloud.client("lambda").invoke(FunctionName=name, Payload=json.dumps(event), **more)
    return json.loads(answer["Payload"].read()), answer


def logged(cloud: Running, name: str) -> list[str]:
    logs, group = cloud.client("logs"), f"/aws/lambda/{name}"
    lines: list[str] = []
    for stream in logs.describe_log_streams(logGroupName=group)["logStreams"]:
        found = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True)
        lines += [event["message"] for event in found["events"]]
    return lines


ECHO = """\
count = 0
def handler(event, context):
    global count
    count += 1
    return {"event": event, "count": count}
"""


def test_a_function_answers_and_stays_warm(cloud: Running, make: Make) -> None:
    name = make(ECHO, "warm")
    assert call(cloud, name, {"a": [1, None]})[0] == {"event": {"a": [1, None]}, "count": 1}
    payload, answer = call(cloud, name, "text")
    assert payload == {"event": "text", "count": 2}
    assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
    assert "FunctionError" not in answer
    client = cloud.client("lambda")
    assert json.loads(client.invoke(FunctionName=name)["Payload"].read())["event"] == {}


def test_it_sees_its_environment_its_role_and_its_context(cloud: Running, make: Make, role: str) -> None:
    code = """\
import boto3, os
def handler(event, context):
    return {
        "mine": os.environ["MINE"],
        "who": boto3.client("sts").get_caller_identity()["Arn"],
        "memory": context.memory_limit_in_mb,
        "left": context.get_remaining_time_in_millis(),
        "arn": context.invoked_function_arn,
        "same": context.function_name == os.environ["AWS_LAMBDA_FUNCTION_NAME"],
    }
"""
    name = make(code, "context", Environment={"Variables": {"MINE": "yes"}}, MemorySize=256)
    payload, _ = call(cloud, name)
    assert payload["mine"] == "yes"
    assert payload["who"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/runs/context"
    assert payload["memory"] == "256"
    assert 10_000 < payload["left"] <= 20_000
    assert payload["arn"] == f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:context"
    assert payload["same"] is True


def test_the_log_stands_between_start_and_report(cloud: Running, make: Make) -> None:
    # moto's logs refuse what is two weeks old by the machine's clock, and then only when it is read
    name = make("def handler(event, context):\n    print('one')\n    print('two', end='')\n", "talks")
    _, answer = call(cloud, name, LogType="Tail")
    tail = base64.b64decode(answer["LogResult"]).decode().splitlines()
    request = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amzn-requestid")
    assert request
    assert tail[0].startswith("START RequestId: ")
    assert tail[0].endswith("Version: $LATEST")
    assert tail[1:3] == ["one", "two"]
    assert tail[3].startswith("END RequestId: ")
    assert "Max Memory Used: " in tail[4]
    assert "Init Duration: " in tail[4]
    assert logged(cloud, name) == tail


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("def handler(event, context):\n    raise ValueError('bad input')\n", "ValueError", "bad input"),
        ("import nothing_of_that_name\n", "Runtime.ImportModuleError", "Unable to import module 'index': No module"),
        ("x = 1\n", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'index'"),
        ("def handler(:\n", "Runtime.UserCodeSyntaxError", "Syntax error in module 'index'"),
        ("raise KeyError('k')\n", "KeyError", "'k'"),
        ("def handler(event, context):\n    return {1, 2}\n", "Runtime.MarshalError", "Object of type set is not JSON"),
        ("import os\ndef handler(event, context):\n    os._exit(3)\n", "Runtime.ExitError", "exit status 3"),
        ("def handler(event, context):\n    raise SystemExit(0)\n", "Runtime.ExitError", "without providing a reason"),
    ],
)
def test_how_functions_fail(cloud: Running, make: Make, code: str, kind: str, message: str) -> None:
    name = make(code, "fails")
    for _ in range(2):  # a failed function takes the next event
        payload, answer = call(cloud, name)
        assert answer["FunctionError"] == "Unhandled"
        assert payload["errorType"] == kind
        assert message in payload["errorMessage"]


def test_an_exception_has_its_trace(cloud: Running, make: Make) -> None:
    name = make("def deep():\n    raise OSError('no')\ndef handler(event, context):\n    deep()\n", "trace")
    payload, _ = call(cloud, name)
    assert [frame.split(", in ")[1].split("\n")[0] for frame in payload["stackTrace"]] == ["handler", "deep"]
    assert any(line.startswith("[ERROR] OSError: no") for line in logged(cloud, name))


def test_a_loop_is_ended(cloud: Running, make: Make) -> None:
    name = make(
        "def handler(event, context):\n    while event == 'loop': pass\n    return 'done'\n", "loops", Timeout=1
    )
    payload, answer = call(cloud, name, "loop")
    assert answer["FunctionError"] == "Unhandled"
    assert payload["errorType"] == "Sandbox.Timedout"
    assert payload["errorMessage"].endswith("Task timed out after 1.00 seconds")
    assert any(line.endswith("Task timed out after 1.00 seconds") for line in logged(cloud, name))
    assert call(cloud, name)[0] == "done"


def test_what_takes_too_much_memory_is_ended(cloud: Running, make: Make) -> None:
    code = "def handler(event, context):\n    held = []\n    while True: held.append(bytes(1 << 20))\n"
    name = make(code, "hungry", MemorySize=128)
    payload, _ = call(cloud, name)
    assert payload["errorType"] == "Runtime.OutOfMemory"


def test_new_code_and_configuration_count_from_the_next_event(cloud: Running, make: Make) -> None:
    client = cloud.client("lambda")
    name = make("import os\ndef handler(event, context): return ['old', os.environ.get('XY')]\n", "changes")
    assert call(cloud, name)[0] == ["old", None]
    before = client.get_function(FunctionName=name)["Configuration"]["CodeSha256"]
    cloud.client("s3").create_bucket(Bucket="code")
    new = packed("import os\ndef handler(event, context): return ['new', os.environ.get('XY')]\n")
    cloud.client("s3").put_object(Bucket="code", Key="new.zip", Body=new)
    client.update_function_code(FunctionName=name, S3Bucket="code", S3Key="new.zip")
    assert call(cloud, name)[0] == ["new", None]
    client.update_function_configuration(FunctionName=name, Environment={"Variables": {"XY": "1"}}, MemorySize=200)
    assert call(cloud, name)[0] == ["new", "1"]
    after = client.get_function(FunctionName=name)["Configuration"]
    assert after["CodeSha256"] != before
    assert (after["MemorySize"], after["LastUpdateStatus"], after["State"]) == (200, "Successful", "Active")
    assert name in [each["FunctionName"] for each in client.list_functions()["Functions"]]


def test_dry_run_and_unknown_functions(cloud: Running, make: Make) -> None:
    name = make(ECHO, "dry")
    assert cloud.client("lambda").invoke(FunctionName=name, InvocationType="DryRun")["StatusCode"] == 204
    with pytest.raises(ClientError) as caught:
        cloud.client("lambda").invoke(FunctionName="nobody")
    assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"


def test_reserved_concurrency_throttles(cloud: Running, make: Make) -> None:
    name = make(ECHO, "throttled")
    cloud.client("lambda").put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    with pytest.raises(ClientError, match="Rate Exceeded") as caught:
        call(cloud, name)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Runtime": "nodejs22.x"}, "runs Python functions only"),
        ({"Role": f"arn:aws:iam::{ACCOUNT}:role/nobody"}, "cannot be assumed by Lambda"),
        ({"Code": {"ZipFile": b"no archive"}}, "Could not unzip"),
        ({"Code": {"S3Bucket": "none-such", "S3Key": "k"}}, "NoSuchBucket"),
        ({"Timeout": 901}, "less than or equal to 900"),
        ({"Environment": {"Variables": {"AWS_REGION": "x"}}}, "Reserved keys used in this request: AWS_REGION"),
        ({"Code": {"ImageUri": "i"}, "PackageType": "Image"}, "container images"),
    ],
)
def test_what_is_refused(cloud: Running, make: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ClientError, match=message) as caught:
        make(ECHO, "refused", **change)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_a_payload_that_is_no_json(cloud: Running, make: Make) -> None:
    name = make(ECHO, "json")
    with pytest.raises(ClientError, match="Could not parse request body into json"):
        cloud.client("lambda").invoke(FunctionName=name, Payload=b"{")


# --- asynchronous ------------------------------------------------------------------------------------------------------------


def test_an_event_is_tried_three_times_and_then_told(cloud: Running, make: Make) -> None:
    destination, dead = cloud.cloud.queue("failures"), cloud.cloud.queue("function-dead")
    code = "def handler(event, context):\n    raise ValueError('never')\n"
    name = make(code, "retried", DeadLetterConfig={"TargetArn": dead})
    client = cloud.client("lambda")
    client.put_function_event_invoke_config(
        FunctionName=name, DestinationConfig={"OnFailure": {"Destination": destination}}
    )
    answer = client.invoke(FunctionName=name, InvocationType="Event", Payload=b'{"a": 1}')
    assert answer["StatusCode"] == 202
    starts = lambda: sum(line.startswith("START") for line in logged(cloud, name))  # noqa: E731 - asked four times
    cloud.settle()
    assert starts() == 1
    cloud.settle(59)
    assert starts() == 1
    cloud.settle(2)
    assert starts() == 2
    assert cloud.cloud.received("failures") == []
    cloud.settle(121)
    assert starts() == 3
    (body,) = cloud.cloud.received("failures")
    record = json.loads(body)
    assert record["requestContext"]["condition"] == "RetriesExhausted"
    assert record["requestContext"]["approximateInvokeCount"] == 3
    assert record["requestPayload"] == {"a": 1}
    assert record["responsePayload"]["errorMessage"] == "never"
    assert cloud.cloud.received("function-dead") == ['{"a": 1}']
    cloud.settle(1000)
    assert starts() == 3
    function = Metric.of("AWS/Lambda", "Errors", {"FunctionName": name})
    assert sum(cloud.cloud.metrics.read(REGION, function, 0, 4e9).total) == 3


def test_success_has_a_destination_too(cloud: Running, make: Make) -> None:
    name = make("def handler(event, context): return 42\n", "succeeds")
    destination = cloud.cloud.queue("successes")
    cloud.client("lambda").put_function_event_invoke_config(
        FunctionName=name, MaximumRetryAttempts=0, DestinationConfig={"OnSuccess": {"Destination": destination}}
    )
    cloud.client("lambda").invoke(FunctionName=name, InvocationType="Event")
    cloud.settle()
    (body,) = cloud.cloud.received("successes")
    record = json.loads(body)
    assert (record["requestContext"]["condition"], record["responsePayload"]) == ("Success", 42)


# --- what reaches a function -------------------------------------------------------------------------------------------------

TELL = """\
import boto3, json, os
def handler(event, context):
    queue = boto3.client("sqs").get_queue_url(QueueName="told")["QueueUrl"]
    boto3.client("sqs").send_message(QueueUrl=queue, MessageBody=json.dumps(event))
"""


@pytest.fixture
def teller(cloud: Running, make: Make) -> str:
    cloud.cloud.queue("told")
    name = make(TELL, "teller")
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"


def allow(cloud: Running, function: str, principal: str, source: str) -> None:
    cloud.client("lambda").add_permission(
        FunctionName=function,
        StatementId=principal.split(".")[0],
        Action="lambda:InvokeFunction",
        Principal=principal,
        SourceArn=source,
    )


def test_eventbridge_invokes_a_function_that_lets_it(cloud: Running, teller: str) -> None:
    events = cloud.client("events")
    rule = events.put_rule(Name="to-function", EventPattern='{"source": ["mine"]}')["RuleArn"]
    dead = cloud.cloud.queue("not-allowed")
    events.put_targets(Rule="to-function", Targets=[{"Id": "f", "Arn": teller, "DeadLetterConfig": {"Arn": dead}}])
    entry = {"Source": "mine", "DetailType": "d", "Detail": '{"x": 1}'}
    events.put_events(Entries=[entry])
    cloud.settle()
    assert len(cloud.cloud.received("not-allowed")) == 1
    allow(cloud, teller, "events.amazonaws.com", rule)
    events.put_events(Entries=[entry])
    cloud.settle()
    (body,) = cloud.cloud.received("told")
    assert json.loads(body)["detail"] == {"x": 1}
    events.remove_targets(Rule="to-function", Ids=["f"])
    events.delete_rule(Name="to-function")


def test_sns_invokes_a_function(cloud: Running, teller: str) -> None:
    sns = cloud.client("sns")
    topic = sns.create_topic(Name="to-function")["TopicArn"]
    subscription = sns.subscribe(TopicArn=topic, Protocol="lambda", Endpoint=teller)["SubscriptionArn"]
    allow(cloud, teller, "sns.amazonaws.com", topic)
    sns.publish(TopicArn=topic, Message="hello", Subject="greeting")
    cloud.settle()
    (body,) = cloud.cloud.received("told")
    (record,) = json.loads(body)["Records"]
    assert (record["EventSource"], record["EventSubscriptionArn"]) == ("aws:sns", subscription)
    assert (record["Sns"]["Message"], record["Sns"]["Subject"]) == ("hello", "greeting")
    assert record["Sns"]["TopicArn"] == topic
    sns.delete_topic(TopicArn=topic)


def test_an_alarm_invokes_a_function_and_its_history_says_when_it_cannot(cloud: Running, teller: str) -> None:
    gone = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:gone"
    cloudwatch = cloud.client("cloudwatch")
    cloudwatch.put_metric_alarm(
        AlarmName="acts",
        Namespace="N",
        MetricName="M",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanThreshold",
        AlarmActions=[teller, gone],
    )
    allow(cloud, teller, "lambda.alarms.cloudwatch.amazonaws.com", f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:acts")
    cloudwatch.set_alarm_state(AlarmName="acts", StateValue="ALARM", StateReason="to see")
    cloud.settle()
    (body,) = cloud.cloud.received("told")
    event = json.loads(body)
    assert event["source"] == "aws.cloudwatch"
    assert event["alarmData"]["state"]["value"] == "ALARM"
    assert event["alarmData"]["previousState"]["value"] == "INSUFFICIENT_DATA"
    history = cloudwatch.describe_alarm_history(AlarmName="acts", HistoryItemType="Action")["AlarmHistoryItems"]
    failed = [json.loads(item["HistoryData"]) for item in history if "Failed" in item["HistorySummary"]]
    assert [(item["notificationResource"], item["error"]) for item in failed] == [
        (gone, f"the function {gone} does not exist")
    ]
    cloudwatch.delete_alarms(AlarmNames=["acts"])


# --- SNS over HTTP -----------------------------------------------------------------------------------------------------------


def test_sns_posts_to_http_and_tries_again(cloud: Running) -> None:
    got: list[tuple[dict[str, str], bytes]] = []
    answers = [500, 200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(
                (
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(int(self.headers["Content-Length"])),
                )
            )
            self.send_response(answers.pop(0))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            sns = cloud.client("sns")
            topic = sns.create_topic(Name="to-http")["TopicArn"]
            url = f"http://127.0.0.1:{server.server_port}/hook"
            sns.subscribe(TopicArn=topic, Protocol="http", Endpoint=url)
            sns.publish(TopicArn=topic, Message="hello")
            cloud.settle()
            assert len(got) == 1
            cloud.settle(21)
            assert len(got) == 2
        finally:
            server.shutdown()
            thread.join()
    headers, body = got[1]
    assert headers["x-amz-sns-message-type"] == "Notification"
    assert headers["x-amz-sns-topic-arn"] == topic
    assert json.loads(body)["Message"] == "hello"
    assert got[0][1] == body


@pytest.mark.parametrize(
    ("protocol", "endpoint", "said"),
    [
        ("pigeon", "coop", "Amazon SNS does not support this protocol string: pigeon"),
        ("https", "http://127.0.0.1/", "Endpoint must match the specified protocol"),
        ("http", "somewhere", "Endpoint must match the specified protocol"),
    ],
)
def test_what_sns_takes_no_subscription_of(cloud: Running, protocol: str, endpoint: str, said: str) -> None:
    sns = cloud.client("sns")
    topic = sns.create_topic(Name="refuses")["TopicArn"]
    with pytest.raises(ClientError, match=rf"InvalidParameter.*Invalid parameter: {said}"):
        sns.subscribe(TopicArn=topic, Protocol=protocol, Endpoint=endpoint)
    assert sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"] == []
    sns.delete_topic(TopicArn=topic)


def test_an_empty_message_is_refused(cloud: Running) -> None:
    sns, queue = cloud.client("sns"), cloud.cloud.queue("never-empty")
    topic = sns.create_topic(Name="never-empty")["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)
    with pytest.raises(ClientError, match=r"InvalidParameter.*Invalid parameter: Empty message"):
        sns.publish(TopicArn=topic, Message="")
    entries = [{"Id": "empty", "Message": ""}, {"Id": "full", "Message": "x"}]
    answer = sns.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries)
    assert [each["Id"] for each in answer["Successful"]] == ["full"]
    assert [(each["Id"], each["Message"]) for each in answer["Failed"]] == [
        ("empty", "Invalid parameter: Empty message")
    ]
    assert len(cloud.cloud.received("never-empty")) == 1
    sns.delete_topic(TopicArn=topic)


def test_an_endpoint_that_is_gone_fails_no_publication(cloud: Running) -> None:
    sns = cloud.client("sns")
    topic = sns.create_topic(Name="broken")["TopicArn"]
    dead = cloud.cloud.queue("sns-dead")
    policy = json.dumps({"deadLetterTargetArn": dead})
    gone = f"arn:aws:sqs:{REGION}:{ACCOUNT}:gone"
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=gone, Attributes={"RedrivePolicy": policy})
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=cloud.cloud.queue("still-there"))
    sns.publish(TopicArn=topic, Message="hello")
    cloud.settle()
    assert len(cloud.cloud.received("still-there")) == 1
    assert cloud.cloud.received("sns-dead") == ["hello"]
