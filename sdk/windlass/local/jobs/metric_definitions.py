"""Metrics in the log of a job: its MetricDefinitions, line by line.

check(algorithm["MetricDefinitions"])              # raises AWS's error for what is no regex
definitions = MetricDefinitions(algorithm["MetricDefinitions"], say=stream.write)
definitions.found("epoch 3 loss: 0.25")            # [("loss", 0.25)]

The regexes are other people's. One that backtracks without end ((a+)+b on a long line of a) would hold Python's own ``re``, and
with it the interpreter, for years: here it lets the other threads go on, and is given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import regex

from windlass.local.faults import Fault

LONGEST_SECONDS = 1.0
"""How long one regex may take for one line."""


def check(definitions: Sequence[Mapping[str, str]]) -> None:
    """Raise AWS's error for a regex that is none, or that captures nothing."""
    for definition in definitions:
        name, pattern = definition["Name"], definition["Regex"]
        try:
            groups = regex.compile(pattern).groups
        except regex.error as error:
            raise Fault("ValidationException", f"Invalid regex '{pattern}' of metric '{name}': {error}") from error
        if not groups:
            raise Fault(
                "ValidationException", f"The regex '{pattern}' of metric '{name}' has no group to capture its value."
            )


class MetricDefinitions:
    """What a job looks for in each line of its log. For one thread.

    Args:
        say: writes a line to that log.
    """

    def __init__(self, definitions: Sequence[Mapping[str, str]], say: Callable[[str], None]) -> None:
        self._regexes = {(each["Name"], each["Regex"]): regex.compile(each["Regex"]) for each in definitions}
        self._say = say

    def found(self, line: str) -> list[tuple[str, float]]:
        """Name and value of each finite number that a regex captures."""
        values = []
        for (name, pattern), compiled in list(self._regexes.items()):
            try:
                matches = list(compiled.finditer(line, timeout=LONGEST_SECONDS, concurrent=True))
            except TimeoutError:
                del self._regexes[name, pattern]
                self._say(
                    f"The metric '{name}' is given up: its regex '{pattern}' took more than {LONGEST_SECONDS:g} s for a line"
                    f" of {len(line)} characters. Write it so that it need not backtrack, without nested repetitions."
                )
                continue
            for match in matches:
                try:
                    value = float(match[1])
                except (TypeError, ValueError):
                    continue  # it matched something else than a number
                if math.isfinite(value):
                    values.append((name, value))
        return values
