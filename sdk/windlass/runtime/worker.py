"""One worker process: loads the model, then answers batches until the server is gone.

    python -m windlass.runtime.worker FD          # started by `windlass.runtime.workers`, never by hand

FD is its end of a socket to the server. The user's code runs in the main thread of this process and nowhere else, unless its
`max_concurrency` asks for several requests at once, each in a thread. What it does to the process (a crash, a deadlock, a
signal handler) is undone by killing it.

| message | |
|---|---|
| -> run, id, [(body, headers)] | the next batch |
| -> stop, id | the caller of what is being streamed is gone |
| <- loading, where | the model is not loaded yet, and this is what it does |
| <- ready, batches, concurrency | the model is loaded |
| <- failed, report, out of memory | it is not, and the process ends |
| <- replies, id, seconds, [reply] | the answers; a body of None is streamed: |
| <- chunk, id, bytes | |
| <- end, id, seconds, error | of the stream |
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from windlass.runtime import wire
from windlass.runtime.hooks import (
    HOOKS,
    INFERENCE_ID,
    REQUEST_ID,
    Handler,
    Invocation,
    Reply,
    chunks,
    failure,
    out_of_memory,
    user_traceback,
)
from windlass.runtime.settings import Settings

Headers = list[tuple[bytes, bytes]]
_TELL_SECONDS = 1.0


class Records(logging.Handler):
    """Log records of the user's code as JSON on stderr, with the ids of the requests that are being answered."""

    running: Sequence[Invocation] = ()

    def emit(self, record: logging.LogRecord) -> None:
        line: dict[str, Any] = {"time": round(record.created, 3), "event": "log", "level": record.levelname}
        line |= {"logger": record.name, "message": record.getMessage()}
        for field, name in (("request_ids", REQUEST_ID), ("inference_ids", INFERENCE_ID)):
            line[field] = [found for each in self.running if (found := each.headers.get(name))]
        if record.exc_info and record.exc_info[1]:
            line["error"] = user_traceback(record.exc_info[1])
        print(json.dumps(line), file=sys.stderr, flush=True)


def serve(channel: socket.socket, handler: Handler, records: Records) -> None:
    """Answer batches until the other end is closed."""
    while (message := wire.read(channel)) is not None:
        if message[0] != "run":
            continue  # a stop that came when the stream had ended by itself
        _, batch, requests = message
        begin = time.perf_counter()
        invocations = [_invocation(body, headers) for body, headers in requests]
        records.running = invocations
        replies = handler.answer(invocations)
        if len(replies) > 1:
            replies = [_whole(reply) for reply in replies]
        answers = [_plain(reply) for reply in replies]
        channel.sendall(wire.pack(("replies", batch, time.perf_counter() - begin, answers)))
        if replies[0].stream is not None:
            error = _stream(channel, batch, replies[0].stream)
            channel.sendall(wire.pack(("end", batch, time.perf_counter() - begin, error)))


def serve_concurrently(channel: socket.socket, handler: Handler, records: Records) -> None:
    """Answer requests as they come, each in a thread of its own, until the other end is closed.

    What they share is the model's: one that batches by itself at every step, as generation does.
    """
    writing, stopped = threading.Lock(), set[int]()

    def send(*message: Any) -> None:
        with writing:
            channel.sendall(wire.pack(message))

    def run(number: int, invocation: Invocation) -> None:
        begin = time.perf_counter()
        reply = handler(invocation)
        send("replies", number, time.perf_counter() - begin, [_plain(reply)])
        if reply.stream is None:
            return
        error = None
        try:
            for chunk in chunks(reply.stream):
                if number in stopped:
                    break
                send("chunk", number, chunk)
        except ConnectionError:
            return
        except BaseException as raised:  # noqa: BLE001 - the user's code may raise anything
            error = user_traceback(raised)
        if (close := getattr(reply.stream, "close", None)) is not None:
            close()  # the generator's `finally` cancels what is still being made
        stopped.discard(number)
        send("end", number, time.perf_counter() - begin, error)

    with ThreadPoolExecutor(handler.concurrency) as threads:
        while (message := wire.read(channel)) is not None:
            if message[0] == "stop":
                stopped.add(message[1])
            elif message[0] == "run":
                threads.submit(run, message[1], _invocation(*message[2][0]))


