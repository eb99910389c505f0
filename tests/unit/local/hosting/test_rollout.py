"""The state machine of deployment guardrails, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from windlass.local.faults import Fault
from windlass.local.hosting.rollout import Counts, Policy, Rollout, Step


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


def rolling(
    batch: dict[str, Any], *, wait: int = 0, back: dict[str, Any] | None = None, limit: int | None = None
) -> dict[str, Any]:
    policy: dict[str, Any] = {"MaximumBatchSize": batch, "WaitIntervalInSeconds": wait}
    if back:
        policy["RollbackMaximumBatchSize"] = back
    if limit:
        policy["MaximumExecutionTimeoutInSeconds"] = limit
    return {"RollingUpdatePolicy": policy}


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
        (rolling(size(51)), "MaximumBatchSize 51 .* must be between 5% and 50%"),
        (rolling(size(4)), "between 5% and 50%"),
        (rolling(size(1, "INSTANCE_COUNT")), "between 5% and 50% of the variant's instances .1."),
        (rolling(size(50), back=size(101)), "RollbackMaximumBatchSize must be at most 100%"),
        (rolling(size(50), wait=600, limit=600), "larger than the total waiting time of WaitIntervalInSeconds .600."),
        ({**blue_green("ALL_AT_ONCE"), **rolling(size(10))}, "Only one of"),
    ],
)
def test_a_bad_deployment_config_is_refused(config: Mapping[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=said) as refused:
        Policy.parse(config, instances=1)
    assert refused.value.code == "ValidationException"


def path(config: Mapping[str, Any], old: Counts, new: Counts) -> list[tuple[Any, ...]]:
    """(shares on the new fleet, its instances, what is left of the old one) of each step."""
    steps = Policy.parse(config, instances=min(old.values())).steps(old, new)
    return [(step.shares, step.grow, step.shrink) for step in steps]


def test_blue_green_starts_a_whole_fleet_and_leaves_the_old_one_alone() -> None:
    config = blue_green("CANARY", CanarySize=size(10))

    assert path(config, {"main": 4}, {"main": 6}) == [
        ({"main": 0.1}, {"main": 6}, None),
        ({"main": 1.0}, {"main": 6}, None),
    ]


def test_rolling_replaces_a_batch_at_a_time() -> None:
    assert path(rolling(size(2, "INSTANCE_COUNT")), {"main": 5}, {"main": 5}) == [
        ({"main": 0.4}, {"main": 2}, {"main": 3}),
        ({"main": 0.8}, {"main": 4}, {"main": 1}),
        ({"main": 1.0}, {"main": 5}, None),
    ]


def test_rolling_to_another_size_keeps_the_traffic_in_proportion_to_the_new_one() -> None:
    assert path(rolling(size(50)), {"main": 3}, {"main": 8}) == [
        ({"main": 0.5}, {"main": 4}, {"main": 2}),
        ({"main": 1.0}, {"main": 8}, None),
    ]


def test_rolling_a_fleet_that_was_scaled_to_zero_moves_the_traffic_alone() -> None:
    assert path(rolling(size(50)), {"main": 0}, {"main": 0}) == [({"main": 1.0}, {"main": 0}, None)]


def test_each_variant_rolls_by_its_own_batches() -> None:
    assert path(rolling(size(50)), {"a": 4, "b": 1}, {"a": 4, "b": 1}) == [
        ({"a": 0.5, "b": 1.0}, {"a": 2, "b": 1}, {"a": 2, "b": 0}),
        ({"a": 1.0, "b": 1.0}, {"a": 4, "b": 1}, None),
    ]


@pytest.mark.parametrize(
    ("back", "steps"),
    [
        (None, [({"main": 0.0}, {"main": 4}, {"main": 0})]),
        (size(100), [({"main": 0.0}, {"main": 4}, {"main": 0})]),
        (
            size(1, "INSTANCE_COUNT"),
            [
                ({"main": 0.5}, {"main": 2}, {"main": 2}),
                ({"main": 0.25}, {"main": 3}, {"main": 1}),
                ({"main": 0.0}, {"main": 4}, {"main": 0}),
            ],
        ),
    ],
)
def test_a_rolling_rollback_brings_the_old_fleet_back_by_its_own_batches(
    back: dict[str, Any] | None, steps: list[Any]
) -> None:
    policy = Policy.parse(rolling(size(1, "INSTANCE_COUNT"), back=back), instances=4)

    way = policy.steps_back(left={"main": 1}, old={"main": 4}, new={"main": 4})

    assert [(step.shares, step.grow, step.shrink) for step in way] == steps


def test_an_old_fleet_that_is_whole_takes_everything_back_at_once() -> None:
    policy = Policy.parse(rolling(size(1, "INSTANCE_COUNT"), back=size(25)), instances=4)

    assert policy.steps_back(left={"main": 4}, old={"main": 4}, new={"main": 1}) == [Step({"main": 0.0}, {"main": 4})]


class Deployment:
    """A rollout with everything it did."""

    def __init__(self, config: Mapping[str, Any], states: Callable[[float], Mapping[str, str]] = lambda _: {}) -> None:
        self.clock = SkippingClock()
        self.begin = self.clock.now()
        self.shifts: list[tuple[float, float]] = []
        self.moves: list[tuple[str, int]] = []
        self.cancelled = False
        self.policy = Policy.parse(config, instances=2)
        self.rollout = Rollout(
            self.policy,
            clock=self.clock,
            alarm_states=lambda: states(self.elapsed),
            cancelled=lambda: self.cancelled,
        )

    def run(self) -> str | None:
        return self.rollout.run(self.policy.steps({"main": 2}, {"main": 2}), self)

    def grow(self, counts: Counts) -> None:
        self.moves.append(("grow", counts["main"]))

    def shift(self, shares: Mapping[str, float]) -> None:
        self.shifts.append((round(self.elapsed, 1), shares["main"]))
        self.moves.append(("shift", round(100 * shares["main"])))

    def shrink(self, counts: Counts) -> None:
        self.moves.append(("shrink", counts["main"]))

    @property
    def elapsed(self) -> float:
        return self.clock.now() - self.begin


def test_all_at_once_shifts_everything_and_bakes_before_it_ends() -> None:
    deployment = Deployment(blue_green("ALL_AT_ONCE", termination=120))

    assert deployment.run() is None

    assert deployment.shifts == [(0, 1.0)]
    assert deployment.elapsed == pytest.approx(120)


def test_a_canary_bakes_once_between_its_two_steps() -> None:
    deployment = Deployment(blue_green("CANARY", wait=300, termination=60, CanarySize=size(10)))

    assert deployment.run() is None

    assert deployment.shifts == [(0, 0.1), (300, 1.0)]
    assert deployment.elapsed == pytest.approx(360)


def test_a_linear_deployment_bakes_between_all_steps() -> None:
    deployment = Deployment(blue_green("LINEAR", wait=100, LinearStepSize=size(25)))

    assert deployment.run() is None

    assert deployment.shifts == [(0, 0.25), (100, 0.5), (200, 0.75), (300, 1.0)]


def test_a_rolling_deployment_bakes_each_batch_before_it_ends_what_it_replaces() -> None:
    deployment = Deployment(rolling(size(1, "INSTANCE_COUNT"), wait=100))

    assert deployment.run() is None

    assert deployment.moves == [("grow", 1), ("shift", 50), ("shrink", 1), ("grow", 2), ("shift", 100)]
    assert deployment.elapsed == pytest.approx(200)


def test_an_alarm_between_two_batches_ends_a_rolling_deployment() -> None:
    config = {**rolling(size(1, "INSTANCE_COUNT"), wait=100), **alarms("accuracy")}
    deployment = Deployment(config, lambda at: {"accuracy": "ALARM" if at >= 150 else "OK"})

    assert deployment.run() is not None

    assert deployment.shifts == [(0, 0.5), (100, 1.0)]
    assert deployment.elapsed == pytest.approx(150, abs=0.3)


@pytest.mark.parametrize(("rings", "shifts"), [(50, [(0, 0.1)]), (150, [(0, 0.1), (100, 1.0)]), (0, [])])
def test_an_alarm_ends_the_deployment_whenever_it_rings(rings: float, shifts: list[tuple[float, float]]) -> None:
    config = {**blue_green("CANARY", wait=100, termination=100, CanarySize=size(10)), **alarms("calm", "accuracy")}
    deployment = Deployment(config, lambda at: {"calm": "OK", "accuracy": "ALARM" if at >= rings else "OK"})

    reason = deployment.run()

    assert reason is not None
    assert "ALARM state: accuracy." in reason
    assert deployment.shifts == shifts
    assert rings <= deployment.elapsed <= rings + 0.3


def test_alarms_that_are_missing_or_lack_data_do_not_end_it() -> None:
    config = {**blue_green("ALL_AT_ONCE", termination=10), **alarms("missing", "silent")}
    deployment = Deployment(config, lambda _: {"silent": "INSUFFICIENT_DATA"})

    assert deployment.run() is None


def test_a_deployment_that_takes_too_long_goes_back() -> None:
    deployment = Deployment(blue_green("ALL_AT_ONCE", termination=500, limit=600))
    deployment.clock.sleep(200)  # the new fleet took its time to start

    reason = deployment.run()

    assert reason is not None
    assert "longer than 600 seconds" in reason


def test_closing_the_cloud_ends_it() -> None:
    deployment = Deployment(blue_green("ALL_AT_ONCE", termination=500))
    deployment.cancelled = True

    assert deployment.run() is not None
    assert deployment.shifts == []
