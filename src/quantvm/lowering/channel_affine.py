"""Merges a normalization that slices channels, scales and shifts each, and concatenates them, into one scale and shift.

torchvision's models with weights from TensorFlow begin with one (`transform_input`). In both forms the product and the
sum of every element are rounded separately, so no bit changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from quantvm.qdq.bindings import resolved
from quantvm.qdq.expressions import Expr, constant_value, is_call, is_constant, shape_of
from quantvm.qdq.rewriting import Rewriter


def merge_channel_affines(module: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with concat(x[:, 0:1]*a0 + b0, x[:, 1:2]*a1 + b1, ...) as x*(a0, a1, ...) + (b0, b1, ...)."""
    merger = _Merger(module)
    if not merger.affines:
        return module
    return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(merger.go()))


class _Merger(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.affines = {var: found for var, value in self.bound.items() if (found := self._affine(value)) is not None}

    def bind(self, var: relax.Var, value: Expr) -> Expr:
        if var not in self.affines:
            return self.copied(var, value)
        source, factors, terms = self.affines[var]
        product = self.builder.emit(
            relax.op.multiply(self.read(source), _along_channels(factors)), f"{var.name}_scaled"
        )
        return self.builder.emit(relax.op.add(product, _along_channels(terms)), var.name)

    def _affine(self, call: Expr) -> tuple[Expr, list[np.float32], list[np.float32]] | None:
        """Returns the tensor whose channels a concat joins, and the factor and the term of each channel."""
        parts = self._parts(call)
        if not parts:
            return None
        source = parts[0][0]
        if not all(x.same_as(source) for x, *_ in parts):
            return None
        if [channel for _, channel, _, _ in parts] != list(range(shape_of(source)[1])):
            return None
        return source, [factor for _, _, factor, _ in parts], [term for *_, term in parts]

    def _parts(self, call: Any) -> list[tuple[Any, int, np.float32, np.float32]]:
        """Returns (source, channel, factor, term) for each operand of a concat along channels; else an empty list."""
        if not is_call(call, "relax.concat") or int(call.attrs.axis) != 1 or len(call.ty.shape) != 4:
            return []
        operands = resolved(call.args[0], self.bound)
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
        """Returns the float32 scalar that a call adds or multiplies, and its other operand."""
        call = resolved(expr, self.bound)
        if not is_call(call, op) or not is_constant(call.args[1]):
            return None, expr
        value = constant_value(call.args[1])
        return (
            (value.reshape(()).item(), call.args[0]) if value.size == 1 and value.dtype == np.float32 else (None, expr)
        )

    def _channel(self, expr: Any) -> tuple[int | None, Any]:
        """Returns the channel that a one-channel value is sliced from, and the tensor that it is sliced from."""
        call = resolved(expr, self.bound)
        if is_call(call, "relax.expand_dims"):
            squeezed = resolved(call.args[0], self.bound)
            if [int(a) for a in call.attrs.axis] != [1] or not is_call(squeezed, "relax.squeeze"):
                return None, expr
            if squeezed.attrs.axis is None or [int(a) for a in squeezed.attrs.axis] != [1]:
                return None, expr
            call = resolved(squeezed.args[0], self.bound)
        if not is_call(call, "relax.strided_slice") or len(call.args) not in (4, 5):
            return None, expr
        axes, begin, end = ([int(getattr(v, "value", v)) for v in part] for part in call.args[1:4])
        if axes != [1] or begin[0] < 0 or end[0] != begin[0] + 1:
            return None, expr
        return begin[0], call.args[0]


def _along_channels(values: list[np.float32]) -> Expr:
    return relax.const(np.array(values, np.float32).reshape(1, -1, 1, 1))
