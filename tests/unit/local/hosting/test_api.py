"""Models, configs and endpoints without HTTP: real model servers, a clock and alarms that the test moves."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from moto.s3.models import s3_backends

from windlass.local import storage
from windlass.local.cloud import ACCOUNT
from windlass.local.cloudwatch.metric_store import Metric, MetricStore
from windlass.local.database import Database
from windlass.local.faults import Fault
from windlass.local.hosting import deployments
from windlass.local.hosting.api import Hosting
from windlass.local.hosting.capture import Capture
from windlass.local.processes import Keeper

REGION = "eu-west-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/sagemaker"
ECHO = """
def model_fn(model_dir):
    return open(model_dir + "/version").read()
def transform_fn(model, body, content_type, accept):
    if "raise" in str(body):
        raise ValueError("the user's own error")
    return model, "text/plain"
"""


class HeldClock:
    """``sleep`` returns when the test has moved the time that far."""

    def __init__(self) -> None:
        self._time = 1_700_000_000.0
        self._until: dict[int, float] = {}
        self._moved = threading.Condition()

    def now(self) -> float:
        return self._time

    def sleep(self, seconds: float) -> None:
        with self._moved:
            until = self._until[threading.get_ident()] = self._time + seconds
            self._moved.notify_all()
            assert self._moved.wait_for(lambda: self._time >= until, 30)
            del self._until[threading.get_ident()]

    def wait_for_sleeper(self) -> None:
        """Return when somebody waits for this clock: a deployment has shifted its traffic and bakes."""
        with self._moved:
            assert self._moved.wait_for(lambda: any(until > self._time for until in self._until.values()), 30)

    def advance(self, seconds: float) -> None:
        with self._moved:
            self._time += seconds
            self._moved.notify_all()


class Alarms:
    def __init__(self) -> None:
        self.now: dict[str, str] = {}

    def states(self, region: str, names: list[str]) -> dict[str, str]:
        return {name: self.now[name] for name in names if name in self.now}


class Events:
    def __init__(self) -> None:
        self.details: list[Any] = []
        self.deployments: list[Any] = []
        self.came = threading.Condition()

    def put(self, region: str, event: dict[str, Any]) -> None:
        about = {
            "SageMaker Endpoint State Change": self.details,
            "SageMaker Endpoint Deployment State Change": self.deployments,
        }
        with self.came:
            about[event["detail-type"]].append(event["detail"])
            self.came.notify_all()

    def wait_for(self, status: str) -> None:
        with self.came:
            assert self.came.wait_for(lambda: self.statuses[-1:] == [status], 30), self.statuses

    @property
    def statuses(self) -> list[str]:
        return [detail["EndpointStatus"] for detail in self.details]


class Cloud:
    """The parts of the local cloud that hosting touches."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.tags: dict[str, dict[str, str]] = {}
        self.clock = self.pace = HeldClock()
        self.alarms = Alarms()
        self.events = Events()
        self.keeper = Keeper()
        self.database = Database(state / "state.sqlite")
        self.metrics = MetricStore(state / "metrics.sqlite", self.clock)
        self.packages: dict[str, Any] = {}
        self.registry = self
        self.hosting = Hosting(self)  # type: ignore[arg-type]

    def package(self, region: str, name: str) -> Any:
        return self.packages[name]

    def process_environment(self, region: str, role_arn: str | None = None) -> dict[str, str]:
        return {"PATH": os.environ["PATH"]}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    s3_backends[ACCOUNT]["aws"].create_bucket("models", REGION)
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.hosting.close()
    cloud.keeper.close()
    cloud.database.close()
    cloud.metrics.close()
    s3_backends.reset()


def archive(version: str, code: str = ECHO) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in (("version", version), ("code/inference.py", code)):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def make_model(cloud: Cloud, name: str, code: str = ECHO) -> None:
    storage.write(f"s3://models/{name}.tar.gz", archive(name, code))
    container = {"Image": "pytorch", "ModelDataUrl": f"s3://models/{name}.tar.gz"}
    cloud.hosting.configs.create_model(
        REGION, {"ModelName": name, "ExecutionRoleArn": ROLE, "PrimaryContainer": container}
    )


def variant(model: str, **changes: Any) -> dict[str, Any]:
    return {
        "VariantName": "main",
        "ModelName": model,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
        **changes,
    }


