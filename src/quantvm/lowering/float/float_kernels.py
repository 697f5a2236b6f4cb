"""Matrix products that stay in float run in our own kernels, because TVM would emit plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from quantvm.kernels import Kernel
from quantvm.kernels.float.float_matmul import Tile, float_linear, float_matmul
from quantvm.qdq.expressions import Expr, constant_value, is_call, is_constant, same_shape, shape_of
from quantvm.qdq.rewriting import Rewriter
from quantvm.sizes import product


def call_float_kernels(module: tvm.IRModule, tile: Tile) -> tvm.IRModule:
    """Replaces float32 matrix products of known sizes by calls of kernels.

    A constant right side is packed, also if it is a dequantized weight; otherwise both sides must have the same batch.

    Args:
        module: a module with matrix products in `main`.
        tile: register tile of the kernels.
    """
    rewriter = _Rewriter(module, tile)
    return relax.transform.DeadCodeElimination()(rewriter.go()) if rewriter.kernels else module


class _Rewriter(Rewriter):
    def __init__(self, module: tvm.IRModule, tile: Tile) -> None:
        super().__init__(module)
        matmuls = {var: value for var, value in self.bound.items() if is_call(value, "relax.matmul")}
        self.kernels = {
            var: kernel for var, value in matmuls.items() if (kernel := _kernel(value, self.bound, tile)) is not None
        }

    def bind(self, var: relax.Var, value: Expr) -> Expr:
        if var not in self.kernels:
            return self.copied(var, value)
        return _call(self.builder, self.kernels[var], [self.read(a) for a in value.args], value, var.name)


def _kernel(matmul: Any, bound: dict[Any, Any], tile: Tile) -> Kernel | None:
    a, b = matmul.args
    if any(str(expr.ty.dtype) != "float32" for expr in (a, b, matmul)):
        return None
    left, right = shape_of(a), shape_of(b)
    if len(left) < 2 or len(right) < 2 or not all(isinstance(d, int) for d in (*left[-1:], *right[-2:])):
        return None
    weight = _constant(b, bound) if len(right) == 2 else None
    if weight is not None:
        return float_linear(np.ascontiguousarray(weight), tile)
    if not isinstance(left[-2], int) or len(left) < 3 or not same_shape(left[:-2], right[:-2]):
        return None
    return float_matmul(left[-2], left[-1], right[-1], tile)


def _constant(expr: Any, bound: dict[Any, Any]) -> np.ndarray | None:
    """Returns the value of a float32 constant, perhaps dequantized or transposed; else None."""
    if is_constant(expr):
        return constant_value(expr)
    value: Any = bound.get(expr)
    if is_call(value, "relax.permute_dims"):
        inner = _constant(value.args[0], bound)
        axes = None if value.attrs.axes is None else [int(a) for a in value.attrs.axes]
        return None if inner is None else inner.transpose(axes)
    if is_call(value, "relax.dequantize") and is_constant(value.args[0]):
        integers, scale, zero_point = (constant_value(argument) for argument in value.args[:3])
        if scale.ndim:
            along = [1] * integers.ndim
            along[int(value.attrs.axis)] = -1
            scale, zero_point = scale.reshape(along), np.asarray(zero_point).reshape(along)
        centred = (integers.astype(np.int32) - zero_point.astype(np.int32)).astype(np.float32)
        return np.multiply(centred, scale.astype(np.float32), dtype=np.float32)
    return None


def _call(builder: relax.BlockBuilder, kernel: Kernel, operands: list[Any], matmul: Any, name: str) -> Any:
    """Emits the call of a kernel over dense batches, and returns its result in the product's shape."""
    shape = shape_of(matmul)
    function = kernel.func.with_attr("global_symbol", kernel.name).with_attr("op_pattern", tirx.const(8, "int32"))
    target = builder.add_func(function, kernel.name)
    constants = [relax.const(c, "float32") for c in kernel.constants]
    kept = 1 if constants else 2

    def dense(expr: Any) -> Any:
        dims = shape_of(expr)
        return builder.emit(relax.op.reshape(expr, relax.ShapeExpr([product(dims[:-kept]), *dims[-kept:]])))

    arrays = [dense(operands[0])] if constants else [dense(operand) for operand in operands]
    out = [product(shape[:-kept]), *shape[-kept:]]
    call = relax.call_tir(target, [*arrays, *constants], relax.TensorType(out, "float32"))
    return builder.emit(relax.op.reshape(builder.emit(call), relax.ShapeExpr(shape)), name)
