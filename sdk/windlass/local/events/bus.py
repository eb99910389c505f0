"""EventBridge: events from the parts of the local cloud and from PutEvents reach the targets of the rules they match.

    bus.put("us-east-1", {"source": "aws.cloudwatch", "detail-type": "...", "resources": [...], "detail": {...}})
    bus.publish("arn:aws:sns:...", message, subject)        # what an alarm action does

Rules, buses and patterns are moto's records. Delivery is ours, on one thread, so that neither an alarm nor a request waits for
a slow subscriber. Targets: SNS, SQS, CloudWatch Logs and other buses; `support` adds more. A target that cannot be delivered
to is refused when it is put, never skipped in silence. What fails for the moment is tried again, and what fails for good goes
to the dead-letter queue of the target.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Protocol

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult
from moto.events.models import EventPattern, EventsBackend, events_backends
from moto.events.responses import EventsHandler
from moto.events.urls import url_bases
from moto.logs.models import logs_backends
from moto.sns.models import sns_backends
from moto.sqs.models import sqs_backends
from werkzeug.exceptions import HTTPException

from windlass.local.clock import Clock, SystemClock
from windlass.local.cloud import ACCOUNT
from windlass.local.events import patterns as event_patterns
from windlass.local.events.agenda import Agenda
from windlass.local.events.schedules import Schedule
from windlass.local.faults import Fault
from windlass.local.iam.authorizer import Denied, acting_as, as_service, require

log = logging.getLogger(__name__)

Event = dict[str, Any]
Deliver = Callable[[Mapping[str, Any], str, Event], None]
"""(target, input, event): send `input`, the text that the target is to get. Raises Undeliverable.

