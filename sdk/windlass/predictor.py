"""Asking a model behind an endpoint, and what it answers. `windlass.Endpoint` has these verbs; a `Predictor` knows no more.

    predictor = Predictor("digits", signature)
    predictor.predict(pixels)                          # -> Prediction
    predictor.predict_batch(many)                      # -> [Prediction, ...], in order, several at once
    for chunk in predictor.stream(prompt): ...
    pending = predictor.predict_async(data, bucket="my-bucket")     # asynchronous endpoints
    await Aio(predictor).predict(pixels)               # the same verbs as coroutines

Connections are kept and shared by all threads. What is sent again, and when, is in `retries`; what is sent, in `payloads`.
"""

from __future__ import annotations

import asyncio
import codecs
import functools
import math
import random
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from windlass import aws, payloads
from windlass.errors import DeploymentFailed, InvalidInput, ModelFailed, ServiceError, WaitTimeout
from windlass.retries import Budget, Retry, asked_seconds

if TYPE_CHECKING:
    from windlass.artifact import Signature

T = TypeVar("T")

RETRY = Retry()
_MOST_AT_ONCE = 32  # connections that the client of `aws` keeps
_budgets: dict[str, Budget] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Prediction:
    """One answer of the model.

    Attributes:
        inference_id: what :meth:`Endpoint.label` takes, days later if need be.
        output: as the types that were sent: arrays for arrays, tensors for tensors, Python values for JSON; by the answer's
            content type otherwise: NPY an array, text ``str``, else ``bytes``. See `windlass.payloads`.
        latency_ms: as the caller saw it, network and retries included.
        at: when it was answered, in seconds since the epoch.
        request_id: AWS's, of the call that was answered.
    """

    inference_id: str
    output: Any
    latency_ms: float
    at: float
    variant: str = ""
    content_type: str = ""
    request_id: str = ""


class Stream(Iterator[Any]):
    """An answer as it comes: ``str`` where its content type is text or JSON, else ``bytes``. Close it to have no more: its
    connection is closed then, too. One that is dropped is closed.

        with endpoint.stream("Once upon a time") as chunks:
            for chunk in chunks: print(chunk, end="")

    Attributes:
        inference_id: of the request.
        content_type, variant: of the answer.
    """

    def __init__(self, answer: dict[str, Any], inference_id: str, where: str) -> None:
        self.inference_id = inference_id
        self.content_type: str = answer.get("ContentType", "")
        self.variant: str = answer.get("InvokedProductionVariant", "")
        self._events = answer["Body"]
        kind = self.content_type.partition(";")[0].strip().lower()
        textual = kind.startswith("text/") or "json" in kind
        self._chunks = _chunks(self._events, self.content_type if textual else "", where)
        self._reading, self._closed = threading.Lock(), False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_reading"):
            self.close()

    def __next__(self) -> Any:
        try:
            with self._reading:
                return next(self._chunks)
        except ServiceError:
            if self._closed:
                raise StopIteration from None  # what broke it off was `close`
            raise
        finally:
            if self._closed:
                self.close()

    def close(self) -> None:
        """Hang up; the model server stops. From any thread: one that waits for the next chunk sees the end."""
        self._closed = True
        if self._reading.acquire(blocking=False):
            try:
                self._chunks.close()
                self._events.close()  # again, for one that was never begun
            finally:
                self._reading.release()
        else:
            aws.hang_up(self._events)  # and whoever reads it closes it


# No method: a generator that holds its owner keeps it, and the connection, until Python looks for cycles.
def _chunks(events: Any, text_type: str, where: str) -> Generator[Any, None, None]:
    # A character may lie in two parts.
    decoder = codecs.getincrementaldecoder("utf-8")() if text_type else None

    def decoded(part: bytes, *, final: bool = False) -> Any:
        try:
            return part if decoder is None else decoder.decode(part, final=final)
        except UnicodeDecodeError as error:
            raise DeploymentFailed(f"the model's answer is not {text_type} in UTF-8: {error}", where=where) from error

    try:
        with aws.errors(where):
            for event in events:
                if chunk := decoded(event.get("PayloadPart", {}).get("Bytes", b"")):
                    yield chunk
        if rest := decoded(b"", final=True):
            yield rest
    finally:
        events.close()  # its connection: back to the others at the end of the answer, closed before that


