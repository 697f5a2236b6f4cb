"""The variables of a function: what each is bound to, and how often it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tvm import relax

from .expressions import Expr, op_name


def bindings_of(function: Any) -> list[Any]:
    """Returns the bindings of a function, in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def definitions(main: Any) -> dict[Any, Any]:
    """Returns what each variable of a function is bound to, in order."""
    return {binding.var: binding.value for binding in bindings_of(main)}


def described(binding: Any) -> str:
    """Returns the text for a binding in messages: its variable, which is named after the layer, and its operator."""
    called = op_name(binding.value) or getattr(getattr(binding.value, "op", None), "name_hint", "")
    name = called or type(binding.value).__name__
    return f"{binding.var.name} ({name})"


def count_uses(main: Any) -> Counter[Any]:
    """Returns how often each variable of a function is used."""
    counts: Counter[Any] = Counter()
    for value in definitions(main).values():
        counts.update(variables(value))
    counts.update(variables(main.body.body))
    return counts


def variables(expr: Any) -> list[Any]:
    """Returns the variables that an expression reads; one that it reads twice comes twice."""
    if isinstance(expr, relax.Var):
        return [expr]
    parts = [*getattr(expr, "args", ()), *getattr(expr, "fields", ())]
    if isinstance(expr, relax.TupleGetItem):
        parts.append(expr.tuple_value)
    return [variable for part in parts for variable in variables(part)]


def resolved(expr: Expr, bound: Mapping[Any, Expr]) -> Expr:
    """Follows a variable through its bindings to the final expression; a parameter stays a variable."""
    while isinstance(expr, relax.Var) and expr in bound:
        expr = bound[expr]
    return expr


def results_of(main: Any) -> list[Expr]:
    """Returns the results of a function as a list of variables and constants."""
    bound, expr = definitions(main), main.body.body
    while isinstance(expr, relax.Var) and isinstance(bound.get(expr), (relax.Var, relax.Tuple)):
        expr = bound[expr]
    return list(expr.fields) if isinstance(expr, relax.Tuple) else [expr]
