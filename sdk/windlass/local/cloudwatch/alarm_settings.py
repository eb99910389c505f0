"""What an alarm is, and how a request to PutMetricAlarm or PutCompositeAlarm becomes one.

settings, condition = metric_alarm(request)        # raises AWS's faults
settings, rule = composite_alarm(request)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from windlass.local.cloud import ACCOUNT
from windlass.local.cloudwatch.alarm_evaluation import MISSING, OPERATORS, Test
from windlass.local.cloudwatch.alarm_rules import AlarmRule, RuleError
from windlass.local.cloudwatch.metric_queries import (
    MetricStat,
    Query,
    dimensions_of,
    parse_queries,
    valid_period,
    valid_statistic,
    valid_unit,
)
from windlass.local.cloudwatch.metric_store import Metric
from windlass.local.cloudwatch.statistics import BASIC
from windlass.local.faults import Fault

_DAY = 86_400
_MOST_ACTIONS = 5

# Parameters that CloudWatch has and we do not: refused, because an alarm without them would be another alarm.
_UNSUPPORTED = (
    "ThresholdMetricId",
    "WarmUpConfiguration",
    "EvaluationCriteria",
    "EvaluationInterval",
    "ActionConfiguration",
)
_UNSUPPORTED_COMPOSITE = ("ActionConfiguration",)
_SUPPRESSION = ("ActionsSuppressor", "ActionsSuppressorWaitPeriod", "ActionsSuppressorExtensionPeriod")

_SIMPLE = ("MetricName", "Namespace", "Statistic", "ExtendedStatistic", "Dimensions", "Period", "Unit")


@dataclass
class Condition:
    """What a metric alarm watches, ready to evaluate: the query whose result is compared, and all it refers to."""

    queries: list[Query]
    watched: Query
    period: int
    test: Test

    @property
    def stat(self) -> MetricStat | None:
        return self.watched.stat

    @property
    def metrics(self) -> list[Metric]:
        return [query.stat.metric for query in self.queries if query.stat is not None]

    @property
    def step(self) -> int:
        """How often AWS evaluates: a high-resolution alarm with each of its periods, others each minute."""
        return min(self.period, 60)


@dataclass
class Suppression:
    """How a suppressor holds back the actions of a composite alarm. Times are of the pace.

    Attributes:
        held: the change whose actions wait.
        since: when that change came.
        active: whether the suppressor was in ALARM when it was last looked at.
        ended: when it left it; minus infinity before.
        by: Alarm, WaitPeriod or ExtensionPeriod while something is held.
    """

    held: Any = None
    since: float = 0.0
    active: bool = False
    ended: float = -math.inf
    by: str | None = None


@dataclass
class Alarm:
    """One alarm with its state.

    Attributes:
        settings: what the user put, by the names of PutMetricAlarm or PutCompositeAlarm, with AWS's defaults.
        condition: of a metric alarm.
        rule: of a composite alarm.
    """

    region: str
    name: str
    settings: dict[str, Any]
    configured_at: float
    condition: Condition | None = None
    rule: AlarmRule | None = None
    tags: dict[str, str] = field(default_factory=dict)
    state: str = "INSUFFICIENT_DATA"
    reason: str = "Unchecked: Initial alarm creation"
    reason_data: str | None = None
    updated_at: float = 0.0
    transitioned_at: float = 0.0
    evaluation_state: str | None = None
    seen: tuple[Any, ...] = ()
    suppression: Suppression = field(default_factory=lambda: Suppression())

    @property
    def suppressor(self) -> str | None:
        """The name of the alarm that holds back the actions of this one."""
        given = self.settings.get("ActionsSuppressor")
        return str(given).split(":alarm:", 1)[-1] if given else None

    @property
    def arn(self) -> str:
        return f"arn:aws:cloudwatch:{self.region}:{ACCOUNT}:alarm:{self.name}"

    @property
    def kind(self) -> str:
        return "MetricAlarm" if self.rule is None else "CompositeAlarm"

    def actions(self, state: str) -> list[str]:
        key = {"OK": "OKActions", "ALARM": "AlarmActions"}.get(state, "InsufficientDataActions")
        return list(self.settings.get(key, []))

    def describe(self) -> dict[str, Any]:
        """As DescribeAlarms shows it; times are seconds since the epoch."""
        answer = {
            "AlarmArn": self.arn,
            **self.settings,
            "AlarmConfigurationUpdatedTimestamp": self.configured_at,
            "StateValue": self.state,
            "StateReason": self.reason,
            "StateUpdatedTimestamp": self.updated_at,
            "StateTransitionedTimestamp": self.transitioned_at,
        }
        if self.reason_data is not None:
            answer["StateReasonData"] = self.reason_data
        if self.suppression.by is not None:
            answer["ActionsSuppressedBy"] = self.suppression.by
            answer["ActionsSuppressedReason"] = f"Actions suppressed by {self.suppression.by}"
        if self.evaluation_state is not None:
            answer["EvaluationState"] = self.evaluation_state
        return answer


@dataclass(frozen=True)
class HistoryItem:
    region: str
    alarm: str
    kind: str
    at: float
    type: str
    summary: str
    data: str

    def describe(self) -> dict[str, Any]:
        return {
            "AlarmName": self.alarm,
            "AlarmType": self.kind,
            "Timestamp": self.at,
            "HistoryItemType": self.type,
            "HistorySummary": self.summary,
            "HistoryData": self.data,
        }


def metric_alarm(request: Mapping[str, Any]) -> tuple[dict[str, Any], Condition]:
    """(the settings as DescribeAlarms shows them, the condition) of PutMetricAlarm. Raises AWS's faults."""
    _require(request, "AlarmName")
    for name in _UNSUPPORTED:
        if request.get(name) is not None:
            raise Fault("ValidationError", f"{name} is not implemented by the local cloud.")
    if "WallClockWindow" in (request.get("EvaluationWindow") or {}):
        raise Fault("ValidationError", "EvaluationWindow.WallClockWindow is not implemented by the local cloud.")
    condition = _condition(request)
    settings = _common_settings(request)
    settings["EvaluationPeriods"] = condition.test.periods
    settings["ComparisonOperator"] = condition.test.operator
    settings["Threshold"] = condition.test.threshold
    for name in ("DatapointsToAlarm", "TreatMissingData", "EvaluateLowSampleCountPercentile", "EvaluationWindow"):
        if request.get(name) is not None:
            settings[name] = request[name]
    if request.get("Metrics"):
        settings["Metrics"] = [{"ReturnData": True, **query} for query in request["Metrics"]]
    else:
        settings |= {name: request[name] for name in _SIMPLE if request.get(name) is not None}
        settings.setdefault("Dimensions", [])
    return settings, condition