`target` is what PutTargets got, with the RuleArn that it belongs to.
"""

_SERVICE = "events.amazonaws.com"
_MOST_ENTRIES, _MOST_TARGETS = 10, 5
_RULE_NAME = re.compile(r"[.\-_A-Za-z0-9]{1,64}")
_RETRIES, _OLDEST_SECONDS = 185, 86_400  # AWS's defaults of a RetryPolicy
_LONGEST_PAUSE_SECONDS = 600


class Undeliverable(Exception):
    """A message could not be delivered; str() says why."""


class Unavailable(Undeliverable):
    """It could not be delivered now, but may be later."""


@dataclass(frozen=True)
class _Delivery:
    """One event on its way to one target."""

    rule: Any
    target: Mapping[str, Any]
    event: Event
    ingested: float
    forwarded: bool
    since: float
    attempt: int = 1


class EventBus:
    """Delivers events and messages. Safe to use from many threads; nothing here waits for a delivery but `drain`.

    Args:
        clock: the time of events that come without one.
        pace: what schedules and pauses between attempts go by; by default the clock.
        delivered: is called after each delivery.

    Attributes:
        agenda: what is to be delivered later.
    """

    def __init__(
        self, clock: Clock | None = None, pace: Clock | None = None, delivered: Callable[[], None] = lambda: None
    ) -> None:
        self._clock, self._delivered = clock or SystemClock(), delivered
        self.pace: Clock = pace or self._clock
        self.agenda = Agenda(self.pace, self.later)
        self._schedules: dict[tuple[str, str, str], object] = {}
        self._deliverers: dict[str, Deliver] = {"sns": self._to_sns, "sqs": self._to_sqs, "logs": self._to_logs}
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._waiting = 0
        self._thread: threading.Thread | None = None

    def support(self, service: str, deliver: Deliver) -> None:
        """Deliver to targets of another service ("lambda"), by the third part of their ARN."""
        self._deliverers[service] = deliver

    def supports(self, arn: str) -> bool:
        return _service(arn) in self._deliverers or _is_bus(arn)

    def put(
        self, region: str, event: Event, *, bus: str = "default", account: str = ACCOUNT, forwarded: bool = False
    ) -> str:
        """Send an event from an AWS source to the rules of a bus; returns the event's id.

        What EventBridge itself adds (id, time, account, region) may be missing from `event`. One that another bus
        `forwarded` goes to no third bus, as on AWS, so that buses cannot send it round in circles.
        """
        now = self._clock.now()
        whole = _whole(event, account, region, now)
        buses = events_backends[account][region].event_buses
        if bus in buses:
            for rule in list(buses[bus].rules.values()):
                # A rule without a pattern is a schedule; moto's matcher would let everything through.
                if rule.state == "ENABLED" and rule.event_pattern.dump() and rule.event_pattern.matches_event(whole):
                    self._deliver_all(rule, whole, now, forwarded)
        return str(whole["id"])

    def _deliver_all(self, rule: Any, event: Event, now: float, forwarded: bool) -> None:
        if rule.managed_by:
            # An archive: moto's own record of past events.
            rule.send_to_targets({**event, "ingestion-time": now})
            return
        since = self.pace.now()
        for target in list(rule.targets):
            self.later(partial(self._deliver, _Delivery(rule, target, event, now, forwarded, since)))

    def _deliver(self, delivery: _Delivery) -> None:
        rule, target, event = delivery.rule, delivery.target, delivery.event
        arn = str(target["Arn"])
        try:
            if _is_bus(arn):
                if delivery.forwarded:
                    raise Undeliverable("an event that came from another bus goes to no third one")
                _, _, _, region, account, resource = arn.split(":", 5)
                self.put(region, event, bus=resource.removeprefix("event-bus/"), account=account, forwarded=True)
                return
            deliver = self._deliverers.get(_service(arn))
            if deliver is None:
                raise Undeliverable(f"the local cloud delivers no events to {_service(arn)}")
            text = target_input(target, event, rule_arn=rule.arn, rule_name=rule.name, ingested=delivery.ingested)
            with acting_as(target["RoleArn"], "events") if "RoleArn" in target else as_service(_SERVICE, rule.arn):
                deliver({**target, "RuleArn": rule.arn}, text, event)
        except Unavailable as error:
            policy = target.get("RetryPolicy") or {}
            pause = min(2.0**delivery.attempt, _LONGEST_PAUSE_SECONDS)
            age = self.pace.now() - delivery.since + pause
            if age > policy.get("MaximumEventAgeInSeconds", _OLDEST_SECONDS):
                self._give_up(delivery, error, "MaximumEventAgeInSeconds")
            elif delivery.attempt > policy.get("MaximumRetryAttempts", _RETRIES):
                self._give_up(delivery, error, "MaximumRetryAttempts")
            else:
                again = replace(delivery, attempt=delivery.attempt + 1)
                self.agenda.after(pause, partial(self._deliver, again))
        except Undeliverable as error:
            self._give_up(delivery, error, None)

    def _give_up(self, delivery: _Delivery, error: Undeliverable, exhausted: str | None) -> None:
        """A message to the target's dead-letter queue, where there is one, and to the log."""
        rule, arn = delivery.rule, str(delivery.target["Arn"])
        log.warning(
            "EventBridge rule '%s': no delivery of event %s to %s: %s", rule.name, delivery.event["id"], arn, error
        )
        queue_arn = (delivery.target.get("DeadLetterConfig") or {}).get("Arn")
        if not queue_arn:
            return
        attributes = {
            "RULE_ARN": rule.arn,
            "TARGET_ARN": arn,
            "ERROR_CODE": "SDK_CLIENT_ERROR" if exhausted else "RESOURCE_NOT_FOUND",
            "ERROR_MESSAGE": str(error),
            **({"EXHAUSTED_RETRY_CONDITION": exhausted} if exhausted else {}),
            "RETRY_ATTEMPTS": str(delivery.attempt - 1),
        }
        try:
            with as_service(_SERVICE, rule.arn):
                self.send(queue_arn, json.dumps(delivery.event), attributes=attributes)
        except Undeliverable as problem:
            log.warning("EventBridge rule '%s': nor to its dead-letter queue %s: %s", rule.name, queue_arn, problem)

    def send(
        self,
        arn: str,
        text: str,
        *,
        attributes: Mapping[str, str] | None = None,
        source: str = "",
        detail_type: str = "",
        resources: Sequence[str] = (),
    ) -> None:
        """A message to a queue, a topic, a bus or whatever else is supported, now. Raises Undeliverable.

        Args:
            attributes: of a message to a queue.
            source, detail_type, resources: of an event to a bus, whose detail is the text.
        """
        if _is_bus(arn):
            _, _, _, region, account, resource = arn.split(":", 5)
            event = {"source": source, "detail-type": detail_type, "resources": list(resources)}
            whole = {**event, "detail": json.loads(text)}
            self.put(region, whole, bus=resource.removeprefix("event-bus/"), account=account)
            return
        deliver = self._deliverers.get(_service(arn))
        if deliver is None:
            raise Undeliverable(f"the local cloud delivers nothing to {arn}")
        deliver({"Arn": arn, "Attributes": attributes or {}, "RuleArn": ""}, text, {"id": str(uuid.uuid4())})

    # --- schedules ---

    def schedule(self, account: str, region: str, name: str, schedule: Schedule | None) -> None:
        """Run the rule of that name by that schedule, instead of by the one that it had; None only ends that."""
        key, mark = (account, region, name), object()
        if schedule is None:
            self._schedules.pop(key, None)
            return
        self._schedules[key] = mark
        self._arm(key, mark, schedule, self.pace.now())

    def restore(self) -> None:
        """Go on with the schedules of the rules that an earlier server had."""
        for account, region, backend in events_backends.iter_backends():
            for rule in backend.event_buses["default"].rules.values():
                if rule.scheduled_expression:
                    self.schedule(account, region, rule.name, Schedule.parse(rule.scheduled_expression))

    def _arm(self, key: tuple[str, str, str], mark: object, schedule: Schedule, after: float) -> None:
        due = schedule.next_after(after)
        if due is not None:
            self.agenda.at(due, partial(self._run_schedule, key, mark, schedule, due))

    def _run_schedule(self, key: tuple[str, str, str], mark: object, schedule: Schedule, due: float) -> None:
        account, region, name = key
        rule = events_backends[account][region].event_buses["default"].rules.get(name)
        if self._schedules.get(key) is not mark or rule is None:
            return
        now = self._clock.now()
        if rule.state == "ENABLED":
            said = {"detail-type": "Scheduled Event", "source": "aws.events", "resources": [rule.arn]}
            event = _whole(said, account, region, now)
            self._deliver_all(rule, event, now, forwarded=False)
        # From when it was due, so that runs do not drift; what was missed meanwhile is not made up for.
        period = schedule.every or 60
        self._arm(key, mark, schedule, max(due, self.pace.now() - period))

    def publish(self, topic: str, message: str, subject: str | None = None) -> None:
        """Publish to an SNS topic now, and through it to its subscribers. Raises Undeliverable."""
        try:
            _, _, _, region, account, _ = topic.split(":", 5)
            require("sns:Publish", topic, region=region)
            if topic not in sns_backends[account][region].topics:
                raise Undeliverable(f"the topic {topic} does not exist")
            sns_backends[account][region].publish(message, arn=topic, subject=subject)
        except (Denied, ServiceException, HTTPException, KeyError, ValueError, OSError) as error:
            raise Undeliverable(_why(error)) from error

    def _to_sns(self, target: Mapping[str, Any], text: str, event: Event) -> None:
        self.publish(target["Arn"], text)

    def _to_sqs(self, target: Mapping[str, Any], text: str, event: Event) -> None:
        _, _, _, region, account, name = target["Arn"].split(":", 5)
        attributes = {
            key: {"DataType": "String", "StringValue": value} for key, value in (target.get("Attributes") or {}).items()
        }
        try:
            require("sqs:SendMessage", target["Arn"])
            sqs_backends[account][region].send_message(
                queue_name=name,
                message_body=text,
                message_attributes=attributes or None,
                group_id=(target.get("SqsParameters") or {}).get("MessageGroupId"),
            )
        except (Denied, ServiceException, HTTPException, KeyError) as error:
            raise Undeliverable(_why(error)) from error

    def _to_logs(self, target: Mapping[str, Any], text: str, event: Event) -> None:
        _, _, _, region, account, resource = target["Arn"].split(":", 5)
        group = resource.removeprefix("log-group:").removesuffix(":*")
        try:
            backend = logs_backends[account][region]
            backend.create_log_stream(group, event["id"])
            entry = {"timestamp": int(self._clock.now() * 1000), "message": text}
            backend.put_log_events(group, event["id"], [entry])
        except (ServiceException, HTTPException, KeyError) as error:
            raise Undeliverable(_why(error)) from error

    def later(self, work: Callable[[], None]) -> None:
        """Run `work` on the delivery thread, in order."""
        with self._idle:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
            self._waiting += 1
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
                self._delivered()
            except Exception:
                # One bad delivery must not end the deliveries after it.
                log.exception("A delivery failed inside the local cloud")
            finally:
                with self._idle:
                    self._waiting -= 1
                    self._idle.notify_all()

    def drain(self, timeout_seconds: float = 10) -> bool:
        """Wait until everything that was handed in is delivered; False when that takes too long."""
        with self._idle:
            return self._idle.wait_for(lambda: self._waiting == 0, timeout_seconds)

    def start(self) -> None:
        """Do from now on what the agenda holds."""
        self.agenda.start()

    def reset(self) -> None:
        """Deliver what is under way; rules and targets are moto's, which forgets them itself."""
        self._schedules.clear()
        self.agenda.reset()
        self.drain()

    def close(self) -> None:
        self.agenda.close()
        with self._idle:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._work.put(None)
            thread.join(10)


