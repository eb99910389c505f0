"""The model server: SageMaker's inference contract over the hooks of `inference.py`.

    SAGEMAKER_BASE_DIR=/tmp/ml SAGEMAKER_BIND_TO_PORT=8080 python -m windlass.runtime.server

    GET  /ping          200 when the model is loaded; 503 with the reason before that and while draining
    POST /invocations   the hooks' answer; 4xx what the caller did wrong, 500 with the traceback what the model did; 503 with
                        Retry-After when the queue is full; chunk by chunk when a hook gives a generator
    GET  /metrics       counts and times in Prometheus' text format
    GET  /openapi.json  these routes with the types of the signature, see `openapi`

With SAGEMAKER_MULTI_MODEL=true it starts without a model and serves those that it is told to load: see `models`.

A caller that cannot use a late answer says so, and is refused at once when the queue is too long for it:
`X-Windlass-Timeout-Ms: 200`, or, through SageMaker, `timeout-ms=200` in X-Amzn-SageMaker-Custom-Attributes.

| variable | default | |
|---|---|---|
| SAGEMAKER_BASE_DIR | /opt/ml | the model is in ``model/``, its code in ``model/code/`` |
| SAGEMAKER_MULTI_MODEL | false | true: models come and go under ``/models`` |
| WINDLASS_MULTI_MODEL_MEMORY_BYTES | 0 | what they may hold together; 0 is the machine's or the container's limit |
| SAGEMAKER_SUBMIT_DIRECTORY | | another folder for the code |
| SAGEMAKER_PROGRAM | inference.py | the file with the hooks |
| SAGEMAKER_BIND_TO_PORT | 8080 | 0 takes a free one; the ``listening`` line says which |
| WINDLASS_BIND_HOST | 0.0.0.0 | |
| SAGEMAKER_MODEL_SERVER_WORKERS | 1 | processes that each hold the model and predict at once; they share the cores |
| SAGEMAKER_MODEL_SERVER_TIMEOUT | 60 | seconds for one invocation, from its first byte; a worker that hangs is replaced |
| SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT | | for requests that accept anything; else what the signature names first, or JSON |
| WINDLASS_MAX_PAYLOAD_BYTES | 6291456 | SageMaker's own limit; else what batch transform sets, SAGEMAKER_MAX_PAYLOAD_IN_MB |
| WINDLASS_STALLED_SECONDS | 30 | after which a connection is closed that sends half a head, or takes no more of an answer |
| WINDLASS_QUEUE_SIZE | 100 | invocations that wait beyond those that run; more get a 503 |
| WINDLASS_MAX_BATCH_SIZE | 32 | requests predicted together, where the model takes batches (see `hooks`); 1 is never |
| WINDLASS_MAX_BATCH_DELAY_MS | 0 | how long the first of a batch waits for others; 0 takes what waits when a worker is free |
| WINDLASS_DRAIN_SECONDS | 25 | after SIGTERM; SageMaker kills after 30 |

Metrics for CloudWatch and spans for OpenTelemetry are off unless asked for: see `telemetry`.

It logs one JSON object a line: requests and life cycle on stdout, faults on stderr, each with the id of its request (that of
``X-Amzn-RequestId``, or a new one) and the inference id. So do log records of the user's code. A `/ping` that answers what the
last one did is not logged again. A model that does not load ends the process with exit code 1 and the user's own traceback on
stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import logging
import math
import os
import signal
import socket
import struct
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from windlass.runtime import codecs, models
from windlass.runtime.hooks import CUSTOM_ATTRIBUTES, INFERENCE_ID, REQUEST_ID, Reply, user_traceback
from windlass.runtime.metrics import Metrics
from windlass.runtime.models import Models
from windlass.runtime.settings import BadSetting, Settings, cores
from windlass.runtime.telemetry import Invoked, Recorder, Spans
from windlass.runtime.workers import Answer, Busy, Failed, Job, Pool, Stream, environment

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Longer than the clients' pools and load balancers keep a connection (60 s at most), so that they close first: when the
# server does, a request may just be on its way.
_KEEP_ALIVE_SECONDS = 75
_TICK_SECONDS = 0.05
# Between the last connection taken and the end of all: what its caller has sent by then is answered.
_SETTLE_SECONDS = 0.1

_INFERENCE_ID, _CUSTOM_ATTRIBUTES = INFERENCE_ID.encode(), CUSTOM_ATTRIBUTES.encode()
_REQUEST_ID, _TIMEOUT = REQUEST_ID.encode(), b"x-windlass-timeout-ms"


class Log:
    """JSON lines on stdout and stderr, written once per turn of the event loop."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def event(self, event: str, **fields: object) -> None:
        """What happened, on stdout. Call it in the event loop's thread."""
        self.line(_line(event, fields))

    def line(self, line: str) -> None:
        """A line that is JSON already."""
        if not self._lines and self._loop is not None:
            self._loop.call_soon(self.flush)
        self._lines.append(line)
        if self._loop is None:
            self.flush()

    def fault(self, event: str, **fields: object) -> None:
        """What went wrong, on stderr."""
        print(_line(event, fields), file=sys.stderr, flush=True)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()


