"""What PutMetricData takes, checked as AWS checks it.

    store.put_many(region, parse_metric_data(request, clock.now()))      # raises AWS's faults, each naming the member

Agents send hundreds of data in a call, nearly all of them one plain value of a metric seen before, so those take a short way.
"""

from __future__ import annotations

import binascii
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from botocore.utils import parse_timestamp

from windlass.local.cloudwatch.metric_queries import dimensions_of, valid_unit
from windlass.local.cloudwatch.metric_store import Datum, Metric
from windlass.local.faults import Fault
from windlass.metrics import UNITS

_MOST_DATA = 1000
_MOST_VALUES = 150
_LARGEST_VALUE = 2.0**360
_NUMBERS = (float, int)
_OLDEST_SECONDS, _NEWEST_SECONDS = 14 * 86_400, 2 * 3600


def parse_metric_data(request: Mapping[str, Any], now: float) -> list[Datum]:
    """The data of a request to PutMetricData, also those of its EntityMetricData."""
    namespace = str(request["Namespace"])
    if len(namespace) > 255 or namespace.startswith((":", "AWS/")):
        raise Fault("InvalidParameterValue", f"The value {namespace} for parameter Namespace is invalid.")
    given = _numbered(request.get("MetricData"), "MetricData")
    for number, entity in enumerate(request.get("EntityMetricData") or [], 1):
        given += _numbered(entity.get("MetricData"), f"EntityMetricData.member.{number}.MetricData")
    if not given:
        raise Fault("MissingParameter", "The parameter MetricData is required.")
    if len(given) > _MOST_DATA:
        raise Fault(
            "InvalidParameterValue", f"The collection MetricData must not have a size greater than {_MOST_DATA}."
        )
    oldest, newest = now - _OLDEST_SECONDS, now + _NEWEST_SECONDS
    return [
        _plain(namespace, datum, now, oldest, newest) or datum_of(namespace, datum, where, now)
        for where, datum in given
    ]


def _plain(namespace: str, given: Mapping[str, Any], now: float, oldest: float, newest: float) -> Datum | None:
    """A datum that is one number and has nothing wrong; None for any other, which the long way reads or refuses."""
    value: Any = given.get("Value")
    at, resolution = given.get("Timestamp", now), given.get("StorageResolution", 60)
    if (
        type(value) not in _NUMBERS
        or not -_LARGEST_VALUE <= value <= _LARGEST_VALUE
        or type(at) not in _NUMBERS
        or not oldest <= at <= newest
        or (resolution != 60 and resolution != 1)
        or "Values" in given
        or "StatisticValues" in given
    ):
        return None
    unit, name = given.get("Unit", "None"), given.get("MetricName")
    if unit not in UNITS or not name:
        return None
    try:
        metric = _known_metric(
            namespace, name, tuple([(each["Name"], each["Value"]) for each in given.get("Dimensions") or ()])
        )
    except (Fault, KeyError, TypeError):
        return None
    return Datum(metric, at, ((value, 1.0),), None, unit, resolution)


@lru_cache(maxsize=65_536)
def _known_metric(namespace: str, name: str, dimensions: tuple[tuple[str, str], ...]) -> Metric:
    pairs = [{"Name": key, "Value": value} for key, value in dimensions]
    return datum_of(namespace, {"MetricName": name, "Dimensions": pairs, "Value": 0}, "MetricData", 0).metric


def _numbered(data: Sequence[Any] | None, where: str) -> list[tuple[str, Any]]:
    return [(f"{where}.member.{number}", datum) for number, datum in enumerate(data or [], 1)]


@contextlib.contextmanager
def as_fault(code: str, message: str) -> Iterator[None]:
    """Turn the errors of malformed text into a fault."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OverflowError, binascii.Error) as error:
        raise Fault(code, message) from error


def seconds_of(value: Any, where: str) -> float:
    """A timestamp of either protocol, as seconds since the epoch."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, datetime):
        # moto's query parser gives times in UTC, without saying so.
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    with as_fault("InvalidParameterValue", f"The value {value} for parameter {where} is not a valid timestamp."):
        return float(parse_timestamp(value).timestamp())
    raise AssertionError("unreachable")


def _number(value: Any, where: str) -> float:
    """A double of either protocol: JSON has no NaN, so clients write it as text."""
    with as_fault("InvalidParameterValue", f"The value {value} for parameter {where} is invalid."):
        number = float(value)
        if math.isfinite(number) and abs(number) <= _LARGEST_VALUE:
            return number
    raise Fault("InvalidParameterValue", f"The value {value} for parameter {where} is invalid.")


