"""What is missing is named with the extra that brings it; the verbs need none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest


def without(packages: Sequence[str], code: str) -> subprocess.CompletedProcess[str]:
    """That code in a Python that does not have those packages."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({list(packages)}))"
    command = [sys.executable, "-W", "error", "-c", f"{absent}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


EXTRAS = ["moto", "flask", "uvicorn", "httptools", "uvloop", "numpy", "torch", "safetensors", "sklearn", "aws_cdk"]


@pytest.mark.parametrize("package", ["moto", "flask", "uvicorn"])
def test_the_local_cloud_names_the_extra_that_is_missing(package: str) -> None:
    ended = without([package], "from windlass.cli import main; sys.exit(main(['local', 'run', '--', 'true']))")

    install = "Install it: pip install 'windlass[local]'."
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"error: The local cloud needs the package '{package}'. {install}\n"


def test_the_model_server_names_the_extra_that_is_missing() -> None:
    ended = without(["uvicorn"], "from windlass.runtime.server import main; sys.exit(main())")

    assert (ended.returncode, ended.stdout) == (1, "")
    assert "needs the package 'uvicorn'. Install it: pip install 'windlass[serve]'." in ended.stderr


def test_the_verbs_need_no_extra() -> None:
    code = "import windlass as wl; [getattr(wl, name) for name in wl.__all__]; from windlass.cli.app import app"

    ended = without(EXTRAS, code)

    assert (ended.returncode, ended.stderr) == (0, "")
