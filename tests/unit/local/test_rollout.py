"""The state machine of deployment guardrails, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from windlass.local.faults import Fault
from windlass.local.rollout import Policy, Rollout


class SkippingClock:
    """``sleep`` takes no time, and moves ``now``."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def blue_green(
    kind: str, *, wait: int = 0, termination: int = 0, limit: int | None = None, **sizes: Any
) -> dict[str, Any]:
    policy: dict[str, Any] = {"TrafficRoutingConfiguration": {"Type": kind, "WaitIntervalInSeconds": wait, **sizes}}
    policy["TerminationWaitInSeconds"] = termination
    if limit:
        policy["MaximumExecutionTimeoutInSeconds"] = limit
    return {"BlueGreenUpdatePolicy": policy}


def size(value: int, kind: str = "CAPACITY_PERCENT") -> dict[str, Any]:
    return {"Type": kind, "Value": value}


def alarms(*names: str) -> dict[str, Any]:
    return {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in names]}}


@pytest.mark.parametrize(
    ("config", "instances", "shares"),
    [
        (None, 1, (1.0,)),
        ({}, 1, (1.0,)),
        (alarms("a"), 1, (1.0,)),
        (blue_green("ALL_AT_ONCE"), 1, (1.0,)),
        (blue_green("CANARY", CanarySize=size(10)), 1, (0.1, 1.0)),
        (blue_green("CANARY", CanarySize=size(50)), 1, (0.5, 1.0)),
        (blue_green("CANARY", CanarySize=size(1, "INSTANCE_COUNT")), 4, (0.25, 1.0)),
        (blue_green("LINEAR", LinearStepSize=size(50)), 1, (0.5, 1.0)),
        (blue_green("LINEAR", LinearStepSize=size(33)), 1, (0.33, 0.66, 0.99, 1.0)),
        (blue_green("LINEAR", LinearStepSize=size(20)), 1, (0.2, 0.4, 0.6, 0.8, 1.0)),
        (blue_green("LINEAR", LinearStepSize=size(1, "INSTANCE_COUNT")), 3, (1 / 3, 2 / 3, 1.0)),
    ],
)
def test_a_deployment_config_becomes_shares(
    config: Mapping[str, Any] | None, instances: int, shares: tuple[float, ...]
) -> None:
    assert Policy.parse(config, instances=instances).shares == pytest.approx(shares)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (blue_green("CANARY", CanarySize=size(51)), "at most 50%"),
        (blue_green("CANARY", CanarySize=size(1, "INSTANCE_COUNT")), "at most 50%"),
        (blue_green("LINEAR", LinearStepSize=size(9)), "between 10% and 50%"),
        (blue_green("LINEAR", LinearStepSize=size(60)), "between 10% and 50%"),
        (blue_green("CANARY"), "CanarySize must be specified"),
        (blue_green("LINEAR"), "LinearStepSize must be specified"),
        (blue_green("ALL_AT_ONCE", CanarySize=size(10)), "CanarySize cannot be specified"),
        (
            blue_green("CANARY", CanarySize=size(10), wait=400, termination=300, limit=600),
            "larger than the total waiting time",
        ),
        ({"RollingUpdatePolicy": {"MaximumBatchSize": size(10), "WaitIntervalInSeconds": 0}}, "RollingUpdatePolicy"),
        ({**blue_green("ALL_AT_ONCE"), "RollingUpdatePolicy": {}}, "Only one of"),
    ],
)
def test_a_bad_deployment_config_is_refused(config: Mapping[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=said) as refused:
        Policy.parse(config, instances=1)
    assert refused.value.code == "ValidationException"


class Deployment:
    """A rollout with everything it did."""

    def __init__(self, config: Mapping[str, Any], states: Callable[[float], Mapping[str, str]] = lambda _: {}) -> None:
        self.clock = SkippingClock()
        self.begin = self.clock.now()
        self.shifts: list[tuple[float, float]] = []
        self.cancelled = False
        self.rollout = Rollout(
            Policy.parse(config, instances=2),
            clock=self.clock,
            alarm_states=lambda: states(self.elapsed),
            shift=lambda share: self.shifts.append((round(self.elapsed, 1), share)),
            cancelled=lambda: self.cancelled,
        )

    @property
    def elapsed(self) -> float:
        return self.clock.now() - self.begin


def test_all_at_once_shifts_everything_and_bakes_before_it_ends() -> None:
    deployment = Deployment(blue_green("ALL_AT_ONCE", termination=120))

    assert deployment.rollout.run() is None

    assert deployment.shifts == [(0, 1.0)]
    assert deployment.elapsed == pytest.approx(120)


def test_a_canary_bakes_once_between_its_two_steps() -> None:
    deployment = Deployment(blue_green("CANARY", wait=300, termination=60, CanarySize=size(10)))

    assert deployment.rollout.run() is None

    assert deployment.shifts == [(0, 0.1), (300, 1.0)]
    assert deployment.elapsed == pytest.approx(360)


def test_a_linear_deployment_bakes_between_all_steps() -> None:
    deployment = Deployment(blue_green("LINEAR", wait=100, LinearStepSize=size(25)))

    assert deployment.rollout.run() is None

    assert deployment.shifts == [(0, 0.25), (100, 0.5), (200, 0.75), (300, 1.0)]


@pytest.mark.parametrize(("rings", "shifts"), [(50, [(0, 0.1)]), (150, [(0, 0.1), (100, 1.0)]), (0, [])])
def test_an_alarm_ends_the_deployment_whenever_it_rings(rings: float, shifts: list[tuple[float, float]]) -> None:
    config = {**blue_green("CANARY", wait=100, termination=100, CanarySize=size(10)), **alarms("calm", "accuracy")}
    deployment = Deployment(config, lambda at: {"calm": "OK", "accuracy": "ALARM" if at >= rings else "OK"})

    reason = deployment.rollout.run()

    assert reason is not None
    assert "ALARM state: accuracy." in reason
    assert deployment.shifts == shifts
    assert rings <= deployment.elapsed <= rings + 0.3


def test_alarms_that_are_missing_or_lack_data_do_not_end_it() -> None:
    config = {**blue_green("ALL_AT_ONCE", termination=10), **alarms("missing", "silent")}
    deployment = Deployment(config, lambda _: {"silent": "INSUFFICIENT_DATA"})

    assert deployment.rollout.run() is None


def test_a_deployment_that_takes_too_long_goes_back() -> None:
    deployment = Deployment(blue_green("ALL_AT_ONCE", termination=500, limit=600))
    deployment.clock.sleep(200)  # the new fleet took its time to start

    reason = deployment.rollout.run()

    assert reason is not None
    assert "longer than 600 seconds" in reason


def test_closing_the_cloud_ends_it() -> None:
    deployment = Deployment(blue_green("ALL_AT_ONCE", termination=500))
    deployment.cancelled = True

    assert deployment.rollout.run() is not None
    assert deployment.shifts == []