def datum_of(namespace: str, given: Mapping[str, Any], where: str, now: float) -> Datum:
    """One MetricDatum, checked as AWS checks it."""
    name = given.get("MetricName")
    if not name:
        raise Fault("MissingParameter", f"The parameter {where}.MetricName is required.")
    if len(name) > 255 or not name.isascii():
        raise Fault("InvalidParameterValue", f"The value {name} for parameter {where}.MetricName is invalid.")
    at = now
    if given.get("Timestamp") is not None:
        at = seconds_of(given["Timestamp"], f"{where}.Timestamp")
        if at < now - _OLDEST_SECONDS:
            raise Fault(
                "InvalidParameterValue",
                f"The parameter {where}.Timestamp must specify a time within the past two weeks.",
            )
        if at > now + _NEWEST_SECONDS:
            raise Fault(
                "InvalidParameterValue",
                f"The parameter {where}.Timestamp must specify a time no more than two hours in the future.",
            )
    resolution = given.get("StorageResolution") or 60
    if resolution not in (1, 60):
        raise Fault(
            "InvalidParameterValue", f"The parameter {where}.StorageResolution must be 1 or 60; it is {resolution}."
        )
    unit = given.get("Unit") or "None"
    if unit != "None":
        valid_unit(unit, f"{where}.Unit")
    dimensions = given.get("Dimensions")
    metric = Metric.of(namespace, name, dimensions_of(dimensions, f"{where}.Dimensions") if dimensions else {})
    samples, summary = _samples(given, where)
    return Datum(metric, at, samples, summary, unit, resolution)


def _samples(
    given: Mapping[str, Any], where: str
) -> tuple[tuple[tuple[float, float], ...], tuple[float, float, float, float] | None]:
    """(samples, summary) of a datum: from exactly one of Value, Values and StatisticValues."""
    present = [name for name in ("Value", "Values", "StatisticValues") if given.get(name) not in (None, [])]
    if len(present) > 1:
        raise Fault(
            "InvalidParameterCombination",
            f"The parameters {where}.{present[0]} and {where}.{present[1]} are mutually exclusive and you have specified both.",
        )
    if not present:
        raise Fault(
            "MissingParameter",
            f"At least one of the parameters {where}.Value, {where}.Values or {where}.StatisticValues must be specified.",
        )
    if present == ["Value"]:
        return ((_number(given["Value"], f"{where}.Value"), 1.0),), None
    if present == ["Values"]:
        return _counted(given["Values"], given.get("Counts"), where), None
    return (), _summary(given["StatisticValues"], f"{where}.StatisticValues")


def _counted(values: Sequence[Any], counts: Sequence[Any] | None, where: str) -> tuple[tuple[float, float], ...]:
    if len(values) > _MOST_VALUES:
        raise Fault(
            "InvalidParameterValue", f"The collection {where}.Values must not have a size greater than {_MOST_VALUES}."
        )
    if counts and len(counts) != len(values):
        raise Fault(
            "InvalidParameterValue", f"The parameters {where}.Values and {where}.Counts must be of the same size."
        )
    found = []
    for number, (value, count) in enumerate(zip(values, counts or [1.0] * len(values), strict=True), 1):
        often = _number(count, f"{where}.Counts.member.{number}")
        if often < 0:
            raise Fault(
                "InvalidParameterValue", f"The value {count} for parameter {where}.Counts.member.{number} is invalid."
            )
        if often:
            found.append((_number(value, f"{where}.Values.member.{number}"), often))
    return tuple(found)


def _summary(given: Mapping[str, Any], where: str) -> tuple[float, float, float, float]:
    for name in ("Sum", "SampleCount", "Minimum", "Maximum"):
        if given.get(name) is None:
            raise Fault("MissingParameter", f"The parameter {where}.{name} is required.")
    total, count = _number(given["Sum"], f"{where}.Sum"), _number(given["SampleCount"], f"{where}.SampleCount")
    low, high = _number(given["Minimum"], f"{where}.Minimum"), _number(given["Maximum"], f"{where}.Maximum")
    if count <= 0:
        raise Fault(
            "InvalidParameterValue", f"The value {given['SampleCount']} for parameter {where}.SampleCount is invalid."
        )
    if low > high:
        raise Fault("InvalidParameterValue", f"The parameter {where}.Maximum must be greater than {where}.Minimum.")
    return total, count, low, high
