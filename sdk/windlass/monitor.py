"""Watch an endpoint: publish what was seen, join late labels, read metrics and alarms back.

    monitor.publish(endpoint, predictions)        # latency as callers saw it
    quality = monitor.quality(endpoint)           # joins new labels to captured predictions; publishes accuracy
    monitor.series(endpoint, metrics.ACCURACY, period_seconds=60)
    monitor.alarms(endpoint)                      # {"digits/accuracy/...": "OK"}

Predictions are what SageMaker's data capture wrote to S3, labels what :meth:`Endpoint.label` wrote; the join needs nothing that
the serving process holds, so it runs anywhere: a cron job, a Lambda, a notebook.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from windlass import aws, metrics, plans
from windlass.endpoints import Endpoint
from windlass.errors import InvalidInput, NotFound
from windlass.foundation import Contract
from windlass.metrics import Metric, wilson_lower_bound
from windlass.predictor import Prediction

Dimensions = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Quality:
    """Accuracy of one model version on the labels that came in since the last look.

    Attributes:
        accuracy: share of labels that the prediction matched, 0..1.
        lower_bound: of the accuracy, at 95 % confidence (Wilson score interval).
        samples: labelled predictions judged.
        coverage_percent: labelled share of the version's captured predictions so far.
        lag_seconds: mean time from prediction to label.
        unmatched: labels left for the next call: their prediction is not captured yet, or too few came for a point.
    """

    model_version: str
    accuracy: float
    lower_bound: float
    samples: int
    coverage_percent: float
    lag_seconds: float
    unmatched: int = 0


# --------------------------------------------------------------------------------------------------------------- publish


def publish(endpoint: Endpoint, predictions: Iterable[Prediction]) -> int:
    """Latency as callers saw it, as ``Values`` and ``Counts``, so that percentiles survive.

    Returns:
        The number of predictions published.
    """
    latencies = [(p.at, round(p.latency_ms, 2)) for p in predictions]
    by_second: dict[int, Counter[float]] = {}
    for at, value in latencies:
        by_second.setdefault(int(at), Counter())[value] += 1
    data = []
    for second, counts in sorted(by_second.items()):
        values = sorted(counts)
        for start in range(0, len(values), metrics.MAX_VALUES_PER_DATUM):
            some = values[start : start + metrics.MAX_VALUES_PER_DATUM]
            data.append(
                {
                    **_datum(metrics.CLIENT_LATENCY, endpoint, endpoint.model_version, second),
                    "Values": some,
                    "Counts": [float(counts[value]) for value in some],
                }
            )
    _put(f"Publishing latency of '{endpoint.name}'", data)
    return len(latencies)


def _datum(metric: Metric, endpoint: Endpoint, version: str, at: float) -> dict[str, Any]:
    return {
        "MetricName": metric.name,
        "Dimensions": dimensions(metric, endpoint, version),
        "Timestamp": datetime.fromtimestamp(at, UTC),
        "Unit": metric.unit,
        "StorageResolution": 1,
    }


def _put(where: str, data: Sequence[Mapping[str, Any]]) -> None:
    for start in range(0, len(data), metrics.MAX_DATUMS_PER_CALL):
        some = data[start : start + metrics.MAX_DATUMS_PER_CALL]
        aws.call(where, aws.client("cloudwatch").put_metric_data, Namespace=metrics.NAMESPACE, MetricData=some)


def dimensions(metric: Metric, endpoint: Endpoint, version: str = "") -> Dimensions:
    """The metric's dimensions with this endpoint's values, as CloudWatch takes them."""
    values = {
        "EndpointName": endpoint.name,
        "VariantName": plans.VARIANT,
        "ModelVersion": version or endpoint.model_version,
        "EndpointConfigName": endpoint.config,
    }
    return [{"Name": name, "Value": values[name]} for name in metric.dimensions]


# --------------------------------------------------------------------------------------------------------------- quality


def quality(
    endpoint: Endpoint,
    *,
    lookback_hours: float = 24,
    min_samples: int = 1,
    prediction: str = "label",
    clock: aws.Clock = aws.CLOCK,
) -> Sequence[Quality]:
    """Join the labels that came since the last call to their predictions, and publish accuracy for each model version.

        for q in monitor.quality(endpoint):
            print(q.model_version, q.accuracy, q.samples)

    Accuracy is stamped with the time of this evaluation, not of the prediction: CloudWatch takes no points older than two
    weeks, and labels may come later. A label is counted once, also when two callers take turns; a label whose prediction is
    not captured yet (SageMaker writes captures with a delay) is tried again until it is older than ``lookback_hours``.

    Args:
        lookback_hours: how far back predictions are looked for.
        min_samples: a version with fewer labels to judge waits for the next call, so that no point rests on a handful.
        prediction: the key of the model's JSON answer that holds the class. A list is matched against a list of labels.

    Returns:
        One :class:`Quality` for each model version that got new labels; none if there are none.
    """
    where = f"Judging endpoint '{endpoint.name}'"
    bucket, now = Contract.load(endpoint.project).bucket, clock.now()
    since = datetime.fromtimestamp(now, UTC) - timedelta(hours=lookback_hours)
    cursor_uri = f"s3://{bucket}/quality/{endpoint.name}/cursor.json"
    cursor = _cursor(cursor_uri)
    labels: dict[str, _Label] = dict(cursor.pending)
    prefix = f"labels/{endpoint.name}/"
    found = [item["Key"] for item in aws.keys(f"s3://{bucket}/{prefix}", start_after=f"{prefix}{cursor.start}")]
    for key in sorted({*found} - {*cursor.read}):
        labels.update(_read_labels(f"s3://{bucket}/{key}"))
    if not labels:
        return []

    results: list[Quality] = []
    data: list[Mapping[str, Any]] = []
    judged = dict(cursor.judged)
    for config, version in endpoint.versions().items():
        captured = {identity: (at, answer) for identity, at, answer in _captured(bucket, config, endpoint.name, since)}
        due = captured.keys() & labels.keys()
        if len(due) < max(1, min_samples):
            continue
        seen = [(*captured[identity], labels.pop(identity)) for identity in due]
        judged[config] = judged.get(config, 0) + len(seen)
        result = _judge(version, seen, judged[config] / len(captured), prediction, where)
        results.append(result)
        data += _quality_data(endpoint, result, now)
    pending = {key: label for key, label in labels.items() if datetime.fromisoformat(label.at) > since}
    _put(where, data)
    # After publishing: if this fails the same labels are judged again, which beats never.
    start = f"{datetime.fromtimestamp(now, UTC) - _STRAGGLING:%Y/%m/%d/%H/%M}"
    read = [key for key in found if key > f"{prefix}{start}"]
    aws.put_bytes(cursor_uri, json.dumps(dataclasses.asdict(_Cursor(start, read, pending, judged))).encode())
    return [dataclasses.replace(result, unmatched=len(pending)) for result in results]


# A label object is named for the time on the machine that wrote it, and appears when its upload ends. So the keys of this
# long before the last call are looked at again.
_STRAGGLING = timedelta(minutes=15)


@dataclass(frozen=True)
class _Label:
    truth: Any
    at: str  # ISO 8601


@dataclass(frozen=True)
class _Cursor:
    """How far labels have been judged.

    Attributes:
        start: the time, as keys have it, before which no label object appears any more.
        read: keys of the label objects after that which have been read.
        pending: labels whose prediction was not captured yet, by inference id.
        judged: how many predictions of each config have been judged so far.
    """

    start: str = ""
    read: Sequence[str] = ()
    pending: Mapping[str, _Label] = field(default_factory=dict)
    judged: Mapping[str, int] = field(default_factory=dict)


def _cursor(uri: str) -> _Cursor:
    try:
        body = json.loads(aws.get_bytes(uri))
    except NotFound:
        return _Cursor()
    pending = {key: _Label(**label) for key, label in body.pop("pending").items()}
    return _Cursor(**body, pending=pending)


def _read_labels(uri: str) -> Iterator[tuple[str, _Label]]:
    for number, line in enumerate(aws.get_bytes(uri).splitlines(), 1):
        try:
            record = json.loads(line)
            event = record["eventMetadata"]
            yield event["eventId"], _Label(json.loads(record["groundTruthData"]["data"]), event["labelTime"])
        except (ValueError, KeyError, TypeError) as error:
            hint = "Labels are written by endpoint.label()."
            raise InvalidInput(
                f"line {number} is no label record: {error!r}", where=f"Reading {uri}", hint=hint
            ) from error


def _captured(bucket: str, config: str, endpoint: str, since: datetime) -> Iterator[tuple[str, datetime, Any]]:
    """Inference id, time and decoded answer of each captured prediction of one config. Nobody got a shadow's."""
    prefix = f"s3://{bucket}/capture/{config}/{endpoint}/{plans.VARIANT}/"
    for item in aws.keys(prefix):
        if item["LastModified"] < since:
            continue
        for line in aws.get_bytes(f"s3://{bucket}/{item['Key']}").splitlines():
            record = json.loads(line)
            event, output = record["eventMetadata"], record["captureData"].get("endpointOutput")
            if output and output.get("encoding") == "JSON":
                answered = datetime.fromisoformat(event["inferenceTime"].replace("Z", "+00:00"))
                yield event.get("inferenceId") or event["eventId"], answered, json.loads(output["data"])


