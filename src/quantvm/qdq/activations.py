"""Finds the functions of `ACTIVATIONS` in Relax: builds patterns for fusion, and reads the options of a match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm.relax.dpl import is_const, is_op, wildcard

from quantvm.numerics.activations import Activation
from quantvm.numerics.float_operators import Arithmetic, FloatOperator, Formula, option_names

from .expressions import Expr, constant_value, is_call, is_constant

Pattern = Any


@dataclass(frozen=True)
class _Option:
    """A placeholder for one option of an activation in its formula."""

    name: str


@dataclass(frozen=True)
class _Step:
    """An operator of a formula and its operands: steps, numbers, options, or `_X`."""

    operator: FloatOperator
    operands: tuple[Any, ...]


_X = object()


@cache
def _tree(formula: Formula) -> Any:
    options = (_Option(name) for name in option_names(formula))
    return formula(Arithmetic(lambda operator, *operands: _Step(operator, operands)), _X, *options)


def pattern_of(activation: Activation, x: Pattern) -> Pattern:
    """Returns the pattern of an activation applied to `x`; its constants match any number, see `find`."""

    def made(part: Any) -> Pattern:
        if part is _X:
            return x
        if not isinstance(part, _Step):
            return is_const()
        operator = part.operator
        limits = [wildcard() for _ in part.operands[operator.arity :]] if operator.options_are_operands else []
        return is_op(operator.relax_name)(*(made(operand) for operand in part.operands[: operator.arity]), *limits)

    return made(_tree(activation.formula))


@dataclass(frozen=True)
class Found:
    """An activation in a program.

    Attributes:
        x: the variable that it is applied to.
        options: its options, in the order of the formula's parameters.
    """

    x: Expr
    options: tuple[float, ...]


def find(activation: Activation, expr: Expr, value_of: Callable[[Expr], Expr]) -> Found | None:
    """Returns the input and the options of an activation, or None if the expression does not compute it.

    Args:
        activation: the function to look for.
        expr: a call, or the variable that holds its result.
        value_of: returns what a variable is bound to; any other expression it returns as it is.
    """
    leaves: list[Expr] = []
    options: dict[str, float] = {}

    def is_number(value: float, expected: Any) -> bool:
        if isinstance(expected, _Option):
            return options.setdefault(expected.name, value) == value
        return value == float(expected)

    def is_part(part: Any, found: Expr) -> bool:
        if part is _X:
            leaves.append(found)
            return leaves[0].same_as(found)
        value = value_of(found)
        if not isinstance(part, _Step):
            if not is_constant(value):
                return False
            array = constant_value(value)
            return array.size == 1 and is_number(float(array.reshape(-1)[0]), part)
        operator = part.operator
        if not is_call(value, operator.relax_name):
            return False
        operands, rest = part.operands[: operator.arity], part.operands[operator.arity :]
        return all(map(is_part, operands, value.args)) and all(map(is_number, operator.options(value), rest))

    if not is_part(_tree(activation.formula), expr):
        return None
    return Found(leaves[0], tuple(options[name] for name in activation.options))
