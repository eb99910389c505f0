"""Which hyperparameters are tried next, and which trials are given up."""

from __future__ import annotations

import builtins
import math
import sys
from typing import Any

import pytest

from windlass.local.faults import Fault
from windlass.local.jobs.search import Range, Search, parse_ranges, require_optuna

LR = {"Name": "lr", "MinValue": "0.0001", "MaxValue": "0.1"}


def drawn(search: Search, name: str, count: int = 200) -> list[float]:
    trials = [search.ask() for _ in range(count)]
    for trial in trials:
        assert trial is not None
        search.tell(trial, None)
    return [float(trial.values[name]) for trial in trials if trial]


def random_search(*ranges: Range, seed: int = 7) -> Search:
    return Search(ranges, strategy="Random", maximize=False, seed=seed)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize(
    ("scaling", "middle"),
    [("Linear", 0.05), ("Logarithmic", math.sqrt(0.0001 * 0.1)), ("Auto", math.sqrt(0.0001 * 0.1))],
)
def test_continuous_ranges_are_scaled(scaling: str, middle: float) -> None:
    ranges = parse_ranges({"ContinuousParameterRanges": [{**LR, "ScalingType": scaling}]})

    values = drawn(random_search(*ranges), "lr")

    assert 0.0001 <= min(values) <= max(values) <= 0.1
    assert middle / 2 < median(values) < middle * 2


def test_reverse_logarithmic_is_fine_near_one() -> None:
    given = {"Name": "momentum", "MinValue": "0.5", "MaxValue": "0.999", "ScalingType": "ReverseLogarithmic"}

    values = drawn(random_search(*parse_ranges({"ContinuousParameterRanges": [given]})), "momentum")

    assert 0.5 <= min(values) <= max(values) <= 0.999
    assert 0.96 < median(values) < 0.99  # 1 - sqrt(0.5 * 0.001) = 0.978


def test_integers_are_whole_and_reach_both_ends() -> None:
    ranges = parse_ranges({"IntegerParameterRanges": [{"Name": "n", "MinValue": "1", "MaxValue": "3"}]})
    search = random_search(*ranges)

    shown = {trial.values["n"] for _ in range(60) if (trial := search.ask())}

    assert shown == {"1", "2", "3"}


def test_a_seed_repeats_the_choices() -> None:
    ranges = parse_ranges(
        {"ContinuousParameterRanges": [LR], "CategoricalParameterRanges": [{"Name": "opt", "Values": ["a", "b"]}]}
    )

    def choices(seed: int) -> list[dict[str, str]]:
        search = random_search(*ranges, seed=seed)
        return [trial.values for _ in range(5) if (trial := search.ask())]

    assert choices(1) == choices(1) != choices(2)


def test_a_grid_is_walked_once() -> None:
    ranges = [Range("a", values=("x", "y")), Range("b", values=("1", "2", "3"))]
    search = Search(ranges, strategy="Grid", maximize=True, seed=3)

    trials = [search.ask() for _ in range(6)]

    assert {(t.values["a"], t.values["b"]) for t in trials if t} == {(a, b) for a in "xy" for b in "123"}
    assert search.ask() is None
    for trial in trials:
        assert trial is not None
        search.tell(trial, 1.0)


def test_bayesian_search_closes_in_on_the_best() -> None:
    [x] = parse_ranges({"ContinuousParameterRanges": [{"Name": "x", "MinValue": "-10", "MaxValue": "10"}]})
    search = Search([x], strategy="Bayesian", maximize=False, seed=1)
    errors = []
    for _ in range(60):
        trial = search.ask()
        assert trial is not None
        errors.append((float(trial.values["x"]) - 3) ** 2)
        search.tell(trial, errors[-1])

    assert median(errors[-20:]) < median(errors[:10]) / 4
    assert min(errors) < 0.1


def test_what_an_earlier_job_found_is_where_a_warm_start_begins() -> None:
    [x] = parse_ranges({"ContinuousParameterRanges": [{"Name": "x", "MinValue": "-10", "MaxValue": "10"}]})
    search = Search([x], strategy="Bayesian", maximize=False, seed=1)

    learned = [search.learn({"x": str(at)}, (at - 3.0) ** 2) for at in range(-10, 11)]

    assert all(learned)
    assert not search.learn({"x": "11"}, 0.0)
    assert not search.learn({"y": "1"}, 0.0)
    assert abs(median(drawn(search, "x", 10)) - 3) < 2


def test_hyperband_gives_bad_trials_up_early() -> None:
    search = Search([Range("x", high=1.0)], strategy="Hyperband", maximize=True, seed=5, resources=(1, 9))
    lengths: dict[float, int] = {}
    for number in range(40):
        trial = search.ask()
        assert trial is not None
        quality = float(number % 2)
        steps = 1
        while steps < 9 and not search.report(trial, quality * steps):
            steps += 1
        lengths[quality] = lengths.get(quality, 0) + steps
        search.tell(trial, quality * steps, stopped=steps < 9)

    assert lengths[0.0] < lengths[1.0] / 1.5


def test_early_stopping_gives_up_what_is_below_the_median() -> None:
    search = Search([Range("x", high=1.0)], strategy="Random", maximize=False, seed=5, early_stopping=True)
    for _ in range(4):
        trial = search.ask()
        assert trial is not None
        assert not any(search.report(trial, 1.0 / step) for step in (1, 2, 3))
        search.tell(trial, 0.3)

    bad = search.ask()

    assert bad is not None
    assert any(search.report(bad, 5.0) for _ in range(3))
    search.tell(bad, 5.0, stopped=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"IntegerParameterRanges": [{"Name": "n", "MinValue": "1.5", "MaxValue": "3"}]}, "must be integer numbers"),
        ({"IntegerParameterRanges": [{"Name": "n", "MinValue": "4", "MaxValue": "3"}]}, "less than or equal"),
        ({"ContinuousParameterRanges": [{**LR, "MaxValue": "inf"}]}, "less than or equal"),
        ({"ContinuousParameterRanges": [{**LR, "MinValue": "0", "ScalingType": "Logarithmic"}]}, "MinValue above 0"),
        ({"ContinuousParameterRanges": [{**LR, "MaxValue": "1", "ScalingType": "ReverseLogarithmic"}]}, "0 <= x < 1"),
        ({"ContinuousParameterRanges": [LR, LR]}, "several"),
        ({"CategoricalParameterRanges": [{"Name": "c", "Values": ["a", "a"]}]}, "repeated"),
        ({"AutoParameters": [{"Name": "a", "ValueHint": "1"}]}, "AutoParameters"),
    ],
)
def test_ranges_that_are_none_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=said):
        parse_ranges(given)


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(Fault, match=r"pip install 'windlass\[tune\]'"):
        require_optuna()
