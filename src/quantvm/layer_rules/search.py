"""The search, image by image, for the rules that give all integers of a layer."""

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
"""Maximum number of elements next to a tie, and of differing ones, on which all rules are tried first."""


class Search:
    """The rules that the two sides of a comparison may follow in a layer; every image rules some out.

    `rules` are the reference's and the other side's.

    Args:
        operator: the layer.
        presets: those that the reference and the other side are said to follow.
        environment: what PyTorch's formulas depend on.
    """

    def __init__(self, operator: Operator, *, presets: tuple[str, str], environment: Environment) -> None:
        self._operator, self._environment = operator, environment
        self._family = family_of(operator.kind)
        rules = list(candidates(operator, tuple(dict.fromkeys(presets)), environment))
        self._said = tuple(preset_of(operator, preset, environment) for preset in presets)
        self.rules = [rules, list(rules)]
        self._verified: list[set[Any]] = [set(), set()]
        self._seen: list[list[Rule]] = [[], []]

    def add(self, inputs: Sequence[NDArray], expected: NDArray, actual: NDArray) -> None:
        """Drops rules that fail on one image, tried on those elements only in which rules are likely to differ.

        Args:
            inputs: inputs of the layer, in PyTorch's logical order.
            expected: the reference's integers.
            actual: the other side's integers for the same inputs.
        """
        cache: dict[Any, Any] = {}
        screen = self._screen(inputs, expected, actual, cache)
        self._keep_fitting([list(rules) for rules in self.rules], inputs, (expected, actual), cache, screen)

    def pending(self) -> bool:
        """Whether `verify` has to see all images (again)."""
        return any(
            rule.key not in done for rules, done in zip(self._needed(), self._verified, strict=True) for rule in rules
        )

    def verify(self, inputs: Sequence[NDArray], expected: NDArray, actual: NDArray) -> None:
        """Drops, from the rules that the answer depends on, those that fail in any element of one image; see `add`."""
        self._keep_fitting(self._seen, inputs, (expected, actual), {}, None)

    def start_verifying(self) -> None:
        """Begins a pass of `verify` over all images."""
        self._seen = self._needed()

    def end_verifying(self) -> None:
        """Ends the pass: rules that were not dropped give every element of all images."""
        for rules, done in zip(self._seen, self._verified, strict=True):
            done.update(rule.key for rule in rules)

    def _needed(self) -> list[list[Rule]]:
        """Returns the rules that the answer depends on: the closest pair, and what the sides are said to follow."""
        named = self.closest() or tuple(next(iter(rules), None) for rules in self.rules)
        return [
            [rule for rule in rules if rule.key == said.key or rule is name]
            for rules, said, name in zip(self.rules, self._said, named, strict=True)
        ]

    def _keep_fitting(
        self, tried: Sequence[Sequence[Rule]], inputs: Sequence[NDArray], sides: tuple[NDArray, NDArray],
        cache: dict[Any, Any], select: NDArray | None,
    ) -> None:  # fmt: skip
        flat = [side.reshape(-1) if select is None else side.reshape(-1)[select] for side in sides]
        found: dict[tuple[tuple[str, str], ...], NDArray] = {}
        for i, rules in enumerate(tried):
            missed = set()
            for rule in rules:
                if rule.key not in found:
                    with np.errstate(invalid="ignore", over="ignore"):  # a rule that does not fit may overflow
                        y = self._family.evaluate(self._operator, inputs, rule.facts, self._environment, cache, select)
                    found[rule.key] = np.ascontiguousarray(y).reshape(-1).astype(np.int16)
                if not np.array_equal(found[rule.key], flat[i]):
                    missed.add(rule.key)
            self.rules[i] = [rule for rule in self.rules[i] if rule.key not in missed]

    def _screen(
        self, inputs: Sequence[NDArray], expected: NDArray, actual: NDArray, cache: dict[Any, Any]
    ) -> NDArray[np.intp] | None:
        """Returns flat indices of elements that differ or lie next to a tie; None (all) if evaluating all is quick."""
        if self._family.exact is None:
            return None
        steps = self._family.exact(self._operator, inputs, cache).reshape(-1)
        to_tie = np.abs(steps - np.floor(steps) - 0.5)
        q = self._operator.output
        outside = (steps < q.quant_min - q.zero_point - 1) | (steps > q.quant_max - q.zero_point + 1)
        nearest = (
            np.argsort(np.where(outside, 1.0, to_tie))[:_SCREENED] if steps.size > _SCREENED else np.arange(steps.size)
        )
        differing = np.flatnonzero((expected != actual).reshape(-1))[:_SCREENED]
        return np.union1d(differing, nearest)

    def follows_said(self, side: int) -> bool:
        """Returns whether the reference (0) or the other side (1) follows the preset that it is said to follow."""
        return any(rule.key == self._said[side].key for rule in self.rules[side])

    def closest(self) -> tuple[Rule, Rule] | None:
        """Returns the pair of rules, one of each side, that differ in the fewest facts; None if a side has no rule.

        If a side follows its preset, its rule has the preset's values of the facts in which the two differ. Among
        equally close pairs, the one nearest to the presets is returned.
        """
        follows = self.follows_said(0), self.follows_said(1)
        first, second = self.rules
        return min(itertools.product(first, second), key=lambda pair: self._distance(pair, follows), default=None)

    def _distance(self, pair: tuple[Rule, ...], follows: tuple[bool, bool]) -> tuple[int, int, int]:
        facts = differing_facts(*(rule.facts for rule in pair))
        sides = list(zip(pair, self._said, strict=True))
        misstated = sum(
            rule.facts.get(fact) != said.facts.get(fact)
            for (rule, said), known in zip(sides, follows, strict=True) if known
            for fact in facts
        )  # fmt: skip
        own = sum(len(differing_facts(rule.facts, said.facts)) for rule, said in sides)
        return misstated, len(facts), own
