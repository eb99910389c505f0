"""An answer that is written at once is the one that Uvicorn writes step by step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from windlass.runtime.connections import answered_at_once

pytest.importorskip("httptools")
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PLAIN = [(b"content-type", b"application/json")]


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written, self.closed = b"", False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True


class Answering:
    """A request that Uvicorn has read, and what becomes of its answer."""

    def __init__(self, method: str = "POST", **state: Any) -> None:
        self.transport, self.ended = Transport(), 0
        self.flow = FlowControl(self.transport)  # type: ignore[arg-type]
        self.flow.write_paused = state.pop("write_paused", False)
        self.cycle = RequestResponseCycle(
            scope={"type": "http", "method": method, "http_version": "1.1", "path": "/", "headers": []},  # type: ignore[arg-type]
            transport=self.transport,  # type: ignore[arg-type]
            flow=self.flow,
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=state.pop("expect_100_continue", False),
            keep_alive=state.pop("keep_alive", True),
            on_response=self.end,
        )
        for name, value in state.items():
            setattr(self.cycle, name, value)

    def end(self) -> None:
        self.ended += 1

    @property
    def seen(self) -> Sequence[object]:
        """What a caller and Uvicorn's protocol see of it."""
        cycle = self.cycle
        ended = (cycle.response_started, cycle.response_complete, cycle.message_event.is_set(), self.ended)
        return self.transport.written, self.transport.closed, *ended


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize("body", [b"", b"{}", bytes(100_000)], ids=len)
def test_it_is_what_uvicorn_writes(status: int, body: bytes) -> None:
    headers = [*PLAIN, (b"retry-after", b"1")]
    ours, uvicorns = Answering(), Answering()

    async def step_by_step() -> None:
        whole = [*headers, (b"content-length", b"%d" % len(body))]
        await uvicorns.cycle.send({"type": "http.response.start", "status": status, "headers": whole})
        await uvicorns.cycle.send({"type": "http.response.body", "body": body, "more_body": False})

    asyncio.run(step_by_step())

    assert answered_at_once(ours.cycle.send, status, headers, body)
    assert ours.seen == uvicorns.seen
    assert ours.ended == 1


@pytest.mark.parametrize(
    "special",
    [
        {"method": "HEAD"},
        {"keep_alive": False},
        {"expect_100_continue": True},
        {"write_paused": True},
        {"disconnected": True},
        {"response_started": True},
    ],
    ids=str,
)
def test_what_is_special_is_left_to_uvicorn(special: dict[str, Any]) -> None:
    answering = Answering(**special)

    assert not answered_at_once(answering.cycle.send, 200, PLAIN, b"")
    assert answering.transport.written == b""


def test_a_status_that_there_is_not_is_left_to_uvicorn() -> None:
    answering = Answering()

    assert not answered_at_once(answering.cycle.send, 799, PLAIN, b"")
    assert answering.transport.written == b""


@pytest.mark.parametrize(
    "header", [(b"connection", b"close"), (b"x-mine", b"1"), (b"content-type", b"text/plain\r\nx-injected: 1")]
)
def test_headers_of_other_kinds_are_left_to_uvicorn(header: tuple[bytes, bytes]) -> None:
    answering = Answering()

    assert not answered_at_once(answering.cycle.send, 200, [header], b"")
    assert answering.transport.written == b""


def test_another_server_answers_step_by_step() -> None:
    async def send(message: Any) -> None:
        raise AssertionError(message)

    assert not answered_at_once(send, 200, PLAIN, b"")
