"""The model server: SageMaker's inference contract over the hooks of `inference.py`.

    SAGEMAKER_BASE_DIR=/tmp/ml SAGEMAKER_BIND_TO_PORT=8080 python -m windlass.runtime.server

    GET  /ping          200 when the model is loaded; 503 with the reason before that and while draining
    POST /invocations   the hooks' answer; 4xx what the caller did wrong, 500 with the traceback what the model did

| variable | default | |
|---|---|---|
| SAGEMAKER_BASE_DIR | /opt/ml | the model is in ``model/``, its code in ``model/code/`` |
| SAGEMAKER_SUBMIT_DIRECTORY | | another folder for the code |
| SAGEMAKER_PROGRAM | inference.py | the file with the hooks |
| SAGEMAKER_BIND_TO_PORT | 8080 | 0 takes a free one; the ``listening`` line says which |
| WINDLASS_BIND_HOST | 0.0.0.0 | |
| SAGEMAKER_MODEL_SERVER_WORKERS | 1 | predictions that run at once |
| SAGEMAKER_MODEL_SERVER_TIMEOUT | 60 | seconds for one invocation, from its first byte |
| SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT | application/json | for requests that accept anything |
| WINDLASS_MAX_PAYLOAD_BYTES | 6291456 | SageMaker's own limit for real-time endpoints |
| WINDLASS_QUEUE_SIZE | 100 | invocations that wait beyond those that run; more get a 503 |
| WINDLASS_DRAIN_SECONDS | 25 | after SIGTERM; SageMaker kills after 30 |

It logs one JSON object a line: requests and life cycle on stdout, faults on stderr. A `/ping` that answers what the last one
did is not logged again. A model that does not load ends the process with exit code 1 and the user's own traceback on stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from windlass.runtime import codecs
from windlass.runtime.hooks import INFERENCE_ID, Handler, Invocation, Reply, user_traceback
from windlass.runtime.workers import Busy, Job, Workers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Longer than the clients' pools and load balancers keep a connection (60 s at most), so that they close first: when the
# server does, a request may just be on its way.
_KEEP_ALIVE_SECONDS = 75


class BadSetting(Exception):
    """An environment variable that cannot be used. The message names it."""


@dataclass(frozen=True)
class Settings:
    """The environment, read once."""

    model_dir: Path
    code_dir: Path
    program: str
    host: str
    port: int
    workers: int
    timeout_seconds: float
    default_accept: str
    max_payload_bytes: int
    queue_size: int
    drain_seconds: float

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Settings:
        """What the host has set, with the defaults above.

        Raises:
            BadSetting: names the variable, its value and what it should be.
        """

        def number(name: str, default: int, least: int, most: int = 2**31) -> int:
            value = env.get(name) or str(default)
            try:
                parsed = int(value)
            except ValueError:
                parsed = least - 1
            if not least <= parsed <= most:
                raise BadSetting(f"{name}={value!r} is not a whole number from {least} to {most}.")
            return parsed

        model_dir = Path(env.get("SAGEMAKER_BASE_DIR") or "/opt/ml") / "model"
        submitted = env.get("SAGEMAKER_SUBMIT_DIRECTORY") or ""
        # The SDKs also write s3://.../sourcedir.tar.gz here; that code has been unpacked into the model's folder.
        code_dir = Path(submitted) if submitted and "://" not in submitted else model_dir / "code"
        return cls(
            model_dir=model_dir,
            code_dir=code_dir,
            program=env.get("SAGEMAKER_PROGRAM") or "inference.py",
            host=env.get("WINDLASS_BIND_HOST") or "0.0.0.0",  # noqa: S104 - in a container, SageMaker connects from outside
            port=number("SAGEMAKER_BIND_TO_PORT", 8080, 0, 65535),
            workers=number("SAGEMAKER_MODEL_SERVER_WORKERS", 1, 1, 1024),
            timeout_seconds=number("SAGEMAKER_MODEL_SERVER_TIMEOUT", 60, 1),
            default_accept=env.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT") or codecs.JSON,
            max_payload_bytes=number("WINDLASS_MAX_PAYLOAD_BYTES", 6 << 20, 1),
            queue_size=number("WINDLASS_QUEUE_SIZE", 100, 0),
            drain_seconds=number("WINDLASS_DRAIN_SECONDS", 25, 0),
        )


class Log:
    """JSON lines on stdout and stderr, written once per turn of the event loop."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def event(self, event: str, **fields: object) -> None:
        """What happened, on stdout. Call it in the event loop's thread."""
        if not self._lines and self._loop is not None:
            self._loop.call_soon(self.flush)
        self._lines.append(_line(event, fields))
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


