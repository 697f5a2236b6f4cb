"""How one expression of a program is read: its operator, its constants, its shape and its quantization parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.ir import GenericConst
from tvm_ffi import structural_equal

from quantvm.numerics.torch_engines import QuantParams

Expr = Any


def op_name(expr: Expr) -> str:
    """Returns the name of the operator that `expr` calls, for example relax.add; empty if it calls none."""
    return str(getattr(getattr(expr, "op", None), "name", ""))


def is_call(expr: Expr, op: str) -> bool:
    """Returns whether `expr` calls the operator."""
    return op_name(expr) == op


def is_constant(expr: Expr) -> bool:
    """Returns whether `expr` is a constant tensor."""
    return isinstance(expr, GenericConst)


def constant_value(expr: Expr) -> np.ndarray:
    """Returns the value of a Relax constant."""
    return expr.value.numpy()


def size_of(dimension: Any) -> Any:
    """Returns a dimension as a Python int, or the symbolic expression if it is dynamic."""
    return int(dimension) if isinstance(dimension, int) or hasattr(dimension, "value") else dimension


def shape_of(expr: Expr) -> list[Any]:
    """Returns the shape: Python ints, and symbolic expressions where a dimension is dynamic."""
    return [size_of(dimension) for dimension in expr.ty.shape]


def same_shape(a: list[Any], b: list[Any]) -> bool:
    """Returns whether two shapes are the same; they may have symbolic dimensions."""
    return len(a) == len(b) and all(
        x == y if isinstance(x, int) and isinstance(y, int) else structural_equal(x, y)
        for x, y in zip(a, b, strict=True)
    )


def is_per_tensor(call: Expr) -> bool:
    """Returns whether a quantize or dequantize has a single constant scale."""
    return all(is_constant(argument) and not constant_value(argument).ndim for argument in call.args[1:3])


def stored_dtype(call: Expr) -> str:
    """Returns the dtype of the integers that a quantize makes or a dequantize reads."""
    return str(call.attrs.out_dtype if is_call(call, "relax.quantize") else call.args[0].ty.dtype)


def quant_params(call: Expr) -> QuantParams:
    """Returns the per-tensor parameters of a quantize or dequantize call; they must be constants."""
    scale, zero_point = (constant_value(argument) for argument in call.args[1:3])
    return QuantParams(float(scale), int(zero_point), stored_dtype(call))  # type: ignore[arg-type]
