"""What every test sees."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rig",
        choices=["local", "aws"],
        default="local",
        help="what tests/cloud runs against: a local cloud that it starts (default), or the AWS account of your credentials",
    )
