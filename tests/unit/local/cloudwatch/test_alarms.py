"""Alarms over time: a clock that the test moves, real queues and rules behind them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.unit.local.in_process import REGION, InProcess, in_process
from tests.unit.local.manual_clock import ManualClock
from windlass.local.cloudwatch.alarms import AlarmEngine
from windlass.local.cloudwatch.metric_store import MetricStore
from windlass.local.events.bus import EventBus, Undeliverable
from windlass.local.faults import Fault

DIMENSIONS = {"EndpointName": "digits"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[InProcess]:
    with in_process(tmp_path) as started:
        yield started


def put(cloud: InProcess, value: float, name: str = "Accuracy", **datum: Any) -> None:
    cloud.metrics.put(REGION, "Windlass", name, DIMENSIONS, value, **{"resolution": 1, **datum})


def alarm(cloud: InProcess, name: str = "bad", **changes: Any) -> None:
    request = {
        "AlarmName": name,
        "Namespace": "Windlass",
        "MetricName": "Accuracy",
        "Dimensions": [{"Name": "EndpointName", "Value": "digits"}],
        "Period": 10,
        "Statistic": "Average",
        "EvaluationPeriods": 1,
        "Threshold": 0.9,
        "ComparisonOperator": "LessThanThreshold",
        **changes,
    }
    cloud.alarms.put_metric_alarm(REGION, {key: value for key, value in request.items() if value is not None})


def state(cloud: InProcess, name: str = "bad") -> str | None:
    return cloud.alarms.states(REGION, [name]).get(name)


def test_a_high_resolution_alarm_follows_its_metric(cloud: InProcess) -> None:
    alarm(cloud)
    put(cloud, 0.97)
    cloud.tick(5)
    assert state(cloud) == "INSUFFICIENT_DATA"  # the period is not over
    cloud.tick(6)
    assert state(cloud) == "OK"
    put(cloud, 0.2)
    cloud.tick(10)
    assert state(cloud) == "ALARM"
    put(cloud, 0.97)
    cloud.tick(10)
    assert state(cloud) == "OK"


def test_late_data_is_evaluated_when_it_comes(cloud: InProcess) -> None:
    alarm(cloud)
    cloud.tick(12)
    assert state(cloud) == "INSUFFICIENT_DATA"
    put(cloud, 0.2, at=cloud.clock.now() - 5)
    cloud.tick(0.5)
    assert state(cloud) == "ALARM"


def test_missing_data_after_the_evaluation_range(cloud: InProcess) -> None:
    for treatment in ("missing", "ignore", "breaching", "notBreaching"):
        alarm(cloud, treatment, TreatMissingData=treatment)
    put(cloud, 0.97)
    cloud.tick(11)
    assert {state(cloud, name) for name in ("missing", "ignore", "breaching", "notBreaching")} == {"OK"}
    cloud.tick(20)  # still in the evaluation range
    assert state(cloud, "missing") == "OK"
    cloud.tick(10)
    assert [state(cloud, name) for name in ("missing", "ignore", "breaching", "notBreaching")] == [
        "INSUFFICIENT_DATA",
        "OK",
        "ALARM",
        "OK",
    ]


def test_m_out_of_n(cloud: InProcess) -> None:
    alarm(cloud, EvaluationPeriods=3, DatapointsToAlarm=2)
    cloud.tick(1.5)
    for value, expected in [(0.97, "OK"), (0.2, "OK"), (0.97, "OK"), (0.2, "ALARM"), (0.97, "OK")]:
        put(cloud, value)
        cloud.tick(10)
        assert state(cloud) == expected


def test_standard_alarms_are_evaluated_each_minute_over_a_sliding_window(cloud: InProcess) -> None:
    alarm(
        cloud,
        Period=300,
        MetricName="Errors",
        Statistic="Sum",
        Threshold=3,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
    )
    put(cloud, 2, "Errors", resolution=60)
    cloud.tick(61)
    assert state(cloud) == "OK"
    cloud.clock.advance(59)
    put(cloud, 2, "Errors", resolution=60)
    cloud.tick(61)  # both are within the five minutes before
    assert state(cloud) == "ALARM"


def test_metric_math(cloud: InProcess) -> None:
    def metric(name: str, id: str) -> dict[str, Any]:  # noqa: A002
        dimensions = [{"Name": "EndpointName", "Value": "digits"}]
        identity = {"Namespace": "Windlass", "MetricName": name, "Dimensions": dimensions}
        return {"Id": id, "MetricStat": {"Metric": identity, "Period": 10, "Stat": "Sum"}, "ReturnData": False}

    cloud.alarms.put_metric_alarm(
        REGION,
        {
            "AlarmName": "rate",
            "Metrics": [
                metric("Errors", "errors"),
                metric("Requests", "requests"),
                {"Id": "rate", "Expression": "IF(requests >= 10, 100 * errors / requests, 0)", "Label": "Error rate"},
            ],
            "EvaluationPeriods": 1,
            "Threshold": 5,
            "ComparisonOperator": "GreaterThanThreshold",
        },
    )
    put(cloud, 1, "Errors")
    put(cloud, 5, "Requests")
    cloud.tick(11)
    assert state(cloud, "rate") == "OK"  # too few requests to say
    put(cloud, 1, "Errors")
    put(cloud, 15, "Requests")
    cloud.tick(10)
    assert state(cloud, "rate") == "ALARM"


def test_percentiles_and_low_sample_counts(cloud: InProcess) -> None:
    common: dict[str, Any] = {
        "MetricName": "Latency",
        "Statistic": None,
        "ExtendedStatistic": "p90",
        "Threshold": 100,
        "ComparisonOperator": "GreaterThanThreshold",
    }
    alarm(cloud, "all", **common)
    alarm(cloud, "enough", **common, EvaluateLowSampleCountPercentile="ignore")
    for _ in range(99):
        put(cloud, 200, "Latency")
    cloud.tick(11)
    assert (state(cloud, "all"), state(cloud, "enough")) == ("ALARM", "INSUFFICIENT_DATA")  # p90 needs 100 samples
    put(cloud, 200, "Latency", at=cloud.clock.now() - 11)
    cloud.tick()
    assert state(cloud, "enough") == "ALARM"


def test_replacing_an_alarm_keeps_its_state_and_evaluates_anew(cloud: InProcess) -> None:
    alarm(cloud)
    put(cloud, 0.8)
    cloud.tick(11)
    assert state(cloud) == "ALARM"
    alarm(cloud, Threshold=0.5)
    assert state(cloud) == "ALARM"
    cloud.tick()
    assert state(cloud) == "OK"


def test_a_state_that_was_set_lasts_until_the_next_evaluation(cloud: InProcess) -> None:
    alarm(cloud)
    put(cloud, 0.97)
    cloud.tick(11)
    cloud.alarms.set_state(REGION, "bad", "ALARM", "a drill", None)
    cloud.tick()
    assert state(cloud) == "ALARM"
    put(cloud, 0.97)
    cloud.tick(10)
    assert state(cloud) == "OK"


def test_composites_follow_their_children_at_every_level(cloud: InProcess) -> None:
    alarm(cloud, "accuracy")
    alarm(cloud, "errors", MetricName="Errors", Threshold=1, ComparisonOperator="GreaterThanThreshold")
    cloud.alarms.put_composite_alarm(REGION, {"AlarmName": "both", "AlarmRule": "ALARM(accuracy) AND ALARM(errors)"})
    cloud.alarms.put_composite_alarm(REGION, {"AlarmName": "top", "AlarmRule": "ALARM(both)"})
    put(cloud, 0.2)
    cloud.tick(11)
    assert (state(cloud, "both"), state(cloud, "top")) == ("OK", "OK")
    put(cloud, 5, "Errors")
    cloud.tick(10)
    assert (state(cloud, "both"), state(cloud, "top")) == ("ALARM", "ALARM")
    top = cloud.alarms.find(REGION, "top")
    assert top is not None
    assert "alarm:both transitioned to ALARM at Thursday 01 January, 2026 00:00:21 UTC" in top.reason
    assert json.loads(top.reason_data or "")["triggeringAlarms"][0]["state"]["value"] == "ALARM"


def test_an_expression_that_cannot_be_evaluated_says_so(cloud: InProcess) -> None:
    alarm(
        cloud,
        MetricName=None,
        Namespace=None,
        Dimensions=None,
        Period=None,
        Statistic=None,
        Metrics=[
            {
                "Id": "m1",
                "MetricStat": {"Metric": {"Namespace": "W", "MetricName": "m"}, "Period": 10, "Stat": "Sum"},
                "ReturnData": False,
            },
            {"Id": "e1", "Expression": "SUM(m1)"},
        ],
    )
    cloud.tick(11)
    found = cloud.alarms.find(REGION, "bad")
    assert found is not None
    assert found.describe()["EvaluationState"] == "EVALUATION_ERROR"
    assert "single value" in found.reason


# --- what a change sets off ---


def topic(cloud: InProcess, queue: str) -> str:
    """A topic whose messages end up in that queue."""
    arn: str = cloud.client("sns").create_topic(Name=f"{queue}-topic")["TopicArn"]
    cloud.client("sns").subscribe(TopicArn=arn, Protocol="sqs", Endpoint=cloud.queue(queue))
    return arn


def test_actions_publish_what_aws_would_publish(cloud: InProcess) -> None:
    bad, good = topic(cloud, "bad"), topic(cloud, "good")
    alarm(cloud, AlarmDescription="accuracy is low", AlarmActions=[bad], OKActions=[good])
    put(cloud, 0.2)
    cloud.tick(11)
    (body,) = cloud.received("bad")
    envelope = json.loads(body)
    assert envelope["Subject"] == 'ALARM: "bad" in US East (N. Virginia)'
    assert json.loads(envelope["Message"]) == {
        "AlarmName": "bad",
        "AlarmDescription": "accuracy is low",
        "AWSAccountId": "123456789012",
        "AlarmConfigurationUpdatedTimestamp": "2026-01-01T00:00:00.000+0000",
        "NewStateValue": "ALARM",
        "NewStateReason": "Threshold Crossed: 1 datapoint [0.2 (01/01/26 00:00:00)] was less than the threshold (0.9).",
        "StateChangeTime": "2026-01-01T00:00:11.000+0000",
        "Region": "US East (N. Virginia)",
        "AlarmArn": "arn:aws:cloudwatch:us-east-1:123456789012:alarm:bad",
        "OldStateValue": "INSUFFICIENT_DATA",
        "OKActions": [good],
        "AlarmActions": [bad],
        "InsufficientDataActions": [],
        "Trigger": {
            "Period": 10,
            "EvaluationPeriods": 1,
            "DatapointsToAlarm": 1,
            "ComparisonOperator": "LessThanThreshold",
            "Threshold": 0.9,
            "TreatMissingData": "missing",
            "EvaluateLowSampleCountPercentile": "",
            "MetricName": "Accuracy",
            "Namespace": "Windlass",
            "Unit": None,
            "Dimensions": [{"value": "digits", "name": "EndpointName"}],
            "StatisticType": "Statistic",
            "Statistic": "AVERAGE",
        },
    }
    assert cloud.received("good") == []
    put(cloud, 0.97)
    cloud.tick(10)
    assert json.loads(json.loads(cloud.received("good")[0])["Message"])["OldStateValue"] == "ALARM"
    assert cloud.received("bad") == []


def history(cloud: InProcess, kind: str) -> list[tuple[str, Any]]:
    return [(item.summary, json.loads(item.data)) for item in cloud.alarms.history(REGION) if item.type == kind]


def test_actions_that_fail_are_in_the_history(cloud: InProcess) -> None:
    gone = "arn:aws:sns:us-east-1:123456789012:gone"
    lambda_ = "arn:aws:lambda:us-east-1:123456789012:function:f"
    alarm(cloud, AlarmActions=[topic(cloud, "bad"), gone, lambda_])
    put(cloud, 0.2)
    cloud.tick(11)
    (done, data), (failed, why), (unknown, _) = history(cloud, "Action")
    assert done.startswith("Successfully executed action")
    assert (data["actionState"], data["error"]) == ("Succeeded", None)
    assert failed.startswith(f"Failed to execute action {gone}")
    assert why["actionState"] == "Failed"
    assert "does not exist" in why["error"]
    assert "executes no alarm actions of lambda" in unknown
    assert len(cloud.received("bad")) == 1


def test_disabled_actions_are_not_executed(cloud: InProcess) -> None:
    alarm(cloud, AlarmActions=[topic(cloud, "bad")], ActionsEnabled=False)
    put(cloud, 0.2)
    cloud.tick(11)
    assert state(cloud) == "ALARM"
    assert cloud.received("bad") == []
    assert history(cloud, "Action") == []


def test_other_parts_can_execute_actions(cloud: InProcess) -> None:
    seen: list[tuple[str, str]] = []

    def act(alarm: Any, action: str, change: Any) -> None:
        seen.append((alarm.name, action))
        raise Undeliverable("out of order")

    cloud.alarms.support("lambda", act)
    action = "arn:aws:lambda:us-east-1:123456789012:function:f"
    alarm(cloud, AlarmActions=[action])
    put(cloud, 0.2)
    cloud.tick(11)
    assert seen == [("bad", action)]
    assert history(cloud, "Action")[0][1]["error"] == "out of order"


def test_state_changes_reach_eventbridge_in_aws_form(cloud: InProcess) -> None:
    events = cloud.client("events")
    pattern = {"source": ["aws.cloudwatch"], "detail-type": ["CloudWatch Alarm State Change"]}
    events.put_rule(Name="alarms", EventPattern=json.dumps(pattern))
    events.put_targets(Rule="alarms", Targets=[{"Id": "queue", "Arn": cloud.queue("events")}])
    alarm(cloud, AlarmDescription="accuracy is low")
    put(cloud, 0.2)
    cloud.tick(11)
    (body,) = cloud.received("events")
    event = json.loads(body)
    assert event["resources"] == ["arn:aws:cloudwatch:us-east-1:123456789012:alarm:bad"]
    assert event["time"] == "2026-01-01T00:00:11Z"
    detail = event["detail"]
    reason = "Threshold Crossed: 1 datapoint [0.2 (01/01/26 00:00:00)] was less than the threshold (0.9)."
    assert detail["alarmName"] == "bad"
    assert json.loads(detail["state"].pop("reasonData")) == {
        "version": "1.0",
        "queryDate": "2026-01-01T00:00:11.000+0000",
        "startDate": "2026-01-01T00:00:00.000+0000",
        "statistic": "Average",
        "period": 10,
        "recentDatapoints": [0.2],
        "threshold": 0.9,
        "evaluatedDatapoints": [{"timestamp": "2026-01-01T00:00:00.000+0000", "sampleCount": 1.0, "value": 0.2}],
    }
    assert detail["state"] == {"value": "ALARM", "reason": reason, "timestamp": "2026-01-01T00:00:11.000+0000"}
    assert detail["previousState"] == {
        "value": "INSUFFICIENT_DATA",
        "reason": "Unchecked: Initial alarm creation",
        "timestamp": "2026-01-01T00:00:00.000+0000",
    }
    (metric,) = detail["configuration"].pop("metrics")
    assert metric["returnData"] is True
    assert metric["metricStat"] == {
        "metric": {"namespace": "Windlass", "name": "Accuracy", "dimensions": {"EndpointName": "digits"}},
        "period": 10,
        "stat": "Average",
    }
    assert detail["configuration"] == {"description": "accuracy is low"}


def test_an_alarm_of_moto_itself_is_ours_too(cloud: InProcess) -> None:
    from moto.cloudwatch.models import cloudwatch_backends

    backend = cloudwatch_backends["123456789012"][REGION]
    backend.put_metric_alarm(
        name="scaling",
        namespace="AWS/ECS",
        metric_name="CPUUtilization",
        metric_data_queries=[],
        comparison_operator="GreaterThanThreshold",
        evaluation_periods=3,
        period=60,
        threshold=6,
        statistic="Average",
        description="of a scaling policy",
        dimensions=[{"Name": "ClusterName", "Value": "c"}],
        alarm_actions=[],
    )
    assert [each.name for each in cloud.alarms.all(REGION)] == ["scaling"]
    backend.delete_alarms(["scaling", "gone"])
    assert cloud.alarms.all(REGION) == []


def test_reset_forgets_alarms_and_history(cloud: InProcess) -> None:
    alarm(cloud)
    cloud.alarms.reset()
    assert cloud.alarms.all(REGION) == []
    assert cloud.alarms.history(REGION) == []


def test_faults_reach_callers_inside_the_cloud(cloud: InProcess) -> None:
    with pytest.raises(Fault, match="Threshold is required"):
        alarm(cloud, Threshold=None)


def test_the_engine_evaluates_on_its_own_thread(cloud: InProcess) -> None:
    changed = threading.Event()
    cloud.alarms.support("lambda", lambda *_: changed.set())
    alarm(cloud, AlarmActions=["arn:aws:lambda:us-east-1:123456789012:function:f"])
    put(cloud, 0.2)
    cloud.clock.advance(11)
    for _ in range(100):
        # The thread may have looked at the time just before it moved, and sleep until it moves again.
        if changed.wait(0.1):
            break
        cloud.clock.advance(0.5)
    assert changed.is_set()


def test_one_failing_evaluation_does_not_end_the_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failed, went_on = threading.Event(), threading.Event()

    class Clock:
        def now(self) -> float:
            return 0.0

        def sleep(self, seconds: float) -> None:
            if failed.is_set():
                went_on.set()
            went_on.wait(5)

    class Broken(AlarmEngine):
        def tick(self, now: float) -> None:
            failed.set()
            raise RuntimeError("broken")

    store, bus = MetricStore(tmp_path / "m.sqlite", Clock()), EventBus(Clock())
    engine = Broken(store, bus, Clock())
    engine.start()
    assert went_on.wait(5)
    engine.close()
    store.close()
    assert "Evaluating the alarms failed" in caplog.text


# --- suppression -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def suppressed(cloud: InProcess) -> InProcess:
    """A composite on `child`, whose actions `quiet` holds back."""
    client = cloud.client("cloudwatch")
    for name in ("child", "quiet"):
        alarm(cloud, AlarmName=name, TreatMissingData="ignore")  # so that what we force stays
    client.put_composite_alarm(
        AlarmName="all",
        AlarmRule="ALARM(child)",
        AlarmActions=[topic(cloud, "loud")],
        ActionsSuppressor="quiet",
        ActionsSuppressorWaitPeriod=60,
        ActionsSuppressorExtensionPeriod=120,
    )
    cloud.tick(1)
    return cloud


def force(cloud: InProcess, name: str, value: str) -> None:
    cloud.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue=value, StateReason="to see")
    assert cloud.events.drain()


def suppressed_by(cloud: InProcess) -> str | None:
    (found,) = cloud.client("cloudwatch").describe_alarms(AlarmNames=["all"])["CompositeAlarms"]
    assert found["ActionsSuppressor"] == "quiet"
    by: str | None = found.get("ActionsSuppressedBy")
    return by


def test_actions_wait_for_a_suppressor_that_does_not_come(suppressed: InProcess) -> None:
    force(suppressed, "child", "ALARM")
    assert suppressed_by(suppressed) == "WaitPeriod"
    suppressed.tick(59)
    assert suppressed.received("loud") == []
    suppressed.tick(2)
    assert len(suppressed.received("loud")) == 1
    assert suppressed_by(suppressed) is None


def test_a_suppressor_holds_actions_back_and_then_a_little_longer(suppressed: InProcess) -> None:
    force(suppressed, "quiet", "ALARM")
    suppressed.tick(1)
    force(suppressed, "child", "ALARM")
    assert suppressed_by(suppressed) == "Alarm"
    suppressed.tick(500)
    assert suppressed.received("loud") == []
    force(suppressed, "quiet", "OK")
    suppressed.tick(1)
    assert suppressed_by(suppressed) == "ExtensionPeriod"
    suppressed.tick(118)
    assert suppressed.received("loud") == []
    suppressed.tick(3)
    assert len(suppressed.received("loud")) == 1


def test_a_suppressor_needs_both_periods(cloud: InProcess) -> None:
    with pytest.raises(ClientError, match="ActionsSuppressorWaitPeriod is required"):
        cloud.client("cloudwatch").put_composite_alarm(AlarmName="x", AlarmRule="TRUE", ActionsSuppressor="y")


def test_alarms_outlive_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()

    def engine() -> tuple[AlarmEngine, EventBus]:
        events = EventBus(clock)
        return AlarmEngine(MetricStore(tmp_path / "m.sqlite", clock), events, clock, None, tmp_path / "a.json"), events

    request: dict[str, Any] = {
        "AlarmName": "bad",
        "Namespace": "N",
        "MetricName": "M",
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 1,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanThreshold",
        "Tags": [{"Key": "k", "Value": "v"}],
    }
    first, events = engine()
    before = first.put_metric_alarm(REGION, request)
    first.put_composite_alarm(REGION, {"AlarmName": "all", "AlarmRule": "ALARM(bad)"})
    first.set_state(REGION, "bad", "ALARM", "to see", None)
    first.close()
    events.close()
    second, events = engine()
    assert second.states(REGION, ["bad", "all"]) == {"bad": "ALARM", "all": "ALARM"}
    after = second.find(REGION, "bad")
    assert after is not None
    assert after.describe() == before.describe()
    assert after.tags == {"k": "v"}
    assert second.history(REGION) == first.history(REGION)
    second.reset()
    second.close()
    events.close()
    third, events = engine()
    assert third.all(REGION) == []
    events.close()