def _service(arn: str) -> str:
    return arn.split(":")[2] if arn.count(":") >= 5 else ""


def _is_bus(arn: str) -> bool:
    return _service(arn) == "events" and arn.split(":", 5)[5].startswith("event-bus/")


def _why(error: Exception) -> str:
    description = getattr(error, "message", None) or getattr(error, "description", None) or error
    return f"{type(error).__name__}: {description}"


# --- the input of a target ---------------------------------------------------------------------------------------------------


def target_input(
    target: Mapping[str, Any], event: Event, *, rule_arn: str = "", rule_name: str = "", ingested: float = 0
) -> str:
    """What a target gets of an event: all of it, or what Input, InputPath or InputTransformer make of it."""
    if target.get("Input"):
        return str(target["Input"])
    if target.get("InputPath"):
        return json.dumps(json_path(event, target["InputPath"]))
    if transformer := target.get("InputTransformer"):
        values = {name: json_path(event, path) for name, path in (transformer.get("InputPathsMap") or {}).items()}
        predefined = {
            "aws.events.rule-arn": rule_arn,
            "aws.events.rule-name": rule_name,
            "aws.events.event.ingestion-time": datetime.fromtimestamp(ingested, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "aws.events.event": {key: value for key, value in event.items() if key != "detail"},
            "aws.events.event.json": event,
        }
        return _fill_template(transformer["InputTemplate"], {**predefined, **values})
    return json.dumps(event)


_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\['([^']+)'\]|\[(\d+)\]")


