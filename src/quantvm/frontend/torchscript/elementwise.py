"""Quantize, dequantize, and arithmetic of quantized tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, constant
from quantvm.frontend.registry import register_converter
from quantvm.numerics import torch_engines
from quantvm.numerics.torch_engines import QuantParams

from .activations import relu_of
from .scalars import is_number

_DTYPES = {12: "int8", 13: "uint8"}  # torch.qint8, torch.quint8 as TorchScript numbers them


@register_converter("aten::quantize_per_tensor")
def quantize_per_tensor(b: QdqBuilder, x: Expr, scale: float, zero_point: int, dtype: int) -> QTensor:
    """Returns the float tensor quantized to quint8 or qint8."""
    if dtype not in _DTYPES:
        raise ModelImportError(f"quantize_per_tensor at {b.where} to dtype number {dtype}; expected quint8 or qint8")
    return b.quantized(x, b.params(scale, zero_point, _DTYPES[dtype]))


@register_converter("aten::dequantize")
def dequantize(b: QdqBuilder, x: Any) -> Expr:
    """Returns the float tensor."""
    return b.island(x) if isinstance(x, QTensor) else x


def _binary(
    b: QdqBuilder, op: Any, name: str, operands: tuple[Any, Any], out: tuple[float, int], relu: bool
) -> QTensor:
    b.expect_quantized(name, *operands)
    y = b.emit(op(b.real(operands[0]), b.real(operands[1])), name.removeprefix("quantized::"))
    if relu:
        y = b.emit(relax.op.nn.relu(y), "relu")
    return b.quantized(y, b.params(*out, operands[0].q.dtype))


def _with_number(b: QdqBuilder, name: str, x: Any, number: float, relu: bool) -> QTensor | Expr:
    """Emits x + number or x * number with PyTorch's derived parameters; integers that stay equal are kept."""
    (x,) = b.expect_quantized(f"quantized::{name}", x)
    q: QuantParams = x.q
    if name == "add":
        out, steps = torch_engines.add_scalar(q, number)
        operand, stays = float(np.float32(steps * q.scale)), out.torch_scale == q.torch_scale
    else:
        out, operand, stays = torch_engines.mul_scalar(q, number), number, number > 0
    out = b.params(out.torch_scale, out.zero_point, out.dtype)
    if stays:
        y = QTensor(x.expr, out)
    else:
        op = relax.op.add if name == "add" else relax.op.multiply
        y = b.quantized(b.emit(op(b.real(x), constant(operand, "float32")), name), out)
    return relu_of(b, y) if relu else y


def _add_or_mul(b: QdqBuilder, name: str, x: Any, y: Any, out: tuple[Any, ...], relu: bool) -> Any:
    """Converts an operator on two tensors, or on a tensor and a number in either order."""
    if not out:
        tensor, number = (y, x) if is_number(x) else (x, y)
        return _with_number(b, name, tensor, float(number), relu)
    op = relax.op.add if name == "add" else relax.op.multiply
    return _binary(b, op, f"quantized::{name}", (x, y), (out[0], out[1]), relu)


@register_converter("quantized::add")
def quantized_add(b: QdqBuilder, qa: Any, qb: Any, *out: Any) -> QTensor:
    """Returns quantize(dequantize(a) + dequantize(b)); with a number, with the parameters that PyTorch derives."""
    return _add_or_mul(b, "add", qa, qb, out, relu=False)


@register_converter("quantized::add_relu")
def quantized_add_relu(b: QdqBuilder, qa: Any, qb: Any, *out: Any) -> QTensor:
    """Returns quantize(relu(dequantize(a) + dequantize(b))); with a number, as `quantized::add`."""
    return _add_or_mul(b, "add", qa, qb, out, relu=True)


@register_converter("quantized::mul")
def quantized_mul(b: QdqBuilder, qa: Any, qb: Any, *out: Any) -> QTensor:
    """Returns quantize(dequantize(a) * dequantize(b)), broadcast; with a number, as `quantized::add`."""
    return _add_or_mul(b, "mul", qa, qb, out, relu=False)


@register_converter("quantized::mul_relu")
def quantized_mul_relu(b: QdqBuilder, qa: Any, qb: Any, *out: Any) -> QTensor:
    """Returns quantize(relu(dequantize(a) * dequantize(b))), broadcast; with a number, as `quantized::add`."""
    return _add_or_mul(b, "mul", qa, qb, out, relu=True)


@register_converter("quantized::add_scalar")
def add_scalar(b: QdqBuilder, x: Any, number: float) -> QTensor:
    """Returns x + number: by another zero point, if that fits into the dtype."""
    return _with_number(b, "add", x, number, relu=False)


@register_converter("quantized::mul_scalar")
def mul_scalar(b: QdqBuilder, x: Any, number: float) -> QTensor:
    """Returns x * number: by another scale, and mirrored integers for a negative number."""
    return _with_number(b, "mul", x, number, relu=False)


@register_converter("quantized::mul_scalar_relu")
def mul_scalar_relu(b: QdqBuilder, x: Any, number: float) -> QTensor:
    """Returns relu(x * number), as `quantized::mul_scalar`."""
    return _with_number(b, "mul", x, number, relu=True)
