"""The committed template: equal to what the CDK app makes, small enough to send inline, and as safe as we say."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import app
from windlass import foundation

pytestmark = pytest.mark.xdist_group("cdk")  # one Node at a time

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "templates" / "cloudformation" / "foundation.json"
INLINE_LIMIT = 51_200  # bytes that CreateChangeSet takes as TemplateBody


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    body: dict[str, Any] = json.loads(COMMITTED.read_text())
    return body


def test_resynthesis_is_byte_identical() -> None:
    # In a process of its own, as `make templates` does it
    code = "from infra.app import synthesize; print(synthesize()['foundation.json'], end='')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout == COMMITTED.read_text(), "run `make templates` and commit the result"


def test_cdk_validates_it(tmp_path: Path) -> None:
    # CDK's own CloudFormation rules; off in everyday synthesis, because they take four times as long as the rest.
    code = "import sys; from infra.app import build; build(sys.argv[1], validate=True).synth()"
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_cdk_cli_gets_the_same_stack(tmp_path: Path) -> None:
    command = json.loads((ROOT / "infra" / "cdk.json").read_text())["app"].replace("python3", sys.executable)
    environment = {**os.environ, "CDK_OUTDIR": str(tmp_path)}
    subprocess.run(command, shell=True, cwd=ROOT / "infra", env=environment, check=True, capture_output=True)
    assert json.loads((tmp_path / "WindlassFoundation.template.json").read_text()) == json.loads(COMMITTED.read_text())


def test_it_fits_inline() -> None:
    assert len(COMMITTED.read_bytes()) < INLINE_LIMIT


def test_it_names_nothing_of_one_account_or_machine(template: dict[str, Any]) -> None:
    body = {key: value for key, value in template.items() if key != "Mappings"}  # AWS's own registries stand there
    text = json.dumps(body)
    assert not re.search(r"\b\d{12}\b", text)
    assert "cdk" not in text.lower()


@pytest.mark.parametrize("logical_id", ["ArtifactBucket", "ArtifactBucketPolicy", "Key"])
def test_what_holds_data_outlives_the_stack_but_not_a_failed_creation(
    template: dict[str, Any], logical_id: str
) -> None:
    resource = template["Resources"][logical_id]
    assert resource["DeletionPolicy"] == "RetainExceptOnCreate"
    assert resource["UpdateReplacePolicy"] == "Retain"


def test_the_bucket_is_encrypted_versioned_and_closed(template: dict[str, Any]) -> None:
    bucket = template["Resources"]["ArtifactBucket"]["Properties"]
    (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["BucketKeyEnabled"] is True
    assert rule["ServerSideEncryptionByDefault"] == {
        "SSEAlgorithm": "aws:kms",
        "KMSMasterKeyID": {"Fn::GetAtt": ["Key", "Arn"]},
    }
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert "BucketName" not in bucket  # generated, so that a second foundation never collides
    (lifecycle,) = bucket["LifecycleConfiguration"]["Rules"]
    assert lifecycle["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert lifecycle["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}


@pytest.mark.parametrize("logical_id", ["ArtifactBucketPolicy", "AlertTopicPolicy"])
def test_plain_http_is_denied(template: dict[str, Any], logical_id: str) -> None:
    statements = template["Resources"][logical_id]["Properties"]["PolicyDocument"]["Statement"]
    insecure = {"Bool": {"aws:SecureTransport": "false"}}
    assert any(s["Effect"] == "Deny" and s["Condition"] == insecure for s in statements)


@pytest.mark.parametrize(("logical_id", "document"), [("Key", "KeyPolicy"), ("AlertTopicPolicy", "PolicyDocument")])
def test_services_are_held_to_this_account(template: dict[str, Any], logical_id: str, document: str) -> None:
    statements = template["Resources"][logical_id]["Properties"][document]["Statement"]
    services = [s for s in statements if s["Effect"] == "Allow" and "Service" in s["Principal"]]
    assert services
    for statement in services:
        assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}


def test_the_topic_is_encrypted_with_a_key_that_alarms_may_use(template: dict[str, Any]) -> None:
    assert template["Resources"]["AlertTopic"]["Properties"]["KmsMasterKeyId"] == {"Fn::GetAtt": ["Key", "Arn"]}
    users = {
        statement["Principal"].get("Service")
        for statement in template["Resources"]["Key"]["Properties"]["KeyPolicy"]["Statement"]
        if "kms:GenerateDataKey" in statement["Action"]
    }
    assert users == {"cloudwatch.amazonaws.com", "sns.amazonaws.com"}


def execution_statements(template: dict[str, Any]) -> list[dict[str, Any]]:
    (policy,) = template["Resources"]["ExecutionRole"]["Properties"]["Policies"]
    statements: list[dict[str, Any]] = policy["PolicyDocument"]["Statement"]
    return statements


def test_no_action_of_the_execution_role_is_a_wildcard(template: dict[str, Any]) -> None:
    actions = [
        action
        for statement in execution_statements(template)
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    ]
    assert actions
    assert not [action for action in actions if "*" in action]


def test_only_actions_without_resources_take_all_of_them(template: dict[str, Any]) -> None:
    open_to_all = {s["Action"]: s.get("Condition") for s in execution_statements(template) if s["Resource"] == "*"}
    assert open_to_all == {
        "cloudwatch:PutMetricData": {"StringLike": {"cloudwatch:namespace": ["Windlass", "/aws/sagemaker/*"]}},
        "ecr:GetAuthorizationToken": None,
    }


def test_the_execution_role_reaches_every_prefix_that_jobs_and_endpoints_use(template: dict[str, Any]) -> None:
    # Given the keys that the SDK's own code builds
    sources = "\n".join(
        (ROOT / "sdk" / "windlass" / f"{name}.py").read_text() for name in ("jobs", "plans", "registry")
    )
    used = set(re.findall(r"s3://\{[\w.]*bucket\}/([a-z]+)", sources))
    used -= {"evaluations"}  # written and read by the SDK's caller, closed to jobs
    assert {"runs", "data"} <= used
    # Then each is open to the role
    text = json.dumps(execution_statements(template))
    assert not [prefix for prefix in used if f'"/{prefix}/*"' not in text]


def test_the_contract_has_the_fields_that_the_sdk_reads(template: dict[str, Any]) -> None:
    value = template["Resources"]["Contract"]["Properties"]["Value"]["Fn::Join"][1]
    contract = json.loads("".join(part if isinstance(part, str) else "x" for part in value))
    assert contract.pop("version") == foundation.CONTRACT_VERSION
    assert set(contract) == {field.name for field in dataclasses.fields(foundation.Contract)}


def test_every_taggable_resource_is_tagged(template: dict[str, Any]) -> None:
    without = {"AlertTopicPolicy", "ArtifactBucketPolicy", "KeyAlias"}
    for name in set(template["Resources"]) - without:
        tags = template["Resources"][name]["Properties"]["Tags"]
        pairs = tags if isinstance(tags, dict) else {tag["Key"]: tag["Value"] for tag in tags}
        assert pairs == {"windlass:project": {"Ref": "Project"}}, name


def test_without_node_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JSII_NODE", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'windlass\[infra\]'"):
        app.find_node()


def test_a_wrong_jsii_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSII_NODE", "/nowhere/node")
    with pytest.raises(SystemExit, match=r"JSII_NODE names '/nowhere/node'"):
        app.find_node()
