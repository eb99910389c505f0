"""The CloudWatch API of the local cloud, over our own metric store and alarms.

    register(cloud)          # in the place of moto's, before its first request

All operations on metrics and alarms are here; dashboards are moto's records. Everything else is refused by its name.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import types
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from botocore.validate import ParamValidator
from moto.cloudwatch.models import CloudWatchBackend, cloudwatch_backends
from moto.cloudwatch.responses import CloudWatchResponse
from moto.cloudwatch.urls import url_bases
from moto.core import errors
from moto.core.resource_tagging import TaggedResource
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import get_service_model

from windlass.local.clock import Clock
from windlass.local.cloudwatch import dashboards, log_metrics
from windlass.local.cloudwatch.alarm_settings import Alarm
from windlass.local.cloudwatch.alarms import STATES, AlarmEngine
from windlass.local.cloudwatch.metric_data import as_fault, datum_of, parse_metric_data, seconds_of
from windlass.local.cloudwatch.metric_queries import (
    Evaluation,
    MetricStat,
    dimensions_of,
    grid_between,
    parse_queries,
    valid_period,
    valid_statistic,
    valid_unit,
)
from windlass.local.cloudwatch.metric_store import Metric, MetricStore
from windlass.local.cloudwatch.statistics import BASIC, Statistic
from windlass.local.events import bus as local_events
from windlass.local.events.bus import EventBus, refused
from windlass.local.faults import Fault
from windlass.metrics import UNITS

__all__ = ["MetricStore", "put_at_once", "register"]

_DAY = 86_400
_MOST_BYTES = 1_048_576
_MOST_DATAPOINTS = 100_800
_MOST_STATISTICS_DATAPOINTS = 1440
_METRICS_A_PAGE = 500
_ALARMS_A_PAGE = 100
_LISTED_SECONDS = 14 * _DAY  # ListMetrics leaves out what has had no data for two weeks

_COMMON_CODES = ("UnknownOperationException", "SerializationException", "RequestEntityTooLarge")

# Operations of moto's that are true records.
_DASHBOARDS_OF_PAGE = 1000
_MOTO_OPERATIONS = frozenset({"PutDashboard", "GetDashboard", "ListDashboards", "DeleteDashboards"})


class HasCloudWatch(Protocol):
    """What `register` needs of the local cloud."""

    @property
    def metrics(self) -> MetricStore: ...
    @property
    def alarms(self) -> AlarmEngine: ...
    @property
    def events(self) -> EventBus: ...
    @property
    def clock(self) -> Clock: ...


class _Json(ActionResult):  # type: ignore[misc]
    """An answer that is JSON already in shape: moto's serializer takes seconds for 100,000 data points."""


def put_at_once(cloud: HasCloudWatch, environ: dict[str, Any]) -> tuple[str, bytes] | None:
    """(content type, body) of the answer to a good PutMetricData in JSON; None for any other request, whose body stays unread.

    Agents call it all day, and moto's way to an operation takes longer than the operation. Whatever is not plain and right
    goes that way all the same, and gets its error there.
    """
    if not environ.get("HTTP_X_AMZ_TARGET", "").endswith(".PutMetricData"):
        return None
    if "json" not in environ.get("CONTENT_TYPE", "") or not (length := int(environ.get("CONTENT_LENGTH") or 0)):
        return None
    scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split("/", 4)
    if length > _MOST_BYTES or len(scope) != 5 or scope[3] != "monitoring":
        return None
    body: bytes = environ["wsgi.input"].read(length)
    environ["wsgi.input"] = io.BytesIO(body)
    try:
        if environ.get("HTTP_CONTENT_ENCODING") == "gzip":
            body = gzip.decompress(body)
        data = parse_metric_data(json.loads(body), cloud.clock.now())
    except (Fault, OSError, EOFError, zlib.error, AttributeError, KeyError, TypeError, ValueError):
        return None
    cloud.metrics.put_many(scope[2], data)
    return "application/x-amz-json-1.0", b"{}"


