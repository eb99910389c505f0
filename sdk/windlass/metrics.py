"""The metric catalogue: what each metric is called, where it lies, its unit and what its absence means. Pure.

    metrics.ACCURACY.dimensions        # ('EndpointName', 'VariantName', 'ModelVersion')
    metrics.CATALOGUE["p99_latency"]   # by the name that an SLO uses

Alarms and dashboards derive from these records, so a metric is named once. Each unique set of dimension values is billed as a
metric of its own; that is why there are so few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

NAMESPACE = "Windlass"
"""Ours. The ``AWS/`` namespaces are SageMaker's own and cannot be written to."""

MAX_VALUES_PER_DATUM = 150
MAX_DATUMS_PER_CALL = 1000
"""PutMetricData's limits (CloudWatch API reference); more is refused, not truncated."""

UNITS = (
    "None",
    "Seconds",
    "Microseconds",
    "Milliseconds",
    "Bytes",
    "Kilobytes",
    "Megabytes",
    "Gigabytes",
    "Terabytes",
    "Bits",
    "Kilobits",
    "Megabits",
    "Gigabits",
    "Terabits",
    "Percent",
    "Count",
    "Bytes/Second",
    "Kilobytes/Second",
    "Megabytes/Second",
    "Gigabytes/Second",
    "Terabytes/Second",
    "Bits/Second",
    "Kilobits/Second",
    "Megabits/Second",
    "Gigabits/Second",
    "Terabits/Second",
    "Count/Second",
)
"""CloudWatch's (API reference, MetricDatum). The local cloud keeps places in this order: add at the end."""


@dataclass(frozen=True)
class Metric:
    """One metric and how it is judged.

    Attributes:
        name: the CloudWatch metric name.
        namespace: ours, or SageMaker's.
        unit: a CloudWatch unit.
        dimensions: names, in order.
        statistic: how points are summed up when it is judged: ``Average``, ``Sum``, ``p99``...
        bad_when: on which side of its bound it is bad.
        missing: what a period without data means for its alarm (CloudWatch's TreatMissingData).
        scale: stored value for one unit of what the user gives (SageMaker stores latency in microseconds, users say ms).
    """

    name: str
    namespace: str
    unit: str
    dimensions: tuple[str, ...]
    statistic: str
    bad_when: Literal["above", "below"]
    missing: Literal["notBreaching", "ignore", "breaching", "missing"]
    scale: float = 1.0


_VARIANT = ("EndpointName", "VariantName")
_VERSION = (*_VARIANT, "ModelVersion")
# SageMaker adds the config's name on the fleets of a guarded deployment, so that the new one is judged alone.
_FLEET = (*_VARIANT, "EndpointConfigName")

ACCURACY = Metric("Accuracy", NAMESPACE, "None", _VERSION, "Average", "below", "ignore")
ACCURACY_LOWER_BOUND = Metric("AccuracyLowerBound", NAMESPACE, "None", _VERSION, "Average", "below", "ignore")
SAMPLE_COUNT = Metric("SampleCount", NAMESPACE, "Count", _VERSION, "Sum", "below", "ignore")
LABEL_COVERAGE = Metric("LabelCoverage", NAMESPACE, "Percent", _VERSION, "Average", "below", "breaching")
LABEL_LAG = Metric("LabelLag", NAMESPACE, "Seconds", _VERSION, "Average", "above", "ignore")
# By variant only: a caller cannot know which version answered while traffic shifts.
CLIENT_LATENCY = Metric("ClientLatency", NAMESPACE, "Milliseconds", _VARIANT, "p99", "above", "notBreaching")

MODEL_LATENCY = Metric("ModelLatency", "AWS/SageMaker", "Microseconds", _FLEET, "p99", "above", "notBreaching", 1000.0)
SERVER_ERRORS = Metric("Invocation5XXErrors", "AWS/SageMaker", "Count", _FLEET, "Average", "above", "notBreaching")
INVOCATIONS = Metric("Invocations", "AWS/SageMaker", "Count", _VARIANT, "Sum", "above", "notBreaching")

# What the model server counts and measures in the container, and writes as lines of the embedded metric format.
REQUESTS = Metric("Requests", NAMESPACE, "Count", _VARIANT, "Sum", "above", "notBreaching")
MODEL_ERRORS = Metric("ServerErrors", NAMESPACE, "Count", _VARIANT, "Sum", "above", "notBreaching")
REFUSED = Metric("Refused", NAMESPACE, "Count", _VARIANT, "Sum", "above", "notBreaching")
TOTAL_TIME = Metric("TotalTime", NAMESPACE, "Milliseconds", _VARIANT, "p99", "above", "notBreaching")
QUEUE_TIME = Metric("QueueTime", NAMESPACE, "Milliseconds", _VARIANT, "p99", "above", "notBreaching")
MODEL_TIME = Metric("ModelTime", NAMESPACE, "Milliseconds", _VARIANT, "p99", "above", "notBreaching")
BATCH_SIZE = Metric("BatchSize", NAMESPACE, "Count", _VARIANT, "Average", "below", "notBreaching")
SERVER = (REQUESTS, MODEL_ERRORS, REFUSED, TOTAL_TIME, QUEUE_TIME, MODEL_TIME, BATCH_SIZE)

CATALOGUE = {"accuracy": ACCURACY, "p99_latency": MODEL_LATENCY, "error_rate": SERVER_ERRORS}
"""The metrics that an SLO can promise, by the name users give."""


def wilson_lower_bound(right: int, total: int, z: float = 1.96) -> float:
    """Lower end of the Wilson score interval for a share; ``z=1.96`` is 95 % confidence.

    >>> round(wilson_lower_bound(95, 100), 3)
    0.888

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212. Unlike the normal interval it holds near 0 and 1.
    """
    share, square = right / total, z * z
    centre = share + square / (2 * total)
    margin = z * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return max(0.0, (centre - margin) / (1 + square / total))
