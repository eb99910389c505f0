"""Where the local cloud keeps metrics.

    store = MetricStore(folder / "metrics.sqlite", clock)
    store.put("us-east-1", "Windlass", "Accuracy", {"EndpointName": "digits"}, 0.97, resolution=1)
    points = store.read("us-east-1", Metric.of("Windlass", "Accuracy", {"EndpointName": "digits"}), start, end)

New points go, one array for each call, to memory and to a journal table, so a call costs one small insert. When the journal
is full, the points are sorted into blocks of one series each, which NumPy reads back without parsing: a million points take
some tens of milliseconds.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from windlass.local.clock import Clock, Pace
from windlass.local.cloudwatch.statistics import POINT, Points, Rows
from windlass.metrics import UNITS

_JOURNAL_ROWS = 65_536
_SMALL_BLOCK_ROWS = 2048
_RETENTION_SECONDS = 455 * 86_400  # AWS keeps the coarsest data for 15 months

# What POINT holds, in its order.
Row = tuple[int, float, float, float, float, int, int, int]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, region TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, dimensions TEXT NOT NULL,
    UNIQUE (region, namespace, name, dimensions));
CREATE TABLE IF NOT EXISTS journal (id INTEGER PRIMARY KEY, points BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS packed (
    id INTEGER PRIMARY KEY, series INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, rows INTEGER NOT NULL,
    points BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS packed_of_series ON packed (series, last);
"""


