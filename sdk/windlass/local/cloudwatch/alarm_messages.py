"""How CloudWatch words what happens to an alarm: state reasons, events, notifications.

The shapes are those of the CloudWatch User Guide ("Alarm events and EventBridge", "Notifying users on alarm changes").
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from windlass.local.cloud import ACCOUNT
from windlass.local.cloudwatch.alarm_evaluation import Verdict
from windlass.local.cloudwatch.alarm_settings import Alarm, Condition
from windlass.local.cloudwatch.metric_queries import Query
from windlass.local.cloudwatch.statistics import BASIC


def timestamp(seconds: float) -> str:
    """As CloudWatch writes it into events, notifications and reasons: ``2022-08-26T03:46:29.897+0000``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "+0000")


def reason_data(condition: Condition, verdict: Verdict, now: float) -> str:
    data: dict[str, Any] = {"version": "1.0", "queryDate": timestamp(now)}
    if verdict.used:
        data["startDate"] = timestamp(verdict.used[0].start)
    if condition.stat is not None:
        data["statistic"] = condition.stat.statistic.name
        if condition.stat.unit is not None:
            data["unit"] = condition.stat.unit
    data["period"] = condition.period
    data["recentDatapoints"] = [point.value for point in verdict.used]
    data["threshold"] = condition.test.threshold
    data["evaluatedDatapoints"] = [
        without_none({"timestamp": timestamp(point.start), "sampleCount": point.samples, "value": point.value})
        for point in reversed(verdict.used)
    ]
    return json.dumps(data)


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def history_state(value: str, reason: str, reason_data: str | None) -> dict[str, Any]:
    parsed = None if reason_data is None else json.loads(reason_data)
    return without_none({"stateValue": value, "stateReason": reason, "stateReasonData": parsed})


def event_state(value: str, reason: str, reason_data: str | None, at: float) -> dict[str, Any]:
    return without_none({"value": value, "reason": reason, "reasonData": reason_data, "timestamp": timestamp(at)})


def event_configuration(alarm: Alarm) -> dict[str, Any]:
    settings = alarm.settings
    configuration: dict[str, Any] = {"description": settings.get("AlarmDescription")}
    if alarm.condition is None:
        configuration["alarmRule"] = settings["AlarmRule"]
    else:
        configuration["metrics"] = [_event_metric(query, alarm.condition) for query in alarm.condition.queries]
    return without_none(configuration)


def _event_metric(query: Query, condition: Condition) -> dict[str, Any]:
    # AWS makes up an id for the metric of a simple alarm; ours is the same each time for the same metric.
    alone = len(condition.queries) == 1
    made_up = str(uuid.uuid5(uuid.NAMESPACE_OID, repr(query.stat and query.stat.metric)))
    metric: dict[str, Any] = {"id": made_up if alone else query.id, "returnData": query.returned}
    if query.label is not None:
        metric["label"] = query.label
    if query.math is not None:
        metric["expression"] = query.math.text
    if query.stat is not None:
        metric["metricStat"] = without_none(
            {
                "metric": {
                    "namespace": query.stat.metric.namespace,
                    "name": query.stat.metric.name,
                    "dimensions": dict(query.stat.metric.dimensions),
                },
                "period": query.stat.period,
                "stat": query.stat.statistic.name,
                "unit": query.stat.unit,
            }
        )
    return metric


def subject_of(alarm: Alarm) -> str:
    """SNS allows 100 characters."""
    subject = f'{alarm.state}: "{alarm.name}" in {region_name(alarm.region)}'
    return subject if len(subject) <= 100 else subject[:97] + "..."


def notification(alarm: Alarm, before: str) -> dict[str, Any]:
    settings = alarm.settings
    message: dict[str, Any] = {
        "AlarmName": alarm.name,
        "AlarmDescription": settings.get("AlarmDescription"),
        "AWSAccountId": ACCOUNT,
        "AlarmConfigurationUpdatedTimestamp": timestamp(alarm.configured_at),
        "NewStateValue": alarm.state,
        "NewStateReason": alarm.reason,
        "StateChangeTime": timestamp(alarm.transitioned_at),
        "Region": region_name(alarm.region),
        "AlarmArn": alarm.arn,
        "OldStateValue": before,
        "OKActions": settings["OKActions"],
        "AlarmActions": settings["AlarmActions"],
        "InsufficientDataActions": settings["InsufficientDataActions"],
    }
    if alarm.condition is None:
        return {**message, "AlarmRule": settings["AlarmRule"], "NewStateReasonData": alarm.reason_data}
    trigger: dict[str, Any] = {
        "Period": alarm.condition.period,
        "EvaluationPeriods": settings["EvaluationPeriods"],
        "DatapointsToAlarm": alarm.condition.test.to_alarm,
        "ComparisonOperator": settings["ComparisonOperator"],
        "Threshold": settings["Threshold"],
        "TreatMissingData": settings.get("TreatMissingData", "missing"),
        "EvaluateLowSampleCountPercentile": settings.get("EvaluateLowSampleCountPercentile", ""),
    }
    if "Metrics" in settings:
        trigger["Metrics"] = settings["Metrics"]
    else:
        trigger |= {
            "MetricName": settings["MetricName"],
            "Namespace": settings["Namespace"],
            "Unit": settings.get("Unit"),
            "Dimensions": [{"value": each["Value"], "name": each["Name"]} for each in settings["Dimensions"]],
        }
        if "Statistic" in settings:
            trigger |= {"StatisticType": "Statistic", "Statistic": _SHOUTED[settings["Statistic"]]}
        else:
            trigger |= {"StatisticType": "ExtendedStatistic", "ExtendedStatistic": settings["ExtendedStatistic"]}
    return {**message, "Trigger": trigger}


# Notifications, unlike the API, write statistics in capitals.
_SHOUTED = {name: "SAMPLE_COUNT" if name == "SampleCount" else name.upper() for name in BASIC}


@cache
def region_name(region: str) -> str:
    """``us-east-1`` -> ``US East (N. Virginia)``; the region itself where botocore does not know it."""
    from botocore.session import Session

    for partition in Session().get_data("endpoints")["partitions"]:
        if region in partition["regions"]:
            return str(partition["regions"][region]["description"])
    return region
