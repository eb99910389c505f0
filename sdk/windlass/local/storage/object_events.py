"""What a bucket tells of its objects: S3's event notifications to functions, queues, topics and EventBridge.

    with object_events.told():
        ...                                     # moto changes objects, and notes what happened

The configurations are moto's records. Delivery is the event bus's, so a request never waits for whoever listens; what cannot
be delivered is in the server's log. Nothing goes out before the change is saved: whoever hears of an object can read it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote_plus

from moto.s3 import models
from moto.s3.exceptions import S3ClientError

from windlass.local import cloud as clouds
from windlass.local.events.bus import Undeliverable
from windlass.local.iam.authorizer import as_service

log = logging.getLogger(__name__)

_SERVICE = "s3.amazonaws.com"

# The user guide's "EventBridge events": detail-type and reason, by the event's name without "s3:".
_TO_EVENTBRIDGE: Mapping[str, tuple[str, str]] = {
    "ObjectCreated:Put": ("Object Created", "PutObject"),
    "ObjectCreated:Post": ("Object Created", "POST Object"),
    "ObjectCreated:Copy": ("Object Created", "CopyObject"),
    "ObjectCreated:CompleteMultipartUpload": ("Object Created", "CompleteMultipartUpload"),
    "ObjectRemoved:Delete": ("Object Deleted", "DeleteObject"),
    "ObjectRemoved:DeleteMarkerCreated": ("Object Deleted", "DeleteObject"),
    "ObjectTagging:Put": ("Object Tags Added", ""),
    "ObjectTagging:Delete": ("Object Tags Deleted", ""),
    "ObjectAcl:Put": ("Object ACL Updated", ""),
    "ObjectRestore:Post": ("Object Restore Initiated", ""),
    "ObjectRestore:Completed": ("Object Restore Completed", ""),
}
_DELETIONS = {
    "ObjectRemoved:Delete": "Permanently Deleted",
    "ObjectRemoved:DeleteMarkerCreated": "Delete Marker Created",
}


@dataclass(frozen=True)
class _Event:
    """Something that happened to an object.

    Attributes:
        name: ``ObjectCreated:Put``.
        about: size, eTag and version, as far as they are told of such an event.
    """

    bucket: Any
    name: str
    key: str
    about: Mapping[str, Any]
    sequencer: str
    request_id: str


class _Noted(threading.local):
    """What this thread has changed, and has not told yet; None while it is not asked to tell."""

    events: list[_Event] | None = None


_noted = _Noted()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What happens to objects meanwhile on this thread is told afterwards: by then it must be saved."""
    if _noted.events is not None:
        yield
        return
    events = _noted.events = []
    try:
        yield
    finally:
        _noted.events = None
    for event in _as_aws_counts(events):
        _tell(event)


def note(bucket: Any, name: str, key: str, version: str, about: Mapping[str, Any] | None = None) -> None:
    """That happened to an object."""
    if bucket.notification_configuration is None or _noted.events is None:
        return
    versioned = {"versionId": version} if bucket.is_versioned else {}
    event = _Event(bucket, name, key, {**(about or {}), **versioned}, f"{time.time_ns():016X}", uuid.uuid4().hex[:16])
    _noted.events.append(event)


def noted_by_moto(account: str, name: str, bucket: Any, key: Any) -> None:
    """What stands in the place of moto's own delivery, which knows neither policies nor our functions."""
    short = str(getattr(name, "value", name)).removeprefix("s3:")
    if short.startswith("ObjectRemoved") or bucket.notification_configuration is None:
        return  # moto tells of no marker, and of a version only if it is the last; `Backend.delete_object` tells of all
    etag = key.etag.strip('"')
    about = {"eTag": etag} if short.startswith(("ObjectTagging", "ObjectAcl")) else {"size": key.size, "eTag": etag}
    note(bucket, short, key.name, str(key.version_id), about)


def _as_aws_counts(events: list[_Event]) -> list[_Event]:
    """moto makes an object by steps, and notes each; S3 tells of an object that was made once."""
    made = {(event.bucket.name, event.key): event for event in events if event.name.startswith("ObjectCreated")}
    return [event for event in events if made.get((event.bucket.name, event.key), event) is event]


def _tell(event: _Event) -> None:
    configuration, events = event.bucket.notification_configuration, clouds.current().events
    if configuration is None:
        return
    for rule in (*configuration.cloud_function, *configuration.queue, *configuration.topic):
        if rule.matches(f"s3:{event.name}", event.key):
            events.later(partial(_deliver, event, rule.arn, json.dumps({"Records": [_record(event, rule.id)]})))
    if configuration.event_bridge is not None:
        events.put(event.bucket.region_name, _eventbridge(event), account=event.bucket.account_id)


def _deliver(event: _Event, arn: str, text: str) -> None:
    try:
        _send(event.bucket, arn, text)
    except Undeliverable as error:
        log.warning("S3 bucket '%s': no %s of '%s' to %s: %s", event.bucket.name, event.name, event.key, arn, error)