def make_config(cloud: Cloud, name: str, *variants: dict[str, Any], **more: Any) -> None:
    request = {"EndpointConfigName": name, "ProductionVariants": list(variants or (variant(name),)), **more}
    cloud.hosting.configs.create_endpoint_config(REGION, request)


def start(cloud: Cloud, config: str, *, expect: str | None = "InService") -> None:
    cloud.hosting.create_endpoint(REGION, {"EndpointName": "digits", "EndpointConfigName": config})
    assert cloud.hosting.wait(REGION, "digits", timeout=30) == expect, describe(cloud)


def update(cloud: Cloud, config: str, **more: Any) -> None:
    cloud.hosting.update_endpoint(REGION, {"EndpointName": "digits", "EndpointConfigName": config, **more})


def describe(cloud: Cloud) -> dict[str, Any]:
    return cloud.hosting.describe_endpoint(REGION, {"EndpointName": "digits"})


def invoke(
    cloud: Cloud, body: bytes = b"x", *, name: str = "digits", **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    started: list[Any] = []
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": f"/endpoints/{name}/invocations",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_AUTHORIZATION": f"AWS4-HMAC-SHA256 Credential=key/20260101/{REGION}/sagemaker/aws4_request, Signature=x",
        "wsgi.input": io.BytesIO(body),
        **headers,
    }
    [answer] = cloud.hosting.invoke(environ, lambda status, headers: started.extend((status, headers)))
    return int(started[0].split()[0]), dict(started[1]), answer


def canary(
    *, percent: int = 20, wait: int = 100, termination: int = 100, alarms: tuple[str, ...] = ("accuracy",)
) -> dict[str, Any]:
    size = {"Type": "CAPACITY_PERCENT", "Value": percent}
    routing = {"Type": "CANARY", "WaitIntervalInSeconds": wait, "CanarySize": size}
    return {
        "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": termination},
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in alarms]},
    }


# -- records --------------------------------------------------------------------------------------------------------------


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Fault) as refused:
        call()
    assert refused.value.code == "ValidationException"
    return refused.value.message


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


# -- serving --------------------------------------------------------------------------------------------------------------


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


# -- updates --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def serving(cloud: Cloud) -> Cloud:
    """An endpoint on v1, and a config v2 to go to."""
    for name in ("v1", "v2"):
        make_model(cloud, name)
        make_config(cloud, name)
    start(cloud, "v1")
    return cloud


def answers(cloud: Cloud, count: int = 100) -> dict[bytes, int]:
    bodies = [invoke(cloud)[2] for _ in range(count)]
    return {body: bodies.count(body) for body in bodies}


def test_a_plain_update_replaces_the_fleet(serving: Cloud) -> None:
    update(serving, "v2")

    assert describe(serving)["PendingDeploymentSummary"]["EndpointConfigName"] == "v2"
    assert "Cannot update in-progress endpoint" in refusal(lambda: update(serving, "v2"))
    delete = {"EndpointName": "digits"}
    assert "Cannot update in-progress endpoint" in refusal(lambda: serving.hosting.delete_endpoint(REGION, delete))
    assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    assert describe(serving)["EndpointConfigName"] == "v2"
    assert answers(serving, 5) == {b"v2": 5}


def test_a_canary_takes_its_share_and_then_all(serving: Cloud) -> None:
    serving.alarms.now = {"accuracy": "OK"}
    update(serving, "v2", DeploymentConfig=canary(percent=20))
    serving.clock.wait_for_sleeper()

    assert answers(serving)[b"v2"] == pytest.approx(20, abs=2)
    serving.clock.advance(100.3)
    serving.clock.wait_for_sleeper()
    assert answers(serving, 10) == {b"v2": 10}
    assert describe(serving)["EndpointStatus"] == "Updating"
    assert describe(serving)["EndpointConfigName"] == "v1"
    serving.clock.advance(100.3)

    assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    assert describe(serving)["EndpointConfigName"] == "v2"
    assert describe(serving)["LastDeploymentConfig"] == canary(percent=20)


