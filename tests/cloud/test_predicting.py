"""`endpoint.predict` and its kin against a model server that was really started: types, batches, streams, threads, retries."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

import windlass as wl
from tests.cloud.test_asynchronous import Office
from tests.cloud.test_hosting import Workshop
from windlass import aws
from windlass.artifact import Signature
from windlass.errors import (
    DeploymentFailed,
    InvalidInput,
    ModelFailed,
    ServiceError,
    Throttled,
    Unreachable,
    WaitTimeout,
)
from windlass.predictor import Predictor
from windlass.retries import NEVER, Retry

SIGNATURE = Signature.parse(
    {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch"]}],
    }
)
# Adds up rows; some rows do something else.
CODE = """
import io, json, time
import numpy as np
def model_fn(model_dir):
    return None
def transform_fn(model, body, content_type, accept, context):
    if content_type == "application/x-npy":
        rows = np.load(io.BytesIO(body), allow_pickle=False)
    else:
        rows = json.loads(body)
        if isinstance(rows, dict) and "say" in rows:
            return (word for word in rows["say"].split("|")), "text/plain; charset=utf-8"
        if isinstance(rows, dict) and "raw" in rows:
            return iter([bytes(rows["raw"])]), "text/plain"
        if isinstance(rows, dict) and "break" in rows:
            return said(), "text/plain"
        if isinstance(rows, dict) and "attributes" in rows:
            return json.dumps(context.custom_attributes), "application/json"
        if isinstance(rows, dict):
            rows = rows["x"]
        if rows == "raise":
            raise ValueError("three channels expected")
        if rows == "sleep":
            time.sleep(20)
    return json.dumps({"y": np.asarray(rows, dtype=np.float32).sum(axis=1).tolist()}), "application/json"
def said():
    yield "begun"
    raise ValueError("no more")
