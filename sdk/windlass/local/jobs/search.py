"""The search of a tuning job: which hyperparameters to try next, and which trial is not worth finishing.

    search = Search(ranges, strategy="Bayesian", maximize=False, seed=7)
    trial = search.ask()                    # trial.values: {"lr": "0.003", "layers": "4"}
    search.report(trial, 0.9)               # after each value of the objective: True when it should be stopped
    search.tell(trial, 0.31)

SageMaker's strategies stand on Optuna: Random on RandomSampler, Bayesian on TPESampler, Hyperband on TPESampler with
HyperbandPruner, early stopping (Auto) on MedianPruner.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from windlass.local.faults import Fault

if TYPE_CHECKING:
    import optuna

WIDE = 1000.0
"""ScalingType Auto takes logarithms of a positive range that spans this factor; SageMaker keeps its own rule to itself."""

HYPERBAND_RESOURCES = (1, 27)
"""MinResource and MaxResource when the request has none. SageMaker finds them by itself."""

EARLY_STOPPING_TRIALS = 3
"""A median of fewer trials says nothing."""


@dataclass(frozen=True)
class Range:
    """One hyperparameter's range.

    Attributes:
        values: of a categorical one; empty for numbers.
        scaling: Linear, Logarithmic or ReverseLogarithmic.
    """

    name: str
    integer: bool = False
    low: float = 0.0
    high: float = 0.0
    scaling: str = "Linear"
    values: tuple[str, ...] = ()

    @property
    def size(self) -> float:
        """How many values it has."""
        return len(self.values) if self.values else self.high - self.low + 1 if self.integer else math.inf

    def distribution(self) -> Any:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.values:
            return CategoricalDistribution(self.values)
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.scaling == "Logarithmic")
        if self.scaling == "ReverseLogarithmic":  # logarithmic in the distance from 1
            return FloatDistribution(1.0 - self.high, 1.0 - self.low, log=True)
        return FloatDistribution(self.low, self.high, log=self.scaling == "Logarithmic")

    def shown(self, value: Any) -> str:
        """What the training job gets for a value of the distribution."""
        if self.values:
            return str(value)
        if self.integer:
            return str(int(value))
        number = 1.0 - value if self.scaling == "ReverseLogarithmic" else value
        return repr(min(max(float(number), self.low), self.high))

    def read(self, text: str) -> Any:
        """The value of the distribution that a training job got. Raises ValueError when it lies outside of the range."""
        if self.values:
            if text not in self.values:
                raise ValueError(text)
            return text
        number = float(text)
        if not self.low <= number <= self.high:
            raise ValueError(text)
        if self.integer:
            return int(number)
        return 1.0 - number if self.scaling == "ReverseLogarithmic" else number


@dataclass(eq=False)
class Trial:
    """One choice. ``values`` are the hyperparameters as a training job gets them."""

    values: dict[str, str]
    inner: optuna.trial.Trial
    reports: int = 0


class Search:
    """The search of one training job definition.

    Args:
        strategy: Random, Grid, Bayesian or Hyperband.
        seed: the same seed makes the same choices, as far as the answers come in the same order.
        early_stopping: TrainingJobEarlyStoppingType Auto.
        resources: Hyperband's MinResource and MaxResource, in reports of the objective.
    """

    def __init__(
        self,
        ranges: Sequence[Range],
        *,
        strategy: str,
        maximize: bool,
        seed: int | None = None,
        early_stopping: bool = False,
        resources: tuple[int, int] = HYPERBAND_RESOURCES,
    ) -> None:
        optuna = require_optuna()
        self.ranges = {each.name: each for each in ranges}
        self._distributions = {each.name: each.distribution() for each in ranges}
        if strategy == "Hyperband":
            pruner = optuna.pruners.HyperbandPruner(min_resource=resources[0], max_resource=resources[1])
        elif early_stopping:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=EARLY_STOPPING_TRIALS, n_warmup_steps=1)
        else:
            pruner = optuna.pruners.NopPruner()
        random_only = strategy in ("Random", "Grid")
        sampler = (optuna.samplers.RandomSampler if random_only else optuna.samplers.TPESampler)(seed=seed)
        self._study = optuna.create_study(
            direction="maximize" if maximize else "minimize", sampler=sampler, pruner=pruner
        )
        self._left: int | None = None
        if strategy == "Grid":
            grid = list(itertools.product(*(each.values for each in ranges)))
            random.Random(seed).shuffle(grid)  # noqa: S311 - the order only
            for point in grid:
                self._study.enqueue_trial(dict(zip(self.ranges, point, strict=True)))
            self._left = len(grid)

    def ask(self) -> Trial | None:
        """The next choice; None when every point of the grid has been given."""
        if self._left is not None:
            if self._left == 0:
                return None
            self._left -= 1
        inner = self._study.ask(self._distributions)
        return Trial({name: self.ranges[name].shown(value) for name, value in inner.params.items()}, inner)

    def report(self, trial: Trial, value: float) -> bool:
        """The objective while the trial runs. Returns whether it should be stopped."""
        trial.reports += 1
        trial.inner.report(value, trial.reports)
        return bool(trial.inner.should_prune())

    def tell(self, trial: Trial, value: float | None, *, stopped: bool = False) -> None:
        """The objective at the trial's end; None when it has none. ``stopped``: it was not finished."""
        from optuna.trial import TrialState

        if stopped and trial.reports:
            self._study.tell(trial.inner, state=TrialState.PRUNED)
        elif value is None or stopped:
            self._study.tell(trial.inner, state=TrialState.FAIL)
        else:
            self._study.tell(trial.inner, value)

    def learn(self, values: Mapping[str, str], objective: float) -> bool:
        """Begin with what an earlier tuning job found. False when its values do not lie in these ranges."""
        from optuna.trial import create_trial

        try:
            params = {name: each.read(values[name]) for name, each in self.ranges.items()}
        except (KeyError, ValueError):
            return False
        self._study.add_trial(create_trial(params=params, distributions=self._distributions, value=objective))
        return True