def composite_alarm(request: Mapping[str, Any]) -> tuple[dict[str, Any], AlarmRule]:
    """(the settings as DescribeAlarms shows them, the rule) of PutCompositeAlarm. Raises AWS's faults."""
    _require(request, "AlarmName")
    _require(request, "AlarmRule")
    for name in _UNSUPPORTED_COMPOSITE:
        if request.get(name) is not None:
            raise Fault("ValidationError", f"{name} is not implemented by the local cloud.")
    try:
        rule = AlarmRule.parse(request["AlarmRule"])
    except RuleError as error:
        raise Fault("ValidationError", f"AlarmRule is not valid: {error}.") from None
    settings = {**_common_settings(request), "AlarmRule": request["AlarmRule"]}
    given = [name for name in _SUPPRESSION if request.get(name) is not None]
    if given and len(given) < len(_SUPPRESSION):
        absent = next(name for name in _SUPPRESSION if name not in given)
        raise Fault("ValidationError", f"{absent} is required when {given[0]} is given.")
    settings |= {name: request[name] for name in given}
    return settings, rule


def _require(request: Mapping[str, Any], name: str) -> None:
    if request.get(name) in (None, ""):
        member = name[0].lower() + name[1:]
        raise Fault(
            "ValidationError",
            f"1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null",
        )


def _common_settings(request: Mapping[str, Any]) -> dict[str, Any]:
    name, description = str(request["AlarmName"]), request.get("AlarmDescription")
    if len(name) > 255:
        raise Fault("ValidationError", "The value of parameter AlarmName must not be longer than 255 characters.")
    if description is not None and len(description) > 1024:
        raise Fault(
            "ValidationError", "The value of parameter AlarmDescription must not be longer than 1024 characters."
        )
    settings: dict[str, Any] = {"AlarmName": name}
    if description is not None:
        settings["AlarmDescription"] = description
    settings["ActionsEnabled"] = request.get("ActionsEnabled") is not False
    for key in ("OKActions", "AlarmActions", "InsufficientDataActions"):
        actions = list(request.get(key) or [])
        if len(actions) > _MOST_ACTIONS:
            raise Fault("ValidationError", f"The collection {key} must not have a size greater than {_MOST_ACTIONS}.")
        for action in actions:
            if not str(action).startswith("arn:") or str(action).count(":") < 5:
                raise Fault("ValidationError", f"Invalid arn syntax: {action}")
        settings[key] = actions
    return settings


