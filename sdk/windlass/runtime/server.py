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
| SAGEMAKER_MODEL_SERVER_WORKERS | 1 | threads or processes that predict at once; they share the cores, and the weights |
| WINDLASS_PIN_THREADS | | 1 keeps each of OpenVINO's threads on a core; else where workers are threads and have the machine |
| WINDLASS_WORKER_KIND | auto | what the model allows; or ``thread``, ``process``, or ``spawn``: not forked. See `worker` |
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
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from windlass.runtime.app import App
from windlass.runtime.connections import Patience, UvicornLog, take_no_more, uvicorn_server
from windlass.runtime.log import Log
from windlass.runtime.models import Models
from windlass.runtime.processes import Starter
from windlass.runtime.settings import BadSetting, Settings, cores
from windlass.runtime.telemetry import Recorder, Spans
from windlass.runtime.workers import Pool, environment

# Between the last connection taken and the end of all: what its caller has sent by then is answered.
_SETTLE_SECONDS = 0.1


def _observe(app: App, settings: Settings, env: Mapping[str, str], log: Log) -> list[Callable[[], None]]:
    """Set up what the environment asks for. Returns what to call at the end."""
    closing: list[Callable[[], None]] = []
    if settings.emf_seconds:
        loop, recorder = asyncio.get_running_loop(), Recorder(settings.emf_dimensions)
        app.record(recorder)

        def write() -> None:
            for line in recorder.lines(time.time()):
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
    server = uvicorn_server(app)
    stop: asyncio.Future[str] = loop.create_future()

    def on_signal(name: str) -> None:
        if not stop.done():
            stop.set_result(name)

    closing = _observe(app, settings, env, log)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum.name)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    patience = Patience(server, settings.stalled_seconds, log)

    def look() -> None:
        patience.tick(time.monotonic())
        loop.call_later(1.0, look)

    loop.call_later(1.0, look)
    host, port = listener.getsockname()[:2]
    log.event("listening", host=host, port=port, pid=os.getpid())

    def start(more: Mapping[str, str]) -> Pool:
        shared = settings.multi_model or settings.worker_kind in ("process", "spawn") or cores() != os.cpu_count()
        variables = environment({**os.environ, **env, **more}, settings.workers, cores(), shared=shared)
        return Pool(
            Starter([sys.executable, "-m", "windlass.runtime.worker"], variables),
            workers=settings.workers,
            queue_size=settings.queue_size,
            max_batch_size=settings.max_batch_size,
            batch_delay_seconds=settings.batch_delay_seconds,
            timeout_seconds=settings.timeout_seconds,
            log=log.event,
            measured=app.measured,
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
            take_no_more(listener)
    await asyncio.sleep(_SETTLE_SECONDS)
    server.should_exit = True
    await serving
    await close(0 if abandoned else 1)
    for last in closing:
        await asyncio.to_thread(last)
    log.event("stopped", ms=round((time.monotonic() - begin) * 1e3, 1))
    log.flush()
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
    faults.addHandler(UvicornLog(log))
    faults.propagate = False
    factory = None
    if importlib.util.find_spec("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(settings, env, log, listener))


if __name__ == "__main__":
    sys.exit(main())