class App:
    """The ASGI application: routes, limits, life cycle. What it serves is `Workers` over a `Handler`."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings, self._log = settings, log
        self._workers: Workers[Invocation, Reply] | None = None
        self._why_unhealthy = "the model is loading"
        self._begin = time.monotonic()
        self._last_ping = 0
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def serve(self, workers: Workers[Invocation, Reply]) -> None:
        self._workers = workers
        self._why_unhealthy = ""

    async def drain(self, timeout_seconds: float) -> int:
        """Refuse what comes, and return when what is running has been answered.

        Returns:
            How many invocations were still running at the end and got a 503.
        """
        self._why_unhealthy = "the server is shutting down"
        self._workers = None
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
        if path == "/invocations":
            if method == "POST":
                await self._invocations(scope, receive, send)
                return
            reply = Reply(b"use POST.\n", status=405, headers=[("allow", "POST")])
        elif path == "/ping":
            if method == "GET":
                await self._ping(send)
                return
            reply = Reply(b"use GET.\n", status=405, headers=[("allow", "GET")])
        else:
            reply = Reply(b"not found. The paths are GET /ping and POST /invocations.\n", status=404)
        self._log.event("request", method=method, path=path, status=reply.status, ms=0.0, inference_id=None)
        await _send(send, reply)

    async def _ping(self, send: Send) -> None:
        reply = Reply(b"")
        if self._why_unhealthy:
            age = time.monotonic() - self._begin
            reply = Reply(f"{self._why_unhealthy} ({age:.1f} s after the start).\n".encode(), status=503)
        if reply.status != self._last_ping:
            self._last_ping = reply.status
            self._log.event("request", method="GET", path="/ping", status=reply.status, ms=0.0, inference_id=None)
        await _send(send, reply)

    async def _invocations(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        job: Job[Invocation, Reply] | None = None
        task = asyncio.current_task()
        assert task
        self._in_flight.add(task)
        self._idle.clear()
        try:
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    body = await self._body(headers, receive)
                    if self._workers is None:
                        raise _Unavailable(f"{self._why_unhealthy}.")
                    job = self._workers.submit(Invocation(body, headers))
                    reply = await job.future
            except TimeoutError:
                reply = self._too_late(job)
            except codecs.Refused as error:
                reply = Reply(f"{error}\n".encode(), status=error.status)
            except (Busy, _Unavailable) as error:
                reply = _unavailable(error)
            except asyncio.CancelledError:  # by drain()
                reply = _unavailable(_Unavailable("the server shut down before the model answered."))
            except _Gone:
                reply = Reply(b"", status=499)  # nginx's code for it, in the log; nobody reads the answer
            await _send(send, reply)
        finally:
            self._in_flight.discard(task)
            if not self._in_flight:
                self._idle.set()
        inference_id = headers.get(INFERENCE_ID)
        self._log.event(
            "request",
            method="POST",
            path="/invocations",
            status=reply.status,
            ms=round((time.monotonic() - begin) * 1e3, 3),
            queue_ms=round(job.queue_ms, 3) if job else 0.0,
            model_ms=round(job.model_ms, 3) if job else 0.0,
            inference_id=inference_id,
        )
        if reply.error:
            self._log.fault("invocation failed", status=reply.status, inference_id=inference_id, error=reply.error)

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        limit = self._settings.max_payload_bytes
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            raise codecs.Refused(413, f"the body is {declared} bytes; the limit is {limit}.")
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

    def _too_late(self, job: Job[Invocation, Reply] | None) -> Reply:
        limit = f"{self._settings.timeout_seconds:g} s (SAGEMAKER_MODEL_SERVER_TIMEOUT)"
        if job is None:
            return Reply(
                f"the body did not arrive within {limit}.\n".encode(), status=408, headers=[("connection", "close")]
            )
        doing = "the model did not answer" if job.started else "no worker was free"
        return Reply(f"{doing} within {limit}.\n".encode(), status=504, error=f"{doing} within {limit}")


class _Unavailable(Exception):
    """There is no model to ask: not yet, or not any more."""


class _Gone(Exception):
    """The caller hung up before its body was complete."""


def _unavailable(error: Busy | _Unavailable) -> Reply:
    seconds = error.retry_after_seconds if isinstance(error, Busy) else 1
    return Reply(f"{error}\n".encode(), status=503, headers=[("retry-after", str(seconds))])


async def _send(send: Send, reply: Reply) -> None:
    headers = [(b"content-type", reply.content_type.encode("latin-1", "replace"))]
    headers.append((b"content-length", b"%d" % len(reply.body)))
    for name, value in reply.headers:
        headers.append((name.encode("latin-1"), value.encode("latin-1")))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


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


async def _serve(settings: Settings, log: Log, listener: socket.socket) -> int:
    """The life of the server: listen, load, serve, drain. Returns the exit code."""
    loop = asyncio.get_running_loop()
    log.attach(loop)
    app = App(settings, log)
    server = _server(app)
    stop: asyncio.Future[str] = loop.create_future()

    def on_signal(name: str) -> None:
        if not stop.done():
            stop.set_result(name)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum.name)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()[:2]
    log.event("listening", host=host, port=port, pid=os.getpid())

    begin = time.monotonic()
    workers = Workers(
        lambda: Handler.load(settings.model_dir, settings.code_dir, settings.program, settings.default_accept),
        threads=settings.workers,
        queue_size=settings.queue_size,
    )
    events: list[asyncio.Future[Any]] = [workers.loaded, stop, serving]
    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
    if workers.loaded.done() and (error := workers.loaded.result()) is not None:
        log.flush()
        print(user_traceback(error), end="", file=sys.stderr, flush=True)
        return 1
    if workers.loaded.done():
        app.serve(workers)
        log.event("ready", load_ms=round((time.monotonic() - begin) * 1e3, 1))
        await asyncio.wait(events[1:], return_when=asyncio.FIRST_COMPLETED)

    begin = time.monotonic()
    log.event("draining", signal=stop.result() if stop.done() else None)
    abandoned = await app.drain(settings.drain_seconds)
    if abandoned:
        log.fault("abandoned", message=f"{abandoned} invocations still ran after {settings.drain_seconds:g} s")
    server.should_exit = True
    await serving
    ended = workers.stop(timeout_seconds=0.5 if workers.loaded.done() and not abandoned else 0)
    log.event("stopped", ms=round((time.monotonic() - begin) * 1e3, 1))
    log.flush()
    if not ended:
        # A thread that is still in the user's code would make the interpreter hang or crash while it tears itself down.
        sys.stderr.flush()
        os._exit(1 if abandoned else 0)
    return 1 if abandoned else 0


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
    try:
        settings = Settings.read(os.environ if env is None else env)
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
        return runner.run(_serve(settings, log, listener))


if __name__ == "__main__":
    sys.exit(main())