def test_eventbridge_hears_of_each_stage_of_a_deployment(serving: Cloud) -> None:
    update(serving, "v2", DeploymentConfig=canary(percent=20, wait=100, termination=60))
    for _ in range(2):
        serving.clock.wait_for_sleeper()
        serving.clock.advance(100.3)

    assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    heard = [
        (each["EndpointStatus"], variant["VariantStatus"][0]["Status"], variant["VariantStatus"][0]["StatusMessage"])
        for each in serving.events.deployments
        for variant in each["PendingDeploymentSummary"]["ProductionVariants"]
    ]
    canary_bakes = "Baking for 100 seconds (WaitIntervalInSeconds) with traffic enabled on canary capacity"
    fleet_bakes = "Baking for 60 seconds (TerminationWaitInSeconds) with traffic enabled on full capacity"
    assert heard == [
        ("UPDATING", "Creating", "Launching 1 instance(s)."),
        ("UPDATING", "ActivatingTraffic", "Activating traffic on canary capacity of 1 instance(s)."),
        (
            "UPDATING",
            "Baking",
            f"{canary_bakes} of 1 instance(s).",
        ),
        ("UPDATING", "ActivatingTraffic", "Activating traffic on full capacity of 1 instance(s)."),
        (
            "UPDATING",
            "Baking",
            f"{fleet_bakes} of 1 instance(s).",
        ),
    ]
    times = [each["PendingDeploymentSummary"]["StartTime"] for each in serving.events.deployments]
    assert set(times) == {1_700_000_000_000}


def test_an_alarm_brings_the_old_config_back(serving: Cloud) -> None:
    update(serving, "v2", DeploymentConfig=canary())
    serving.clock.wait_for_sleeper()

    serving.alarms.now = {"accuracy": "ALARM"}
    serving.clock.advance(0.3)

    assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    described = describe(serving)
    assert described["EndpointConfigName"] == "v1"
    assert "accuracy" in described["FailureReason"]
    assert answers(serving, 10) == {b"v1": 10}
    serving.events.wait_for("IN_SERVICE")
    assert serving.events.statuses[-3:] == ["UPDATING", "ROLLING_BACK", "IN_SERVICE"]


def test_an_alarm_that_rings_already_rolls_back_before_anything_starts(serving: Cloud) -> None:
    serving.alarms.now = {"accuracy": "ALARM"}

    update(serving, "v2", DeploymentConfig=canary())

    assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    assert describe(serving)["EndpointConfigName"] == "v1"


def test_a_new_fleet_that_does_not_come_up_leaves_the_old_one(serving: Cloud) -> None:
    make_model(serving, "v3", "raise ImportError('no module named missing')")
    make_config(serving, "v3")

    update(serving, "v3")

    assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    described = describe(serving)
    assert described["EndpointConfigName"] == "v1"
    assert "ImportError: no module named missing" in described["FailureReason"]
    assert answers(serving, 3) == {b"v1": 3}


def test_no_request_is_lost_while_fleets_change(serving: Cloud) -> None:
    stop, statuses = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            statuses.append(invoke(serving)[0])

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    for config in ("v2", "v1"):
        update(serving, config)
        assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    stop.set()
    for client in clients:
        client.join()

    assert len(statuses) > 100
    assert set(statuses) == {200}


def test_variant_names_must_match_under_guardrails(serving: Cloud) -> None:
    make_config(serving, "renamed", variant("v2", VariantName="other"))

    assert "must match" in refusal(lambda: update(serving, "renamed", DeploymentConfig=canary()))


def test_retained_properties_stay(cloud: Cloud) -> None:
    make_model(cloud, "v1")
    make_config(cloud, "one", variant("v1", InitialInstanceCount=2, InitialVariantWeight=3.0))
    make_config(cloud, "two", variant("v1", InitialInstanceCount=1, InitialVariantWeight=1.0))
    start(cloud, "one")

    excluded = [{"VariantPropertyType": "DesiredWeight"}]
    update(cloud, "two", RetainAllVariantProperties=True, ExcludeRetainedVariantProperties=excluded)

    assert cloud.hosting.wait(REGION, "digits", timeout=30) == "InService"
    [shown] = describe(cloud)["ProductionVariants"]
    assert (shown["DesiredInstanceCount"], shown["DesiredWeight"]) == (2, 1.0)


def test_reset_forgets_everything(serving: Cloud) -> None:
    serving.hosting.reset()

    assert serving.hosting.list_endpoints(REGION, {})["Endpoints"] == []
    assert invoke(serving)[0] == 400
    make_model(serving, "v1")
    make_config(serving, "v1")
    start(serving, "v1")
    assert invoke(serving)[2] == b"v1"