class LocalCloudWatchResponse(CloudWatchResponse):  # type: ignore[misc]
    """One request. boto3 speaks JSON to CloudWatch, the AWS CLI and older SDKs the query protocol; both end up here."""

    cloud: ClassVar[HasCloudWatch]

    # --- in and out ---

    @property
    def _speaks_json(self) -> bool:
        return "json" in (self.headers.get("Content-Type") or "")

    def parse_parameters(self, request: Any) -> None:
        if self._get_action() not in _OURS or not self._speaks_json:
            if self._get_action() in _OURS | _MOTO_OPERATIONS:
                super().parse_parameters(request)
            return
        try:
            self.params = json.loads(request.get_data() or b"{}")
        except ValueError:
            self.params = {}
            self._malformed = True

    def call_action(self) -> Any:
        action = self._get_action() or ""
        if action not in _OURS and action not in _MOTO_OPERATIONS:
            return refused(self, f"CloudWatch {action} is not implemented by the local cloud.")
        try:
            return super().call_action()
        except (AttributeError, KeyError, TypeError, ValueError):
            # A wrong type somewhere in the request. Checking every type of every request would cost more than answering it.
            if problem := self._wrong_types(action):
                return refused(self, problem, code="SerializationException")
            raise

    def _wrong_types(self, action: str) -> str:
        shape = get_service_model("cloudwatch").operation_model(action).input_shape
        problems: str = ParamValidator().validate(self.params, shape).generate_report()
        return problems

    def serialized(self, action_result: ActionResult) -> Any:
        if isinstance(action_result, _Json) and self._speaks_json:
            # Bytes: moto would search a text for a request id to replace.
            headers = {"Content-Type": "application/x-amz-json-1.0", **self.response_headers}
            return 200, headers, json.dumps(action_result.result).encode()
        return super().serialized(action_result)

    def _enter(self, *required: str) -> dict[str, Any]:
        """The parameters, after the checks that every operation has."""
        if getattr(self, "_malformed", False):
            raise Fault("SerializationException", "The body of the request is not valid JSON.")
        params: dict[str, Any] = self.params
        for name in required:
            if params.get(name) in (None, ""):
                raise Fault("MissingParameter", f"The parameter {name} is required.")
        return params

    @property
    def _now(self) -> float:
        return self.cloud.clock.now()

    # --- metrics ---

    def put_metric_data(self) -> ActionResult:
        params = self._enter("Namespace")
        if int(self.headers.get("Content-Length") or 0) > _MOST_BYTES:
            raise Fault("RequestEntityTooLarge", f"The request is larger than {_MOST_BYTES} bytes.")
        self.cloud.metrics.put_many(self.region, parse_metric_data(params, self._now))
        return EmptyResult()

    def get_metric_data(self) -> ActionResult:
        params = self._enter("MetricDataQueries", "StartTime", "EndTime")
        start, end = seconds_of(params["StartTime"], "StartTime"), seconds_of(params["EndTime"], "EndTime")
        if start > end:
            raise Fault("ValidationError", "The parameter EndTime must be greater than StartTime.")
        if start == end:
            raise Fault("ValidationError", "The parameter StartTime must not equal parameter EndTime.")
        newest_first = _scan_by(params) == "TimestampDescending"
        most = params.get("MaxDatapoints") or _MOST_DATAPOINTS
        if not 1 <= most <= _MOST_DATAPOINTS:
            raise Fault(
                "ValidationError", f"The parameter MaxDatapoints must be from 1 to {_MOST_DATAPOINTS}; it is {most}."
            )
        queries = parse_queries(params["MetricDataQueries"], "MetricDataQueries")
        now = self._now
        evaluation = Evaluation(
            self.cloud.metrics, self.region, queries, lambda period: grid_between(start, end, period, now)
        )
        labels = _labels([query.stat for query in queries if query.returned and query.stat])
        results: list[dict[str, Any]] = []
        for query in queries:
            if not query.returned:
                continue
            grid, lines = evaluation.result(query.id)
            times = grid.times
            for line in lines:
                there = np.flatnonzero(~np.isnan(line.values))
                if newest_first:
                    there = there[::-1]
                label = query.label or (
                    labels[query.stat] if query.stat else line.label if len(lines) > 1 else query.id
                )
                results.append(
                    {
                        "Id": query.id,
                        "Label": label,
                        "Timestamps": times[there].tolist(),
                        "Values": line.values[there].tolist(),
                        "StatusCode": "Complete",
                    }
                )
        page, token = _page_of_datapoints(results, most, params)
        answer: dict[str, Any] = {"MetricDataResults": page, "Messages": []}
        return _Json(answer if token is None else {**answer, "NextToken": token})

    def get_metric_statistics(self) -> ActionResult:
        params = self._enter("Namespace", "MetricName", "StartTime", "EndTime", "Period")
        start, end = seconds_of(params["StartTime"], "StartTime"), seconds_of(params["EndTime"], "EndTime")
        if start >= end:
            raise Fault("InvalidParameterValue", "The parameter StartTime must be less than the parameter EndTime.")
        basic, extended = params.get("Statistics") or [], params.get("ExtendedStatistics") or []
        if not basic and not extended:
            raise Fault("InvalidParameterCombination", "Must specify either Statistics or ExtendedStatistics")
        if basic and extended:
            raise Fault("InvalidParameterCombination", "Must specify either Statistics or ExtendedStatistics, not both")
        for name in basic:
            if name not in BASIC:
                raise Fault("InvalidParameterValue", f"The value {name} for parameter Statistics is not supported.")
        period = valid_period(params["Period"], "Period")
        wanted = [Statistic(name, name) for name in basic]
        wanted += [valid_statistic(name, "ExtendedStatistics") for name in extended]
        metric = Metric.of(
            params["Namespace"], params["MetricName"], dimensions_of(params.get("Dimensions") or [], "Dimensions")
        )
        # Unlike GetMetricData, the periods begin at the StartTime of the request, which is rounded down.
        rounding = period if period < 60 else 60
        first = math.floor(start / rounding) * rounding
        asked = math.ceil((end - first) / period)
        if asked > _MOST_STATISTICS_DATAPOINTS:
            raise Fault(
                "InvalidParameterCombination",
                f"You have requested up to {asked} datapoints, which exceeds the limit of {_MOST_STATISTICS_DATAPOINTS}. "
                "You may reduce the datapoints requested by increasing Period, or decreasing the time range.",
            )
        points = self.cloud.metrics.read(self.region, metric, first, first + asked * period)
        if params.get("Unit") is not None:
            points = points[points.unit == UNITS.index(valid_unit(params["Unit"], "Unit"))]
        datapoints: dict[tuple[int, int], dict[str, Any]] = {}
        for unit in np.unique(points.unit).tolist():
            same = points[points.unit == unit]
            buckets = (same.t - first * 1000) // (period * 1000)
            for statistic in wanted:
                present, values = statistic.over(same, buckets)
                for bucket, value in zip(present.tolist(), values.tolist(), strict=True):
                    datapoint = datapoints.setdefault(
                        (bucket, unit), {"Timestamp": float(first + bucket * period), "Unit": UNITS[unit]}
                    )
                    if statistic.kind in BASIC:
                        datapoint[statistic.name] = value
                    else:
                        datapoint.setdefault("ExtendedStatistics", {})[statistic.name] = value
        return _Json({"Label": metric.name, "Datapoints": list(datapoints.values())})

    def list_metrics(self) -> ActionResult:
        params = self._enter()
        recent = params.get("RecentlyActive")
        if recent not in (None, "PT3H"):
            raise Fault("InvalidParameterValue", f"The value {recent} for parameter RecentlyActive must be PT3H.")
        wanted = [(each.get("Name"), each.get("Value")) for each in params.get("Dimensions") or []]
        if len(wanted) > 10:
            raise Fault("InvalidParameterValue", "The collection Dimensions must not have a size greater than 10.")
        after = _token_number(params, "InvalidParameterValue")
        found = [
            (number, metric)
            for number, metric in self.cloud.metrics.metrics(
                self.region, self._now - (3 * 3600 if recent else _LISTED_SECONDS)
            )
            if number > after
            and params.get("Namespace") in (None, metric.namespace)
            and params.get("MetricName") in (None, metric.name)
            and all(_has_dimension(metric, name, value) for name, value in wanted)
        ]
        answer: dict[str, Any] = {
            "Metrics": [
                {
                    "Namespace": metric.namespace,
                    "MetricName": metric.name,
                    "Dimensions": [{"Name": name, "Value": value} for name, value in metric.dimensions],
                }
                for _, metric in found[:_METRICS_A_PAGE]
            ]
        }
        if len(found) > _METRICS_A_PAGE:
            answer["NextToken"] = _token({"after": found[_METRICS_A_PAGE - 1][0]})
        return _Json(answer)

    # --- alarms ---

    def put_metric_alarm(self) -> ActionResult:
        self.cloud.alarms.put_metric_alarm(self.region, self._plain(self._enter()))
        return EmptyResult()

    def put_composite_alarm(self) -> ActionResult:
        self.cloud.alarms.put_composite_alarm(self.region, self._plain(self._enter()))
        return EmptyResult()

    @staticmethod
    def _plain(params: Any) -> Any:
        """Without the members that the query parser leaves at None."""
        if isinstance(params, Mapping):
            return {key: LocalCloudWatchResponse._plain(value) for key, value in params.items() if value is not None}
        if isinstance(params, list):
            return [LocalCloudWatchResponse._plain(value) for value in params]
        return params

    def describe_alarms(self) -> ActionResult:
        params = self._enter()
        names, prefix = params.get("AlarmNames") or [], params.get("AlarmNamePrefix")
        if names and prefix:
            raise Fault("ValidationError", "The parameters AlarmNames and AlarmNamePrefix are mutually exclusive.")
        if len(names) > _ALARMS_A_PAGE:
            raise Fault(
                "ValidationError", f"The collection AlarmNames must not have a size greater than {_ALARMS_A_PAGE}."
            )
        types = params.get("AlarmTypes") or ["MetricAlarm"]
        if unknown := [kind for kind in types if kind not in ("MetricAlarm", "CompositeAlarm", "LogAlarm")]:
            raise Fault(
                "ValidationError", f"Unknown alarm type {unknown[0]}. Known: MetricAlarm, CompositeAlarm, LogAlarm."
            )
        state, action = params.get("StateValue"), params.get("ActionPrefix")
        if state is not None:
            _valid_state(state)
        found = [
            alarm
            for alarm in self.cloud.alarms.all(self.region)
            # AWS: without AlarmTypes metric alarms only, but names find every kind.
            if (alarm.kind in types or (names and not params.get("AlarmTypes")))
            and (not names or alarm.name in names)
            and (prefix is None or alarm.name.startswith(prefix))
            and (state is None or alarm.state == state)
            and (action is None or any(one.startswith(action) for each in STATES for one in alarm.actions(each)))
        ]
        found = self._family(found, params)
        page, token = _page(found, params)
        answer: dict[str, Any] = {
            "MetricAlarms": [alarm.describe() for alarm in page if alarm.rule is None],
            "CompositeAlarms": [alarm.describe() for alarm in page if alarm.rule is not None],
        }
        return _Json(answer if token is None else {**answer, "NextToken": token})

    def _family(self, found: list[Alarm], params: Mapping[str, Any]) -> list[Alarm]:
        """What ChildrenOfAlarmName and ParentsOfAlarmName leave; they show all kinds."""
        every = self.cloud.alarms.all(self.region)
        if name := params.get("ChildrenOfAlarmName"):
            parent = self.cloud.alarms.find(self.region, name)
            children = parent.rule.children if parent and parent.rule else ()
            return [alarm for alarm in every if alarm.name in children]
        if name := params.get("ParentsOfAlarmName"):
            return [alarm for alarm in every if alarm.rule and name in alarm.rule.children]
        return found

    def describe_alarms_for_metric(self) -> ActionResult:
        params = self._enter("MetricName", "Namespace")
        given = {
            name: params[name] for name in ("Statistic", "ExtendedStatistic", "Period", "Unit") if params.get(name)
        }
        metric = Metric.of(
            params["Namespace"], params["MetricName"], dimensions_of(params.get("Dimensions") or [], "Dimensions")
        )
        found = [
            alarm.describe()
            for alarm in self.cloud.alarms.all(self.region)
            if alarm.condition is not None
            and metric in alarm.condition.metrics
            and all(alarm.settings.get(name) == value for name, value in given.items())
        ]
        return _Json({"MetricAlarms": found})

    def delete_alarms(self) -> ActionResult:
        names = self._enter("AlarmNames")["AlarmNames"]
        if len(names) > _ALARMS_A_PAGE:
            raise Fault(
                "ValidationError", f"The collection AlarmNames must not have a size greater than {_ALARMS_A_PAGE}."
            )
        self.cloud.alarms.delete(self.region, names)
        return EmptyResult()

    def set_alarm_state(self) -> ActionResult:
        params = self._enter("AlarmName", "StateValue")
        if params.get("StateReason") is None:
            raise Fault("MissingParameter", "The parameter StateReason is required.")
        _valid_state(params["StateValue"])
        data = params.get("StateReasonData")
        if data is not None:
            with as_fault("InvalidFormat", "StateReasonData is not valid JSON."):
                json.loads(data)
        self.cloud.alarms.set_state(self.region, params["AlarmName"], params["StateValue"], params["StateReason"], data)
        return EmptyResult()

    def enable_alarm_actions(self) -> ActionResult:
        self.cloud.alarms.enable_actions(self.region, self._enter("AlarmNames")["AlarmNames"], enabled=True)
        return EmptyResult()

    def disable_alarm_actions(self) -> ActionResult:
        self.cloud.alarms.enable_actions(self.region, self._enter("AlarmNames")["AlarmNames"], enabled=False)
        return EmptyResult()

    def describe_alarm_history(self) -> ActionResult:
        params = self._enter()
        kinds = params.get("AlarmTypes") or ["MetricAlarm"]
        start = seconds_of(params["StartDate"], "StartDate") if params.get("StartDate") is not None else -math.inf
        end = seconds_of(params["EndDate"], "EndDate") if params.get("EndDate") is not None else math.inf
        name = params.get("AlarmName")
        found = [
            item
            for item in self.cloud.alarms.history(self.region)
            if (item.alarm == name if name else item.kind in kinds)
            and (name is None or not params.get("AlarmTypes") or item.kind in kinds)
            and params.get("HistoryItemType") in (None, item.type)
            and start <= item.at <= end
        ]
        if _scan_by(params) == "TimestampDescending":
            found.reverse()
        page, token = _page(found, params)
        answer: dict[str, Any] = {"AlarmHistoryItems": [item.describe() for item in page]}
        return _Json(answer if token is None else {**answer, "NextToken": token})

    def _tagged(self) -> Alarm:
        arn = self._enter("ResourceARN")["ResourceARN"]
        alarm = self.cloud.alarms.find(self.region, arn.split(":alarm:", 1)[-1])
        if alarm is None or alarm.arn != arn:
            raise Fault("ResourceNotFoundException", f"Unknown resource: {arn}")
        return alarm

    def list_tags_for_resource(self) -> ActionResult:
        return _Json({"Tags": [{"Key": key, "Value": value} for key, value in self._tagged().tags.items()]})

    def tag_resource(self) -> ActionResult:
        alarm = self._tagged()
        alarm.tags = {**alarm.tags, **{tag["Key"]: tag["Value"] for tag in self._enter("Tags")["Tags"]}}
        return EmptyResult()

    def untag_resource(self) -> ActionResult:
        alarm, keys = self._tagged(), self._enter("TagKeys")["TagKeys"]
        alarm.tags = {key: value for key, value in alarm.tags.items() if key not in keys}
        return EmptyResult()

    # --- dashboards: moto's records, our checks ---

    def put_dashboard(self) -> ActionResult:
        params = self._enter("DashboardName", "DashboardBody")
        dashboards.check(params["DashboardName"], params["DashboardBody"])
        return super().put_dashboard()

    def get_dashboard(self) -> ActionResult:
        name = self._enter("DashboardName")["DashboardName"]
        if self.cloudwatch_backend.get_dashboard(name) is None:
            raise Fault("ResourceNotFound", f"Dashboard {name} does not exist")
        return super().get_dashboard()

    def list_dashboards(self) -> ActionResult:
        prefix = self.params.get("DashboardNamePrefix") or ""
        found = sorted(self.cloudwatch_backend.list_dashboards(prefix), key=lambda dashboard: dashboard.name)
        start = int(self.params.get("NextToken") or 0) if str(self.params.get("NextToken") or 0).isdigit() else -1
        if not 0 <= start <= len(found):
            raise Fault("InvalidParameterValue", "The value of the parameter NextToken is invalid.")
        page = found[start : start + _DASHBOARDS_OF_PAGE]
        more = start + len(page) < len(found)
        token = str(start + len(page)) if more else None
        return ActionResult({"DashboardEntries": page, "NextToken": token})


