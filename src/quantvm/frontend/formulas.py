"""Emits the formulas of the operator tables as Relax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

from tvm import relax

from quantvm.numerics.activations import Activation
from quantvm.numerics.float_operators import Arithmetic, FloatOperator, Formula, steps_of
from quantvm.qdq.expressions import Expr

from .builder import constant

_HINTS = {"multiply": "mul", "negative": "neg"}


class _Emitter(Protocol):
    def emit(self, expr: Expr, hint: str = "") -> Expr:
        """Binds an expression to a new variable."""


class _Read:
    """The input tensor of a formula."""


def emitted(b: _Emitter, formula: Formula, read: Callable[[], Expr], options: Sequence[float], name: str) -> Expr:
    """Emits a formula operator by operator and returns its result.

    Args:
        b: the builder.
        formula: the formula.
        read: called each time that the formula reads its tensor; returns it.
        options: the formula's further arguments, numbers.
        name: the base name of the result's variable.
    """
    left = len(steps_of(formula))

    def operand(value: Any) -> Expr:
        if isinstance(value, _Read):
            return read()
        return constant(value, "float32") if isinstance(value, (int, float)) else value

    def apply(operator: FloatOperator, *given: Any) -> Expr:
        nonlocal left
        left -= 1
        tensors = [operand(value) for value in given[: operator.arity]]
        made = attrgetter(operator.relax)(relax.op)(*tensors, *given[operator.arity :])
        return b.emit(made, _hint(operator, given) if left else name)

    return formula(Arithmetic(apply), _Read(), *options)


def _hint(operator: FloatOperator, given: Sequence[Any]) -> str:
    """Returns the name hint for the variable of an operator within a formula."""
    if operator.name in ("add", "subtract") and isinstance(given[1], float):
        return f"{'plus' if operator.name == 'add' else 'minus'}_{given[1]:g}"
    return _HINTS.get(operator.name, operator.name)


def options_of(activation: Activation, given: Sequence[Any], named: Mapping[str, Any]) -> tuple[float, ...]:
    """Returns the options of a call, in the formula's order; missing ones get their defaults."""
    values = {**activation.defaults, **dict(zip(activation.options, given, strict=False)), **named}
    return tuple(float(values[option]) for option in activation.options)
