"""Counts and times of the model server, in Prometheus' text format.

metrics.request(200, seconds=0.012, queue_seconds=0.001, model_seconds=0.010, batch_size=4)
metrics.measured([("Confidence", "None", 0.93)])
metrics.text(waiting=0, workers=2, restarts=0, batches=1)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from windlass.runtime.measures import Measure

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class _Histogram:
    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, help_text: str) -> list[str]:
        lines, total = [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """Used in the event loop's thread."""

    def __init__(self) -> None:
        self._statuses: Counter[int] = Counter()
        self._total, self._queue, self._model = _Histogram(_SECONDS), _Histogram(_SECONDS), _Histogram(_SECONDS)
        self._sizes = _Histogram(_SIZES)
        self._measured: dict[tuple[str, str], tuple[int, float]] = {}

    def request(self, status: int, seconds: float, queue_seconds: float, model_seconds: float, batch_size: int) -> None:
        """One invocation. A batch size of 0: it never reached the model."""
        self._statuses[status] += 1
        self._total.add(seconds)
        if batch_size:
            self._queue.add(queue_seconds)
            self._model.add(model_seconds)
            self._sizes.add(batch_size)

    def measured(self, measures: Sequence[Measure]) -> None:
        """What hooks have measured."""
        for name, unit, value in measures:
            count, total = self._measured.get((name, unit), (0, 0.0))
            self._measured[name, unit] = count + 1, total + value

    def text(self, *, waiting: int, workers: int, restarts: int, batches: int) -> str:
        name = "windlass_requests_total"
        lines = [f"# HELP {name} Invocations, by the status of the answer.", f"# TYPE {name} counter"]
        lines += [f'{name}{{status="{status}"}} {count}' for status, count in sorted(self._statuses.items())]
        lines += self._total.lines("windlass_request_seconds", "From the first byte to the last.")
        lines += self._queue.lines("windlass_queue_seconds", "Waiting for a worker.")
        lines += self._model.lines("windlass_model_seconds", "In the hooks, of the whole batch.")
        lines += self._sizes.lines("windlass_batch_size", "Requests predicted together, counted once for each.")
        if self._measured:
            name = "windlass_custom"
            lines += [f"# HELP {name} What the model's code has measured.", f"# TYPE {name} summary"]
            for (measure, unit), (count, total) in sorted(self._measured.items()):
                label = f'{{name={_label(measure)},unit="{unit}"}}'
                lines += [f"{name}_sum{label} {total:.12g}", f"{name}_count{label} {count}"]
        for gauge, kind, value, help_text in (
            ("windlass_queue_length", "gauge", waiting, "Requests that wait."),
            ("windlass_workers", "gauge", workers, "Worker processes that can answer."),
            ("windlass_batches_total", "counter", batches, "Batches that workers have answered."),
            ("windlass_worker_restarts_total", "counter", restarts, "Workers that died and were replaced."),
        ):
            lines += [f"# HELP {gauge} {help_text}", f"# TYPE {gauge} {kind}", f"{gauge} {value}"]
        return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
