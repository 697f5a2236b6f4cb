"""Channels that are taken apart, each scaled and shifted, and put together again, become one scale and one shift.

torchvision's models whose weights come from TensorFlow begin so (`transform_input`). Both forms round the product and
the sum of every element on their own, so that no bit changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from quantvm.qdq.attributes import with_attributes_of
from quantvm.qdq.expressions import constant_value, is_call, is_constant, shape_of


def merge_channel_affines(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with concat(x[:, 0:1]*a0 + b0, x[:, 1:2]*a1 + b1, ...) as x*(a0, a1, ...) + (b0, b1, ...)."""
    merger = _Merger(module)
    main = merger.visit_expr(module["main"])
    if not merger.found:
        return module
    merger.builder_.update_func(module.get_global_var("main"), main)
    merged = merger.builder_.get()
    merged = with_attributes_of(merged, module)
    return relax.transform.DeadCodeElimination()(merged)


@mutator
class _Merger(PyExprMutator):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.found = False

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        parts = self._parts(call)
        if not parts:
            return call
        source = parts[0][0]
        channels = [channel for _, channel, _, _ in parts]
        same = all(x.same_as(source) for x, *_ in parts)
        if not same or channels != list(range(shape_of(source)[1])):
            return call
        self.found = True
        factors, terms = (
            relax.const(np.array(values, np.float32).reshape(1, -1, 1, 1))
            for values in ([a for _, _, a, _ in parts], [b for *_, b in parts])
        )
        product = self.builder_.emit(relax.op.multiply(source, factors))
        return relax.op.add(product, terms)

    def _parts(self, call: Any) -> list[tuple[Any, int, np.float32, np.float32]]:
        """Returns (source, channel, factor, term) of each operand of a concat along channels; empty for all else."""
        if not is_call(call, "relax.concat") or int(call.attrs.axis) != 1 or len(call.ty.shape) != 4:
            return []
        operands = self._bound(call.args[0])
        found = [self._part(operand) for operand in getattr(operands, "fields", ())]
        return [part for part in found if part is not None] if None not in found else []

    def _part(self, expr: Any) -> tuple[Any, int, np.float32, np.float32] | None:
        term, expr = self._scalar_operand(expr, "relax.add")
        factor, expr = self._scalar_operand(expr, "relax.multiply")
        if term is None or factor is None:
            return None
        channel, source = self._channel(expr)
        return None if channel is None else (source, channel, factor, term)

    def _scalar_operand(self, expr: Any, op: str) -> tuple[np.float32 | None, Any]:
        """Returns the float32 scalar that is added to or multiplied with a value, and that value."""
        call = self._bound(expr)
        if not is_call(call, op) or not is_constant(call.args[1]):
            return None, expr
        value = constant_value(call.args[1])
        return (
            (value.reshape(()).item(), call.args[0]) if value.size == 1 and value.dtype == np.float32 else (None, expr)
        )

    def _channel(self, expr: Any) -> tuple[int | None, Any]:
        """Returns the channel that a value of one channel is of another, and that other."""
        call = self._bound(expr)
        if is_call(call, "relax.expand_dims"):
            squeezed = self._bound(call.args[0])
            if [int(a) for a in call.attrs.axis] != [1] or not is_call(squeezed, "relax.squeeze"):
                return None, expr
            if squeezed.attrs.axis is None or [int(a) for a in squeezed.attrs.axis] != [1]:
                return None, expr
            call = self._bound(squeezed.args[0])
        if not is_call(call, "relax.strided_slice") or len(call.args) not in (4, 5):
            return None, expr
        axes, begin, end = ([int(getattr(v, "value", v)) for v in part] for part in call.args[1:4])
        if axes != [1] or begin[0] < 0 or end[0] != begin[0] + 1:
            return None, expr
        return begin[0], call.args[0]

    def _bound(self, expr: Any) -> Any:
        while isinstance(expr, relax.Var):
            value = self.lookup_binding(expr)
            if value is None:
                return expr
            expr = value
        return expr
