"""Shares that hold: choices whose counts follow their weights at every moment, and not only in the long run."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Split(Generic[K]):
    """Chooses among weighted options.

    Each choice adds every option's part to what it is owed, and falls on one that is owed something. So the count of an option
    among any number of choices is off by less than one if there are two, where chance alone would need thousands of choices to
    come within 3 points. Among those that are owed, chance decides: no pattern of the callers can keep in step with it.

    Args:
        chance: where the randomness comes from.
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()
        self._weights: dict[K, float] = {}
        self._owed: dict[K, float] = {}

    def choose(self, weights: Mapping[K, float]) -> K:
        """One of the options; one without weight never. Other weights than the last time begin anew.

        Raises:
            LookupError: no option has any weight.
        """
        if weights != self._weights:
            self._weights = dict(weights)
            self._owed = {option: 0.0 for option, weight in weights.items() if weight > 0}
        if not self._owed:
            raise LookupError("nothing to choose from")
        total = sum(self._weights.values())
        for option in self._owed:
            self._owed[option] += self._weights[option] / total
        owed = {option: due for option, due in self._owed.items() if due > 0}  # all dues add up to 1
        [choice] = self._chance.choices(list(owed), list(owed.values()))
        self._owed[choice] -= 1
        return choice
