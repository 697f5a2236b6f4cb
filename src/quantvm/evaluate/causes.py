"""Why layers differ that are computed from equal inputs: the rules that give every integer of both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.evaluate.layer_parity import LayerCount, RuleCause
from quantvm.layer_rules import Environment, Rule, Search, differing_facts
from quantvm.progress import Progress

if TYPE_CHECKING:
    from quantvm.lowering.layer_operators import LayerOperator

IN_FLOAT = "QDQ in float"
"""The rule of what is computed by float operators between dequantize and quantize, summed in an order of its own."""

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
    """Whether TVM's float operators give all of the reference's integers, and of the other side's."""


class Explainer:
    """Tries rules on the layers that have differences of their own.

    Args:
        counts: every layer's differences.
        operators: what every layer computes; None where that is unknown.
        sides: names of the reference and of the other side.
        rules: presets that they are said to follow.
        environment: what PyTorch's formulas depend on.
        in_float: numbers of layers -> an object whose `isolated` computes them by TVM's float operators.
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
                    reference, actual = rules
                    search = Search(
                        operator.operator, reference=reference, actual=actual, environment=environment
                    )  # fmt: skip
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
        """Whether a side does not follow what it is said to: code may have been left in float."""
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
        search, found = candidate.search, None
        if search is not None:
            found = search.closest()
            names = [self._name(search, i, None if found is None else found[i]) for i in range(2)]
        else:
            names = [None, None]
        for i in range(2):
            follows = search is not None and search.follows_said(i)
            by_definition = self._rules[i] == "qdq" and not follows
            is_compiled = self._sides[i].startswith("tvm")
            if by_definition or (is_compiled and strayed and candidate.in_float[i] and not follows):
                names[i], found = IN_FLOAT, None
        reference, actual = names
        if reference is None or actual is None or reference == actual:
            return None
        facts: tuple[tuple[str, str | None, str | None], ...] = ()
        if found is not None:
            e, a = (rule.facts for rule in found)
            facts = tuple((fact, e.get(fact), a.get(fact)) for fact in differing_facts(e, a))
        return RuleCause((self._sides[0], reference, self._rules[0]), (self._sides[1], actual, self._rules[1]), facts)

    def _name(self, search: Search, side: int, rule: Rule | None) -> str | None:
        """Returns the name of the rule that a side follows: what it is said to, if it does."""
        if search.follows_said(side):
            return self._rules[side]
        rules = search.rules[side]
        if rule is None:
            rule = rules[0] if rules else None
        return None if rule is None else rule.name
