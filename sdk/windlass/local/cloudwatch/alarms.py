"""CloudWatch alarms: what they watch, when they are evaluated, and what their changes set off.

    engine = AlarmEngine(metrics, events, clock)
    engine.put_metric_alarm("us-east-1", {"AlarmName": "slow", "MetricName": "Latency", ...})
    engine.tick(now)                       # what the engine's own thread does, again and again
    engine.states("us-east-1", ["slow"])   # -> {"slow": "ALARM"}

An alarm is evaluated when a period ends, and again when data for it arrives late. Its data points become a state in
alarm_evaluation.py; a change is written to its history, goes to EventBridge, and executes its actions.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from windlass.local.clock import Clock, Pace
from windlass.local.cloudwatch.alarm_evaluation import EXTRA_PERIODS, Datapoint
from windlass.local.cloudwatch.alarm_messages import (
    event_configuration,
    event_state,
    history_state,
    notification,
    reason_data,
    subject_of,
    timestamp,
)
from windlass.local.cloudwatch.alarm_rules import AlarmRule
from windlass.local.cloudwatch.alarm_settings import Alarm, Condition, HistoryItem, composite_alarm, metric_alarm
from windlass.local.cloudwatch.metric_math import Grid
from windlass.local.cloudwatch.metric_queries import Evaluation
from windlass.local.cloudwatch.metric_store import MetricStore, PacedMetrics
from windlass.local.cloudwatch.statistics import Statistic
from windlass.local.events.bus import EventBus, Undeliverable
from windlass.local.faults import Fault
from windlass.local.iam.authorizer import as_service

log = logging.getLogger(__name__)

STATES = ("OK", "ALARM", "INSUFFICIENT_DATA")

_SETTLE_SECONDS = 1.0  # after a period's end, for data that is on its way
_TICK_SECONDS, _FAST_TICK_SECONDS = 0.5, 0.1
_HISTORY_ITEMS = 10_000
_SAVED_ITEMS = 1000
_HISTORY_SECONDS = 30 * 86_400  # AWS keeps it that long


@dataclass(frozen=True)
class Change:
    """What an action tells of a change of state.

    Attributes:
        message: what a topic gets: a notification, as JSON.
        detail: what a function gets: the alarm with its state, the one before, and its configuration.
    """

    message: str
    subject: str
    time: str
    detail: dict[str, Any]


_SAVED = ("configured_at", "tags", "state", "reason", "reason_data", "updated_at", "transitioned_at")

Act = Callable[[Alarm, str, Change], None]
"""(alarm, action ARN, change): execute one action. Raises Undeliverable."""


class AlarmEngine:
    """All alarms of a local cloud. Safe to use from many threads.

    Args:
        metrics: where the data points are.
        events: where state changes go.
        clock: the time of all that happens.
        pace: what says that a period is over; by default the clock.
        path: the file in which alarms and their history outlive the engine; without one they do not.
    """

    def __init__(
        self, metrics: MetricStore, events: EventBus, clock: Clock, pace: Pace | None = None, path: Path | None = None
    ) -> None:
        self._pace = pace or Pace(clock)
        self._paced = PacedMetrics(metrics, self._pace)
        self._metrics, self._events, self._clock = metrics, events, clock
        self._lock = threading.RLock()
        self._alarms: dict[tuple[str, str], Alarm] = {}
        self._history: deque[HistoryItem] = deque(maxlen=_HISTORY_ITEMS)
        self._actions: dict[str, Act] = {"sns": self._publish}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._ticked = -math.inf
        self._path, self._unsaved = path, False
        if path is not None and path.exists():
            self._load(json.loads(path.read_text(encoding="utf-8")))

    # --- what outlives a restart ---

    def _load(self, saved: Mapping[str, Any]) -> None:
        for record in saved["alarms"]:
            settings, condition, rule = record["settings"], None, None
            if "AlarmRule" in settings:
                _, rule = composite_alarm(settings)
            else:
                _, condition = metric_alarm(settings)
            state = {name: record[name] for name in _SAVED}
            alarm = Alarm(record["region"], settings["AlarmName"], settings, condition=condition, rule=rule, **state)
            self._alarms[alarm.region, alarm.name] = alarm
        self._history.extend(HistoryItem(**item) for item in saved["history"])

    def _save(self) -> None:
        """Write what has changed since the last time."""
        if self._path is None or not self._unsaved:
            return
        self._unsaved = False
        alarms = [
            {"region": alarm.region, "settings": alarm.settings, **{name: getattr(alarm, name) for name in _SAVED}}
            for alarm in self._alarms.values()
        ]
        draft = self._path.with_suffix(".tmp")
        draft.write_text(
            json.dumps({"alarms": alarms, "history": [asdict(item) for item in list(self._history)[-_SAVED_ITEMS:]]}),
            encoding="utf-8",
        )
        draft.replace(self._path)

    # --- what users ask for ---

    def put_metric_alarm(self, region: str, request: Mapping[str, Any]) -> Alarm:
        """Create or replace a metric alarm from the parameters of PutMetricAlarm. Raises AWS's faults."""
        settings, condition = metric_alarm(request)
        return self._put(region, settings, request, condition=condition)

    def put_composite_alarm(self, region: str, request: Mapping[str, Any]) -> Alarm:
        """Create or replace a composite alarm from the parameters of PutCompositeAlarm. Raises AWS's faults."""
        settings, rule = composite_alarm(request)
        name = settings["AlarmName"]
        with self._lock:
            if absent := [child for child in rule.children if child != name and (region, child) not in self._alarms]:
                raise Fault("ValidationError", f"AlarmRule refers to alarms that do not exist: {', '.join(absent)}.")
            self._refuse_cycle(region, name, rule)
            return self._put(region, settings, request, rule=rule)

    def _refuse_cycle(self, region: str, name: str, rule: AlarmRule) -> None:
        waiting, seen = list(rule.children), set()
        while waiting:
            child = waiting.pop()
            if child == name:
                raise Fault("ValidationError", f"AlarmRule of {name} refers to itself.")
            alarm = self._alarms.get((region, child))
            if child not in seen and alarm is not None and alarm.rule is not None:
                waiting += alarm.rule.children
            seen.add(child)

    def _put(
        self,
        region: str,
        settings: dict[str, Any],
        request: Mapping[str, Any],
        *,
        condition: Condition | None = None,
        rule: AlarmRule | None = None,
    ) -> Alarm:
        now, name = self._clock.now(), str(settings["AlarmName"])
        with self._lock:
            alarm = self._alarms.get((region, name))
            if alarm is None:
                # AWS takes tags when an alarm is created, and ignores them when it is replaced.
                tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags") or []}
                alarm = Alarm(region, name, settings, now, condition, rule, tags, updated_at=now, transitioned_at=now)
                self._alarms[region, name] = alarm
                what = "create"
            else:
                if (alarm.rule is None) != (rule is None):
                    raise Fault("ValidationError", f"The alarm {name} exists already, and is a {alarm.kind}.")
                alarm.settings, alarm.condition, alarm.rule = settings, condition, rule
                alarm.configured_at, alarm.seen, alarm.evaluation_state = now, (), None
                what = "update"
            self._configured(alarm, what)
            return alarm

    def delete(self, region: str, names: Sequence[str]) -> None:
        """All of them or, when one cannot be, none. Raises AWS's faults."""
        with self._lock:
            if absent := [name for name in names if (region, name) not in self._alarms]:
                raise Fault("ResourceNotFound", f"Unknown alarm: {', '.join(absent)}")
            for name in names:
                for alarm in self._alarms.values():
                    if (
                        alarm.region == region
                        and alarm.name not in names
                        and alarm.rule
                        and name in alarm.rule.children
                    ):
                        raise Fault(
                            "ValidationError",
                            f"Cannot delete {name} as there are composite alarm(s) depending on it: {alarm.name}.",
                        )
            for name in dict.fromkeys(names):
                alarm = self._alarms.pop((region, name))
                self._configured(alarm, "delete")

    def find(self, region: str, name: str) -> Alarm | None:
        return self._alarms.get((region, name))

    def all(self, region: str) -> list[Alarm]:
        """By name."""
        with self._lock:
            return sorted(
                (alarm for alarm in self._alarms.values() if alarm.region == region), key=lambda alarm: alarm.name
            )

    def states(self, region: str, names: Iterable[str]) -> dict[str, str]:
        """name -> state. An alarm that does not exist is absent."""
        with self._lock:
            return {name: alarm.state for name in names if (alarm := self._alarms.get((region, name))) is not None}

    def set_state(self, region: str, name: str, state: str, reason: str, reason_data: str | None) -> None:
        """Until the next evaluation. Raises AWS's faults."""
        with self._lock:
            alarm = self._alarms.get((region, name))
            if alarm is None:
                raise Fault("ResourceNotFound", f"Unknown alarm: {name}")
            self._change(alarm, state, reason, reason_data, self._clock.now())
            self._evaluate_composites(region, self._clock.now())

    def latest(self, region: str, name: str) -> float | None:
        """The newest value that a metric alarm has looked at; None when there is none."""
        with self._lock:
            alarm = self._alarms.get((region, name))
            if alarm is None or alarm.condition is None:
                return None
            condition = alarm.condition
            end = int(self._pace.of(self._clock.now() - _SETTLE_SECONDS) // condition.step * condition.step)
            length = condition.test.periods + EXTRA_PERIODS
            grid = Grid(end - length * condition.period, condition.period, length)
            try:
                datapoints = self._datapoints(alarm, condition, grid)
            except Fault:
                return None
            return next((point.value for point in reversed(datapoints) if point.value is not None), None)

    def enable_actions(self, region: str, names: Iterable[str], enabled: bool) -> None:
        with self._lock:
            for name in names:
                if alarm := self._alarms.get((region, name)):
                    alarm.settings = {**alarm.settings, "ActionsEnabled": enabled}
                    self._configured(alarm, "update")

    def history(self, region: str) -> list[HistoryItem]:
        """Oldest first."""
        oldest = self._clock.now() - _HISTORY_SECONDS
        with self._lock:
            return [item for item in self._history if item.region == region and item.at >= oldest]

    def support(self, service: str, act: Act) -> None:
        """Execute actions of another service ("lambda"), by the third part of their ARN."""
        self._actions[service] = act

    # --- evaluation ---

    def tick(self, now: float) -> None:
        """Evaluate every alarm that is due at `now`: a period has ended since, or data has come."""
        with self._lock:
            # A caller that had to wait for another must not evaluate the past after the present.
            now = self._ticked = max(now, self._ticked)
            for alarm in self._alarms.values():
                if alarm.condition is not None:
                    self._evaluate_if_due(alarm, alarm.condition, now)
            for region in {alarm.region for alarm in self._alarms.values() if alarm.rule is not None}:
                self._evaluate_composites(region, now)
            for alarm in self._alarms.values():
                if alarm.suppressor:
                    self._suppress(alarm, now)
            self._save()

    def _evaluate_if_due(self, alarm: Alarm, condition: Condition, now: float) -> None:
        end = int(self._pace.of(now - _SETTLE_SECONDS) // condition.step * condition.step)
        seen = (end, *(self._metrics.version(alarm.region, metric) for metric in condition.metrics))
        if seen == alarm.seen:
            return
        alarm.seen = seen
        test = condition.test
        length = test.periods + EXTRA_PERIODS
        grid = Grid(end - length * condition.period, condition.period, length)
        try:
            datapoints = self._datapoints(alarm, condition, grid)
        except Fault as fault:
            alarm.evaluation_state = "EVALUATION_ERROR"
            self._change(alarm, "INSUFFICIENT_DATA", str(fault.message), None, now)
            return
        alarm.evaluation_state = None
        verdict = test.judge(datapoints)
        if verdict.state is not None and verdict.state != alarm.state:
            reason = test.reason(verdict, alarm.state)
            self._change(alarm, verdict.state, reason, reason_data(condition, verdict, now), now)

    def _datapoints(self, alarm: Alarm, condition: Condition, grid: Grid) -> list[Datapoint]:
        _, lines = Evaluation(self._paced, alarm.region, condition.queries, lambda _: grid).result(condition.watched.id)
        if len(lines) != 1:
            raise Fault("ValidationError", f"The expression gives {len(lines)} time series; an alarm watches one.")
        stat = condition.stat
        counts = np.full(grid.length, np.nan)
        if stat is not None:
            counts = stat.values(self._paced, alarm.region, grid, Statistic.parse("SampleCount"))
        return [
            Datapoint(
                self._pace.true(float(start)),
                None if np.isnan(value) else float(value),
                None if np.isnan(count) else float(count),
                stat is None or stat.statistic.enough_samples(float(count)),
            )
            for start, value, count in zip(grid.times, lines[0].values, counts, strict=True)
        ]

    def _evaluate_composites(self, region: str, now: float) -> None:
        composites = [alarm for alarm in self._alarms.values() if alarm.region == region and alarm.rule is not None]

        def state_of(name: str) -> str | None:
            child = self._alarms.get((region, name))
            return child.state if child else None

        # A composite may stand on composites; there are no cycles, so this ends.
        changed = True
        while changed:
            changed = False
            for alarm in composites:
                assert alarm.rule is not None
                state = "ALARM" if alarm.rule.holds(state_of) else "OK"
                if state != alarm.state:
                    self._change(alarm, state, *self._composite_reason(alarm, alarm.rule), now)
                    changed = True

    def _composite_reason(self, alarm: Alarm, rule: AlarmRule) -> tuple[str, str]:
        children = [child for name in rule.children if (child := self._alarms.get((alarm.region, name)))]
        if not children:
            return f"The rule {rule.text} refers to no alarm", json.dumps({"triggeringAlarms": []})
        latest = max(children, key=lambda child: child.transitioned_at)
        day = datetime.fromtimestamp(latest.transitioned_at, UTC).strftime("%A %d %B, %Y %H:%M:%S UTC")
        data = [
            {"arn": child.arn, "state": {"value": child.state, "timestamp": timestamp(child.transitioned_at)}}
            for child in children
        ]
        return f"{latest.arn} transitioned to {latest.state} at {day}", json.dumps({"triggeringAlarms": data})

    # --- what a change sets off ---

    def _change(self, alarm: Alarm, state: str, reason: str, reason_data: str | None, now: float) -> None:
        before = (alarm.state, alarm.reason, alarm.reason_data, alarm.updated_at)
        alarm.reason, alarm.reason_data, alarm.updated_at = reason, reason_data, now
        if state == alarm.state:
            return
        alarm.state, alarm.transitioned_at = state, now
        data = {
            "version": "1.0",
            "oldState": history_state(*before[:3]),
            "newState": history_state(state, reason, reason_data),
        }
        self._record(alarm, "StateUpdate", f"Alarm updated from {before[0]} to {state}", data)
        log.info("Alarm '%s': %s -> %s: %s", alarm.name, before[0], state, reason)
        detail = {
            "state": event_state(state, reason, reason_data, now),
            "previousState": event_state(*before),
            "configuration": event_configuration(alarm),
        }
        self._send(alarm, "CloudWatch Alarm State Change", detail)
        if alarm.settings["ActionsEnabled"]:
            message = json.dumps(notification(alarm, before[0]))
            change = Change(message, subject_of(alarm), timestamp(now), {"alarmName": alarm.name, **detail})
            if alarm.suppressor:
                alarm.suppression.held, alarm.suppression.since = (state, change), self._pace.of(now)
                self._suppress(alarm, now)
            else:
                self._execute(alarm, state, change)

    def _execute(self, alarm: Alarm, state: str, change: Change) -> None:
        for action in alarm.actions(state):
            self._events.later(partial(self._act, alarm, action, change))

    def _suppress(self, alarm: Alarm, now: float) -> None:
        """Hold back what the suppressor says, or let it go: "Alarm suppression" in the CloudWatch user guide."""
        suppression, settings = alarm.suppression, alarm.settings
        at = self._pace.of(now)
        suppressor = self._alarms.get((alarm.region, alarm.suppressor or ""))
        active = suppressor is not None and suppressor.state == "ALARM"
        if suppression.active and not active:
            suppression.ended = at
        suppression.active = active
        if suppression.held is None:
            return
        if active:
            suppression.by = "Alarm"
        elif at < suppression.ended + settings["ActionsSuppressorExtensionPeriod"]:
            suppression.by = "ExtensionPeriod"
        elif suppression.ended < suppression.since and at < suppression.since + settings["ActionsSuppressorWaitPeriod"]:
            suppression.by = "WaitPeriod"
        else:
            state, change = suppression.held
            suppression.held = suppression.by = None
            self._execute(alarm, state, change)

    def _configured(self, alarm: Alarm, what: str) -> None:
        past = {"create": "created", "update": "updated", "delete": "deleted"}[what]
        data = {"version": "1.0", "type": what.title(), f"{past}Alarm": alarm.describe()}
        self._record(alarm, "ConfigurationUpdate", f'Alarm "{alarm.name}" {past}', data)
        self._send(
            alarm,
            "CloudWatch Alarm Configuration Change",
            {
                "operation": what,
                "state": event_state(alarm.state, alarm.reason, alarm.reason_data, alarm.updated_at),
                "configuration": event_configuration(alarm),
            },
        )

    def _send(self, alarm: Alarm, detail_type: str, detail: dict[str, Any]) -> None:
        self._events.put(
            alarm.region,
            {
                "source": "aws.cloudwatch",
                "detail-type": detail_type,
                "resources": [alarm.arn],
                "detail": {"alarmName": alarm.name, **detail},
            },
        )

    def _act(self, alarm: Alarm, action: str, change: Change) -> None:
        """One action, on the delivery thread; how it went is in the alarm's history."""
        service = action.split(":")[2] if action.count(":") >= 5 else ""
        error = None
        try:
            if service not in self._actions:
                raise Undeliverable(f"the local cloud executes no alarm actions of {service or action}")
            self._actions[service](alarm, action, change)
        except Undeliverable as undeliverable:
            error = str(undeliverable)
            log.warning("Alarm '%s': action %s failed: %s", alarm.name, action, error)
        data = {
            "actionState": "Failed" if error else "Succeeded",
            "notificationResource": action,
            "publishedMessage": json.loads(change.message),
            "error": error,
        }
        done = (
            f"Failed to execute action {action}. Received error: {error}"
            if error
            else f"Successfully executed action {action}"
        )
        with self._lock:
            self._record(alarm, "Action", done, data)

    def _publish(self, alarm: Alarm, action: str, change: Change) -> None:
        with as_service("cloudwatch.amazonaws.com", alarm.arn):
            self._events.publish(action, change.message, change.subject)

    def _record(self, alarm: Alarm, kind: str, summary: str, data: Mapping[str, Any]) -> None:
        self._unsaved = True  # whatever changes an alarm is in its history
        self._history.append(
            HistoryItem(alarm.region, alarm.name, alarm.kind, self._clock.now(), kind, summary, json.dumps(data))
        )

    # --- the thread ---

    def start(self) -> None:
        """Evaluate from now on, on a thread of our own. A second call changes nothing."""
        with self._lock:
            if self._thread is None:
                self._closing.clear()
                self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self.tick(self._clock.now())
            except Exception:
                # One alarm that we cannot evaluate must not end the evaluation of all.
                log.exception("Evaluating the alarms failed inside the local cloud")
            self._clock.sleep(_TICK_SECONDS if self._pace.speed <= 1 else _FAST_TICK_SECONDS)

    def reset(self) -> None:
        """Forget all alarms and their history."""
        with self._lock:
            self._alarms.clear()
            self._history.clear()
            self._ticked = -math.inf
            self._unsaved = True
            self._save()

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(10)
        with self._lock:
            self._save()
