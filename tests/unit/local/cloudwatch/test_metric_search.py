from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.unit.local.in_process import REGION, in_process
from windlass.local.cloudwatch.metric_search import Search, SearchError, labels_of
from windlass.local.cloudwatch.metric_store import Metric

METRIC = Metric.of("AWS/SageMaker", "Invocation5XXErrors", {"EndpointName": "digits-prod", "VariantName": "AllTraffic"})


@pytest.mark.parametrize(
    ("search", "finds"),
    [
        ("{AWS/SageMaker,EndpointName,VariantName}", True),
        ("{AWS/SageMaker, VariantName, EndpointName} digits", True),
        ("{AWS/SageMaker,EndpointName}", False),
        ("{AWS/EC2,EndpointName,VariantName}", False),
        ('{AWS/SageMaker,EndpointName,VariantName} MetricName="Invocation5XXErrors"', True),
        ('{AWS/SageMaker,EndpointName,VariantName} MetricName="Invocation"', False),
        ("{AWS/SageMaker,EndpointName,VariantName} MetricName=invocation", True),
        ('EndpointName="digits-prod"', True),
        ('EndpointName="digits"', False),
        ("EndpointName=digits", True),
        ("EndpointName=prod", True),
        ("EndpointName=igits", False),
        ("errors", True),
        ("5XX", True),
        ("traffic digits", True),
        ("traffic letters", False),
        ("letters OR digits", True),
        ("NOT letters", True),
        ("digits NOT errors", False),
        ("(letters OR digits) AND (errors OR latency)", True),
        ('"digits-prod"', True),
        ('"digits"', False),
        ("", True),
    ],
)
def test_what_a_search_finds(search: str, finds: bool) -> None:
    assert Search.parse(search).finds(METRIC) is finds


@pytest.mark.parametrize("search", ["{AWS/SageMaker", "(a", "a)", "a OR", "NOT", "= a"])
def test_what_is_no_search(search: str) -> None:
    with pytest.raises(SearchError):
        Search.parse(search)


def test_labels_tell_apart() -> None:
    a, b = (Metric.of("N", "Latency", {"Endpoint": name, "Stage": "live"}) for name in "ab")
    assert labels_of([a, b]) == ["a", "b"]
    assert labels_of([a]) == ["Latency"]
    assert labels_of([a, Metric.of("N", "Errors", dict(a.dimensions))]) == ["Latency", "Errors"]


def test_search_in_an_expression(tmp_path: Any) -> None:
    with in_process(tmp_path) as cloud:
        cloudwatch = cloud.client("cloudwatch")
        now = cloud.clock.now()
        for endpoint, value in (("digits", 1.0), ("letters", 2.0), ("other", 4.0)):
            for ago in (30, 90):
                cloud.metrics.put(REGION, "App", "Errors", {"Endpoint": endpoint}, value, at=now - ago)

        def ask(expression: str, **more: Any) -> list[dict[str, Any]]:
            answer = cloudwatch.get_metric_data(
                MetricDataQueries=[{"Id": "e", "Expression": expression, **more}],
                StartTime=now - 300,
                EndTime=now,
                ScanBy="TimestampAscending",
            )
            found: list[dict[str, Any]] = answer["MetricDataResults"]
            return found

        found = ask("SEARCH('{App,Endpoint} digits OR letters', 'Sum', 60)")
        assert [(each["Label"], each["Values"]) for each in found] == [("digits", [1, 1]), ("letters", [2, 2])]
        (total,) = ask("SUM(SEARCH('{App,Endpoint}', 'Sum', 300))")
        assert total["Values"] == [14]
        assert ask("SEARCH('{App,Nothing}', 'Sum', 60)") == []
        with pytest.raises(ClientError, match="A '}' is missing"):
            ask("SEARCH('{App', 'Sum', 60)")
        with pytest.raises(ClientError, match="SEARCH is not supported on Metric Alarms"):
            cloudwatch.put_metric_alarm(
                AlarmName="a",
                EvaluationPeriods=1,
                Threshold=1,
                ComparisonOperator="GreaterThanThreshold",
                Metrics=[{"Id": "e", "Expression": "SUM(SEARCH('{App,Endpoint}', 'Sum', 60))", "Period": 60}],
            )
