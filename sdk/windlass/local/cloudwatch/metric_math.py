"""CloudWatch's metric math: expressions over time series.

    expression = MetricMath.parse("IF(requests > 10, 100 * errors / requests, 0)")
    expression.references                        # -> {"requests", "errors"}
    expression.evaluate(Scope(grid, lookup, metrics))

A time series is one value for each period of the grid, NaN where there is no data point. An operator gives a data point only
where all its operands have one; what divides by zero has none. Aggregates over several series skip what is missing.
"""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from windlass.local.cloudwatch.statistics import Floats, Ints


class MathError(ValueError):
    """The expression is wrong; the message says where."""


@dataclass(frozen=True)
class Grid:
    """Equal periods, one after the other. Seconds since the epoch."""

    start: int
    period: int
    length: int

    @property
    def times(self) -> Ints:
        return self.start + self.period * np.arange(self.length, dtype=np.int64)


@dataclass(frozen=True)
class Line:
    """One time series on a grid, with the label of the metric it began as."""

    values: Floats
    label: str = ""


Value: TypeAlias = "float | str | Line | list[Line]"


@dataclass(frozen=True)
class Scope:
    """What an expression can see.

    Attributes:
        grid: the periods of the result.
        lookup: the result of another query, by its Id.
        metrics: the series of all metrics in the request (not of expressions) whose Id contains the given text.
        search: the series of all metrics that a search finds: (its text, a statistic).
    """

    grid: Grid
    lookup: Callable[[str], Value]
    metrics: Callable[[str], list[Line]]
    search: Callable[[str, str], list[Line]] = lambda _text, _statistic: []


_Node: TypeAlias = Callable[[Scope], Value]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")|(?P<sign>&&|\|\||[<>=!]=|[-+*/^()<>,\[\]]))"
)

# Binding powers, weakest first, as in AWS's table of operators.
_POWERS = {
    "OR": 1,
    "||": 1,
    "AND": 2,
    "&&": 2,
    "==": 3,
    "!=": 3,
    "<": 4,
    ">": 4,
    "<=": 4,
    ">=": 4,
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
    "^": 8,
}
_NEGATION_POWER = 7

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": np.divide,
    "^": np.power,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
    "AND": np.logical_and,
    "&&": np.logical_and,
    "OR": np.logical_or,
    "||": np.logical_or,
}


