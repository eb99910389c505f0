"""Is one version better than another, or only luckier? A paired test on the same evaluation set. Pure.

    answer = compare("digits/3", first_evaluation, "digits/5", second_evaluation)
    answer.p_value, answer.better         # "digits/5", or "" when the difference may be chance
    Path("comparison.html").write_text(answer.to_html())

Evaluations say for each sample whether it was answered rightly (``correct``: a string of 0 and 1) and which samples they were
(``evaluation_set``: a digest of them). McNemar's exact test looks only at samples where the versions differ: under the null
hypothesis each is a fair coin (McNemar, Psychometrika 12, 1947; the binomial form needs no large numbers).
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from windlass.errors import InvalidInput

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two versions on one evaluation set.

    Attributes:
        only_first, only_second: samples that one answered rightly and the other did not.
        difference: accuracy of the second minus that of the first.
        interval: of the difference, at 95 % confidence (Wald interval for paired shares).
        p_value: of McNemar's exact test, two-sided.
        metrics: name -> value of the first, value of the second.
    """

    first: str
    second: str
    samples: int
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def better(self) -> str:
        """The better version, or empty when the difference may be chance."""
        if self.p_value >= ALPHA:
            return ""
        return self.second if self.only_second > self.only_first else self.first

    def __str__(self) -> str:
        verdict = f"{self.better} is better" if self.better else "no difference that could not be chance"
        low, high = self.interval
        return (
            f"{self.second} against {self.first} on {self.samples} samples: {self.difference:+.4f} accuracy "
            f"(95 % {low:+.4f} to {high:+.4f}), p={self.p_value:.3g}: {verdict}"
        )

    def to_html(self) -> str:
        """One page without scripts or outside resources."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}<td>{a:.4f}<td>{b:.4f}<td>{b - a:+.4f}"
            for name, (a, b) in sorted(self.metrics.items())
        )
        first, second = html.escape(self.first), html.escape(self.second)
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{first} and {second}</title>'
            "<style>body{font:16px system-ui;max-width:48rem;margin:2rem auto;padding:0 1rem}"
            "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ccc}"
            "</style>"
            f"<h1>{first} and {second}</h1><p>{html.escape(str(self))}</p>"
            f"<table><tr><th>metric<th>{first}<th>{second}<th>difference{rows}</table>"
            f"<h2>Where they differ</h2><table><tr><th>right only in {first}<td>{self.only_first}"
            f"<tr><th>right only in {second}<td>{self.only_second}</table></html>\n"
        )


def compare(first: str, before: Mapping[str, Any], second: str, after: Mapping[str, Any]) -> Comparison:
    """Compare two evaluations of one evaluation set.

    Raises:
        InvalidInput: they do not say which samples were right, or are not over the same samples.
    """
    where = f"Comparing {first} and {second}"
    right = [_right(name, evaluation, where) for name, evaluation in ((first, before), (second, after))]
    if before.get("evaluation_set") != after.get("evaluation_set") or len(right[0]) != len(right[1]):
        raise InvalidInput(
            "they were evaluated on different data, so a paired test says nothing",
            where=where,
            hint="Evaluate both runs on one test set, and register them with that.",
        )
    only_first = sum(a > b for a, b in zip(*right, strict=True))
    only_second = sum(a < b for a, b in zip(*right, strict=True))
    samples = len(right[0])
    difference = (only_second - only_first) / samples
    spread = math.sqrt(max(0.0, only_first + only_second - (only_second - only_first) ** 2 / samples)) / samples
    values = [metric_values(evaluation) for evaluation in (before, after)]
    return Comparison(
        first,
        second,
        samples,
        only_first,
        only_second,
        difference,
        (difference - 1.96 * spread, difference + 1.96 * spread),
        mcnemar(only_first, only_second),
        {name: (values[0][name], values[1][name]) for name in values[0].keys() & values[1].keys()},
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value for the two counts of samples on which two models differ.

    >>> round(mcnemar(2, 12), 4)
    0.0129
    >>> mcnemar(0, 0)
    1.0
    """
    count, least = only_first + only_second, min(only_first, only_second)
    if not count:
        return 1.0
    # In logarithms: 2 ** -count is no float beyond a thousand samples that differ.
    half = math.log(0.5) * count
    terms = (
        math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + half)
        for k in range(least + 1)
    )
    return min(1.0, 2 * math.fsum(terms))


def metric_values(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of an evaluation in SageMaker's model quality format: metric name -> value."""
    return {
        name: float(item["value"])
        for group, items in evaluation.items()
        if group.endswith("_metrics") and isinstance(items, Mapping)
        for name, item in items.items()
        if isinstance(item, Mapping) and isinstance(item.get("value"), int | float)
    }


def _right(name: str, evaluation: Mapping[str, Any], where: str) -> Sequence[str]:
    correct = evaluation.get("correct")
    if not isinstance(correct, str) or not correct or correct.strip("01") or not evaluation.get("evaluation_set"):
        hint = "evaluate.py writes 'correct' (a 0 or 1 for each sample) and 'evaluation_set' (a digest) to evaluation.json."
        raise InvalidInput(f"the evaluation of {name} does not say which samples were right", where=where, hint=hint)
    return correct
