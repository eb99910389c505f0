"""What GetMetricData and alarms ask of the metric store: statistics by period, and metric math over them.

queries = parse_queries(request["MetricDataQueries"], "MetricDataQueries")
evaluation = Evaluation(store, region, queries, lambda period: grid_between(start, end, period, now))
for query in queries:
    grid, lines = evaluation.result(query.id)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from windlass.local.cloudwatch.metric_math import Grid, Line, MathError, MetricMath, Scope
from windlass.local.cloudwatch.metric_search import Search, SearchError, labels_of
from windlass.local.cloudwatch.metric_store import Metric
from windlass.local.cloudwatch.statistics import Floats, Points, Statistic
from windlass.local.faults import Fault
from windlass.metrics import UNITS


class Metrics(Protocol):
    """Where data points are read: a MetricStore, or one on another time."""

    def read(self, region: str, metric: Metric, start: float, end: float) -> Points: ...

    def metrics(self, region: str, newer_than: float) -> list[tuple[int, Metric]]: ...


_HOUR, _DAY = 3600, 86_400
_ID = re.compile(r"[a-z][a-zA-Z0-9_]*")
_MOST_QUERIES = 500
_MOST_FOUND = 500


@dataclass(frozen=True)
class MetricStat:
    """One statistic of one metric, by period (seconds). `unit` None takes points of every unit."""

    metric: Metric
    period: int
    statistic: Statistic
    unit: str | None = None

    def points(self, store: Metrics, region: str, grid: Grid) -> Points:
        points = store.read(region, self.metric, grid.start, grid.start + grid.period * grid.length)
        return points if self.unit is None else points[points.unit == UNITS.index(self.unit)]

    def values(self, store: Metrics, region: str, grid: Grid, statistic: Statistic | None = None) -> Floats:
        """One value for each period of the grid, NaN where there is none. `statistic` stands in for the own one."""
        points = self.points(store, region, grid)
        buckets = (points.t - grid.start * 1000) // (grid.period * 1000)
        present, found = (statistic or self.statistic).over(points, buckets)
        values = np.full(grid.length, np.nan)
        values[present] = found
        return values


@dataclass(frozen=True)
class Query:
    """One MetricDataQuery: either `stat` or `math` is set."""

    id: str
    stat: MetricStat | None
    math: MetricMath | None
    label: str | None
    period: int | None
    returned: bool


def dimensions_of(given: Sequence[Mapping[str, Any]], where: str) -> dict[str, str]:
    """The dimensions of a request as a dict. Raises AWS's faults for what it refuses."""
    if len(given) > 30:
        raise Fault("InvalidParameterValue", f"The collection {where} must not have a size greater than 30.")
    found: dict[str, str] = {}
    for number, dimension in enumerate(given, 1):
        for key, longest in (("Name", 255), ("Value", 1024)):
            text = dimension.get(key)
            place = f"{where}.member.{number}.{key}"
            if text is None:
                raise Fault("MissingParameter", f"The parameter {place} is required.")
            if not isinstance(text, str) or not text.strip():
                raise Fault("InvalidParameterValue", f"The parameter {place} must not be empty or blank.")
            if len(text) > longest:
                raise Fault(
                    "InvalidParameterValue", f"The parameter {place} must be shorter than {longest + 1} characters."
                )
            if not text.isascii() or (key == "Name" and text.startswith(":")):
                raise Fault("InvalidParameterValue", f"The value {text} for parameter {place} is invalid.")
        if dimension["Name"] in found:
            raise Fault("InvalidParameterValue", f"The collection {where} has the dimension {dimension['Name']} twice.")
        found[dimension["Name"]] = dimension["Value"]
    return found


def valid_period(period: Any, where: str) -> int:
    """Raises AWS's fault unless it is 1, 5, 10, 20, 30 or a multiple of 60 seconds."""
    if period is None:
        raise Fault("MissingParameter", f"The parameter {where} is required.")
    if not isinstance(period, int) or not (period in (1, 5, 10, 20, 30) or (period >= 60 and period % 60 == 0)):
        raise Fault(
            "InvalidParameterValue",
            f"The parameter {where} must be 1, 5, 10, 20, 30 or a multiple of 60; it is {period}.",
        )
    return period


