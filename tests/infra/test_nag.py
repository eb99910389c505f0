"""cdk-nag's AWS Solutions rules: no finding but those taken knowingly, each by its own id."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("cdk")

ROOT = Path(__file__).resolve().parents[2]

# Synthesis ends in an error when a rule is broken; the report tells which.
CHECK = """
import sys
from infra.app import build
app = build(sys.argv[1])
from aws_cdk import Stack, Validations, aws_iam as iam
from cdk_nag import AwsSolutionsChecks
if sys.argv[2:] == ["careless"]:
    stack = app.node.find_child("WindlassFoundation")
    everything = iam.PolicyStatement(actions=["s3:*"], resources=["*"])
    role = iam.Role(stack, "Careless", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"),
                    inline_policies={"all": iam.PolicyDocument(statements=[everything])})
Validations.of(app).add_plugins(AwsSolutionsChecks(app))
app.synth()
"""


def findings(folder: Path, *arguments: str) -> set[str]:
    command = [sys.executable, "-c", CHECK, str(folder), *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report: dict[str, Any] = json.loads((folder / "validation-report.json").read_text())
    found = {violation["ruleName"] for plugin in report["pluginReports"] for violation in plugin["violations"]}
    assert bool(found) == bool(run.returncode), run.stderr[-2000:]
    return found


def test_the_foundation_has_no_finding(tmp_path: Path) -> None:
    assert findings(tmp_path) == set()


def test_a_careless_role_has_two(tmp_path: Path) -> None:
    # The acknowledgements are of single findings on single resources, so they hide nothing of another.
    assert findings(tmp_path, "careless") == {
        "AwsSolutions-IAM5[Action::s3:*]",
        "AwsSolutions-IAM5[Resource::*]",
    }
