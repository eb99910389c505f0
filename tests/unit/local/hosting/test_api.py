"""Models, configs and endpoints: what is kept, served, refused, measured and captured."""

from __future__ import annotations

import json
import sqlite3
import threading
from typing import Any

import pytest

from tests.unit.local.hosting.hosted import (
    REGION,
    ROLE,
    Broken,
    Cloud,
    archive,
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
from windlass.local.cloud import ACCOUNT
from windlass.local.hosting import deployments
from windlass.local.hosting.capture import Capture


def test_models_and_configs_are_kept_as_they_were_given(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1")

    model = cloud.hosting.configs.describe_model(REGION, {"ModelName": "v1"})
    assert model["ModelArn"] == f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:model/v1"
    assert model["PrimaryContainer"] == {"Image": "pytorch", "ModelDataUrl": "s3://models/v1.tar.gz"}
    config = cloud.hosting.configs.describe_endpoint_config(REGION, {"EndpointConfigName": "v1"})
    assert config["ProductionVariants"] == [variant("v1", InitialVariantWeight=1.0)]
    assert [each["ModelName"] for each in cloud.hosting.configs.list_models(REGION, {})["Models"]] == ["v1"]
    assert cloud.hosting.configs.list_models("us-east-1", {})["Models"] == []
    cloud.hosting.configs.delete_model(REGION, {"ModelName": "v1"})
    assert "Could not find model" in refusal(lambda: cloud.hosting.configs.describe_model(REGION, {"ModelName": "v1"}))


def test_what_does_not_exist_or_exists_already_is_refused_as_on_aws(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1")
    arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}"
    hosting = cloud.hosting

    assert refusal(lambda: make_model(cloud, "v1")) == f'Cannot create already existing model "{arn}:model/v1".'
    assert refusal(lambda: make_config(cloud, "v1")) == (
        f'Cannot create already existing endpoint configuration "{arn}:endpoint-config/v1".'
    )
    assert refusal(lambda: make_config(cloud, "v2", variant("absent"))) == f'Could not find model "{arn}:model/absent".'
    assert (
        refusal(lambda: start(cloud, "absent"))
        == f'Could not find endpoint configuration "{arn}:endpoint-config/absent".'
    )
    assert refusal(lambda: update(cloud, "v1")) == f'Could not find endpoint "{arn}:endpoint/digits".'
    assert refusal(lambda: hosting.delete_endpoint(REGION, {"EndpointName": "digits"})).startswith(
        "Could not find endpoint"
    )


@pytest.mark.parametrize("uri", ["s3://models/absent.tar.gz", "s3://no-such-bucket/model.tar.gz"])
def test_model_data_must_exist(cloud: Cloud, uri: str) -> None:
    container = {"Image": "pytorch", "ModelDataUrl": uri}
    request = {"ModelName": "v1", "ExecutionRoleArn": ROLE, "PrimaryContainer": container}

    assert (
        refusal(lambda: cloud.hosting.configs.create_model(REGION, request)) == f"Could not find model data at {uri}."
    )


@pytest.mark.parametrize(
    ("changes", "more", "named"),
    [
        ({}, {"ExplainerConfig": {"ClarifyExplainerConfig": {}}}, "ExplainerConfig"),
        ({"InstancePools": [{"InstanceType": "ml.m5.large"}]}, {}, "InstancePools"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    cloud: Cloud, changes: dict[str, Any], more: dict[str, Any], named: str
) -> None:
    make_model(cloud, "v1")

    assert f"does not implement {named}" in refusal(lambda: make_config(cloud, "v1", variant("v1", **changes), **more))


def test_a_model_package_brings_its_container_and_must_be_approved(cloud: Cloud) -> None:
    storage.write("s3://models/v1.tar.gz", archive("v1"))
    arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:model-package/digits/1"
    container = {"Image": "pytorch", "ModelDataUrl": "s3://models/v1.tar.gz"}
    package = {"ModelPackageArn": arn, "InferenceSpecification": {"Containers": [container]}}
    cloud.packages[arn] = {**package, "ModelApprovalStatus": "PendingManualApproval"}
    request = {"ModelName": "v1", "ExecutionRoleArn": ROLE, "PrimaryContainer": {"ModelPackageName": arn}}

    assert "PendingManualApproval" in refusal(lambda: cloud.hosting.configs.create_model(REGION, request))
    cloud.packages[arn]["ModelApprovalStatus"] = "Approved"
    cloud.hosting.configs.create_model(REGION, request)

    make_config(cloud, "v1")
    start(cloud, "v1")
    assert invoke(cloud)[2] == b"v1"


def test_an_endpoint_serves_and_is_described(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1", variant("v1", InitialInstanceCount=2))

    start(cloud, "v1")

    status, headers, body = invoke(cloud)
    assert (status, body) == (200, b"v1")
    assert headers["x-Amzn-Invoked-Production-Variant"] == "main"
    assert headers["Content-Type"].startswith("text/plain")
    described = describe(cloud)
    assert described["EndpointConfigName"] == "v1"
    [shown] = described["ProductionVariants"]
    assert (shown["CurrentInstanceCount"], shown["DesiredInstanceCount"], shown["CurrentWeight"]) == (2, 2, 1.0)
    assert "PendingDeploymentSummary" not in described
    assert cloud.events.statuses == ["CREATING", "IN_SERVICE"]


def test_a_deleted_endpoint_is_gone(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1")
    start(cloud, "v1")

    cloud.hosting.delete_endpoint(REGION, {"EndpointName": "digits"})

    assert cloud.hosting.wait(REGION, "digits", timeout=30) is None
    assert json.loads(invoke(cloud)[2])["Message"] == f"Endpoint digits of account {ACCOUNT} not found."
    assert list((cloud.state / "endpoints" / "digits").iterdir()) == []


@pytest.mark.parametrize(
    ("headers", "body", "status", "code", "said"),
    [
        ({}, b"raise", 424, "ModelError", "the user's own error"),
        ({"HTTP_X_AMZN_SAGEMAKER_TARGET_VARIANT": "other"}, b"x", 400, "ValidationError", "Variant other not found"),
        (
            {"HTTP_X_AMZN_SAGEMAKER_TARGET_MODEL": "m.tar.gz"},
            b"x",
            400,
            "ValidationError",
            "not a multi-model endpoint",
        ),
        (
            {"HTTP_X_AMZN_SAGEMAKER_INFERENCE_COMPONENT": "copy"},
            b"x",
            400,
            "ValidationError",
            "Inference Component Name header is not allowed",
        ),
        (
            {"HTTP_X_AMZN_SAGEMAKER_TARGET_CONTAINER_HOSTNAME": "second"},
            b"x",
            400,
            "ValidationError",
            "does not support target container hostname header",
        ),
        (
            {"HTTP_X_AMZN_SAGEMAKER_SESSION_ID": "NEW_SESSION"},
            b"x",
            400,
            "ValidationError",
            "does not implement stateful sessions",
        ),
        (
            {"HTTP_X_AMZN_SAGEMAKER_INFERENCE_ID": "i" * 65},
            b"x",
            400,
            "ValidationError",
            "at 'inferenceId' failed to satisfy constraint: Member must have length less than or equal to 64",
        ),
        (
            {"HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES": "a" * 1025},
            b"x",
            400,
            "ValidationError",
            "at 'customAttributes' failed to satisfy constraint: Member must have length less than or equal to 1024",
        ),
        ({}, b"x" * (6 * 2**20 + 1), 413, None, "HTTP content length exceeded 6291456 bytes."),
    ],
)
def test_errors_of_the_data_plane_are_those_of_aws(
    cloud: Cloud, headers: dict[str, str], body: bytes, status: int, code: str | None, said: str
) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1")
    start(cloud, "v1")

    got, answered, text = invoke(cloud, body, **headers)

    assert (got, answered.get("x-amzn-ErrorType")) == (status, code)
    assert said in text.decode()
    if code == "ModelError":
        error = json.loads(text)
        assert error["OriginalStatusCode"] == 500
        assert error["LogStreamArn"].startswith(
            f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/digits:"
        )
        assert error["Message"].startswith("Received server error (500) from primary with message ")


def test_an_endpoint_without_any_weight_says_so(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1", variant("v1", InitialVariantWeight=0))
    start(cloud, "v1")

    status, headers, body = invoke(cloud)

    assert (status, headers["x-amzn-ErrorType"]) == (400, "ValidationError")
    assert b"No production variant of Endpoint digits has a weight above 0." in body
    assert invoke(cloud, HTTP_X_AMZN_SAGEMAKER_TARGET_VARIANT="main")[2] == b"v1"


def test_a_script_that_raises_fails_the_endpoint_with_its_traceback(cloud: Cloud) -> None:
    make_model(cloud, "v1", "def model_fn(model_dir):\n    raise RuntimeError('weights do not fit')\n")
    make_config(cloud, "v1")

    start(cloud, "v1", expect="Failed")

    reason = describe(cloud)["FailureReason"]
    assert "production variant main did not pass the ping health check" in reason
    assert "RuntimeError: weights do not fit" in reason
    assert "can only be deleted" in refusal(lambda: update(cloud, "v1"))
    cloud.hosting.delete_endpoint(REGION, {"EndpointName": "digits"})
    assert cloud.hosting.wait(REGION, "digits", timeout=30) is None


def test_a_corrupt_archive_fails_the_endpoint_with_its_address(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    storage.write("s3://models/v1.tar.gz", b"not an archive")
    make_config(cloud, "v1")

    start(cloud, "v1", expect="Failed")

    assert (
        'Failed to extract model data archive for container "primary" from URL "s3://models/v1.tar.gz"'
        in (describe(cloud)["FailureReason"])
    )


def test_invocations_are_measured_and_captured(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    capture = {
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": "s3://models/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
    }
    make_config(cloud, "v1", DataCaptureConfig=capture)
    start(cloud, "v1")
    invoke(cloud, b"{}", HTTP_X_AMZN_SAGEMAKER_INFERENCE_ID="id-1")
    invoke(cloud, b"raise")

    cloud.hosting.close()

    names = {metric.name for _, metric in cloud.metrics.metrics(REGION, 0)}
    assert {"Invocations", "Invocation5XXErrors", "ModelLatency", "OverheadLatency", "InvocationsPerInstance"} <= names
    [key] = storage.keys("s3://models/captured/digits/main/")
    [record] = [json.loads(line) for line in storage.read(key).splitlines()]
    assert record["eventMetadata"]["inferenceId"] == "id-1"
    assert record["captureData"]["endpointInput"]["data"] == "{}"
    summary = describe(cloud)["DataCaptureConfig"]
    assert (summary["CaptureStatus"], summary["CurrentSamplingPercentage"]) == ("Started", 100)


def test_reset_forgets_everything(serving: Cloud) -> None:
    serving.hosting.reset()

    assert serving.hosting.list_endpoints(REGION, {})["Endpoints"] == []
    assert invoke(serving)[0] == 400
    make_model(serving, "v1")
    make_config(serving, "v1")
    start(serving, "v1")
    assert invoke(serving)[2] == b"v1"


def test_an_endpoint_that_cannot_be_made_fails_with_the_reason(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1")
    cloud.keeper.start = Broken().start  # type: ignore[method-assign]

    start(cloud, "v1", expect="Failed")

    assert describe(cloud)["FailureReason"] == "Internal failure of the local cloud: ValueError: start is broken"
    cloud.hosting.delete_endpoint(REGION, {"EndpointName": "digits"})
    assert cloud.hosting.wait(REGION, "digits", timeout=30) is None


def test_a_full_disk_fails_the_endpoint_with_the_reason(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1")
    (cloud.state / "endpoints").write_text("in the way of the folder")

    start(cloud, "v1", expect="Failed")

    assert "The model server could not be started: " in describe(cloud)["FailureReason"]


def test_a_rule_that_cannot_be_matched_stops_no_deployment(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "v1")
    cloud.events = Broken()  # type: ignore[assignment]

    start(cloud, "v1")

    assert invoke(cloud)[2] == b"v1"


def test_metrics_that_cannot_be_kept_now_do_not_stop_the_later_ones(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "FLUSH_INTERVAL_SECONDS", 0.01)
    put, failed, kept = cloud.metrics.put_many, threading.Event(), threading.Event()

    def put_many(region: str, data: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise sqlite3.OperationalError("database or disk is full")
        put(region, data)
        kept.set()

    monkeypatch.setattr(cloud.metrics, "put_many", put_many)
    make_model(cloud, "v1")
    make_config(cloud, "v1")
    start(cloud, "v1")
    invoke(cloud)
    assert failed.wait(30)

    invoke(cloud)

    assert kept.wait(30)


def test_a_prediction_is_captured_before_its_fleet_may_end(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    outstanding: list[int] = []
    record = Capture.record

    def recorded(capture: Capture, exchange: Any) -> None:
        live = cloud.hosting._deployments.endpoints[REGION, "digits"].live
        assert live is not None
        outstanding.append(sum(instance.outstanding for instance in live.fleet))
        record(capture, exchange)

    monkeypatch.setattr(Capture, "record", recorded)
    capture = {
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": "s3://models/captured",
        "CaptureOptions": [{"CaptureMode": "Output"}],
    }
    make_model(cloud, "v1")
    make_config(cloud, "v1", DataCaptureConfig=capture)
    start(cloud, "v1")

    invoke(cloud)

    assert outstanding == [1]
