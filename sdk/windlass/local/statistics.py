"""CloudWatch's statistics over many data points at once.

    Statistic.parse("p99.9").over(points, buckets)      # -> one value per bucket
    Statistic.parse("TM(10%:90%)")

A *point* is a value seen `count` times, or a statistic set of which only sum, count, minimum and maximum are known. The
first keeps percentiles exact, the second has none unless its minimum equals its maximum, as on AWS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Points = npt.NDArray[np.void]

# One stored data point. `t` is milliseconds since the epoch; `unit` is an index into UNITS; `fine` is 1 for points that
# were put with StorageResolution 1.
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

UNITS = (
    "None",
    "Seconds",
    "Microseconds",
    "Milliseconds",
    "Bytes",
    "Kilobytes",
    "Megabytes",
    "Gigabytes",
    "Terabytes",
    "Bits",
    "Kilobits",
    "Megabits",
    "Gigabits",
    "Terabits",
    "Percent",
    "Count",
    "Bytes/Second",
    "Kilobytes/Second",
    "Megabytes/Second",
    "Gigabytes/Second",
    "Terabytes/Second",
    "Bits/Second",
    "Kilobits/Second",
    "Megabits/Second",
    "Gigabits/Second",
    "Terabits/Second",
    "Count/Second",
)

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
            points: an array of POINT.
            buckets: the bucket of each point, of the same length.

        Buckets in which the statistic does not exist (a percentile of statistic sets, or of negative values) are left out.
        """
        if not len(points):
            return np.empty(0, np.int64), np.empty(0)
        if self.needs_samples:
            return self._over_samples(points, buckets)
        if len(buckets) > 1 and np.any(buckets[1:] < buckets[:-1]):
            order = np.argsort(buckets, kind="stable")
            points, buckets = points[order], buckets[order]
        starts = _starts(buckets)
        present = buckets[starts]
        if self.kind == "Minimum":
            return present, np.minimum.reduceat(points["low"], starts)
        if self.kind == "Maximum":
            return present, np.maximum.reduceat(points["high"], starts)
        if self.kind == "Sum":
            return present, np.add.reduceat(points["total"], starts)
        counts = np.add.reduceat(points["count"], starts)
        if self.kind == "SampleCount":
            return present, counts
        return present, np.add.reduceat(points["total"], starts) / counts

    def _over_samples(self, points: Points, buckets: Ints) -> tuple[Ints, Floats]:
        order = np.lexsort((points["low"], buckets))
        buckets = buckets[order]
        values: Floats = points["low"][order]
        counts: Floats = points["count"][order]
        starts = _starts(buckets)
        present = buckets[starts]
        # AWS: neither where only a statistic set is known, nor (for percentiles) where a value is negative.
        unusable = points["low"][order] != points["high"][order]
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


def _starts(buckets: Ints) -> Ints:
    """Where each run of equal buckets begins; `buckets` is sorted and not empty."""
    changes: Any = np.flatnonzero(buckets[1:] != buckets[:-1]) + 1
    return np.concatenate((np.zeros(1, np.int64), changes))