def _line(event: str, fields: Mapping[str, object]) -> str:
    return json.dumps({"time": round(time.time(), 3), "event": event, **fields})


class _Request:
    """An invocation from its head to the end of its answer."""

    __slots__ = ("begin", "deadline", "job", "late", "receive", "stream", "watch")

    def __init__(self, begin: float, deadline: float, receive: Receive) -> None:
        self.begin, self.deadline, self.receive = begin, deadline, receive
        self.job: Job | None = None
        self.watch: asyncio.Task[None] | None = None
        self.stream: Stream | None = None
        self.late = False  # its body did not arrive in time

    async def watch_caller(self) -> None:
        """Drop the work when its caller hangs up."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.job and not self.job.future.done():
            self.job.future.set_exception(_Gone())
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
        self._in_flight: dict[asyncio.Task[Any], _Request] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._metrics = Metrics()
        self._observers: list[Callable[[Invoked], None]] = []
        self._requests, self._origin = itertools.count(1), uuid.uuid4().hex[:12]
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(_TICK_SECONDS, self._tick)

    def observe(self, observer: Callable[[Invoked], None]) -> None:
        """Let `observer` know of every invocation."""
        self._observers.append(observer)

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
            for task in abandoned:
                task.cancel()
            await asyncio.wait(abandoned, timeout=1)
            return len(abandoned)
        return 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/invocations" and not self._settings.multi_model:
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

    async def _invocations(self, scope: Scope, receive: Receive, send: Send, model: str | None = None) -> None:
        """One prediction, in multi-model mode of the model named."""
        begin = time.monotonic()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        named = dict(headers)
        if (given := named.get(_REQUEST_ID)) is None:
            request_id = f"{self._origin}-{next(self._requests)}"
            headers.append((_REQUEST_ID, request_id.encode()))
            quoted_id = f'"{request_id}"'
        else:
            request_id = given.decode("latin-1")
            quoted_id = json.dumps(request_id)
        request = _Request(begin, begin + self._settings.timeout_seconds, receive)
        task = asyncio.current_task()
        assert task
        self._in_flight[task] = request
        self._idle.clear()
        error: str | None = None
        try:
            try:
                body = await self._body(named, receive)
                pool = self._models.pool(model) if self._models and model else self._pool
                if pool is None:
                    raise _Unavailable(f"{self._why_unhealthy}.")
                if _TIMEOUT in named or _CUSTOM_ATTRIBUTES in named:
                    request.deadline = min(request.deadline, _deadline(begin, named))
                request.job = pool.submit(body, headers, request.deadline)
                answer = await request.job.future
                status, error = answer.status, answer.error
                if answer.body is None:
                    request.stream = answer.stream
                    await self._send_stream(send, answer)
                    error = answer.error
                else:
                    await self._send_answer(send, answer.status, answer.headers, answer.body)
            except BaseException as raised:
                if (reply := self._refusal(raised, request)) is None:
                    raise
                status, error = reply.status, reply.error
                await self._send(send, reply)
        finally:
            del self._in_flight[task]
            if not self._in_flight:
                self._idle.set()
            if request.watch:
                request.watch.cancel()
        job = request.job
        seconds = time.monotonic() - begin
        inference_id = named.get(_INFERENCE_ID)
        identity = "null" if inference_id is None else json.dumps(inference_id.decode("latin-1"))
        if job and job.started:
            queue_seconds, model_seconds, size = job.started - job.queued, job.model_seconds, job.batch_size
        else:
            queue_seconds, model_seconds, size = (job.queue_seconds if job else 0.0), 0.0, 0
        self._metrics.request(status, seconds, queue_seconds, model_seconds, size)
        if self._observers:
            invoked = Invoked(status, seconds, queue_seconds, model_seconds, size, request_id, named)
            for observer in self._observers:
                observer(invoked)
        path = "/invocations" if model is None else json.dumps(scope["path"])[1:-1]
        # json.dumps would cost a tenth of an echo's whole time.
        self._log.line(
            f'{{"time": {time.time():.3f}, "event": "request", "method": "POST", "path": "{path}", "status": {status}, '
            f'"ms": {seconds * 1e3:.3f}, "queue_ms": {queue_seconds * 1e3:.3f}, "model_ms": {model_seconds * 1e3:.3f}, '
            f'"batch": {size}, "request_id": {quoted_id}, "inference_id": {identity}}}'
        )
        if error:
            ids = {"request_id": request_id, "inference_id": json.loads(identity)}
            self._log.fault("invocation failed", status=status, **ids, error=error)

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
        for task, request in list(self._in_flight.items()):
            job = request.job
            if now > request.deadline:
                if job is None:
                    request.late = True
                    task.cancel()
                elif not job.future.done():
                    job.future.set_exception(TimeoutError())
            elif job and request.watch is None and now > request.begin + _TICK_SECONDS:
                request.watch = self._loop.create_task(request.watch_caller())
        self._loop.call_later(_TICK_SECONDS, self._tick)

    # --- answers

    async def _send(self, send: Send, reply: Reply) -> None:
        headers = [(b"content-type", reply.content_type.encode("latin-1", "replace"))]
        headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
        await self._send_answer(send, reply.status, headers, reply.body)

    async def _send_answer(self, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        headers.append((b"content-length", b"%d" % len(body)))
        if self._draining:
            headers.append((b"connection", b"close"))  # so that the caller's next request goes elsewhere
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

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
    return json.dumps(openapi.document(signature, title=title, version=version, path=path)).encode()


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


class _Patience:
    """Closes connections that stand still: in the middle of a request's head, or of an answer that nobody takes.

    Looked at in rounds, so that a request pays nothing. Bodies have their own deadline, and idle connections Uvicorn's.
    """

    def __init__(self, server: Any, stalled_seconds: float, log: Log) -> None:
        self._server, self._seconds, self._log = server, stalled_seconds, log
        self._seen: dict[Any, tuple[object, float]] = {}

    def tick(self, now: float) -> None:
        seen: dict[Any, tuple[object, float]] = {}
        for connection in list(self._server.server_state.connections):
            transport, cycle = connection.transport, connection.cycle
            idle = cycle is None or cycle.response_complete
            unsent = transport.get_write_buffer_size()
            # Uvicorn's timer for idle connections runs from the end of an answer to the first byte of the next request.
            if not unsent and not (idle and connection.timeout_keep_alive_task is None):
                continue
            state, since = self._seen.get(connection, (None, now))
            if state != (cycle, unsent):
                since = now
            if now - since > self._seconds:
                self._log.event("stalled", unsent_bytes=unsent)
                transport.abort()
                continue
            seen[connection] = ((cycle, unsent), since)
        self._seen = seen


class _UvicornLog(logging.Handler):
    """Uvicorn's warnings (a request that is not HTTP, a fault in the application) in our form."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fault = user_traceback(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
        self._log.fault("server", message=record.getMessage().strip(), error=fault)


