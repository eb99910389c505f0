"""What is answered: routes, limits, deadlines, streams, and the drain at the end. An ASGI application.

    app = App(settings, log)
    app.serve(pool)                                    # a `Pool` of workers; in multi-model mode app.serve_many(models)
    abandoned = await app.drain(timeout_seconds=25)

The process around it is `server`; the connections below it are `connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any
from urllib.parse import quote

from windlass.runtime import codecs, models
from windlass.runtime.connections import INVOCATIONS, answered_at_once
from windlass.runtime.hooks import CUSTOM_ATTRIBUTES, INFERENCE_ID, REQUEST_ID, Reply
from windlass.runtime.jobs import Answer, Busy, Failed, Headers, Job, Stream
from windlass.runtime.log import Log
from windlass.runtime.measures import Measure
from windlass.runtime.metrics import Metrics
from windlass.runtime.models import Models
from windlass.runtime.settings import Settings
from windlass.runtime.telemetry import Invoked, Recorder
from windlass.runtime.workers import Pool

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_TICK_SECONDS = 0.05
_INFERENCE_ID, _CUSTOM_ATTRIBUTES = INFERENCE_ID.encode(), CUSTOM_ATTRIBUTES.encode()
_REQUEST_ID, _TIMEOUT = REQUEST_ID.encode(), b"x-windlass-timeout-ms"
_SINGLE = {b"content-type", b"content-encoding", _INFERENCE_ID, _CUSTOM_ATTRIBUTES, _REQUEST_ID, _TIMEOUT}


class _Request:
    """An invocation from its head to the end of its answer."""

    job: Job | None = None
    task: asyncio.Task[None] | None = None  # none while a whole request waits for its answer
    watch: asyncio.Task[None] | None = None
    stream: Stream | None = None
    late = False  # its body did not arrive in time
    status, seconds = 200, 0.0
    error: str | None = None

    def __init__(self, begin: float, deadline: float, scope: Scope, receive: Receive, send: Send) -> None:
        self.begin, self.deadline, self.receive, self.send = begin, deadline, receive, send
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.path: str = scope["path"]
        self.named = dict(self.headers)

    @property
    def twice(self) -> bool:
        """Whether a header comes more than once."""
        return len(self.named) < len(self.headers)

    async def watch_caller(self) -> None:
        """Drop the work when its caller hangs up."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.job and not self.job.future.done():
            self.job.fail(_Gone())
        elif self.stream:
            self.stream.stop()