@dataclass(frozen=True)
class Metric:
    """A metric's identity inside a region. `dimensions` is sorted, so that their order in a request does not matter."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Each put looks its metric up, and hashing all the dimensions would be most of the work.
        return hash((self.namespace, self.name, self.dimensions))

    @classmethod
    def of(cls, namespace: str, name: str, dimensions: Mapping[str, str]) -> Metric:
        return cls(namespace, name, tuple(sorted(dimensions.items())))


class Datum(NamedTuple):
    """Some samples of one metric, put at one time.

    Attributes:
        at: seconds since the epoch.
        samples: (value, how often). Empty when only `summary` is known.
        summary: (sum, count, minimum, maximum) of a statistic set.
        resolution: 1, or 60 for points that are kept by the minute.
    """

    metric: Metric
    at: float
    samples: tuple[tuple[float, float], ...] = ()
    summary: tuple[float, float, float, float] | None = None
    unit: str = "None"
    resolution: int = 60


@dataclass
class _Series:
    id: int
    region: str
    metric: Metric
    version: int = 0
    latest: int = 0  # newest timestamp, milliseconds


class MetricStore:
    """All metrics of a local cloud, by region. Safe to use from many threads.

    Args:
        path: the SQLite file; it is created, or opened with what it holds.
        clock: the time of points that come without one.
        minute: real seconds to which the time of points of standard resolution is rounded.
    """

    def __init__(self, path: Path, clock: Clock, minute: float = 60) -> None:
        self._clock, self.minute = clock, minute
        self._minute_ms = round(minute * 1000)
        self._lock = threading.RLock()
        self._unit_codes = {unit: code for code, unit in enumerate(UNITS)}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA page_size=32768")
        self._db.execute("PRAGMA journal_mode=WAL")
        # A power cut may lose the last moments of a local cloud; it never corrupts the file.
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._load()

    def _load(self) -> None:
        self._series: dict[tuple[str, Metric], _Series] = {}
        self._by_id: dict[int, _Series] = {}
        self._journal: list[Rows] = []
        self._journal_rows = 0
        for number, region, namespace, name, dimensions in self._db.execute("SELECT * FROM series ORDER BY id"):
            metric = Metric(namespace, name, tuple((str(key), str(value)) for key, value in json.loads(dimensions)))
            self._add(_Series(number, region, metric))
        for number, last in self._db.execute("SELECT series, MAX(last) FROM packed GROUP BY series"):
            self._by_id[number].latest = last
        for (blob,) in self._db.execute("SELECT points FROM journal ORDER BY id"):
            self._remember(np.frombuffer(blob, POINT))

    def _add(self, series: _Series) -> None:
        self._series[series.region, series.metric] = series
        self._by_id[series.id] = series

    def _remember(self, points: Rows) -> None:
        for number, at in zip(points["series"].tolist(), points["t"].tolist(), strict=True):
            series = self._by_id[number]
            series.version += 1
            if at > series.latest:
                series.latest = at
        self._journal.append(points)
        self._journal_rows += len(points)

    def _recent(self) -> Rows:
        """What is in no block yet, in the order in which it came."""
        if len(self._journal) != 1:
            self._journal = [np.concatenate(self._journal) if self._journal else np.empty(0, POINT)]
        return self._journal[0]

    def put(
        self,
        region: str,
        namespace: str,
        name: str,
        dimensions: Mapping[str, str],
        value: float,
        *,
        unit: str = "None",
        at: float | None = None,
        resolution: int = 60,
    ) -> None:
        """One sample, from inside the local cloud (namespaces of AWS's own are allowed here)."""
        self.put_many(
            region,
            [
                Datum(
                    Metric.of(namespace, name, dimensions),
                    self._clock.now() if at is None else at,
                    samples=((float(value), 1.0),),
                    unit=unit,
                    resolution=resolution,
                )
            ],
        )

    def put_many(self, region: str, data: Iterable[Datum]) -> None:
        """All or nothing, in one transaction."""
        with self._lock:
            self._db.execute("BEGIN")
            try:
                rows: list[Row] = []
                for datum in data:
                    self._add_rows(rows, region, datum)
                points = np.array(rows, POINT)
                self._db.execute("INSERT INTO journal (points) VALUES (?)", (points.tobytes(),))
                self._db.execute("COMMIT")
            except BaseException:
                self._undo()
                self._forget_unsaved()
                raise
            self._remember(points)
            if self._journal_rows >= _JOURNAL_ROWS:
                self._compact()

    def _add_rows(self, rows: list[Row], region: str, datum: Datum) -> None:
        metric, at, samples, summary, unit, resolution = datum
        series = self._series.get((region, metric)) or self._create(region, metric)
        t, fine, code = int(at * 1000), 1, self._unit_codes[unit]
        if resolution != 1:
            t, fine = t // self._minute_ms * self._minute_ms, 0
        for value, count in samples:
            rows.append((t, value * count, count, value, value, series.id, code, fine))
        if summary is not None:
            rows.append((t, *summary, series.id, code, fine))

    def _create(self, region: str, metric: Metric) -> _Series:
        cursor = self._db.execute(
            "INSERT INTO series (region, namespace, name, dimensions) VALUES (?, ?, ?, ?)",
            (region, metric.namespace, metric.name, json.dumps(metric.dimensions)),
        )
        series = _Series(int(cursor.lastrowid or 0), region, metric)
        self._add(series)
        return series

    def _undo(self) -> None:
        if self._db.in_transaction:  # a full disk has ended it already
            self._db.execute("ROLLBACK")

    def _forget_unsaved(self) -> None:
        saved = {number for (number,) in self._db.execute("SELECT id FROM series")}
        for series in [series for number, series in self._by_id.items() if number not in saved]:
            del self._by_id[series.id], self._series[series.region, series.metric]

    def _compact(self) -> None:
        """Sort the journal into blocks, and drop what AWS would no longer keep."""
        self._db.execute("BEGIN")
        try:
            recent = self._recent()
            recent = recent[np.argsort(recent["series"], kind="stable")]
            numbers, starts = np.unique(recent["series"], return_index=True)
            for number, rows in zip(numbers.tolist(), np.split(recent, starts[1:]), strict=True):
                points = Points.of(rows)
                block = self._db.execute(
                    "SELECT id, points FROM packed WHERE series = ? AND rows < ? ORDER BY id DESC LIMIT 1",
                    (number, _SMALL_BLOCK_ROWS),
                ).fetchone()
                if block is not None:
                    points = Points.join((Points.unpack(block[1]), points))
                    self._db.execute("DELETE FROM packed WHERE id = ?", (block[0],))
                points = points[np.argsort(points.t, kind="stable")]
                self._db.execute(
                    "INSERT INTO packed (series, first, last, rows, points) VALUES (?, ?, ?, ?, ?)",
                    (number, int(points.t[0]), int(points.t[-1]), len(points), points.pack()),
                )
            oldest = int((self._clock.now() - _RETENTION_SECONDS) * 1000)
            self._db.execute("DELETE FROM packed WHERE last < ?", (oldest,))
            self._db.execute("DELETE FROM journal")
            self._db.execute("COMMIT")
        except BaseException:
            self._undo()
            raise
        self._journal, self._journal_rows = [], 0

    def read(self, region: str, metric: Metric, start: float, end: float) -> Points:
        """The points of `metric` with start <= time < end (seconds since the epoch), not in order."""
        first, last = int(np.ceil(start * 1000)), int(np.ceil(end * 1000))
        with self._lock:
            series = self._series.get((region, metric))
            if series is None:
                return Points.join(())
            packed = self._db.execute(
                "SELECT points FROM packed WHERE series = ? AND last >= ? AND first < ? ORDER BY id",
                (series.id, first, last),
            ).fetchall()
            recent = self._recent()
        rows = recent[recent["series"] == series.id]
        parts = [*(Points.unpack(block) for (block,) in packed), *([Points.of(rows)] if len(rows) else [])]
        return Points.join([_between(part, first, last) for part in parts])

    def version(self, region: str, metric: Metric) -> int:
        """A number that grows with each point of this metric; 0 before the first."""
        series = self._series.get((region, metric))
        return series.version if series else 0

    def metrics(self, region: str, newer_than: float) -> list[tuple[int, Metric]]:
        """(a number that only grows, metric) of every metric with a point after that time."""
        with self._lock:
            limit = newer_than * 1000
            return [
                (number, series.metric)
                for number, series in sorted(self._by_id.items())
                if series.region == region and series.latest >= limit
            ]

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            for table in ("journal", "packed", "series"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - the names are the three above
            self._load()

    def close(self) -> None:
        with self._lock:
            self._db.close()


class PacedMetrics:
    """The metrics of a store on the time of a `Pace`: what alarms look at."""

    def __init__(self, store: MetricStore, pace: Pace) -> None:
        self._store, self._pace = store, pace

    def read(self, region: str, metric: Metric, start: float, end: float) -> Points:
        """As :meth:`MetricStore.read`, with all times, in and out, those of the pace."""
        points = self._store.read(region, metric, self._pace.true(start), self._pace.true(end))
        if self._pace.speed == 1:
            return points
        zero = self._pace.of(0) * 1000
        return replace(points, t=np.floor(zero + points.t * self._pace.speed + 0.5).astype(np.int64))

    def metrics(self, region: str, newer_than: float) -> list[tuple[int, Metric]]:
        """As :meth:`MetricStore.metrics`."""
        return self._store.metrics(region, self._pace.true(newer_than))


def _between(points: Points, first: int, last: int) -> Points:
    times = points.t
    if not len(times) or (int(times.min()) >= first and int(times.max()) < last):
        return points
    return points[(times >= first) & (times < last)]
