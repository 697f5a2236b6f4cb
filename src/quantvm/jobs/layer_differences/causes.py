"""Finds why layers differ although their inputs are equal: the rules that give every integer of both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.jobs.layer_differences.layer_parity import LayerCount, RuleCause
from quantvm.layer_rules import Environment, Rule, Search, differing_facts
from quantvm.progress import Progress

if TYPE_CHECKING:
    from quantvm.lowering.layer_operators import LayerOperator

IN_FLOAT = "QDQ in float"
"""The rule of float operators between dequantize and quantize, which sum in an unspecified order."""

Runs = Callable[[np.ndarray], tuple[list[Any], list[Any]]]
"""An image -> the reference's layers, and the other side's, each computed from the reference's."""


@dataclass
class _Candidate:
    """One layer with differences of its own."""

    index: int
    count: LayerCount
    operator: LayerOperator | None
    search: Search | None
    in_float: list[bool]
    """Whether TVM's float operators give all integers of the reference, and all of the other side."""


class Explainer:
    """Tries rules on the layers that have differences of their own.

    Args:
        counts: every layer's differences.
        operators: what every layer computes; None where that is unknown.
        sides: names of the reference and of the other side.
        rules: the presets that the sides should follow.
        environment: what PyTorch's formulas depend on.
        in_float: returns an object whose `isolated` computes layers, given by number, by TVM's float operators.
    """

    def __init__(
        self, counts: Sequence[LayerCount], operators: Sequence[LayerOperator | None], *, sides: tuple[str, str],
        rules: tuple[str, str], environment: Environment, in_float: Any,
    ) -> None:  # fmt: skip
        self._sides, self._rules, self._in_float = sides, rules, in_float
        self._candidates = []
        for index, count in enumerate(counts):
            if count.has_own:
                operator, search = operators[index], None
                if operator is not None:
                    search = Search(operator.operator, presets=rules, environment=environment)
                self._candidates.append(_Candidate(index, count, operator, search, [True, True]))

    def explain(self, images: Sequence[np.ndarray], runs: Runs, progress: Progress) -> None:
        """Sets the rule of every layer that has one."""
        if not self._candidates:
            return
        self._pass("trying rules", Search.add, [c for c in self._candidates if c.search], images, runs, progress)
        while pending := [c for c in self._candidates if c.search and c.search.pending()]:
            for candidate in pending:
                candidate.search.start_verifying()  # type: ignore[union-attr]
            self._pass("checking every element", Search.verify, pending, images, runs, progress)
            for candidate in pending:
                candidate.search.end_verifying()  # type: ignore[union-attr]
        strayed = [candidate for candidate in self._candidates if self._strays(candidate)]
        self._try_float(strayed, images, runs, progress)
        for candidate in self._candidates:
            candidate.count.rule = self._rule(candidate, candidate in strayed)

    @staticmethod
    def _pass(
        title: str, step: Callable[..., None], candidates: Sequence[_Candidate], images: Sequence[np.ndarray],
        runs: Runs, progress: Progress,
    ) -> None:  # fmt: skip
        with progress.task(title, total=len(images)) as task:
            for x_f32 in images:
                expected, own = runs(x_f32)
                for candidate in candidates:
                    assert candidate.operator is not None
                    inputs = candidate.operator.inputs_of([x_f32, *expected])
                    step(candidate.search, inputs, expected[candidate.index], own[candidate.index])
                task.advance()

    def _strays(self, candidate: _Candidate) -> bool:
        """Whether a side does not follow the rule that it should: operators may have been left in float."""
        search = candidate.search
        return search is None or not search.follows_said(0) or not search.follows_said(1)

    def _try_float(
        self, candidates: Sequence[_Candidate], images: Sequence[np.ndarray], runs: Runs, progress: Progress
    ) -> None:
        if not candidates:
            return
        numbers = [candidate.index for candidate in candidates]
        run = self._in_float(numbers)
        with progress.task("trying floats", total=len(images)) as task:
            for x_f32 in images:
                expected, own = runs(x_f32)
                for candidate, found in zip(candidates, run.isolated(x_f32, expected, numbers), strict=True):
                    for i, side in enumerate((expected, own)):
                        candidate.in_float[i] &= bool(np.array_equal(found, side[candidate.index]))
                task.advance()

    def _rule(self, candidate: _Candidate, strayed: bool) -> RuleCause | None:
        search = candidate.search
        if search is None:
            return self._of_floats() if candidate.in_float[1] else None
        found = search.closest()
        names = [self._name(search, i, None if found is None else found[i]) for i in range(2)]
        for i, side in enumerate(self._sides):
            left_in_float = side.startswith("tvm") and strayed and candidate.in_float[i]
            if (side == "qdq" or left_in_float) and not search.follows_said(i):
                names[i], found = IN_FLOAT, None
        reference, actual = names
        if reference is None or actual is None or reference == actual:
            return None
        facts: tuple[tuple[str, str | None, str | None], ...] = ()
        if found is not None:
            e, a = (rule.facts for rule in found)
            facts = tuple((fact, e.get(fact), a.get(fact)) for fact in differing_facts(e, a))
        return RuleCause(
            (self._sides[0], reference, self._expected_rule(0)), (self._sides[1], actual, self._expected_rule(1)), facts
        )

    def _expected_rule(self, side: int) -> str:
        return IN_FLOAT if self._sides[side] == "qdq" else self._rules[side]

    def _of_floats(self) -> RuleCause:
        """Returns the cause if both sides compute with float operators that round or sum in different ways."""
        return RuleCause(
            (self._sides[0], "its own float operators", "its own float operators"),
            (self._sides[1], IN_FLOAT, IN_FLOAT), (),
        )  # fmt: skip

    def _name(self, search: Search, side: int, rule: Rule | None) -> str | None:
        """Returns the name of the rule that a side follows: if possible, the one that it should."""
        if search.follows_said(side):
            return self._expected_rule(side)
        rule = rule or next(iter(search.rules[side]), None)
        return None if rule is None else rule.name
