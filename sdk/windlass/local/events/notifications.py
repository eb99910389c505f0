"""SNS subscriptions that reach their endpoints: HTTP(S) and Lambda, and none that can break a publication.

Topics, filter policies and the delivery to SQS are moto's. There, an endpoint that is gone fails the whole Publish; on AWS, as
here, the message goes to the subscription's dead-letter queue.
"""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlsplit

from moto.core.exceptions import ServiceException
from moto.sns import models, urls
from moto.sns.exceptions import InvalidParameterValue, SNSInvalidParameter
from moto.sns.models import SNSBackend, sns_backends
from werkzeug.exceptions import HTTPException

from windlass.local.events.bus import EventBus, Undeliverable
from windlass.local.iam.authorizer import Denied, as_service, require

log = logging.getLogger(__name__)

ATTEMPTS, PAUSE_SECONDS = 4, 20
"""SNS's default policy for HTTP: three retries, 20 seconds apart."""

_TIMEOUT_SECONDS = 15.0

_PROTOCOLS = ("http", "https", "email", "email-json", "sms", "sqs", "application", "lambda", "firehose")

Invoke = Callable[[str, str, str, str], None]
"""(ARN of a function, event, the service that asks, the resource it asks for): invoke it. Raises Undeliverable."""


class LocalSubscription(models.Subscription):  # type: ignore[misc]
    """moto's record, with our delivery."""

    events: ClassVar[EventBus]
    invoke: ClassVar[staticmethod[[str, str, str, str], None]]

    def publish(
        self,
        message: str,
        message_id: str,
        subject: str | None = None,
        message_attributes: dict[str, Any] | None = None,
        group_id: str | None = None,
        deduplication_id: str | None = None,
        message_structure: str | None = None,
    ) -> None:
        matcher = self._filter_policy_matcher
        if matcher is not None and not matcher.matches(message_attributes, message):
            return
        if self.protocol not in ("http", "https", "lambda"):
            try:
                if self.protocol == "sqs":
                    with as_service("sns.amazonaws.com", self.topic_arn):
                        require("sqs:SendMessage", self.endpoint)
                super().publish(
                    message, message_id, subject, message_attributes, group_id, deduplication_id, message_structure
                )
            except (Denied, ServiceException, HTTPException, KeyError) as error:
                self._give_up(message, str(getattr(error, "message", None) or error))
            return
        if message_structure == "json":
            message = self._parse_message_structure(message, self.protocol)
        notification = self.get_post_data(message, message_id, subject, message_attributes=message_attributes)
        if self.protocol == "lambda":
            self.events.later(partial(self._to_function, notification))
        else:
            self.events.later(partial(self._to_http, notification, 1))

    def _to_function(self, notification: dict[str, Any]) -> None:
        record = {
            "EventSource": "aws:sns",
            "EventVersion": "1.0",
            "EventSubscriptionArn": self.arn,
            "Sns": {"Subject": None, "MessageAttributes": {}, **_as_function_sees_it(notification)},
        }
        try:
            text = json.dumps({"Records": [record]})
            self.invoke(self.endpoint, text, "sns.amazonaws.com", self.topic_arn)
        except Undeliverable as error:
            self._give_up(notification["Message"], str(error))

    def _to_http(self, notification: dict[str, Any], attempt: int) -> None:
        raw = str(self.attributes.get("RawMessageDelivery", "")).lower() == "true"
        body = notification["Message"] if raw else json.dumps(notification)
        headers = {
            "Content-Type": "text/plain; charset=UTF-8",
            "User-Agent": "Amazon Simple Notification Service Agent",
            "x-amz-sns-message-type": "Notification",
            "x-amz-sns-message-id": notification["MessageId"],
            "x-amz-sns-topic-arn": self.topic_arn,
            "x-amz-sns-subscription-arn": self.arn,
            **({"x-amz-sns-rawdelivery": "true"} if raw else {}),
        }
        if urlsplit(self.endpoint).scheme not in ("http", "https"):
            self._give_up(notification["Message"], f"{self.endpoint} is no HTTP address")
            return
        request = urllib.request.Request(self.endpoint, body.encode(), headers, method="POST")  # noqa: S310 - see above
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310 - see above
                return
        except urllib.error.HTTPError as error:
            problem = f"the endpoint answered {error.code}"
            error.close()
            # AWS takes these for lasting: the endpoint has understood, and refuses.
            lasting = 400 <= error.code < 500 and error.code != 429
        except OSError as error:
            problem, lasting = str(error), False
        if lasting or attempt >= ATTEMPTS:
            self._give_up(notification["Message"], problem)
        else:
            self.events.agenda.after(PAUSE_SECONDS, partial(self._to_http, notification, attempt + 1))

    def _give_up(self, message: str, reason: str) -> None:
        log.warning("SNS topic '%s': no delivery to %s: %s", self.topic.name, self.endpoint, reason)
        policy = self.attributes.get("RedrivePolicy")
        if policy:
            queue = json.loads(policy).get("deadLetterTargetArn", "")
            try:
                self.events.send(queue, message)
            except Undeliverable as error:
                log.warning("SNS topic '%s': nor to the dead-letter queue: %s", self.topic.name, error)


class LocalTopics(SNSBackend):  # type: ignore[misc]
    """moto's topics, which take no more than SNS does."""

    @property
    def _url_module(self) -> Any:
        return urls

    def subscribe(self, topic_arn: str, endpoint: str, protocol: str) -> models.Subscription:
        if protocol not in _PROTOCOLS:
            raise SNSInvalidParameter(
                f"Invalid parameter: Amazon SNS does not support this protocol string: {protocol}"
            )
        if protocol in ("http", "https") and urlsplit(endpoint or "").scheme != protocol:
            raise SNSInvalidParameter("Invalid parameter: Endpoint must match the specified protocol")
        return super().subscribe(topic_arn, endpoint, protocol)

    def publish(self, message: str, *args: Any, **kwargs: Any) -> str:
        if not message:
            raise InvalidParameterValue("Invalid parameter: Empty message")
        message_id: str = super().publish(message, *args, **kwargs)
        return message_id


def _as_function_sees_it(notification: dict[str, Any]) -> dict[str, Any]:
    """A function gets the same with two names spelled otherwise."""
    renamed = {"SigningCertURL": "SigningCertUrl", "UnsubscribeURL": "UnsubscribeUrl"}
    return {renamed.get(name, name): value for name, value in notification.items()}


def register(events: EventBus, invoke: Invoke) -> None:
    """Put our topics and subscriptions in the place of moto's, before the first is made."""
    # Not on a class of this cloud's own: a snapshot finds the classes of what it holds by name.
    LocalSubscription.events, LocalSubscription.invoke = events, staticmethod(invoke)
    models.Subscription = LocalSubscription
    sns_backends.backend = LocalTopics
    sns_backends.clear()
