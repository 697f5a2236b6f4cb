"""The variables of a function: what each is bound to, how often it is used, and calls with other arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from quantvm.tvm_compat import dataflow


def definitions(main: Any) -> dict[Any, Any]:
    """Returns what each variable of a function is bound to, in order."""
    return {binding.var: binding.value for block in main.body.blocks for binding in block.bindings}


def described(binding: Any) -> str:
    """Returns what messages call a binding: its variable, which is named after the layer, and its operator."""
    op = getattr(binding.value, "op", None)
    name = getattr(op, "name", None) or getattr(op, "name_hint", None) or type(binding.value).__name__
    return f"{binding.var.name} ({name})"


def count_uses(main: Any) -> Counter[Any]:
    """Returns how often each variable of a function is used."""
    counts: Counter[Any] = Counter()
    for value in definitions(main).values():
        counts.update(variables(value))
    counts.update(variables(main.body.body))
    return counts


def variables(expr: Any) -> list[Any]:
    """Returns the variables that an expression reads, each as often as it does."""
    if isinstance(expr, relax.Var):
        return [expr]
    parts = [*getattr(expr, "args", ()), *getattr(expr, "fields", ())]
    if isinstance(expr, relax.TupleGetItem):
        parts.append(expr.tuple_value)
    return [variable for part in parts for variable in variables(part)]


def with_operands(value: Any, replaced: Callable[[Any], Any]) -> Any:
    """Returns a bound expression with `replaced(operand)` in the place of each variable, constant or shape."""
    if isinstance(value, relax.Tuple):
        return relax.Tuple([with_operands(field, replaced) for field in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(replaced(value.tuple_value), value.index)
    if not hasattr(value, "args"):
        return replaced(value)
    arguments = [with_operands(a, replaced) if isinstance(a, relax.Tuple) else replaced(a) for a in value.args]
    return tvm.ir.Call(value.op, arguments, value.attrs, value.ty_args)


ValueOf = Callable[[Any], Any]
"""What an operand became: a new variable for an old one, all else as it is."""


def with_main_rewritten(
    module: tvm.IRModule,
    bind: Callable[[relax.BlockBuilder, Any, Any, ValueOf], Any],
    outputs: Callable[[relax.BlockBuilder, Any, ValueOf], Any] = lambda builder, result, value_of: with_operands(
        result, value_of
    ),
) -> tvm.IRModule:
    """Returns the module with `main` built anew, binding by binding; its other functions and attributes are kept.

    Args:
        module: `main` is one dataflow block.
        bind: called with the builder, the old variable, what it was bound to, and what operands became; emits what
            stands in its place, and returns that.
        outputs: likewise for what `main` returns; by default it is returned as it was.
    """
    main = module["main"]
    others = {variable: function for variable, function in module.functions.items() if variable.name_hint != "main"}
    builder = relax.BlockBuilder(tvm.IRModule(others))
    params = [relax.Var(p.name, p.ty) for p in main.params]
    values: dict[Any, Any] = dict(zip(main.params, params, strict=True))

    def value_of(expr: Any) -> Any:
        return values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    with builder.function("main", params):
        with dataflow(builder):
            for var, value in definitions(main).items():
                values[var] = bind(builder, var, value, value_of)
            result = builder.emit_output(outputs(builder, main.body.body, value_of))
        builder.emit_func_output(result)
    rewritten = builder.get()
    return rewritten.with_attrs(dict(module.attrs)) if module.attrs else rewritten