@dataclass(frozen=True)
class Pending:
    """A request that an asynchronous endpoint took. The answer will lie in S3.

    Attributes:
        output_uri, failure_uri: where it will be, or why there is none.
    """

    inference_id: str
    output_uri: str
    failure_uri: str
    accept: str = field(default="application/json", repr=False)
    form: payloads.Form = field(default="plain", repr=False)
    signature: Signature | None = field(default=None, repr=False)
    where: str = field(default="Predicting", repr=False)

    def done(self) -> bool:
        return aws.exists(self.output_uri) or self._failed()

    def result(self, *, timeout_seconds: float = 900, clock: aws.Clock = aws.CLOCK) -> Any:
        """Wait for the answer; decoded, as :attr:`Prediction.output` is.

        Raises:
            ModelFailed: with what the model said.
            WaitTimeout: it goes on, and can be asked for again.
        """
        hint = f"It will be at {self.output_uri}."
        aws.poll(self.where, self.done, bool, timeout_seconds=timeout_seconds, clock=clock, hint=hint)
        if not aws.exists(self.output_uri):
            said = aws.get_bytes(self.failure_uri).decode(errors="replace")
            raise ModelFailed(said, where=self.where, code="ModelError", operation="InvokeEndpointAsync")
        bucket, key = aws.split(self.output_uri, self.where)
        answer = aws.call(self.where, aws.client("s3").get_object, Bucket=bucket, Key=key)
        with aws.errors(self.where):
            raw = answer["Body"].read()
        kind = answer.get("ContentType", "")
        if kind in ("", "binary/octet-stream"):  # what S3 says of objects whose writer said nothing
            kind = self.accept
        return payloads.decode(raw, kind, self.form, self.signature, self.where)

    def _failed(self) -> bool:
        return bool(self.failure_uri) and aws.exists(self.failure_uri)


