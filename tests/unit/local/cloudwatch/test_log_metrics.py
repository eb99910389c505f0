from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.unit.local.in_process import REGION, InProcess, in_process
from windlass.local.cloudwatch.log_metrics import Pattern, PatternError, embedded, filtered
from windlass.local.cloudwatch.logs import LogStream
from windlass.local.cloudwatch.metric_store import Metric

EVENT = json.dumps(
    {
        "level": "ERROR",
        "latency": 120.5,
        "user": {"name": "ada", "roles": ["admin", "ops"]},
        "ok": False,
        "none": None,
        "path": "/v1/items",
    }
)
ACCESS = '127.0.0.1 - frank [10/Oct/2026:13:25:15 -0700] "GET /index.html HTTP/1.0" 404 1534'


@pytest.mark.parametrize(
    ("pattern", "line", "matches"),
    [
        ("", "anything", True),
        ("ERROR", "[ERROR] it broke", True),
        ("ERROR", "an error", False),
        ("ERROR Exception", "ERROR: an Exception", True),
        ("ERROR Exception", "ERROR: nothing else", False),
        ('"INTERNAL SERVER"', "500 INTERNAL SERVER ERROR", True),
        ('"INTERNAL SERVER"', "INTERNAL: no SERVER", False),
        ("ERROR -Exiting", "ERROR: Exiting with 1", False),
        ("ERROR -Exiting", "ERROR: went on", True),
        ("?ERROR ?WARN", "a WARN here", True),
        ("?ERROR ?WARN", "an INFO here", False),
        ("%HTTP 5\\d\\d%", "got HTTP 503 back", True),
        ("%HTTP 5\\d\\d%", "got HTTP 404 back", False),
        ('{ $.level = "ERROR" }', EVENT, True),
        ("{ $.level = ERROR }", EVENT, True),
        ('{ $.level = "ERR*" }', EVENT, True),
        ('{ $.level != "INFO" }', EVENT, True),
        ('{ $.absent != "INFO" }', EVENT, False),
        ("{ $.latency > 100 }", EVENT, True),
        ("{ $.latency >= 120.5 && $.latency <= 120.5 }", EVENT, True),
        ("{ $.latency < 100 }", EVENT, False),
        ('{ $.user.roles[1] = "ops" }', EVENT, True),
        ('{ ($.level = "INFO" || $.latency > 100) && $.user.name = "ada" }', EVENT, True),
        ('{ $.level = "INFO" || $.latency > 100 && $.user.name = "bob" }', EVENT, False),
        ("{ $.none IS NULL }", EVENT, True),
        ("{ $.ok IS FALSE }", EVENT, True),
        ("{ $.ok IS TRUE }", EVENT, False),
        ("{ $.absent NOT EXISTS }", EVENT, True),
        ("{ $.level NOT EXISTS }", EVENT, False),
        ("{ $.latency = 120.5 }", EVENT, True),
        ('{ $.path = "/v1/*" }', EVENT, True),
        ("{ $.latency > 100 }", "no JSON", False),
        ("[ip, id, user, when, request, status, size]", ACCESS, True),
        ("[ip, id, user, when, request, status=404, size]", ACCESS, True),
        ("[ip, id, user, when, request, status=4*, size > 1000]", ACCESS, True),
        ("[ip, id, user, when, request, status=5*, size]", ACCESS, False),
        ("[ip, ..., status=404 || status=500, size]", ACCESS, True),
        ("[ip, ..., size < 100]", ACCESS, False),
        ('[ip, id, user, when, request="*html*", status, size]', ACCESS, True),
        ("[ip, id]", ACCESS, False),
    ],
)
def test_what_a_pattern_matches(pattern: str, line: str, matches: bool) -> None:
    assert (Pattern.parse(pattern).match(line) is not None) is matches


@pytest.mark.parametrize(
    "pattern",
    [
        "{ $.a = }",
        "{ $.a }",
        "{ a = 1 }",
        "{ $.a = 1",
        "{ $.a > x }",
        "{ ($.a = 1 }",
        "{ $.a = 1 $.b = 2 }",
        "{ $.a IS WHAT }",
        "[a, b",
        "[a b]",
        "[..., a, ...]",
        "%[%",
        "%(a+)+b%",
        "%something!%",
    ],
)
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(PatternError):
        Pattern.parse(pattern)


def transformation(**more: Any) -> dict[str, Any]:
    return {"metricName": "Errors", "metricNamespace": "App", "metricValue": "1", **more}


