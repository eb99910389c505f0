"""The CDK CLI, as somebody who works on infra/ uses it: deploy, again without changes, with a change, diff, destroy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from infra.app import find_node
from windlass.local import LocalCloud

pytestmark = pytest.mark.xdist_group("cdk")  # one Node at a time

ROOT = Path(__file__).resolve().parents[2]
CLI = Path(sys.prefix) / "foreign" / "cdk" / "node_modules" / "aws-cdk" / "bin" / "cdk"

Cdk = Callable[..., str]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    with LocalCloud.up(tmp_path_factory.mktemp("cdk"), lifeline=True, enforce_iam=True) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def cdk(cloud: LocalCloud, tmp_path_factory: pytest.TempPathFactory) -> Cdk:
    """Run a command on the foundation's stack; returns all that it says."""
    if not CLI.exists():
        pytest.skip("the CDK CLI is not installed: make foreign")
    folder, home = tmp_path_factory.mktemp("assembly"), tmp_path_factory.mktemp("home")
    code = "import sys; from infra.app import build; build(sys.argv[1]).synth()"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True)
    environment = {
        "PATH": os.defpath,
        "HOME": str(home),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "CDK_DISABLE_CLI_TELEMETRY": "true",
        "CI": "true",  # everything goes to stdout
        **cloud.env,
    }

    def run(command: str, *arguments: str) -> str:
        whole = [find_node(), str(CLI), command, "WindlassFoundation", *arguments, "--app", str(folder), "--no-notices"]
        done = subprocess.run(
            whole, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_the_foundation_is_deployed_changed_and_destroyed(cloud: LocalCloud, cdk: Cdk) -> None:
    direct = ("--method=direct", "--require-approval=never")
    cloudformation = boto3.client(
        "cloudformation",
        endpoint_url=cloud.url,
        region_name=cloud.region,
        aws_access_key_id=cloud.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=cloud.env["AWS_SECRET_ACCESS_KEY"],
    )

    def outputs() -> dict[str, str]:
        (stack,) = cloudformation.describe_stacks(StackName="windlass-foundation")["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}

    # Given nothing, it makes the stack and says what is in it
    said = cdk("deploy", *direct)
    made = outputs()
    assert f"WindlassFoundation.Bucket = {made['Bucket']}" in said
    # Again, there is nothing to do, and diff knows of nothing
    assert "(no changes)" in cdk("deploy", *direct)
    assert "There were no differences" in cdk("diff")
    assert outputs() == made
    # A parameter changes what depends on it, and no more
    cdk("deploy", *direct, "--parameters", "ModelPackageGroupName=other")
    assert outputs() == {**made, "ModelPackageGroup": "other"}
    # By a change set, which is its own default, too
    cdk("deploy", "--require-approval=never", "--parameters", "ModelPackageGroupName=third")
    assert outputs() == {**made, "ModelPackageGroup": "third"}
    # And it goes, but for what is retained
    assert "destroyed" in cdk("destroy", "--force")
    assert cloudformation.list_stacks(StackStatusFilter=["CREATE_COMPLETE", "UPDATE_COMPLETE"])["StackSummaries"] == []
    cloudformation.close()
