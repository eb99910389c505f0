from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from windlass.local.cloudwatch.metric_math import Grid, Line, MathError, MetricMath, Scope

N = None
SERIES: dict[str, Sequence[float | None]] = {
    "m1": [1, 2, N, 4],
    "m2": [10, N, 30, 0],
    "m3": [N, N, N, N],
    "errors": [1, 0, 2, N],
}


def scope(series: Mapping[str, Sequence[float | None]] = SERIES) -> Scope:
    lines = {name: Line(np.array(values, float), name) for name, values in series.items()}
    return Scope(
        Grid(0, 60, 4), lines.__getitem__, lambda wanted: [line for name, line in lines.items() if wanted in name]
    )


def plain(line: Line) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in line.values]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m1", [1, 2, N, 4]),
        ("m1 + 1", [2, 3, N, 5]),
        ("m1 + m2", [11, N, N, 4]),
        ("m1 - 1 - 1", [-1, 0, N, 2]),
        ("2 * m1 + 3 * 4", [14, 16, N, 20]),
        ("2 * (m1 + 3) * 4", [32, 40, N, 56]),
        ("-m1", [-1, -2, N, -4]),
        ("-m1 ^ 2", [-1, -4, N, -16]),
        ("m1 ^ 2 ^ 0", [1, 2, N, 4]),
        ("m1 / m2", [0.1, N, N, N]),  # by zero: no data point
        ("100*errors/(m1+errors)", [50, 0, N, N]),
        ("m1 > 1", [0, 1, N, 1]),
        ("m1 >= 2 AND m1 < 4", [0, 1, N, 0]),
        ("m1 == 1 OR m1 == 4", [1, 0, N, 1]),
        ("m1 == 1 || m1 != 4 && m1 > 1", [1, 1, N, 0]),
        ("1.5e1 + m1", [16, 17, N, 19]),
        ("IF(m1 > 1, m1, 0)", [0, 2, N, 4]),
        ("IF(m1 > 1, m1)", [N, 2, N, 4]),
        ("IF(m1 > 1, m2, m1)", [1, N, N, 0]),
        ("FILL(m1, 0)", [1, 2, 0, 4]),
        ("FILL(m1, REPEAT)", [1, 2, 2, 4]),
        ("FILL(m1, LINEAR)", [1, 2, 3, 4]),
        ("FILL(m2, m1)", [10, 2, 30, 0]),
        ("FILL(m3, 0) + m1", [1, 2, N, 4]),
        ("FILL(m3, REPEAT)", [N, N, N, N]),
        ("SUM([m1, m2])", [11, 2, 30, 4]),
        ("SUM([m1, m2, m3])", [11, 2, 30, 4]),
        ("AVG([m1, m2])", [5.5, 2, 30, 2]),
        ("MIN([m1, m2])", [1, 2, 30, 0]),
        ("MAX([m1, m2])", [10, 2, 30, 4]),
        ("STDDEV([m1, m2])", [4.5, 0, 0, 2]),
        ("SUM(METRICS('m'))", [11, 2, 30, 4]),
        ('SUM(METRICS("errors"))', [1, 0, 2, N]),
        ("m1 / SUM(m1)", [1 / 7, 2 / 7, N, 4 / 7]),
        ("m1 * MAX(m1)", [4, 8, N, 16]),
        ("m1 - AVG(m1)", [1 - 7 / 3, 2 - 7 / 3, N, 4 - 7 / 3]),
        ("m1 + METRIC_COUNT(METRICS())", [5, 6, N, 8]),
        ("RATE(m1)", [N, 1 / 60, N, 2 / 120]),
        ("DIFF(m1)", [N, 1, N, 2]),
        ("DIFF_TIME(m1)", [N, 60, N, 120]),
        ("RUNNING_SUM(m1)", [1, 3, N, 7]),
        ("m1 * PERIOD(m1)", [60, 120, N, 240]),
        ("TIME_SERIES(7)", [7, 7, 7, 7]),
        ("ABS(-m1)", [1, 2, N, 4]),
        ("CEIL(m1 / 3)", [1, 1, N, 2]),
        ("FLOOR(m1 / 3)", [0, 0, N, 1]),
        ("LOG10(m1 * 10)", [1, np.log10(20), N, np.log10(40)]),
        ("LOG(m2)", [np.log(10), N, np.log(30), N]),
        ("FIRST(METRICS())", [1, 2, N, 4]),
        ("LAST([m1, m2])", [10, N, 30, 0]),
        ("FIRST(SORT([m1, m2], MAX, DESC))", [10, N, 30, 0]),
        ("FIRST(SLICE([m1, m2, errors], 1, 2))", [10, N, 30, 0]),
        ("FIRST(REMOVE_EMPTY([m3, m2]))", [10, N, 30, 0]),
    ],
)
def test_one_series(text: str, expected: Sequence[float | None]) -> None:
    result = MetricMath.parse(text).evaluate(scope())
    assert isinstance(result, Line)
    assert plain(result) == [value if value is None else pytest.approx(value) for value in expected]


def test_an_array_keeps_its_labels() -> None:
    result = MetricMath.parse("METRICS('m') * 2").evaluate(scope())
    assert isinstance(result, list)
    assert [(line.label, plain(line)[0]) for line in result] == [("m1", 2), ("m2", 20), ("m3", None)]


def test_references_are_what_must_be_evaluated_before() -> None:
    expression = MetricMath.parse("IF(a > 1, SUM(METRICS()), FILL(b, REPEAT))")
    assert expression.references == {"a", "b"}
    assert expression.uses_all_metrics


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends too early"),
        ("m1 +", "ends too early"),
        ("SUM(m1", "ends too early"),
        ("(m1", "'\\)' is missing"),
        ("m1 m2", "Unexpected 'm2'"),
        ("m1 $ 2", "Unexpected '\\$'"),
        ("MEDIAN(m1)", "MEDIAN .* is not supported. Supported: ABS"),
        ("IF(m1)", "IF .* takes 2 to 3 arguments, not 1"),
        ("1 + 2", "single value"),
        ("SUM(m1)", "single value"),
        ("METRICS() + METRICS()", "cannot combine two arrays"),
        ("FILL(m1, ZERO)", "fills with a number"),
        ("FIRST(m1)", "takes an array of time series"),
        ("SUM(1)", "takes a time series"),
        ("m1 + 'text'", "takes no text"),
        ("IF(METRICS(), 1, 0)", "takes no arrays"),
        ("SORT(METRICS(), MEDIAN, ASC)", "sorts by"),
    ],
)
def test_wrong_expressions_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(MathError, match=message):
        MetricMath.parse(text).evaluate(scope())
