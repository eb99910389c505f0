"""The architecture, held: who imports whom is import-linter's part (make check); what the code may know is here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import windlass

SDK = Path(windlass.__file__).parent
OUTSIDE = [p for p in SDK.rglob("*.py") if p.relative_to(SDK).parts[0] not in ("local", "cli")]


def names_and_strings(path: Path) -> list[str]:
    """Identifiers and string constants that decide something; docstrings and messages of errors do not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spoken = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr | ast.Raise):
            spoken.update(id(n) for n in ast.walk(node))
        if isinstance(node, ast.keyword) and node.arg in ("hint", "where"):
            spoken.update(id(n) for n in ast.walk(node))
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id in ("hint", "_HINTS") for t in node.targets
        ):
            spoken.update(id(n) for n in ast.walk(node))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "_HINTS":
            spoken.update(id(n) for n in ast.walk(node))
    found = []
    for node in ast.walk(tree):
        if id(node) in spoken:
            continue
        if isinstance(node, ast.Name):
            found.append(node.id)
        elif isinstance(node, ast.Attribute):
            found.append(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(SDK)))
def test_nothing_outside_local_and_the_cli_knows_of_a_local_cloud(path: Path) -> None:
    words = names_and_strings(path)
    assert not [w for w in words if "AWS_ENDPOINT_URL" in w or "endpoint_url" in w.lower()]
    local = [w for w in words if w.lower() in ("local", "is_local", "localhost", "127.0.0.1", "windlass.local", "moto")]
    allowed = {
        "plans.py": ["local"],  # Channel.local: a path on this disk
        "jobs.py": ["local"],
        "engines.py": ["local"],  # threading.local, here and in the next
        "windlass_packing.py": ["local"],
        "training.py": ["local", "127.0.0.1"],  # what a host is called when no SageMaker says it
    }.get(path.name, [])
    assert [w for w in local if w not in allowed] == []


def test_import_windlass_loads_nothing_heavy() -> None:
    heavy = "{'boto3', 'botocore', 'pydantic', 'rich', 'typer', 'yaml', 'torch', 'moto'}"
    code = (
        f"import sys, windlass; sys.exit(str(sorted({heavy} & set(sys.modules))) if {heavy} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_loads_no_boto3() -> None:
    code = "import sys, windlass.cli as c; c.main(['--help']); sys.exit('boto3' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_exported_names_are_these() -> None:
    assert windlass.__all__ == [
        "Contract",
        "Endpoint",
        "JobProgress",
        "ModelVersion",
        "Pending",
        "Plan",
        "Policy",
        "Prediction",
        "Retry",
        "Run",
        "ServeSpec",
        "Slo",
        "Stream",
        "TrainSpec",
        "WindlassError",
        "deploy",
        "errors",
        "evaluate",
        "import_version",
        "metrics",
        "monitor",
        "register",
        "train",
    ]
    for name in windlass.__all__:
        assert getattr(windlass, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'launch'"):
        windlass.launch


def test_only_aws_imports_boto3() -> None:
    importers = set()
    for path in OUTSIDE + list((SDK / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(m.split(".")[0] in ("boto3", "botocore") for m in modules):
                importers.add(str(path.relative_to(SDK)))
    assert importers == {"aws.py"}
