"""Streams that end otherwise than by themselves: closed, dropped, cancelled, broken off; and the connections they leave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from botocore.config import Config

from windlass import aws
from windlass.errors import ServiceError, Unreachable
from windlass.local.hosting.streaming import CONTENT_TYPE, event
from windlass.predictor import Predictor, Stream
from windlass.retries import Retry

DEADLINE_SECONDS = 30
CHUNK = b"chunk "


class Service:
    """InvokeEndpoint and its streaming twin, as each request's body asks: ``{"chunks": 3, "then": "wait", "head": "wait"}``.

    Attributes:
        left: a caller hung up on a stream that waits.
        asked: a request has come.
        go: lets those with ``"head": "wait"`` begin.
        connections: the number of the connection that each request came by, in order.
    """

    def __init__(self) -> None:
        self.left, self.asked, self.go = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
        self.connections: list[int] = []
        service, numbers = self, iter(range(10_000))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                self.number = next(numbers)

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                service.connections.append(self.number)
                service.asked.release()
                if "refuse" in asked:
                    self.send_response(503)
                    for name, value in (("retry-after", "3000"), ("content-length", "2")):
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(b"{}")
                    return
                if asked.get("head") == "wait":
                    assert service.go.wait(DEADLINE_SECONDS)
                if not self.path.endswith("stream"):
                    body = json.dumps(asked).encode()
                    self.head("application/json", ("content-length", str(len(body))))
                    self.wfile.write(body)
                    return
                try:
                    self.stream(asked)
                except ConnectionError:  # the caller has left with some of it on its way
                    self.close_connection = True
                    service.left.release()

            def stream(self, asked: dict[str, Any]) -> None:
                self.head(
                    CONTENT_TYPE, ("transfer-encoding", "chunked"), ("X-Amzn-SageMaker-Content-Type", "text/plain")
                )
                for number in range(asked.get("chunks", 0)):
                    self.chunk(event("PayloadPart", CHUNK + str(asked.get("say", number)).encode()))
                getattr(self, "then_" + asked.get("then", "end"))()

            def head(self, content_type: str, *headers: tuple[str, str]) -> None:
                self.send_response(200)
                for name, value in (("content-type", content_type), *headers):
                    self.send_header(name, value)
                self.end_headers()

            def chunk(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

            def then_end(self) -> None:
                self.wfile.write(b"0\r\n\r\n")

            def then_wait(self) -> None:
                assert self.rfile.read(1) == b"", "the connection was used again in the middle of an answer"
                self.close_connection = True
                service.left.release()

            def then_hang_up(self) -> None:
                self.close_connection = True

            def then_reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

            def then_garble(self) -> None:
                frame = bytearray(event("PayloadPart", CHUNK))
                frame[-6] ^= 1
                self.chunk(bytes(frame))
                self.then_end()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

            def finish(self) -> None:
                with contextlib.suppress(OSError):  # a reset one is closed already
                    super().finish()

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{service.server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # so that `aws` makes clients for this place
    yield service
    aws.client("sagemaker-runtime").close()
    service.close()


@pytest.fixture(autouse=True)
def no_cycles() -> Iterator[None]:
    """What is dropped goes at once, not when Python looks for cycles."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def predictor() -> Predictor:
    return Predictor("streamed")


def left(service: Service) -> bool:
    """Whether a caller has hung up."""
    return service.left.acquire(timeout=DEADLINE_SECONDS)


def works(predictor: Predictor, service: Service) -> int:
    """Ask something else, and see that the answer is its own. Returns the number of the connection."""
    assert predictor.predict({"answer": 42}).output == {"answer": 42}
    return service.connections[-1]


def test_a_stream_that_is_read_to_its_end_gives_its_connection_back(service: Service, predictor: Predictor) -> None:
    with predictor.stream({"chunks": 3}) as chunks:
        assert "".join(chunks) == "chunk 0chunk 1chunk 2"

    assert works(predictor, service) == service.connections[0]


def read_one_and_close(stream: Stream) -> None:
    next(stream)
    stream.close()
    stream.close()


def read_one_and_leave(stream: Stream) -> None:
    with stream:
        next(stream)


def close(stream: Stream) -> None:
    stream.close()


@pytest.mark.parametrize("leave", [read_one_and_close, read_one_and_leave, close, next, lambda stream: None])
def test_a_stream_that_is_not_read_to_its_end_hangs_up(
    service: Service, predictor: Predictor, leave: Callable[[Any], object]
) -> None:
    leave(predictor.stream({"chunks": 3, "then": "wait"}))

    assert left(service)
    assert works(predictor, service) != service.connections[0]


