"""Application Auto Scaling of endpoint variants: alarms change how many instances there are, and say what they did.

    scaling = Scaling(cloud)      # its policies' alarms act by themselves

Target tracking makes its own two alarms, as on AWS: three minutes above the target scale out, fifteen below nine tenths of it
scale in. A step policy is the action of an alarm of the user's. While an alarm stays in ALARM it acts once a minute, within the
cooldowns. The rules are those of the Application Auto Scaling user guide.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import threading
import types
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

from moto.applicationautoscaling.models import ApplicationAutoscalingBackend, applicationautoscaling_backends
from moto.applicationautoscaling.urls import url_bases
from moto.core.responses import ActionResult, BaseResponse, EmptyResult

from windlass.local import validation
from windlass.local.cloud import ACCOUNT
from windlass.local.cloudwatch.alarm_settings import Alarm
from windlass.local.cloudwatch.alarms import Change
from windlass.local.cloudwatch.api import HasCloudWatch
from windlass.local.events.bus import Undeliverable, refused
from windlass.local.faults import Fault
from windlass.local.hosting.api import Hosting

log = logging.getLogger(__name__)

NAMESPACE, DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"

_RESOURCE = re.compile(r"endpoint/([^/]+)/variant/([^/]+)")
_REPEAT_SECONDS = 60
_COOLDOWN_SECONDS = 300
_ACTIVITIES = 1000
_LOW_SHARE = 0.9
# Name, statistic and period of what a predefined metric stands for. What comes every 10 s scales out sooner.
_PREDEFINED = {
    "SageMakerVariantInvocationsPerInstance": ("InvocationsPerInstance", "Sum", 60),
    "SageMakerVariantConcurrentRequestsPerModelHighResolution": ("ConcurrentRequestsPerModel", "Maximum", 10),
}


class HasScaling(HasCloudWatch, Protocol):
    """What scaling needs of the local cloud."""

    @property
    def hosting(self) -> Hosting: ...


Key = tuple[str, str]  # region, resource id


@dataclass
class Target:
    """A scalable target.

    Attributes:
        scaled_out, scaled_in: when it last was, on the pace; minus infinity before.
    """

    region: str
    resource: str
    least: int
    most: int
    created: float
    suspended: dict[str, bool] = field(default_factory=dict)
    scaled_out: float = -math.inf
    scaled_in: float = -math.inf

    @property
    def variant(self) -> tuple[str, str]:
        """(endpoint, variant)"""
        match = _RESOURCE.fullmatch(self.resource)
        assert match is not None
        return match[1], match[2]

    @property
    def arn(self) -> str:
        made_up = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.region}/{self.resource}").hex
        return f"arn:aws:application-autoscaling:{self.region}:{ACCOUNT}:scalable-target/{made_up}"


@dataclass
class Policy:
    """A scaling policy; `alarms` are the names of those that it made itself."""

    region: str
    resource: str
    name: str
    type: str
    config: dict[str, Any]
    created: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    alarms: list[str] = field(default_factory=list)

    @property
    def arn(self) -> str:
        return (
            f"arn:aws:autoscaling:{self.region}:{ACCOUNT}:scalingPolicy:{self.id}:resource/{NAMESPACE}/{self.resource}"
            f":policyName/{self.name}"
        )


class Scaling:
    """All scalable targets and their policies. Safe to use from many threads."""

    def __init__(self, cloud: HasScaling) -> None:
        self._cloud = cloud
        self._lock = threading.RLock()
        self._targets: dict[Key, Target] = {}
        self._policies: dict[tuple[str, str, str], Policy] = {}
        self._activities: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_ACTIVITIES)

    # -- targets --------------------------------------------------------------------------------------------------------

    def register(self, region: str, request: Mapping[str, Any]) -> Target:
        """RegisterScalableTarget: create a target, or change what the request names."""
        resource = _resource(request)
        endpoint, variant = resource.split("/")[1], resource.split("/")[3]
        current = self._cloud.hosting.desired_instances(region, endpoint, variant)
        with self._lock:
            target = self._targets.get((region, resource))
            if target is None:
                if current is None:
                    raise Fault(
                        "ValidationException", f"Could not find variant {variant} of endpoint {endpoint} in service."
                    )
                if "MinCapacity" not in request or "MaxCapacity" not in request:
                    raise Fault(
                        "ValidationException", "MinCapacity and MaxCapacity are required for a new scalable target."
                    )
            least = request.get("MinCapacity", target.least if target else 0)
            most = request.get("MaxCapacity", target.most if target else 0)
            # Zero needs a queue that holds requests meanwhile, or inference components, on AWS as well.
            fewest = 0 if self._cloud.hosting.scales_to_zero(region, endpoint) else 1
            if not fewest <= least <= most:
                message = f"MinCapacity ({least}) must be from {fewest} to MaxCapacity ({most})."
                raise Fault("ValidationException", message)
            if target is None:
                target = self._targets[region, resource] = Target(
                    region, resource, least, most, self._cloud.clock.now()
                )
            target.least, target.most = least, most
            target.suspended = {**target.suspended, **(request.get("SuspendedState") or {})}
        if current is not None and not least <= current <= most:
            bound = "minimum capacity was set to" if current < least else "maximum capacity was set to"
            wanted = min(max(current, least), most)
            self._set(target, current, wanted, f"{bound} {wanted}")
        return target

    def deregister(self, region: str, request: Mapping[str, Any]) -> None:
        resource = _resource(request)
        with self._lock:
            if self._targets.pop((region, resource), None) is None:
                raise _no_target(resource)
            policies = [each for each in self._policies.values() if (each.region, each.resource) == (region, resource)]
        for policy in policies:
            self._remove(policy)

    def targets(self, region: str) -> list[Target]:
        with self._lock:
            return [target for (home, _), target in self._targets.items() if home == region]

    # -- policies -------------------------------------------------------------------------------------------------------

    def put_policy(self, region: str, request: Mapping[str, Any]) -> Policy:
        """PutScalingPolicy: create or replace, with the alarms of a target tracking policy."""
        resource, name = _resource(request), request["PolicyName"]
        kind = request.get("PolicyType", "StepScaling")
        config_name = {
            "TargetTrackingScaling": "TargetTrackingScalingPolicyConfiguration",
            "StepScaling": "StepScalingPolicyConfiguration",
        }.get(kind)
        if config_name is None:
            raise Fault("ValidationException", f"The local cloud does not implement policies of type {kind} yet.")
        config = request.get(config_name)
        if config is None:
            raise Fault("ValidationException", f"{config_name} is required for a policy of type {kind}.")
        if kind == "StepScaling":
            _check_steps(config)
        with self._lock:
            if (region, resource) not in self._targets:
                raise _no_target(resource)
            old = self._policies.get((region, resource, name))
            if old is not None and old.type != kind:
                raise Fault("ValidationException", f"The policy {name} exists already, and is of type {old.type}.")
            policy = Policy(region, resource, name, kind, dict(config), self._cloud.clock.now())
            if old is not None:
                policy.id, policy.created, policy.alarms = old.id, old.created, old.alarms
            if kind == "TargetTrackingScaling":
                self._put_alarms(policy)
            self._policies[region, resource, name] = policy
        return policy

    def _put_alarms(self, policy: Policy) -> None:
        watched = _watched(policy)
        goal = float(policy.config["TargetValue"])
        prefix = f"TargetTracking-{policy.resource}"
        if not policy.alarms:
            policy.alarms = [f"{prefix}-Alarm{which}-{uuid.uuid4()}" for which in ("High", "Low")]
        high, low = policy.alarms
        description = f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {policy.arn}."
        common = {**watched, "AlarmDescription": description, "AlarmActions": [policy.arn]}
        for name, periods, operator, threshold in (
            (high, 3, "GreaterThanThreshold", goal),
            (low, 15, "LessThanThreshold", goal * _LOW_SHARE),
        ):
            self._cloud.alarms.put_metric_alarm(
                policy.region,
                {
                    **common,
                    "AlarmName": name,
                    "EvaluationPeriods": periods,
                    "ComparisonOperator": operator,
                    "Threshold": threshold,
                },
            )

    def delete_policy(self, region: str, request: Mapping[str, Any]) -> None:
        resource, name = _resource(request), request["PolicyName"]
        with self._lock:
            policy = self._policies.get((region, resource, name))
        if policy is None:
            raise Fault(
                "ObjectNotFoundException",
                f"No scaling policy found for service namespace: {NAMESPACE}, resource "
                f"ID: {resource}, scalable dimension: {DIMENSION}, policy name: {name}",
            )
        self._remove(policy)

    def _remove(self, policy: Policy) -> None:
        with self._lock:
            del self._policies[policy.region, policy.resource, policy.name]
        there = [name for name in policy.alarms if self._cloud.alarms.find(policy.region, name)]
        self._cloud.alarms.delete(policy.region, there)

    def policies(self, region: str) -> list[Policy]:
        with self._lock:
            return [policy for policy in self._policies.values() if policy.region == region]

    # -- what an alarm does -----------------------------------------------------------------------------------------------

    def act(self, alarm: Alarm, action: str, change: Change) -> None:
        """The action of an alarm that names a policy, now and each minute for as long as it stays in that state."""
        with self._lock:
            policy = next((each for each in self._policies.values() if each.arn == action), None)
        if policy is None:
            raise Undeliverable(f"the scaling policy {action} does not exist")
        self._act_again(policy, alarm.region, alarm.name, alarm.state, alarm.transitioned_at)

    def _act_again(self, policy: Policy, region: str, name: str, state: str, since: float) -> None:
        alarm = self._cloud.alarms.find(region, name)
        with self._lock:
            target = self._targets.get((region, policy.resource))
            current_policy = self._policies.get((region, policy.resource, policy.name))
        if alarm is None or (alarm.state, alarm.transitioned_at) != (state, since):
            return  # another state came, and with it another chain of actions or none
        if target is None or current_policy is None or current_policy.id != policy.id:
            return
        self._scale(target, current_policy, alarm)
        again = partial(self._act_again, policy, region, name, state, since)
        self._cloud.events.agenda.after(_REPEAT_SECONDS, again)

    def _scale(self, target: Target, policy: Policy, alarm: Alarm) -> None:
        current = self._cloud.hosting.desired_instances(target.region, *target.variant)
        value = self._cloud.alarms.latest(target.region, alarm.name)
        if current is None or value is None:
            return
        wanted = (
            _steps(policy, alarm, value, current) if policy.type == "StepScaling" else _tracked(policy, value, current)
        )
        if policy.type == "TargetTrackingScaling":
            # Each of the two alarms moves in one direction only.
            high = alarm.name == policy.alarms[0]
            wanted = max(wanted, current) if high else min(wanted, current)
            if not high and not self._all_low(target):
                return
        wanted = min(max(wanted, target.least), target.most)
        if wanted == current or self._resting(target, policy, current, wanted):
            return
        cause = f"monitor alarm {alarm.name} in state {alarm.state} triggered policy {policy.name}"
        self._set(target, current, wanted, cause)

    def _all_low(self, target: Target) -> bool:
        """AWS scales in only when every target tracking policy that may is ready to."""
        with self._lock:
            low = [
                policy.alarms[1]
                for policy in self._policies.values()
                if (policy.region, policy.resource) == (target.region, target.resource)
                and policy.type == "TargetTrackingScaling"
                and not policy.config.get("DisableScaleIn")
            ]
        states = self._cloud.alarms.states(target.region, low)
        return bool(low) and all(states.get(name) == "ALARM" for name in low)

    def _resting(self, target: Target, policy: Policy, current: int, wanted: int) -> bool:
        """Whether a cooldown, a suspension or the policy itself forbids that change now."""
        now, out = self._cloud.events.pace.now(), wanted > current
        if target.suspended.get("DynamicScalingOutSuspended" if out else "DynamicScalingInSuspended"):
            return True
        last = target.scaled_out if out else max(target.scaled_in, target.scaled_out)
        name = "Cooldown" if policy.type == "StepScaling" else "ScaleOutCooldown" if out else "ScaleInCooldown"
        if not out and policy.config.get("DisableScaleIn"):
            return True
        return bool(now - last < policy.config.get(name, _COOLDOWN_SECONDS))

    def _set(self, target: Target, current: int, wanted: int, cause: str) -> None:
        endpoint, variant = target.variant
        now = self._cloud.clock.now()
        activity = {
            "ActivityId": str(uuid.uuid4()),
            "ServiceNamespace": NAMESPACE,
            "ResourceId": target.resource,
            "ScalableDimension": DIMENSION,
            "Description": f"Setting desired instance count to {wanted}.",
            "Cause": cause,
            "StartTime": now,
            "StatusCode": "Successful",
            "StatusMessage": f"Successfully set desired instance count to {wanted}. "
            "Change successfully fulfilled by sagemaker.",
        }
        change = [{"VariantName": variant, "DesiredInstanceCount": wanted}]
        request = {"EndpointName": endpoint, "DesiredWeightsAndCapacities": change}
        try:
            self._cloud.hosting.update_endpoint_weights_and_capacities(target.region, request)
        except Fault as fault:
            # An update is under way. The alarm acts again in a minute.
            activity["StatusCode"] = "Failed"
            activity["StatusMessage"] = f"Failed to set desired instance count to {wanted}. Reason: {fault.message}"
            log.info("%s: %s", target.resource, activity["StatusMessage"])
        else:
            at = self._cloud.events.pace.now()
            if wanted > current:
                target.scaled_out = at
            else:
                target.scaled_in = at
            log.info("%s: %d -> %d instances: %s", target.resource, current, wanted, cause)
        activity["EndTime"] = self._cloud.clock.now()
        with self._lock:
            self._activities.append((target.region, activity))

    def activities(self, region: str) -> list[dict[str, Any]]:
        """Newest first."""
        with self._lock:
            return [activity for home, activity in reversed(self._activities) if home == region]

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._targets.clear()
            self._policies.clear()
            self._activities.clear()


def _no_target(resource: str) -> Fault:
    return Fault(
        "ObjectNotFoundException",
        f"No scalable target found for service namespace: {NAMESPACE}, resource ID: {resource}, "
        f"scalable dimension: {DIMENSION}",
    )


def _resource(request: Mapping[str, Any]) -> str:
    namespace, dimension = request.get("ServiceNamespace"), request.get("ScalableDimension")
    if namespace != NAMESPACE or dimension != DIMENSION:
        raise Fault(
            "ValidationException",
            f"The local cloud scales {DIMENSION} of the namespace {NAMESPACE} only, not {dimension} of {namespace}.",
        )
    resource = str(request.get("ResourceId"))
    if not _RESOURCE.fullmatch(resource):
        raise Fault(
            "ValidationException", f"Unsupported resource ID {resource}: it must be endpoint/NAME/variant/NAME."
        )
    return resource


def _check_steps(config: Mapping[str, Any]) -> None:
    kind = config.get("AdjustmentType")
    if kind not in ("ChangeInCapacity", "PercentChangeInCapacity", "ExactCapacity"):
        raise Fault(
            "ValidationException",
            "AdjustmentType is required: ChangeInCapacity, PercentChangeInCapacity or ExactCapacity.",
        )
    if not config.get("StepAdjustments"):
        raise Fault("ValidationException", "There must be at least one step adjustment.")
    intervals = sorted(_interval(step) for step in config["StepAdjustments"])
    for (_, upper), (lower, _) in itertools.pairwise(intervals):
        if upper != lower:
            raise Fault("ValidationException", "Step adjustment intervals can't overlap or have a gap.")


def _interval(step: Mapping[str, Any]) -> tuple[float, float]:
    return step.get("MetricIntervalLowerBound", -math.inf), step.get("MetricIntervalUpperBound", math.inf)


def _steps(policy: Policy, alarm: Alarm, value: float, current: int) -> int:
    """The capacity that the step asks for which the breach falls into."""
    breach = value - float(alarm.settings["Threshold"])
    for step in policy.config["StepAdjustments"]:
        lower, upper = _interval(step)
        # Above the threshold the lower bound belongs to the step, below it the upper one.
        if (lower <= breach < upper) if breach >= 0 else (lower < breach <= upper):
            amount = step["ScalingAdjustment"]
            if policy.config["AdjustmentType"] == "ExactCapacity":
                return int(amount)
            if policy.config["AdjustmentType"] == "PercentChangeInCapacity":
                exact = current * amount / 100
                # AWS rounds towards zero, and up to one where it would be nothing.
                amount = math.trunc(exact) or int(math.copysign(1, exact))
                least = policy.config.get("MinAdjustmentMagnitude", 1)
                amount = int(math.copysign(max(abs(amount), least), amount))
            return current + int(amount)
    return current


def _tracked(policy: Policy, value: float, current: int) -> int:
    """The capacity at which the metric, which is of one instance, would be at its target."""
    return math.ceil(current * value / float(policy.config["TargetValue"]) - 1e-9)


def _watched(policy: Policy) -> dict[str, Any]:
    """What the alarms of a target tracking policy look at."""
    config = policy.config
    if predefined := config.get("PredefinedMetricSpecification"):
        kind = predefined.get("PredefinedMetricType")
        if kind not in _PREDEFINED:
            raise Fault(
                "ValidationException", f"The local cloud does not measure {kind}; it does {', '.join(_PREDEFINED)}."
            )
        _, endpoint, _, variant = policy.resource.split("/")
        name, statistic, period = _PREDEFINED[kind]
        return {
            "Namespace": "AWS/SageMaker",
            "MetricName": name,
            "Dimensions": [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": variant}],
            "Statistic": statistic,
            "Period": period,
        }
    custom = config.get("CustomizedMetricSpecification")
    if not custom:
        raise Fault(
            "ValidationException", "A PredefinedMetricSpecification or a CustomizedMetricSpecification is required."
        )
    if custom.get("Metrics"):
        queries = []
        for query in custom["Metrics"]:
            given = dict(query)
            if "MetricStat" in given:
                given["MetricStat"] = {"Period": 60, **given["MetricStat"]}
            else:
                given["Period"] = 60
            queries.append(given)
        return {"Metrics": queries}
    names = ("Namespace", "MetricName", "Statistic")
    if absent := [name for name in names if not custom.get(name)]:
        raise Fault("ValidationException", f"CustomizedMetricSpecification needs {', '.join(absent)}.")
    given = {name: custom[name] for name in (*names, "Dimensions", "Unit") if custom.get(name)}
    return {**given, "Period": 60}


# --- the API -----------------------------------------------------------------------------------------------------------------


class ScalingResponse(BaseResponse):  # type: ignore[misc]
    """One request to Application Auto Scaling."""

    scaling: ClassVar[Scaling]

    def __init__(self) -> None:
        super().__init__(service_name="application-autoscaling")
        self.automated_parameter_parsing = True

    def call_action(self) -> Any:
        action = self._get_action()
        if action not in _OPERATIONS:
            return refused(self, f"Application Auto Scaling {action} is not implemented by the local cloud.")
        return super().call_action()

    def _request(self) -> dict[str, Any]:
        validation.check("application-autoscaling", self._get_action(), self.params)
        request: dict[str, Any] = self.params
        return request

    def register_scalable_target(self) -> ActionResult:
        return ActionResult({"ScalableTargetARN": self.scaling.register(self.region, self._request()).arn})

    def deregister_scalable_target(self) -> ActionResult:
        self.scaling.deregister(self.region, self._request())
        return EmptyResult()

    def describe_scalable_targets(self) -> ActionResult:
        request = self._request()
        wanted = request.get("ResourceIds")
        found = [
            {
                "ServiceNamespace": NAMESPACE,
                "ResourceId": target.resource,
                "ScalableDimension": DIMENSION,
                "MinCapacity": target.least,
                "MaxCapacity": target.most,
                "RoleARN": f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
                "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint",
                "CreationTime": target.created,
                "SuspendedState": {
                    "DynamicScalingInSuspended": False,
                    "DynamicScalingOutSuspended": False,
                    "ScheduledScalingSuspended": False,
                    **target.suspended,
                },
                "ScalableTargetARN": target.arn,
            }
            for target in self.scaling.targets(self.region)
            if not wanted or target.resource in wanted
        ]
        return ActionResult(_page("ScalableTargets", found, request))

    def put_scaling_policy(self) -> ActionResult:
        policy = self.scaling.put_policy(self.region, self._request())
        return ActionResult({"PolicyARN": policy.arn, "Alarms": self._alarms(policy)})

    def delete_scaling_policy(self) -> ActionResult:
        self.scaling.delete_policy(self.region, self._request())
        return EmptyResult()

    def describe_scaling_policies(self) -> ActionResult:
        request = self._request()
        names, resource = request.get("PolicyNames"), request.get("ResourceId")
        found = [
            {
                "PolicyARN": policy.arn,
                "PolicyName": policy.name,
                "ServiceNamespace": NAMESPACE,
                "ResourceId": policy.resource,
                "ScalableDimension": DIMENSION,
                "PolicyType": policy.type,
                f"{policy.type}PolicyConfiguration": policy.config,
                "Alarms": self._alarms(policy),
                "CreationTime": policy.created,
            }
            for policy in self.scaling.policies(self.region)
            if (not names or policy.name in names) and resource in (None, policy.resource)
        ]
        return ActionResult(_page("ScalingPolicies", found, request))

    def _alarms(self, policy: Policy) -> list[dict[str, str]]:
        prefix = f"arn:aws:cloudwatch:{policy.region}:{ACCOUNT}:alarm:"
        return [{"AlarmName": name, "AlarmARN": f"{prefix}{name}"} for name in policy.alarms]

    def describe_scaling_activities(self) -> ActionResult:
        request = self._request()
        resource = request.get("ResourceId")
        found = [each for each in self.scaling.activities(self.region) if resource in (None, each["ResourceId"])]
        return ActionResult(_page("ScalingActivities", found, request))


_OPERATIONS = frozenset(
    "RegisterScalableTarget DeregisterScalableTarget DescribeScalableTargets PutScalingPolicy DeleteScalingPolicy "
    "DescribeScalingPolicies DescribeScalingActivities".split()
)


def _page(name: str, found: Sequence[Any], request: Mapping[str, Any]) -> dict[str, Any]:
    token = request.get("NextToken") or "0"
    if not token.isdigit():
        raise Fault("InvalidNextTokenException", "The next token is invalid.")
    start, most = int(token), request.get("MaxResults") or 50
    answer: dict[str, Any] = {name: list(found[start : start + most])}
    return {**answer, "NextToken": str(start + most)} if start + most < len(found) else answer


def register(scaling: Scaling) -> None:
    """Put our Application Auto Scaling in the place of moto's, before its first request. A second call changes nothing."""
    if getattr(applicationautoscaling_backends.backend, "scaling", None) is scaling:
        return
    response = type("RegisteredScalingResponse", (ScalingResponse,), {"scaling": scaling})
    dispatch: Callable[..., Any] = response.dispatch  # type: ignore[attr-defined]
    urls = types.SimpleNamespace(url_bases=url_bases, url_paths={"{0}/$": dispatch})
    applicationautoscaling_backends.backend = type(
        "RegisteredScalingBackend", (ApplicationAutoscalingBackend,), {"scaling": scaling, "_url_module": urls}
    )
    applicationautoscaling_backends.clear()