# -- shadows ---------------------------------------------------------------------------------------------------------------


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


# -- rolling ---------------------------------------------------------------------------------------------------------------


def rolling(*, wait: int = 100, back: int | None = None) -> dict[str, Any]:
    policy: dict[str, Any] = {
        "MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1},
        "WaitIntervalInSeconds": wait,
    }
    if back:
        policy["RollbackMaximumBatchSize"] = {"Type": "INSTANCE_COUNT", "Value": back}
    alarms = {"Alarms": [{"AlarmName": "accuracy"}]}
    return {"RollingUpdatePolicy": policy, "AutoRollbackConfiguration": alarms}


@pytest.fixture
def pair(cloud: Cloud) -> Cloud:
    """An endpoint of two instances on v1, and a config v2 to go to."""
    for name in ("v1", "v2"):
        make_model(cloud, name)
        make_config(cloud, name, variant(name, InitialInstanceCount=2))
    start(cloud, "v1")
    return cloud


def fleets(cloud: Cloud) -> tuple[int, int]:
    """Instances of the live fleet, and of the pending one."""
    endpoint = cloud.hosting._deployments.endpoints[REGION, "digits"]
    live, pending = endpoint.live, endpoint.pending
    return live.fleet.counts()["main"] if live else 0, pending.fleet.counts()["main"] if pending else 0


def test_a_rolling_update_replaces_one_batch_after_the_other(pair: Cloud) -> None:
    update(pair, "v2", DeploymentConfig=rolling())

    # Given half of the new fleet, and the old one still whole
    pair.clock.wait_for_sleeper()
    assert fleets(pair) == (2, 1)
    assert answers(pair) == {b"v1": 50, b"v2": 50}
    [shown] = describe(pair)["PendingDeploymentSummary"]["ProductionVariants"]
    assert (shown["CurrentInstanceCount"], shown["DesiredInstanceCount"]) == (1, 2)
    assert shown["VariantStatus"][0]["Status"] == "Baking"

    # When the first bake is over, its counterpart goes and the rest comes
    pair.clock.advance(100.3)
    pair.clock.wait_for_sleeper()
    assert fleets(pair) == (1, 2)
    assert answers(pair, 10) == {b"v2": 10}

    pair.clock.advance(100.3)
    assert pair.hosting.wait(REGION, "digits", timeout=30) == "InService"
    assert describe(pair)["EndpointConfigName"] == "v2"
    assert fleets(pair) == (2, 0)


def test_an_alarm_between_batches_brings_the_old_fleet_back(pair: Cloud) -> None:
    update(pair, "v2", DeploymentConfig=rolling(back=1))
    pair.clock.wait_for_sleeper()
    pair.clock.advance(100.3)
    pair.clock.wait_for_sleeper()

    pair.alarms.now = {"accuracy": "ALARM"}
    pair.clock.advance(0.3)

    assert pair.hosting.wait(REGION, "digits", timeout=30) == "InService"
    assert describe(pair)["EndpointConfigName"] == "v1"
    assert fleets(pair) == (2, 0)
    assert answers(pair, 10) == {b"v1": 10}
    assert pair.events.statuses[-3:-1] == ["UPDATING", "ROLLING_BACK"]


def test_a_rollback_that_fails_leaves_a_mix_that_the_next_update_replaces(pair: Cloud) -> None:
    # Given an old fleet of which only half is left, and whose model cannot be fetched any more
    update(pair, "v2", DeploymentConfig=rolling())
    pair.clock.wait_for_sleeper()
    pair.clock.advance(100.3)
    pair.clock.wait_for_sleeper()
    model = storage.read("s3://models/v1.tar.gz")
    storage.write("s3://models/v1.tar.gz", b"not an archive")

    # When the alarm rings
    pair.alarms.now = {"accuracy": "ALARM"}
    pair.clock.advance(0.3)

    # Then both serve
    assert pair.hosting.wait(REGION, "digits", timeout=30) == "UpdateRollbackFailed"
    assert answers(pair, 20) == {b"v1": 10, b"v2": 10}
    reason = describe(pair)["FailureReason"]
    assert "ALARM state: accuracy" in reason
    assert "The rollback failed, too: Failed to extract model data" in reason
    change = [{"VariantName": "main", "DesiredInstanceCount": 1}]
    request = {"EndpointName": "digits", "DesiredWeightsAndCapacities": change}
    assert "UpdateRollbackFailed" in refusal(
        lambda: pair.hosting.update_endpoint_weights_and_capacities(REGION, request)
    )

    # And an update puts it right
    pair.alarms.now = {}
    storage.write("s3://models/v1.tar.gz", model)
    update(pair, "v1")
    assert pair.hosting.wait(REGION, "digits", timeout=30) == "InService"
    assert answers(pair, 10) == {b"v1": 10}
    assert len(list((pair.state / "endpoints" / "digits").iterdir())) == 1


