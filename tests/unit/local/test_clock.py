from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.local.manual_clock import ManualClock
from windlass.errors import InvalidInput
from windlass.local import LocalCloud
from windlass.local.clock import Pace
from windlass.local.cloudwatch.alarms import AlarmEngine
from windlass.local.cloudwatch.metric_store import MetricStore
from windlass.local.events.bus import EventBus
from windlass.local.hosting.metering import Meter, Sample
from windlass.local.hosting.rollout import Policy, Rollout

REGION = "us-east-1"


def test_a_pace_of_one_is_the_clock_itself() -> None:
    clock = ManualClock()
    pace = Pace(clock)
    clock.advance(12.3456789)
    assert pace.now() == clock.now() == pace.of(clock.now()) == pace.true(clock.now())


def test_a_pace_runs_faster_and_can_be_turned_back() -> None:
    clock = ManualClock()
    pace = Pace(clock, 60)
    before = pace.now()
    clock.advance(2)
    assert pace.now() - before == pytest.approx(120)
    assert pace.true(pace.now()) == pytest.approx(clock.now())


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
def test_a_pace_must_go_on(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be more than 0"):
        Pace(ManualClock(), speed)


@pytest.mark.parametrize("speed", [0, -60, 1e9])
def test_a_cloud_must_go_on_too(tmp_path: Path, speed: float) -> None:
    with pytest.raises(InvalidInput, match="The speed is"):
        LocalCloud.up(tmp_path, speed=speed)


@pytest.mark.parametrize("speed", [1, 7, 60])
def test_alarms_count_their_periods_at_that_pace(tmp_path: Path, speed: int) -> None:
    # given an alarm of three minutes, on a metric of which a minute has two values
    clock = ManualClock()
    metrics, events = MetricStore(tmp_path / "m.sqlite", clock, 60 if speed == 1 else 0.01), EventBus(clock)
    engine = AlarmEngine(metrics, events, clock, Pace(clock, speed))
    settings: dict[str, Any] = {"Namespace": "N", "MetricName": "M", "Statistic": "Average", "Period": 60}
    request = {**settings, "AlarmName": "a", "EvaluationPeriods": 3, "Threshold": 1, "TreatMissingData": "notBreaching"}
    engine.put_metric_alarm(REGION, {**request, "ComparisonOperator": "GreaterThanThreshold"})
    minute = 60 / speed

    def state_after(value: float, minutes: int) -> str:
        for _ in range(2 * minutes):
            metrics.put(REGION, "N", "M", {}, value)
            engine.tick(clock.advance(minute / 2))
        return engine.states(REGION, ["a"])["a"]

    # then it takes these, not those of the wall, and its timestamps are true
    assert state_after(0, 4) == "OK"
    assert state_after(2, 2) == "OK"
    assert state_after(2, 3 + speed // 10) == "ALARM"
    alarm = engine.find(REGION, "a")
    assert alarm is not None
    assert clock.START < alarm.transitioned_at <= clock.now()
    events.close()
    metrics.close()


def test_bakes_run_at_that_pace_and_the_limit_does_not() -> None:
    clock = ManualClock()
    pace = Pace(clock, 60)

    class Moving:
        """Time that passes by being waited for."""

        now = staticmethod(pace.now)

        @staticmethod
        def sleep(seconds: float) -> None:
            clock.advance(seconds / pace.speed)

    shifted: list[tuple[float, float]] = []
    began = clock.now()
    policy = Policy(shares=(0.5, 1.0), wait_seconds=600, termination_wait_seconds=60, limit_seconds=700)
    rollout = Rollout(
        policy,
        clock=clock,
        pace=Moving(),
        alarm_states=dict,
        cancelled=lambda: False,
    )

    class Moves:
        grow = shrink = staticmethod(lambda counts: None)

        @staticmethod
        def shift(shares: Mapping[str, float]) -> None:
            shifted.append((shares["main"], round(clock.now() - began, 1)))

    assert rollout.run(policy.steps({"main": 1}, {"main": 1}), Moves()) is None
    assert shifted == [(0.5, 0), (1.0, 10)]
    assert clock.now() - began == pytest.approx(11)


def test_invocations_are_kept_as_finely_as_alarms_may_look(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MetricStore(tmp_path / "m.sqlite", clock, 0.01)
    meter = Meter(store)
    for number in range(3):
        meter.add(Sample(REGION, "e", "v", None, clock.now() + number, 200, 0.1, 0.1, 1, 1))
    meter.flush()
    (metric,) = (metric for _, metric in store.metrics(REGION, 0) if metric.name == "Invocations")
    times = store.read(REGION, metric, 0, 4e9).t / 1000 - clock.now()
    assert times.tolist() == pytest.approx([0, 1, 2], abs=0.02)
    store.close()