def valid_unit(unit: Any, where: str) -> str:
    if unit not in UNITS:
        raise Fault("InvalidParameterValue", f"The parameter {where} must be a value in the set [ {', '.join(UNITS)} ]")
    return str(unit)


def valid_statistic(text: Any, where: str) -> Statistic:
    try:
        return Statistic.parse(text or "")
    except ValueError:
        raise Fault("InvalidParameterValue", f"The value {text} for parameter {where} is not supported.") from None


def parse_queries(given: Sequence[Mapping[str, Any]], where: str) -> list[Query]:
    """The MetricDataQueries of a request. Raises AWS's faults, each naming the member."""
    if not given:
        raise Fault("MissingParameter", f"The parameter {where} is required.")
    if len(given) > _MOST_QUERIES:
        raise Fault("ValidationError", f"The collection {where} must not have a size greater than {_MOST_QUERIES}.")
    queries = [_query(query, f"{where}.member.{number}") for number, query in enumerate(given, 1)]
    ids = [query.id for query in queries]
    for query in queries:
        if ids.count(query.id) > 1:
            raise Fault("ValidationError", f"The values for parameter Id in {where} are not unique.")
        for name in sorted(query.math.references if query.math else ()):
            if name not in ids:
                raise Fault("ValidationError", f"Error in expression '{query.id}': Metric '{name}' is not defined.")
    _refuse_cycles({query.id: query.math.references if query.math else frozenset() for query in queries})
    return queries


def _query(given: Mapping[str, Any], where: str) -> Query:
    name = given.get("Id")
    if name is None:
        raise Fault("ValidationError", f"The parameter {where}.Id is required.")
    if not isinstance(name, str) or not _ID.fullmatch(name) or len(name) > 255:
        raise Fault(
            "ValidationError",
            f"The value for parameter {where}.Id is not matching the expected pattern ^[a-z][a-zA-Z0-9_]*$.",
        )
    if ("MetricStat" in given) == ("Expression" in given):
        if "MetricStat" in given:
            raise Fault(
                "ValidationError", f"The parameters {where}.MetricStat and {where}.Expression are mutually exclusive."
            )
        raise Fault("ValidationError", f"The parameter {where}.MetricStat is required.\n")
    period = given.get("Period")
    if period is not None:
        period = valid_period(period, f"{where}.Period")
    stat = expression = None
    if "MetricStat" in given:
        stat = _metric_stat(given["MetricStat"], f"{where}.MetricStat")
    else:
        try:
            expression = MetricMath.parse(given["Expression"])
        except MathError as error:
            raise Fault("ValidationError", f"Error in expression '{name}': {error}") from None
    return Query(name, stat, expression, given.get("Label"), period, given.get("ReturnData") is not False)


def _metric_stat(given: Mapping[str, Any], where: str) -> MetricStat:
    metric = given.get("Metric") or {}
    for key in ("Namespace", "MetricName"):
        if not metric.get(key):
            raise Fault("ValidationError", f"The parameter {where}.Metric.{key} is required.")
    unit = given.get("Unit")
    return MetricStat(
        Metric.of(
            metric["Namespace"],
            metric["MetricName"],
            dimensions_of(metric.get("Dimensions") or [], f"{where}.Metric.Dimensions"),
        ),
        valid_period(given.get("Period"), f"{where}.Period"),
        valid_statistic(given.get("Stat"), f"{where}.Stat"),
        None if unit is None else valid_unit(unit, f"{where}.Unit"),
    )