# -- what must not happen, and happens ------------------------------------------------------------------------------------


class Broken:
    """In place of a part of the cloud: each of its methods raises."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise ValueError(f"{name} is broken")

        return fail


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


def test_a_deployment_that_breaks_is_rolled_back(serving: Cloud) -> None:
    # Given a bake whose alarms can no longer be read
    update(serving, "v2", DeploymentConfig=canary())
    serving.clock.wait_for_sleeper()
    serving.alarms = Broken()  # type: ignore[assignment]

    serving.clock.advance(0.3)

    assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    described = describe(serving)
    assert described["EndpointConfigName"] == "v1"
    assert described["FailureReason"] == "Internal failure of the local cloud: ValueError: states is broken"
    assert answers(serving, 20) == {b"v1": 20}
    assert len(list((serving.state / "endpoints" / "digits").iterdir())) == 1  # the fleet of v2 has ended


def test_a_rollback_waits_until_a_killed_old_fleet_is_back(serving: Cloud) -> None:
    # Given a bake in which everything is killed
    update(serving, "v2", DeploymentConfig=canary())
    serving.clock.wait_for_sleeper()
    assert serving.keeper.pid
    os.kill(serving.keeper.pid, signal.SIGKILL)

    # When the alarm rings
    serving.alarms.now["accuracy"] = "ALARM"
    serving.clock.advance(0.3)

    # Then the old fleet serves again
    assert serving.hosting.wait(REGION, "digits", timeout=30) == "InService"
    assert describe(serving)["EndpointConfigName"] == "v1"
    assert answers(serving, 5) == {b"v1": 5}


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


def test_weights_and_capacities_change_without_a_deployment(cloud: Cloud) -> None:
    # given an endpoint of one instance
    make_model(cloud, "v1")
    variant = {"VariantName": "main", "ModelName": "v1", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    config = {"EndpointConfigName": "c", "ProductionVariants": [variant]}
    cloud.hosting.configs.create_endpoint_config(REGION, config)
    cloud.hosting.create_endpoint(REGION, {"EndpointName": "e", "EndpointConfigName": "c"})
    assert cloud.hosting.wait(REGION, "e", timeout=60) == "InService"

    def change(**wanted: Any) -> dict[str, Any]:
        request = {"EndpointName": "e", "DesiredWeightsAndCapacities": [{"VariantName": "main", **wanted}]}
        cloud.hosting.update_endpoint_weights_and_capacities(REGION, request)
        assert cloud.hosting.wait(REGION, "e", timeout=60) == "InService"
        described = cloud.hosting.describe_endpoint(REGION, {"EndpointName": "e"})
        [summary] = described["ProductionVariants"]
        assert described["EndpointConfigName"] == "c"
        return dict(summary)

    # when it grows, and when it shrinks
    grown = change(DesiredInstanceCount=3, DesiredWeight=0.5)
    assert (grown["CurrentInstanceCount"], grown["DesiredInstanceCount"]) == (3, 3)
    assert (grown["CurrentWeight"], grown["DesiredWeight"]) == (0.5, 0.5)
    shrunk = change(DesiredInstanceCount=1)
    # then it is as many, and the config is what it was
    assert (shrunk["CurrentInstanceCount"], shrunk["DesiredInstanceCount"], shrunk["DesiredWeight"]) == (1, 1, 0.5)
    described = cloud.hosting.configs.describe_endpoint_config(REGION, {"EndpointConfigName": "c"})
    assert described["ProductionVariants"][0]["InitialInstanceCount"] == 1
    unknown = [{"VariantName": "other", "DesiredInstanceCount": 1}]
    request = {"EndpointName": "e", "DesiredWeightsAndCapacities": unknown}
    with pytest.raises(Fault, match="not found"):
        cloud.hosting.update_endpoint_weights_and_capacities(REGION, request)
