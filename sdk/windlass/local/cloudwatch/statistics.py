"""CloudWatch's statistics over many data points at once.

    Statistic.parse("p99.9").over(points, buckets)      # -> one value per bucket
    Statistic.parse("TM(10%:90%)")

A *point* is a value seen `count` times, or a statistic set of which only sum, count, minimum and maximum are known. The
first keeps percentiles exact, the second has none unless its minimum equals its maximum, as on AWS.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]

# One data point as it comes in. `t` is milliseconds since the epoch; `unit` is an index into UNITS; `fine` is 1 for points
# that were put with StorageResolution 1.
POINT = np.dtype(
    [
        ("t", "<i8"),
        ("total", "<f8"),
        ("count", "<f8"),
        ("low", "<f8"),
        ("high", "<f8"),
        ("series", "<i4"),
        ("unit", "u1"),
        ("fine", "u1"),
    ],
    align=True,
)

_PLAIN, _FULL = b"plain\0\0\0", b"full\0\0\0\0"  # what a packed block begins with; eight bytes keep its columns aligned


@dataclass(frozen=True)
class Points:
    """Data points as columns. Nearly all are one plain value each: those share one column for total, low and high.

    Attributes:
        t: milliseconds since the epoch.
        unit: an index into UNITS.
        total, count, low, high: of the samples in the point.
    """

    t: Ints
    unit: npt.NDArray[np.uint8]
    low: Floats
    high: Floats
    total: Floats
    count: Floats

    @classmethod
    def plain(cls, t: Ints, unit: npt.NDArray[np.uint8], values: Floats) -> Points:
        """One sample each."""
        return cls(t, unit, values, values, values, np.broadcast_to(np.float64(1), len(values)))

    @classmethod
    def of(cls, rows: Rows) -> Points:
        """From an array of POINT."""
        low = rows["low"]
        if all(np.array_equal(rows[name], low) for name in ("high", "total")) and np.all(rows["count"] == 1):
            return cls.plain(rows["t"], rows["unit"], low)
        return cls(rows["t"], rows["unit"], low, rows["high"], rows["total"], rows["count"])

    @classmethod
    def join(cls, parts: Sequence[Points]) -> Points:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.of(np.empty(0, POINT))
        t, unit = np.concatenate([part.t for part in parts]), np.concatenate([part.unit for part in parts])
        low = np.concatenate([part.low for part in parts])
        if all(part.is_plain for part in parts):
            return cls.plain(t, unit, low)
        rest = (np.concatenate([getattr(part, name) for part in parts]) for name in ("high", "total", "count"))
        return cls(t, unit, low, *rest)

    @property
    def is_plain(self) -> bool:
        return self.high is self.low

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, which: Any) -> Points:
        """Those that a mask, a slice or an array of indices chooses."""
        if self.is_plain:
            return Points.plain(self.t[which], self.unit[which], self.low[which])
        return Points(*(getattr(self, each.name)[which] for each in fields(self)))

    def pack(self) -> bytes:
        """As :meth:`unpack` reads it."""
        columns = [self.t, self.low] if self.is_plain else [self.t, self.low, self.high, self.total, self.count]
        head = _PLAIN if self.is_plain else _FULL
        return b"".join(
            [head, *(column.astype("<i8" if column is self.t else "<f8").tobytes() for column in columns)]
        ) + (self.unit.tobytes())

    @classmethod
    def unpack(cls, packed: bytes) -> Points:
        """Without a copy: the columns are views of `packed`."""
        number = 2 if packed.startswith(_PLAIN) else 5
        size = (len(packed) - len(_PLAIN)) // (8 * number + 1)
        ends = [len(_PLAIN) + 8 * size * column for column in range(number + 1)]
        t = np.frombuffer(packed, "<i8", size, ends[0])
        unit = np.frombuffer(packed, "u1", size, ends[-1])
        floats = [np.frombuffer(packed, "<f8", size, end) for end in ends[1:-1]]
        return cls.plain(t, unit, floats[0]) if number == 2 else cls(t, unit, *floats)


BASIC = ("SampleCount", "Average", "Sum", "Minimum", "Maximum")

_NUMBER = r"\d+(?:\.\d+)?"
_SHORT = re.compile(rf"(p|tm|tc|ts|wm)({_NUMBER})")
_PERCENT = re.compile(rf"(TM|TC|TS|WM)\((?:({_NUMBER})%)?:(?:({_NUMBER})%)?\)")
_VALUES = re.compile(rf"(TM|TC|TS|WM|PR)\((-?{_NUMBER})?:(-?{_NUMBER})?\)")


@dataclass(frozen=True)
class Statistic:
    """One statistic, parsed.

    Attributes:
        name: as the user wrote it.
        kind: one of BASIC, or p, tm, tc, ts, wm, pr (percentile, trimmed mean, count and sum, winsorized mean, rank).
        low, high: where a trimmed statistic cuts; a percentile keeps its rank in `high`. Fractions of the samples when
            `relative`, values otherwise.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    relative: bool = True

    @classmethod
    def parse(cls, text: str) -> Statistic:
        """Raises ValueError for what CloudWatch does not know."""
        if text in BASIC:
            return cls(text, text)
        if text == "IQM":
            return cls(text, "tm", 0.25, 0.75)
        if match := _SHORT.fullmatch(text):
            high = float(match[2]) / 100
            if high <= 1:
                return cls(text, match[1], 0.0, high)
        elif match := _PERCENT.fullmatch(text):
            low, high = float(match[2] or 0) / 100, float(match[3] or 100) / 100
            if (match[2] or match[3]) and low < high <= 1:
                return cls(text, match[1].lower(), low, high)
        elif match := _VALUES.fullmatch(text):
            low, high = float(match[2] or "-inf"), float(match[3] or "inf")
            if (match[2] or match[3]) and low <= high:
                return cls(text, match[1].lower(), low, high, relative=False)
        raise ValueError(text)

    @property
    def needs_samples(self) -> bool:
        """Whether single values are needed, so that statistic sets do not do."""
        return self.kind not in BASIC

    def enough_samples(self, count: float) -> bool:
        """Whether a percentile of `count` samples is significant by AWS's rule: 10/(1-p) of them, below p50 10/p."""
        if self.kind != "p" or not 0 < self.high < 1:
            return True
        return count >= round(10 / min(self.high, 1 - self.high), 6)

    def over(self, points: Points, buckets: Ints) -> tuple[Ints, Floats]:
        """The statistic of each bucket that holds a point: (buckets ascending, values).

        Args:
            buckets: the bucket of each point, of the same length.

        Buckets in which the statistic does not exist (a percentile of statistic sets, or of negative values) are left out.
        """
        if not len(points):
            return np.empty(0, np.int64), np.empty(0)
        if len(buckets) > 1 and np.any(buckets[1:] < buckets[:-1]):
            order = np.argsort(_narrow(buckets), kind="stable")
            points, buckets = points[order], buckets[order]
        starts = _starts(buckets)
        if self.needs_samples:
            return self._over_samples(_sorted_within(points, buckets, starts), buckets, starts)
        present = buckets[starts]
        if self.kind == "Minimum":
            return present, np.minimum.reduceat(points.low, starts)
        if self.kind == "Maximum":
            return present, np.maximum.reduceat(points.high, starts)
        if self.kind == "Sum":
            return present, np.add.reduceat(points.total, starts)
        counts = np.add.reduceat(points.count, starts)
        if self.kind == "SampleCount":
            return present, counts
        return present, np.add.reduceat(points.total, starts) / counts

    def _over_samples(self, points: Points, buckets: Ints, starts: Ints) -> tuple[Ints, Floats]:
        values, counts, present = points.low, points.count, buckets[starts]
        # AWS: neither where only a statistic set is known, nor (for percentiles) where a value is negative.
        unusable = np.zeros(len(points), bool) if points.is_plain else values != points.high
        if self.kind == "p":
            unusable |= values < 0
        usable = ~np.logical_or.reduceat(unusable, starts)

        above: Floats = np.cumsum(counts)  # samples up to and with this value, over all buckets
        below = above - counts
        ends = np.append(starts[1:], len(buckets)) - 1
        base, total = below[starts], above[ends] - below[starts]
        if self.kind == "p":
            rank = self.high * (total - 1)
            left, right = np.floor(rank), np.ceil(rank)
            at_left = values[np.minimum(np.searchsorted(above, base + left, side="right"), ends)]
            at_right = values[np.minimum(np.searchsorted(above, base + right, side="right"), ends)]
            result = at_left + (at_right - at_left) * (rank - left)
        else:
            which = np.searchsorted(starts, np.arange(len(buckets)), side="right") - 1
            result = self._trimmed(values, counts, below, above, starts, base[which], total[which])
        keep = usable & np.isfinite(result)
        return present[keep], result[keep]

    def _trimmed(
        self, values: Floats, counts: Floats, below: Floats, above: Floats, starts: Ints, base: Floats, total: Floats
    ) -> Floats:
        if self.relative:
            floor, ceiling = base + self.low * total, base + self.high * total
            kept = np.maximum(np.minimum(above, ceiling) - np.maximum(below, floor), 0.0)
        else:
            kept = np.where((values > self.low) & (values <= self.high), counts, 0.0)
        number = np.add.reduceat(kept, starts)
        if self.kind == "tc":
            return number
        if self.kind == "ts":
            return np.add.reduceat(kept * values, starts)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.kind == "pr":
                return 100 * number / np.add.reduceat(counts, starts)
            if self.kind == "tm":
                return np.add.reduceat(kept * values, starts) / number
            # Winsorized: what is cut off counts as the outermost value that is kept.
            inside = kept > 0
            lowest = np.minimum.reduceat(np.where(inside, values, np.inf), starts)
            highest = np.maximum.reduceat(np.where(inside, values, -np.inf), starts)
            sizes = np.diff(np.append(starts, len(values)))
            clipped = np.clip(values, np.repeat(lowest, sizes), np.repeat(highest, sizes))
            return np.add.reduceat(clipped * counts, starts) / np.add.reduceat(counts, starts)


def _sorted_within(points: Points, buckets: Ints, starts: Ints) -> Points:
    """By value inside each bucket; `buckets` is sorted already."""
    if points.is_plain and len(points) > 16 * len(starts):
        # Many small sorts of bare values stay in the cache, and are three times as fast as one of everything.
        values = points.low.copy()
        for start, end in itertools.pairwise([*starts.tolist(), len(values)]):
            values[start:end].sort()
        return Points.plain(points.t, points.unit, values)
    return points[np.lexsort((points.low, buckets))]


def _narrow(buckets: Ints) -> npt.NDArray[Any]:
    """The same order in fewer bits where they do: NumPy sorts 16 bits in linear time."""
    first = buckets.min()
    return (buckets - first).astype(np.uint16) if buckets.max() - first < 1 << 16 else buckets


def _starts(buckets: Ints) -> Ints:
    """Where each run of equal buckets begins; `buckets` is sorted and not empty."""
    changes: Any = np.flatnonzero(buckets[1:] != buckets[:-1]) + 1
    return np.concatenate((np.zeros(1, np.int64), changes))
