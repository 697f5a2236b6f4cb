"""Outputs belong to the caller: none shares memory with an input, or with the constants of the model."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, topi

from quantvm.qdq.bindings import ValueOf, definitions, with_main_rewritten, with_operands
from quantvm.qdq.expressions import is_call, is_constant


def copy_shared_outputs(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with a copy of each output that would be a view of an input or of a constant.

    Args:
        module: after legalization: what is left of Relax operators are views.
    """
    main = module["main"]
    bound = definitions(main)
    fields = _fields(main.body.body, bound)
    if not any(_is_shared(field, bound) for field in fields):
        return module

    def outputs(builder: relax.BlockBuilder, result: Any, value_of: ValueOf) -> Any:
        owned = [
            builder.emit_te(topi.identity, value_of(field), primfunc_name_hint="copy")
            if _is_shared(field, bound)
            else value_of(field)
            for field in fields
        ]
        return owned[0] if _is_tensor(result) else relax.Tuple(owned)

    return with_main_rewritten(
        module,
        lambda builder, var, value, value_of: builder.emit(with_operands(value, value_of), var.name),
        outputs,
    )


def _is_tensor(expr: Any) -> bool:
    return isinstance(expr.ty, relax.TensorType)


def _fields(result: Any, bound: dict[Any, Any]) -> list[Any]:
    """Returns the outputs one by one."""
    if _is_tensor(result):
        return [result]
    while result in bound:
        result = bound[result]
    return list(result.fields)


def _is_shared(expr: Any, bound: dict[Any, Any]) -> bool:
    """Whether an output is an input, a constant, or a view of one."""
    while True:
        if is_constant(expr):
            return True
        if not isinstance(expr, relax.Var):
            return False
        if expr not in bound:
            return True
        expr = bound[expr]
        if is_call(expr, "relax.reshape"):
            expr = expr.args[0]