def _condition(request: Mapping[str, Any]) -> Condition:
    operator = request.get("ComparisonOperator")
    if operator not in OPERATORS:
        raise Fault(
            "ValidationError",
            f"1 validation error detected: Value '{operator}' at 'comparisonOperator' failed to satisfy constraint: "
            f"Member must satisfy enum value set: [{', '.join(OPERATORS)}]",
        )
    if request.get("Threshold") is None:
        raise Fault("ValidationError", "The parameter Threshold is required.")
    periods = _count(request, "EvaluationPeriods")
    to_alarm = periods if request.get("DatapointsToAlarm") is None else _count(request, "DatapointsToAlarm")
    if to_alarm > periods:
        raise Fault(
            "ValidationError", f"DatapointsToAlarm ({to_alarm}) must not be greater than EvaluationPeriods ({periods})."
        )
    missing = request.get("TreatMissingData") or "missing"
    if missing not in MISSING:
        raise Fault(
            "ValidationError",
            f"Option {missing} is not supported. Supported options for parameter TreatMissingData are {', '.join(MISSING)}.",
        )
    low_samples = request.get("EvaluateLowSampleCountPercentile")
    if low_samples not in (None, "evaluate", "ignore"):
        raise Fault(
            "ValidationError",
            f"Option {low_samples} is not supported. "
            "Supported options for parameter EvaluateLowSampleCountPercentile are evaluate and ignore.",
        )
    queries, watched, period = _watched(request)
    longest = 7 * _DAY if period >= 3600 else _DAY
    if period * periods > longest:
        raise Fault(
            "ValidationError",
            f"Metrics cannot be checked across more than {longest // _DAY} days (EvaluationPeriods * Period).",
        )
    test = Test(
        str(operator),
        float(request["Threshold"]),
        periods,
        to_alarm,
        missing,
        out_of=request.get("DatapointsToAlarm") is not None,
        ignore_low_samples=low_samples == "ignore",
    )
    return Condition(queries, watched, period, test)


def _count(request: Mapping[str, Any], name: str) -> int:
    value = request.get(name)
    if value is None:
        raise Fault("ValidationError", f"The parameter {name} is required.")
    if not isinstance(value, int) or value < 1:
        raise Fault("ValidationError", f"The parameter {name} must be at least 1; it is {value}.")
    return value


def _watched(request: Mapping[str, Any]) -> tuple[list[Query], Query, int]:
    """(all queries, the one that is compared with the threshold, the period in seconds)"""
    if request.get("Metrics"):
        if both := [name for name in _SIMPLE if request.get(name)]:
            raise Fault("InvalidParameterCombination", f"The parameters Metrics and {both[0]} are mutually exclusive.")
        queries = parse_queries(request["Metrics"], "Metrics")
        if any(query.math and query.math.searches for query in queries):
            raise Fault("ValidationError", "SEARCH is not supported on Metric Alarms.")
        returned = [query for query in queries if query.returned]
        if len(returned) != 1:
            raise Fault(
                "ValidationError", f"Exactly one element of the metrics list should return data; {len(returned)} do."
            )
        periods = {query.stat.period if query.stat else query.period for query in queries} - {None}
        if len(periods) != 1:
            raise Fault("ValidationError", "Exactly one period must be used by all elements of the metrics list.")
        period = next(iter(periods))
        assert period is not None
        return queries, returned[0], _alarm_period(period, "Metrics")
    for name in ("MetricName", "Namespace", "Period"):
        if request.get(name) is None:
            raise Fault("ValidationError", f"The parameter {name} is required when Metrics is not given.")
    basic, extended = request.get("Statistic"), request.get("ExtendedStatistic")
    if (basic is None) == (extended is None):
        raise Fault("ValidationError", "Exactly one of the parameters Statistic and ExtendedStatistic is required.")
    if basic is not None and basic not in BASIC:
        raise Fault(
            "ValidationError",
            f"1 validation error detected: Value '{basic}' at 'statistic' failed to satisfy constraint: "
            f"Member must satisfy enum value set: [{', '.join(BASIC)}]",
        )
    unit = request.get("Unit")
    query = Query(
        "m1",
        MetricStat(
            Metric.of(
                request["Namespace"],
                request["MetricName"],
                dimensions_of(request.get("Dimensions") or [], "Dimensions"),
            ),
            _alarm_period(request["Period"], "Period"),
            valid_statistic(basic or extended, "Statistic" if basic else "ExtendedStatistic"),
            None if unit is None else valid_unit(unit, "Unit"),
        ),
        None,
        None,
        None,
        returned=True,
    )
    return [query], query, int(request["Period"])


def _alarm_period(period: Any, where: str) -> int:
    if valid_period(period, where) < 10:
        raise Fault(
            "ValidationError", f"The period of an alarm must be 10, 20, 30 or a multiple of 60; it is {period}."
        )
    return int(period)
