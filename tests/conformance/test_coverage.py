"""No operation of SageMaker pretends: it is in the local cloud's own table, or it is refused by its name."""

from __future__ import annotations

import boto3
import pytest

from tests.cloud.conftest import Rig
from tests.conformance import coverage


def test_none_pretends(rig: Rig) -> None:
    if rig.cloud is None:
        pytest.skip("AWS has all of them")
    names = boto3.client("sagemaker", region_name="us-east-1").meta.service_model.operation_names
    refused = set(names) - coverage.implemented()

    answers = coverage.ask(rig.env["AWS_ENDPOINT_URL"], refused)

    assert {name for name, code in answers.items() if code != coverage.REFUSED} == set()


def test_what_is_implemented_is_answered(rig: Rig) -> None:
    if rig.cloud is None:
        pytest.skip("AWS has all of them")
    answers = coverage.ask(rig.env["AWS_ENDPOINT_URL"], coverage.implemented())

    # Nothing is created by requests as bare as these; nothing may break over them, either.
    assert {name for name, code in answers.items() if code in (coverage.REFUSED, "InternalFailure", "500")} == set()