class App:
    """The ASGI application: routes, limits, life cycle. It serves a `Pool` of workers, or in multi-model mode several."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings, self._log = settings, log
        self._pool: Pool | None = None
        self._models: Models | None = None
        self._loading: Pool | None = None
        self._why_unhealthy = "the model is loading"
        self._draining = False
        self._begin = time.monotonic()
        self._last_ping = 0
        self._in_flight: set[_Request] = set()
        self._ended: list[_Request] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._metrics = Metrics()
        self._observers: list[Callable[[Invoked], None]] = []
        self._recorder: Recorder | None = None
        self._requests, self._origin = itertools.count(1), uuid.uuid4().hex[:12]
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(_TICK_SECONDS, self._tick)

    def observe(self, observer: Callable[[Invoked], None]) -> None:
        """Let `observer` know of every invocation."""
        self._observers.append(observer)

    def record(self, recorder: Recorder) -> None:
        """Let `recorder` know of every invocation, and of what hooks measure."""
        self._recorder = recorder
        self.observe(recorder.add)

    def measured(self, measures: Sequence[Measure]) -> None:
        """What the hooks of a worker have measured."""
        self._metrics.measured(measures)
        if self._recorder:
            self._recorder.measured(measures)

    def loads(self, pool: Pool) -> None:
        """What `/ping` tells of until there is something to serve."""
        self._loading = pool

    def serve(self, pool: Pool) -> None:
        self._pool, self._loading = pool, None
        self._why_unhealthy = ""

    def serve_many(self, models: Models) -> None:
        """Multi-model mode: healthy with no model at all."""
        self._models = models
        self._why_unhealthy = ""

    async def drain(self, timeout_seconds: float) -> int:
        """Refuse what comes, and return when what is running has been answered.

        Returns:
            How many invocations were still running at the end and got a 503.
        """
        self._why_unhealthy, self._draining = "the server is shutting down", True
        self._pool = self._models = None
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            abandoned = list(self._in_flight)
            for request in abandoned:
                if request.task:
                    request.task.cancel()
                elif request.job:
                    request.job.fail(_Unavailable("the server shut down before the model answered."))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._idle.wait()
            return len(abandoned)
        return 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == INVOCATIONS and not self._settings.multi_model:
            if method == "POST":
                await self._invocations(scope, receive, send)
                return
            reply = Reply(b"use POST.\n", status=405, headers=[("allow", "POST")])
        elif path == "/ping":
            if method == "GET":
                await self._ping(send)
                return
            reply = Reply(b"use GET.\n", status=405, headers=[("allow", "GET")])
        elif path == "/openapi.json" and method == "GET" and not self._settings.multi_model:
            page = await asyncio.to_thread(_openapi, self._settings.model_dir)
            await self._send(send, Reply(page, codecs.JSON))
            return
        elif path == "/metrics" and method == "GET":
            await self._send(send, Reply(self._metrics_text().encode(), "text/plain; version=0.0.4; charset=utf-8"))
            return
        elif self._settings.multi_model and (path == "/models" or path.startswith("/models/")):
            name, _, verb = path[len("/models/") :].rpartition("/")
            if name and verb == "openapi.json" and method == "GET":
                await self._send(send, await self._page_of(name))
                return
            if not name or verb != "invoke":
                await self._manage(scope, receive, send)
                return
            if method == "POST":
                await self._invocations(scope, receive, send, name)
                return
            reply = models.refusal(405, "use POST.", ("allow", "POST"))
        else:
            paths = "POST /invocations, GET /metrics and GET /openapi.json"
            if self._settings.multi_model:
                paths = "/models, POST /models/{name}/invoke, GET /models/{name}/openapi.json and GET /metrics"
            known = f"GET /ping, {paths}"
            reply = Reply(f"not found. The paths are {known}.\n".encode(), status=404)
        self._log.event("request", method=method, path=path, status=reply.status, ms=0.0, inference_id=None)
        await self._send(send, reply)

    async def _page_of(self, name: str) -> Reply:
        """The OpenAPI page of one of several models."""
        try:
            if self._models is None:
                return _unavailable(f"{self._why_unhealthy}.")
            folder, path = self._models.folder(name), f"/models/{quote(name)}/invoke"
        except models.Refused as error:
            return models.refusal(error.status, str(error))
        return Reply(await asyncio.to_thread(_openapi, folder, name, path), codecs.JSON)

    async def _manage(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What loads, unloads and lists models."""
        begin = time.monotonic()
        try:
            body = await self._body(dict(scope["headers"]), receive)
        except codecs.Refused as error:
            reply = models.refusal(error.status, str(error))
        except _Gone:
            return
        else:
            if self._models is None:
                reply = models.refusal(503, f"{self._why_unhealthy}.", ("retry-after", "1"))
            else:
                reply = await self._models.answer(scope["method"], scope["path"], scope["query_string"], body)
        ms = round((time.monotonic() - begin) * 1e3, 3)
        self._log.event("request", method=scope["method"], path=scope["path"], status=reply.status, ms=ms)
        await self._send(send, reply)

    def _metrics_text(self) -> str:
        pools = self._models.pools if self._models else [self._pool] if self._pool else []
        return self._metrics.text(
            waiting=sum(pool.waiting for pool in pools),
            workers=sum(pool.alive for pool in pools),
            restarts=sum(pool.restarts for pool in pools),
            batches=sum(pool.batches_answered for pool in pools),
        )

    async def _ping(self, send: Send) -> None:
        reply = Reply(b"")
        if why := self._why_unhealthy or (self._pool.why_unhealthy if self._pool else ""):
            if self._loading and not self._draining:
                why += self._loading.loading_at
            age = time.monotonic() - self._begin
            reply = Reply(f"{why} ({age:.1f} s after the start).\n".encode(), status=503)
        if reply.status != self._last_ping:
            self._last_ping = reply.status
            self._log.event("request", method="GET", path="/ping", status=reply.status, ms=0.0, inference_id=None)
        await self._send(send, reply)

    def invoke(self, cycle: Any) -> bool:
        """Take an invocation that has come as a whole, without a task of its own: an echo's time is a fifth less.

        Args:
            cycle: Uvicorn's request and answer.

        Returns:
            Whether it is taken. What is refused, and what is not plain, is for `__call__`.
        """
        pool, body = self._pool, cycle.body
        if pool is None or len(body) > self._settings.max_payload_bytes:
            return False
        request = self._open(cycle.scope, cycle.receive, cycle.send)
        if request.twice or b"transfer-encoding" in request.named:
            return False
        try:
            self._queue(request, bytes(body), pool).future.add_done_callback(partial(self._answered, request, cycle))
        except (Busy, codecs.Refused):
            return False
        cycle.body = bytearray()
        cycle.message_event.clear()
        self._in_flight.add(request)
        self._idle.clear()
        return True

    def _answered(self, request: _Request, cycle: Any, future: asyncio.Future[Answer]) -> None:
        """The model's word for what `invoke` has taken."""
        if future.exception() is None:
            answer = future.result()
            if answer.body is not None and self._send_at_once(request.send, answer.status, answer.headers, answer.body):
                request.status, request.error = answer.status, answer.error
                self._end(request)
                return
        # As Uvicorn runs an application: it closes the connection of an answer that breaks off.
        request.task = self._loop.create_task(cycle.run_asgi(lambda *_: self._conclude(request)))

    async def _invocations(self, scope: Scope, receive: Receive, send: Send, model: str | None = None) -> None:
        """One prediction, in multi-model mode of the model named."""
        request = self._open(scope, receive, send)
        request.task = asyncio.current_task()
        self._in_flight.add(request)
        self._idle.clear()
        await self._conclude(request, model)

    def _open(self, scope: Scope, receive: Receive, send: Send) -> _Request:
        begin = time.monotonic()
        request = _Request(begin, begin + self._settings.timeout_seconds, scope, receive, send)
        if _REQUEST_ID not in request.named:
            identity = f"{self._origin}-{next(self._requests)}".encode()
            request.headers.append((_REQUEST_ID, identity))
            request.named[_REQUEST_ID] = identity
        return request

    def _queue(self, request: _Request, body: bytes, pool: Pool) -> Job:
        if _TIMEOUT in request.named or _CUSTOM_ATTRIBUTES in request.named:
            request.deadline = min(request.deadline, _deadline(request.begin, request.named))
        request.job = pool.submit(body, request.headers, request.deadline)
        return request.job

    async def _conclude(self, request: _Request, model: str | None = None) -> None:
        """Answer it, when its body has come and the model has answered."""
        try:
            try:
                if (job := request.job) is None:
                    if request.twice:
                        _refuse_ambiguous(request.headers)
                    body = await self._body(request.named, request.receive)
                    pool = self._models.pool(model) if self._models and model else self._pool
                    if pool is None:
                        raise _Unavailable(f"{self._why_unhealthy}.")
                    job = self._queue(request, body, pool)
                answer = await job.future
                request.status, request.error = answer.status, answer.error
                if answer.body is None:
                    request.stream = answer.stream
                    await self._send_stream(request.send, answer)
                    request.error = answer.error
                else:
                    await self._send_answer(request.send, answer.status, answer.headers, answer.body)
            except BaseException as raised:
                if (reply := self._refusal(raised, request)) is None:
                    raise
                request.status, request.error = reply.status, reply.error
                await self._send(request.send, reply)
        except BaseException:
            self._leave(request)
            raise
        self._end(request)

    def _leave(self, request: _Request) -> None:
        self._in_flight.discard(request)
        if not self._in_flight:
            self._idle.set()
        if request.watch:
            request.watch.cancel()

    def _end(self, request: _Request) -> None:
        """It is answered, and told of when the others of this turn are, too: callers need not wait for that."""
        self._leave(request)
        request.seconds = time.monotonic() - request.begin
        if not self._ended:
            self._loop.call_soon(self._tell_of_ended)
        self._ended.append(request)

    def _tell_of_ended(self) -> None:
        ended, self._ended = self._ended, []
        for request in ended:
            self._tell(request)

    def _tell(self, request: _Request) -> None:
        """Count it, and log it."""
        job, status, seconds, named = request.job, request.status, request.seconds, request.named
        if job and job.started:
            queue_seconds, model_seconds, size = job.started - job.queued, job.model_seconds, job.batch_size
        else:
            queue_seconds, model_seconds, size = (job.queue_seconds if job else 0.0), 0.0, 0
        self._metrics.request(status, seconds, queue_seconds, model_seconds, size)
        request_id, inference_id = named[_REQUEST_ID].decode("latin-1"), _text(named.get(_INFERENCE_ID))
        if self._observers:
            invoked = Invoked(status, seconds, queue_seconds, model_seconds, size, request_id, named)
            for observer in self._observers:
                observer(invoked)
        # json.dumps of all of it would cost a tenth of an echo's whole time.
        self._log.line(
            f'{{"time": {time.time():.3f}, "event": "request", "method": "POST", "path": {_quoted(request.path)}, '
            f'"status": {status}, "ms": {seconds * 1e3:.3f}, "queue_ms": {queue_seconds * 1e3:.3f}, '
            f'"model_ms": {model_seconds * 1e3:.3f}, "batch": {size}, "request_id": {_quoted(request_id)}, '
            f'"inference_id": {_quoted(inference_id)}}}'
        )
        if request.error:
            ids = {"request_id": request_id, "inference_id": inference_id}
            self._log.fault("invocation failed", status=status, **ids, error=request.error)

    def _refusal(self, error: BaseException, request: _Request) -> Reply | None:
        """What a request is answered that has no answer of the model's."""
        if isinstance(error, codecs.Refused):
            return Reply(f"{error}\n".encode(), status=error.status)
        if isinstance(error, models.Refused):
            return models.refusal(error.status, str(error))
        if isinstance(error, Busy):
            return _unavailable(str(error), error.retry_after_seconds)
        if isinstance(error, _Unavailable):
            return _unavailable(str(error))
        if isinstance(error, Failed):
            return Reply(f"{error}\n".encode(), status=500, error=str(error))
        if isinstance(error, TimeoutError):
            return self._too_late(request)
        if isinstance(error, _Gone):
            return Reply(b"", status=499)  # nginx's code for it, in the log; nobody reads the answer
        if isinstance(error, asyncio.CancelledError):
            if request.late:
                return self._too_late(request)
            return _unavailable("the server shut down before the model answered.")  # by drain()
        return None

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        if (coding := headers.get(b"transfer-encoding")) and coding.strip().lower() != b"chunked":
            raise codecs.Refused(400, "of transfer encodings, only chunked is read. Say gzip by Content-Encoding.")
        limit = self._settings.max_payload_bytes
        declared = headers.get(b"content-length", b"0")
        if len(declared) > 6 and declared.isdigit() and int(declared) > limit:
            raise codecs.Refused(413, f"the body is {declared.decode()} bytes; the limit is {limit}.")
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) <= limit:
                return body
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > limit:
                raise codecs.Refused(413, f"the body is more than {size} bytes; the limit is {limit}.")
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()

    def _too_late(self, request: _Request) -> Reply:
        allowed = request.deadline - request.begin
        limit = f"{allowed:g} s"
        if allowed >= self._settings.timeout_seconds:
            limit += " (SAGEMAKER_MODEL_SERVER_TIMEOUT)"
        if request.job is None:
            return Reply(
                f"the body did not arrive within {limit}.\n".encode(), status=408, headers=[("connection", "close")]
            )
        doing = "the model did not answer" if request.job.started else "no worker was free"
        return Reply(f"{doing} within {limit}.\n".encode(), status=504, error=f"{doing} within {limit}")

    def _tick(self) -> None:
        """Time limits, and callers that are gone: looked at in rounds, which costs a request less than a timer of its own."""
        now = time.monotonic()
        for request in list(self._in_flight):
            job = request.job
            if now > request.deadline:
                if job is None and request.task:
                    request.late = True
                    request.task.cancel()
                elif job:
                    job.fail(TimeoutError())
            elif job and request.watch is None and now > request.begin + _TICK_SECONDS:
                request.watch = self._loop.create_task(request.watch_caller())
        self._loop.call_later(_TICK_SECONDS, self._tick)

    # --- answers

    async def _send(self, send: Send, reply: Reply) -> None:
        headers = [(b"content-type", reply.content_type.encode("latin-1", "replace"))]
        headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
        await self._send_answer(send, reply.status, headers, reply.body)

    async def _send_answer(self, send: Send, status: int, headers: Headers, body: bytes) -> None:
        if not self._send_at_once(send, status, headers, body):
            # While draining, so that the caller's next request goes elsewhere.
            closing = [(b"connection", b"close")] if self._draining else []
            headers = [*headers, (b"content-length", b"%d" % len(body)), *closing]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _send_at_once(self, send: Send, status: int, headers: Headers, body: bytes) -> bool:
        return not self._draining and answered_at_once(send, status, headers, body)

    async def _send_stream(self, send: Send, answer: Answer) -> None:
        stream = answer.stream
        assert stream
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        try:
            while (chunk := await stream.next()) is not None:
                async with asyncio.timeout(self._settings.stalled_seconds):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            answer.error = f"the caller took nothing of its answer for {self._settings.stalled_seconds:g} s"
            return
        finally:
            stream.stop()
        if stream.error:
            # The head said 200 long ago. A body that breaks off is the only way left to say that it is not whole: the server
            # closes a connection whose answer was not completed.
            answer.error = stream.error
            return
        await send({"type": "http.response.body", "body": b""})