"""


@pytest.fixture(scope="module")
def workshop(rig: Any) -> Iterator[Workshop]:
    workshop = Workshop(rig)
    workshop.create(workshop.config("v1", CODE))
    yield workshop
    workshop.close()


@pytest.fixture
def endpoint(workshop: Workshop, foundation: object) -> wl.Endpoint:
    return wl.Endpoint.from_name(workshop.endpoint)


@pytest.fixture
def typed(workshop: Workshop, foundation: object) -> Predictor:
    return Predictor(workshop.endpoint, SIGNATURE)


def test_types_come_back_as_they_went(typed: Predictor) -> None:
    rows = np.array([[1, 2], [3, 4]], np.float32)

    answer = typed.predict(rows)

    assert answer.output["y"].dtype == np.float32
    assert answer.output["y"].tolist() == [3, 7]
    assert typed.predict([[1, 2]]).output == {"y": [3]}
    assert typed.predict({"x": [1, 2]}).output == {"y": [3]}
    assert typed.predict(torch.tensor([[5.0, 6.0]])).output["y"].equal(torch.tensor([11.0]))


def test_a_wrong_input_never_reaches_the_endpoint(typed: Predictor) -> None:
    elsewhere = replace(typed, name="nowhere")

    with pytest.raises(InvalidInput, match=r"Predicting with 'nowhere': input 'x': shape \(1, 3\) came"):
        elsewhere.predict([[1, 2, 3]])


def test_an_endpoint_without_a_registered_version_takes_anything(endpoint: wl.Endpoint) -> None:
    assert endpoint.signature is None
    assert endpoint.predict([[1, 2]]).output == {"y": [3]}
    assert endpoint.refresh() == endpoint  # what was looked up is no part of what it is


def test_a_batch_comes_back_in_order(endpoint: wl.Endpoint) -> None:
    answers = endpoint.predict_batch(
        ([[n, n]] for n in range(40)), concurrency=8, inference_ids=[f"id-{n}" for n in range(40)]
    )

    assert [answer.output["y"] for answer in answers] == [[2 * n] for n in range(40)]
    assert [answer.inference_id for answer in answers] == [f"id-{n}" for n in range(40)]
    assert endpoint.predict_batch([]) == []


def test_a_batch_with_a_wrong_item_says_which_and_sends_nothing(typed: Predictor) -> None:
    elsewhere = replace(typed, name="nowhere")

    with pytest.raises(InvalidInput, match="item 1 of 3: input 'x'"):
        elsewhere.predict_batch([[[1, 2]], [[1]], [[3, 4]]])


@pytest.mark.parametrize(
    ("options", "says"), [({"concurrency": 0}, "concurrency=0"), ({"inference_ids": ["one"]}, "1 inference_ids for 2")]
)
def test_a_batch_is_asked_for_sensibly(endpoint: wl.Endpoint, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        endpoint.predict_batch([1, 2], **options)


def test_a_failing_item_fails_the_batch_with_its_own_error(endpoint: wl.Endpoint) -> None:
    with pytest.raises(ModelFailed, match="three channels expected"):
        endpoint.predict_batch([[[1, 2]], "raise", [[3, 4]]])


def test_a_stream_is_text_whatever_the_cuts(endpoint: wl.Endpoint) -> None:
    with endpoint.stream({"say": "naïve| ☃ |snow"}) as chunks:
        assert "".join(chunks) == "naïve ☃ snow"

    assert chunks.content_type.startswith("text/plain")
    assert chunks.variant == "main"


@pytest.mark.parametrize("octets", [[97, 255], [97, 0xE2, 0x98]], ids=["no UTF-8", "half a character"])
def test_a_stream_of_text_that_is_none_says_so(endpoint: wl.Endpoint, octets: list[int]) -> None:
    with (
        pytest.raises(DeploymentFailed, match="is not text/plain in UTF-8"),
        endpoint.stream({"raw": octets}) as chunks,
    ):
        list(chunks)


def test_a_stream_that_breaks_off_is_an_error_after_what_came(endpoint: wl.Endpoint) -> None:
    stream = endpoint.stream({"break": 1})

    assert next(stream) == "begun"
    with pytest.raises(ModelFailed, match="Streaming from"):
        list(stream)


def test_coroutines_ask_at_once(endpoint: wl.Endpoint) -> None:
    async def ask() -> tuple[list[Any], str]:
        found = await asyncio.gather(*(endpoint.aio.predict([[n, n]]) for n in range(12)))
        words = [chunk async for chunk in endpoint.aio.stream({"say": "a|b"})]
        return [answer.output["y"][0] for answer in found], "".join(words)

    assert asyncio.run(ask()) == ([2 * n for n in range(12)], "ab")


def test_a_deadline_goes_with_the_request_and_ends_the_wait(endpoint: wl.Endpoint) -> None:
    told = endpoint.predict({"attributes": 1}, custom_attributes="trace=1", timeout_seconds=30).output
    trace, _, deadline = told.partition(",timeout-ms=")

    assert trace == "trace=1"
    assert 29_000 < int(deadline) <= 30_000
    with pytest.raises((WaitTimeout, ModelFailed), match=r"deadline|within"):
        endpoint.predict("sleep", timeout_seconds=0.3)


# -- a service that fails as told, for what a healthy one does not do -----------------------------------------------------


class Service:
    """Answers InvokeEndpoint with what is laid out, in turn; then with 200."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str, dict[str, Any]] | str] = []
        self.requests: list[str] = []
        self.retry_after = ""
        self.connections = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                service.connections += 1

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                service.requests.append(self.headers["X-Amzn-SageMaker-Inference-Id"])
                answer = service.answers.pop(0) if service.answers else (200, "", {"y": [1]})
                if answer == "hang up":
                    self.close_connection = True
                    return
                if answer == "reset":  # by a packet that says so, in place of an orderly end
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                if answer == "half":
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"y": [')
                    self.close_connection = True
                    return
                if answer == "never":
                    service.wake.wait(20)
                    answer = (200, "", {"y": [0]})
                status, code, content = answer
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                if code:
                    self.send_header("x-amzn-ErrorType", code)
                if status != 200 and service.retry_after:
                    self.send_header("retry-after", service.retry_after)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.wake = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.wake.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, rig: Any) -> Iterator[Service]:
    import boto3

    service = Service()
    for name, value in {**rig.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{service.server.server_port}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # so that `aws` makes clients for this place
    yield service
    service.close()


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def clock(naps: list[float]) -> aws.Clock:
    return aws.Clock(now=lambda: sum(naps), sleep=naps.append)


THROTTLED = (400, "ThrottlingException", {"message": "Rate exceeded"})
FULL = (424, "ModelError", {"Message": "busy", "OriginalStatusCode": 503, "OriginalMessage": "the queue is full"})
BROKEN = (500, "InternalFailure", {"Message": "try again"})
UNAVAILABLE = (503, "ServiceUnavailable", {"Message": "no instance is healthy"})
RAISED = (424, "ModelError", {"Message": "bad", "OriginalStatusCode": 500, "OriginalMessage": "ValueError"})


@pytest.mark.parametrize("answer", [THROTTLED, FULL, UNAVAILABLE])
def test_what_was_refused_before_the_model_ran_is_asked_again(
    service: Service, clock: aws.Clock, naps: list[float], answer: Any
) -> None:
    service.answers = [answer, answer]

    prediction = Predictor("retried").predict([1], clock=clock)

    assert prediction.output == {"y": [1]}
    assert service.requests == [prediction.inference_id] * 3
    assert len(naps) == 2
    assert naps[0] <= 0.1
    assert naps[1] <= 0.2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (RAISED, ModelFailed),
        ("hang up", Unreachable),
        ("reset", Unreachable),
        ("half", Unreachable),
        (BROKEN, ServiceError),
    ],
)
def test_what_the_model_may_have_seen_is_asked_once_unless_that_is_harmless(
    service: Service, clock: aws.Clock, answer: Any, kind: type[Exception]
) -> None:
    service.answers = [answer]
    with pytest.raises(kind):
        Predictor("careful").predict([1], clock=clock)
    assert len(service.requests) == 1

    service.answers = [answer]
    assert Predictor("careful").predict([1], retry=Retry(idempotent=True), clock=clock).output == {"y": [1]}
    assert len(service.requests) == 3