def _server(app: App) -> Any:
    """Uvicorn without what we do ourselves: signals, logs, headers."""
    import uvicorn

    class Server(uvicorn.Server):  # type: ignore[misc]
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # Uvicorn raises the signal again at the end, which makes a clean stop look like a death

    config = uvicorn.Config(
        app,
        http="httptools" if importlib.util.find_spec("httptools") else "auto",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    return Server(config)


def _observe(app: App, settings: Settings, env: Mapping[str, str], log: Log) -> list[Callable[[], None]]:
    """Set up what the environment asks for. Returns what to call at the end."""
    closing: list[Callable[[], None]] = []
    if settings.emf_seconds:
        loop, recorder = asyncio.get_running_loop(), Recorder(settings.emf_dimensions)
        app.observe(recorder.add)

        def write() -> None:
            if (line := recorder.line(time.time())) is not None:
                log.line(line)

        def write_again() -> None:
            write()
            loop.call_later(settings.emf_seconds, write_again)

        loop.call_later(settings.emf_seconds, write_again)
        closing.append(write)
    if Spans.wanted(env):
        if Spans.installed():
            spans = Spans(env)
            app.observe(spans.add)
            closing.append(spans.close)
        else:
            log.fault(
                "no spans", message="OpenTelemetry is configured, but not installed: pip install 'windlass[telemetry]'"
            )
    return closing


async def _serve(settings: Settings, env: Mapping[str, str], log: Log, listener: socket.socket) -> int:
    """The life of the server: listen, load, serve, drain. Returns the exit code."""
    loop = asyncio.get_running_loop()
    log.attach(loop)
    app = App(settings, log)
    server = _server(app)
    stop: asyncio.Future[str] = loop.create_future()

    def on_signal(name: str) -> None:
        if not stop.done():
            stop.set_result(name)

    closing = _observe(app, settings, env, log)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum.name)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    patience = _Patience(server, settings.stalled_seconds, log)

    def look() -> None:
        patience.tick(time.monotonic())
        loop.call_later(1.0, look)

    loop.call_later(1.0, look)
    host, port = listener.getsockname()[:2]
    log.event("listening", host=host, port=port, pid=os.getpid())

    def start(more: Mapping[str, str]) -> Pool:
        return Pool(
            [sys.executable, "-m", "windlass.runtime.worker"],
            environment({**os.environ, **env, **more}, max(1, cores() // settings.workers)),
            workers=settings.workers,
            queue_size=settings.queue_size,
            max_batch_size=settings.max_batch_size,
            batch_delay_seconds=settings.batch_delay_seconds,
            timeout_seconds=settings.timeout_seconds,
            log=log.event,
        )

    if settings.multi_model:
        many = Models(
            lambda name, folder: start({"WINDLASS_MODEL_NAME": name, "WINDLASS_MODEL_DIR": str(folder)}),
            memory_bytes=settings.memory_bytes,
            unload_seconds=settings.drain_seconds,
            log=log.event,
        )
        app.serve_many(many)
        log.event("ready", load_ms=0.0)
        await asyncio.wait([stop, serving], return_when=asyncio.FIRST_COMPLETED)
        return await _finish(app, server, serving, stop, settings, log, closing, many.close)

    begin = time.monotonic()
    pool = start({})
    app.loads(pool)
    events: list[asyncio.Future[Any]] = [pool.loaded, stop, serving]
    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
    if pool.loaded.done() and (report := pool.loaded.result()) is not None:
        log.flush()
        print(report, end="", file=sys.stderr, flush=True)
        await pool.close(0)
        return 1
    if pool.loaded.done():
        app.serve(pool)
        log.event("ready", load_ms=round((time.monotonic() - begin) * 1e3, 1))
        await asyncio.wait(events[1:], return_when=asyncio.FIRST_COMPLETED)
    return await _finish(app, server, serving, stop, settings, log, closing, pool.close)


async def _finish(
    app: App,
    server: Any,
    serving: asyncio.Task[None],
    stop: asyncio.Future[str],
    settings: Settings,
    log: Log,
    closing: Sequence[Callable[[], None]],
    close: Callable[[float], Awaitable[None]],
) -> int:
    """Drain and stop, with the workers that `close` ends. Returns the exit code."""
    begin = time.monotonic()
    log.event("draining", signal=stop.result() if stop.done() else None)
    abandoned = await app.drain(settings.drain_seconds)
    if abandoned:
        log.fault("abandoned", message=f"{abandoned} invocations still ran after {settings.drain_seconds:g} s")
    # Closing a listener resets the connections that wait in its queue, with their requests. So none may join it any more, and
    # those that are there are answered first.
    for listening in server.servers:
        for listener in listening.sockets:
            _take_no_more(listener)
    await asyncio.sleep(_SETTLE_SECONDS)
    server.should_exit = True
    await serving
    await close(0 if abandoned else 1)
    for last in closing:
        await asyncio.to_thread(last)
    log.event("stopped", ms=round((time.monotonic() - begin) * 1e3, 1))
    log.flush()
    return 1 if abandoned else 0


def _take_no_more(listener: socket.socket) -> None:
    """Let the kernel drop requests to connect, where it can. Their callers try again in a second, and are refused."""
    if sys.platform != "linux":
        return
    import ctypes

    drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # of linux/filter.h: BPF_RET, no byte of it
    program = struct.pack("HP", 1, ctypes.addressof(drop))  # struct sock_fprog
    # By a copy, for uvloop's own stand-in takes no options.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(listener.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def main(env: Mapping[str, str] | None = None) -> int:
    """Serve until SIGTERM. Returns the exit code: 0 after a clean stop, 1 if the model or a setting is at fault."""
    log = Log()
    if importlib.util.find_spec("uvicorn") is None:
        from windlass.errors import MissingExtra

        print(MissingExtra("uvicorn", "serve", "The model server"), file=sys.stderr)
        return 1
    env = os.environ if env is None else env
    try:
        settings = Settings.read(env)
    except BadSetting as error:
        print(error, file=sys.stderr)
        return 1
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        print(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.", file=sys.stderr)
        return 1
    faults = logging.getLogger("uvicorn")
    faults.addHandler(_UvicornLog(log))
    faults.propagate = False
    factory = None
    if importlib.util.find_spec("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(settings, env, log, listener))


if __name__ == "__main__":
    sys.exit(main())