def _refuse_cycles(references: Mapping[str, frozenset[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise Fault(
                "ValidationError",
                f"Error in expression '{name}': it refers to itself, by {' -> '.join((*path, name))}.",
            )
        if name not in done:
            for other in references[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in references:
        visit(name, ())


def grid_between(start: float, end: float, period: int, now: float) -> Grid:
    """The periods of a request, on boundaries of the period, without those that AWS no longer keeps at that resolution.

    Data of less than a minute is kept 3 hours, of a minute 15 days, of 5 minutes 63 days, of an hour 455 days.
    """
    if period < 60:
        kept = 3 * _HOUR
    elif period % 300:
        kept = 15 * _DAY
    elif period % 3600:
        kept = 63 * _DAY
    else:
        kept = 455 * _DAY
    first = math.floor(max(start, now - kept) / period) * period
    last = min(end, now + _DAY)
    return Grid(first, period, max(0, math.ceil((last - first) / period)))


class Evaluation:
    """The results of queries that may refer to each other, each computed once.

    Args:
        grid: the grid for a period in seconds.
    """

    def __init__(self, store: Metrics, region: str, queries: Sequence[Query], grid: Callable[[int], Grid]) -> None:
        self._store, self._region, self._grid = store, region, grid
        self._queries = {query.id: query for query in queries}
        self._done: dict[str, tuple[Grid, Line | list[Line]]] = {}

    def result(self, name: str) -> tuple[Grid, list[Line]]:
        """The lines of a query, which an expression over an array of series has several of.

        Raises Fault when the expression cannot be evaluated.
        """
        grid, found = self._result(name)
        return grid, found if isinstance(found, list) else [found]

    def _result(self, name: str) -> tuple[Grid, Line | list[Line]]:
        if name not in self._done:
            self._done[name] = self._evaluate(self._queries[name])
        return self._done[name]

    def _evaluate(self, query: Query) -> tuple[Grid, Line | list[Line]]:
        if query.stat is not None:
            grid = self._grid(query.stat.period)
            return grid, Line(query.stat.values(self._store, self._region, grid), query.label or query.stat.metric.name)
        assert query.math is not None
        grid = self._grid(self._period(query))
        try:
            return grid, query.math.evaluate(
                Scope(
                    grid,
                    lambda name: self._on(grid, name),
                    lambda wanted: self._metrics(grid, wanted),
                    lambda text, statistic: self._search(grid, text, statistic),
                )
            )
        except (MathError, SearchError) as error:
            raise Fault("ValidationError", f"Error in expression '{query.id}': {error}") from None

    def _period(self, query: Query) -> int:
        """An expression's own period, else the longest of what it is made of."""
        if query.period is not None:
            return query.period
        if query.stat is not None:
            return query.stat.period
        assert query.math is not None
        names = {other.id for other in self._queries.values() if other.stat} if query.math.uses_all_metrics else set()
        periods = [self._period(self._queries[name]) for name in names | query.math.references]
        return max([*periods, *query.math.periods], default=300 if query.math.searches else 60)

    def _search(self, grid: Grid, text: str, statistic: str) -> list[Line]:
        """The metrics that a search finds, each with data in the time that is asked for: AWS shows no others."""
        search = Search.parse(text)
        stat = valid_statistic(statistic, "SEARCH")
        known = self._store.metrics(self._region, grid.start)
        found = [metric for _, metric in known if search.finds(metric)][:_MOST_FOUND]
        lines = [Line(MetricStat(each, grid.period, stat).values(self._store, self._region, grid)) for each in found]
        return [
            replace(line, label=label)
            for line, label in zip(lines, labels_of(found), strict=True)
            if not np.all(np.isnan(line.values))
        ]

    def _on(self, grid: Grid, name: str) -> Line | list[Line]:
        """The result of another query, on the grid of this one."""
        own, found = self._result(name)
        if own == grid:
            return found
        _, here, there = np.intersect1d(grid.times, own.times, assume_unique=True, return_indices=True)

        def move(line: Line) -> Line:
            values = np.full(grid.length, np.nan)
            values[here] = line.values[there]
            return Line(values, line.label)

        return [move(line) for line in found] if isinstance(found, list) else move(found)

    def _metrics(self, grid: Grid, wanted: str) -> list[Line]:
        found = [
            self._on(grid, query.id)
            for query in self._queries.values()
            if query.stat is not None and wanted in query.id
        ]
        return [line for line in found if isinstance(line, Line)]
