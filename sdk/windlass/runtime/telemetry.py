"""What the model server tells others of each invocation: CloudWatch by the embedded metric format, OpenTelemetry by spans.

Both are off unless the environment asks for them, and cost nothing then.

| variable | |
|---|---|
| WINDLASS_EMF_SECONDS | how often to write a line of the embedded metric format to stdout; 0, the default, is never |
| WINDLASS_EMF_DIMENSIONS | as in ``EndpointName=digits,VariantName=main``; each set of values is billed as one metric |
| OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, ... | as OpenTelemetry names them; needs ``windlass[telemetry]`` |

The caller's span is that of the header ``traceparent``, or through SageMaker of ``traceparent=...`` in the custom attributes.

SageMaker sends a container's stdout to CloudWatch Logs, which makes metrics of such lines: no client, no permission, no call in
the way of a request. A line holds at most 100 values of a metric (EMF's limit), so times are a uniform sample of those of its
period, from which percentiles can be read; counts are exact. What hooks measure (see `measures`) goes out whole, in as many
lines as it takes.
"""

from __future__ import annotations

import importlib.util
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from windlass.metrics import NAMESPACE, SERVER
from windlass.runtime.measures import Measure

_MOST_VALUES = 100  # in an array of the embedded metric format
_MOST_DIMENSIONS = 30

_UNITS = {metric.name: metric.unit for metric in SERVER}


@dataclass(frozen=True, slots=True)
class Invoked:
    """One answered invocation. Times are in seconds; ``size`` is 0 for one that never reached the model."""

    status: int
    seconds: float
    queue_seconds: float
    model_seconds: float
    size: int
    request_id: str
    headers: Mapping[bytes, bytes] = field(repr=False)


class Recorder:
    """Gathers what goes into the next lines."""

    def __init__(self, dimensions: Mapping[str, str]) -> None:
        self._dimensions = dict(dimensions)
        self._random = random.Random(0)  # noqa: S311 - which values of a period are kept
        self._clear()

    def _clear(self) -> None:
        self._requests = self._errors = self._refused = self._reached = 0
        self._sample: list[Invoked] = []
        self._measured: dict[tuple[str, str], list[float]] = {}

    def measured(self, measures: Sequence[Measure]) -> None:
        """What hooks have measured."""
        for name, unit, value in measures:
            self._measured.setdefault((name, unit), []).append(value)

    def add(self, invoked: Invoked) -> None:
        self._requests += 1
        self._errors += invoked.status >= 500 and invoked.status != 503
        self._refused += invoked.status in (429, 503)
        if not invoked.size:
            return
        self._reached += 1
        if len(self._sample) < _MOST_VALUES:
            self._sample.append(invoked)
        elif (place := self._random.randrange(self._reached)) < _MOST_VALUES:  # Vitter's algorithm R
            self._sample[place] = invoked

    def lines(self, now: float) -> list[str]:
        """What has been since the last call.

        Args:
            now: seconds since 1970.
        """
        lines = [self._of_the_server(now)] if self._requests else []
        for (name, unit), values in self._measured.items():
            for start in range(0, len(values), _MOST_VALUES):
                part = {name: values[start : start + _MOST_VALUES]}
                lines.append(embedded(part, self._dimensions, {name: unit}, now))
        self._clear()
        return lines

    def _of_the_server(self, now: float) -> str:
        values: dict[str, Any] = {
            "Requests": self._requests,
            "ServerErrors": self._errors,
            "Refused": self._refused,
        }
        if self._sample:
            values["TotalTime"] = [round(each.seconds * 1e3, 3) for each in self._sample]
            values["QueueTime"] = [round(each.queue_seconds * 1e3, 3) for each in self._sample]
            values["ModelTime"] = [round(each.model_seconds * 1e3, 3) for each in self._sample]
            values["BatchSize"] = [each.size for each in self._sample]
        return embedded(values, self._dimensions, {name: _UNITS[name] for name in values}, now)


def embedded(values: Mapping[str, Any], dimensions: Mapping[str, str], units: Mapping[str, str], now: float) -> str:
    """A line of CloudWatch's embedded metric format."""
    metrics = [{"Name": name, "Unit": units[name]} for name in values]
    directive = {"Namespace": NAMESPACE, "Dimensions": [list(dimensions)], "Metrics": metrics}
    head = {"Timestamp": int(now * 1000), "CloudWatchMetrics": [directive]}
    return json.dumps({"_aws": head, **dimensions, **values})


def dimensions(text: str) -> dict[str, str]:
    """``"EndpointName=digits,VariantName=main"`` as a dict.

    Raises:
        ValueError: a part is no NAME=VALUE, or there are more than CloudWatch takes.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    for name, _, value in pairs:
        if not name.strip() or not value.strip():
            raise ValueError(f"{name!r} is no NAME=VALUE")
    if len(pairs) > _MOST_DIMENSIONS:
        raise ValueError(f"more than {_MOST_DIMENSIONS} dimensions")
    return {name.strip(): value.strip() for name, _, value in pairs}


class Spans:
    """A span for each invocation, below the caller's, with one for its wait and one for the model."""

    def __init__(self, env: Mapping[str, str]) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        name = env.get("OTEL_SERVICE_NAME") or "windlass"
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer, self._trace, self._extract = self._provider.get_tracer("windlass"), trace, extract

    @staticmethod
    def wanted(env: Mapping[str, str]) -> bool:
        names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        return any(env.get(name) for name in names) and env.get("OTEL_SDK_DISABLED", "").lower() != "true"

    @staticmethod
    def installed() -> bool:
        return all(
            importlib.util.find_spec(name) for name in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")
        )

    def add(self, invoked: Invoked) -> None:
        end = time.time_ns()
        begin = end - int(invoked.seconds * 1e9)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in invoked.headers.items()}
        # SageMaker hands on no traceparent, but what callers write into the custom attributes.
        for part in headers.get("x-amzn-sagemaker-custom-attributes", "").split(","):
            name, _, value = part.strip().partition("=")
            if name == "traceparent":
                headers.setdefault(name, value)
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "http.response.status_code": invoked.status,
            "windlass.request_id": invoked.request_id,
            "windlass.batch_size": invoked.size,
        }
        span = self._tracer.start_span(
            "invocation",
            context=self._extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=begin,
        )
        if invoked.status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        if invoked.size:
            inside = self._trace.set_span_in_context(span)
            answered = end - int(max(0.0, invoked.seconds - invoked.queue_seconds - invoked.model_seconds) * 1e9)
            started = answered - int(invoked.model_seconds * 1e9)
            waited = started - int(invoked.queue_seconds * 1e9)
            self._tracer.start_span("queue", context=inside, start_time=waited).end(started)
            self._tracer.start_span("model", context=inside, start_time=started).end(answered)
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
