"""InvokeEndpointWithResponseStream: a model's answer, chunk by chunk, as the event stream that AWS's SDKs read.

    Parts(streamed.chunks(), done)       # an iterable of frames; `done` is told why it ended, when it has

Frames are those of the media type application/vnd.amazon.eventstream: lengths, a CRC, headers, the payload, a CRC of all.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping

from windlass.local.hosting.instance import TimedOut, Unanswered

CONTENT_TYPE = "application/vnd.amazon.eventstream"

LONGEST_SECONDS = 480
"""How long a model may stream: 8 minutes (the guide's quotas of real-time inference)."""

_STRING = 7  # the type of a header whose value is text
_HEAD = struct.Struct(">II")
_CRC = struct.Struct(">I")


class Parts:
    """The frames of one answer.

    Args:
        chunks: of the model's body; raises Unanswered when it breaks off.
        done: is called once, when the stream has ended: with what broke it, or None. A caller that hangs up breaks nothing.
    """

    def __init__(self, chunks: Iterator[bytes], done: Callable[[str | None], None]) -> None:
        self._chunks, self._done = chunks, done
        self._ended = False
        self._end = time.monotonic() + LONGEST_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        try:
            chunk = next(self._chunks)
            if time.monotonic() > self._end:
                raise TimedOut(f"The model streamed for longer than {LONGEST_SECONDS} seconds.")
        except StopIteration:
            self._finish(None)
            raise
        except Unanswered as error:
            self._finish(str(error))
            code = "ModelInvocationTimeExceeded" if isinstance(error, TimedOut) else "StreamBroken"
            return exception("ModelStreamError", {"ErrorCode": code, "Message": str(error)})
        return event("PayloadPart", chunk)

    def close(self) -> None:
        """The caller wants no more."""
        self._finish(None)

    def _finish(self, error: str | None) -> None:
        if not self._ended:
            self._ended = True
            self._done(error)


def event(kind: str, payload: bytes) -> bytes:
    """One event of the stream."""
    headers = {":event-type": kind, ":content-type": "application/octet-stream", ":message-type": "event"}
    return _frame(headers, payload)


def exception(kind: str, members: Mapping[str, str]) -> bytes:
    """The end of a stream that failed."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return _frame(headers, json.dumps(members).encode())


def _frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    head = b"".join(
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", _STRING, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = _HEAD.pack(_HEAD.size + _CRC.size + len(head) + len(payload) + _CRC.size, len(head))
    frame = prelude + _CRC.pack(zlib.crc32(prelude)) + head + payload
    return frame + _CRC.pack(zlib.crc32(frame))
