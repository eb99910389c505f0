"""CloudWatch's search expressions: which metrics ``SEARCH('{AWS/SageMaker,EndpointName} Invocations', ...)`` means.

    search = Search.parse('{AWS/SageMaker,EndpointName,VariantName} digits NOT 5XX')
    search.finds(metric)

The syntax is that of the CloudWatch user guide, "CloudWatch search expression syntax".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from windlass.local.cloudwatch.metric_store import Metric

_TOKEN = re.compile(
    r'\s*(?:(?P<sign>[()])|(?P<property>"[^"]*"|[\w:./#-]+)\s*=\s*(?P<value>"[^"]*"|[^\s()"]+)'
    r'|(?P<quoted>"[^"]*")|(?P<word>[^\s()"=]+))'
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

Test = Callable[[Metric], bool]


class SearchError(ValueError):
    """The search is wrong; the message says where."""


@dataclass(frozen=True)
class Search:
    """A parsed search.

    Attributes:
        namespace, dimensions: of the schema in braces; None where there is none.
    """

    text: str
    namespace: str | None
    dimensions: frozenset[str] | None
    _test: Test

    @classmethod
    def parse(cls, text: str) -> Search:
        """Raises SearchError."""
        rest = text.strip()
        namespace, dimensions = None, None
        if rest.startswith("{"):
            schema, brace, rest = rest[1:].partition("}")
            if not brace:
                raise SearchError(f"A '}}' is missing in the search '{text}'")
            names = [name.strip().strip('"') for name in schema.split(",")]
            namespace, dimensions = names[0], frozenset(names[1:])
        return cls(text, namespace, dimensions, _Parser(text, rest).parse())

    def finds(self, metric: Metric) -> bool:
        """Whether the metric is of the schema, with exactly its dimensions, and of the words."""
        if self.namespace is not None and metric.namespace != self.namespace:
            return False
        if self.dimensions is not None and {name for name, _ in metric.dimensions} != self.dimensions:
            return False
        return self._test(metric)


class _Parser:
    def __init__(self, whole: str, text: str) -> None:
        self._whole = whole
        self._tokens: list[re.Match[str]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise SearchError(f"Unexpected '{text[position:].strip()[0]}' in the search '{whole}'")
            self._tokens.append(match)
            position = match.end()
        self._position = 0

    def parse(self) -> Test:
        if not self._tokens:
            return lambda _: True
        test = self._either()
        if self._position < len(self._tokens):
            raise SearchError(f"Unexpected '{self._tokens[self._position][0].strip()}' in the search '{self._whole}'")
        return test

    def _peek(self) -> str:
        return self._tokens[self._position][0].strip() if self._position < len(self._tokens) else ""

    def _either(self) -> Test:
        tests = [self._both()]
        while self._peek() == "OR":
            self._position += 1
            tests.append(self._both())
        return lambda metric: any(test(metric) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._peek() not in ("", "OR", ")"):
            if self._peek() == "AND":  # what stands side by side is joined by it anyway
                self._position += 1
            tests.append(self._one())
        return lambda metric: all(test(metric) for test in tests)

    def _one(self) -> Test:
        if self._position >= len(self._tokens):
            raise SearchError(f"The search '{self._whole}' ends too early")
        token = self._tokens[self._position]
        self._position += 1
        if token["sign"] == "(":
            test = self._either()
            if self._peek() != ")":
                raise SearchError(f"A ')' is missing in the search '{self._whole}'")
            self._position += 1
            return test
        if token["sign"]:
            raise SearchError(f"Unexpected ')' in the search '{self._whole}'")
        if token["property"]:
            return _property(token["property"].strip('"'), token["value"])
        if token["word"] == "NOT":
            inner = self._one()
            return lambda metric: not inner(metric)
        return _anywhere(token["quoted"] or token["word"])


def _texts(metric: Metric) -> list[str]:
    pairs = [text for pair in metric.dimensions for text in pair]
    return [metric.namespace, metric.name, *pairs]


def _property(name: str, value: str) -> Test:
    """``MetricName="Exactly this"``, or ``EndpointName=words``."""
    exact, wanted = value.startswith('"'), value.strip('"')

    def test(metric: Metric) -> bool:
        known = {"MetricName": metric.name, "Namespace": metric.namespace, **dict(metric.dimensions)}
        found = known.get(name)
        return found is not None and (found == wanted if exact else _holds(found, _words(wanted)))

    return test


def _anywhere(text: str) -> Test:
    if text.startswith('"'):
        wanted = text.strip('"')
        return lambda metric: wanted in _texts(metric)
    words = _words(text)
    return lambda metric: any(_holds(each, words) for each in _texts(metric))


def _words(text: str) -> list[str]:
    """``CPUUtilization`` is ``cpu`` and ``utilization``; case does not matter."""
    return [word.lower() for word in _WORDS.findall(text)]


def _holds(text: str, wanted: Sequence[str]) -> bool:
    """Whether those words stand in the text, side by side."""
    words, size = _words(text), len(wanted)
    return any(words[start : start + size] == list(wanted) for start in range(len(words) - size + 1))


def labels_of(metrics: Sequence[Metric]) -> list[str]:
    """What tells the metrics apart: the values of the dimensions that differ, and the names where they do."""
    names = {metric.name for metric in metrics}
    differing = [
        name
        for name in dict.fromkeys(name for metric in metrics for name, _ in metric.dimensions)
        if len({dict(metric.dimensions).get(name) for metric in metrics}) > 1
    ]
    labels = []
    for metric in metrics:
        parts = [value for name, value in metric.dimensions if name in differing]
        labels.append(" ".join([*parts, metric.name] if len(names) > 1 or not parts else parts))
    return labels
