"""Arithmetic and activations on float tensors, and arithmetic on sizes."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, constant
from quantvm.frontend.registry import register_converter
from quantvm.numerics.float_operators import FLOAT_OPERATORS, FloatOperator

from .scalars import is_number, simplified


def float_operands(b: QdqBuilder, name: str, *operands: Any) -> list[Expr]:
    """Returns operands as float tensors; numbers become constants.

    Raises:
        ModelImportError: one of them is quantized; PyTorch has no kernel for that.
    """
    if any(isinstance(x, QTensor) for x in operands):
        raise ModelImportError(
            f"aten::{name} at {b.where} on a quantized tensor: PyTorch has no such kernel; "
            "use torch.ao.nn.quantized.FloatFunctional in the model"
        )
    return [constant(x, "float32") if is_number(x) else b.real(x) for x in operands]


def _binary(b: QdqBuilder, op: Any, name: str, x: Any, y: Any) -> Any:
    return b.emit(op(*float_operands(b, name, x, y)), name)


@register_converter("aten::add", "aten::add_")
def add(b: QdqBuilder, x: Any, y: Any, alpha: float = 1) -> Any:
    """Returns x + alpha*y on float tensors, or on sizes."""
    if alpha != 1:
        y = mul(b, y, alpha)
    if is_number(x) and is_number(y):
        return simplified(x + y)
    return _binary(b, relax.op.add, "add", x, y)


@register_converter("aten::sub", "aten::sub_")
def sub(b: QdqBuilder, x: Any, y: Any, alpha: float = 1) -> Any:
    """Returns x - alpha*y on float tensors, or on sizes."""
    if alpha != 1:
        y = mul(b, y, alpha)
    if is_number(x) and is_number(y):
        return simplified(x - y)
    return _binary(b, relax.op.subtract, "sub", x, y)


@register_converter("aten::rsub")
def rsub(b: QdqBuilder, x: Any, y: Any, alpha: float = 1) -> Any:
    """Returns y - alpha*x on float tensors, or on sizes."""
    return sub(b, y, x, alpha)


@register_converter("aten::mul", "aten::mul_")
def mul(b: QdqBuilder, x: Any, y: Any) -> Any:
    """Returns x * y on float tensors, or on sizes."""
    if is_number(x) and is_number(y):
        return simplified(x * y)
    return _binary(b, relax.op.multiply, "mul", x, y)


@register_converter("aten::div", "aten::div_")
def div(b: QdqBuilder, x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    """Returns x / y on float tensors; rounded down on sizes."""
    if rounding_mode == "floor" and is_number(x) and is_number(y):
        return simplified(x // y)
    if rounding_mode is not None:
        raise ModelImportError(f"div at {b.where} with rounding_mode={rounding_mode!r} is not supported")
    return _binary(b, relax.op.divide, "div", x, y)


@register_converter("aten::pow")
def power(b: QdqBuilder, x: Any, exponent: Any) -> Any:
    """Returns x ** exponent on float tensors."""
    return _binary(b, relax.op.power, "pow", x, exponent)


def _unary(b: QdqBuilder, op: Any, name: str, x: Any) -> Expr:
    return b.emit(op(*float_operands(b, name, x)), name)


@register_converter("aten::neg")
def neg(b: QdqBuilder, x: Any) -> Any:
    """Returns -x on float tensors, or on sizes."""
    return simplified(-x) if is_number(x) else _unary(b, relax.op.negative, "neg", x)


def _register_unary(operator: FloatOperator) -> None:
    @register_converter(operator.aten)
    def convert(b: QdqBuilder, x: Any) -> Expr:
        return _unary(b, attrgetter(operator.relax)(relax.op), operator.name, x)

    convert.__doc__ = f"Returns {operator.name}(x)."


for _operator in FLOAT_OPERATORS.values():
    if _operator.aten:
        _register_unary(_operator)


@register_converter("aten::gelu")
def gelu(b: QdqBuilder, x: Any, approximate: str = "none") -> QTensor | Expr:
    """Returns x * Phi(x), exactly or by tanh; a quantized tensor keeps its parameters."""
    op = relax.op.nn.gelu_tanh if approximate == "tanh" else relax.op.nn.gelu
    return b.quantized_like(x, b.emit(op(b.real(x)), "gelu"))


@register_converter("aten::elu", "aten::elu_")
def elu(b: QdqBuilder, x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Expr:
    """Returns scale * (x > 0 ? x : alpha * (exp(input_scale*x) - 1)) of a float tensor."""
    (x,) = float_operands(b, "elu", x)
    return elu_f32(b, x, alpha, scale, input_scale)


def elu_f32(b: QdqBuilder, x: Expr, alpha: float, scale: float, input_scale: float) -> Expr:
    """Emits elu, with max(x, 0) and min(x, 0) instead of a conditional."""

    def times(y: Expr, factor: float) -> Expr:
        return y if factor == 1 else b.emit(relax.op.multiply(y, constant(factor, "float32")), "mul")

    zero, one = constant(0.0, "float32"), constant(1.0, "float32")
    below = b.emit(relax.op.minimum(x, zero), "below")
    curve = b.emit(relax.op.subtract(b.emit(relax.op.exp(times(below, input_scale)), "exp"), one), "minus_1")
    above = b.emit(relax.op.maximum(x, zero), "above")
    return times(b.emit(relax.op.add(above, times(curve, alpha)), "elu"), scale)


@register_converter("aten::softmax", "aten::_softmax")
def softmax(b: QdqBuilder, x: Any, dim: int, dtype: Any = None) -> Expr:
    """Returns softmax along `dim` of a float tensor."""
    return b.emit(relax.op.nn.softmax(b.real(x), dim), "softmax")


@register_converter("aten::masked_fill", "aten::masked_fill_")
def masked_fill(b: QdqBuilder, x: Any, mask: Expr, value: float) -> Expr:
    """Returns x with `value` where the mask is true; of float tensors."""
    (x,) = float_operands(b, "masked_fill", x)
    return b.emit(relax.op.where(mask, constant(value, "float32"), x), "masked_fill")


@register_converter("aten::where")
def where(b: QdqBuilder, condition: Expr, x: Any, y: Any) -> Expr:
    """Returns x where the condition is true, else y; of float tensors."""
    return b.emit(relax.op.where(condition, *float_operands(b, "where", x, y)), "where")


@register_converter("aten::to", "aten::type_as")
def to(b: QdqBuilder, x: Any, *options: Any) -> Any:
    """Returns x: every tensor here is float32 on the CPU.

    Raises:
        ModelImportError: another dtype is requested.
    """
    dtype = next((o for o in options if isinstance(o, int) and not isinstance(o, bool)), _FLOAT32)
    if dtype != _FLOAT32:
        raise ModelImportError(f"conversion at {b.where} to dtype number {dtype} is not supported, expected float32")
    return x


_FLOAT32 = 6  # torch.float32 as TorchScript numbers it
