from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.local.manual_clock import ManualClock
from windlass.local.cloudwatch import metric_store
from windlass.local.cloudwatch.metric_store import Datum, Metric, MetricStore

REGION = "us-east-1"
LATENCY = Metric.of("W", "Latency", {"EndpointName": "digits"})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[MetricStore]:
    opened = MetricStore(tmp_path / "metrics.sqlite", clock)
    yield opened
    opened.close()


def fine(at: float, *values: float) -> Datum:
    return Datum(LATENCY, at, tuple((value, 1.0) for value in values), resolution=1)


def values(store: MetricStore, metric: Metric = LATENCY, region: str = REGION) -> list[float]:
    return sorted(store.read(region, metric, 0, 4e9).low.tolist())


def test_what_is_put_is_read_in_its_time_range_alone(store: MetricStore, clock: ManualClock) -> None:
    now = clock.now()
    store.put_many(REGION, [fine(now, 1.0), fine(now + 10, 2.0), fine(now + 20, 3.0)])
    assert store.read(REGION, LATENCY, now, now + 20).low.tolist() == [1.0, 2.0]
    assert store.read(REGION, LATENCY, now + 0.5, now + 21).low.tolist() == [2.0, 3.0]


def test_metrics_are_told_apart_by_region_namespace_name_and_all_dimensions(store: MetricStore) -> None:
    store.put(REGION, "W", "Latency", {"EndpointName": "digits"}, 1.0)
    store.put("eu-west-1", "W", "Latency", {"EndpointName": "digits"}, 2.0)
    store.put(REGION, "W", "Latency", {"EndpointName": "digits", "VariantName": "A"}, 3.0)
    store.put(REGION, "V", "Latency", {"EndpointName": "digits"}, 4.0)
    assert values(store) == [1.0]
    assert values(store, region="eu-west-1") == [2.0]


def test_the_order_of_dimensions_does_not_matter() -> None:
    assert Metric.of("W", "m", {"a": "1", "b": "2"}) == Metric.of("W", "m", {"b": "2", "a": "1"})


def test_standard_resolution_is_kept_by_the_minute(store: MetricStore, clock: ManualClock) -> None:
    clock.advance(59)
    store.put(REGION, "W", "Latency", {"EndpointName": "digits"}, 1.0)
    store.put(REGION, "W", "Latency", {"EndpointName": "digits"}, 1.0, resolution=1)
    times = store.read(REGION, LATENCY, 0, 4e9).t / 1000 - clock.START
    assert times.tolist() == [0, 59]


@pytest.mark.parametrize("journal_rows", [1, 7, 1000])
def test_points_survive_compaction_and_a_restart(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, journal_rows: int
) -> None:
    monkeypatch.setattr(metric_store, "_JOURNAL_ROWS", journal_rows)
    store = MetricStore(tmp_path / "m.sqlite", clock)
    expected: list[float] = []
    for number in range(50):
        store.put_many(REGION, [fine(clock.now() + number % 7, float(number))])
        expected.append(float(number))
        assert values(store) == expected
    version = store.version(REGION, LATENCY)
    assert version >= 50
    store.close()
    again = MetricStore(tmp_path / "m.sqlite", clock)
    assert values(again) == expected
    assert [metric for _, metric in again.metrics(REGION, 0)] == [LATENCY]
    again.close()


def test_a_put_that_fails_leaves_nothing_behind(store: MetricStore, clock: ManualClock) -> None:
    bad = Datum(Metric.of("W", "other", {}), clock.now(), ((1.0, 1.0),), unit="Furlongs")
    with pytest.raises(KeyError):
        store.put_many(REGION, [fine(clock.now(), 1.0), bad])
    assert values(store) == []
    assert store.metrics(REGION, 0) == []
    store.put_many(REGION, [fine(clock.now(), 2.0)])
    assert values(store) == [2.0]


def test_what_is_too_old_goes_with_the_next_compaction(
    store: MetricStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_store, "_JOURNAL_ROWS", 1)
    monkeypatch.setattr(metric_store, "_SMALL_BLOCK_ROWS", 1)
    store.put_many(REGION, [fine(clock.now(), 1.0)])
    clock.advance(456 * 86_400)
    store.put_many(REGION, [fine(clock.now(), 2.0)])
    assert values(store) == [2.0]


def test_versions_grow_with_each_point_of_that_metric(store: MetricStore, clock: ManualClock) -> None:
    assert store.version(REGION, LATENCY) == 0
    store.put_many(REGION, [fine(clock.now(), 1.0)])
    before = store.version(REGION, LATENCY)
    store.put(REGION, "W", "Other", {}, 1.0)
    assert store.version(REGION, LATENCY) == before
    store.put_many(REGION, [fine(clock.now(), 1.0)])
    assert store.version(REGION, LATENCY) > before


def test_reset_forgets_everything(store: MetricStore, clock: ManualClock) -> None:
    store.put_many(REGION, [fine(clock.now(), 1.0)])
    store.reset()
    assert values(store) == []
    assert store.metrics(REGION, 0) == []


def test_many_threads_lose_nothing(store: MetricStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_store, "_JOURNAL_ROWS", 100)

    def work(thread: int) -> None:
        for number in range(50):
            store.put_many(REGION, [fine(clock.now() + number, float(thread * 50 + number))])
            store.read(REGION, LATENCY, 0, 4e9)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values(store) == [float(number) for number in range(200)]


def test_statistic_sets_keep_their_four_numbers(store: MetricStore, clock: ManualClock) -> None:
    store.put_many(REGION, [Datum(LATENCY, clock.now(), summary=(30.0, 3.0, 5.0, 15.0))])
    points = store.read(REGION, LATENCY, 0, 4e9)
    assert [column.tolist() for column in (points.total, points.count, points.low, points.high)] == [
        [30],
        [3],
        [5],
        [15],
    ]


def test_a_full_disk_loses_what_did_not_fit_and_nothing_else(tmp_path: Path, clock: ManualClock) -> None:
    # Given a store whose file cannot grow
    store = MetricStore(tmp_path / "metrics.sqlite", clock)
    store.put_many(REGION, [fine(clock.now(), 1.0)])
    [pages] = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages}")
    new = Metric.of("W", "x" * 255, {"EndpointName": "digits"})
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.put_many(REGION, [Datum(new, clock.now(), ((1.0, 1.0),))] * 10_000)
    assert values(store, new) == []

    # When there is room again
    store._db.execute("PRAGMA max_page_count=1000000")
    store.put_many(REGION, [Datum(new, clock.now(), ((2.0, 1.0),))])
    store.close()

    # Then it goes on, and what it holds can be opened again
    again = MetricStore(tmp_path / "metrics.sqlite", clock)
    assert values(again, new) == [2.0]
    again.close()