def test_a_stream_is_closed_by_another_thread_than_the_one_that_waits(service: Service, predictor: Predictor) -> None:
    stream = predictor.stream({"chunks": 1, "then": "wait"})
    begun, came = threading.Event(), []

    def read() -> None:
        for chunk in stream:
            came.append(chunk)
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(DEADLINE_SECONDS)
    stream.close()
    reader.join(DEADLINE_SECONDS)

    assert not reader.is_alive()
    assert came == ["chunk 0"]
    assert left(service)
    assert list(stream) == []
    assert works(predictor, service) != service.connections[0]


@pytest.mark.parametrize(
    ("then", "kind"),
    [("hang_up", Unreachable), ("reset", Unreachable), ("wait", Unreachable), ("garble", ServiceError)],
)
def test_a_stream_that_breaks_off_says_so_after_what_came(
    service: Service, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, then: str, kind: type[Exception]
) -> None:
    monkeypatch.setattr(aws, "_RUNTIME_CONFIG", aws._RUNTIME_CONFIG.merge(Config(read_timeout=1.5)))
    stream = predictor.stream({"chunks": 2, "then": then})
    came = []

    with pytest.raises(kind, match="Streaming from 'streamed'"):
        came.extend(stream) if then == "garble" else [came.append(chunk) for chunk in stream]

    assert then == "garble" or came == ["chunk 0", "chunk 1"]
    assert works(predictor, service) != service.connections[0]


# --- coroutines


def test_a_coroutine_that_is_cancelled_while_it_waits_for_a_chunk_hangs_up(
    service: Service, predictor: Predictor
) -> None:
    came = []

    async def read(both: asyncio.Event) -> None:
        async for chunk in predictor.aio.stream({"chunks": 2, "then": "wait"}):
            came.append(chunk)
            if len(came) == 2:
                both.set()

    async def ask() -> None:
        both = asyncio.Event()
        reading = asyncio.create_task(read(both))
        await both.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(ask())

    assert came == ["chunk 0", "chunk 1"]
    assert left(service)
    assert works(predictor, service) != service.connections[0]


def test_a_coroutine_that_is_cancelled_before_the_answer_begins_hangs_up_when_it_does(
    service: Service, predictor: Predictor
) -> None:
    async def ask() -> None:
        asking = asyncio.ensure_future(anext(aiter(predictor.aio.stream({"head": "wait", "then": "wait"}))))
        await asyncio.to_thread(service.asked.acquire)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        service.go.set()
        assert await asyncio.to_thread(left, service)

    asyncio.run(ask())
    assert works(predictor, service) != service.connections[0]


def test_a_coroutine_that_has_enough_hangs_up(service: Service, predictor: Predictor) -> None:
    async def ask() -> None:
        async with contextlib.aclosing(predictor.aio.stream({"chunks": 9, "then": "wait"})) as chunks:
            async for _ in chunks:
                break
        assert await asyncio.to_thread(left, service)

    asyncio.run(ask())
    assert works(predictor, service) != service.connections[0]


def test_a_hundred_streams_of_which_half_are_cancelled(service: Service, predictor: Predictor) -> None:
    async def whole(number: int) -> str:
        return "".join([chunk async for chunk in predictor.aio.stream({"chunks": 5, "say": number})])

    async def cut(number: int) -> None:
        chunks = predictor.aio.stream({"chunks": 1, "say": number, "then": "wait"})
        assert await anext(chunks) == f"chunk {number}"
        waiting = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async def ask() -> list[Any]:
        return await asyncio.gather(*(whole(number) if number % 2 else cut(number) for number in range(100)))

    answers = asyncio.run(ask())

    assert answers == [f"chunk {number}" * 5 if number % 2 else None for number in range(100)]
    assert all(left(service) for _ in range(50))
    works(predictor, service)


def test_coroutines_that_are_cancelled_between_two_attempts_make_no_further_one(
    service: Service, predictor: Predictor
) -> None:
    """As many as there are threads: none of these is left waiting."""

    async def ask() -> Any:
        patient = Retry(longest_asked_seconds=3600)
        asking = [
            asyncio.ensure_future(Predictor(f"busy-{number}").aio.predict({"refuse": 1}, retry=patient))
            for number in range(32)
        ]
        for _ in asking:
            await asyncio.to_thread(service.asked.acquire)
        for one in asking:
            one.cancel()
        assert {type(end) for end in await asyncio.gather(*asking, return_exceptions=True)} == {asyncio.CancelledError}
        return await asyncio.wait_for(predictor.aio.predict({"answer": 42}), DEADLINE_SECONDS)

    assert asyncio.run(ask()).output == {"answer": 42}
    assert len(service.connections) == 33


def test_a_batch_that_is_cancelled_sends_no_more(service: Service, predictor: Predictor) -> None:
    async def ask() -> None:
        asking = asyncio.ensure_future(predictor.aio.predict_batch([{"head": "wait"}] * 50, concurrency=2))
        for _ in range(2):
            await asyncio.to_thread(service.asked.acquire)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        service.go.set()

    asyncio.run(ask())
    works(predictor, service)
    assert len(service.connections) == 3
