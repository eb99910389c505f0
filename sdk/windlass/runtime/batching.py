"""Which of the waiting requests run together. Pure: no clock, no threads.

    size = Sizer(max_size=32)
    size.best(waiting=20)              # how many to take now
    size.observe(8, seconds=0.016)     # what a batch of 8 cost

    alike(lengths, 8)                  # which 8 to take, the first among them

Nothing waits for a batch to fill: while the model works on one batch the next one gathers. A fixed window (2 ms is the usual)
costs that much at low load and gains nothing at high load.
"""

from __future__ import annotations

from collections.abc import Sequence

# A larger batch must be this much cheaper per request to be worth its longer wait.
_GAIN = 0.95
_SMOOTHING = 0.2
# Costs change with the traffic (lengths, neighbours on the machine), so every so many full batches the other sizes are tried.
_TRY_EVERY = 64


class Sizer:
    """The batch size that costs least per request, found by measuring: powers of two, up to `max_size`."""

    def __init__(self, max_size: int) -> None:
        self._sizes = [1]
        while self._sizes[-1] < max_size:
            self._sizes.append(min(self._sizes[-1] * 2, max_size))
        self._seconds: dict[int, float] = {}  # of one request in a batch of at least that size
        self._full = 0

    def best(self, waiting: int) -> int:
        """How many of the waiting to take. At least 1."""
        # Sizes that were never seen are tried as soon as enough wait: the next one up, as small ones come by themselves.
        unknown = next((size for size in self._sizes if size not in self._seconds), None)
        if unknown is not None:
            return max(1, min(waiting, unknown))
        best = self._sizes[0]
        for size in self._sizes[1:]:
            if self._seconds[size] < self._seconds[best] * _GAIN:
                best = size
        if waiting > best:
            self._full += 1
            if self._full % _TRY_EVERY == 0:
                turn = self._full // _TRY_EVERY % len(self._sizes)
                return max(1, min(waiting, self._sizes[turn]))
        return max(1, min(waiting, best))

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds`."""
        step = max(known for known in self._sizes if known <= max(size, 1))
        cost = seconds / max(size, 1)
        before = self._seconds.get(step, cost)
        self._seconds[step] = before + _SMOOTHING * (cost - before)

    @property
    def request_seconds(self) -> float:
        """What a request costs at the cheapest size; 0 before the first batch."""
        return min(self._seconds.values(), default=0.0)


def alike(lengths: Sequence[int], count: int) -> Sequence[int]:
    """Positions of the first request and of the `count` - 1 that are nearest to it in length, in ascending order.

    Sequences in one batch are padded to its longest. The first is the one that has waited longest; it always goes, so that
    none starves.
    """
    if count >= len(lengths):
        return range(len(lengths))
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    at = order.index(0)
    starts = range(max(0, at - count + 1), min(at, len(order) - count) + 1)
    begin = min(starts, key=lambda start: lengths[order[start + count - 1]] - lengths[order[start]])
    return sorted(order[begin : begin + count])