FULL_IN_WORDS = (424, "ModelError", {**FULL[2], "OriginalMessage": "the queue is full. Retry after 5 s.\n"})
EPOCH_PLUS_5 = "Thu, 01 Jan 1970 00:00:05 GMT"  # by the clock of these tests it is 0 at first


@pytest.mark.parametrize(
    ("answer", "header"), [(UNAVAILABLE, "5"), (THROTTLED, EPOCH_PLUS_5), (FULL_IN_WORDS, "")], ids=str
)
def test_a_server_that_says_when_is_asked_again_then(
    service: Service, clock: aws.Clock, naps: list[float], answer: Any, header: str
) -> None:
    service.answers, service.retry_after = [answer], header

    assert Predictor("told").predict([1], clock=clock).output == {"y": [1]}
    assert 5 <= naps[0] <= 5.1


@pytest.mark.parametrize(("header", "timeout_seconds"), [("5", 4.9), ("21", None)])
def test_a_server_that_asks_for_too_much_patience_is_not_asked_again(
    service: Service, clock: aws.Clock, naps: list[float], header: str, timeout_seconds: float | None
) -> None:
    service.answers, service.retry_after = [UNAVAILABLE], header

    with pytest.raises(ServiceError):
        Predictor("told").predict([1], timeout_seconds=timeout_seconds, clock=clock)

    assert (len(service.requests), naps) == (1, [])


def test_it_gives_up_after_its_attempts_and_says_how_many(service: Service, clock: aws.Clock) -> None:
    service.answers = [THROTTLED] * 5

    with pytest.raises(Throttled, match="after 3 attempts"):
        Predictor("patient").predict([1], clock=clock)

    assert len(service.requests) == 3


def test_never_and_an_empty_budget_ask_once(service: Service, clock: aws.Clock) -> None:
    service.answers = [THROTTLED] * 100
    predictor = Predictor("spent")
    with pytest.raises(Throttled):
        predictor.predict([1], retry=NEVER, clock=clock)
    assert len(service.requests) == 1

    for _ in range(30):
        with pytest.raises(Throttled):
            predictor.predict([1], clock=clock)

    assert len(service.requests) == pytest.approx(1 + 30 + 10 + 3, abs=1)  # ten saved up, and a tenth of those asked


def test_retries_end_with_the_deadline(service: Service, clock: aws.Clock) -> None:
    service.answers = [THROTTLED] * 5
    late = Retry(first_pause_seconds=1e6, longest_pause_seconds=1e6)

    with pytest.raises(Throttled):
        Predictor("late").predict([1], retry=late, timeout_seconds=0.5, clock=clock)

    assert len(service.requests) == 1


def test_a_slow_answer_is_hedged_by_a_second_request_of_the_same_id(service: Service) -> None:
    service.answers = ["never"]

    prediction = Predictor("hedged").predict([1], hedge_after_seconds=0.05)

    assert prediction.output == {"y": [1]}
    assert service.requests == [prediction.inference_id] * 2


def test_a_fast_answer_is_not_hedged(service: Service) -> None:
    Predictor("hedged").predict([1], hedge_after_seconds=10)

    assert len(service.requests) == 1


def test_a_hedged_request_fails_as_any_other(service: Service) -> None:
    service.answers = [RAISED]

    with pytest.raises(ModelFailed):
        Predictor("hedged").predict([1], hedge_after_seconds=10)


def test_a_connection_that_broke_is_made_anew_and_the_others_stay(service: Service) -> None:
    service.answers = ["reset"]
    with pytest.raises(Unreachable):
        Predictor("anew").predict([1], retry=NEVER)

    assert [Predictor("anew").predict([1]).output for _ in range(3)] == [{"y": [1]}] * 3
    assert service.connections == 2


def test_connections_are_kept(service: Service) -> None:
    for _ in range(5):
        Predictor("kept").predict([1])

    assert service.connections == 1


def test_a_stream_is_asked_again_only_before_it_begins(service: Service, clock: aws.Clock) -> None:
    service.answers = [THROTTLED]

    Predictor("streamed").stream([1], clock=clock).close()

    assert len(service.requests) == 2


def test_an_asynchronous_answer_is_waited_for(rig: Any, foundation: Any) -> None:
    office = Office(rig)
    try:
        office.open()
        endpoint = wl.Endpoint.from_name(office.endpoint)

        pending = endpoint.predict_async([1, 2], bucket=office.bucket, inference_id="later")
        assert pending.inference_id == "later"
        assert pending.result(timeout_seconds=30) == {"version": "v1", "echo": [1, 2]}

        failing = endpoint.predict_async("raise", bucket=office.bucket)
        with pytest.raises(ModelFailed, match="three channels expected"):
            failing.result(timeout_seconds=30)
    finally:
        office.close()


def test_an_endpoint_describes_itself_for_other_languages(endpoint: wl.Endpoint) -> None:
    page = endpoint.openapi()

    assert page["openapi"].startswith("3.1")
    assert list(page["paths"]) == [f"/endpoints/{endpoint.name}/invocations"]