def _send(bucket: Any, arn: str, text: str) -> None:
    """Raises Undeliverable."""
    cloud, service = clouds.current(), arn.split(":")[2]
    if service == "lambda":
        cloud.functions.deliver(arn, text, _SERVICE, bucket.arn)
        return
    with as_service(_SERVICE, bucket.arn):
        if service == "sns":
            cloud.events.publish(arn, text, "Amazon S3 Notification")
        else:
            cloud.events.send(arn, text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _record(event: _Event, rule: str) -> dict[str, Any]:
    """The user guide's "Event message structure"."""
    owner = {"principalId": event.bucket.account_id}
    bucket = {"name": event.bucket.name, "ownerIdentity": owner, "arn": event.bucket.arn}
    told = {"key": quote_plus(event.key, safe="/"), **event.about, "sequencer": event.sequencer}
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": event.bucket.region_name,
        "eventTime": _now(),
        "eventName": event.name,
        "userIdentity": {"principalId": f"AWS:{event.bucket.account_id}"},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": event.request_id, "x-amz-id-2": event.request_id},
        "s3": {"s3SchemaVersion": "1.0", "configurationId": rule, "bucket": bucket, "object": told},
    }


def _eventbridge(event: _Event) -> dict[str, Any]:
    kind, reason = _TO_EVENTBRIDGE[event.name]
    renamed = {"eTag": "etag", "versionId": "version-id"}
    about = {renamed.get(name, name): value for name, value in event.about.items()}
    deletion = {"deletion-type": _DELETIONS[event.name]} if event.name in _DELETIONS else {}
    return {
        "source": "aws.s3",
        "detail-type": kind,
        "resources": [event.bucket.arn],
        "detail": {
            "version": "0",
            "bucket": {"name": event.bucket.name},
            "object": {"key": event.key, **about, "sequencer": event.sequencer},
            "request-id": event.request_id,
            "requester": event.bucket.account_id,
            "source-ip-address": "127.0.0.1",
            **({"reason": reason} if reason else {}),
            **deletion,
        },
    }


# --- a configuration, before it is kept --------------------------------------------------------------------------------------


def check(bucket: Any, configuration: Mapping[str, Any], *, destinations: bool) -> None:
    """Raise S3's error for a configuration that it would not keep.

    Args:
        destinations: whether each must take a test: a queue or topic gets one, as on AWS; a function must allow S3.
    """
    rules = [
        (rule[kind], rule)
        for kind in ("CloudFunction", "Queue", "Topic")
        for rule in configuration.get(f"{kind}Configuration") or ()
    ]
    for at, (_, rule) in enumerate(rules):
        for _, other in rules[:at]:
            if _share(rule, other):
                raise S3ClientError(
                    "InvalidArgument",
                    "Configurations overlap. Configurations on the same bucket cannot share a common event type. "
                    f"Both {other['Event']} and {rule['Event']} hold for some keys.",
                )
    if not destinations:
        return
    for arn in dict.fromkeys(arn for arn, _ in rules):
        try:
            _test(bucket, arn)
        except Undeliverable as error:
            raise S3ClientError(
                "InvalidArgument", f"Unable to validate the following destination configurations: {arn}: {error}"
            ) from error


def _test(bucket: Any, arn: str) -> None:
    from windlass.local.events import functions

    if arn.split(":")[2] != "lambda":
        made = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": _now(), "Bucket": bucket.name}
        _send(bucket, arn, json.dumps({**made, "RequestId": uuid.uuid4().hex[:16], "HostId": uuid.uuid4().hex}))
        return
    function = functions.find(arn)
    if function is None:
        raise Undeliverable("the function does not exist")
    if not function.permits(_SERVICE, bucket.arn):
        raise Undeliverable(f"its policy does not let {_SERVICE} invoke it for {bucket.arn}")


def _share(rule: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one event of one key could match both."""
    return (
        any(_same(one, two) for one in rule["Event"] for two in other["Event"])
        and _nested(_filter(rule, "prefix"), _filter(other, "prefix"))
        and _nested(_filter(rule, "suffix")[::-1], _filter(other, "suffix")[::-1])
    )


def _same(one: str, other: str) -> bool:
    return _nested(one.rstrip("*"), other.rstrip("*")) if "*" in one + other else one == other


def _nested(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _filter(rule: Mapping[str, Any], name: str) -> str:
    found = ((rule.get("Filter") or {}).get("S3Key") or {}).get("FilterRule") or ()
    return next((str(each["Value"]) for each in found if each["Name"] == name), "")


def register() -> None:
    """Put ours in the place of moto's, before its first request."""
    models.notifications.send_event = noted_by_moto
    models.notifications.send_test_event = lambda **_: None  # sent before, by `check`
    # A call of CreateBucket reaches EventBridge through CloudTrail, which is not here; moto makes up an "Object Created".
    models.events_send_notification = lambda **_: None
