"""What CloudWatch checks of a dashboard before it keeps it. Pure.

    list(dashboards.problems({}))       # [Problem("", "Should have required property 'widgets'")]
    dashboards.check("digits", body)    # raises AWS's fault

Source: CloudWatch API reference, "Dashboard body structure and syntax", and the quotas of dashboards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from windlass.local.faults import Fault

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
_MOST_WIDGETS, _MOST_METRICS, _MOST_METRICS_OF_WIDGET = 500, 2500, 500
_COLUMNS, _MOST_ROWS = 24, 1000
_MOST_ALARMS = 100
_VIEWS = ("timeSeries", "singleValue", "gauge", "bar", "pie", "table")


@dataclass(frozen=True)
class Problem:
    """Something in a body that is not as it must be; ``path`` is where."""

    path: str
    message: str


class InvalidDashboard(Fault):
    """PutDashboard's refusal of a body, with all that is wrong in it."""

    def __init__(self, problems: list[Problem]) -> None:
        told = [{"dataPath": problem.path, "message": problem.message} for problem in problems]
        super().__init__(
            "InvalidParameterInput",
            f"The dashboard body is invalid, there are {len(problems)} validation errors:\n{json.dumps(told, indent=2)}",
        )
        self.dashboard_validation_messages = [
            {"DataPath": problem.path, "Message": problem.message} for problem in problems
        ]


def check(name: str, body: str) -> None:
    """Raise AWS's fault unless PutDashboard may keep it."""
    if not _NAME.fullmatch(name or ""):
        raise Fault(
            "InvalidParameterValue",
            f"The value {name} for field DashboardName contains invalid characters. It can only contain alphanumerics, dash "
            "(-) and underscore (_).",
        )
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise Fault("InvalidParameterInput", "The field DashboardBody must be a valid JSON object")
    if found := list(problems(parsed)):
        raise InvalidDashboard(found)


def problems(body: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a dashboard's body, in the order of reading."""
    if body.get("periodOverride", "auto") not in ("auto", "inherit"):
        yield Problem("/periodOverride", "Should be equal to one of the allowed values: auto, inherit")
    widgets = body.get("widgets")
    if "widgets" not in body:
        yield Problem("", "Should have required property 'widgets'")
        return
    if not isinstance(widgets, list):
        yield Problem("/widgets", "Should be array")
        return
    if len(widgets) > _MOST_WIDGETS:
        yield Problem("/widgets", f"Should NOT have more than {_MOST_WIDGETS} items")
    for number, widget in enumerate(widgets):
        yield from _of_widget(f"/widgets/{number}", widget)
    metrics = sum(len(widget["properties"].get("metrics") or []) for widget in widgets if _is_metric(widget))
    if metrics > _MOST_METRICS:
        yield Problem("/widgets", f"Should NOT have more than {_MOST_METRICS} metrics; it has {metrics}")


def _is_metric(widget: Any) -> bool:
    properties = widget.get("properties") if isinstance(widget, dict) else None
    return isinstance(properties, dict) and isinstance(properties.get("metrics") or [], list)


def _of_widget(path: str, widget: Any) -> Iterator[Problem]:
    if not isinstance(widget, dict):
        yield Problem(path, "Should be object")
        return
    kind = widget.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        yield Problem(f"{path}/type", f"Should be equal to one of the allowed values: {', '.join(sorted(_KINDS))}")
        return
    for name, least, most in (
        ("x", 0, _COLUMNS - 1),
        ("y", 0, None),
        ("width", 1, _COLUMNS),
        ("height", 1, _MOST_ROWS),
    ):
        value = widget.get(name)
        if value is not None and not _within(value, least, most):
            limit = f"an integer from {least} to {most}" if most is not None else f"an integer of at least {least}"
            yield Problem(f"{path}/{name}", f"Should be {limit}")
    properties = widget.get("properties")
    if not isinstance(properties, dict):
        yield Problem(path, "Should have required property 'properties'")
        return
    yield from _KINDS[kind](f"{path}/properties", properties)


def _within(value: Any, least: int, most: int | None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most)


def _requiring(*names: str) -> Callable[[str, Mapping[str, Any]], Iterator[Problem]]:
    def check(path: str, properties: Mapping[str, Any]) -> Iterator[Problem]:
        yield from (
            Problem(path, f"Should have required property '{name}'") for name in names if name not in properties
        )

    return check


def _of_metrics(path: str, properties: Mapping[str, Any]) -> Iterator[Problem]:
    if not (properties.get("metrics") or properties.get("annotations")):
        yield Problem(path, "Should have required property 'metrics' or 'annotations'")
    yield from _requiring("region")(path, properties)
    metrics = properties.get("metrics") or []
    if not isinstance(metrics, list):
        yield Problem(f"{path}/metrics", "Should be array")
        return
    if len(metrics) > _MOST_METRICS_OF_WIDGET:
        yield Problem(f"{path}/metrics", f"Should NOT have more than {_MOST_METRICS_OF_WIDGET} items")
    for number, metric in enumerate(metrics):
        if not isinstance(metric, list) or not metric:
            yield Problem(f"{path}/metrics/{number}", "Should be a non-empty array")
        elif not isinstance(metric[0], dict) and len([part for part in metric if isinstance(part, str)]) % 2:
            yield Problem(f"{path}/metrics/{number}", "Should have a name and a value for each dimension")
    if properties.get("view", "timeSeries") not in _VIEWS:
        yield Problem(f"{path}/view", f"Should be equal to one of the allowed values: {', '.join(_VIEWS)}")
    period = properties.get("period")
    if period is not None and not (_within(period, 1, None) and (period in (1, 5, 10, 20, 30) or period % 60 == 0)):
        yield Problem(f"{path}/period", "Should be 1, 5, 10, 20, 30 or a multiple of 60")


def _of_alarms(path: str, properties: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _requiring("alarms")(path, properties)
    alarms = properties.get("alarms", [])
    if not isinstance(alarms, list) or len(alarms) > _MOST_ALARMS:
        yield Problem(f"{path}/alarms", f"Should be an array of at most {_MOST_ALARMS} ARNs")


_KINDS: dict[str, Callable[[str, Mapping[str, Any]], Iterator[Problem]]] = {
    "alarm": _of_alarms,
    "custom": _requiring("endpoint"),
    "explorer": _requiring("metrics", "aggregateBy", "labels", "widgetOptions"),
    "log": _requiring("region", "query"),
    "metric": _of_metrics,
    "text": _requiring("markdown"),
}
