"""Dtypes of the values of an exported program, and PyTorch's promotion of operands to a common one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from tvm import ir, relax

from quantvm.frontend.builder import Expr, constant, shape_of

from .values import ExportedBuilder

_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float32}


def torch_dtype(x: Expr) -> torch.dtype:
    """Returns the dtype of a Relax tensor."""
    return getattr(torch, str(x.ty.dtype))


def is_tensor(value: Any) -> bool:
    """Returns whether a value is a Relax tensor."""
    return isinstance(getattr(value, "ty", None), relax.TensorType)


def tensor_of(b: ExportedBuilder, value: Any) -> Any:
    """Returns the Relax tensor of a value of the program; a number stays a number, a dynamic size becomes int64 ()."""
    value = b.relax_of(value)
    if ir.is_prim_expr(value):
        size = b.emit(relax.op.shape_to_tensor(relax.ShapeExpr([value])), "size")
        return b.emit(relax.op.squeeze(size, [0]), "size")
    return value


def as_dtype(b: ExportedBuilder, x: Expr, dtype: torch.dtype) -> Expr:
    """Returns x converted: floats are truncated to integers, and nonzero numbers become true."""
    old = torch_dtype(x)
    if old == dtype:
        return x
    if dtype == torch.bool:
        is_zero = b.emit(relax.op.equal(x, constant(0, name_of(old))), "is_zero")
        return b.emit(relax.op.logical_not(is_zero), "bool")  # NaN is true, but Relax's not_equal returns false for it
    return b.emit(relax.op.astype(x, name_of(dtype)), "astype")


def name_of(dtype: torch.dtype) -> str:
    """Returns the name of a dtype that Relax also has."""
    return str(dtype).removeprefix("torch.")


def as_float(b: ExportedBuilder, x: Any) -> Expr:
    """Returns the float tensor: integers and booleans as float32."""
    x = b.relax_of(x)
    return x if torch_dtype(x).is_floating_point else as_dtype(b, x, torch.float32)


def common_dtype(operands: Sequence[Any]) -> torch.dtype:
    """Returns PyTorch's result type of tensors and numbers.

    Tensors without dimensions, and then numbers, count only if they are of a higher kind (bool < integer < float).
    """
    kinds: list[list[torch.dtype]] = [[], [], []]
    for operand in operands:
        if is_tensor(operand):
            kinds[0 if shape_of(operand) else 1].append(torch_dtype(operand))
        else:
            kinds[2].append(_NUMBERS[type(operand)])
    found = [reduce(torch.promote_types, dtypes) if dtypes else None for dtypes in kinds]
    dtype = reduce(_combined, found)
    assert dtype is not None
    return dtype


def _combined(higher: torch.dtype | None, lower: torch.dtype | None) -> torch.dtype | None:
    if higher is None or lower is None:
        return higher or lower
    if higher.is_floating_point or not (lower.is_floating_point or higher == torch.bool):
        return higher
    return torch.promote_types(higher, lower)


def promoted(b: ExportedBuilder, *operands: Any, dtype: torch.dtype | None = None) -> list[Expr]:
    """Returns the operands as tensors of their common dtype, or of the given one."""
    values = [tensor_of(b, operand) for operand in operands]
    common = dtype or common_dtype(values)
    return [as_dtype(b, v, common) if is_tensor(v) else constant(v, name_of(common)) for v in values]


def float_dtype(operands: Sequence[Any]) -> torch.dtype:
    """Returns the result type of a real function; float32 for integers."""
    common = common_dtype(operands)
    return common if common.is_floating_point else torch.float32