class Asking:
    """The verbs of those who ask an endpoint.

    Attributes:
        name: the endpoint's.
        signature: what the model takes and gives, where that is known.
    """

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...
        @property
        def signature(self) -> Signature | None: ...

    @property
    def aio(self) -> Aio:
        """The same verbs as coroutines: ``await endpoint.aio.predict(pixels)``."""
        return Aio(self)

    def predict(
        self,
        data: Any,
        *,
        content_type: str | None = None,
        accept: str = "application/json",
        inference_id: str | None = None,
        target_model: str | None = None,
        target_variant: str | None = None,
        custom_attributes: str = "",
        timeout_seconds: float | None = None,
        retry: Retry = RETRY,
        hedge_after_seconds: float | None = None,
        clock: aws.Clock = aws.CLOCK,
    ) -> Prediction:
        """Ask the model.

            endpoint.predict({"image": [[0, 5, ...], ...]}).output["label"]
            endpoint.predict(array)                                  # NumPy in, NumPy out
            endpoint.predict(frame, timeout_seconds=0.2)             # pandas in and out, or WaitTimeout

        Args:
            data: dict, list, number or str; NumPy array, torch tensor, PIL image, pandas DataFrame or Series; a dict of
                those by input name; or bytes, with ``content_type``. `windlass.payloads` lists what each goes out as. One
                example without its batch dimension is sent as a batch of one.
            accept: the media type of the answer.
            inference_id: your own id, at most 64 characters; by default a new UUID.
            target_model: of a multi-model endpoint: ``digits.tar.gz``.
            target_variant: this production variant, whatever the weights.
            custom_attributes: reach the model's hooks, as ``X-Amzn-SageMaker-Custom-Attributes``.
            timeout_seconds: for all, retries included. The model server hears of it, and drops what would come too late.
            retry: when to ask again; `windlass.retries` says when that is safe.
            hedge_after_seconds: ask a second time when there is no answer by then, and take the first that comes. The model
                then works twice; a little above the usual p95 is a good value.

        Raises:
            InvalidInput: which input, what came, and what the model takes. Nothing was sent.
            ModelFailed: the model raised; the message holds what it said.
            WaitTimeout: no answer in time.
            NotFound: no such endpoint.
        """
        where = f"Predicting with '{self.name}'"
        payload, params = self._request(data, content_type, accept, inference_id, target_variant, where)
        if target_model is not None:
            params["TargetModel"] = target_model
        start = clock.now()
        deadline = start + timeout_seconds if timeout_seconds is not None else math.inf
        invoke = aws.client("sagemaker-runtime").invoke_endpoint

        def ask() -> tuple[dict[str, Any], bytes]:
            attributes = _attributes(custom_attributes, deadline - clock.now())
            answer = aws.call(where, invoke, **params, **attributes)
            with aws.errors(where):
                return answer, answer["Body"].read()

        def once() -> tuple[dict[str, Any], bytes]:
            left = deadline - clock.now()
            return ask() if hedge_after_seconds is None and left == math.inf else _race(ask, hedge_after_seconds, left)

        answer, raw = _retrying(once, retry, self._budget, deadline, where, clock)
        end = clock.now()
        kind = answer.get("ContentType", "")
        return Prediction(
            inference_id=params["InferenceId"],
            output=payloads.decode(raw, kind, payload.form, self.signature, where),
            latency_ms=(end - start) * 1000,
            at=end,
            variant=answer.get("InvokedProductionVariant", ""),
            content_type=kind,
            request_id=answer.get("ResponseMetadata", {}).get("RequestId", ""),
        )

    def predict_batch(
        self, datas: Iterable[Any], *, concurrency: int = 8, inference_ids: Sequence[str] | None = None, **options: Any
    ) -> list[Prediction]:
        """Ask for many, several at once, so that the model server can batch them; answers in the order of ``datas``.

            endpoint.predict_batch(images, concurrency=16)

        Args:
            concurrency: requests under way at a time, 1 to 32.
            inference_ids: one for each.
            options: of :meth:`predict`, for each request.

        Raises:
            InvalidInput: an item is wrong, and which. Nothing was sent.
            ServiceError: the first that failed, in order; those not yet begun are not sent.
        """
        return self._predict_all(datas, concurrency, inference_ids, options, threading.Event())

    def _predict_all(
        self,
        datas: Iterable[Any],
        concurrency: int,
        inference_ids: Sequence[str] | None,
        options: dict[str, Any],
        given_up: threading.Event,
    ) -> list[Prediction]:
        """As `predict_batch`, until `given_up` is set: what has not been sent by then is not."""
        where = f"Predicting with '{self.name}'"
        datas = list(datas)
        if inference_ids is not None and len(inference_ids) != len(datas):
            raise InvalidInput(f"{len(inference_ids)} inference_ids for {len(datas)} inputs", where=where)
        if not 1 <= concurrency <= _MOST_AT_ONCE:
            raise InvalidInput(f"concurrency={concurrency!r} is not from 1 to {_MOST_AT_ONCE}", where=where)
        for index, data in enumerate(datas):  # before the first is sent
            try:
                payloads.encode(data, options.get("content_type"), signature=self.signature, where=where)
            except InvalidInput as error:
                error.what = f"item {index} of {len(datas)}: {error.what}"
                raise
        ids: Sequence[str | None] = inference_ids or [None] * len(datas)

        def ask(data: Any, identity: str | None) -> Prediction:
            if given_up.is_set():
                raise CancelledError
            return self.predict(data, inference_id=identity, **options)

        with ThreadPoolExecutor(concurrency, "windlass-predict") as threads:
            running = [threads.submit(ask, data, identity) for data, identity in zip(datas, ids, strict=True)]
            try:
                return [future.result() for future in running]
            except BaseException:
                given_up.set()
                raise

    def stream(
        self,
        data: Any,
        *,
        content_type: str | None = None,
        accept: str = "application/json",
        inference_id: str | None = None,
        target_variant: str | None = None,
        custom_attributes: str = "",
        retry: Retry = RETRY,
        clock: aws.Clock = aws.CLOCK,
    ) -> Stream:
        """Ask, and read the answer as the model makes it. It is never asked again once the answer has begun.

            for chunk in endpoint.stream({"prompt": "Once"}): print(chunk, end="")

        Raises:
            InvalidInput, NotFound: as :meth:`predict`.
            ModelFailed: while it is read: the model broke off. What came before stands.
            Unreachable: while it is read: the connection broke off, or nothing came for 70 s.
        """
        where = f"Streaming from '{self.name}'"
        _, params = self._request(data, content_type, accept, inference_id, target_variant, where)
        invoke = aws.client("sagemaker-runtime").invoke_endpoint_with_response_stream
        attributes = _attributes(custom_attributes, math.inf)

        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = aws.call(where, invoke, **params, **attributes)
            return answer

        # Only until the answer begins: what has been read cannot be taken back.
        answer = _retrying(ask, retry, self._budget, math.inf, where, clock)
        return Stream(answer, params["InferenceId"], where)

    def predict_async(
        self,
        data: Any,
        *,
        bucket: str,
        content_type: str | None = None,
        accept: str = "application/json",
        inference_id: str | None = None,
        custom_attributes: str = "",
        timeout_seconds: int | None = None,
        retry: Retry = RETRY,
        clock: aws.Clock = aws.CLOCK,
    ) -> Pending:
        """Ask an asynchronous endpoint: input and answer lie in S3, and it may take up to an hour.

            pending = endpoint.predict_async(video, content_type="video/mp4")
            pending.result(timeout_seconds=900)

        Args:
            bucket: for the input. An :class:`windlass.Endpoint` takes its project's own.
            timeout_seconds: for the model, at most 3600. The others are those of :meth:`predict`.
        """
        where = f"Predicting with '{self.name}'"
        payload, params = self._request(data, content_type, accept, inference_id, None, where)
        uri = f"s3://{bucket}/async-inputs/{self.name}/{uuid.uuid4()}"
        aws.put_bytes(uri, params.pop("Body"), payload.content_type)
        if timeout_seconds is not None:
            params["InvocationTimeoutSeconds"] = timeout_seconds
        invoke = aws.client("sagemaker-runtime").invoke_endpoint_async
        attributes = _attributes(custom_attributes, math.inf)

        def ask() -> dict[str, Any]:
            taken: dict[str, Any] = aws.call(where, invoke, **params, **attributes, InputLocation=uri)
            return taken

        taken = _retrying(ask, retry, self._budget, math.inf, where, clock)
        output, failure = taken["OutputLocation"], taken.get("FailureLocation", "")
        return Pending(params["InferenceId"], output, failure, accept, payload.form, self.signature, where)

    def _request(
        self,
        data: Any,
        content_type: str | None,
        accept: str,
        inference_id: str | None,
        variant: str | None,
        where: str,
    ) -> tuple[payloads.Payload, dict[str, Any]]:
        payload = payloads.encode(data, content_type, signature=self.signature, where=where)
        return payload, {
            "EndpointName": self.name,
            "Body": payload.body,
            "ContentType": payload.content_type,
            "Accept": accept,
            "InferenceId": inference_id or str(uuid.uuid4()),
            **({"TargetVariant": variant} if variant is not None else {}),
        }

    @property
    def _budget(self) -> Budget:
        with _lock:
            return _budgets.setdefault(self.name, Budget())


