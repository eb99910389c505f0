"""The validator itself: it finds what AWS would not send, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from tests.conformance.shapes import violations


def found(operation: str, answer: dict[str, Any]) -> list[str]:
    model = boto3.client("sagemaker", region_name="us-east-1").meta.service_model.operation_model(operation)
    return list(violations(model.output_shape, answer))


MODEL = {"ModelName": "m", "CreationTime": 1.5, "ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/m"}


@pytest.mark.parametrize(
    "answer",
    [
        MODEL,
        {**MODEL, "CreationTime": datetime.now(UTC)},
        {**MODEL, "EnableNetworkIsolation": False, "Containers": [{"Image": "i", "Environment": {"a": "b"}}]},
        {**MODEL, "PrimaryContainer": {"Environment": {}}},
    ],
)
def test_what_aws_could_send_passes(answer: dict[str, Any]) -> None:
    assert found("DescribeModel", answer) == []


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"VpcConfig": {}}, "VpcConfig is an empty structure; AWS leaves such a member out"),
        ({"VpcConfig": None}, "VpcConfig is null"),
        ({"VpcConfig": {"Subnets": ["s"]}}, "VpcConfig lacks SecurityGroupIds, which is required"),
        ({"ModelName": 7}, "ModelName is not a string but 7"),
        ({"EnableNetworkIsolation": 1}, "EnableNetworkIsolation is not a boolean but 1"),
        ({"Colour": "blue"}, "the answer has Colour, which the service model does not know"),
        ({"Containers": {}}, "Containers is not a list but {}"),
        (
            {"Containers": [{"Image": "i", "Mode": "Many"}]},
            "Containers[0].Mode is 'Many', which is none of SingleModel, MultiModel",
        ),
    ],
)
def test_what_aws_could_not_send_is_found(change: dict[str, Any], violation: str) -> None:
    assert found("DescribeModel", {**MODEL, **change}) == [violation]


def test_what_is_required_must_be_there() -> None:
    assert found("DescribeModel", {"ModelName": "m"}) == [
        "the answer lacks CreationTime, which is required",
        "the answer lacks ModelArn, which is required",
    ]