@dataclass(frozen=True)
class MetricMath:
    """A parsed expression."""

    text: str
    references: frozenset[str]
    uses_all_metrics: bool
    periods: tuple[int, ...]
    searches: bool
    _node: _Node

    @classmethod
    def parse(cls, text: str) -> MetricMath:
        """Raises MathError."""
        parser = _Parser(text)
        node = parser.expression(0)
        if parser.current is not None:
            raise MathError(f"Unexpected '{parser.current[1]}' in '{text}'")
        return cls(
            text,
            frozenset(parser.references),
            parser.uses_all_metrics,
            tuple(parser.periods),
            parser.searches,
            node,
        )

    def evaluate(self, scope: Scope) -> Line | list[Line]:
        """One line, or an array of them. Raises MathError."""
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # The mean, minimum or maximum of a period without any data point: NaN is what we want.
            warnings.simplefilter("ignore", RuntimeWarning)
            result = self._node(scope)
        if isinstance(result, (Line, list)):
            return result
        raise MathError(f"The result of '{self.text}' is a single value; it must be a time series or an array of them")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._split(text)
        self.position = 0
        self.references: set[str] = set()
        self.uses_all_metrics = self.searches = False
        self.periods: list[int] = []

    @staticmethod
    def _split(text: str) -> list[tuple[str, str]]:
        tokens, position = [], 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise MathError(f"Unexpected '{text[position:].strip()[0]}' in '{text}'")
            tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        return tokens

    @property
    def current(self) -> tuple[str, str] | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self, expected: str | None = None) -> tuple[str, str]:
        token = self.current
        if token is None:
            raise MathError(f"'{self.text}' ends too early" + (f"; '{expected}' is missing" if expected else ""))
        if expected is not None and token[1] != expected:
            raise MathError(f"Expected '{expected}' instead of '{token[1]}' in '{self.text}'")
        self.position += 1
        return token

    def at(self, sign: str) -> bool:
        return self.current is not None and self.current[1] == sign

    def expression(self, power: int) -> _Node:
        left = self.operand()
        while self.current is not None and (found := _POWERS.get(self.current[1], 0)) > power:
            sign = self.take()[1]
            # "^" binds to the right, everything else to the left.
            left = _binary(sign, left, self.expression(found - 1 if sign == "^" else found))
        return left

    def operand(self) -> _Node:
        kind, text = self.take()
        if kind == "number":
            number = float(text)
            return lambda _: number
        if kind == "text":
            return lambda _: text[1:-1]
        if text == "-":
            inner = self.expression(_NEGATION_POWER)
            return lambda scope: _each(lambda values: -values, inner(scope))
        if text == "(":
            inner = self.expression(0)
            self.take(")")
            return inner
        if text == "[":
            return _array(self.arguments("]"))
        if kind == "name" and self.at("("):
            self.take("(")
            return self.call(text)
        if kind == "name" and text.isupper():
            return lambda _: text  # REPEAT, LINEAR, ASC and the like
        if kind == "name":
            self.references.add(text)
            return lambda scope: scope.lookup(text)
        raise MathError(f"Unexpected '{text}' in '{self.text}'")

    def arguments(self, closing: str) -> list[_Node]:
        found: list[_Node] = []
        while not self.at(closing):
            found.append(self.expression(0))
            if not self.at(closing):
                self.take(",")
        self.take(closing)
        return found

    def call(self, name: str) -> _Node:
        begun = self.position
        nodes = self.arguments(")")
        if name == "SEARCH":
            self.searches = True
            # Its last argument is a period: a number as it stands, because the grid must be known before anything is evaluated.
            kind, text = self.tokens[self.position - 2]
            if len(nodes) == 3 and kind == "number" and self.position - 2 > begun:
                self.periods.append(int(float(text)))
        function = _FUNCTIONS.get(name)
        if function is None:
            raise MathError(
                f"The function {name} in '{self.text}' is not supported. Supported: {', '.join(sorted(_FUNCTIONS))}"
            )
        self.uses_all_metrics |= name == "METRICS"
        fewest, most, work = function
        if not fewest <= len(nodes) <= most:
            raise MathError(f"{name} in '{self.text}' takes {fewest} to {most} arguments, not {len(nodes)}")

        def evaluate(scope: Scope) -> Value:
            try:
                return work(scope, [node(scope) for node in nodes])
            except _WrongType as error:
                raise MathError(f"{name} in '{self.text}' {error}") from None

        return evaluate


class _WrongType(Exception):
    """A function got an argument of a kind that it does not take."""


def _binary(sign: str, left: _Node, right: _Node) -> _Node:
    work = _OPERATORS[sign]

    def evaluate(scope: Scope) -> Value:
        return _combine(work, left(scope), right(scope), sign)

    return evaluate


def _combine(work: Callable[[Any, Any], Any], left: Value, right: Value, sign: str) -> Value:
    if isinstance(left, str) or isinstance(right, str):
        raise MathError(f"The operator {sign} takes no text")
    if isinstance(left, list) and isinstance(right, list):
        raise MathError(f"The operator {sign} cannot combine two arrays of time series")
    if isinstance(left, list):
        return [Line(_values(_combine(work, line, right, sign)), line.label) for line in left]
    if isinstance(right, list):
        return [Line(_values(_combine(work, left, line, sign)), line.label) for line in right]
    a, b = _raw(left), _raw(right)
    result = _finite(np.where(np.isnan(a) | np.isnan(b), np.nan, np.asarray(work(a, b), float)))
    if isinstance(left, float) and isinstance(right, float):
        return float(result)
    return Line(result, left.label if isinstance(left, Line) else right.label if isinstance(right, Line) else "")


def _finite(values: Any) -> Any:
    return np.where(np.isfinite(values), values, np.nan)