@dataclass(frozen=True)
class Predictor(Asking):
    """An endpoint of which no more than its name is known, and what its model takes, if that is."""

    name: str
    signature: Signature | None = None


def _attributes(given: str, seconds: float) -> dict[str, str]:
    """Custom attributes with the deadline, by which the model server drops what comes too late for its caller."""
    parts = [given] if given else []
    if seconds != math.inf:
        parts.append(f"timeout-ms={max(1, round(seconds * 1000))}")
    return {"CustomAttributes": ",".join(parts)} if parts else {}


def _retrying(ask: Callable[[], T], retry: Retry, budget: Budget, deadline: float, where: str, clock: aws.Clock) -> T:
    """The answer, asked for again where that is safe, affordable, and in time."""
    budget.earn()
    attempt = 1
    while True:
        try:
            return ask()
        except ServiceError as error:
            now = clock.now()
            pause = retry.pause(attempt, random.random(), asked_seconds(error, now))  # noqa: S311 - not a secret
            late = now + pause >= deadline
            if attempt >= retry.attempts or not retry.allows(error) or late or not budget.spend():
                if attempt > 1:
                    error.what = f"{error.what} (after {attempt} attempts)"
                raise
            clock.sleep(pause)
            attempt += 1


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """For requests that may be given up: boto3 cannot be interrupted, so its thread is left to end by itself."""
    return ThreadPoolExecutor(_MOST_AT_ONCE, "windlass-predict")


