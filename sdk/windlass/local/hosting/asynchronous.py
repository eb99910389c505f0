"""Asynchronous inference: requests that wait in a queue for an instance, and answers that go to S3.

    queues = Queues(find, database, metrics, clock, publish)
    accepted = queues.submit(region, "digits", config, {"InputLocation": "s3://bucket/in.json", "ContentType": "..."})
    accepted.output     # where the answer will lie

A request is on disk before it is accepted, and leaves the disk when its answer, or why there is none, is on S3 and its
notification is out. So it survives the server, and may be processed twice when the server is killed, as on AWS.

Limits, keys of objects, notifications and metrics: the SageMaker AI developer guide, "Asynchronous inference".
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from windlass.local import storage
from windlass.local.clock import Clock
from windlass.local.cloudwatch.metric_store import Datum, Metric, MetricStore
from windlass.local.database import Database
from windlass.local.events.bus import Undeliverable
from windlass.local.faults import Fault
from windlass.local.hosting.capture import Capture, Exchange
from windlass.local.hosting.fleet import Fleet, NoCapacity
from windlass.local.hosting.instance import Instance, Reply, Unanswered, told
from windlass.local.hosting.metering import NAMESPACE
from windlass.local.hosting.router import Router
from windlass.local.iam.authorizer import acting_as
from windlass.local.jobs import containers

log = logging.getLogger(__name__)

DEFAULT_TTL_SECONDS = 21_600
DEFAULT_TIMEOUT_SECONDS = 900
DEFAULT_CONCURRENCY = 4
"""Invocations at once on one instance when the config gives no number. AWS chooses "an optimal value" and names none."""

INLINE_LIMIT_BYTES = 128_000
"""Of a request's Body: larger inputs go through S3."""

NOTIFIED_RESPONSE_BYTES = 128 * 1024
"""The largest response that a notification includes."""

_LOOK_SECONDS = 0.1
"""How often a queue that waits for an instance looks for one."""


class Target(Protocol):
    """What a queue sees of the endpoint that it belongs to."""

    @property
    def router(self) -> Router: ...
    @property
    def role(self) -> str | None: ...

    def capture_of(self, fleet: Fleet) -> Capture | None: ...


@dataclass
class Request:
    """One accepted InvokeEndpointAsync, with all that its processing needs: what was in force when it was accepted.

    Attributes:
        key: of its row; in the order of acceptance.
        received: epoch seconds.
        source: the input's ``s3://`` or ``https://`` address; None when ``inline`` has the input itself, in base64.
        output, failure: where the answer, or why there is none, goes.
        concurrency: how many requests an instance processes at once.
        notification: the NotificationConfig.
        role: whose permissions all this takes.
    """

    key: str
    region: str
    endpoint: str
    inference_id: str
    received: float
    output: str
    source: str | None = None
    inline: str | None = None
    failure: str | None = None
    content_type: str | None = None
    accept: str | None = None
    custom_attributes: str | None = None
    ttl_seconds: float = DEFAULT_TTL_SECONDS
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    concurrency: int = DEFAULT_CONCURRENCY
    notification: dict[str, Any] = field(default_factory=dict)
    role: str | None = None

    def headers(self) -> dict[str, str]:
        """What the container is told."""
        return told(self.content_type, self.accept, self.custom_attributes, self.inference_id)

    def input(self) -> bytes:
        """The request's payload. Raises storage.Missing."""
        if self.source is None:
            return base64.b64decode(self.inline or "")
        return storage.read(containers.s3_uri(self.source))


class Failed(Exception):
    """A request has no answer; ``str()`` is the notification's failureReason.

    Args:
        response: what the model said, if it said anything.
    """

    def __init__(self, reason: str, metric: str = "InvocationFailures", response: Reply | None = None) -> None:
        super().__init__(reason)
        self.metric, self.response = metric, response


