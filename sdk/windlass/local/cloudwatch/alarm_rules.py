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
_AT_LEAST = re.compile(r"\s*\(\s*(\d+)(%?)\s*,\s*(NOT\s+)?(\w+)\s*,\s*\(([^()]*)\)\s*\)")
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
        if word == "AT_LEAST":
            return self.at_least()
        raise RuleError(f"Unexpected '{word}' in the rule '{self.text}'")

    def reference(self, state: str) -> _Condition:
        match = _REFERENCE.match(self.text, self.position)
        name = next((group for group in match.groups() if group), "") if match else ""
        if match is None or not name:
            raise RuleError(f"{state} in the rule '{self.text}' needs the name of an alarm in parentheses")
        self.position = match.end()
        name = self.child(name)
        return lambda states: states(name) == state

    def child(self, name: str) -> str:
        if name.startswith("arn:"):
            name = name.split(":alarm:", 1)[-1]
        self.children[name] = None
        return name

    def at_least(self) -> _Condition:
        """``AT_LEAST(2, ALARM, (a, b, c))``, ``AT_LEAST(50%, NOT OK, (a, b))``"""
        match = _AT_LEAST.match(self.text, self.position)
        if match is None or match[4] not in _STATES:
            raise RuleError(f"AT_LEAST in the rule '{self.text}' needs a number, a state, and alarms in parentheses")
        self.position = match.end()
        names = [self.child(name.strip().strip("\"'")) for name in match[5].split(",") if name.strip()]
        number, negated, state = int(match[1]), bool(match[3]), match[4]
        if match[2]:
            if not 1 <= number <= 100:
                raise RuleError(f"AT_LEAST in the rule '{self.text}' needs from 1 to 100 percent")
            number = -(-number * len(names) // 100)
        if not 1 <= number <= len(names):
            raise RuleError(f"AT_LEAST in the rule '{self.text}' asks for {number} of {len(names)} alarms")
        return lambda states: sum((states(name) == state) is not negated for name in names) >= number


def _any(left: _Condition, right: _Condition) -> _Condition:
    return lambda states: left(states) or right(states)


def _all(left: _Condition, right: _Condition) -> _Condition:
    return lambda states: left(states) and right(states)
