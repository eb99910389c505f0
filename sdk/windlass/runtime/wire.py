"""Frames between the server and its workers: a length, then one value of plain types.

    socket.sendall(wire.pack(("run", 7, [(body, headers)])))
    wire.read(socket)                          # -> ("run", 7, [(body, headers)]); None at the end
    for message in reader.feed(data): ...      # the same, where data comes in pieces

`marshal` is the fastest that the standard library has for tuples of bytes, holds no code that reading would run, and both
ends are of one interpreter: the server starts its workers with its own.
"""

from __future__ import annotations

import marshal
import socket
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("<Q")


def pack(message: tuple[Any, ...]) -> bytes:
    body = marshal.dumps(message)
    return _LENGTH.pack(len(body)) + body


def read(source: socket.socket) -> Any:
    """The next message; ``None`` when the other end is gone."""
    head = _exactly(source, _LENGTH.size)
    body = _exactly(source, _LENGTH.unpack(head)[0]) if head else None
    return None if body is None else marshal.loads(body)  # noqa: S302 - from our own process, see above


def _exactly(source: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        try:
            count = source.recv_into(left)
        except ConnectionError:
            return None
        if not count:
            return None
        left = left[count:]
    return data


class Reader:
    """Messages out of pieces as they come."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have, self._need = 0, _LENGTH.size

    def feed(self, data: bytes) -> Iterator[Any]:
        self._parts.append(data)
        self._have += len(data)
        while self._have >= self._need:
            whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            end = _LENGTH.size + _LENGTH.unpack_from(whole)[0]
            if len(whole) < end:
                self._parts, self._need = [whole], end
                return
            yield marshal.loads(memoryview(whole)[_LENGTH.size : end])  # noqa: S302 - from our own process, see above
            self._parts, self._have, self._need = [whole[end:]], self._have - end, _LENGTH.size