def _openapi(model_dir: Path, title: str = "model", path: str = "/invocations") -> bytes:
    """The page as JSON. What it needs is imported here: most servers are never asked."""
    from windlass import artifact
    from windlass.errors import InvalidInput
    from windlass.runtime import openapi

    try:
        manifest = artifact.read_manifest(model_dir) if (model_dir / artifact.MANIFEST).exists() else None
    except InvalidInput:
        manifest = None  # the workers have said it, and do not load
    version = manifest.digest.removeprefix("sha256:")[:12] if manifest else "1"
    signature = manifest.signature if manifest else None
    without = [kind for kind in {*codecs.IN, *codecs.OUT} if codecs.missing(kind)]
    page = openapi.document(signature, title=title, version=version, path=path, without=without)
    return json.dumps(page).encode()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _quoted(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)


def _refuse_ambiguous(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Headers that come twice and say different things, of those that can have but one value."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _SINGLE and seen.setdefault(name, value) != value:
            raise codecs.Refused(400, f"the header {name.decode()} comes twice, with different values.")


class _Unavailable(Exception):
    """There is no model to ask: not yet, or not any more."""


class _Gone(Exception):
    """The caller hung up before its answer was complete."""


def _unavailable(what: str, retry_after_seconds: int = 1) -> Reply:
    return Reply(f"{what}\n".encode(), status=503, headers=[("retry-after", str(retry_after_seconds))])


def _deadline(begin: float, headers: Mapping[bytes, bytes]) -> float:
    """When the caller stops waiting, by its own word.

    Raises:
        Refused: 400, it is no number of milliseconds.
    """
    value = headers.get(_TIMEOUT)
    for part in headers.get(_CUSTOM_ATTRIBUTES, b"").split(b",") if value is None else ():
        name, _, given = part.partition(b"=")
        if name.strip().lower() == b"timeout-ms":
            value = given
    if value is None:
        return math.inf
    if not value.strip().isdigit() or len(value) > 9:
        raise codecs.Refused(
            400, f"the timeout {value.decode('latin-1')[:40]!r} is not a whole number of milliseconds."
        )
    return begin + int(value) / 1000
