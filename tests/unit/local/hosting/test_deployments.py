"""Updates of endpoints: all at once, by canary, rolling; what guards them, and what a failure leaves."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from tests.unit.local.hosting.hosted import (
    REGION,
    Broken,
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
from windlass.local.faults import Fault


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