class Queues:
    """The queues of all asynchronous endpoints.

    Args:
        find: the endpoint of that region and name; None when it is gone, and its queue with it.
        publish: sends a message to an SNS topic; raises Undeliverable.
    """

    def __init__(
        self,
        find: Callable[[str, str], Target | None],
        database: Database,
        metrics: MetricStore,
        clock: Clock,
        publish: Callable[[str, str], None],
    ) -> None:
        self._find, self._metrics, self._clock, self._publish = find, metrics, clock, publish
        self._rows = database.table("async-requests")
        self._lock = threading.Lock()
        self._queues: dict[tuple[str, str], Queue] = {}
        self._closing = False

    def restore(self) -> None:
        """Go on with what an earlier server had accepted."""
        for row in self._rows.values():
            request = Request(**row)
            if self._find(request.region, request.endpoint) is None:
                self._rows.delete(request.key)
            else:
                self._queue(request.region, request.endpoint).add(request)

    def submit(self, region: str, endpoint: str, config: Mapping[str, Any], asked: Mapping[str, Any]) -> Request:
        """Accept a request.

        Args:
            config: the endpoint's AsyncInferenceConfig.
            asked: the members of InvokeEndpointAsync, which fit the service model.

        Raises:
            Fault: it has both a Body and an InputLocation, or neither.
        """
        body = asked.get("Body") or b""
        if bool(body) == ("InputLocation" in asked):
            raise Fault("ValidationError", "Exactly one of Body and InputLocation must be provided.")
        if len(body) > INLINE_LIMIT_BYTES:
            constraint = f"Member must have length less than or equal to {INLINE_LIMIT_BYTES}"
            message = f"1 validation error detected: Value at 'body' failed to satisfy constraint: {constraint}"
            raise Fault("ValidationError", message)
        received = self._clock.now()
        place = self._find(region, endpoint)
        name = str(uuid.uuid4())
        target = config["OutputConfig"]
        folder = "/".join(
            filter(None, [target["S3OutputPath"].rstrip("/"), _trimmed(asked.get("S3OutputPathExtension"))])
        )
        request = Request(
            key=f"{region}/{endpoint}/{time.time_ns():020d}-{name}",
            region=region,
            endpoint=endpoint,
            inference_id=asked.get("InferenceId") or str(uuid.uuid4()),
            received=received,
            output=f"{folder}/{asked.get('Filename') or f'{name}.out'}",
            source=asked.get("InputLocation"),
            inline=base64.b64encode(body).decode() if body else None,
            failure=f"{path.rstrip('/')}/{name}-error.out" if (path := target.get("S3FailurePath")) else None,
            content_type=asked.get("ContentType"),
            accept=asked.get("Accept"),
            custom_attributes=asked.get("CustomAttributes"),
            ttl_seconds=asked.get("RequestTTLSeconds", DEFAULT_TTL_SECONDS),
            timeout_seconds=asked.get("InvocationTimeoutSeconds", DEFAULT_TIMEOUT_SECONDS),
            concurrency=config.get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance", DEFAULT_CONCURRENCY),
            notification=target.get("NotificationConfig", {}),
            role=place.role if place else None,
        )
        self._rows.save(request.key, asdict(request))
        self._queue(region, endpoint).add(request)
        return request

    def measure(self, region: str, endpoint: str) -> None:
        """Publish how long the queue of that endpoint is: to be called regularly for each asynchronous endpoint."""
        target = self._find(region, endpoint)
        if target is None:
            return
        with self._lock:
            queue = self._queues.get((region, endpoint))
        waiting, oldest = queue.backlog() if queue else (0, None)
        instances = target.router.healthy()
        now = self._clock.now()
        values = [
            ("ApproximateBacklogSize", waiting, "Count"),
            ("HasBacklogWithoutCapacity", float(waiting > 0 and not instances), "Count"),
            ("ApproximateAgeOfOldestRequest", max(0.0, now - oldest) if oldest is not None else 0.0, "Seconds"),
        ]
        if instances:  # with none there is nothing to divide by, and AWS publishes nothing
            values.append(("ApproximateBacklogSizePerInstance", waiting / instances, "Count"))
        self._put(region, {"EndpointName": endpoint}, values)

    def forget(self, region: str, endpoint: str) -> None:
        """The endpoint is gone, and what still waited for it."""
        with self._lock:
            queue = self._queues.pop((region, endpoint), None)
        for request in queue.close() if queue else ():
            self._rows.delete(request.key)

    def close(self) -> None:
        """Take no more requests off the queues. What is being processed is left to its instance, and to the next server."""
        with self._lock:
            self._closing = True
            queues = list(self._queues.values())
            self._queues.clear()
        for queue in queues:
            queue.close()

    def reset(self) -> None:
        """Forget everything."""
        self.close()
        self._closing = False

    def _queue(self, region: str, endpoint: str) -> Queue:
        with self._lock:
            if (region, endpoint) not in self._queues:
                queue = Queue(lambda: self._find(region, endpoint), self._clock, self._process, self._expire)
                if self._closing:
                    queue.close()  # the request is on disk: the next server goes on with it
                else:
                    self._queues[region, endpoint] = queue
                return queue
            return self._queues[region, endpoint]

    # -- one request ------------------------------------------------------------------------------------------------------

    def _expire(self, request: Request) -> None:
        waited = self._clock.now() - request.received
        reason = f"ClientError: The request expired: it was in the queue for {waited:.0f} s, more than its RequestTTLSeconds "
        with acting_as(request.role):
            self._settle(request, None, Failed(f"{reason}of {request.ttl_seconds:.0f}.", "ExpiredRequests"), [])

    def _process(self, request: Request, target: Target, fleet: Fleet, instance: Instance) -> bool:
        """Ask the instance and settle the request. False: the instance was taken away meanwhile, so it is to be tried again."""
        with acting_as(request.role):
            return self._serve(request, target, fleet, instance)

    def _serve(self, request: Request, target: Target, fleet: Fleet, instance: Instance) -> bool:
        began = self._clock.now()
        values = [("TimeInBacklog", (began - request.received) * 1e3, "Milliseconds")]
        failed: Failed | None = None
        reply: Reply | None = None
        try:
            body = self._download(request, values)
            reply = self._ask(request, body, instance, values)
            if reply is None:
                return False
            self._upload(request, reply, values)
            if capture := target.capture_of(fleet):
                capture.record(_exchange(request, body, reply, instance.spec.name, began))
        except Failed as error:
            failed = error
        except Exception as error:  # tried again it would only fail again, and hold the others up
            log.exception("Endpoint %s: request %s", request.endpoint, request.inference_id)
            failed = Failed(f"InternalServerError: {type(error).__name__}: {error}")
        values.append(("InvocationsProcessed", 1, "Count"))
        values.append(("TotalProcessingTime", (self._clock.now() - request.received) * 1e3, "Milliseconds"))
        values.append(
            ("InvocationFailures", float(failed is not None and failed.metric == "InvocationFailures"), "Count")
        )
        self._settle(request, reply, failed, values, instance.spec.name)
        return True

    def _download(self, request: Request, values: list[tuple[str, float, str]]) -> bytes:
        began = time.perf_counter()
        try:
            body = request.input()
        except storage.Missing as error:
            raise Failed(
                f"ClientError: Unable to download the request payload: {error}", "RequestDownloadFailures"
            ) from error
        values.append(("RequestDownloadLatency", (time.perf_counter() - began) * 1e6, "Microseconds"))
        return body

    def _ask(
        self, request: Request, body: bytes, instance: Instance, values: list[tuple[str, float, str]]
    ) -> Reply | None:
        began = time.perf_counter()
        try:
            reply = instance.request("POST", "/invocations", request.headers(), body, request.timeout_seconds)
        except Unanswered as error:
            if instance.stopping:
                return None
            raise Failed(f"ClientError: {error}") from error
        values.append(("ModelLatency", (time.perf_counter() - began) * 1e6, "Microseconds"))
        if not 200 <= reply.status < 300:
            side = "client" if 400 <= reply.status < 500 else "server"
            raise Failed(
                f"ClientError: Received {side} error ({reply.status}) from model. See the SageMaker Endpoint logs in your "
                "account for more information.",
                response=reply,
            )
        return reply

    @staticmethod
    def _upload(request: Request, reply: Reply, values: list[tuple[str, float, str]]) -> None:
        began = time.perf_counter()
        try:
            storage.write(containers.s3_uri(request.output), reply.body)
        except (storage.Missing, OSError) as error:
            raise Failed(f"ClientError: Unable to upload the response: {error}", "ResponseUploadFailures") from error
        values.append(("ResponseUploadLatency", (time.perf_counter() - began) * 1e6, "Microseconds"))

    def _settle(
        self,
        request: Request,
        reply: Reply | None,
        failed: Failed | None,
        values: list[tuple[str, float, str]],
        variant: str | None = None,
    ) -> None:
        if failed:
            reply = failed.response
            if failed.metric != "InvocationFailures":
                values.append((failed.metric, 1, "Count"))
            if request.failure:
                text = reply.body if reply else str(failed).encode()
                try:
                    storage.write(containers.s3_uri(request.failure), text)
                except (storage.Missing, OSError) as error:
                    log.warning(
                        "Endpoint %s: why request %s failed is lost: %s", request.endpoint, request.inference_id, error
                    )
                    values.append(("ResponseUploadFailures", 1, "Count"))
        which = "ErrorTopic" if failed else "SuccessTopic"
        if topic := request.notification.get(which):
            try:
                self._publish(topic, json.dumps(self._message(request, reply, failed)))
            except Undeliverable as error:
                log.warning("Endpoint %s: no notification of %s: %s", request.endpoint, request.inference_id, error)
                values.append(("NotificationFailures", 1, "Count"))
        self._rows.delete(request.key)
        dimensions = {"EndpointName": request.endpoint}
        self._put(request.region, {**dimensions, "VariantName": variant} if variant else dimensions, values)

    def _message(self, request: Request, reply: Reply | None, failed: Failed | None) -> dict[str, Any]:
        """The notification, as the guide shows it under "Check prediction results"."""
        parameters = {
            "accept": request.accept,
            "contentType": request.content_type,
            "customAttributes": request.custom_attributes,
            "endpointName": request.endpoint,
            "inputLocation": request.source,
        }
        message: dict[str, Any] = {
            "awsRegion": request.region,
            "eventTime": _timestamp(self._clock.now()),
            "receivedTime": _timestamp(request.received),
            "invocationStatus": "Failed" if failed else "Completed",
            "requestParameters": {name: value for name, value in parameters.items() if value},
            "inferenceId": request.inference_id,
            "eventVersion": "1.0",
            "eventSource": "aws:sagemaker",
            "eventName": "InferenceResult",
        }
        kind = reply.headers.get("content-type", "application/octet-stream") if reply else ""
        if failed:
            message["failureReason"] = str(failed)
            if request.failure:
                message["responseParameters"] = {"contentType": kind or "text/plain", "outputLocation": request.failure}
        else:
            message["responseParameters"] = {"contentType": kind, "outputLocation": request.output}
        topic = "ERROR_NOTIFICATION_TOPIC" if failed else "SUCCESS_NOTIFICATION_TOPIC"
        wanted = topic in request.notification.get("IncludeInferenceResponseIn", ())
        if reply and wanted and len(reply.body) <= NOTIFIED_RESPONSE_BYTES:
            message["responseBody"] = {"content": base64.b64encode(reply.body).decode(), "encoding": "BASE64"}
        return message

    def _put(self, region: str, dimensions: Mapping[str, str], values: list[tuple[str, float, str]]) -> None:
        now = self._clock.now()
        self._metrics.put_many(
            region,
            [
                Datum(Metric.of(NAMESPACE, name, dimensions), now, ((value, 1.0),), unit=unit)
                for name, value, unit in values
            ],
        )


