"""Asking a model behind an endpoint, and what it answers. `windlass.endpoints.Endpoint` is how users come here.

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
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from windlass import aws, payloads
from windlass.errors import InvalidInput, ModelFailed, ServiceError, WaitTimeout
from windlass.retries import Budget, Retry

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
    """

    inference_id: str
    output: Any
    latency_ms: float
    at: float
    variant: str = ""
    content_type: str = ""


class Stream(Iterator[Any]):
    """An answer as it comes: ``str`` where its content type is text or JSON, else ``bytes``. Close it to have no more.

        with endpoint.stream("Once upon a time") as chunks:
            for chunk in chunks: print(chunk, end="")

    Attributes:
        inference_id: of the request.
        content_type, variant: of the answer.
    """

    def __init__(self, answer: dict[str, Any], inference_id: str, where: str) -> None:
        self.inference_id, self._where = inference_id, where
        self.content_type: str = answer.get("ContentType", "")
        self.variant: str = answer.get("InvokedProductionVariant", "")
        self._events = answer["Body"]
        kind = self.content_type.partition(";")[0].strip().lower()
        textual = kind.startswith("text/") or "json" in kind
        self._decoder = (
            codecs.getincrementaldecoder("utf-8")() if textual else None
        )  # a character may lie in two chunks
        self._chunks = self._read()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Any:
        return next(self._chunks)

    def close(self) -> None:
        """Hang up; the model server stops."""
        self._chunks.close()
        self._events.close()

    def _read(self) -> Generator[Any, None, None]:
        with aws.errors(self._where):
            for event in self._events:
                part = event.get("PayloadPart", {}).get("Bytes", b"")
                chunk = part if self._decoder is None else self._decoder.decode(part)
                if chunk:
                    yield chunk
        if self._decoder and (rest := self._decoder.decode(b"", final=True)):
            yield rest


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


@dataclass(frozen=True)
class Predictor:
    """One endpoint, as those who ask it see it.

    Args:
        signature: what the model takes and gives, where that is known.
    """

    endpoint: str
    signature: Signature | None = None

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
        """See :meth:`windlass.Endpoint.predict`."""
        where = f"Predicting with '{self.endpoint}'"
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
        )

    def predict_batch(
        self, datas: Iterable[Any], *, concurrency: int = 8, inference_ids: Sequence[str] | None = None, **options: Any
    ) -> list[Prediction]:
        """See :meth:`windlass.Endpoint.predict_batch`."""
        where = f"Predicting with '{self.endpoint}'"
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
        with ThreadPoolExecutor(concurrency, "windlass-predict") as threads:
            running = [
                threads.submit(self.predict, data, inference_id=identity, **options)
                for data, identity in zip(datas, ids, strict=True)
            ]
            try:
                return [future.result() for future in running]
            except BaseException:
                for future in running:
                    future.cancel()
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
        """See :meth:`windlass.Endpoint.stream`."""
        where = f"Streaming from '{self.endpoint}'"
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
        """See :meth:`windlass.Endpoint.predict_async`."""
        where = f"Predicting with '{self.endpoint}'"
        payload, params = self._request(data, content_type, accept, inference_id, None, where)
        uri = f"s3://{bucket}/async-inputs/{self.endpoint}/{uuid.uuid4()}"
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
            "EndpointName": self.endpoint,
            "Body": payload.body,
            "ContentType": payload.content_type,
            "Accept": accept,
            "InferenceId": inference_id or str(uuid.uuid4()),
            **({"TargetVariant": variant} if variant is not None else {}),
        }

    @property
    def _budget(self) -> Budget:
        with _lock:
            return _budgets.setdefault(self.endpoint, Budget())


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
            pause = retry.pause(attempt, random.random())  # noqa: S311 - not a secret
            late = clock.now() + pause >= deadline
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
    that is cancelled stops waiting; its request ends by itself.
    """

    predictor: Predictor

    async def predict(self, data: Any, **options: Any) -> Prediction:
        return await _in_thread(self.predictor.predict, data, **options)

    async def predict_batch(self, datas: Iterable[Any], **options: Any) -> list[Prediction]:
        return await _in_thread(self.predictor.predict_batch, datas, **options)

    async def predict_async(self, data: Any, **options: Any) -> Pending:
        return await _in_thread(self.predictor.predict_async, data, **options)

    async def result(self, pending: Pending, **options: Any) -> Any:
        """Of an asynchronous endpoint."""
        return await _in_thread(pending.result, **options)

    async def stream(self, data: Any, **options: Any) -> AsyncIterator[Any]:
        """``async for chunk in endpoint.aio.stream(prompt)``"""
        chunks = await _in_thread(self.predictor.stream, data, **options)
        end = object()
        try:
            while (chunk := await _in_thread(next, chunks, end)) is not end:
                yield chunk
        finally:
            chunks.close()


@functools.cache
def _waiting() -> ThreadPoolExecutor:
    """Not the pool of `_race`: whoever waits for it would hold the place that it needs."""
    return ThreadPoolExecutor(_MOST_AT_ONCE, "windlass-aio")


async def _in_thread(function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
    call = functools.partial(function, *arguments, **options)
    return await asyncio.get_running_loop().run_in_executor(_waiting(), call)