def _raw(value: Value) -> Any:
    if isinstance(value, Line):
        return value.values
    if isinstance(value, float):
        return np.float64(value)
    raise _WrongType("takes time series or numbers here")


def _values(value: Value) -> Floats:
    if not isinstance(value, Line):
        raise _WrongType("takes a time series here")
    return value.values


def _number(value: Value) -> float:
    if not isinstance(value, float):
        raise _WrongType("takes a number here")
    return value


def _lines(value: Value) -> list[Line]:
    if not isinstance(value, list):
        raise _WrongType("takes an array of time series here, such as METRICS() or [m1, m2]")
    return value


def _each(work: Callable[[Any], Any], value: Value) -> Value:
    """`work` on a number, on a series, or on each series of an array."""
    if isinstance(value, list):
        return [Line(_finite(work(line.values)), line.label) for line in value]
    if isinstance(value, Line):
        return Line(_finite(work(value.values)), value.label)
    return float(_finite(work(np.float64(_number(value)))))


def _array(nodes: Sequence[_Node]) -> _Node:
    def evaluate(scope: Scope) -> Value:
        found: list[Line] = []
        for node in nodes:
            value = node(scope)
            found += (
                value if isinstance(value, list) else [value] if isinstance(value, Line) else [_constant(scope, value)]
            )
        return found

    return evaluate


def _constant(scope: Scope, value: Value) -> Line:
    return Line(np.full(scope.grid.length, _number(value)))


_Work: TypeAlias = Callable[[Scope, list[Value]], Value]


def _mapped(work: Callable[[Any], Any]) -> _Work:
    return lambda _, arguments: _each(work, arguments[0])


def _aggregate(work: Callable[..., Any], empty: float = np.nan) -> _Work:
    """Over the periods of one series: a number. Over the series of an array: a series."""

    def evaluate(_: Scope, arguments: list[Value]) -> Value:
        value = arguments[0]
        if isinstance(value, list):
            if not value:
                raise _WrongType("got an empty array of time series")
            stacked = np.stack([line.values for line in value])
            there = ~np.all(np.isnan(stacked), axis=0)
            return Line(np.where(there, work(stacked, axis=0), np.nan))
        values = _values(value)
        return float(work(values)) if not np.all(np.isnan(values)) else empty

    return evaluate


def _if(_: Scope, arguments: list[Value]) -> Value:
    condition, then = arguments[0], arguments[1]
    other: Value = arguments[2] if len(arguments) == 3 else float("nan")
    if isinstance(condition, list) or isinstance(then, list) or isinstance(other, list):
        raise _WrongType("takes no arrays of time series")
    test, yes, no = _raw(condition), _raw(then), _raw(other)
    result = np.where(np.isnan(test), np.nan, np.where(test != 0, yes, no))
    if result.ndim:
        return Line(result, next((value.label for value in (then, other, condition) if isinstance(value, Line)), ""))
    return float(result)


def _fill(scope: Scope, arguments: list[Value]) -> Value:
    filler = arguments[1]

    def fill(values: Floats) -> Floats:
        missing = np.isnan(values)
        if filler == "REPEAT":
            last = np.maximum.accumulate(np.where(missing, -1, np.arange(len(values))))
            return np.where(last >= 0, values[last], np.nan)
        if filler == "LINEAR":
            known = np.flatnonzero(~missing)
            if not len(known):
                return values
            return np.interp(np.arange(len(values)), known, values[known], left=np.nan, right=np.nan)
        return np.where(missing, _raw(filler), values)

    if isinstance(filler, str) and filler not in ("REPEAT", "LINEAR"):
        raise _WrongType("fills with a number, a time series, REPEAT or LINEAR")
    return _each(fill, arguments[0])


def _change(scope: Scope, arguments: list[Value], work: Callable[[Floats, Floats], Floats]) -> Value:
    """From each data point to the one before it, however far that is: work(difference, seconds)."""
    times = scope.grid.times

    def between(values: Floats) -> Floats:
        result = np.full(len(values), np.nan)
        known = np.flatnonzero(~np.isnan(values))
        result[known[1:]] = work(np.diff(values[known]), np.diff(times[known]).astype(float))
        return result

    return _each(between, arguments[0])


