"""Which of the waiting requests run together. Pure: no clock, no threads.

    batcher = Batcher(max_size=32)
    batch = batcher.choose([len(body) for body in waiting], count=20)      # -> Batch(positions, ...)
    batcher.observe(batch, seconds=0.016)                                  # what it cost

Nothing waits for a batch to fill: while the model works on one batch the next one gathers. A fixed window (2 ms is the usual)
costs that much at low load and gains nothing at high load.

What is best is measured, not set. Sequences are mostly padded to the longest of their batch, so a model of texts may gain more
from little padding than from many requests, while for a model of pictures the length of a body says nothing. So two things are
learnt from the costs of past batches:

- how much of a request's cost its length makes, and whether padding costs: of a few guesses the one that explains them best;
- for each size (1, 2, 3, 4, 6, 8, 11, 16, ... requests) the seconds that a unit of such work takes, padding included.

The batch that is chosen does the most useful work, padding not counted, in a second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median_low

# Batches that are remembered of each size. The median of so many stands firm when up to half of them were disturbed.
_REMEMBERED = 31
# Batches of a size before it is judged. Engines compile and caches fill in the first, which is forgotten when there are others.
_TRIALS = 5
# A larger batch must do so much more in a second to be worth its longer wait.
_GAIN = 1.03
# Powers of two are tried upwards until one takes so much longer for the same work than the best.
_HOPELESS = 1.25
# Costs change with the traffic and with what else the machine does, so one in so many batches is of a neighbouring size.
_TRY_EVERY = 32
# The guesses: the share of a usual request's cost that its length makes, and whether that is its own length or the longest of
# its batch. Never all of the cost, for an empty request costs something.
_GUESSES = ((0.0, False), *((share, padded) for padded in (True, False) for share in (0.25, 0.5, 0.75, 0.95)))
_FIT_EVERY = 8, 64  # batches: at first, and later
# Of batches that are over in no time there are many. When those of a size are known, one in so many is looked at.
_SHORT_SECONDS, _JUDGED_EVERY = 0.001, 4
_SMOOTHING = 0.02


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs together.

    Attributes:
        positions: among the waiting, ascending; the first is always one of them.
        longest: the length that the others are padded to, if they are.
        total: of all lengths.
    """

    positions: Sequence[int]
    longest: int
    total: int