def parse_ranges(given: Mapping[str, Any]) -> list[Range]:
    """The ranges of a request. Raises AWS's ValidationException for those that are none."""
    if given.get("AutoParameters"):
        raise Fault("ValidationException", "The local cloud does not implement AutoParameters.")
    ranges = [
        *(_number(each, integer=True) for each in given.get("IntegerParameterRanges") or []),
        *(_number(each, integer=False) for each in given.get("ContinuousParameterRanges") or []),
        *(Range(each["Name"], values=tuple(each["Values"])) for each in given.get("CategoricalParameterRanges") or []),
    ]
    names = [each.name for each in ranges]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise Fault("ValidationException", f"Hyperparameters can have one range only, but {repeated} have several.")
    for each in ranges:
        if len(set(each.values)) < len(each.values):
            raise Fault("ValidationException", f"The values of categorical hyperparameter '{each.name}' are repeated.")
    return ranges


def require_optuna() -> Any:
    """The library, quiet. Raises a clear error where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise Fault(
            "ValidationException",
            "The local cloud needs Optuna to tune hyperparameters. Install it where the local cloud runs: pip install"
            " 'windlass[tune]'",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _number(given: Mapping[str, Any], *, integer: bool) -> Range:
    name, scaling = given["Name"], given.get("ScalingType", "Auto")
    kind = "integer" if integer else "continuous"
    try:
        low, high = (float(int(given[end])) if integer else float(given[end]) for end in ("MinValue", "MaxValue"))
    except ValueError as error:
        raise Fault(
            "ValidationException",
            f"MinValue '{given['MinValue']}' and MaxValue '{given['MaxValue']}' of {kind} hyperparameter '{name}' must be"
            f" {kind} numbers.",
        ) from error
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise Fault(
            "ValidationException",
            f"MinValue {given['MinValue']} of hyperparameter '{name}' must be less than or equal to its MaxValue"
            f" {given['MaxValue']}.",
        )
    if scaling == "Auto":
        scaling = "Logarithmic" if low > 0 and high / low >= WIDE else "Linear"
    if scaling == "Logarithmic" and low <= 0:
        raise Fault(
            "ValidationException",
            f"Logarithmic scaling needs a MinValue above 0, which hyperparameter '{name}' has not.",
        )
    if scaling == "ReverseLogarithmic" and (integer or not 0 <= low <= high < 1):
        raise Fault(
            "ValidationException",
            "ReverseLogarithmic scaling needs a continuous range within 0 <= x < 1.0, which hyperparameter"
            f" '{name}' has not.",
        )
    return Range(name, integer, low, high, scaling)
