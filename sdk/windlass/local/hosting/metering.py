"""What SageMaker itself publishes about an endpoint: the namespace AWS/SageMaker.

A request only appends to a list; :meth:`Meter.flush`, called about once a second, hands the samples to the metric store.
Names, units and dimensions: the guide "Amazon SageMaker AI metrics in Amazon CloudWatch".
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from windlass.local.cloudwatch.metric_store import Datum, Metric, MetricStore

NAMESPACE = "AWS/SageMaker"

FINE_SECONDS = 10
HIGH_RESOLUTION = frozenset({"ConcurrentRequestsPerModel"})
"""What AWS publishes every 10 seconds instead of every minute, so that scaling sees a crowd early."""


@dataclass(frozen=True)
class Sample:
    """One invocation that reached a variant.

    Attributes:
        config: the endpoint config that answered, as a further dimension; None leaves it out.
        status: of the model server's answer; None when it gave none.
        model_seconds: until it had answered; None when it gave none.
        overhead_seconds: what the service itself added.
        instances: healthy instances of the variant; None: it is serverless, and has none.
        concurrent: requests that its instance was answering, this one included.
        more: what only some invocations have: (name, value, unit).
    """

    region: str
    endpoint: str
    variant: str
    config: str | None
    at: float
    status: int | None
    model_seconds: float | None
    overhead_seconds: float
    instances: int | None
    concurrent: int
    more: tuple[tuple[str, float, str], ...] = ()

    def values(self) -> Iterator[tuple[str, float, str]]:
        """Name, value and unit of each metric that this invocation adds to."""
        status = self.status or 500
        yield "Invocations", 1, "None"
        if self.instances is not None:
            yield "InvocationsPerInstance", 1 / max(1, self.instances), "None"
            yield "ConcurrentRequestsPerModel", self.concurrent, "None"
        # A zero for each success: their average is the error rate, which is what alarms watch.
        yield "Invocation4XXErrors", float(400 <= status < 500), "None"
        yield "Invocation5XXErrors", float(status >= 500), "None"
        yield "InvocationModelErrors", float(not 200 <= status < 300), "None"
        yield "OverheadLatency", self.overhead_seconds * 1e6, "Microseconds"
        if self.model_seconds is not None:
            yield "ModelLatency", self.model_seconds * 1e6, "Microseconds"
        yield from self.more


class Meter:
    """Samples on their way to the store."""

    def __init__(self, store: MetricStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Count one invocation."""
        with self._lock:
            self._samples.append(sample)

    def flush(self) -> None:
        """Hand over what has gathered, one datum for each metric and minute, or 10 seconds."""
        with self._lock:
            samples, self._samples = self._samples, []
        minutes = self._store.minute
        gathered: dict[str, dict[tuple[Metric, str, float], Counter[float]]] = defaultdict(lambda: defaultdict(Counter))
        for sample in samples:
            minute, fine = (sample.at // each * each for each in (minutes, min(FINE_SECONDS, minutes)))
            plain = {"EndpointName": sample.endpoint, "VariantName": sample.variant}
            sets = [plain] if sample.config is None else [plain, {**plain, "EndpointConfigName": sample.config}]
            for name, value, unit in sample.values():
                for dimensions in sets:
                    at = fine if name in HIGH_RESOLUTION else minute
                    key = (Metric.of(NAMESPACE, name, dimensions), unit, at)
                    gathered[sample.region][key][value] += 1
        for region, data in gathered.items():
            self._store.put_many(
                region,
                [
                    Datum(
                        metric,
                        at,
                        samples=tuple((value, float(count)) for value, count in counter.items()),
                        unit=unit,
                        resolution=1 if metric.name in HIGH_RESOLUTION else 60,
                    )
                    for (metric, unit, at), counter in data.items()
                ],
            )
