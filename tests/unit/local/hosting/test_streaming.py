"""Event streams, as botocore reads them."""

from __future__ import annotations

from collections.abc import Iterator

from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from windlass.local.hosting.instance import TimedOut, Unanswered
from windlass.local.hosting.streaming import Parts, event


def read(data: bytes) -> list[tuple[dict[str, str], bytes]]:
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return [(message.headers, message.payload) for message in buffer]


@given(st.binary(max_size=1000))
def test_an_event_is_read_as_it_was_written(payload: bytes) -> None:
    [(headers, got)] = read(event("PayloadPart", payload))

    assert got == payload
    assert headers[":event-type"] == "PayloadPart"
    assert headers[":message-type"] == "event"


def breaking(error: Unanswered) -> Iterator[bytes]:
    yield b"first"
    raise error


def test_a_stream_that_breaks_says_how_and_ends_once() -> None:
    for error, code in ((Unanswered("gone"), b"StreamBroken"), (TimedOut("late"), b"ModelInvocationTimeExceeded")):
        ends: list[str | None] = []
        parts = Parts(breaking(error), ends.append)

        frames = read(b"".join(parts))
        parts.close()

        assert [headers[":message-type"] for headers, _ in frames] == ["event", "exception"]
        assert code in frames[1][1]
        assert ends == [str(error)]


def test_a_caller_that_hangs_up_ends_the_stream() -> None:
    ends: list[str | None] = []
    parts = Parts(iter([b"a", b"b"]), ends.append)
    next(parts)

    parts.close()

    assert list(parts) == []
    assert ends == [None]