def _judge(
    version: str, seen: Sequence[tuple[datetime, Any, _Label]], coverage: float, prediction: str, where: str
) -> Quality:
    right = total = 0
    lag = 0.0
    for answered, answer, label in seen:
        for said, truth in _pairs(answer, label.truth, prediction, where):
            right += said == truth
            total += 1
        lag += max(0.0, (datetime.fromisoformat(label.at) - answered).total_seconds())
    return Quality(
        model_version=version,
        accuracy=right / total,
        lower_bound=wilson_lower_bound(right, total),
        samples=total,
        coverage_percent=min(100.0, 100 * coverage),
        lag_seconds=lag / len(seen),
    )


def _pairs(answer: Any, truth: Any, key: str, where: str) -> Sequence[tuple[Any, Any]]:
    if isinstance(answer, Mapping):
        if key not in answer:
            keys = ", ".join(map(str, answer))
            raise InvalidInput(
                f"the model's answer has no '{key}'; it has {keys}", where=where, hint="Pass prediction=."
            )
        answer = answer[key]
    said = answer if isinstance(answer, list) else [answer]
    truths = truth if isinstance(truth, list) else [truth]
    if len(said) != len(truths):
        raise InvalidInput(f"{len(said)} predictions but {len(truths)} labels under one inference id", where=where)
    return list(zip(said, truths, strict=True))