def _running_sum(values: Floats) -> Floats:
    return np.where(np.isnan(values), np.nan, np.nancumsum(values))


def _metrics(scope: Scope, arguments: list[Value]) -> Value:
    wanted = arguments[0] if arguments else ""
    if not isinstance(wanted, str):
        raise _WrongType("takes a text, such as METRICS('errors')")
    return list(scope.metrics(wanted))


def _search(scope: Scope, arguments: list[Value]) -> Value:
    text, statistic = arguments[0], arguments[1]
    if not isinstance(text, str) or not isinstance(statistic, str):
        raise _WrongType("takes two texts and a period, such as SEARCH('{AWS/SageMaker,EndpointName} 5XX', 'Sum', 60)")
    return list(scope.search(text, statistic))


def _first(_: Scope, arguments: list[Value]) -> Value:
    return _lines(arguments[0])[0]


def _last(_: Scope, arguments: list[Value]) -> Value:
    return _lines(arguments[0])[-1]


def _slice(_: Scope, arguments: list[Value]) -> Value:
    lines, start = _lines(arguments[0]), int(_number(arguments[1]))
    if len(arguments) == 3:
        return lines[start : int(_number(arguments[2]))]
    return lines[start:]


def _sort(_: Scope, arguments: list[Value]) -> Value:
    by: dict[Value, Callable[[Any], Any]] = {"AVG": np.nanmean, "MIN": np.nanmin, "MAX": np.nanmax, "SUM": np.nansum}
    if not isinstance(arguments[1], str) or arguments[1] not in by or arguments[2] not in ("ASC", "DESC"):
        raise _WrongType("sorts by AVG, MIN, MAX or SUM, in order ASC or DESC")
    work = by[arguments[1]]
    ordered = sorted(_lines(arguments[0]), key=lambda line: float(work(line.values)), reverse=arguments[2] == "DESC")
    return ordered[: int(_number(arguments[3]))] if len(arguments) == 4 else ordered


def _remove_empty(_: Scope, arguments: list[Value]) -> Value:
    return [line for line in _lines(arguments[0]) if not np.all(np.isnan(line.values))]


# name: (fewest arguments, most arguments, work)
_FUNCTIONS: dict[str, tuple[int, int, _Work]] = {
    "ABS": (1, 1, _mapped(np.abs)),
    "AVG": (1, 1, _aggregate(np.nanmean)),
    "CEIL": (1, 1, _mapped(np.ceil)),
    "DIFF": (1, 1, lambda scope, arguments: _change(scope, arguments, lambda difference, _: difference)),
    "DIFF_TIME": (1, 1, lambda scope, arguments: _change(scope, arguments, lambda _, seconds: seconds)),
    "FILL": (2, 2, _fill),
    "FIRST": (1, 1, _first),
    "FLOOR": (1, 1, _mapped(np.floor)),
    "IF": (2, 3, _if),
    "LAST": (1, 1, _last),
    "LOG": (1, 1, _mapped(np.log)),
    "LOG10": (1, 1, _mapped(np.log10)),
    "MAX": (1, 1, _aggregate(np.nanmax)),
    "METRICS": (0, 1, _metrics),
    "METRIC_COUNT": (1, 1, lambda _, arguments: float(len(_lines(arguments[0])))),
    "MIN": (1, 1, _aggregate(np.nanmin)),
    "PERIOD": (1, 1, lambda scope, _: float(scope.grid.period)),
    "RATE": (1, 1, lambda scope, arguments: _change(scope, arguments, operator.truediv)),
    "REMOVE_EMPTY": (1, 1, _remove_empty),
    "RUNNING_SUM": (1, 1, _mapped(_running_sum)),
    "SEARCH": (2, 3, _search),
    "SLICE": (2, 3, _slice),
    "SORT": (3, 4, _sort),
    "STDDEV": (1, 1, _aggregate(np.nanstd)),
    "SUM": (1, 1, _aggregate(np.nansum)),
    "TIME_SERIES": (1, 1, lambda scope, arguments: _constant(scope, arguments[0])),
}
