"""Frames between the server and its workers."""

from __future__ import annotations

import socket
import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from windlass.runtime import wire

MESSAGES = st.lists(
    st.tuples(st.text(), st.integers(), st.binary(max_size=300), st.floats(allow_nan=False)), max_size=5
)


@given(MESSAGES, st.integers(1, 50))
def test_messages_come_out_whole_however_they_are_cut(messages: list[tuple[Any, ...]], step: int) -> None:
    data = b"".join(wire.pack(message) for message in messages)
    reader = wire.Reader()
    came = [message for begin in range(0, len(data), step) for message in reader.feed(data[begin : begin + step])]
    assert came == messages


def test_a_large_message_goes_through_a_socket() -> None:
    ours, theirs = socket.socketpair()
    message = ("run", 1, [(bytes(10_000_000), [(b"a", b"b")])])
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(wire.pack(message),))
        sender.start()
        assert wire.read(theirs) == message
        sender.join()


def test_the_end_is_none_also_in_the_middle_of_a_message() -> None:
    for sent in (b"", wire.pack(("a",))[:5], wire.pack(("a",))[:-1]):
        ours, theirs = socket.socketpair()
        with theirs:
            ours.sendall(sent)
            ours.close()
            assert wire.read(theirs) is None
