"""Hosting without HTTP: real model servers on the parts of a cloud that they need; the test moves time and alarms."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from windlass.local import storage
from windlass.local.cloud import ACCOUNT
from windlass.local.cloudwatch.metric_store import MetricStore
from windlass.local.database import Database
from windlass.local.faults import Fault
from windlass.local.hosting.api import Hosting
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


class Broken:
    """In place of a part of the cloud: each of its methods raises."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise ValueError(f"{name} is broken")

        return fail


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


def answers(cloud: Cloud, count: int = 100) -> dict[bytes, int]:
    bodies = [invoke(cloud)[2] for _ in range(count)]
    return {body: bodies.count(body) for body in bodies}


def canary(
    *, percent: int = 20, wait: int = 100, termination: int = 100, alarms: tuple[str, ...] = ("accuracy",)
) -> dict[str, Any]:
    size = {"Type": "CAPACITY_PERCENT", "Value": percent}
    routing = {"Type": "CANARY", "WaitIntervalInSeconds": wait, "CanarySize": size}
    return {
        "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": termination},
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in alarms]},
    }


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Fault) as refused:
        call()
    assert refused.value.code == "ValidationException"
    return refused.value.message
