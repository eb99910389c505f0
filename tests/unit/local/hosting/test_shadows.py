"""Shadow variants: copies of requests by weight, and nothing that production feels."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.local.hosting.hosted import (
    ECHO,
    REGION,
    Cloud,
    answers,
    canary,
    describe,
    invoke,
    make_config,
    make_model,
    refusal,
    start,
    update,
    variant,
)
from windlass.local import storage
from windlass.local.cloudwatch.metric_store import Metric


def shadow(model: str, *, weight: float = 1.0) -> dict[str, Any]:
    return variant(model, VariantName="shadow", InitialVariantWeight=weight)


def count(cloud: Cloud, variant: str, name: str = "Invocations") -> float:
    """How many samples of that metric the variant has."""
    dimensions = {"EndpointName": "digits", "VariantName": variant}
    cloud.hosting._deployments._flush()
    points = cloud.metrics.read(REGION, Metric.of("AWS/SageMaker", name, dimensions), 0, 1e12)
    return float(points.count.sum())


def copies_are_answered(cloud: Cloud) -> None:
    """Return when no copy of a request is under way."""
    for deployed in cloud.hosting._deployments.endpoints[REGION, "digits"].deployed:
        assert deployed.fleet.drain(30)


@pytest.mark.parametrize(("weight", "copies"), [(0.25, 10), (1.0, 40), (7.0, 40), (0.0, 0)])
def test_a_shadow_gets_copies_by_its_weight_and_its_answers_are_dropped(
    cloud: Cloud, weight: float, copies: int
) -> None:
    capture = {
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": "s3://models/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"CsvContentTypes": ["text/plain"]},
    }
    for name in ("v1", "v2"):
        make_model(cloud, name)
    make_config(
        cloud, "both", variant("v1"), ShadowProductionVariants=[shadow("v2", weight=weight)], DataCaptureConfig=capture
    )
    start(cloud, "both")

    assert answers(cloud, 40) == {b"v1": 40}

    copies_are_answered(cloud)
    assert count(cloud, "main") == 40
    assert count(cloud, "shadow") == copies
    captured = [
        json.loads(line)
        for key in storage.keys("s3://models/captured/digits/shadow/")
        for line in storage.read(key).splitlines()
    ]
    assert [record["captureData"]["endpointOutput"]["data"] for record in captured] == ["v2"] * copies
    [shown] = describe(cloud)["ShadowProductionVariants"]
    assert (shown["VariantName"], shown["CurrentWeight"], shown["CurrentInstanceCount"]) == ("shadow", weight, 1)


def test_a_shadow_that_fails_is_counted_and_costs_production_nothing(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_model(
        cloud,
        "broken",
        ECHO.replace("def transform_fn(", "import os\ndef transform_fn(").replace(
            '    if "raise"', '    os._exit(9)\n    if "raise"'
        ),
    )
    make_config(cloud, "both", variant("v1"), ShadowProductionVariants=[shadow("broken")])
    start(cloud, "both")

    assert answers(cloud, 5) == {b"v1": 5}

    copies_are_answered(cloud)
    assert count(cloud, "shadow", "Invocation5XXErrors") == 5
    target = invoke(cloud, HTTP_X_AMZN_SAGEMAKER_TARGET_VARIANT="shadow")
    assert json.loads(target[2])["Message"] == "Variant shadow not found for Endpoint digits."


def test_more_than_one_production_or_shadow_variant_is_refused(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    other = variant("v1", VariantName="other")

    for given, shadows in (([variant("v1"), other], [shadow("v1")]), ([variant("v1")], [shadow("v1"), other])):
        said = refusal(
            lambda given=given, shadows=shadows: make_config(cloud, "c", *given, ShadowProductionVariants=shadows)  # type: ignore[misc]
        )
        assert "exactly one variant in ProductionVariants and one in ShadowProductionVariants" in said
    said = refusal(lambda: make_config(cloud, "c", variant("v1"), ShadowProductionVariants=[variant("v1")]))
    assert "unique name" in said


def test_a_shadow_is_scaled_and_weighed_like_any_variant(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "both", variant("v1"), ShadowProductionVariants=[shadow("v1", weight=0)])
    start(cloud, "both")

    change = {"VariantName": "shadow", "DesiredInstanceCount": 2, "DesiredWeight": 0.5}
    request = {"EndpointName": "digits", "DesiredWeightsAndCapacities": [change]}
    cloud.hosting.update_endpoint_weights_and_capacities(REGION, request)

    assert cloud.hosting.wait(REGION, "digits", timeout=30) == "InService"
    [shown] = describe(cloud)["ShadowProductionVariants"]
    assert (shown["CurrentInstanceCount"], shown["CurrentWeight"]) == (2, 0.5)
    answers(cloud, 10)
    copies_are_answered(cloud)
    assert count(cloud, "shadow") == 5


def test_a_shadow_is_promoted_by_an_update(cloud: Cloud) -> None:
    for name in ("v1", "v2"):
        make_model(cloud, name)
    make_config(cloud, "both", variant("v1"), ShadowProductionVariants=[shadow("v2")])
    make_config(cloud, "promoted", variant("v2"))
    start(cloud, "both")

    update(cloud, "promoted", DeploymentConfig=canary(percent=50, wait=0, termination=0))

    assert cloud.hosting.wait(REGION, "digits", timeout=30) == "InService"
    assert "ShadowProductionVariants" not in describe(cloud)
    assert answers(cloud, 5) == {b"v2": 5}