class Batcher:
    """Chooses batches by what others cost.

    Attributes:
        request_seconds: what a request of the usual length costs at the best size; 0 before the first batch.
    """

    def __init__(self, max_size: int) -> None:
        self._steps = [1]
        while self._steps[-1] < max_size:
            self._steps.append(min(self._steps[-1] * 2, max_size))
        # Those between are judged when they come.
        between = {round(step * 2**0.5) for step in self._steps}
        self._sizes = sorted({*self._steps, *(size for size in between if size < max_size)})
        self._seen = dict.fromkeys(self._sizes, 0)
        # The last batches and their seconds, and from them the seconds of a unit of work.
        self._past: dict[int, deque[tuple[Batch, float]]] = {size: deque(maxlen=_REMEMBERED) for size in self._sizes}
        self._seconds: dict[int, float] = {}
        self._usual = 0.0  # length of a request
        self._share, self._padded = _GUESSES[0]
        self._turn = self._observed = 0
        self._trial = 1  # the size that is to be measured next; 0: all that are worth it have been
        self.request_seconds = 0.0

    def choose(self, lengths: Sequence[int], count: int) -> Batch:
        """A batch of at most `count` of the requests whose lengths are given, oldest first."""
        most = max(1, min(count, len(lengths)))
        if most == 1:
            return Batch((0,), lengths[0], lengths[0])
        exactly = self._to_try(most)
        if not self._padded or min(lengths) == max(lengths):  # nothing to sort for: the oldest go
            positions: Sequence[int] = range(exactly or self._best(most))
        elif exactly:
            order, low, high = list(_growing(lengths, exactly))[-1]
            positions = sorted(order[low : high + 1])
        else:
            positions = self._most_useful(lengths, most)
        taken = lengths if len(positions) == len(lengths) else [lengths[index] for index in positions]
        return Batch(positions, max(taken), sum(taken))

    def observe(self, batch: Batch, seconds: float) -> None:
        """What the batch cost."""
        count = len(batch.positions)
        size = self._size_of(count)
        self._seen[size] += 1
        if seconds < _SHORT_SECONDS and self._seen[size] > _REMEMBERED and self._seen[size] % _JUDGED_EVERY:
            return
        self._usual += (_SMOOTHING if self._usual else 1) * (batch.total / count - self._usual)
        past = self._past[size]
        if self._seen[size] == 2:
            past.clear()
        past.append((batch, max(seconds, 1e-9)))  # a coarse clock may not have moved
        self._observed += 1
        if self._observed % _FIT_EVERY[self._observed > _FIT_EVERY[1]] == 0:
            self._fit()
        else:
            self._seconds[size] = median_low(self._rates(size, self._share, self._padded))
        self.request_seconds = min(self._seconds.values()) * max(self._usual, 1)
        self._trial = self._next_trial()

    def expected_seconds(self, batch: Batch) -> float:
        """What the batch will cost, by what others did; 0 before the first."""
        if not self._seconds:
            return 0.0
        count = len(batch.positions)
        fixed = (1 - self._share) * max(self._usual, 1)
        length = count * batch.longest if self._padded else batch.total
        return self._rate(self._size_of(count)) * (count * fixed + self._share * length)

    # --- which size

    def _size_of(self, count: int) -> int:
        return self._sizes[bisect_right(self._sizes, count) - 1]

    def _next_trial(self) -> int:
        best = min(self._seconds, key=self._seconds.__getitem__)
        for size in self._steps:
            if self._seen[size] < _TRIALS:
                return size
            if size > best and self._seconds[size] > _HOPELESS * self._seconds[best]:
                break
        return 0

    def _to_try(self, most: int) -> int:
        """A size of at most so many that has to be measured now; 0: none."""
        if 0 < self._trial <= most:
            return self._trial
        self._turn += 1
        if self._turn % _TRY_EVERY:
            return 0
        at = self._sizes.index(self._size_of(self._best(most))) + (1 if self._turn // _TRY_EVERY % 2 else -1)
        return self._sizes[at] if 0 <= at < len(self._sizes) and self._sizes[at] <= most else 0

    def _best(self, most: int) -> int:
        """How many of at most so many, where no padding is at stake."""
        best = 1
        for size in self._sizes[1:]:
            if size in self._seconds and self._seconds[size] * _GAIN < self._rate(best):
                best = size
            if size >= most:
                break
        if best == max(self._seconds, default=best):
            return min(most, self._sizes[-1])  # nothing that was seen speaks against more
        return min(best, most)

    def _most_useful(self, lengths: Sequence[int], most: int) -> Sequence[int]:
        """Of the sets that grow around the oldest, the one that does most in a second."""
        fixed = (1 - self._share) * max(self._usual, 1)
        work = [fixed + self._share * length for length in lengths]
        best, best_size, found = 0.0, 1, [0]
        useful, before, count, size, rate = 0.0, len(lengths), 0, 0, 0.0
        for order, low, high in _growing(lengths, most):
            useful += work[order[low if low < before else high]]
            before, count = low, count + 1
            if count in self._seen:
                size, rate = count, self._rate(count)
            score = useful / (count * work[order[high]] * rate)
            if score >= best * (_GAIN if size > best_size else 1):
                best, best_size, found = score, size, order[low : high + 1]
        return sorted(found)

    # --- what is learnt

    def _rate(self, size: int) -> float:
        """Seconds of a unit of work; of sizes not seen yet, those of the nearest below."""
        while size not in self._seconds:
            if size == 1:
                return min(self._seconds.values(), default=1.0)
            size = self._sizes[self._sizes.index(size) - 1]
        return self._seconds[size]

    def _rates(self, size: int, share: float, padded: bool) -> list[float]:
        """Seconds of a unit of work in the last batches of the size. A request of the usual length has as many units."""
        fixed = (1 - share) * max(self._usual, 1)
        return [
            seconds / (count * fixed + share * (count * batch.longest if padded else batch.total))
            for batch, seconds in self._past[size]
            if (count := len(batch.positions))
        ]

    def _fit(self) -> None:
        """Take the guess that leaves the least unexplained."""

        def unexplained(guess: tuple[float, bool]) -> float:
            total = 0.0
            for size in self._seconds:
                rates = self._rates(size, *guess)
                middle = median_low(rates)
                total += sum([min(1.0, abs(rate / middle - 1)) for rate in rates])
            return total

        self._share, self._padded = min(_GUESSES, key=unexplained)
        for size in self._sizes:
            if self._past[size]:
                self._seconds[size] = median_low(self._rates(size, self._share, self._padded))


def _growing(lengths: Sequence[int], most: int) -> Iterator[tuple[list[int], int, int]]:
    """The positions by length, and the first and last of a set of them: the oldest, and one more each time, with least padding.

    The oldest always goes, so that none starves.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    low = high = order.index(0)
    yield order, low, high
    while high - low + 1 < most:
        shorter = lengths[order[low - 1]] if low else None
        longer = lengths[order[high + 1]] if high + 1 < len(order) else None
        # A shorter one is padded itself, a longer one pads all the others.
        longest, count = lengths[order[high]], high - low + 1
        if longer is not None and (shorter is None or (longer - longest) * count <= longest - shorter):
            high += 1
        else:
            low -= 1
        yield order, low, high
