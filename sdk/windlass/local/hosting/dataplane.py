"""InvokeEndpoint: from the request through the balancer to a model server and back, measured and captured on the way.

Errors are those of the SageMaker Runtime API: ValidationError, ServiceUnavailable, and ModelError with what the model said.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

from windlass.local import validation
from windlass.local.clock import Clock
from windlass.local.cloud import ACCOUNT
from windlass.local.faults import Fault
from windlass.local.hosting.asynchronous import Queues
from windlass.local.hosting.capture import Capture, Exchange
from windlass.local.hosting.fleet import Fleet, NoCapacity
from windlass.local.hosting.instance import (
    PAYLOAD_LIMIT_BYTES,
    FleetFailed,
    Instance,
    NotReady,
    Reply,
    Streamed,
    Unanswered,
    told,
)
from windlass.local.hosting.metering import Meter, Sample
from windlass.local.hosting.multi_model import NoModel, NotLoaded, Values
from windlass.local.hosting.router import Router
from windlass.local.hosting.serverless import Throttled
from windlass.local.hosting.shadow import Mirror
from windlass.local.hosting.streaming import CONTENT_TYPE, Parts

LOG_GROUP = "/aws/sagemaker/Endpoints"
_PATH = re.compile(r"/endpoints/([^/]+)/(invocations|async-invocations|invocations-response-stream)")
_SCOPE = re.compile(r"Credential=[^/]+/\d+/([a-z0-9-]+)/")
_PREFIX = "HTTP_X_AMZN_SAGEMAKER_"
_HEADERS = {
    "CustomAttributes": "CUSTOM_ATTRIBUTES",
    "InferenceId": "INFERENCE_ID",
    "TargetVariant": "TARGET_VARIANT",
    "TargetModel": "TARGET_MODEL",
    "TargetContainerHostname": "TARGET_CONTAINER_HOSTNAME",
    "InferenceComponentName": "INFERENCE_COMPONENT",
    "EnableExplanations": "ENABLE_EXPLANATIONS",
    "SessionId": "SESSION_ID",
}
# What no endpoint here can have. Answering as if it had not been asked for would be a false success.
_REFUSED = {
    "TargetContainerHostname": "Endpoint {} is not a multi-container endpoint and does not support target container hostname "
    "header.",
    "InferenceComponentName": "Inference Component Name header is not allowed for endpoints to which you dont plan to deploy "
    "inference components. Please remove the Inference Component Name header and try again.",
    "EnableExplanations": "Endpoint {} has no ExplainerConfig and does not support enable explanations header.",
    "SessionId": "The local cloud does not implement stateful sessions (SessionId) yet.",
}
_ASYNC_HEADERS = {
    "ContentType": "CONTENT_TYPE",
    "Accept": "ACCEPT",
    "CustomAttributes": "CUSTOM_ATTRIBUTES",
    "InferenceId": "INFERENCE_ID",
    "InputLocation": "INPUTLOCATION",
    "S3OutputPathExtension": "S3OUTPUTPATHEXTENSION",
    "Filename": "FILENAME",
    "RequestTTLSeconds": "REQUESTTTLSECONDS",
    "InvocationTimeoutSeconds": "INVOCATIONTIMEOUTSECONDS",
}


class Target(Protocol):
    """What the data plane sees of an endpoint."""

    @property
    def router(self) -> Router: ...

    @property
    def guarded(self) -> bool: ...

    @property
    def asynchronous(self) -> Mapping[str, Any] | None: ...

    @property
    def accepting(self) -> bool: ...

    def capture_of(self, fleet: Fleet) -> Capture | None: ...


@dataclass(frozen=True)
class Invocation:
    """One request, read."""

    region: str
    endpoint: str
    body: bytes
    content_type: str | None = None
    accept: str | None = None
    custom_attributes: str | None = None
    inference_id: str | None = None
    target_variant: str | None = None
    target_model: str | None = None
    streaming: bool = False
    request_id: str | None = None

    def headers(self) -> dict[str, str]:
        """What the container is told."""
        others = {
            "X-Amzn-SageMaker-Target-Variant": self.target_variant,
            "X-Amzn-SageMaker-Target-Model": self.target_model,
            # So that the id in the caller's answer finds the lines in the model server's log.
            "X-Amzn-RequestId": self.request_id,
        }
        return told(self.content_type, self.accept, self.custom_attributes, self.inference_id, **others)


@dataclass(frozen=True)
class Answer:
    """What goes back to the caller. ``parts``: instead of a body, one that comes piece by piece."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    parts: Parts | None = None


