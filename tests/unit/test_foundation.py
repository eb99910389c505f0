"""The contract and the words around a deploy; the service is an HTTP server that says what CloudFormation would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest

from windlass import aws, foundation
from windlass.errors import Conflict, DeploymentFailed, InvalidInput, WaitTimeout
from windlass.foundation import Change, Contract, Event

FIELDS = {
    "project": "digits",
    "bucket": "b",
    "key_arn": "k",
    "role_arn": "r",
    "topic_arn": "t",
    "model_package_group": "digits",
    "metric_namespace": "Windlass",
}


def parse(text: str) -> Contract:
    return Contract._parse(text, "Reading it", "Deploy it.")


def test_a_contract_is_its_fields_and_ignores_those_of_a_newer_minor_release() -> None:
    assert parse(json.dumps({"version": 1, **FIELDS, "dashboard": "new"})) == Contract(**FIELDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "Reading it: it is not JSON .* Deploy it."),
        ("[]", "it has version None"),
        (json.dumps({"version": 0, **FIELDS}), "version 0, and this SDK reads version 1. Deploy it."),
        (json.dumps({"version": 2, **FIELDS}), "version 2, .* Upgrade the SDK"),
        (json.dumps({"version": 1, **FIELDS, "bucket": None}), "it lacks bucket. Deploy it."),
    ],
)
def test_a_contract_that_cannot_be_read_says_what_to_do(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (Change("Add", "Key", "AWS::KMS::Key"), "+ Key                   AWS::KMS::Key"),
        (Change("Remove", "Key", "AWS::KMS::Key"), "- Key                   AWS::KMS::Key"),
        (
            Change("Modify", "Key", "AWS::KMS::Key", "True", ("KeySpec",)),
            "~ Key                   AWS::KMS::Key  KeySpec  (replaced)",
        ),
        (
            Event("Key", "AWS::KMS::Key", "CREATE_FAILED", "no"),
            "CREATE_FAILED       Key                   AWS::KMS::Key  no",
        ),
    ],
)
def test_lines(shown: Change | Event, line: str) -> None:
    assert str(shown) == line


# --------------------------------------------------------------------------------------------------------------- the service


class Script:
    """CloudFormation as far as DescribeStacks and a failing change set go.

    Attributes:
        status: of the one stack; empty for none.
        calls: the operations that came in.
    """

    def __init__(self) -> None:
        self.status, self.reason = "CREATE_COMPLETE", ""
        self.change_set_status, self.change_set_reason = "CREATE_COMPLETE", ""
        self.calls: list[str] = []

    def answer(self, operation: str) -> tuple[int, str]:
        self.calls.append(operation)
        if operation == "DescribeStacks":
            if not self.status:
                error = "<Code>ValidationError</Code><Message>Stack with id x does not exist</Message>"
                return 400, f"<ErrorResponse><Error><Type>Sender</Type>{error}</Error></ErrorResponse>"
            body = (
                "<Stacks><member><StackName>digits-foundation</StackName><StackId>arn:stack</StackId>"
                "<CreationTime>2026-01-01T00:00:00Z</CreationTime>"
                f"<StackStatus>{self.status}</StackStatus><StackStatusReason>{self.reason}</StackStatusReason>"
                "</member></Stacks>"
            )
        elif operation == "CreateChangeSet":
            body = "<Id>arn:change</Id><StackId>arn:stack</StackId>"
        elif operation == "DescribeChangeSet":
            body = (
                f"<Status>{self.change_set_status}</Status><StatusReason>{self.change_set_reason}</StatusReason>"
                "<StackId>arn:stack</StackId><Changes/>"
            )
        elif operation == "DescribeStackEvents":
            body = "<StackEvents/>"
        else:
            body = ""
        return 200, f"<{operation}Response><{operation}Result>{body}</{operation}Result></{operation}Response>"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            status, body = script.answer(form["Action"][0])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        yield script
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("project", "parameters", "message"),
    [
        ("Digits", {}, "Project is 'Digits'. It takes lower-case letters"),
        ("d", {}, "Project is 'd'"),
        ("digits", {"ModelPackageGroupNam": "x"}, "Did you mean 'ModelPackageGroupName'"),
        ("digits", {"ModelPackageGroupName": "-"}, "ModelPackageGroupName is '-'. It takes letters"),
        ("digits", {"Project": "other"}, "Name the project once"),
    ],
)
def test_a_bad_parameter_costs_no_request(
    script: Script, project: str, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        foundation.deploy(project, parameters)
    assert script.calls == []


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ("UPDATE_IN_PROGRESS", "Wait until it has ended: windlass infra status"),
        ("DELETE_FAILED", "windlass infra destroy --project digits; then deploy again"),
        ("ROLLBACK_FAILED", "windlass infra destroy --project digits"),
        ("UPDATE_ROLLBACK_FAILED", "aws cloudformation continue-update-rollback --stack-name digits-foundation"),
    ],
)
def test_a_stack_that_is_stuck_says_what_to_do(script: Script, state: str, advice: str) -> None:
    script.status, script.reason = state, "it broke"
    with pytest.raises(Conflict) as caught:
        foundation.deploy("digits")
    assert f"stack digits-foundation is in state {state} (it broke)" in str(caught.value)
    assert advice in str(caught.value)
    assert script.calls == ["DescribeStacks"]


def test_a_change_set_that_fails_gives_its_reason_and_is_deleted(script: Script) -> None:
    script.change_set_status, script.change_set_reason = "FAILED", "Template error: no"
    with pytest.raises(DeploymentFailed, match="the change set failed: Template error: no"):
        foundation.deploy("digits")
    assert script.calls[-1] == "DeleteChangeSet"


def test_diff_of_nothing_deployed_sends_no_write(script: Script) -> None:
    script.status = ""
    changes = foundation.diff("digits")
    assert {change.action for change in changes} == {"Add"}
    assert {change.logical_id for change in changes} == set(json.loads(foundation.template())["Resources"])
    assert script.calls == ["DescribeStacks"]


def test_diff_deletes_its_change_set(script: Script) -> None:
    assert foundation.diff("digits") == []
    assert script.calls[-1] == "DeleteChangeSet"
    assert "ExecuteChangeSet" not in script.calls


def test_waiting_ends_and_says_that_the_work_goes_on(script: Script) -> None:
    # Given a stack that stays in progress once the change set runs, and a clock that only sleep moves
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    answer = script.answer

    def stuck(operation: str) -> tuple[int, str]:
        if operation == "ExecuteChangeSet":
            script.status = "UPDATE_IN_PROGRESS"
        return answer(operation)

    script.answer = stuck  # type: ignore[method-assign]
    with pytest.raises(WaitTimeout, match="it goes on") as caught:
        foundation.deploy("digits", clock=aws.Clock(now=lambda: now[0], sleep=sleep))
    assert "windlass infra status --project digits" in str(caught.value)


def test_a_project_without_foundation_is_not_deployed(script: Script) -> None:
    script.status = ""
    status = foundation.status("digits")
    assert (status.state, status.deployed, status.resources) == ("NOT_DEPLOYED", False, ())