def _quality_data(endpoint: Endpoint, result: Quality, now: float) -> Sequence[Mapping[str, Any]]:
    values = {
        metrics.ACCURACY: result.accuracy,
        metrics.ACCURACY_LOWER_BOUND: result.lower_bound,
        metrics.SAMPLE_COUNT: float(result.samples),
        metrics.LABEL_COVERAGE: result.coverage_percent,
        metrics.LABEL_LAG: result.lag_seconds,
    }
    return [{**_datum(metric, endpoint, result.model_version, now), "Value": value} for metric, value in values.items()]


# ------------------------------------------------------------------------------------------------------------- read back


def series(
    endpoint: Endpoint,
    metric: Metric,
    *,
    statistic: str = "",
    version: str = "",
    period_seconds: int = 60,
    hours: float = 3,
    clock: aws.Clock = aws.CLOCK,
) -> Sequence[tuple[float, float]]:
    """One metric over time, from CloudWatch: ``(seconds since the epoch, value)``, oldest first.

    Args:
        statistic: ``Average``, ``Sum``, ``p50``, ``p99``...; by default the one the metric is judged by.
        version: of the model, for metrics by version; by default the one in service.
    """
    where = f"Reading {metric.name} of '{endpoint.name}'"
    now = datetime.fromtimestamp(clock.now(), UTC)
    stat = {
        "Metric": {
            "Namespace": metric.namespace,
            "MetricName": metric.name,
            "Dimensions": dimensions(metric, endpoint, version),
        },
        "Period": period_seconds,
        "Stat": statistic or metric.statistic,
    }
    found = aws.pages(
        where,
        "cloudwatch",
        "get_metric_data",
        "MetricDataResults",
        MetricDataQueries=[{"Id": "m", "MetricStat": stat}],
        StartTime=now - timedelta(hours=hours),
        EndTime=now + timedelta(seconds=period_seconds),
        ScanBy="TimestampAscending",
    )
    return [
        (stamp.timestamp(), value)
        for result in found
        for stamp, value in zip(result["Timestamps"], result["Values"], strict=True)
    ]


def alarms(endpoint: Endpoint, config: str = "") -> Mapping[str, str]:
    """State of each alarm of the endpoint: ``OK``, ``ALARM`` or ``INSUFFICIENT_DATA``; with ``config``, of that one's."""
    where = f"Reading alarms of '{endpoint.name}'"
    found = aws.pages(where, "cloudwatch", "describe_alarms", "MetricAlarms", AlarmNamePrefix=f"{endpoint.name}/")
    return {a["AlarmName"]: a["StateValue"] for a in found if a["AlarmName"].endswith(f"/{config}" if config else "")}


def alarm_history(endpoint: Endpoint) -> Sequence[tuple[float, str, str]]:
    """State changes of the endpoint's alarms: ``(seconds since the epoch, alarm name, summary)``, oldest first."""
    where, found = f"Reading alarm history of '{endpoint.name}'", []
    for name in alarms(endpoint):
        items = aws.pages(
            where,
            "cloudwatch",
            "describe_alarm_history",
            "AlarmHistoryItems",
            AlarmName=name,
            HistoryItemType="StateUpdate",
        )
        found += [(item["Timestamp"].timestamp(), name, item["HistorySummary"]) for item in items]
    return sorted(found)
