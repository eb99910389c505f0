"""Constraints of the service model, answered in AWS's words."""

from __future__ import annotations

from typing import Any

import pytest

from windlass.local.faults import Fault
from windlass.local.validation import check

GOOD: dict[str, Any] = {
    "EndpointConfigName": "digits-1",
    "ProductionVariants": [
        {"VariantName": "main", "ModelName": "digits", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    ],
}


def variant(**changes: Any) -> dict[str, Any]:
    return {"ProductionVariants": [{**GOOD["ProductionVariants"][0], **changes}]}


def test_a_good_request_passes() -> None:
    check("sagemaker", "CreateEndpointConfig", GOOD)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"EndpointConfigName": "no good"},
            "Value 'no good' at 'endpointConfigName' failed to satisfy constraint: Member must ",
        ),
        ({"EndpointConfigName": "x" * 64}, "less than or equal to 63"),
        (
            {"EndpointConfigName": None},
            "Value null at 'endpointConfigName' failed to satisfy constraint: Member must not be null",
        ),
        (
            {"ProductionVariants": []},
            "at 'productionVariants' failed to satisfy constraint: Member must have length greater",
        ),
        (
            variant(InstanceType="ml.huge"),
            "at 'productionVariants.1.member.instanceType' failed to satisfy constraint: Member must",
        ),
        (variant(InitialInstanceCount=0), "Member must have value greater than or equal to 1"),
        (variant(ContainerStartupHealthCheckTimeoutInSeconds=5), "Member must have value greater than or equal to 60"),
    ],
)
def test_a_broken_constraint_is_named_with_its_path(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=r"^ValidationException: \d validation errors? detected: ") as refused:
        check("sagemaker", "CreateEndpointConfig", {**GOOD, **changes})
    assert said in refused.value.message


def test_all_broken_constraints_are_counted() -> None:
    with pytest.raises(Fault, match="2 validation errors detected"):
        check("sagemaker", "CreateEndpoint", {"EndpointName": "a b", "EndpointConfigName": "c d"})
