"""CloudWatch Logs as the local cloud itself writes them, without a request.

stream = LogStream("us-east-1", "/aws/sagemaker/TrainingJobs", "digits/algo-1-1700000000", clock)
follow(pipe, stream.write)      # until the other end of the pipe is closed
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from moto.logs import models

from windlass.local import cloud as clouds
from windlass.local.clock import Clock
from windlass.local.cloud import ACCOUNT
from windlass.local.iam import authorizer

log = logging.getLogger(__name__)

MAX_EVENT_BYTES = 256 * 1024 - 26
"""The largest event that every SDK accepts: 256 KiB with the 26 bytes that CloudWatch Logs counts for its own."""


class LogStream:
    """One log stream, made with its group when it does not exist."""

    def __init__(self, region: str, group: str, stream: str, clock: Clock) -> None:
        self.group, self.name = group, stream
        self._region, self._clock = region, clock
        self._muted = not self._allowed()
        if self._muted:
            return
        backend = self._backend()
        backend.ensure_log_group(group)
        backend.ensure_log_stream(group, stream)

    def write(self, line: str) -> None:
        """One event, as of now. Longer than an event may be: several. None, where the role may not write here."""
        if self._muted:
            return
        now = int(self._clock.now() * 1000)
        events = [{"timestamp": now, "message": part} for part in _parts(line) if part]
        group = self._backend().groups.get(self.group)
        stream = group.streams.get(self.name) if group else None
        if stream and events:  # somebody may have deleted the group meanwhile; AWS drops the lines then, too
            stream.put_log_events(events)

    def _allowed(self) -> bool:
        """Whether whoever this thread acts for may. On AWS, too, a job goes on whose role may not write its log."""
        if authorizer.acting() is None:
            return True
        group = f"arn:aws:logs:{self._region}:{ACCOUNT}:log-group:{self.group}"
        try:
            if self.group not in self._backend().groups:
                authorizer.require("logs:CreateLogGroup", group)
            for action in ("logs:CreateLogStream", "logs:PutLogEvents"):
                authorizer.require(action, f"{group}:log-stream:{self.name}")
        except authorizer.Denied as denial:
            log.warning("Nothing is written to the log stream %s of %s: %s", self.name, self.group, denial)
            return False
        return True

    def _backend(self) -> Any:
        from moto.logs.models import logs_backends

        return logs_backends[ACCOUNT][self._region]


class StoredStream(models.LogStream):  # type: ignore[misc]
    """moto's log stream, whose events are rows in the database: there may be millions, and none ever changes."""

    def __init__(self, log_group: Any, name: str) -> None:
        super().__init__(log_group, name)
        self.id = uuid.uuid4().hex
        clouds.current().snapshot.touch()

    def put_log_events(self, log_events: list[dict[str, Any]]) -> str:
        token: str = super().put_log_events(log_events)
        ingested = int(self.last_ingestion_time.timestamp() * 1000)
        rows = [(self.id, ingested, event["timestamp"], event["message"]) for event in log_events]
        clouds.current().database.write(
            ("INSERT INTO log_events (stream, ingested, at, message) VALUES (?, ?, ?, ?)", rows)
        )
        return token

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "events"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        rows = clouds.current().database.read(
            "SELECT ingested, at, message FROM log_events WHERE stream = ? ORDER BY id", (self.id,)
        )
        self.events = [
            models.LogEvent(ingested, {"timestamp": at, "message": message}) for ingested, at, message in rows
        ]
        if rows:
            self.last_ingestion_time = datetime.fromtimestamp(rows[-1][0] / 1000, UTC).replace(tzinfo=None)


def follow(fd: int, take: Callable[[str], None]) -> None:
    """Give each line of a pipe to ``take`` as soon as it is complete, until EOF. Closes the pipe.

    A progress bar redraws its line with carriage returns: only what it shows at the end is kept. A line that ``take`` fails on
    is lost, and reading goes on: the process that writes must not break because its log does.
    """

    def give(line: bytes) -> None:
        try:
            take(_text(line))
        except Exception:
            log.exception("A line of output is lost")

    with os.fdopen(fd, "rb", buffering=0) as pipe:
        rest = b""
        while chunk := pipe.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                give(line)
            if len(rest) > MAX_EVENT_BYTES:
                give(rest)
                rest = b""
        if rest:
            give(rest)


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


def _parts(line: str) -> list[str]:
    if len(line) * 4 <= MAX_EVENT_BYTES:
        return [line]
    data = line.encode()
    return [data[i : i + MAX_EVENT_BYTES].decode(errors="replace") for i in range(0, len(data), MAX_EVENT_BYTES)]
