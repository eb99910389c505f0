"""Application Auto Scaling as boto3 sees it, on a clock that the test moves and an endpoint that only counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.unit.local.in_process import REGION, InProcess, in_process
from windlass.local.events import scaling as local_scaling
from windlass.local.events.scaling import Scaling
from windlass.local.faults import Fault

RESOURCE = "endpoint/digits/variant/main"
WHERE = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": RESOURCE,
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
DIMENSIONS = {"EndpointName": "digits", "VariantName": "main"}


@dataclass
class Endpoints:
    """One variant that has as many instances as it is told to."""

    count: int = 1
    updating: bool = False
    changes: list[int] = field(default_factory=list)
    queued: bool = False

    def scales_to_zero(self, region: str, endpoint: str) -> bool:
        return self.queued

    def desired_instances(self, region: str, endpoint: str, variant: str) -> int | None:
        return self.count if (endpoint, variant) == ("digits", "main") else None

    def update_endpoint_weights_and_capacities(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.updating:
            raise Fault("ValidationException", "Cannot update in-progress endpoint.")
        self.count = request["DesiredWeightsAndCapacities"][0]["DesiredInstanceCount"]
        self.changes.append(self.count)
        return {}


@dataclass
class Scaled:
    cloud: InProcess
    hosting: Endpoints

    @property
    def api(self) -> Any:
        return self.cloud.client("application-autoscaling")

    def minutes(self, number: int, invocations: float | None = None, name: str = "InvocationsPerInstance") -> None:
        """Let minutes pass, each with so many invocations of each instance."""
        for _ in range(number):
            if invocations is not None:
                self.cloud.metrics.put(REGION, "AWS/SageMaker", name, DIMENSIONS, invocations)
            self.cloud.tick(60)
            self.cloud.events.agenda.tick()
            assert self.cloud.events.drain()

    def activities(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.describe_scaling_activities(ServiceNamespace="sagemaker")[
            "ScalingActivities"
        ]
        return found


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[InProcess, Scaling]]:
    with in_process(tmp_path_factory.mktemp("cloud")) as started:
        started.hosting = Endpoints()  # type: ignore[attr-defined]
        scaling = Scaling(started)  # type: ignore[arg-type]
        local_scaling.register(scaling)
        started.alarms.support("autoscaling", scaling.act)
        yield started, scaling


@pytest.fixture
def scaled(cloud: tuple[InProcess, Scaling]) -> Iterator[Scaled]:
    started, scaling = cloud
    hosting = started.hosting = Endpoints()  # type: ignore[attr-defined]
    yield Scaled(started, hosting)
    scaling.reset()
    started.alarms.reset()
    started.metrics.reset()
    started.events.agenda.reset()


def track(scaled: Scaled, target: float = 100, **config: Any) -> list[str]:
    scaled.api.register_scalable_target(**WHERE, MinCapacity=1, MaxCapacity=6)
    answer = scaled.api.put_scaling_policy(
        **WHERE,
        PolicyName="track",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": target,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
            **config,
        },
    )
    return [alarm["AlarmName"] for alarm in answer["Alarms"]]


def test_concurrency_is_tracked_at_ten_seconds(scaled: Scaled) -> None:
    kind = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
    names = track(scaled, 5, PredefinedMetricSpecification={"PredefinedMetricType": kind})

    found = scaled.cloud.client("cloudwatch").describe_alarms(AlarmNames=names)["MetricAlarms"]

    assert {(alarm["MetricName"], alarm["Statistic"], alarm["Period"]) for alarm in found} == {
        ("ConcurrentRequestsPerModel", "Maximum", 10)
    }


def test_target_tracking_goes_out_and_in(scaled: Scaled) -> None:
    names = track(scaled, ScaleOutCooldown=120, ScaleInCooldown=180)
    found = scaled.cloud.client("cloudwatch").describe_alarms(AlarmNames=names)["MetricAlarms"]
    assert [(alarm["EvaluationPeriods"], alarm["Threshold"]) for alarm in found] == [(3, 100.0), (15, 90.0)]
    # three minutes above the target: as many instances as bring it back there
    scaled.minutes(2, 250)
    assert scaled.hosting.changes == []
    scaled.minutes(2, 250)
    assert scaled.hosting.changes == [3]
    # still too much: nothing within the cooldown, more after it, and never more than the most
    scaled.minutes(1, 250)
    assert scaled.hosting.changes == [3]
    scaled.minutes(2, 250)
    assert scaled.hosting.changes == [3, 6]
    # fifteen quiet minutes: back, down to the least
    scaled.minutes(14, 10)
    assert scaled.hosting.changes == [3, 6]
    scaled.minutes(3, 10)
    assert scaled.hosting.changes == [3, 6, 1]
    latest = scaled.activities()[0]
    assert latest["Description"] == "Setting desired instance count to 1."
    assert latest["StatusCode"] == "Successful"
    assert names[1] in latest["Cause"]


def test_an_endpoint_with_a_queue_scales_to_nothing(scaled: Scaled) -> None:
    scaled.hosting.queued = True
    track(scaled)
    scaled.api.register_scalable_target(**WHERE, MinCapacity=0)
    scaled.minutes(16, 0)
    assert scaled.hosting.changes == [0]


def test_scaling_in_can_be_forbidden(scaled: Scaled) -> None:
    scaled.hosting.count = 4
    track(scaled, DisableScaleIn=True)
    scaled.minutes(30, 10)
    assert scaled.hosting.changes == []


def test_an_update_under_way_is_a_failed_activity_and_tried_again(scaled: Scaled) -> None:
    track(scaled)
    scaled.hosting.updating = True
    scaled.minutes(4, 250)
    assert scaled.hosting.changes == []
    assert scaled.activities()[0]["StatusCode"] == "Failed"
    assert "in-progress" in scaled.activities()[0]["StatusMessage"]
    scaled.hosting.updating = False
    scaled.minutes(1, 250)
    assert scaled.hosting.changes == [3]


def test_suspended_targets_stay(scaled: Scaled) -> None:
    track(scaled)
    scaled.api.register_scalable_target(**WHERE, SuspendedState={"DynamicScalingOutSuspended": True})
    scaled.minutes(6, 250)
    assert scaled.hosting.changes == []
    (target,) = scaled.api.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert target["SuspendedState"]["DynamicScalingOutSuspended"] is True
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 6)


@pytest.mark.parametrize(
    ("kind", "steps", "value", "start", "expected"),
    [
        ("ChangeInCapacity", [(0, 50, 1), (50, None, 3)], 120, 1, 2),
        ("ChangeInCapacity", [(0, 50, 1), (50, None, 3)], 150, 1, 4),
        ("ExactCapacity", [(0, None, 5)], 101, 1, 5),
        ("PercentChangeInCapacity", [(0, None, 50)], 120, 4, 6),
        ("PercentChangeInCapacity", [(0, None, 10)], 120, 2, 3),
        ("ChangeInCapacity", [(0, None, 99)], 120, 1, 6),
    ],
)
def test_step_scaling(
    scaled: Scaled, kind: str, steps: list[tuple[int, int | None, int]], value: float, start: int, expected: int
) -> None:
    scaled.hosting.count = start
    scaled.api.register_scalable_target(**WHERE, MinCapacity=1, MaxCapacity=6)
    names = ("MetricIntervalLowerBound", "MetricIntervalUpperBound", "ScalingAdjustment")
    adjustments = [
        {name: given for name, given in zip(names, step, strict=True) if given is not None} for step in steps
    ]
    policy = scaled.api.put_scaling_policy(
        **WHERE,
        PolicyName="steps",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={"AdjustmentType": kind, "StepAdjustments": adjustments, "Cooldown": 600},
    )
    scaled.cloud.client("cloudwatch").put_metric_alarm(
        AlarmName="mine",
        Namespace="AWS/SageMaker",
        MetricName="Queue",
        Dimensions=[{"Name": name, "Value": text} for name, text in DIMENSIONS.items()],
        Statistic="Average",
        Period=60,
        EvaluationPeriods=1,
        Threshold=100,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        AlarmActions=[policy["PolicyARN"]],
    )
    scaled.minutes(4, value, name="Queue")
    assert scaled.hosting.changes == [expected]


def test_a_new_minimum_counts_at_once(scaled: Scaled) -> None:
    scaled.api.register_scalable_target(**WHERE, MinCapacity=2, MaxCapacity=4)
    assert scaled.hosting.changes == [2]
    assert scaled.activities()[0]["Cause"] == "minimum capacity was set to 2"


def test_deleting_takes_the_alarms_along(scaled: Scaled) -> None:
    names = track(scaled)
    (policy,) = scaled.api.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 100
    scaled.api.deregister_scalable_target(**WHERE)
    assert scaled.cloud.alarms.states(REGION, names) == {}
    assert scaled.api.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []
    with pytest.raises(ClientError) as caught:
        scaled.api.deregister_scalable_target(**WHERE)
    assert caught.value.response["Error"]["Code"] == "ObjectNotFoundException"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ResourceId": "endpoint/none/variant/main"}, "Could not find variant main of endpoint none"),
        ({"ResourceId": "digits"}, "Unsupported resource ID"),
        ({"MinCapacity": 5, "MaxCapacity": 2}, "must be from 1 to MaxCapacity"),
        ({"MinCapacity": 0}, "must be from 1 to MaxCapacity"),
        ({"ServiceNamespace": "ecs", "ScalableDimension": "ecs:service:DesiredCount"}, "only, not ecs"),
    ],
)
def test_targets_that_are_refused(scaled: Scaled, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ClientError, match=message):
        scaled.api.register_scalable_target(**{**WHERE, "MinCapacity": 1, "MaxCapacity": 2, **change})


def test_an_action_of_a_policy_that_is_gone_is_in_the_history(scaled: Scaled) -> None:
    cloudwatch = scaled.cloud.client("cloudwatch")
    gone = f"arn:aws:autoscaling:{REGION}:123456789012:scalingPolicy:x:resource/sagemaker/{RESOURCE}:policyName/gone"
    cloudwatch.put_metric_alarm(
        AlarmName="lost",
        Namespace="N",
        MetricName="M",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanThreshold",
        AlarmActions=[gone],
    )
    cloudwatch.set_alarm_state(AlarmName="lost", StateValue="ALARM", StateReason="to see")
    assert scaled.cloud.events.drain()
    (item,) = cloudwatch.describe_alarm_history(AlarmName="lost", HistoryItemType="Action")["AlarmHistoryItems"]
    assert "does not exist" in item["HistorySummary"]


def test_what_is_not_there_is_refused_by_name(scaled: Scaled) -> None:
    with pytest.raises(ClientError, match="DescribeScheduledActions is not implemented"):
        scaled.api.describe_scheduled_actions(ServiceNamespace="sagemaker")