_OURS = frozenset(
    "PutMetricData GetMetricData GetMetricStatistics ListMetrics PutMetricAlarm PutCompositeAlarm DescribeAlarms "
    "DescribeAlarmsForMetric DeleteAlarms SetAlarmState EnableAlarmActions DisableAlarmActions DescribeAlarmHistory "
    "ListTagsForResource TagResource UntagResource".split()
)


# --- reading a request -------------------------------------------------------------------------------------------------------


def _valid_state(state: Any) -> None:
    if state not in STATES:
        raise Fault(
            "ValidationError",
            f"1 validation error detected: Value '{state}' at 'stateValue' failed to satisfy constraint: "
            "Member must satisfy enum value set: [INSUFFICIENT_DATA, ALARM, OK]",
        )


def _scan_by(params: Mapping[str, Any]) -> str:
    order = params.get("ScanBy") or "TimestampDescending"
    if order not in ("TimestampDescending", "TimestampAscending"):
        raise Fault("ValidationError", f"ScanBy must be TimestampDescending or TimestampAscending; it is {order}.")
    return str(order)


def _has_dimension(metric: Metric, name: str | None, value: str | None) -> bool:
    return any(key == name and value in (None, held) for key, held in metric.dimensions)


def _labels(stats: Sequence[MetricStat]) -> dict[MetricStat, str]:
    """The name of each metric, with its statistic where the names alone are not enough."""
    names = [stat.metric.name for stat in dict.fromkeys(stats)]
    return {
        stat: stat.metric.name if names.count(stat.metric.name) == 1 else f"{stat.metric.name} {stat.statistic.name}"
        for stat in stats
    }


