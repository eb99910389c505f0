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
import re
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
        facts: where they come from: name -> of the first, of the second.
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
    facts: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def better(self) -> str:
        """The better version, or empty when the difference may be chance."""
        if self.p_value >= ALPHA:
            return ""
        return self.second if self.only_second > self.only_first else self.first

    def __str__(self) -> str:
        verdict = f"{self.better} is better" if self.better else "no significant difference"
        low, high = self.interval
        return (
            f"{self.second} against {self.first} on {self.samples} samples: {self.difference:+.4f} accuracy "
            f"(95 % {low:+.4f} to {high:+.4f}), p={self.p_value:.3g}: {verdict}"
        )

    def to_html(self) -> str:
        """One page without scripts or outside resources."""
        text = html.escape
        first, second, low, high = text(self.first), text(self.second), *self.interval
        rows = "".join(
            f"<tr><th scope=row>{text(name)}<td>{a:.4f}<td>{b:.4f}<td class={_sign(name, b - a)}>{b - a:+.4f}"
            for name, (a, b) in sorted(self.metrics.items())
        )
        facts = "".join(
            f"<tr><th scope=row>{text(name)}<td><code>{text(a) or '–'}</code><td><code>{text(b) or '–'}</code>"
            for name, (a, b) in self.facts.items()
        )
        verdict = f"{text(self.better)} is better" if self.better else "No significant difference"
        both = self.samples - self.only_first - self.only_second
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{first} and {second}</title><style>{_STYLE}</style>"
            f"<h1>{first} and {second}</h1><p class=verdict>{verdict}</p>"
            f"<p>{self.samples} samples, McNemar's exact test: p = {self.p_value:.3g}</p>"
            f"<h2>Accuracy of {second} minus that of {first}</h2>{_bar(self.difference, low, high)}"
            f"<p>{self.difference:+.4f}, with 95 % confidence from {low:+.4f} to {high:+.4f}</p>"
            f"<h2>Metrics</h2><table><tr><th><th>{first}<th>{second}<th>difference{rows}</table>"
            f"<h2>Where they differ</h2><table><tr><th scope=row>right only in {first}<td>{self.only_first}"
            f"<tr><th scope=row>right only in {second}<td>{self.only_second}"
            f"<tr><th scope=row>right in both, or wrong in both<td>{both}</table>"
            + (f"<h2>Where they come from</h2><table><tr><th><th>{first}<th>{second}{facts}</table>" if facts else "")
            + "</html>\n"
        )


_STYLE = (
    ":root{color-scheme:light dark;--line:#8884;--up:#1a7f37;--down:#c62828}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}.verdict{font-size:1.25rem;font-weight:600}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "td,th{text-align:left;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}"
    "th{white-space:nowrap}th[scope=row]{font-weight:400}.up{color:var(--up)}.down{color:var(--down)}svg{width:100%;height:3.5rem}"
    "@media(max-width:32rem){body{font-size:14px}td,th{padding-right:.4rem}}"
)


# Of these less is better; of all others, more.
_COSTS = re.compile(r"loss|err|latency|\bma?p?e\b|\br?mse\b|perplexity", re.IGNORECASE)


def _sign(name: str, difference: float) -> str:
    better = -difference if _COSTS.search(name) else difference
    return "up" if better > 0 else "down" if better < 0 else "same"


def _bar(difference: float, low: float, high: float) -> str:
    """The interval on a line that shows where no difference would be."""
    reach = 1.2 * max(abs(low), abs(high), 1e-6)

    def at(value: float) -> float:
        return round(300 + 300 * value / reach, 1)

    colour = "var(--up)" if low > 0 else "var(--down)" if high < 0 else "currentColor"
    return (
        f'<svg viewBox="0 0 600 56" role="img" aria-label="{low:+.4f} to {high:+.4f}">'
        '<line x1="0" x2="600" y1="28" y2="28" stroke="var(--line)"/>'
        '<line x1="300" x2="300" y1="8" y2="44" stroke="currentColor" stroke-dasharray="3 3"/>'
        '<text x="300" y="55" font-size="11" text-anchor="middle" fill="currentColor">0</text>'
        f'<line x1="{at(low)}" x2="{at(high)}" y1="28" y2="28" stroke="{colour}" stroke-width="6" stroke-linecap="round"/>'
        f'<circle cx="{at(difference)}" cy="28" r="7" fill="{colour}"/></svg>'
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