def _race(ask: Callable[[], T], hedge_after: float | None, left: float) -> T:
    """The first answer of one request or, when that is slow, of two.

    Raises:
        WaitTimeout: there was none in time.
    """
    patience = None if left == math.inf else max(0.0, left)
    running: set[Future[T]] = {_threads().submit(ask)}
    if hedge_after is not None and (patience is None or hedge_after < patience):
        done, _ = wait(running, hedge_after)
        patience = None if patience is None else patience - hedge_after
        if not done:
            running.add(_threads().submit(ask))
    failed: BaseException | None = None
    while running:
        done, running = wait(running, patience, FIRST_COMPLETED)
        if not done:
            raise WaitTimeout(f"no answer within its deadline, {left:.3g} s away when it was sent", hint=_LATE)
        for future in done:
            failed = future.exception()
            if failed is None:
                return future.result()
    assert failed
    raise failed


_LATE = "Give more timeout_seconds=, or a faster instance; the model may still be at work."


@dataclass(frozen=True)
class Aio:
    """The verbs as coroutines: ``await endpoint.aio.predict(pixels)``.

    boto3 has no asyncio, so each request waits in a thread of a pool, as many at once as there are connections. A coroutine
    that is cancelled stops waiting at once. A stream's connection is closed with it, so that the model stops; a prediction that
    is under way ends by itself; what has not been sent is not.
    """

    predictor: Asking

    async def predict(self, data: Any, **options: Any) -> Prediction:
        return await _ask(self.predictor.predict, data, **options)

    async def predict_batch(
        self, datas: Iterable[Any], *, concurrency: int = 8, inference_ids: Sequence[str] | None = None, **options: Any
    ) -> list[Prediction]:
        given_up = threading.Event()
        ask, options = self.predictor._predict_all, {"clock": _clock(given_up), **options}
        try:
            return await _in_thread(ask, datas, concurrency, inference_ids, options, given_up)
        finally:
            given_up.set()

    async def predict_async(self, data: Any, **options: Any) -> Pending:
        return await _ask(self.predictor.predict_async, data, **options)

    async def result(self, pending: Pending, **options: Any) -> Any:
        """Of an asynchronous endpoint."""
        return await _ask(pending.result, **options)

    async def stream(self, data: Any, **options: Any) -> AsyncIterator[Any]:
        """``async for chunk in endpoint.aio.stream(prompt)``"""
        # A stream that begins when nobody waits for it any more is dropped, and so closed.
        chunks = await _in_thread(self.predictor.stream, data, **options)
        end = object()
        try:
            while (chunk := await _in_thread(next, chunks, end)) is not end:
                yield chunk
        finally:
            chunks.close()


async def _ask(verb: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
    """A verb in a thread, which waits for no further attempt when nobody waits for it."""
    given_up = threading.Event()
    try:
        return await _in_thread(verb, *arguments, **{"clock": _clock(given_up), **options})
    finally:
        given_up.set()


def _clock(given_up: threading.Event) -> aws.Clock:
    """Whose sleep ends when nobody waits any more."""

    def sleep(seconds: float) -> None:
        if given_up.wait(seconds):
            raise CancelledError

    return aws.Clock(sleep=sleep)


@functools.cache
def _waiting() -> ThreadPoolExecutor:
    """Not the pool of `_race`: whoever waits for it would hold the place that it needs."""
    return ThreadPoolExecutor(_MOST_AT_ONCE, "windlass-aio")


async def _in_thread(function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
    return await asyncio.wrap_future(_waiting().submit(function, *arguments, **options))