def json_path(event: Any, path: str) -> Any:
    """The value at a path such as ``$.detail.state.value`` or ``$.resources[0]``; None where nothing is."""
    position, value = 1, event
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            return None
        key = match[1] or match[2]
        if key is not None:
            value = value.get(key) if isinstance(value, dict) else None
        else:
            index = int(match[3])
            value = value[index] if isinstance(value, list) and index < len(value) else None
        position = match.end()
    return value


def _fill_template(template: str, values: Mapping[str, Any]) -> str:
    """Put values in the place of ``<name>``: as they are inside quotes, as JSON outside of them."""
    parts: list[str] = []
    quoted, position = False, 0
    while position < len(template):
        char = template[position]
        if char == "\\":
            parts.append(template[position : position + 2])
            position += 2
            continue
        end = template.find(">", position) if char == "<" else -1
        name = template[position + 1 : end] if end > 0 else ""
        if name in values:
            value = values[name]
            if quoted:
                text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
                parts.append(json.dumps(text)[1:-1])
            else:
                parts.append(json.dumps("" if value is None else value))
            position = end + 1
            continue
        quoted ^= char == '"'
        parts.append(char)
        position += 1
    return "".join(parts)


def pipeline_target(start: Callable[[str, Mapping[str, str], str], Any]) -> Deliver:
    """Deliver events by starting SageMaker pipelines: ``bus.support("sagemaker", pipeline_target(pipelines.start))``.

    Args:
        start: (ARN of the pipeline, its parameters by name, a token that is the same for the same event). Raises AWS's faults.
    """

    def deliver(target: Mapping[str, Any], text: str, event: Event) -> None:
        given = (target.get("SageMakerPipelineParameters") or {}).get("PipelineParameterList") or []
        parameters = {each["Name"]: _dynamic(each["Value"], event) for each in given}
        try:
            require("sagemaker:StartPipelineExecution", str(target["Arn"]))
            start(str(target["Arn"]), parameters, str(event["id"]))
        except (Denied, ServiceException) as error:
            raise Undeliverable(_why(error)) from error

    return deliver


