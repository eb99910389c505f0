"""The rules of composite alarms.

rule = AlarmRule.parse("ALARM(latency) AND NOT (OK('errors') OR FALSE)")
rule.children                      # -> ("latency", "errors")
rule.holds({"latency": "ALARM", "errors": "OK"}.get)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

_STATES = ("ALARM", "OK", "INSUFFICIENT_DATA")
_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")
_REFERENCE = re.compile(r"""\s*\(\s*(?:"([^"]*)"|'([^']*)'|([^)"']*?))\s*\)""")
_MOST_CHILDREN = 100

_States: TypeAlias = Callable[[str], "str | None"]
_Condition: TypeAlias = Callable[[_States], bool]


class RuleError(ValueError):
    """The rule is wrong; the message says where."""


@dataclass(frozen=True)
class AlarmRule:
    """A parsed rule. `children` are the names of the alarms that it refers to, in their order."""

    text: str
    children: tuple[str, ...]
    holds: _Condition

    @classmethod
    def parse(cls, text: str) -> AlarmRule:
        """Raises RuleError."""
        parser = _Parser(text)
        condition = parser.either()
        if parser.peek():
            raise RuleError(f"Unexpected '{parser.peek()}' in the rule '{text}'")
        if len(parser.children) > _MOST_CHILDREN:
            raise RuleError(f"The rule refers to {len(parser.children)} alarms; {_MOST_CHILDREN} are the most")
        return cls(text, tuple(parser.children), condition)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.children: dict[str, None] = {}

    def peek(self) -> str:
        match = _TOKEN.match(self.text, self.position)
        return match[1] if match else ""

    def take(self) -> str:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise RuleError(f"The rule '{self.text}' ends too early")
        self.position = match.end()
        return match[1]

    def either(self) -> _Condition:
        left = self.both()
        while self.peek() == "OR":
            self.take()
            left = _any(left, self.both())
        return left

    def both(self) -> _Condition:
        left = self.single()
        while self.peek() == "AND":
            self.take()
            left = _all(left, self.single())
        return left

    def single(self) -> _Condition:
        word = self.take()
        if word == "NOT":
            inner = self.single()
            return lambda states: not inner(states)
        if word == "(":
            inner = self.either()
            if self.take() != ")":
                raise RuleError(f"A ')' is missing in the rule '{self.text}'")
            return inner
        if word in ("TRUE", "FALSE"):
            return lambda _: word == "TRUE"
        if word in _STATES:
            return self.reference(word)
        raise RuleError(f"Unexpected '{word}' in the rule '{self.text}'")

    def reference(self, state: str) -> _Condition:
        match = _REFERENCE.match(self.text, self.position)
        name = next((group for group in match.groups() if group), "") if match else ""
        if match is None or not name:
            raise RuleError(f"{state} in the rule '{self.text}' needs the name of an alarm in parentheses")
        self.position = match.end()
        if name.startswith("arn:"):
            name = name.split(":alarm:", 1)[-1]
        self.children[name] = None
        return lambda states: states(name) == state


def _any(left: _Condition, right: _Condition) -> _Condition:
    return lambda states: left(states) or right(states)


def _all(left: _Condition, right: _Condition) -> _Condition:
    return lambda states: left(states) and right(states)
