"""The connections of the server: Uvicorn, with limits of ours on what stands still or never ends.

    server = uvicorn_server(app)
    patience = Patience(server, stalled_seconds=30, log=log)
    patience.tick(time.monotonic())                    # every second
    take_no_more(listener)                             # before the end

What is answered is `app`'s to say.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from windlass.runtime.hooks import CUSTOM_ATTRIBUTES, user_traceback
from windlass.runtime.log import Log

try:
    from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE as _UNSAFE
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE as _STATUS_LINES
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle as _Cycle
except ImportError:  # no httptools: Uvicorn has another protocol, which answers step by step
    _Cycle = None

INVOCATIONS = "/invocations"
# Longer than the clients' pools and load balancers keep a connection (60 s at most), so that they close first: when the
# server does, a request may just be on its way.
_KEEP_ALIVE_SECONDS = 75
# Of a request's line and headers. More than any needs, and than one read of the socket brings: the last of a body counts, too.
_MOST_HEAD_BYTES = 512 << 10
# The headers of most answers. One with another is answered step by step.
_KNOWN_HEADERS = frozenset({b"date", b"content-type", b"retry-after", CUSTOM_ATTRIBUTES.encode()})
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 41\r\n\r\nthe request's head is more than 512 KiB.\n"
)


class Patience:
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


class UvicornLog(logging.Handler):
    """Uvicorn's warnings (a request that is not HTTP, a fault in the application) in our form."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fault = user_traceback(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
        self._log.fault("server", message=record.getMessage().strip(), error=fault)


def _protocol() -> Any:
    """Uvicorn's own, with an end to the head of a request: httptools keeps whatever comes of it.

    And with a short way for an invocation that comes as a whole: the application may take it without a task (`App.invoke`).
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):  # type: ignore[misc]
        _seen: Any = None
        _head = 0
        _reading = False
        _arrived: Any = None

        def data_received(self, data: bytes) -> None:
            self._reading = True
            super().data_received(data)
            self._reading = False
            if (cycle := self._arrived) is not None:
                self._arrived = None
                if cycle.more_body or cycle.disconnected or not self.app.invoke(cycle):
                    super()._start_asgi_task(cycle, self.app)
            cycle = self.cycle
            if cycle is not self._seen:  # a head is complete
                self._seen, self._head = cycle, 0
            elif cycle is None or cycle.response_complete or not cycle.more_body:
                self._head += len(data)
                if self._head > _MOST_HEAD_BYTES and not self.transport.is_closing():
                    self.transport.write(_HEAD_TOO_LARGE)
                    self.transport.close()

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            if self._reading and cycle.scope["path"] == INVOCATIONS and cycle.scope["method"] == "POST":
                self._arrived = cycle  # its head; what of its body has come is read next
            else:
                super()._start_asgi_task(cycle, app)

    return Protocol


def answered_at_once(send: Any, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Write head and body of an answer together, and the length of the body in its head.

    False, and nothing done, where that is for `send` to do step by step.

    Uvicorn writes each by itself, and looks at each header several times: a fifth of an echo's whole time. What is here besides
    is what it does at the end of an answer.
    """
    cycle: Any = getattr(send, "__self__", None)  # Uvicorn's request and answer, whose method it is
    if not _is_plain(cycle) or status not in _STATUS_LINES:
        return False
    parts = [_STATUS_LINES[status]]
    for name, value in (*cycle.default_headers, *headers):
        if (line := _line(name, value)) is None:
            return False
        parts.append(line)
    parts += (b"content-length: %d\r\n\r\n" % len(body), body)
    cycle.transport.write(b"".join(parts))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    cycle.on_response = _nothing  # else connection and cycle would hold each other
    return True


def _nothing() -> None:
    pass


@lru_cache(128)  # most answers have the same ones, also the date, for a second
def _line(name: bytes, value: bytes) -> bytes | None:
    """A header as it is written; ``None`` for one that closes the connection, or that Uvicorn refuses."""
    return b"%b: %b\r\n" % (name, value) if name in _KNOWN_HEADERS and not _UNSAFE.search(value) else None


def _is_plain(cycle: Any) -> bool:
    """Whether nothing about that answer is special: it is the first word to a caller who reads and stays connected."""
    return (
        type(cycle) is _Cycle
        and cycle.keep_alive
        and not (cycle.response_started or cycle.disconnected or cycle.flow.write_paused)
        and not cycle.waiting_for_100_continue
        and cycle.scope["method"] != "HEAD"
    )


def uvicorn_server(app: Any) -> Any:
    """Uvicorn without what we do ourselves: signals, logs, headers."""
    import uvicorn

    class Server(uvicorn.Server):  # type: ignore[misc]
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # Uvicorn raises the signal again at the end, which makes a clean stop look like a death

    config = uvicorn.Config(
        app,
        http=_protocol() if importlib.util.find_spec("httptools") else "auto",
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


def take_no_more(listener: socket.socket) -> None:
    """Let the kernel drop requests to connect, where it can. Their callers try again in a second, and are refused."""
    if sys.platform != "linux":
        return
    import ctypes

    drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # of linux/filter.h: BPF_RET, no byte of it
    program = struct.pack("HP", 1, ctypes.addressof(drop))  # struct sock_fprog
    # By a copy, for uvloop's own stand-in takes no options.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(listener.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
