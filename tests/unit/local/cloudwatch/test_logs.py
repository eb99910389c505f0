"""Output becomes log events, line by line, as it comes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from moto.core.base_backend import BackendDict
from moto.logs.models import logs_backends

from windlass.local.cloud import ACCOUNT
from windlass.local.cloudwatch.logs import MAX_EVENT_BYTES, LogStream, follow


class StoppedClock:
    """Always the same second."""

    def now(self) -> float:
        return 1_700_000_000.5

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing sleeps here")


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    yield
    BackendDict.reset()


def events(stream: LogStream) -> list[dict[str, Any]]:
    found = logs_backends[ACCOUNT]["us-east-1"].groups[stream.group].streams[stream.name].events
    return [event.to_response_dict() for event in found]


def followed(data: bytes) -> list[str]:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    lines: list[str] = []
    follow(reading, lines.append)
    return lines


def test_a_line_is_an_event_with_the_clocks_time() -> None:
    stream = LogStream("us-east-1", "/group", "stream", StoppedClock())

    stream.write("epoch=1")
    stream.write("")  # CloudWatch takes no empty message

    assert [(event["message"], event["timestamp"]) for event in events(stream)] == [("epoch=1", 1_700_000_000_500)]


def test_a_stream_that_exists_is_continued() -> None:
    LogStream("us-east-1", "/group", "stream", StoppedClock()).write("one")
    stream = LogStream("us-east-1", "/group", "stream", StoppedClock())

    stream.write("two")

    assert [event["message"] for event in events(stream)] == ["one", "two"]


def test_a_line_longer_than_an_event_becomes_several() -> None:
    stream = LogStream("us-east-1", "/group", "stream", StoppedClock())

    stream.write("x" * (MAX_EVENT_BYTES + 10))

    assert [len(event["message"]) for event in events(stream)] == [MAX_EVENT_BYTES, 10]


def test_lines_for_a_group_that_was_deleted_are_dropped() -> None:
    stream = LogStream("us-east-1", "/group", "stream", StoppedClock())
    logs_backends[ACCOUNT]["us-east-1"].groups.clear()

    stream.write("lost")

    assert "/group" not in logs_backends[ACCOUNT]["us-east-1"].groups


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"no end", ["no end"]),
        (b"windows\r\n", ["windows"]),
        (b" 10%\r 50%\r100%\n", ["100%"]),
        ("ünïcødé 漢\n".encode(), ["ünïcødé 漢"]),
        (b"not \xff utf-8\n", ["not � utf-8"]),
        (b"", []),
    ],
)
def test_a_pipe_is_read_line_by_line(data: bytes, lines: list[str]) -> None:
    assert followed(data) == lines


def test_a_line_that_cannot_be_kept_does_not_break_the_writer(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []

    def take(line: str) -> None:
        if line == "two":
            raise OSError("no space left")
        lines.append(line)

    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\nthree\n")
    os.close(writing)
    follow(reading, take)

    assert lines == ["one", "three"]
    assert "A line of output is lost" in caplog.text


def test_a_line_is_passed_on_before_the_next_one_is_written() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"first\nsec")
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if line == "first":  # only now does the writer go on
            os.write(writing, b"ond\n")
            os.close(writing)

    follow(reading, take)

    assert lines == ["first", "second"]
