"""What the server tells, as JSON lines: what happened on stdout, what went wrong on stderr.

    log = Log()
    log.event("ready", load_ms=12.5)                   # {"time": ..., "event": "ready", "load_ms": 12.5}

Log records of the user's code are written by the workers: see `worker.Records`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping


class Log:
    """JSON lines on stdout and stderr, written once per turn of the event loop."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def event(self, event: str, **fields: object) -> None:
        """What happened, on stdout. Call it in the event loop's thread."""
        self.line(_line(event, fields))

    def line(self, line: str) -> None:
        """A line that is JSON already."""
        if not self._lines and self._loop is not None:
            self._loop.call_soon(self.flush)
        self._lines.append(line)
        if self._loop is None:
            self.flush()

    def fault(self, event: str, **fields: object) -> None:
        """What went wrong, on stderr."""
        print(_line(event, fields), file=sys.stderr, flush=True)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()


def _line(event: str, fields: Mapping[str, object]) -> str:
    return json.dumps({"time": round(time.time(), 3), "event": event, **fields})
