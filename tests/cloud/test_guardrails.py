"""Deployments under load: 50 requests a second while endpoints change, none lost, and each share as it was asked for.

The cloud's bakes run 60 times as fast as AWS's; requests, model servers and the clock on all timestamps are real. When a share
was in force is what DescribeEndpoint says: each Baking of the new fleet, and when it began.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.cloud.conftest import TRUST, Rig
from tests.unit.local.identity import process
from windlass.local import LocalCloud

RATE = 50
SPEED = 60
INSTANCES = 3
TOLERANCE = 0.03
"""Of the traffic share: 3 points."""

CODE = """
import json, os, uuid
PROCESS = uuid.uuid4().hex
def model_fn(model_dir):
    return os.environ["VERSION"]
def transform_fn(model, body, content_type, accept):
    identity = os.readlink("/proc/self/ns/pid") + "/" + str(os.getppid())
    return json.dumps({"version": model, "server": identity, "process": PROCESS}), "application/json"
"""


@dataclass(frozen=True)
class Answer:
    """One request of the load: when it was sent and answered (seconds since the epoch), and by which model version.

    Attributes:
        server: which model server answered, as `process` finds it; numbers of ended ones come again.
        process: which of its workers; these names do not.
        error: what came instead of an answer; then the rest is empty.
    """

    sent: float
    answered: float
    version: str = ""
    server: str = ""
    process: str = ""
    error: str = ""


class Load:
    """RATE requests a second for as long as the block lasts, each sent when it is due, however long the others take."""

    CLIENTS = 12

    def __init__(self, rig: Rig, endpoint: str) -> None:
        self._endpoint, self._env = endpoint, rig.env
        self._done = threading.Event()
        self._numbers = itertools.count()
        self._came = threading.Condition()
        self.answers: list[Answer] = []

    def __enter__(self) -> Load:
        client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=self._env["AWS_ENDPOINT_URL"],
            region_name=self._env["AWS_REGION"],
            aws_access_key_id=self._env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self._env["AWS_SECRET_ACCESS_KEY"],
            # One attempt: what a retry would cure is a lost request.
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=self.CLIENTS),
        )
        self._client, self._began = client, time.time()
        self._threads = [threading.Thread(target=self._run) for _ in range(self.CLIENTS)]
        for thread in self._threads:
            thread.start()
        self.more(RATE // 2)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def more(self, count: int) -> None:
        """Return when so many more requests have been answered."""
        with self._came:
            wanted = len(self.answers) + count
            assert self._came.wait_for(lambda: len(self.answers) >= wanted, 60)

    def _run(self) -> None:
        while True:
            due = self._began + next(self._numbers) / RATE
            if self._done.wait(max(0.0, due - time.time())):
                return
            answer = self._ask()
            with self._came:
                self.answers.append(answer)
                self._came.notify_all()

    def _ask(self) -> Answer:
        sent = time.time()
        try:
            body = self._client.invoke_endpoint(EndpointName=self._endpoint, Body=b"{}")["Body"].read()
        except (ClientError, BotoCoreError) as error:
            return Answer(sent, time.time(), error=f"{type(error).__name__}: {error}")
        return Answer(sent, time.time(), **json.loads(body))

    @property
    def lost(self) -> list[str]:
        return [answer.error for answer in self.answers if answer.error]

    def share(self, version: str, begin: float, end: float) -> float:
        """What part of the requests that were sent and answered in that time the version answered."""
        versions = [each.version for each in self.answers if each.sent >= begin and each.answered <= end]
        assert len(versions) > RATE, f"{len(versions)} requests in {end - begin:.1f} s measure nothing"
        return versions.count(version) / len(versions)


@dataclass(frozen=True)
class Stage:
    """A stage of a deployment, as DescribeEndpoint shows it, and when it began."""

    name: str
    began: float


class Endpoint:
    """An endpoint of the configs ``v1`` and ``v2``, with INSTANCES instances."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig, self.name, self.sagemaker = rig, name, rig.client("sagemaker")
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="v1")
        assert self.settled()["EndpointStatus"] == "InService"

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = self.sagemaker.describe_endpoint(EndpointName=self.name)
        return described

    @property
    def config(self) -> str:
        return str(self.describe()["EndpointConfigName"])

    def update(self, policy: dict[str, Any], *, alarm: str | None = None) -> tuple[str, str]:
        """Start for the other config. Returns the old and the new one."""
        old = self.config
        new = "v2" if old == "v1" else "v1"
        rollback = {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": alarm}]}} if alarm else {}
        self.sagemaker.update_endpoint(
            EndpointName=self.name, EndpointConfigName=new, DeploymentConfig={**policy, **rollback}
        )
        return old, new

    def settled(self) -> dict[str, Any]:
        return self.watch()[0]

    def watch(self, also: Callable[[dict[str, Any]], None] = lambda _: None) -> tuple[dict[str, Any], list[Stage]]:
        """Look until nothing changes any more. Returns the last look, and the stages of the new fleet in their order.

        Args:
            also: is called with each look.
        """
        paused, stages, deadline = threading.Event(), [], time.monotonic() + 120
        while (described := self.describe())["EndpointStatus"] in ("Creating", "Updating", "RollingBack"):
            assert time.monotonic() < deadline, described
            [*shown] = described.get("PendingDeploymentSummary", {}).get("ProductionVariants", [])
            for status in (status for variant in shown for status in variant["VariantStatus"]):
                stage = Stage(status["Status"], status["StartTime"].timestamp())
                if stage not in stages:
                    stages.append(stage)
            also(described)
            paused.wait(0.05)
        return described, stages


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fast cloud with the models and configs ``v1`` and ``v2``."""
    with LocalCloud.up(tmp_path_factory.mktemp("fast"), lifeline=True, speed=SPEED) as cloud:
        rig = Rig(env=cloud.env, cloud=cloud)
        furnish(rig)
        yield rig
        rig.close()


def furnish(rig: Rig) -> None:
    rig.bucket = "guardrails"
    rig.client("s3").create_bucket(Bucket=rig.bucket)
    role = rig.client("iam").create_role(RoleName="guardrails", AssumeRolePolicyDocument=json.dumps(TRUST))
    rig.role = role["Role"]["Arn"]
    data = rig.upload_source({"code/inference.py": CODE})
    sagemaker = rig.client("sagemaker")
    for version in ("v1", "v2"):
        container = {"Image": "image", "ModelDataUrl": data, "Environment": {"VERSION": version}}
        sagemaker.create_model(ModelName=version, ExecutionRoleArn=rig.role, PrimaryContainer=container)
        variant = {
            "VariantName": "main",
            "ModelName": version,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": INSTANCES,
        }
        sagemaker.create_endpoint_config(EndpointConfigName=version, ProductionVariants=[variant])


@pytest.fixture(scope="module")
def endpoint(rig: Rig) -> Endpoint:
    return Endpoint(rig, "guarded")


def size(kind: str, value: int) -> dict[str, Any]:
    return {"Type": kind, "Value": value}


COUNT, PERCENT = "INSTANCE_COUNT", "CAPACITY_PERCENT"


def blue_green(kind: str, *, wait: int = 0, **more: Any) -> dict[str, Any]:
    """Blue/green, with two real seconds after the last step."""
    routing = {"Type": kind, "WaitIntervalInSeconds": wait, **more}
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": 2 * SPEED}}


def rolling(batch: dict[str, Any], *, wait: int, **more: Any) -> dict[str, Any]:
    return {"RollingUpdatePolicy": {"MaximumBatchSize": batch, "WaitIntervalInSeconds": wait, **more}}


POLICIES = {
    "all at once": (blue_green("ALL_AT_ONCE"), [1]),
    "canary by count": (blue_green("CANARY", wait=4 * SPEED, CanarySize=size(COUNT, 1)), [1 / INSTANCES, 1]),
    "canary by percent": (blue_green("CANARY", wait=4 * SPEED, CanarySize=size(PERCENT, 10)), [0.1, 1]),
    "linear": (blue_green("LINEAR", wait=3 * SPEED, LinearStepSize=size(PERCENT, 40)), [0.4, 0.8, 1]),
    "rolling": (rolling(size(COUNT, 1), wait=3 * SPEED), [1 / INSTANCES, 2 / INSTANCES, 1]),
}


@pytest.mark.parametrize(("policy", "shares"), POLICIES.values(), ids=POLICIES)
def test_an_update_loses_nothing_and_shifts_what_was_asked_for(
    rig: Rig, endpoint: Endpoint, policy: dict[str, Any], shares: list[float]
) -> None:
    with Load(rig, endpoint.name) as load:
        began = time.time()
        _, new = endpoint.update(policy)
        described, stages = endpoint.watch()
        ended = time.time()
        load.more(RATE)

    assert load.lost == []
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", new)
    bakes = [stage.began for stage in stages if stage.name == "Baking"]
    measured = [load.share(new, begin, end) for begin, end in zip(bakes, [*bakes[1:], ended], strict=True)]
    assert measured == pytest.approx(shares, abs=TOLERANCE)
    versions = [each.version for each in load.answers if each.answered <= bakes[0] or each.sent >= ended]
    assert versions == sorted(versions, reverse=new == "v1")  # the old one before, the new one after, and nothing else
    assert len(load.answers) / (load.answers[-1].sent - load.answers[0].sent) == pytest.approx(RATE, rel=0.1)
    assert ended - began > (len(bakes) - 1) * 2


def breaching(rig: Rig, name: str) -> Callable[[dict[str, Any]], None]:
    """An alarm on a metric; returns what puts bad values into it. One look at DescribeEndpoint, one value."""
    cloudwatch = rig.client("cloudwatch")
    cloudwatch.put_metric_alarm(
        AlarmName=name,
        Namespace="Guardrails",
        MetricName=name,
        Statistic="Average",
        Period=60,
        EvaluationPeriods=1,
        Threshold=0.9,
        ComparisonOperator="LessThanThreshold",
        TreatMissingData="ignore",
    )
    return lambda _: cloudwatch.put_metric_data(Namespace="Guardrails", MetricData=[{"MetricName": name, "Value": 0.5}])


@pytest.mark.parametrize(
    ("policy", "instances"),
    [
        (blue_green("CANARY", wait=3600, CanarySize=size(COUNT, 1)), None),
        # An alarm when two of three instances are new: the old ones come back one by one.
        (rolling(size(COUNT, 1), wait=3 * SPEED, RollbackMaximumBatchSize=size(COUNT, 1)), 2),
    ],
    ids=["canary", "rolling"],
)
def test_an_alarm_takes_everything_back_and_loses_nothing(
    rig: Rig, endpoint: Endpoint, policy: dict[str, Any], instances: int | None
) -> None:
    alarm = rig.unique("accuracy")
    put = breaching(rig, alarm)
    statuses: list[str] = []

    def worsen(described: dict[str, Any]) -> None:
        statuses.append(described["EndpointStatus"])
        [shown] = described.get("PendingDeploymentSummary", {}).get("ProductionVariants", [{}])
        baking = any(status["Status"] == "Baking" for status in shown.get("VariantStatus", ()))
        if baking and shown["CurrentInstanceCount"] >= (instances or INSTANCES):
            put(described)

    with Load(rig, endpoint.name) as load:
        old, new = endpoint.update(policy, alarm=alarm)
        described, stages = endpoint.watch(worsen)
        ended = time.time()
        load.more(RATE)

    assert load.lost == []
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", old)
    assert alarm in described["FailureReason"]
    assert "RollingBack" in statuses
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == INSTANCES
    assert new in {each.version for each in load.answers}
    assert {each.version for each in load.answers if each.sent >= ended} == {old}
    first = next(stage.began for stage in stages if stage.name == "Baking")
    assert {each.version for each in load.answers if each.answered <= first} == {old}


def test_what_changes_can_neither_be_updated_nor_deleted(rig: Rig, endpoint: Endpoint) -> None:
    sagemaker = endpoint.sagemaker
    _, new = endpoint.update(blue_green("ALL_AT_ONCE"))
    change = [{"VariantName": "main", "DesiredWeight": 2.0}]
    calls: list[Callable[[], Any]] = [
        lambda: sagemaker.update_endpoint(EndpointName=endpoint.name, EndpointConfigName=new),
        lambda: sagemaker.delete_endpoint(EndpointName=endpoint.name),
        lambda: sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint.name, DesiredWeightsAndCapacities=change
        ),
    ]

    for call in calls:
        with pytest.raises(ClientError, match=r'Cannot update in-progress endpoint "arn:aws:sagemaker:') as refused:
            call()
        assert refused.value.response["Error"]["Code"] == "ValidationException"

    assert endpoint.settled()["EndpointConfigName"] == new


def test_a_model_server_that_is_killed_mid_update_costs_only_what_it_was_answering(
    rig: Rig, endpoint: Endpoint
) -> None:
    killed: list[str] = []

    with Load(rig, endpoint.name) as load:

        def kill(_: dict[str, Any]) -> None:
            fresh = [each for each in load.answers if each.version == new]
            if fresh and not killed:
                killed.append(fresh[-1].process)
                os.kill(process(fresh[-1].server), signal.SIGKILL)

        _, new = endpoint.update(blue_green("CANARY", wait=4 * SPEED, CanarySize=size(COUNT, 1)))
        described, _ = endpoint.watch(kill)
        load.more(RATE)

    # Two more instances of its fleet stand beside it: at the very most each client had a request there.
    assert killed
    assert len(load.lost) <= Load.CLIENTS
    assert all("ModelError" in lost for lost in load.lost)
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", new)
    last = {each.process for each in load.answers[-RATE:]}
    assert len(last) == INSTANCES
    assert killed[0] not in last


def test_a_cloud_that_is_killed_mid_update_comes_back_on_the_old_config(tmp_path: Path) -> None:
    with LocalCloud.up(tmp_path, lifeline=True, speed=SPEED) as cloud:
        rig = Rig(env=cloud.env, cloud=cloud)
        furnish(rig)
        endpoint = Endpoint(rig, "killed")
        with Load(rig, endpoint.name) as load:
            endpoint.update(blue_green("CANARY", wait=3600, CanarySize=size(COUNT, 1)))
            while not {"v1", "v2"} <= {each.version for each in load.answers}:
                load.more(1)
        assert load.lost == []
        rig.close()
        os.kill(cloud.pid, signal.SIGKILL)

    with LocalCloud.up(tmp_path, lifeline=True, speed=SPEED) as cloud:
        rig = Rig(env=cloud.env, cloud=cloud)
        sagemaker = rig.client("sagemaker")
        waiter = sagemaker.get_waiter("endpoint_in_service")
        waiter.wait(EndpointName="killed", WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        with Load(rig, "killed") as load:
            load.more(RATE)
        rig.close()

    assert load.lost == []
    assert {each.version for each in load.answers} == {"v1"}
