"""What a worker knows of those who wait for it, from a channel whose other end is the test's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from windlass.runtime import wire
from windlass.runtime.hooks import Reply
from windlass.runtime.measures import Measures
from windlass.runtime.worker import _AskedCaller, _Inbox, _whole, serve


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end and the worker's."""
    server, worker = socket.socketpair()
    worker.settimeout(10)
    with server, worker:
        yield server, worker


def begun(channel: tuple[socket.socket, socket.socket]) -> tuple[_Inbox, _AskedCaller]:
    """A worker that has been given batch 1, and those who wait for it."""
    server, worker = channel
    inbox = _Inbox(worker)
    server.sendall(wire.pack(("run", 1, [])))
    batch = inbox.batch()
    assert batch
    assert batch[:2] == (1, [])
    return inbox, batch[2]


def test_a_caller_stays_until_the_server_says_otherwise(channel: tuple[socket.socket, socket.socket]) -> None:
    server, _ = channel
    _, caller = begun(channel)
    assert not caller.gone()
    assert caller.takes_more()

    server.sendall(wire.pack(("hold", 1)) + wire.pack(("go on", 1)))
    assert caller.takes_more()

    server.sendall(wire.pack(("hold", 1)) + wire.pack(("stop", 1)))
    assert not caller.takes_more()
    assert caller.gone()


def test_a_reader_that_lags_behind_is_waited_for(channel: tuple[socket.socket, socket.socket]) -> None:
    server, worker = channel
    _, caller = begun(channel)
    worker.settimeout(0.05)
    server.sendall(wire.pack(("hold", 1)))

    with pytest.raises(TimeoutError):  # the socket's: it waited for the next word
        caller.takes_more()


def test_a_server_that_is_gone_waits_for_nothing(channel: tuple[socket.socket, socket.socket]) -> None:
    server, _ = channel
    inbox, caller = begun(channel)
    server.close()

    assert caller.gone()
    assert inbox.batch() is None


def test_who_asks_after_the_end_is_told_that_nobody_waits(channel: tuple[socket.socket, socket.socket]) -> None:
    server, _ = channel
    inbox, caller = begun(channel)
    inbox.end(1)
    with ThreadPoolExecutor(1) as waits:
        waiting = waits.submit(inbox.batch)
        assert caller.gone()
        server.sendall(wire.pack(("stop", 1)) + wire.pack(("run", 2, [])))
        batch = waiting.result(10)
    assert batch
    assert batch[0] == 2
    assert not batch[2].gone()


def test_a_batch_that_comes_early_waits_and_may_be_stopped_before_it_begins(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    server, _ = channel
    inbox, caller = begun(channel)
    for message in (("run", 2, [(b"a", [])]), ("stop", 2), ("run", 3, [(b"b", [])])):
        server.sendall(wire.pack(message))

    assert not caller.gone()  # it has read them all, and none was meant for this one
    inbox.end(1)
    batches = [inbox.batch(), inbox.batch()]
    assert [(batch[0], batch[1], batch[2].gone()) for batch in batches if batch] == [
        (2, [(b"a", [])], True),
        (3, [(b"b", [])], False),
    ]


def test_a_batch_whose_callers_have_left_is_not_run(channel: tuple[socket.socket, socket.socket]) -> None:
    server, worker = channel

    class Untouched:
        measures = Measures()

    for message in (("run", 1, [(b"a", []), (b"b", [])]), ("stop", 1)):
        server.sendall(wire.pack(message))
    server.shutdown(socket.SHUT_WR)

    serve(worker, Untouched())  # type: ignore[arg-type]

    kind, number, _, answers = wire.read(server)
    assert (kind, number, [answer[0] for answer in answers]) == ("replies", 1, [499, 499])


def test_a_stream_of_a_batch_is_made_no_further_when_nobody_waits(channel: tuple[socket.socket, socket.socket]) -> None:
    server, _ = channel
    _, caller = begun(channel)

    def parts() -> Iterator[str]:
        yield "a"
        server.sendall(wire.pack(("stop", 1)))
        while True:
            yield "b"

    assert _whole(Reply(b"", stream=parts()), caller).body == b"a"
