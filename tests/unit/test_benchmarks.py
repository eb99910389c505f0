"""The form that every benchmark has: bounds decide the exit code, and the JSON says what the table says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import Row, compare, main


def row(ours: float, peer: float, bound: str) -> Row:
    return Row("thing", ours, peer, peer_name="other thing", unit="ms", bound=bound)


@pytest.mark.parametrize(
    ("ours", "peer", "bound", "holds"),
    [
        (1.0, 10.0, "<= 0.15", True),
        (1.5, 10.0, "<= 0.15", True),
        (1.6, 10.0, "<= 0.15", False),
        (30.0, 10.0, ">= 2", True),
        (20.0, 10.0, ">= 2", True),
        (19.0, 10.0, ">= 2", False),
        (float("nan"), 10.0, "<= 2", False),
        (float("nan"), 10.0, ">= 2", False),
        (30.0, 10.0, "none", True),
    ],
)
def test_a_bound_decides_the_exit_code(ours: float, peer: float, bound: str, holds: bool) -> None:
    comparison = row(ours, peer, bound)

    assert comparison.holds is holds
    assert main("thing", lambda quick: [comparison], packages=[], arguments=[]) == (0 if holds else 1)


def test_one_broken_bound_among_many_is_enough() -> None:
    rows = [row(1, 2, "<= 1"), row(3, 2, "<= 1"), row(1, 2, "<= 1")]

    assert main("thing", lambda quick: rows, packages=[], arguments=[]) == 1


def test_the_json_says_what_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(1.23456, 10.0, "<= 0.15"), row(5.0, 2.0, "<= 1.5")]

    main("thing", lambda quick: rows, packages=["rich"], arguments=["--json", str(tmp_path / "new" / "thing.json")])

    report = json.loads((tmp_path / "new" / "thing.json").read_text())
    printed = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("│", "┃"))
    ]
    assert printed == [
        ["what", "ours", "peer", "ratio", "bound", "holds"],
        *(
            [
                entry["what"],
                f"{entry['ours']:.3g} {entry['unit']}",
                f"{entry['peer']:.3g} {entry['unit']} ({entry['peer_name']})",
                f"{entry['ratio']:.3g}",
                entry["bound"],
                "yes" if entry["holds"] else "NO",
            ]
            for entry in report["rows"]
        ),
    ]
    assert [entry["ratio"] for entry in report["rows"]] == pytest.approx([0.123456, 2.5])
    assert [entry["holds"] for entry in report["rows"]] == [True, False]
    assert set(report["versions"]) == {"rich"}
    assert set(report["machine"]) == {"processor", "cores", "system", "python"}


def test_quick_reaches_the_measurement() -> None:
    asked: list[bool] = []

    def measure(quick: bool) -> list[Row]:
        asked.append(quick)
        return [row(1, 2, "<= 1")]

    main("thing", measure, packages=[], arguments=["--quick"])
    main("thing", measure, packages=[], arguments=[])

    assert asked == [True, False]


def test_rounds_alternate_after_a_warm_up_and_medians_are_compared() -> None:
    # Given measurements with a slow first call and one outlier each
    calls: list[str] = []
    values = {"ours": iter([99.0, 1.0, 2.0, 50.0, 3.0]), "peer": iter([99.0, 10.0, 20.0, 500.0, 30.0])}

    def measurement(name: str, series: Iterator[float]) -> float:
        calls.append(name)
        return next(series)

    # When they are compared over four rounds
    comparison = compare(
        "thing",
        lambda: measurement("ours", values["ours"]),
        lambda: measurement("peer", values["peer"]),
        peer_name="other thing",
        unit="ms",
        bound="<= 1",
        rounds=4,
    )

    # Then neither is always first, and the first call and the outlier do not show
    assert calls == ["ours", "peer"] + ["ours", "peer", "peer", "ours"] * 2
    assert (comparison.ours, comparison.peer) == (2.5, 25.0)


@pytest.mark.parametrize("bound", ["0.15", "< 0.15", "<= fast", "<=0.15", "<= -1", ""])
def test_a_bound_that_cannot_be_read_is_refused(bound: str) -> None:
    with pytest.raises(ValueError, match=re.escape("write '<= 0.15' or '>= 2'")):
        row(1, 2, bound)


@pytest.mark.parametrize("peer", [0.0, float("nan")])
def test_a_peer_that_measured_nothing_gives_no_ratio(peer: float) -> None:
    with pytest.raises(ValueError, match="there is no ratio to it"):
        row(1, peer, "<= 1")


def test_a_command_that_fails_ends_the_benchmark_and_says_why() -> None:
    from benchmarks.imports import import_time, wall_time

    with pytest.raises(SystemExit, match="ended with 3:\nbroken"):
        wall_time([sys.executable, "-c", "import sys; print('broken', file=sys.stderr); sys.exit(3)"])()
    with pytest.raises(SystemExit, match="No module named 'no_such_module'"):
        import_time("no_such_module")()


def test_times_are_in_milliseconds() -> None:
    from benchmarks.imports import import_time, wall_time

    wall = wall_time([sys.executable, "-c", "import json"])()
    inside = import_time("json")()

    assert 0 < inside < wall
    assert 1 < wall < 60_000