def _dynamic(value: str, event: Event) -> str:
    """A parameter of a target: a path into the event, or the value itself."""
    if not value.startswith("$."):
        return value
    found = json_path(event, value)
    return found if isinstance(found, str) else json.dumps(found)


def _whole(event: Event, account: str, region: str, now: float) -> Event:
    """An event with what EventBridge itself adds."""
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": "",
        "source": "",
        "account": account,
        "time": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": region,
        "resources": [],
        "detail": {},
        **event,
    }


# --- the API -----------------------------------------------------------------------------------------------------------------


class HasEvents(Protocol):
    """What `register` needs of the local cloud."""

    @property
    def events(self) -> EventBus: ...


class LocalEventsBackend(EventsBackend):  # type: ignore[misc]
    """moto's records, with our delivery."""

    bus: ClassVar[EventBus]

    @property
    def _url_module(self) -> Any:
        return types.SimpleNamespace(url_bases=url_bases, url_paths={"{0}/$": LocalEventsHandler.dispatch})

    def put_events(self, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if len(events) > _MOST_ENTRIES:
            raise Fault(
                "ValidationException",
                "1 validation error detected: Value '[PutEventsRequestEntry]' at 'entries' failed to satisfy constraint: "
                f"Member must have length less than or equal to {_MOST_ENTRIES}",
            )
        return [self._put_event(event) for event in events]

    def _put_event(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        if str(entry.get("Source") or "").startswith("aws."):
            return {"ErrorCode": "NotAuthorizedForSourceException", "ErrorMessage": "Not authorized for the source."}
        for name in ("Source", "DetailType", "Detail"):
            if not entry.get(name):
                reason = f"Parameter {name} is not valid. Reason: {name} is a required argument."
                return {"ErrorCode": "InvalidArgument", "ErrorMessage": reason}
        try:
            detail = json.loads(entry["Detail"])
        except ValueError:
            detail = None
        if not isinstance(detail, dict):
            return {"ErrorCode": "MalformedDetail", "ErrorMessage": "Detail is malformed."}
        event: Event = {
            "detail-type": entry["DetailType"],
            "source": entry["Source"],
            "resources": list(entry.get("Resources") or []),
            "detail": detail,
        }
        if entry.get("Time") is not None:
            event["time"] = datetime.fromtimestamp(float(entry["Time"]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        bus = (entry.get("EventBusName") or "default").split("/")[-1]
        return {"EventId": self.bus.put(self.region_name, event, bus=bus, account=self.account_id)}

    def put_rule(self, name: str, **arguments: Any) -> Any:
        if not _RULE_NAME.fullmatch(name):
            raise Fault(
                "ValidationException",
                f"1 validation error detected: Value '{name}' at 'name' failed to satisfy constraint: Member must satisfy "
                r"regular expression pattern: [\.\-_A-Za-z0-9]+",
            )
        if pattern := arguments.get("event_pattern"):
            event_patterns.check(pattern)
        schedule = None
        if text := arguments.get("scheduled_expression"):
            try:
                schedule = Schedule.parse(text)
            except ValueError:
                raise Fault("ValidationException", "Parameter ScheduleExpression is not valid.") from None
        rule = super().put_rule(name, **arguments)
        self.bus.schedule(self.account_id, self.region_name, name, schedule)
        return rule

    def put_targets(self, name: str, event_bus_arn: str | None, targets: Sequence[Mapping[str, Any]]) -> None:
        rule = self._get_event_bus(self._normalize_event_bus_arn(event_bus_arn)).rules.get(name)
        after = {str(target.get("Id")) for target in (*(rule.targets if rule else ()), *targets)}
        if len(after) > _MOST_TARGETS:
            raise Fault("LimitExceededException", "The requested resource exceeds the maximum number allowed.")
        for target in targets:
            _check_target(target)
        for target in targets:
            arn = str(target.get("Arn", ""))
            if not self.bus.supports(arn) and not (rule and rule.managed_by):
                raise Fault(
                    "ValidationException",
                    f"Target {target.get('Id')} of rule {name}: the local cloud delivers no events to {arn}.",
                )
        super().put_targets(name, event_bus_arn, targets)


def _check_target(target: Mapping[str, Any]) -> None:
    """Raise AWS's fault for what PutTargets does not take."""
    name = target.get("Id")
    if sum(member in target for member in ("Input", "InputPath", "InputTransformer")) > 1:
        raise Fault(
            "ValidationException",
            f"Only one of Input, InputPath, or InputTransformer must be provided for target {name}.",
        )
    if "Input" in target:
        try:
            json.loads(target["Input"])
        except ValueError:
            raise Fault("ValidationException", f"JSON syntax error in input for target {name}.") from None
    if _service(str(target.get("Arn", ""))) == "sagemaker" and not target.get("RoleArn"):
        raise Fault("ValidationException", f"RoleArn is required for target {target.get('Arn')}.")


class LocalEventsHandler(EventsHandler):  # type: ignore[misc]
    def call_action(self) -> Any:
        try:
            return super().call_action()
        except NotImplementedError:
            return refused(self, f"EventBridge {self._get_action()} is not implemented by the local cloud.")

    def test_event_pattern(self) -> tuple[str, dict[str, Any]]:
        try:
            event = json.loads(self._get_param("Event"))
        except (TypeError, ValueError):
            raise Fault("ValidationException", "Parameter Event is not valid. Reason: it is not JSON.") from None
        event_patterns.check(self._get_param("EventPattern") or "")
        pattern = EventPattern.load(self._get_param("EventPattern"))
        answer: tuple[str, dict[str, Any]] = self._create_response({"Result": bool(pattern.matches_event(event))})
        return answer


def refused(response: Any, message: str, code: str = "UnknownOperationException") -> tuple[int, dict[str, Any], Any]:
    """The answer to what the local cloud cannot do. moto's own would be a 500, which botocore retries."""
    status, headers, body = response.serialized(ActionResult(Fault(code, message)))
    return status, {**headers, "status": str(status)}, body


def register(cloud: HasEvents) -> None:
    """Put our delivery in the place of moto's, before its first request."""
    backend = type("RegisteredEventsBackend", (LocalEventsBackend,), {"bus": cloud.events})
    events_backends.backend = backend
    events_backends.clear()