class _Call:
    """An invocation on its way through an instance, which it holds.

    Args:
        at, began: when it came, in epoch seconds and by the performance counter.
    """

    def __init__(
        self, endpoint: Target, fleet: Fleet, instance: Instance, invocation: Invocation, at: float, began: float
    ) -> None:
        self.endpoint, self.fleet, self.instance, self.invocation = endpoint, fleet, instance, invocation
        self.at, self.began = at, began
        self._concurrent = instance.outstanding

    def sample(self, status: int | None, seconds: float, more: Values) -> Sample:
        """What it adds to the metrics, when it is over.

        Args:
            status: of the model server's answer; None when it gave none.
            seconds: that the model took.
            more: metrics that only invocations of its kind have.
        """
        variant = self.instance.spec.name
        return Sample(
            region=self.invocation.region,
            endpoint=self.invocation.endpoint,
            variant=variant,
            config=self.fleet.config if self.endpoint.guarded else None,
            at=self.at,
            status=status,
            model_seconds=None if status is None else seconds,
            overhead_seconds=time.perf_counter() - self.began - seconds,
            instances=self.fleet.healthy()[variant] if self.fleet.has_instances else None,
            concurrent=self._concurrent,
            more=more,
        )


class DataPlane:
    """A WSGI application for the paths under ``/endpoints/``.

    Args:
        find: the endpoint of that region and name.
    """

    def __init__(self, find: Callable[[str, str], Target | None], meter: Meter, clock: Clock, queues: Queues) -> None:
        self._find, self._meter, self._clock, self._queues = find, meter, clock, queues
        self._mirror = Mirror()

    def close(self) -> None:
        """Wait for the copies of requests that are under way."""
        self._mirror.close()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request_id = str(uuid.uuid4())
        answer = self._answer(environ, request_id)
        phrase = HTTPStatus(answer.status).phrase if answer.status in set(HTTPStatus) else "Error"
        headers = {**answer.headers, "x-amzn-RequestId": request_id}
        if answer.parts is None:
            headers["Content-Length"] = str(len(answer.body))
        start_response(f"{answer.status} {phrase}", list(headers.items()))
        return [answer.body] if answer.parts is None else answer.parts

    def _answer(self, environ: dict[str, Any], request_id: str) -> Answer:
        match = _PATH.fullmatch(environ["PATH_INFO"])
        if match is None or environ["REQUEST_METHOD"] != "POST":
            return _refusal("UnknownOperationException", "The path is POST /endpoints/NAME/invocations.", 404)
        name, kind = unquote(match[1]), match[2]
        body = _read_body(environ)
        if body is None:
            return _too_large(PAYLOAD_LIMIT_BYTES)
        scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
        region = scope[1] if scope else "us-east-1"
        if kind == "async-invocations":
            return self.enqueue(region, name, environ, body)
        streaming = kind == "invocations-response-stream"
        try:
            asked = _request(name, environ, streaming)
        except Fault as fault:
            return _refusal("ValidationError", fault.message)
        return self.invoke(
            Invocation(
                region=region,
                endpoint=name,
                body=body,
                content_type=asked.get("ContentType"),
                accept=asked.get("Accept"),
                custom_attributes=asked.get("CustomAttributes"),
                inference_id=asked.get("InferenceId"),
                target_variant=asked.get("TargetVariant"),
                target_model=asked.get("TargetModel"),
                streaming=streaming,
                request_id=request_id,
            )
        )

    def enqueue(self, region: str, name: str, environ: Mapping[str, Any], body: bytes) -> Answer:
        """One InvokeEndpointAsync."""
        endpoint = self._find(region, name)
        if endpoint is None or not endpoint.accepting:
            return _not_found(name)
        if endpoint.asynchronous is None:
            return _refusal("ValidationError", f"Endpoint {name} is not an asynchronous inference endpoint.")
        try:
            asked = _async_request(name, environ, body)
            validation.check("sagemaker-runtime", "InvokeEndpointAsync", asked)
            accepted = self._queues.submit(region, name, endpoint.asynchronous, asked)
        except Fault as fault:
            return _refusal("ValidationError", fault.message)
        headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-OutputLocation": accepted.output}
        if accepted.failure:
            headers["X-Amzn-SageMaker-FailureLocation"] = accepted.failure
        return Answer(202, headers, json.dumps({"InferenceId": accepted.inference_id}).encode())

    def invoke(self, invocation: Invocation) -> Answer:
        """One InvokeEndpoint, or InvokeEndpointWithResponseStream."""
        began, at = time.perf_counter(), self._clock.now()
        name, wanted = invocation.endpoint, invocation.target_variant
        endpoint = self._find(invocation.region, name)
        if endpoint is None:
            return _not_found(name)
        if endpoint.asynchronous is not None:
            message = f"Endpoint {name} is an asynchronous inference endpoint: use InvokeEndpointAsync."
            return _refusal("ValidationError", message)
        if bool(invocation.target_model) != endpoint.router.multi_model and endpoint.router.serving:
            is_one = "is a multi-model endpoint and requires target model header."
            is_none = "is not a multi-model endpoint and does not support target model header."
            return _refusal("ValidationError", f"Endpoint {name} {is_none if invocation.target_model else is_one}")
        limit = endpoint.router.payload_limit_bytes
        if len(invocation.body) > limit:
            return _too_large(limit)
        held = ExitStack()
        try:
            with held:
                fleet, instance = held.enter_context(endpoint.router.route(wanted, model=invocation.target_model))
                for shadow in fleet.shadows():
                    self._mirror.submit(lambda shadow=shadow: self._copy(endpoint, fleet, shadow, invocation))  # type: ignore[misc]
                if invocation.streaming:
                    return self._stream(_Call(endpoint, fleet, instance, invocation, at, began), held.pop_all())
                reply = self._serve(_Call(endpoint, fleet, instance, invocation, at, began))
        except NoModel as error:
            return _refusal("ValidationError", str(error))
        except NotReady as error:
            return _refusal("ModelNotReadyException", str(error), 429)
        except Throttled:
            return _refusal("ThrottlingException", "Rate exceeded")
        except FleetFailed as error:
            variant = wanted or next(iter(endpoint.router.shares[0][0].variants))
            self._meter.add(_unserved(invocation, variant, at, time.perf_counter() - began))
            return _model_error(invocation, 0, str(error), variant)
        except NoCapacity as error:
            self._meter.add(_unserved(invocation, str(error), at, time.perf_counter() - began))
            return _refusal("ServiceUnavailable", f"No instance of endpoint {name} is healthy at the moment.", 503)
        except LookupError:
            if wanted and endpoint.router.serving:
                return _refusal("ValidationError", f"Variant {wanted} not found for Endpoint {name}.")
            if endpoint.router.serving:
                return _refusal("ValidationError", f"No production variant of Endpoint {name} has a weight above 0.")
            return _not_found(name)
        if isinstance(reply, str):
            return _model_error(invocation, 0, reply, instance.stream)
        if not 200 <= reply.status < 300:
            return _model_error(invocation, reply.status, reply.body.decode("utf-8", "replace"), instance.stream)
        if len(reply.body) > limit:
            return _model_error(invocation, 0, f"The response exceeds {limit} bytes.", instance.stream)
        return Answer(200, {"Content-Type": _content_type(reply), **_said(reply, instance)}, reply.body)

    def _serve(self, call: _Call) -> Reply | str:
        """What the model server says, or why it says nothing; measured, and captured.

        While the request is held: a fleet that is retired writes what it captured when nothing is outstanding.
        """
        reply, seconds, more = _ask(call.instance, call.invocation)
        if isinstance(reply, Reply):
            capture = call.endpoint.capture_of(call.fleet)
            _capture(capture, call.invocation, reply, call.instance.spec.name, call.at)
        self._meter.add(call.sample(reply.status if isinstance(reply, Reply) else None, seconds, more))
        return reply

    def _stream(self, call: _Call, held: ExitStack) -> Answer:
        """The answer as the model gives it. The instance is held until all of it is out, or the caller hangs up."""
        instance, invocation, asked = call.instance, call.invocation, time.perf_counter()
        streamed: Streamed | None = None
        firsts: list[float] = []

        def done(error: str | None) -> None:
            if streamed:
                streamed.chunks.close()
            more: Values = ()
            if firsts:
                more = (
                    ("MidStreamErrors", float(error is not None), "Count"),
                    ("FirstChunkLatency", (firsts[0] - call.began) * 1e6, "Microseconds"),
                    ("FirstChunkModelLatency", (firsts[0] - asked) * 1e6, "Microseconds"),
                    ("FirstChunkOverheadLatency", (asked - call.began) * 1e6, "Microseconds"),
                )
            self._meter.add(call.sample(streamed.status if streamed else None, time.perf_counter() - asked, more))
            held.close()

        def chunks(answer: Streamed) -> Iterator[bytes]:
            for chunk in answer.chunks:
                if not firsts:
                    firsts.append(time.perf_counter())
                yield chunk

        try:
            streamed = instance.request_stream("/invocations", invocation.headers(), invocation.body)
            if not 200 <= streamed.status < 300:
                text = b"".join(streamed.chunks).decode("utf-8", "replace")
                done(None)
                return _model_error(invocation, streamed.status, text, instance.stream)
        except Unanswered as error:
            done(str(error))
            return _model_error(invocation, 0, str(error), instance.stream)
        headers = {"Content-Type": CONTENT_TYPE, "X-Amzn-SageMaker-Content-Type": _content_type(streamed)}
        return Answer(200, {**headers, **_said(streamed, instance)}, parts=Parts(chunks(streamed), done))

    def _copy(self, endpoint: Target, fleet: Fleet, shadow: str, invocation: Invocation) -> Callable[[], None] | None:
        """A copy of the request for a shadow variant, which has an instance from now on."""
        began, at = time.perf_counter(), self._clock.now()
        try:
            instance = fleet.acquire(shadow)
        except NoCapacity:
            self._meter.add(_unserved(invocation, shadow, at, time.perf_counter() - began))
            return None

        def answer() -> None:
            try:
                self._serve(_Call(endpoint, fleet, instance, invocation, at, began))
            finally:
                fleet.release(instance)

        return answer


