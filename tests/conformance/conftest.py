"""Foreign clients run against the same rig as our own tests, in one worker: they share what they install and start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cloud.conftest import Rig, every_answer_fits_its_service_model, rig

__all__ = ["every_answer_fits_its_service_model", "rig"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("conformance"))


class Foreign:
    """A client in an environment of its own, as `make foreign` installs it: it must not share our packages' versions."""

    def __init__(self, name: str, rig: Rig) -> None:
        self.bin = Path(sys.prefix) / "foreign" / name / "bin"
        if not (self.bin / "python").exists():
            pytest.skip(f"{name} is not installed: make foreign")
        self.rig = rig

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A command of that environment, as a user of this cloud would run it, and of no other configuration."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_PAGER": ""}
        whole = {"PATH": f"{self.bin}:{os.defpath}", **kept, **nowhere, **self.rig.env, **(env or {})}
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            env=whole,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
