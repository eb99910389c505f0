"""One worker process: loads the model, then answers batches until the server is gone.

    python -m windlass.runtime.worker FD          # started by `windlass.runtime.workers`, never by hand

FD is its end of a socket to the server. The user's code runs in the main thread of this process and nowhere else, so that what
it does to the process (a crash, a deadlock, a signal handler) is undone by killing it.

| message | |
|---|---|
| -> run, id, [(body, headers)] | the next batch |
| -> stop | the caller of what is being streamed is gone |
| <- ready, batches | the model is loaded |
| <- failed, report, out of memory | it is not, and the process ends |
| <- replies, id, seconds, [reply] | the answers; a body of None is streamed: |
| <- chunk, id, bytes | |
| <- end, id, seconds, error | of the stream |
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from windlass.runtime import wire
from windlass.runtime.hooks import Handler, Invocation, Reply, chunks, failure, out_of_memory, user_traceback
from windlass.runtime.settings import Settings

Headers = list[tuple[bytes, bytes]]


def serve(channel: socket.socket, handler: Handler) -> None:
    """Answer batches until the other end is closed."""
    while (message := wire.read(channel)) is not None:
        if message[0] != "run":
            continue  # a stop that came when the stream had ended by itself
        _, batch, requests = message
        begin = time.perf_counter()
        replies = handler.answer([_invocation(body, headers) for body, headers in requests])
        if len(replies) > 1:
            replies = [_whole(reply) for reply in replies]
        answers = [_plain(reply) for reply in replies]
        channel.sendall(wire.pack(("replies", batch, time.perf_counter() - begin, answers)))
        if replies[0].stream is not None:
            error = _stream(channel, batch, replies[0].stream)
            channel.sendall(wire.pack(("end", batch, time.perf_counter() - begin, error)))


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
    try:
        handler = Handler.load(settings.model_dir, settings.code_dir, settings.program, settings.default_accept)
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything, also SystemExit
        channel.sendall(wire.pack(("failed", user_traceback(error), out_of_memory(error))))
        return 1
    channel.sendall(wire.pack(("ready", handler.batches)))
    try:
        serve(channel, handler)
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
