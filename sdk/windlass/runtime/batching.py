"""Which of the waiting requests run together. Pure: no clock, no threads.

    batcher = Batcher(max_size=32)
    batch = batcher.choose([len(body) for body in waiting], count=20)      # -> Batch(positions, ...)
    batcher.observe(batch, seconds=0.016)                                  # what it cost

Nothing waits for a batch to fill: while the model works on one batch the next one gathers. A fixed window (2 ms is the usual)
costs that much at low load and gains nothing at high load.

What is best is measured, not set. Two things are open: how many, and whether only those of like length: sequences are padded
to the longest of their batch, so that a model of texts may gain more from batches without padding than from large ones, while
for a model of pictures the length of a body says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# A larger batch must be this much cheaper per request to be worth its longer wait.
_GAIN = 0.95
_SMOOTHING = 0.05
_TRIALS = 5  # of each size before the costs are compared
# Padding is certain and noise is not rare, so mixed lengths must be this much cheaper to be preferred.
_MIXED_GAIN = 0.9
# Costs change with the traffic (lengths, neighbours on the machine), so every so many full batches the other sizes are tried.
_TRY_EVERY = 64


# A batch of like lengths has at most this share of padding.
_PADDING = 0.15
_TRY_OTHER_EVERY = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs together.

    Attributes:
        positions: among the waiting, ascending; the first is always one of them.
        asked: how many it would have been, had there been enough of like length.
        sizer: the one that chose.
        requests: how many, where one of the usual length is one.
    """

    positions: Sequence[int]
    asked: int
    sizer: Sizer
    requests: float


class Batcher:
    """Chooses batches by what they were measured to cost.

    Attributes:
        request_seconds: what a request costs at the best; 0 before the first batch.
    """

    def __init__(self, max_size: int) -> None:
        self._any, self._alike = Sizer(max_size), Sizer(max_size)
        self._turn = 0
        self._length = 0.0
        self.request_seconds = 0.0

    def choose(self, lengths: Sequence[int], count: int) -> Batch:
        """A batch of at most `count` of the requests whose lengths are given, oldest first."""
        if count < 2 or max(lengths) * (1 - _PADDING) <= min(lengths):
            size = min(len(lengths), self._any.best(count))
            return Batch(range(size), size, self._any, size)
        self._turn += 1
        mixed, alike = self._any.request_seconds, self._alike.request_seconds
        use_mixed = 0 < mixed < alike * _MIXED_GAIN
        if self._turn % _TRY_OTHER_EVERY == 0 or not (mixed or self._turn % 2):
            use_mixed = not use_mixed
        if use_mixed:
            size = min(len(lengths), self._any.best(count))
            return Batch(range(size), size, self._any, size)
        size = self._alike.best(count)
        positions = unpadded(lengths, size)
        mean = sum(lengths[index] for index in positions) / len(positions)
        self._length += _SMOOTHING * (mean - self._length) if self._length else mean
        return Batch(positions, size, self._alike, len(positions) * max(mean, 1) / max(self._length, 1))

    def observe(self, batch: Batch, seconds: float) -> None:
        """What the batch cost."""
        batch.sizer.observe(batch.asked, seconds, batch.requests)
        known = [sizer.request_seconds for sizer in (self._any, self._alike) if sizer.request_seconds]
        self.request_seconds = min(known)


class Sizer:
    """The batch size that costs least per request, found by measuring: powers of two, up to `max_size`."""

    def __init__(self, max_size: int) -> None:
        self._sizes = [1]
        while self._sizes[-1] < max_size:
            self._sizes.append(min(self._sizes[-1] * 2, max_size))
        self._seconds: dict[int, float] = {}  # of one request in a batch of at least that size
        self._sums: dict[int, tuple[float, float]] = {}  # seconds and requests of a batch, moving means
        self._seen: Counter[int] = Counter()
        self._full = 0

    def best(self, waiting: int) -> int:
        """How many of the waiting to take. At least 1."""
        untried = next((size for size in self._sizes if size <= waiting and self._seen[size] < _TRIALS), None)
        if untried is not None:
            return untried
        best = 1
        for size in self._sizes[1:]:
            if size in self._seconds and self._seconds[size] < self._seconds[best] * _GAIN:
                best = size
        if waiting > best:
            self._full += 1
            if self._full % _TRY_EVERY == 0:
                turn = self._full // _TRY_EVERY % len(self._sizes)
                return max(1, min(waiting, self._sizes[turn]))
        return max(1, min(waiting, best))

    def observe(self, size: int, seconds: float, requests: float | None = None) -> None:
        """A batch of `size` took `seconds`. Requests of unusual length count for more or less than one."""
        step = max(known for known in self._sizes if known <= max(size, 1))
        self._seen[step] += 1
        # Two means and their ratio: the mean of ratios would count short requests for as much as long ones. Plain means at
        # first, so that one slow batch does not decide.
        weight = max(_SMOOTHING, 1 / self._seen[step])
        spent, done = self._sums.get(step, (0.0, 0.0))
        spent += weight * (seconds - spent)
        done += weight * ((size if requests is None else requests) - done)
        self._sums[step] = spent, done
        self._seconds[step] = spent / done

    @property
    def request_seconds(self) -> float:
        """What a request costs at the cheapest size; 0 before the first batch."""
        return min(self._seconds.values(), default=0.0)


def unpadded(lengths: Sequence[int], most: int) -> Sequence[int]:
    """Positions of the first request and of those nearest to it in length, as long as padding stays small; ascending.

    The first is the one that has waited longest; it always goes, so that none starves.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    low = high = order.index(0)
    total = lengths[0]
    while high - low + 1 < most:
        shorter = lengths[order[low - 1]] if low else None
        longer = lengths[order[high + 1]] if high + 1 < len(order) else None
        # The neighbour that adds the lesser padding: a shorter one is padded itself, a longer one pads all the others.
        longest, count = lengths[order[high]], high - low + 1
        if longer is not None and (shorter is None or (longer - longest) * count <= longest - shorter):
            if total + longer < (1 - _PADDING) * longer * (count + 1):
                break
            high, total = high + 1, total + longer
        elif shorter is not None:
            if total + shorter < (1 - _PADDING) * longest * (count + 1):
                break
            low, total = low - 1, total + shorter
        else:
            break
    return sorted(order[low : high + 1])
