"""Dashboards: what PutDashboard refuses, worked out from "Dashboard body structure and syntax"."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.local.cloudwatch import dashboards
from windlass.local.cloudwatch.dashboards import InvalidDashboard
from windlass.local.faults import Fault

METRIC = {"type": "metric", "properties": {"metrics": [["AWS/SageMaker", "Invocations"]], "region": "us-east-1"}}
TEXT = {"type": "text", "properties": {"markdown": "# Digits"}}


def widgets(*given: Any, **more: Any) -> dict[str, Any]:
    return {"widgets": list(given), **more}


def changed(widget: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {**widget, "properties": {**widget["properties"], **properties}}


@pytest.mark.parametrize(
    "body",
    [
        widgets(),
        widgets(METRIC, TEXT, periodOverride="inherit"),
        widgets({**METRIC, "x": 0, "y": 400, "width": 24, "height": 1000}),
        widgets(changed(METRIC, metrics=[["N", "m", "A", "1", {"stat": "p99"}], [{"expression": "m1*2"}], [".", "n"]])),
        widgets(changed(METRIC, view="singleValue", period=300)),
        widgets({"type": "metric", "properties": {"annotations": {"alarms": ["arn"]}, "region": "us-east-1"}}),
        widgets({"type": "alarm", "properties": {"alarms": ["arn:aws:cloudwatch:us-east-1:123456789012:alarm:a"]}}),
        widgets({"type": "log", "properties": {"region": "us-east-1", "query": "SOURCE 'g' | fields @message"}}),
        widgets(*[TEXT] * 500),
    ],
)
def test_good_ones(body: dict[str, Any]) -> None:
    assert list(dashboards.problems(body)) == []


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ({}, "", "required property 'widgets'"),
        ({"widgets": {}}, "/widgets", "Should be array"),
        (widgets(periodOverride="often"), "/periodOverride", "allowed values: auto, inherit"),
        (widgets(*[TEXT] * 501), "/widgets", "more than 500 items"),
        (widgets("text"), "/widgets/0", "Should be object"),
        (widgets(TEXT, {"type": "video", "properties": {}}), "/widgets/1/type", "allowed values: alarm, custom"),
        (widgets({"type": "text"}), "/widgets/0", "required property 'properties'"),
        (widgets({"type": "text", "properties": {}}), "/widgets/0/properties", "required property 'markdown'"),
        (widgets({**TEXT, "width": 25}), "/widgets/0/width", "from 1 to 24"),
        (widgets({**TEXT, "x": 24}), "/widgets/0/x", "from 0 to 23"),
        (widgets({**TEXT, "y": -1}), "/widgets/0/y", "at least 0"),
        (widgets({**TEXT, "height": "6"}), "/widgets/0/height", "from 1 to 1000"),
        (widgets({"type": "metric", "properties": {"region": "r"}}), "/widgets/0/properties", "'metrics' or 'annotations'"),
        (widgets({"type": "metric", "properties": {"metrics": [["N", "m"]]}}), "/widgets/0/properties", "'region'"),
        (widgets(changed(METRIC, metrics=["m"])), "/widgets/0/properties/metrics/0", "non-empty array"),
        (widgets(changed(METRIC, metrics=[["N", "m", "A"]])), "/widgets/0/properties/metrics/0", "for each dimension"),
        (widgets(changed(METRIC, metrics=[["N", "m"]] * 501)), "/widgets/0/properties/metrics", "more than 500"),
        (widgets(*[changed(METRIC, metrics=[["N", "m"]] * 500)] * 6), "/widgets", "more than 2500 metrics"),
        (widgets(changed(METRIC, view="hologram")), "/widgets/0/properties/view", "timeSeries"),
        (widgets(changed(METRIC, period=45)), "/widgets/0/properties/period", "multiple of 60"),
        (widgets({"type": "alarm", "properties": {}}), "/widgets/0/properties", "required property 'alarms'"),
        (widgets({"type": "log", "properties": {"query": "q"}}), "/widgets/0/properties", "required property 'region'"),
    ],
)  # fmt: skip
def test_bad_ones_are_named_where_they_are(body: dict[str, Any], path: str, message: str) -> None:
    (problem, *_) = dashboards.problems(body)
    assert problem.path == path
    assert message in problem.message


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", "n" * 256])
def test_names(name: str) -> None:
    with pytest.raises(Fault, match="invalid characters"):
        dashboards.check(name, json.dumps(widgets()))


@pytest.mark.parametrize("body", ["", "{", "[]", "1", '"x"'])
def test_what_is_no_object_is_no_body(body: str) -> None:
    with pytest.raises(Fault, match="must be a valid JSON object"):
        dashboards.check("d", body)


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda each: (
        st.lists(each, max_size=4) | st.dictionaries(st.sampled_from(["type", "properties", "metrics", "x"]), each)
    ),
)


@given(st.lists(JSON, max_size=4))
def test_whatever_it_is_it_is_judged(given: list[Any]) -> None:
    found = list(dashboards.problems({"widgets": given}))
    assert all(problem.path.startswith("/widgets") and problem.message for problem in found)
    if found:
        with pytest.raises(InvalidDashboard) as caught:
            dashboards.check("d", json.dumps({"widgets": given}))
        assert len(caught.value.dashboard_validation_messages) == len(found)