def _whole(reply: Reply) -> Reply:
    """Streams of one batch would have to be sent by turns; each is sent whole instead."""
    if reply.stream is None:
        return reply
    try:
        reply.body = b"".join(chunks(reply.stream))
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
        return failure(error)
    reply.stream = None
    return reply


def _stream(channel: socket.socket, batch: int, parts: Iterator[Any]) -> str | None:
    """Send the parts as they come. Returns what the user's generator raised."""
    try:
        for chunk in chunks(parts):
            if select.select([channel], [], [], 0)[0]:
                wire.read(channel)
                return None
            channel.sendall(wire.pack(("chunk", batch, chunk)))
    except ConnectionError:
        raise
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
        return user_traceback(error)
    return None


class _Loading(threading.Thread):
    """Says every second in which line of the user's code the load is, so that the health check can."""

    def __init__(self, channel: socket.socket, code_dir: Path) -> None:
        super().__init__(daemon=True)
        self._channel, self._code = channel, str(code_dir)
        self._over, self._writing = threading.Event(), threading.Lock()

    def run(self) -> None:
        while not self._over.wait(_TELL_SECONDS):
            with self._writing:
                if (where := self._where()) and not self._over.is_set():
                    try:
                        self._channel.sendall(wire.pack(("loading", where)))
                    except OSError:  # the server is gone
                        return

    def end(self) -> None:
        """When this returns, nothing more is written by it."""
        with self._writing:
            self._over.set()

    def _where(self) -> str:
        frame, line = sys._current_frames().get(threading.main_thread().ident or 0), ""
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(self._code):
                line = line or f"at {Path(code.co_filename).name} line {frame.f_lineno}"
                if code.co_name in HOOKS:
                    return f"in {code.co_name}, {line}"
            frame = frame.f_back
        return line


def _level(value: str | None) -> int:
    """SageMaker gives the level as a number."""
    return int(value) if value and value.isdecimal() else logging.INFO


def _invocation(body: bytes, headers: Headers) -> Invocation:
    return Invocation(body, {name.decode("latin-1"): value.decode("latin-1") for name, value in headers})


def _plain(reply: Reply) -> tuple[Any, ...]:
    headers = [(b"content-type", reply.content_type.encode("latin-1", "replace"))]
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    return reply.status, headers, None if reply.stream is not None else reply.body, reply.error


def _die_with_the_server() -> None:
    """Also in the middle of a prediction, when nobody reads the channel."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> int:
    _die_with_the_server()
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)  # a process that the user's code starts must not keep it open
    # The server decides when this process ends, by closing the channel. A terminal's ctrl-C goes to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = Settings.read(os.environ)
    records = Records()
    logging.basicConfig(level=_level(os.environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL")), handlers=[records])
    loading = _Loading(channel, settings.code_dir)
    loading.start()
    try:
        handler = Handler.load(settings.model_dir, settings.code_dir, settings.program, settings.default_accept)
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything, also SystemExit
        loading.end()
        channel.sendall(wire.pack(("failed", user_traceback(error), out_of_memory(error))))
        return 1
    loading.end()
    channel.sendall(wire.pack(("ready", handler.batches, handler.concurrency)))
    try:
        (serve if handler.concurrency == 1 else serve_concurrently)(channel, handler, records)
    except ConnectionError:
        return 0  # the server is gone
    finally:
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    # Not by way of the interpreter's own end: threads of the user's would keep the process, or crash it.
    code = main()
    sys.stderr.flush()
    os._exit(code)
