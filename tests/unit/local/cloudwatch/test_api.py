"""The API as boto3 sees it."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

from tests.unit.local.in_process import REGION, InProcess, in_process
from windlass.local.cloudwatch.api import put_at_once
from windlass.local.cloudwatch.metric_store import Metric

DIMENSIONS = [{"Name": "EndpointName", "Value": "digits"}]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("cloud")) as started:
        yield started


@pytest.fixture(autouse=True)
def _empty(cloud: InProcess) -> None:
    cloud.metrics.reset()
    cloud.alarms.reset()


def now(cloud: InProcess) -> datetime:
    return datetime.fromtimestamp(cloud.clock.now(), UTC)


def put(
    cloud: InProcess, name: str = "Latency", *, seconds_ago: float = 0, dimensions: Any = DIMENSIONS, **datum: Any
) -> None:
    cloud.client("cloudwatch").put_metric_data(
        Namespace="Windlass",
        MetricData=[
            {
                "MetricName": name,
                "Dimensions": dimensions,
                "Timestamp": now(cloud) - timedelta(seconds=seconds_ago),
                "StorageResolution": 1,
                **datum,
            }
        ],
    )


def stat(
    name: str = "Latency",
    stat: str = "Average",
    period: int = 60,
    id: str = "m1",  # noqa: A002 - CloudWatch's own word
    **query: Any,
) -> dict[str, Any]:
    metric = {"Namespace": "Windlass", "MetricName": name, "Dimensions": DIMENSIONS}
    return {"Id": id, "MetricStat": {"Metric": metric, "Period": period, "Stat": stat}, **query}


def get(cloud: InProcess, *queries: Mapping[str, Any], minutes: float = 10, **request: Any) -> Any:
    return cloud.client("cloudwatch").get_metric_data(
        MetricDataQueries=list(queries),
        StartTime=now(cloud) - timedelta(minutes=minutes),
        EndTime=now(cloud) + timedelta(minutes=1),
        **request,
    )


def values(cloud: InProcess, *queries: Mapping[str, Any], **request: Any) -> dict[str, list[float]]:
    return {result["Id"]: result["Values"] for result in get(cloud, *queries, **request)["MetricDataResults"]}


def test_values_and_counts_keep_their_percentiles(cloud: InProcess) -> None:
    put(cloud, Values=[1.0, 2.0, 3.0], Counts=[1, 2, 3])
    found = values(cloud, stat(stat="p50"), stat(stat="SampleCount", id="m2"), stat(stat="tm50", id="m3"))
    assert found == {"m1": [2.5], "m2": [6.0], "m3": [pytest.approx(5 / 3)]}


def test_statistic_sets_add_up_but_have_no_percentile(cloud: InProcess) -> None:
    put(cloud, StatisticValues={"Sum": 30, "SampleCount": 3, "Minimum": 5, "Maximum": 15})
    put(cloud, Value=20.0)
    found = values(cloud, stat(), stat(stat="Maximum", id="m2"), stat(stat="p50", id="m3"))
    assert found == {"m1": [12.5], "m2": [20.0], "m3": []}


@pytest.mark.parametrize(
    ("period", "starts"), [(1, [-13, -3, 0]), (5, [-15, -5, 0]), (10, [-20, -10, 0]), (30, [-30, 0]), (60, [-60, 0])]
)
def test_periods_begin_on_their_boundaries(cloud: InProcess, period: int, starts: list[int]) -> None:
    for seconds_ago in (13, 3, 0):
        put(cloud, seconds_ago=seconds_ago, Value=1.0)
    result = get(cloud, stat(period=period), ScanBy="TimestampAscending")["MetricDataResults"][0]
    assert [(time - now(cloud)).total_seconds() for time in result["Timestamps"]] == starts


def test_standard_resolution_shows_nothing_within_the_minute(cloud: InProcess) -> None:
    put(cloud, seconds_ago=13, Value=1.0, StorageResolution=60)
    result = get(cloud, stat(period=10))["MetricDataResults"][0]
    assert [(now(cloud) - time).total_seconds() for time in result["Timestamps"]] == [60]


def test_data_within_the_minute_is_gone_after_three_hours(cloud: InProcess) -> None:
    put(cloud, seconds_ago=4 * 3600, Value=1.0)
    assert values(cloud, stat(period=10), stat(period=60, id="m2"), minutes=300) == {"m1": [], "m2": [1.0]}


def test_the_newest_comes_first_unless_asked_otherwise(cloud: InProcess) -> None:
    for minutes in range(3):
        put(cloud, seconds_ago=60 * minutes, Value=float(minutes))
    assert values(cloud, stat()) == {"m1": [0, 1, 2]}
    assert values(cloud, stat(), ScanBy="TimestampAscending") == {"m1": [2, 1, 0]}


def test_units_are_told_apart_when_one_is_asked_for(cloud: InProcess) -> None:
    put(cloud, Value=1.0, Unit="Seconds")
    put(cloud, Value=3.0, Unit="Milliseconds")
    one = stat()
    one["MetricStat"]["Unit"] = "Seconds"
    assert values(cloud, one, stat(id="m2"), stat(id="m3")) == {"m1": [1.0], "m2": [2.0], "m3": [2.0]}


def test_metric_math_over_hidden_metrics(cloud: InProcess) -> None:
    put(cloud, "Errors", Value=1.0)
    put(cloud, "Requests", Value=4.0)
    result = get(
        cloud,
        stat("Errors", "Sum", id="errors", ReturnData=False),
        stat("Requests", "Sum", id="requests", ReturnData=False),
        {"Id": "rate", "Expression": "100 * errors / requests", "Label": "Error rate"},
        {"Id": "twice", "Expression": "rate * 2"},
    )["MetricDataResults"]
    assert [(each["Id"], each["Label"], each["Values"]) for each in result] == [
        ("rate", "Error rate", [25]),
        ("twice", "twice", [50]),
    ]


def test_an_expression_over_all_metrics_gives_a_result_for_each(cloud: InProcess) -> None:
    put(cloud, "Errors", Value=1.0)
    put(cloud, "Requests", Value=4.0)
    result = get(
        cloud,
        stat("Errors", id="m1", ReturnData=False),
        stat("Requests", id="m2", ReturnData=False),
        {"Id": "e1", "Expression": "METRICS() * 10"},
    )["MetricDataResults"]
    assert [(each["Id"], each["Label"], each["Values"]) for each in result] == [
        ("e1", "Errors", [10]),
        ("e1", "Requests", [40]),
    ]


def test_pages_of_data_points_add_up(cloud: InProcess) -> None:
    for minutes in range(5):
        put(cloud, seconds_ago=60 * minutes, Value=float(minutes))
    queries = [stat(id="m1"), stat(stat="Maximum", id="m2")]
    pages, token = [], {}
    while True:
        answer = get(cloud, *queries, MaxDatapoints=3, **token)
        pages.append({each["Id"]: (each["Values"], each["StatusCode"]) for each in answer["MetricDataResults"]})
        if "NextToken" not in answer:
            break
        token = {"NextToken": answer["NextToken"]}
    assert pages == [
        {"m1": ([0, 1, 2], "PartialData")},
        {"m1": ([3, 4], "Complete"), "m2": ([0], "PartialData")},
        {"m2": ([1, 2, 3], "PartialData")},
        {"m2": ([4], "Complete")},
    ]


def test_a_token_of_another_request_is_refused(cloud: InProcess) -> None:
    for minutes in range(5):
        put(cloud, seconds_ago=60 * minutes, Value=1.0)
    token = get(cloud, stat(), MaxDatapoints=2)["NextToken"]
    for other in (token, "nonsense", token[:-8]):
        with pytest.raises(ClientError, match="InvalidNextToken"):
            get(cloud, stat(stat="Sum"), MaxDatapoints=2, NextToken=other)


def test_get_metric_statistics(cloud: InProcess) -> None:
    put(cloud, Values=[1.0, 3.0], Unit="Milliseconds")
    cloudwatch = cloud.client("cloudwatch")
    asked = {
        "Namespace": "Windlass",
        "MetricName": "Latency",
        "Dimensions": DIMENSIONS,
        "StartTime": now(cloud) - timedelta(minutes=5),
        "EndTime": now(cloud) + timedelta(minutes=1),
        "Period": 60,
    }
    answer = cloudwatch.get_metric_statistics(**asked, Statistics=["Average", "Sum"])
    assert answer["Label"] == "Latency"
    (point,) = answer["Datapoints"]
    assert point == {"Timestamp": now(cloud), "Unit": "Milliseconds", "Average": 2.0, "Sum": 4.0}
    (point,) = cloudwatch.get_metric_statistics(**asked, ExtendedStatistics=["p50", "tm90"])["Datapoints"]
    assert point["ExtendedStatistics"] == {"p50": 2.0, "tm90": pytest.approx((1 + 0.8 * 3) / 1.8)}
    # "... you must specify either Statistics or ExtendedStatistics, but not both"
    for both in ({}, {"Statistics": ["Sum"], "ExtendedStatistics": ["p50"]}):
        with pytest.raises(ClientError) as caught:
            cloudwatch.get_metric_statistics(**asked, **both)
        assert caught.value.response["Error"]["Code"] == "InvalidParameterCombination"


def test_list_metrics(cloud: InProcess) -> None:
    put(cloud, "Latency", Value=1.0)
    put(cloud, "Latency", Value=1.0, dimensions=[*DIMENSIONS, {"Name": "VariantName", "Value": "A"}])
    put(cloud, "Old", Value=1.0, seconds_ago=4 * 3600)
    client = cloud.client("cloudwatch")

    def names(**filters: Any) -> list[tuple[str, int]]:
        return [
            (metric["MetricName"], len(metric["Dimensions"])) for metric in client.list_metrics(**filters)["Metrics"]
        ]

    assert names() == [("Latency", 1), ("Latency", 2), ("Old", 1)]
    assert names(MetricName="Old") == [("Old", 1)]
    assert names(Namespace="Other") == []
    assert names(Dimensions=[{"Name": "VariantName"}]) == [("Latency", 2)]
    assert names(Dimensions=[{"Name": "EndpointName", "Value": "other"}]) == []
    assert names(RecentlyActive="PT3H") == [("Latency", 1), ("Latency", 2)]


def test_list_metrics_in_pages(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_data(
        Namespace="Windlass", MetricData=[{"MetricName": f"m{number}", "Value": 1} for number in range(700)]
    )
    pages = [len(page["Metrics"]) for page in client.get_paginator("list_metrics").paginate()]
    assert pages == [500, 200]


def datum(**changes: Any) -> dict[str, Any]:
    return {"MetricName": "m", "Value": 1.0} | changes


@pytest.mark.parametrize(
    ("namespace", "data", "code", "message"),
    [
        (
            "AWS/SageMaker",
            [datum()],
            "InvalidParameterValue",
            "The value AWS/SageMaker for parameter Namespace is invalid",
        ),
        ("W", [], "MissingParameter", "The parameter MetricData is required"),
        ("W", [datum()] * 1001, "InvalidParameterValue", "must not have a size greater than 1000"),
        (
            "W",
            [datum(), datum(Value=float("nan"))],
            "InvalidParameterValue",
            "The value NaN for parameter MetricData.member.2.Value",
        ),
        ("W", [datum(Value=float("inf"))], "InvalidParameterValue", "MetricData.member.1.Value is invalid"),
        ("W", [datum(Value=2.0**361)], "InvalidParameterValue", "MetricData.member.1.Value is invalid"),
        ("W", [datum(MetricName="x" * 256)], "InvalidParameterValue", "MetricData.member.1.MetricName is invalid"),
        ("W", [{"MetricName": "m"}], "MissingParameter", "At least one of the parameters MetricData.member.1.Value"),
        ("W", [datum(Values=[1.0])], "InvalidParameterCombination", "mutually exclusive"),
        (
            "W",
            [datum(StatisticValues={"Sum": 1, "SampleCount": 1, "Minimum": 1, "Maximum": 1})],
            "InvalidParameterCombination",
            "mutually",
        ),
        (
            "W",
            [{"MetricName": "m", "Values": [1.0] * 151}],
            "InvalidParameterValue",
            "Values must not have a size greater than 150",
        ),
        (
            "W",
            [{"MetricName": "m", "Values": [1.0, 2.0], "Counts": [1]}],
            "InvalidParameterValue",
            "must be of the same size",
        ),
        (
            "W",
            [{"MetricName": "m", "Values": [1.0], "Counts": [-1]}],
            "InvalidParameterValue",
            "Counts.member.1 is invalid",
        ),
        (
            "W",
            [{"MetricName": "m", "StatisticValues": {"Sum": 1, "SampleCount": 0, "Minimum": 1, "Maximum": 1}}],
            "InvalidParameterValue",
            "SampleCount is invalid",
        ),
        (
            "W",
            [{"MetricName": "m", "StatisticValues": {"Sum": 1, "SampleCount": 1, "Minimum": 2, "Maximum": 1}}],
            "InvalidParameterValue",
            "Maximum must be greater",
        ),
        (
            "W",
            [datum(Dimensions=[{"Name": f"d{n}", "Value": "v"} for n in range(31)])],
            "InvalidParameterValue",
            "greater than 30",
        ),
        (
            "W",
            [datum(Dimensions=[{"Name": "d", "Value": " "}])],
            "InvalidParameterValue",
            "Dimensions.member.1.Value must not be empty",
        ),
        (
            "W",
            [datum(Dimensions=[{"Name": "d", "Value": "é"}])],
            "InvalidParameterValue",
            "Dimensions.member.1.Value is invalid",
        ),
        ("W", [datum(Unit="Furlongs")], "InvalidParameterValue", "MetricData.member.1.Unit must be a value in the set"),
        ("W", [datum(StorageResolution=5)], "InvalidParameterValue", "StorageResolution must be 1 or 60"),
        (
            "W",
            [datum(Timestamp=datetime(2025, 12, 17, tzinfo=UTC))],
            "InvalidParameterValue",
            "within the past two weeks",
        ),
        (
            "W",
            [datum(Timestamp=datetime(2026, 1, 1, 2, 1, tzinfo=UTC))],
            "InvalidParameterValue",
            "no more than two hours in the future",
        ),
    ],
)
def test_put_metric_data_refuses_what_aws_refuses(
    cloud: InProcess, namespace: str, data: list[dict[str, Any]], code: str, message: str
) -> None:
    with pytest.raises(ClientError, match=message) as caught:
        cloud.client("cloudwatch").put_metric_data(Namespace=namespace, MetricData=data)
    assert caught.value.response["Error"]["Code"] == code
    assert cloud.client("cloudwatch").list_metrics()["Metrics"] == []  # nothing of the request was kept


def test_timestamps_at_the_edges_are_taken(cloud: InProcess) -> None:
    put(cloud, Value=1.0, seconds_ago=14 * 86_400)
    put(cloud, Value=2.0, seconds_ago=-2 * 3600)
    assert len(cloud.client("cloudwatch").list_metrics()["Metrics"]) == 1


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([{"Id": "M1", "Expression": "1"}], "not matching the expected pattern"),
        ([{"Id": "m1"}], "MetricDataQueries.member.1.MetricStat is required"),
        ([stat(), stat()], "not unique"),
        ([stat(period=7)], "must be 1, 5, 10, 20, 30 or a multiple of 60"),
        (
            [stat(stat="median")],
            "The value median for parameter MetricDataQueries.member.1.MetricStat.Stat is not supported",
        ),
        ([{"Id": "e1", "Expression": "m1"}], "Error in expression 'e1': Metric 'm1' is not defined"),
        ([{"Id": "a", "Expression": "b"}, {"Id": "b", "Expression": "a"}], "refers to itself"),
        ([stat(), {"Id": "e1", "Expression": "SUM(m1"}], "Error in expression 'e1'.*ends too early"),
        ([stat(), {"Id": "e1", "Expression": "SUM(m1)"}], "Error in expression 'e1'.*single value"),
        (
            [stat(), {"Id": "e1", "Expression": "ANOMALY_DETECTION_BAND(m1)"}],
            "ANOMALY_DETECTION_BAND .* is not supported",
        ),
    ],
)
def test_get_metric_data_refuses_what_aws_refuses(
    cloud: InProcess, queries: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ClientError, match=message):
        get(cloud, *queries)


def test_a_time_range_must_be_one(cloud: InProcess) -> None:
    client, at = cloud.client("cloudwatch"), now(cloud)
    with pytest.raises(ClientError, match="must not equal"):
        client.get_metric_data(MetricDataQueries=[stat()], StartTime=at, EndTime=at)
    with pytest.raises(ClientError, match="EndTime must be greater"):
        client.get_metric_data(MetricDataQueries=[stat()], StartTime=at, EndTime=at - timedelta(minutes=1))
    with pytest.raises(ClientError, match="exceeds the limit of 1440"):
        client.get_metric_statistics(
            Namespace="W", MetricName="m", StartTime=at - timedelta(days=2), EndTime=at, Period=60, Statistics=["Sum"]
        )
    with pytest.raises(ClientError, match="Must specify either Statistics or ExtendedStatistics"):
        client.get_metric_statistics(
            Namespace="W", MetricName="m", StartTime=at - timedelta(days=1), EndTime=at, Period=60
        )


def test_a_range_from_the_beginning_of_time_is_answered(cloud: InProcess) -> None:
    put(cloud, Value=1.0)
    answer = cloud.client("cloudwatch").get_metric_data(
        MetricDataQueries=[stat(period=1)],
        StartTime=datetime(1970, 1, 2, tzinfo=UTC),
        EndTime=datetime(2200, 1, 1, tzinfo=UTC),
    )
    assert answer["MetricDataResults"][0]["Values"] == [1.0]


# --- alarms ---


def alarm(name: str = "slow", **changes: Any) -> dict[str, Any]:
    return {
        "AlarmName": name,
        "Namespace": "Windlass",
        "MetricName": "Latency",
        "Dimensions": DIMENSIONS,
        "Period": 10,
        "Statistic": "Average",
        "EvaluationPeriods": 1,
        "Threshold": 100.0,
        "ComparisonOperator": "GreaterThanThreshold",
        **changes,
    }


def test_an_alarm_is_described_as_it_was_put(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    request = alarm(
        AlarmDescription="too slow",
        OKActions=["arn:aws:sns:us-east-1:123456789012:ok"],
        DatapointsToAlarm=1,
        TreatMissingData="notBreaching",
        Unit="Milliseconds",
    )
    client.put_metric_alarm(**request)
    (described,) = client.describe_alarms()["MetricAlarms"]
    assert {name: described[name] for name in request} == request
    assert described["AlarmArn"] == "arn:aws:cloudwatch:us-east-1:123456789012:alarm:slow"
    assert described["StateValue"] == "INSUFFICIENT_DATA"
    assert described["StateReason"] == "Unchecked: Initial alarm creation"
    assert described["ActionsEnabled"] is True
    assert described["AlarmConfigurationUpdatedTimestamp"] == now(cloud)


def test_alarms_are_found_by_names_prefix_state_type_and_action(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**alarm("a-1", AlarmActions=["arn:aws:sns:us-east-1:123456789012:page"]))
    client.put_metric_alarm(**alarm("a-2"))
    client.put_metric_alarm(**alarm("b-1"))
    client.put_composite_alarm(AlarmName="both", AlarmRule="ALARM(a-1) AND ALARM(a-2)")
    client.set_alarm_state(AlarmName="a-2", StateValue="ALARM", StateReason="test")

    def names(**filters: Any) -> list[str]:
        answer = client.describe_alarms(**filters)
        return [each["AlarmName"] for each in answer["MetricAlarms"] + answer["CompositeAlarms"]]

    assert names() == ["a-1", "a-2", "b-1"]
    assert names(AlarmNames=["b-1", "both", "gone"]) == ["b-1", "both"]
    assert names(AlarmNamePrefix="a-") == ["a-1", "a-2"]
    assert names(StateValue="ALARM") == ["a-2"]
    assert names(AlarmTypes=["CompositeAlarm"]) == ["both"]
    assert names(ActionPrefix="arn:aws:sns") == ["a-1"]
    assert names(ChildrenOfAlarmName="both") == ["a-1", "a-2"]
    assert names(ParentsOfAlarmName="a-1") == ["both"]


def test_alarms_in_pages(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    for number in range(5):
        client.put_metric_alarm(**alarm(f"a{number}"))
    pages = client.get_paginator("describe_alarms").paginate(PaginationConfig={"PageSize": 2})
    assert [[each["AlarmName"] for each in page["MetricAlarms"]] for page in pages] == [
        ["a0", "a1"],
        ["a2", "a3"],
        ["a4"],
    ]


def test_alarms_for_a_metric(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**alarm())
    wanted = {"Namespace": "Windlass", "MetricName": "Latency", "Dimensions": DIMENSIONS}
    assert [each["AlarmName"] for each in client.describe_alarms_for_metric(**wanted)["MetricAlarms"]] == ["slow"]
    assert client.describe_alarms_for_metric(**wanted, Statistic="Sum")["MetricAlarms"] == []
    assert client.describe_alarms_for_metric(Namespace="Windlass", MetricName="Latency")["MetricAlarms"] == []


def test_delete_is_all_or_nothing(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**alarm("one"))
    client.put_metric_alarm(**alarm("two"))
    client.put_composite_alarm(AlarmName="both", AlarmRule="ALARM(one)")
    with pytest.raises(client.exceptions.ResourceNotFound):
        client.delete_alarms(AlarmNames=["two", "gone"])
    with pytest.raises(ClientError, match="composite alarm\\(s\\) depending on it"):
        client.delete_alarms(AlarmNames=["one", "two"])
    client.delete_alarms(AlarmNames=["two"])
    client.delete_alarms(AlarmNames=["both"])
    client.delete_alarms(AlarmNames=["one"])
    assert client.describe_alarms(AlarmTypes=["MetricAlarm", "CompositeAlarm"])["MetricAlarms"] == []


def test_actions_can_be_disabled(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**alarm())
    client.disable_alarm_actions(AlarmNames=["slow"])
    assert client.describe_alarms()["MetricAlarms"][0]["ActionsEnabled"] is False
    client.enable_alarm_actions(AlarmNames=["slow"])
    assert client.describe_alarms()["MetricAlarms"][0]["ActionsEnabled"] is True


def test_history_in_both_directions(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**alarm())
    client.set_alarm_state(AlarmName="slow", StateValue="OK", StateReason="test", StateReasonData='{"why": "test"}')
    items = client.describe_alarm_history(AlarmName="slow", ScanBy="TimestampAscending")["AlarmHistoryItems"]
    assert [(item["HistoryItemType"], item["HistorySummary"]) for item in items] == [
        ("ConfigurationUpdate", 'Alarm "slow" created'),
        ("StateUpdate", "Alarm updated from INSUFFICIENT_DATA to OK"),
    ]
    assert json.loads(items[1]["HistoryData"])["newState"] == {
        "stateValue": "OK",
        "stateReason": "test",
        "stateReasonData": {"why": "test"},
    }
    latest = client.describe_alarm_history(AlarmName="slow", MaxRecords=1)
    assert latest["AlarmHistoryItems"][0]["HistoryItemType"] == "StateUpdate"
    more = client.describe_alarm_history(AlarmName="slow", MaxRecords=1, NextToken=latest["NextToken"])
    assert more["AlarmHistoryItems"][0]["HistoryItemType"] == "ConfigurationUpdate"
    assert "NextToken" not in more
    only = client.describe_alarm_history(HistoryItemType="StateUpdate")["AlarmHistoryItems"]
    assert [item["AlarmName"] for item in only] == ["slow"]


def test_tags_of_alarms(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**alarm(Tags=[{"Key": "a", "Value": "1"}]))
    arn = "arn:aws:cloudwatch:us-east-1:123456789012:alarm:slow"
    client.tag_resource(ResourceARN=arn, Tags=[{"Key": "b", "Value": "2"}])
    client.untag_resource(ResourceARN=arn, TagKeys=["a"])
    assert client.list_tags_for_resource(ResourceARN=arn)["Tags"] == [{"Key": "b", "Value": "2"}]
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.list_tags_for_resource(ResourceARN=arn + "-gone")


METRICS = [stat("Errors", "Sum", 10, "errors", ReturnData=False), {"Id": "e1", "Expression": "errors * 2"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ComparisonOperator": None}, "at 'comparisonOperator' failed"),
        ({"Threshold": None}, "Threshold is required"),
        ({"EvaluationPeriods": None}, "EvaluationPeriods is required"),
        ({"DatapointsToAlarm": 2}, "DatapointsToAlarm \\(2\\) must not be greater than EvaluationPeriods"),
        ({"Statistic": None}, "Exactly one of the parameters Statistic and ExtendedStatistic"),
        ({"ExtendedStatistic": "p99"}, "Exactly one of the parameters Statistic and ExtendedStatistic"),
        (
            {"Statistic": None, "ExtendedStatistic": "p101"},
            "The value p101 for parameter ExtendedStatistic is not supported",
        ),
        ({"Period": 5}, "period of an alarm must be 10, 20, 30 or a multiple of 60"),
        ({"Period": 90}, "must be 1, 5, 10, 20, 30 or a multiple of 60"),
        ({"Period": None}, "Period is required"),
        ({"MetricName": None}, "MetricName is required"),
        ({"Period": 60, "EvaluationPeriods": 1441}, "more than 1 days"),
        ({"TreatMissingData": "guess"}, "Option guess is not supported"),
        ({"EvaluateLowSampleCountPercentile": "guess"}, "Option guess is not supported"),
        ({"AlarmActions": ["nonsense"]}, "Invalid arn syntax: nonsense"),
        (
            {"AlarmActions": ["arn:aws:sns:us-east-1:123456789012:t"] * 6},
            "AlarmActions must not have a size greater than 5",
        ),
        ({"Metrics": METRICS}, "Metrics and MetricName are mutually exclusive"),
        ({"EvaluationInterval": 10}, "EvaluationInterval is not implemented"),
    ],
)
def test_put_metric_alarm_refuses_what_aws_refuses(cloud: InProcess, changes: dict[str, Any], message: str) -> None:
    client = cloud.client("cloudwatch")
    request = {name: value for name, value in alarm(**changes).items() if value is not None}
    with pytest.raises(ClientError, match=message):
        client.put_metric_alarm(**request)
    assert client.describe_alarms()["MetricAlarms"] == []


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            [stat(period=10), stat(period=10, id="m2")],
            "Exactly one element of the metrics list should return data; 2 do",
        ),
        ([stat(period=10), stat(period=20, id="m2", ReturnData=False)], "Exactly one period"),
        ([{"Id": "e1", "Expression": "m1"}], "Metric 'm1' is not defined"),
    ],
)
def test_alarms_on_metric_math_are_checked(cloud: InProcess, metrics: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ClientError, match=message):
        cloud.client("cloudwatch").put_metric_alarm(
            AlarmName="math",
            Metrics=metrics,
            EvaluationPeriods=1,
            Threshold=1.0,
            ComparisonOperator="GreaterThanThreshold",
        )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("ALARM(slow", "ends too early|parentheses"),
        ("ALARM(gone)", "do not exist: gone"),
        ("ALARM(self)", "refers to itself"),
    ],
)
def test_composite_rules_are_checked(cloud: InProcess, rule: str, message: str) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**alarm())
    with pytest.raises(ClientError, match=message):
        client.put_composite_alarm(AlarmName="self", AlarmRule=rule)


def test_set_alarm_state_is_checked(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**alarm())
    with pytest.raises(client.exceptions.ResourceNotFound):
        client.set_alarm_state(AlarmName="gone", StateValue="OK", StateReason="test")
    with pytest.raises(client.exceptions.InvalidFormatFault):
        client.set_alarm_state(AlarmName="slow", StateValue="OK", StateReason="test", StateReasonData="{")
    with pytest.raises(ClientError, match="at 'stateValue' failed"):
        client.set_alarm_state(AlarmName="slow", StateValue="FINE", StateReason="test")


def test_dashboards_are_kept(cloud: InProcess) -> None:
    client = cloud.client("cloudwatch")
    client.put_dashboard(DashboardName="d", DashboardBody='{"widgets": []}')
    assert client.get_dashboard(DashboardName="d")["DashboardBody"] == '{"widgets": []}'
    assert [entry["DashboardName"] for entry in client.list_dashboards()["DashboardEntries"]] == ["d"]
    client.delete_dashboards(DashboardNames=["d"])


def test_what_is_not_there_is_refused_by_name(cloud: InProcess) -> None:
    with pytest.raises(ClientError, match="PutAnomalyDetector is not implemented by the local cloud") as caught:
        cloud.client("cloudwatch").put_anomaly_detector(Namespace="W", MetricName="m", Stat="Average")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


# --- protocols ---


def call(cloud: InProcess, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
    scope = f"AKIAAAAAAAAAAAAAAAAA/20260101/{REGION}/monitoring/aws4_request"
    authorization = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none"
    request = Request(cloud.url + "/", data=body, headers={**headers, "Authorization": authorization})
    try:
        with urlopen(request) as response:
            return response.status, response.read().decode()
    except OSError as error:
        with error:  # type: ignore[attr-defined]
            return error.code, error.read().decode()  # type: ignore[attr-defined]


def query(cloud: InProcess, action: str, **params: str) -> tuple[int, str]:
    body = urlencode({"Action": action, "Version": "2010-08-01", **params}).encode()
    return call(cloud, body, {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"})


def test_the_query_protocol_of_older_clients(cloud: InProcess) -> None:
    stamp = now(cloud).strftime("%Y-%m-%dT%H:%M:%SZ")
    later = (now(cloud) + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    metric = {
        "MetricData.member.1.MetricName": "m",
        "MetricData.member.1.Value": "3",
        "MetricData.member.1.Timestamp": stamp,
    }
    assert query(cloud, "PutMetricData", Namespace="W", **metric)[0] == 200
    status, text = query(
        cloud,
        "GetMetricData",
        StartTime=stamp,
        EndTime=later,
        **{
            "MetricDataQueries.member.1.Id": "m1",
            "MetricDataQueries.member.1.MetricStat.Metric.Namespace": "W",
            "MetricDataQueries.member.1.MetricStat.Metric.MetricName": "m",
            "MetricDataQueries.member.1.MetricStat.Period": "60",
            "MetricDataQueries.member.1.MetricStat.Stat": "Sum",
        },
    )
    assert status == 200
    assert f"<Timestamps><member>{stamp}</member></Timestamps><Values><member>3.0</member></Values>" in text
    simple = {name: str(value) for name, value in alarm().items() if name != "Dimensions"}
    assert query(cloud, "PutMetricAlarm", **simple)[0] == 200
    assert "<AlarmName>slow</AlarmName>" in query(cloud, "DescribeAlarms")[1]
    status, text = query(cloud, "PutMetricData", Namespace="AWS/W", **metric)
    assert (status, "<Code>InvalidParameterValue</Code>" in text) == (400, True)
    status, text = query(cloud, "PutAnomalyDetector")
    assert (status, "PutAnomalyDetector is not implemented" in text) == (400, True)


JSON = {"Content-Type": "application/x-amz-json-1.0"}


def target(action: str) -> dict[str, str]:
    return {**JSON, "X-Amz-Target": f"GraniteServiceVersion20100801.{action}"}


def test_compressed_bodies(cloud: InProcess) -> None:
    body = gzip.compress(json.dumps({"Namespace": "W", "MetricData": [datum()]}).encode())
    assert call(cloud, body, {**target("PutMetricData"), "Content-Encoding": "gzip"})[0] == 200
    assert len(cloud.client("cloudwatch").list_metrics()["Metrics"]) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "SerializationException"),
        (b'{"Namespace": "W", "MetricData": 7}', "SerializationException"),
        (b'{"Namespace": "W", "MetricData": ["m"]}', "SerializationException"),
        (b'{"Namespace": "W", "MetricData": [{"MetricName": 7, "Value": 1}]}', "SerializationException"),
        (b'{"Namespace": "W", "MetricData": [{"MetricName": "m", "Value": "seven"}]}', "InvalidParameterValue"),
        (b'{"MetricData": []}', "MissingRequiredParameterException"),
        (b'{"Namespace": "W", "MetricData": "' + b"x" * 1_048_577 + b'"}', "RequestEntityTooLarge"),
    ],
)
def test_malformed_requests_are_the_callers_fault(cloud: InProcess, body: bytes, code: str) -> None:
    status, text = call(cloud, body, target("PutMetricData"))
    assert status == 400
    assert code in text


def put_environ(body: bytes, **more: str) -> dict[str, Any]:
    scope = f"AWS4-HMAC-SHA256 Credential=key/20260101/{REGION}/monitoring/aws4_request, SignedHeaders=host"
    return {
        "HTTP_X_AMZ_TARGET": "GraniteServiceVersion20100801.PutMetricData",
        "HTTP_AUTHORIZATION": scope,
        "CONTENT_TYPE": "application/x-amz-json-1.0",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        **more,
    }


def test_plain_data_goes_a_shorter_way(cloud: InProcess) -> None:
    body = json.dumps({"Namespace": "Short", "MetricData": [{"MetricName": "Way", "Value": 1.5}]}).encode()
    assert put_at_once(cloud, put_environ(body)) == ("application/x-amz-json-1.0", b"{}")
    packed = gzip.compress(body)
    assert put_at_once(cloud, put_environ(packed, HTTP_CONTENT_ENCODING="gzip")) is not None
    now = cloud.clock.now()
    assert cloud.metrics.read(REGION, Metric.of("Short", "Way", {}), now - 60, now + 1).low.tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (b"{", {}),
        (b'{"Namespace": "AWS/EC2", "MetricData": [{"MetricName": "x", "Value": 1}]}', {}),
        (b'{"MetricData": [{"MetricName": "x", "Value": 1}]}', {}),
        (b"[]", {}),
        (b"not packed", {"HTTP_CONTENT_ENCODING": "gzip"}),
        (b"{}", {"CONTENT_LENGTH": "9999999"}),
        (b"{}", {"HTTP_AUTHORIZATION": ""}),
        (b"{}", {"HTTP_X_AMZ_TARGET": "GraniteServiceVersion20100801.ListMetrics"}),
        (b"{}", {"CONTENT_TYPE": "application/x-www-form-urlencoded"}),
    ],
)
def test_everything_else_keeps_its_body_for_the_longer_way(cloud: InProcess, body: bytes, more: dict[str, str]) -> None:
    environ = put_environ(body, **more)
    assert put_at_once(cloud, environ) is None
    assert environ["wsgi.input"].read() == body