class Queue:
    """The requests that wait for one endpoint, and a thread that gives them to its instances, the oldest first.

    Args:
        process: answers a request on an instance, in a thread of its own; False puts it back.
        expire: is given a request that waited too long.
    """

    def __init__(
        self,
        find: Callable[[], Target | None],
        clock: Clock,
        process: Callable[[Request, Target, Fleet, Instance], bool],
        expire: Callable[[Request], None],
    ) -> None:
        self._find, self._clock, self._process, self._expire = find, clock, process, expire
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._closed = False
        self._look_again = 0.0
        self._thread: threading.Thread | None = None

    def add(self, request: Request) -> None:
        """The newest one."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name=f"async-{request.endpoint}", daemon=True)
                self._thread.start()

    def backlog(self) -> tuple[int, float | None]:
        """How many wait, and since when the oldest does."""
        with self._changed:
            return len(self._waiting), self._waiting[0].received if self._waiting else None

    def close(self) -> list[Request]:
        """Give out no more. Returns those that wait."""
        with self._changed:
            self._closed = True
            left, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        return left

    def _run(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except Exception:
                # Whatever it was, the other requests still wait for their turn.
                log.exception("A queue of asynchronous requests stumbled")
                with self._changed:
                    self._changed.wait(_LOOK_SECONDS)

    def _turn(self) -> None:
        """Give one request to an instance, or wait until that may be possible."""
        for late in self._expired():
            self._expire(late)
        with self._changed:
            if not self._waiting:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                return
            concurrency = self._waiting[0].concurrency
        held = ExitStack()
        target = self._find()
        try:
            if target is None:
                raise LookupError("the endpoint is gone")
            fleet, instance = held.enter_context(target.router.route(limit=concurrency))
        except (NoCapacity, LookupError):
            with self._changed:  # a request that ends wakes us; that an instance became ready does not
                self._changed.wait(_LOOK_SECONDS)
            return
        with self._changed:
            request = self._waiting.popleft() if self._waiting else None
        if request is None:
            held.close()
            return
        work = threading.Thread(
            target=self._work,
            args=(request, target, fleet, instance, held),
            name=f"async-{request.inference_id}",
            daemon=True,
        )
        try:
            work.start()
        except RuntimeError:  # this process may start no more threads for now
            held.close()
            with self._changed:
                self._waiting.appendleft(request)
            raise

    def _work(self, request: Request, target: Target, fleet: Fleet, instance: Instance, held: ExitStack) -> None:
        done = False
        try:
            with held:
                done = self._process(request, target, fleet, instance)
        finally:
            with self._changed:
                if not done and not self._closed:
                    self._waiting.appendleft(request)
                self._changed.notify_all()

    def _expired(self) -> Iterator[Request]:
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_SECONDS  # a long queue is not to be looked through for each request
        now = self._clock.now()
        with self._changed:
            late = [each for each in self._waiting if now - each.received > each.ttl_seconds]
            if late:
                self._waiting = deque(each for each in self._waiting if now - each.received <= each.ttl_seconds)
        yield from late


def _exchange(request: Request, body: bytes, reply: Reply, variant: str, at: float) -> Exchange:
    return Exchange(
        variant=variant,
        at=at,
        request_type=request.content_type or "",
        request=body,
        response_type=reply.headers.get("content-type", "application/octet-stream"),
        response=reply.body,
        inference_id=request.inference_id,
        custom_attributes=request.custom_attributes,
    )


def _trimmed(extension: str | None) -> str:
    return (extension or "").strip("/")


def _timestamp(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
