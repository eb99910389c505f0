"""The JSONPath that SageMaker understands: in the filters of batch transform, and in the JsonGet of pipelines.

jsonpath.parse("$['id','SageMakerOutput']").of(record)

``$``  ``.name``  ``*``  ``['name'(,'name')]``  ``[number(,number)]``  ``[start:end]``; nothing else, as documented under
"Supported JSONPath Operators" in the guide "Associate Prediction Results with Input Records".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class BadPath(ValueError):
    """The expression is none; ``str()`` says why."""


class NoMatch(LookupError):
    """The document holds nothing at that path."""


@dataclass(frozen=True)
class _Names:
    names: tuple[str, ...]

    def of(self, value: Any) -> Any:
        if not isinstance(value, dict) or any(name not in value for name in self.names):
            raise NoMatch
        return value[self.names[0]] if len(self.names) == 1 else {name: value[name] for name in self.names}


@dataclass(frozen=True)
class _Indices:
    indices: tuple[int, ...]

    def of(self, value: Any) -> Any:
        if not isinstance(value, list) or any(not -len(value) <= index < len(value) for index in self.indices):
            raise NoMatch
        return value[self.indices[0]] if len(self.indices) == 1 else [value[index] for index in self.indices]


@dataclass(frozen=True)
class _Range:
    start: int | None
    end: int | None

    def of(self, value: Any) -> Any:
        if not isinstance(value, list):
            raise NoMatch
        return value[self.start : self.end]


@dataclass(frozen=True)
class _All:
    def of(self, value: Any) -> Any:
        if isinstance(value, dict):
            return list(value.values())
        if isinstance(value, list):
            return value
        raise NoMatch


_Step = _Names | _Indices | _Range | _All


@dataclass(frozen=True)
class Path:
    """A parsed expression."""

    text: str
    steps: tuple[_Step, ...]

    def of(self, document: Any) -> Any:
        """What the document holds there. Several names give an object, several numbers and ranges an array.

        Raises:
            NoMatch: nothing is there, or an index lies outside.
        """
        try:
            return _walk(document, self.steps)
        except NoMatch:
            raise NoMatch(f"Nothing is at '{self.text}'") from None


def parse(text: str) -> Path:
    """Read an expression. The leading ``$.`` may be absent, as it is in JsonGet.

    Raises:
        BadPath: it is none, or uses an operator that SageMaker does not support.
    """
    rest = text.strip()
    rest = rest[1:] if rest.startswith("$") else rest if rest.startswith("[") or not rest else f".{rest}"
    steps: list[_Step] = []
    while rest:
        matched = _TOKEN.match(rest)
        if matched is None:
            raise BadPath(
                f"'{text}' is not a supported JSONPath: cannot read it from '{rest}' on. Supported are $, .name, *, ['name'],"
                " [number] and [start:end]."
            )
        steps.append(_step(matched))
        rest = rest[matched.end() :]
    return Path(text, tuple(steps))


_QUOTED = r"'[^']*'|\"[^\"]*\""
_TOKEN = re.compile(
    rf"""
    \.(?P<name>[^\s.\[\]*'"$@?()]+)
    | (?P<all>\.\*|\.?\[\s*\*\s*\])
    | \.?\[\s*(?P<names>(?:{_QUOTED})(?:\s*,\s*(?:{_QUOTED}))*)\s*\]
    | \.?\[\s*(?P<indices>-?\d+(?:\s*,\s*-?\d+)*)\s*\]
    | \.?\[\s*(?P<start>-?\d+)?\s*:\s*(?P<end>-?\d+)?\s*\]
    """,
    re.VERBOSE,
)


def _step(matched: re.Match[str]) -> _Step:
    if matched["name"]:
        return _Names((matched["name"],))
    if matched["all"]:
        return _All()
    if matched["names"]:
        return _Names(tuple(quoted[1:-1] for quoted in re.findall(_QUOTED, matched["names"])))
    if matched["indices"]:
        return _Indices(tuple(int(number) for number in matched["indices"].split(",")))
    start, end = matched["start"], matched["end"]
    return _Range(int(start) if start else None, int(end) if end else None)


def _walk(value: Any, steps: Sequence[_Step]) -> Any:
    if not steps:
        return value
    first, *rest = steps
    found = first.of(value)
    if rest and isinstance(first, _All | _Range):
        return [_walk(each, rest) for each in found]
    return _walk(found, rest)