def test_values_and_dimensions_come_from_the_line() -> None:
    given = transformation(metricValue="$.latency", unit="Milliseconds", dimensions={"User": "$.user.name"})
    (datum,) = filtered([{"filterPattern": "{ $.latency > 0 }", "metricTransformations": [given]}], [(5.0, EVENT)])
    assert datum.metric == Metric.of("App", "Errors", {"User": "ada"})
    assert (datum.at, datum.samples, datum.unit) == (5.0, ((120.5, 1.0),), "Milliseconds")
    lost = transformation(dimensions={"User": "$.nobody"})
    assert not list(filtered([{"filterPattern": "{ $.latency > 0 }", "metricTransformations": [lost]}], [(5.0, EVENT)]))
    size = transformation(metricValue="$size")
    (datum,) = filtered([{"filterPattern": "[..., size]", "metricTransformations": [size]}], [(5.0, ACCESS)])
    assert datum.samples == ((1534.0, 1.0),)


def test_a_default_counts_for_the_minutes_without_a_match() -> None:
    filters = [{"filterPattern": "ERROR", "metricTransformations": [transformation(defaultValue=0)]}]
    data = list(filtered(filters, [(10.0, "ERROR"), (20.0, "fine"), (70.0, "fine"), (80.0, "fine")]))
    assert [(datum.at, datum.samples[0][0]) for datum in data] == [(10.0, 1.0), (60.0, 0.0)]


def emf(**more: Any) -> str:
    directive = {
        "Namespace": "App",
        "Dimensions": [["Service"], ["Service", "Stage"]],
        "Metrics": [{"Name": "Time", "Unit": "Milliseconds", "StorageResolution": 1}, {"Name": "Absent"}],
    }
    root = {
        "_aws": {"Timestamp": 1_700_000_000_500, "CloudWatchMetrics": [directive]},
        "Service": "api",
        "Stage": "live",
    }
    return json.dumps({**root, "Time": [1, 2.5], **more})


def test_the_embedded_metric_format() -> None:
    data = list(embedded(emf(), 0))
    assert [datum.metric.dimensions for datum in data] == [
        (("Service", "api"),),
        (("Service", "api"), ("Stage", "live")),
    ]
    assert {datum.samples for datum in data} == {((1.0, 1.0), (2.5, 1.0))}
    assert {(datum.at, datum.unit, datum.resolution) for datum in data} == {(1_700_000_000.5, "Milliseconds", 1)}
    assert len(list(embedded(emf(Stage=None), 0))) == 1


@pytest.mark.parametrize(
    "line", ["text", "{}", '{"_aws": 1}', '{"_aws": {}}', '"_aws"', '{"_aws": {"CloudWatchMetrics": [1]}}']
)
def test_lines_without_metrics(line: str) -> None:
    assert list(embedded(line, 0)) == []


# --- through the API ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("cloud")) as started:
        # moto's logs refuse what is two weeks old by the machine's clock.
        started.clock.advance(time.time() - started.clock.now())
        yield started


def test_lines_become_metrics_however_they_are_written(cloud: InProcess) -> None:
    logs = cloud.client("logs")
    logs.create_log_group(logGroupName="app")
    logs.create_log_stream(logGroupName="app", logStreamName="s")
    for value in ("7", "1"):  # the second takes the place of the first
        logs.put_metric_filter(
            logGroupName="app",
            filterName="errors",
            filterPattern="ERROR",
            metricTransformations=[transformation(metricValue=value)],
        )
    now = cloud.clock.now()
    lines = [{"timestamp": int(now * 1000), "message": line} for line in ("ERROR one", "fine", emf(Time=4))]
    logs.put_log_events(logGroupName="app", logStreamName="s", logEvents=lines)
    LogStream(REGION, "app", "inside", cloud.clock).write("ERROR two")
    errors = cloud.metrics.read(REGION, Metric.of("App", "Errors", {}), 0, 4e9)
    assert errors.total.tolist() == [1.0, 1.0]
    assert cloud.metrics.read(REGION, Metric.of("App", "Time", {"Service": "api"}), 0, 4e9).total.tolist() == [4.0]
    (found,) = logs.describe_metric_filters(logGroupName="app")["metricFilters"]
    assert found["metricTransformations"][0]["metricValue"] == "1"


def test_filters_that_are_refused(cloud: InProcess) -> None:
    logs = cloud.client("logs")
    logs.create_log_group(logGroupName="refusing")
    given = {"filterName": "f", "metricTransformations": [transformation()]}
    with pytest.raises(ClientError, match="Invalid metric filter pattern") as caught:
        logs.put_metric_filter(logGroupName="refusing", filterPattern="{ $.a = }", **given)
    assert caught.value.response["Error"]["Code"] == "InvalidParameterException"
    with pytest.raises(ClientError, match="The specified log group does not exist"):
        logs.put_metric_filter(logGroupName="nowhere", filterPattern="x", **given)
