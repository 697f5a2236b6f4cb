"""Which rules give all integers of a layer, image by image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .candidates import Rule, candidates, preset_of
from .facts import differing_facts
from .family import family_of
from .operator import Environment, Operator

_SCREENED = 512
"""Elements on which a rule is tried before all others."""


class Search:
    """The rules that a layer's two sides may follow, fewer with every image.

    `rules` are the reference's and the other side's.

    Args:
        operator: the layer.
        reference, actual: presets that the sides are said to follow.
        environment: what PyTorch's formulas depend on.
    """

    def __init__(self, operator: Operator, *, reference: str, actual: str, environment: Environment) -> None:
        self._operator, self._environment = operator, environment
        self._family = family_of(operator.kind)
        rules = list(candidates(operator, tuple(dict.fromkeys((reference, actual)))))
        self._said = preset_of(operator, reference), preset_of(operator, actual)
        self.rules = [rules, list(rules)]

    def add(self, inputs: Sequence[NDArray], expected: NDArray, actual: NDArray) -> None:
        """Drops the rules that miss an element of one image.

        Args:
            inputs: of the layer, in PyTorch's logical order.
            expected: the reference's integers.
            actual: the other side's integers of these very inputs.
        """
        cache: dict[Any, Any] = {}
        screen = self._screen(expected, actual)
        sides = expected.reshape(-1), actual.reshape(-1)
        fits: list[set[int]] = [set(), set()]
        for rule in {id(r): r for rules in self.rules for r in rules}.values():
            found = self._evaluate(rule, inputs, cache, screen)
            which = [i for i, side in enumerate(sides) if np.array_equal(found, side[screen])]
            if which:
                found = self._evaluate(rule, inputs, cache, None)
            for i in which:
                if np.array_equal(found, sides[i]):
                    fits[i].add(id(rule))
        self.rules = [
            [rule for rule in rules if id(rule) in fitting] for rules, fitting in zip(self.rules, fits, strict=True)
        ]

    def _evaluate(self, rule: Rule, inputs: Sequence[NDArray], cache: dict[Any, Any], select: NDArray | None) -> NDArray:
        y = self._family.evaluate(self._operator, inputs, rule.facts, self._environment, cache, select)
        return np.ascontiguousarray(y).reshape(-1)

    @staticmethod
    def _screen(expected: NDArray, actual: NDArray) -> NDArray[np.intp]:
        """Returns flat indices of elements that differ, and of as many others."""
        differs = (expected != actual).reshape(-1)
        first = np.flatnonzero(differs)[:_SCREENED]
        others = np.linspace(0, differs.size - 1, min(_SCREENED, differs.size)).astype(np.intp)
        return np.union1d(first, others)

    def follows_said(self, side: int) -> bool:
        """Returns whether the reference (0) or the other side (1) follows what it is said to."""
        return any(rule.key == self._said[side].key for rule in self.rules[side])

    def closest(self) -> tuple[Rule, Rule] | None:
        """Returns the reference's and the other side's rule that differ in the fewest facts; None if one has no rule.

        Of equally close ones those are taken that are nearest to what the sides are said to follow.
        """
        pairs = itertools.product(*self.rules)
        return min(pairs, key=self._distance, default=None)

    def _distance(self, pair: tuple[Rule, Rule]) -> tuple[int, int]:
        own = sum(
            len(differing_facts(rule.facts, said.facts)) for rule, said in zip(pair, self._said, strict=True)
        )
        return len(differing_facts(*(rule.facts for rule in pair))), own
