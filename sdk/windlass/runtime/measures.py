"""Metrics of the user's own: what hooks measure goes to CloudWatch and `/metrics` with the server's.

    def predict_fn(data, model, context):
        scores = model(data)
        context.metrics.add_metric("Confidence", float(scores.max()), "None")
        context.metrics.add_counter("Tokens", 17)
        return scores

The methods are those of TorchServe's and Multi Model Server's ``context.metrics``, so that code written for them runs. Each
name is a metric that CloudWatch bills, in the namespace ``Windlass`` under the endpoint's name and variant: no request's id.
"""

from __future__ import annotations

import math
from collections import deque

from windlass.metrics import SERVER, UNITS

Measure = tuple[str, str, float]
"""Name, unit, value."""

MOST_NAMES = 50
_TAKEN = {"EndpointName", "VariantName", "ModelVersion", *(metric.name for metric in SERVER)}
_MOST_KEPT = 100_000  # between two answers; what a hook that never ends measures must not fill the memory
_MOST_LETTERS = 255  # of a name (CloudWatch, PutMetricData)
# What those two servers call units that CloudWatch has under other names.
_UNITS = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "us": "Microseconds",
    "B": "Bytes",
    "kB": "Kilobytes",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "percent": "Percent",
    "count": "Count",
    "unit": "None",
    "": "None",
}


class Measures:
    """What the hooks of one process have measured and the server does not know yet. For several threads at once."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._waiting: deque[Measure] = deque(maxlen=_MOST_KEPT)

    def add_metric(
        self, name: str, value: float, unit: str = "None", idx: object = None, dimensions: object = None
    ) -> None:
        """One value.

        Args:
            unit: one of CloudWatch's (``Milliseconds``, ``Count``, ``None``...) or a short form: ms, s, MB, percent.
            idx, dimensions: are ignored: a context belongs to one request, and dimensions are the endpoint's.

        Raises:
            ValueError: the name, the value or the unit is none, or there are more than 50 names.
        """
        unit = _UNITS.get(unit, unit)
        if unit not in UNITS:
            raise ValueError(f"metric {name!r}: unit {unit!r} is none of CloudWatch's: {', '.join(UNITS)}")
        if name not in self._names:
            if (
                not isinstance(name, str)
                or not 0 < len(name) <= _MOST_LETTERS
                or not name.isascii()
                or not name.strip()
            ):
                raise ValueError(f"metric name {name!r} is no text of 1 to {_MOST_LETTERS} ASCII characters")
            if not name.isprintable() or name.startswith("_") or name in _TAKEN:
                raise ValueError(f"metric name {name!r} is taken, or cannot be written")
            if len(self._names) >= MOST_NAMES:
                raise ValueError(f"metric {name!r} is one more than {MOST_NAMES} names; each is billed. Use fewer")
            self._names.add(name)
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"metric {name!r}: {value!r} is no finite number")
        self._waiting.append((name, unit, number))

    def add_counter(self, name: str, value: float, idx: object = None, dimensions: object = None) -> None:
        """So many more of something."""
        self.add_metric(name, value, "Count")

    def add_time(
        self, name: str, value: float, idx: object = None, unit: str = "ms", dimensions: object = None
    ) -> None:
        """How long something took, in milliseconds; ``unit="s"``: in seconds."""
        self.add_metric(name, value, unit)

    def add_size(
        self, name: str, value: float, idx: object = None, unit: str = "MB", dimensions: object = None
    ) -> None:
        """How large something is, in megabytes; ``unit`` may be kB, GB or B."""
        self.add_metric(name, value, unit)

    def add_percent(self, name: str, value: float, idx: object = None, dimensions: object = None) -> None:
        """A share, 0 to 100."""
        self.add_metric(name, value, "Percent")

    def add_error(self, name: str, value: float = 1, dimensions: object = None) -> None:
        """So many more faults."""
        self.add_metric(name, value, "Count")

    def take(self) -> list[Measure]:
        """What has come since the last call."""
        taken: list[Measure] = []
        while self._waiting:
            try:
                taken.append(self._waiting.popleft())
            except IndexError:  # another thread has just taken the last one
                break
        return taken
