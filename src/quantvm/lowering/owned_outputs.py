"""Makes sure that outputs belong to the caller: none shares memory with an input or a constant of the model."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, topi

from quantvm.qdq.bindings import results_of
from quantvm.qdq.expressions import Expr, is_call, is_constant
from quantvm.qdq.rewriting import Rewriter


def copy_shared_outputs(module: tvm.IRModule) -> tvm.IRModule:
    """Copies each output that would be a view of an input or of a constant.

    Args:
        module: a legalized module: its only remaining Relax operators are views.
    """
    rewriter = _Rewriter(module)
    return rewriter.go() if any(map(rewriter.is_shared, rewriter.outputs)) else module


class _Rewriter(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.outputs = results_of(self.main)

    def is_shared(self, expr: Expr) -> bool:
        """Whether an output is an input, a constant, or a view of one."""
        while True:
            if is_constant(expr):
                return True
            if not isinstance(expr, relax.Var):
                return False
            if expr not in self.bound:
                return True
            expr = self.bound[expr]
            if is_call(expr, "relax.reshape"):
                expr = expr.args[0]

    def result(self, expr: Expr) -> Expr:
        owned = [self._owned(output) for output in self.outputs]
        return owned[0] if isinstance(expr.ty, relax.TensorType) else relax.Tuple(owned)

    def _owned(self, output: Expr) -> Any:
        if not self.is_shared(output):
            return self.read(output)
        return self.builder.emit_te(topi.identity, self.read(output), primfunc_name_hint="copy")
