"""Linear layers of `torchao.quantization.quantize_`: int8 weights, and activations quantized statically or per row.

torchao multiplies integers and scales the accumulators: float(acc) * s_x * s_w. With static parameters that becomes a
quantized linear layer in QDQ form. With dynamic ones the program's own operators are kept around an int8 product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tvm import relax
from tvm_ffi import structural_equal

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, constant, shape_of
from quantvm.frontend.registry import find_converter

from .registry import register_exported
from .tensor_types import as_dtype
from .values import Dequantized, ExportedBuilder, Params, Pending


@dataclass(frozen=True)
class Integers(Pending):
    """Integers of a statically quantized tensor, before anything is computed from them."""

    expr: Expr
    params: Params

    def expression(self, b: ExportedBuilder) -> Expr:
        """Returns the integers."""
        return self.expr


@dataclass(frozen=True)
class OffsetIntegers(Pending):
    """int8 integers that torchao converts to uint8: first to int32, then plus 128, then to uint8.

    Whether torchao does so depends on the CPU on which a program is exported; the sums are the same.

    Attributes:
        x: the int8 integers.
        offset: the number added so far.
        dtype: int32 or uint8.
    """

    x: Integers | Expr
    offset: int = 0
    dtype: str = "int32"

    def expression(self, b: ExportedBuilder) -> Expr:
        """Returns the integers plus the offset."""
        y = b.emit(relax.op.astype(b.relax_of(self.x), "int32"), "astype")
        y = b.emit(relax.op.add(y, constant(self.offset, "int32")), "raised") if self.offset else y
        return y if self.dtype == "int32" else b.emit(relax.op.astype(y, self.dtype), "astype")


@dataclass(frozen=True)
class OffsetProduct(Pending):
    """Sums of products of integers that are too large by 128.

    Attributes:
        x: the int8 integers, before 128 was added.
        weight: int8 (K, N), a constant.
    """

    x: Integers | Expr
    weight: torch.Tensor

    def expression(self, b: ExportedBuilder) -> Expr:
        """Raises ModelImportError: only the correction may read this value."""
        raise ModelImportError("multiplies integers plus 128, expected that 128 times the weight's sums are subtracted")


@dataclass(frozen=True)
class Accumulators(Pending):
    """Sums of products of integers that will become a quantized linear layer.

    Attributes:
        x: the activation's integers.
        weight: int8 (K, N), a constant.
        scaled: whether they were multiplied by the activation's scale.
        shifted: whether the activation's zero point was accounted for.
    """

    x: Integers
    weight: torch.Tensor
    scaled: bool = False
    shifted: bool = False

    def expression(self, b: ExportedBuilder) -> Expr:
        """Returns the float values of accumulators that did not become a linear layer in QDQ form."""
        product = b.emit(relax.op.matmul(self.x.expr, b.relax_of(self.weight), out_dtype="int32"), "int_mm")
        y = b.emit(relax.op.astype(product, "float32"), "astype")
        if self.scaled:
            y = b.emit(relax.op.multiply(y, constant(self.x.params.scale, "float32")), "mul")
        if self.shifted and int(self.x.params.zero_point) != 0:
            sums = self.weight.T.contiguous().sum(-1).to(torch.float32)
            term = float(self.x.params.zero_point) * torch.tensor([[float(self.x.params.scale)]]) * sums
            y = b.emit(relax.op.subtract(y, b.relax_of(term)), "sub")
        return y


def _reduced_axes(block_size: Sequence[Any]) -> list[int]:
    return [axis for axis, size in enumerate(block_size) if not (isinstance(size, int) and size == 1)]


def _check_blocks(block_size: Sequence[Any], shape: Sequence[Any]) -> None:
    for size, whole in zip(block_size, shape, strict=True):
        if isinstance(size, int) and isinstance(whole, int) and size not in (1, whole):
            raise ModelImportError(
                f"quantizes in blocks of {list(block_size)}, expected one scale per row or per tensor; use "
                "granularity=PerRow() or PerTensor()"
            )


@register_exported("torchao::choose_qparams_affine.default")
def choose_qparams_affine(
    b: ExportedBuilder, x: Any, mapping_type: str, block_size: Sequence[Any], target_dtype: torch.dtype,
    quant_min: int, quant_max: int, eps: float, scale_dtype: Any = None, zero_point_dtype: Any = None,
    keepdim: bool = False,
) -> list[Any]:  # fmt: skip
    """Returns [scale, zero_point] of each row or of the whole tensor; both have the tensor's rank.

    Symmetric: scale = max(|x|) / ((quant_max - quant_min)/2). Asymmetric: scale = (max - min)/(quant_max - quant_min)
    over a range that includes 0, zero_point = clamp(quant_min - round(min/scale)).
    """
    x = b.relax_of(x)
    _check_blocks(block_size, shape_of(x))
    if target_dtype != torch.int8 or mapping_type not in ("SYMMETRIC", "ASYMMETRIC"):
        raise ModelImportError(f"chooses {mapping_type} parameters of {target_dtype}, expected int8")
    if not keepdim:
        raise ModelImportError("chooses parameters without keepdim, expected torchao 0.18's form")
    axes = _reduced_axes(block_size)
    zero, epsilon = constant(0.0, "float32"), constant(eps, "float32")
    low = b.emit(relax.op.minimum(b.emit(relax.op.min(x, axes, True), "min"), zero), "low")
    high = b.emit(relax.op.maximum(b.emit(relax.op.max(x, axes, True), "max"), zero), "high")
    steps = float(quant_max - quant_min)
    if mapping_type == "SYMMETRIC":
        peak = b.emit(relax.op.maximum(b.emit(relax.op.negative(low), "negative"), high), "peak")
        scale = b.emit(relax.op.divide(peak, constant(steps / 2, "float32")), "quotient")
        middle = torch.full((1,) * len(block_size), int((quant_max + quant_min + 1) / 2), dtype=torch.int8)
        return [b.emit(relax.op.maximum(scale, epsilon), "scale"), middle]
    width = b.emit(relax.op.subtract(high, low), "width")
    scale = b.emit(relax.op.divide(width, constant(steps, "float32")), "quotient")
    scale = b.emit(relax.op.maximum(scale, epsilon), "scale")
    rounded = b.emit(relax.op.round(b.emit(relax.op.divide(low, scale), "ratio")), "rounded")
    shifted = b.emit(relax.op.subtract(constant(float(quant_min), "float32"), rounded), "shifted")
    clipped = b.emit(relax.op.clip(shifted, quant_min, quant_max), "clipped")
    return [scale, b.emit(relax.op.astype(clipped, "int8"), "zero_point")]


@register_exported("torchao::quantize_affine.default")
def quantize_affine(
    b: ExportedBuilder, x: Any, block_size: Sequence[Any], scale: Any, zero_point: Any, output_dtype: torch.dtype,
    quant_min: int, quant_max: int,
) -> Integers | Expr:  # fmt: skip
    """Returns clamp(round(x * (1/scale)) + zero_point, quant_min, quant_max) as integers."""
    from .quantize import quantized

    x = b.relax_of(x)
    _check_blocks(block_size, shape_of(x))
    is_static = isinstance(scale, torch.Tensor) and (zero_point is None or isinstance(zero_point, torch.Tensor))
    if is_static and scale.numel() == 1:
        zero = 0 if zero_point is None or zero_point.numel() == 0 else zero_point.reshape(()).item()
        params = b.checked(scale.reshape(()), zero, quant_min, quant_max, output_dtype)
        return Integers(quantized(b, x, params), params)
    inverse = b.emit(relax.op.divide(constant(1.0, "float32"), b.relax_of(scale)), "inverse")
    y = b.emit(relax.op.round(b.emit(relax.op.multiply(x, inverse), "scaled")), "rounded")
    if zero_point is not None:
        y = b.emit(relax.op.add(y, b.emit(relax.op.astype(b.relax_of(zero_point), "float32"), "zero")), "shifted")
    y = b.emit(relax.op.clip(y, quant_min, quant_max), "clipped")
    return b.emit(relax.op.astype(y, str(output_dtype).removeprefix("torch.")), "integers")


@register_exported("aten::_int_mm.default")
def int_mm(b: ExportedBuilder, x: Any, weight: Any) -> Accumulators | OffsetProduct | Expr:
    """Returns the int32 product of int8 matrices."""
    if isinstance(x, OffsetIntegers) and isinstance(weight, torch.Tensor) and (x.offset, x.dtype) == (128, "uint8"):
        return OffsetProduct(x.x, weight)
    if isinstance(x, Integers) and isinstance(weight, torch.Tensor):
        return Accumulators(x, weight, shifted=int(x.params.zero_point) == 0)
    return b.emit(relax.op.matmul(b.relax_of(x), b.relax_of(weight), out_dtype="int32"), "int_mm")


def with_addend(b: ExportedBuilder, x: OffsetIntegers, addend: Any) -> OffsetIntegers | Expr:
    """Returns the integers plus `addend`."""
    if isinstance(addend, int) and x.dtype == "int32":
        return replace(x, offset=x.offset + addend)
    return b.emit(relax.op.add(b.relax_of(x), b.relax_of(addend)), "add")


def without_offset(b: ExportedBuilder, x: OffsetProduct, correction: Any) -> Accumulators | Expr:
    """Returns the product of int8 matrices: the product of offset integers minus 128 times the sums of the weight.

    Raises:
        ModelImportError: anything else is subtracted.
    """
    expected = 128 * x.weight.sum(0, keepdim=True, dtype=torch.int32)
    if not isinstance(correction, torch.Tensor) or not torch.equal(correction, expected):
        return x.expression(b)
    product = int_mm(b, x.x, x.weight)
    assert not isinstance(product, OffsetProduct)
    return product


@register_exported("aten::reshape.default", "aten::view.default", "aten::_unsafe_view.default")
def reshape(b: ExportedBuilder, x: Any, shape: Sequence[Any]) -> Any:
    """Returns x in another shape, x itself if it has that shape already; integers stay integers."""
    convert = find_converter("aten::reshape")
    assert convert is not None
    expr = b.relax_of(x)
    old = shape_of(expr)
    if len(old) == len(shape) and sum(isinstance(d, int) and d == -1 for d in shape) <= 1:
        is_same = all(
            n is o or n == o if isinstance(n, int) or isinstance(o, int) else structural_equal(n, o)
            for n, o in zip(shape, old, strict=True)
            if not (isinstance(n, int) and n == -1)
        )
        if is_same:
            return x if isinstance(x, Integers) else expr
    y = convert(b, expr, shape)
    return replace(x, expr=y) if isinstance(x, Integers) else y


@register_exported("aten::to.dtype")
def to_dtype(
    b: ExportedBuilder, x: Any, dtype: torch.dtype, non_blocking: bool = False, copy: bool = False,
    memory_format: Any = None,
) -> Any:  # fmt: skip
    """Returns x converted to another dtype."""
    if isinstance(x, Accumulators) and dtype == torch.float32:
        return x
    name = str(dtype).removeprefix("torch.")
    if isinstance(x, OffsetIntegers) and x.offset == 128 and name == "uint8":
        return replace(x, dtype=name)
    expr = b.relax_of(x)
    old = str(expr.ty.dtype)
    if (old, name) == ("int8", "int32"):
        return OffsetIntegers(x)
    return as_dtype(b, expr, dtype)


def scaled(b: ExportedBuilder, x: Accumulators, factor: Any) -> Accumulators | Expr:
    """Returns accumulators times a constant; after both scales, this is a linear layer in QDQ form."""
    if not isinstance(factor, torch.Tensor):
        return b.emit(relax.op.multiply(b.relax_of(x), b.relax_of(factor)), "mul")
    params = x.x.params
    if not x.scaled and factor.numel() == 1 and factor.item() == params.scale.item():
        return replace(x, scaled=True)
    if x.scaled and x.shifted and factor.numel() in (1, x.weight.shape[1]):
        scales, axis = factor.reshape(() if factor.numel() == 1 else -1), 0
        weight = Dequantized(
            x.weight.T.contiguous(), b.checked(scales, torch.zeros_like(scales), -128, 127, torch.int8, axis)
        )
        transposed = b.emit(relax.op.permute_dims(b.relax_of(weight), [1, 0]), "weight_t")
        return b.emit(relax.op.matmul(b.relax_of(Dequantized(x.x.expr, params)), transposed), "linear")
    return b.emit(relax.op.multiply(b.relax_of(x), b.relax_of(factor)), "mul")


def shifted(b: ExportedBuilder, x: Accumulators, correction: Any) -> Accumulators | Expr:
    """Returns accumulators minus the contribution of the activation's zero point."""
    if isinstance(correction, torch.Tensor) and x.scaled and not x.shifted:
        sums = x.weight.T.contiguous().sum(-1).to(torch.float32)
        zero_point = torch.tensor([[float(x.x.params.zero_point)]])
        if torch.equal(correction, zero_point * torch.tensor([[float(x.x.params.scale)]]) * sums):
            return replace(x, shifted=True)
    return b.emit(relax.op.subtract(b.relax_of(x), b.relax_of(correction)), "sub")