def _request(name: str, environ: Mapping[str, Any], streaming: bool) -> dict[str, str]:
    """The members of an invocation, but for its body, as the service model names them. Raises Fault for what breaks it."""
    asked = {"EndpointName": name}
    asked |= {member: environ[key] for member, header in _HEADERS.items() if (key := _PREFIX + header) in environ}
    if content_type := environ.get("CONTENT_TYPE"):
        asked["ContentType"] = content_type
    if accept := environ.get(f"{_PREFIX}ACCEPT" if streaming else "HTTP_ACCEPT"):
        asked["Accept"] = accept
    operation = "InvokeEndpointWithResponseStream" if streaming else "InvokeEndpoint"
    validation.check(
        "sagemaker-runtime", operation, {**asked, "Body": b""}
    )  # any body fits; its size is checked elsewhere
    for member, message in _REFUSED.items():
        if member in asked:
            raise Fault("ValidationError", message.format(name))
    return asked


def _async_request(name: str, environ: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """The members of an InvokeEndpointAsync as the service model names them."""
    asked: dict[str, Any] = {"EndpointName": name, **({"Body": body} if body else {})}
    for member, header in _ASYNC_HEADERS.items():
        value = environ.get(_PREFIX + header)
        if value and member.endswith("Seconds"):
            if not value.isdecimal():
                raise Fault("ValidationError", f"{member} must be a whole number of seconds, not '{value}'.")
            asked[member] = int(value)
        elif value:
            asked[member] = value
    return asked


def _ask(instance: Instance, invocation: Invocation) -> tuple[Reply | str, float, Values]:
    """The model server's reply, or why there is none; how long that took, in seconds; and the metrics of its kind.

    Raises NoModel, NotReady.
    """
    began = time.perf_counter()
    reply: Reply | str
    values: Values = ()
    with ExitStack() as held:
        try:
            path = "/invocations"
            if (repository := instance.spec.repository) and invocation.target_model:
                model = held.enter_context(repository.of(instance).holding(invocation.target_model))
                path, values, began = model.path, model.values, time.perf_counter()
            reply = instance.request("POST", path, invocation.headers(), invocation.body)
        except Unanswered as error:
            reply = str(error)
        except NotLoaded as error:
            reply = error.reply
    return reply, time.perf_counter() - began, values


def _capture(capture: Capture | None, invocation: Invocation, reply: Reply, variant: str, at: float) -> None:
    if capture and 200 <= reply.status < 300 and len(reply.body) <= PAYLOAD_LIMIT_BYTES:
        capture.record(
            Exchange(
                variant=variant,
                at=at,
                request_type=invocation.content_type or "",
                request=invocation.body,
                response_type=_content_type(reply),
                response=reply.body,
                inference_id=invocation.inference_id,
                custom_attributes=invocation.custom_attributes,
            )
        )


def _said(reply: Reply | Streamed, instance: Instance) -> dict[str, str]:
    """What the answer of either kind says besides its content type."""
    headers = {"x-Amzn-Invoked-Production-Variant": instance.spec.name}
    if attributes := reply.headers.get("x-amzn-sagemaker-custom-attributes"):
        headers["X-Amzn-SageMaker-Custom-Attributes"] = attributes
    return headers


def _content_type(reply: Reply | Streamed) -> str:
    return reply.headers.get("content-type", "application/octet-stream")


def _unserved(invocation: Invocation, variant: str, at: float, seconds: float) -> Sample:
    """An invocation for which there was no healthy instance."""
    return Sample(
        region=invocation.region,
        endpoint=invocation.endpoint,
        variant=variant,
        config=None,
        at=at,
        status=503,
        model_seconds=None,
        overhead_seconds=seconds,
        instances=1,
        concurrent=0,
    )


def _read_body(environ: dict[str, Any]) -> bytes | None:
    """The request's body; None when it is over the limit. All of it is read either way, or the connection could not be kept."""
    stream = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH")
    if not length and not environ.get("wsgi.input_terminated"):
        return b""
    left = int(length) if length else None
    if left is not None and left <= PAYLOAD_LIMIT_BYTES:
        body: bytes = stream.read(left)
        return body
    chunks: list[bytes] = []
    size = 0
    while (left is None or size < left) and (chunk := stream.read(1 << 20)):
        size += len(chunk)
        if size <= PAYLOAD_LIMIT_BYTES:
            chunks.append(chunk)
    return b"".join(chunks) if size <= PAYLOAD_LIMIT_BYTES else None


def _refusal(code: str, message: str, status: int = 400, **members: Any) -> Answer:
    body = json.dumps({**members, "Message": message}).encode()
    return Answer(status, {"Content-Type": "application/json", "x-amzn-ErrorType": code}, body)


def _too_large(limit: int) -> Answer:
    # AWS's front door answers this one: a bare 413, without an error code.
    text = json.dumps({"message": f"HTTP content length exceeded {limit} bytes."})
    return Answer(413, {"Content-Type": "application/json"}, text.encode())


def _not_found(name: str) -> Answer:
    return _refusal("ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")


def _model_error(invocation: Invocation, status: int, message: str, stream: str) -> Answer:
    side = "client" if 400 <= status < 500 else "server"
    region, group = invocation.region, f"{LOG_GROUP}/{invocation.endpoint}"
    console = f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group}"
    return _refusal(
        "ModelError",
        f'Received {side} error ({status}) from primary with message "{message}". '
        f"See {console} in account {ACCOUNT} for more information.",
        424,
        ErrorCode="CLIENT_ERROR_FROM_MODEL" if side == "client" else "INTERNAL_FAILURE_FROM_MODEL",
        LogStreamArn=f"arn:aws:logs:{region}:{ACCOUNT}:log-group:{group}:log-stream:{stream}",
        OriginalMessage=message,
        OriginalStatusCode=status,
    )
