"""The quantized_decomposed operators: quantize and dequantize, per tensor and per channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, constant

from .registry import register_exported
from .values import BOUNDS, Dequantized, ExportedBuilder, Params


def _number(value: Any, what: str) -> Any:
    """Returns the Python number of an immediate or a constant tensor."""
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, relax.Expr):
        raise ModelImportError(
            f"its {what} is computed at run time: dynamic quantization; use a static quantizer, or torchao.quantize_ "
            "with Int8DynamicActivationInt8WeightConfig for linear layers"
        )
    return value


def quantized(b: ExportedBuilder, x: Any, params: Params) -> Expr:
    """Returns a float tensor's quantized integers; the original ones if it was dequantized with equal parameters."""
    if isinstance(x, Dequantized) and x.params.equals(params):
        return b.relax_of(x.integers)
    x = b.relax_of(x)
    low, high = BOUNDS[params.dtype]
    scale_f32 = params.scale.astype(np.float32)
    inverse = (1.0 / params.scale).astype(np.float32)
    if np.array_equal(inverse, (1.0 / scale_f32.astype(np.float64)).astype(np.float32)):
        scale, zero_point = constant(scale_f32, "float32"), constant(params.zero_point, params.dtype)
        axis = params.axis if params.scale.ndim else -1
        y = b.emit(relax.op.quantize(x, scale, zero_point, axis=axis, out_dtype=params.dtype))
        if (params.quant_min, params.quant_max) != (low, high):
            y = b.emit(relax.op.clip(y, params.quant_min, params.quant_max), "range")
        return y
    # PyTorch inverts the scale in double precision; so a scale that is not a float32 has another inverse
    scaled = b.emit(relax.op.round(b.emit(relax.op.multiply(x, constant(inverse, "float32")), "scaled")), "rounded")
    shifted = b.emit(relax.op.add(scaled, constant(params.zero_point, "float32")), "shifted")
    return b.emit(relax.op.astype(relax.op.clip(shifted, params.quant_min, params.quant_max), params.dtype))


@register_exported(
    "quantized_decomposed::quantize_per_tensor.default",
    "quantized_decomposed::quantize_per_tensor.tensor",
    "quantized_decomposed::quantize_per_tensor.tensor2",
)
def quantize_per_tensor(
    b: ExportedBuilder, x: Any, scale: Any, zero_point: Any, quant_min: Any, quant_max: Any, dtype: torch.dtype
) -> Expr:
    """Returns clamp(round(x * (1/scale)) + zero_point, quant_min, quant_max)."""
    numbers = (_number(scale, "scale"), _number(zero_point, "zero point"))
    limits = (_number(quant_min, "range"), _number(quant_max, "range"))
    return quantized(b, x, b.checked(*numbers, *limits, dtype))


@register_exported("quantized_decomposed::quantize_per_channel.default")
def quantize_per_channel(
    b: ExportedBuilder, x: Any, scales: Any, zero_points: Any, axis: int, quant_min: int, quant_max: int,
    dtype: torch.dtype,
) -> Expr:  # fmt: skip
    """Returns clamp(round(x * (1/scale_c)) + zero_point_c, quant_min, quant_max) along `axis`.

    Float weights are constants, which PyTorch itself quantizes at import.
    """
    if not (isinstance(scales, torch.Tensor) and isinstance(zero_points, torch.Tensor)):
        raise ModelImportError("its scales are computed at run time; use a static quantizer")
    return quantized(b, x, b.checked(scales, zero_points, quant_min, quant_max, dtype, axis))


def _dequantized(q: Any, params: Params, out_dtype: torch.dtype | None) -> Dequantized:
    if out_dtype not in (None, torch.float32):
        raise ModelImportError(f"dequantized to {out_dtype}, expected float32")
    dtype = str(q.dtype if isinstance(q, torch.Tensor) else q.ty.dtype).removeprefix("torch.")
    if dtype != params.dtype:
        raise ModelImportError(f"dequantizes {params.dtype}, got {dtype}")
    return Dequantized(q, params)


def _bias(q: Any, dtype: torch.dtype) -> bool:
    return isinstance(q, torch.Tensor) and dtype in (torch.int32, torch.int16)


@register_exported(
    "quantized_decomposed::dequantize_per_tensor.default",
    "quantized_decomposed::dequantize_per_tensor.tensor",
    "quantized_decomposed::dequantize_per_tensor.tensor2",
)
def dequantize_per_tensor(
    b: ExportedBuilder, q: Any, scale: Any, zero_point: Any, quant_min: Any, quant_max: Any, dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
) -> Dequantized | torch.Tensor:  # fmt: skip
    """Returns (q - zero_point) * scale; a constant with more than 8 bits is a bias and becomes a float constant."""
    numbers = (_number(scale, "scale"), _number(zero_point, "zero point"))
    if _bias(q, dtype):
        return torch.ops.quantized_decomposed.dequantize_per_tensor.default(q, *numbers, quant_min, quant_max, dtype)
    limits = (_number(quant_min, "range"), _number(quant_max, "range"))
    return _dequantized(q, b.checked(*numbers, *limits, dtype), out_dtype)


@register_exported("quantized_decomposed::dequantize_per_channel.default")
def dequantize_per_channel(
    b: ExportedBuilder, q: Any, scales: Any, zero_points: Any, axis: int, quant_min: int, quant_max: int,
    dtype: torch.dtype, out_dtype: torch.dtype | None = None,
) -> Dequantized | torch.Tensor:  # fmt: skip
    """Returns (q - zero_point_c) * scale_c along `axis`."""
    if not isinstance(scales, torch.Tensor) or not (zero_points is None or isinstance(zero_points, torch.Tensor)):
        raise ModelImportError("its scales are computed at run time; use a static quantizer")
    if zero_points is None:
        zero_points = torch.zeros(scales.shape, dtype=torch.int64)
    if _bias(q, dtype):
        return torch.ops.quantized_decomposed.dequantize_per_channel.default(
            q, scales, zero_points, axis, quant_min, quant_max, dtype
        )
    return _dequantized(q, b.checked(scales, zero_points, quant_min, quant_max, dtype, axis), out_dtype)