# --- pages -------------------------------------------------------------------------------------------------------------------


def _token(state: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(state).encode()).decode()


def _from_token(params: Mapping[str, Any], code: str) -> dict[str, Any]:
    token = params.get("NextToken")
    if not token:
        return {}
    with as_fault(code, "Request parameter NextToken is invalid"):
        state = json.loads(base64.urlsafe_b64decode(token))
        if isinstance(state, dict):
            return state
    raise Fault(code, "Request parameter NextToken is invalid")


def _token_number(params: Mapping[str, Any], code: str) -> int:
    with as_fault(code, "Request parameter NextToken is invalid"):
        return int(_from_token(params, code).get("after", 0))
    raise AssertionError("unreachable")


def _page(found: Sequence[Any], params: Mapping[str, Any]) -> tuple[list[Any], str | None]:
    most = params.get("MaxRecords") or _ALARMS_A_PAGE
    if not 1 <= most <= _ALARMS_A_PAGE:
        raise Fault("ValidationError", f"MaxRecords must be from 1 to {_ALARMS_A_PAGE}; it is {most}.")
    start = _token_number(params, "InvalidNextToken")
    page = list(found[start : start + most])
    return page, _token({"after": start + most}) if start + most < len(found) else None


def _page_of_datapoints(
    results: list[dict[str, Any]], most: int, params: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """As many data points as fit, query after query. The token holds where the next page begins, and for which request."""
    asked = {name: value for name, value in params.items() if name not in ("NextToken", "MaxDatapoints")}
    request = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
    state = _from_token(params, "InvalidNextToken")
    with as_fault("InvalidNextToken", "Request parameter NextToken is invalid"):
        begun, offset = (int(state["result"]), int(state["offset"])) if state else (0, 0)
    if state and state.get("request") != request:
        raise Fault("InvalidNextToken", "Request parameter NextToken belongs to another request")
    page = []
    for number, result in enumerate(results[begun:], begun):
        left = len(result["Values"]) - offset
        if left > most:
            if most:
                part = slice(offset, offset + most)
                values, times = result["Values"][part], result["Timestamps"][part]
                page.append({**result, "Timestamps": times, "Values": values, "StatusCode": "PartialData"})
            return page, _token({"request": request, "result": number, "offset": offset + most})
        page.append(
            {**result, "Timestamps": result["Timestamps"][offset:], "Values": result["Values"][offset:]}
            if offset
            else result
        )
        most, offset = most - left, 0
    return page, None


# --- in moto's place ---------------------------------------------------------------------------------------------------------


class LocalCloudWatchBackend(CloudWatchBackend):  # type: ignore[misc]
    """What other services of moto's call. Metrics and alarms go to our own store; dashboards stay here."""

    cloud: ClassVar[HasCloudWatch]
    url_module: ClassVar[Any]

    @property
    def _url_module(self) -> Any:
        return self.url_module

    def put_metric_data(self, namespace: str, metric_data: list[dict[str, Any]]) -> None:
        now = self.cloud.clock.now()
        data = [
            datum_of(namespace, datum, f"MetricData.member.{number}", now)
            for number, datum in enumerate(metric_data, 1)
        ]
        self.cloud.metrics.put_many(self.region_name, data)

    def put_metric_alarm(self, **arguments: Any) -> Alarm:
        request = {
            _ARGUMENTS.get(name, _camel(name)): value for name, value in arguments.items() if value not in (None, [])
        }
        return self.cloud.alarms.put_metric_alarm(self.region_name, request)

    def delete_alarms(self, alarm_names: list[str]) -> None:
        there = [name for name in alarm_names if self.cloud.alarms.find(self.region_name, name)]
        self.cloud.alarms.delete(self.region_name, there)

    def describe_alarms(self) -> list[Alarm]:
        return self.cloud.alarms.all(self.region_name)

    def iter_tagged_resources(self) -> Iterator[Any]:
        for alarm in self.cloud.alarms.all(self.region_name):
            yield TaggedResource(arn=alarm.arn, tags=dict(alarm.tags), resource_type="cloudwatch:alarm")


_ARGUMENTS = {"name": "AlarmName", "description": "AlarmDescription", "ok_actions": "OKActions"}


def _camel(name: str) -> str:
    return "".join(word.title() for word in name.split("_"))


def register(cloud: HasCloudWatch) -> None:
    """Put our CloudWatch and EventBridge in the place of moto's, before its first request, and start evaluating alarms."""
    response = type("RegisteredCloudWatchResponse", (LocalCloudWatchResponse,), {"cloud": cloud})
    dispatch: Callable[..., Any] = response.dispatch  # type: ignore[attr-defined]
    urls = types.SimpleNamespace(url_bases=url_bases, url_paths={"{0}/$": dispatch})
    # Codes that AWS answers with and its service models leave out; moto warns of those that it does not know.
    errors.COMMON_ERROR_CODES.extend(code for code in _COMMON_CODES if code not in errors.COMMON_ERROR_CODES)
    cloudwatch_backends.backend = type(
        "RegisteredCloudWatchBackend", (LocalCloudWatchBackend,), {"cloud": cloud, "url_module": urls}
    )
    cloudwatch_backends.clear()
    # Alarms change EventBridge's state of affairs too, so the two come together.
    local_events.register(cloud)
    log_metrics.register(cloud.metrics)
    cloud.events.start()
    cloud.alarms.start()
