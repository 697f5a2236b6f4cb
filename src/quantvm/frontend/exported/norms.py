"""Normalizations of exported programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, constant, shape_of

from .moving import reshaped
from .registry import register_exported
from .values import ExportedBuilder
from .windows import Uncomputed

TO_EVAL = "call torchao.quantization.pt2e.move_exported_model_to_eval(model), or model.eval() before torch.export"


def _constant(value: Any, what: str) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        raise ModelImportError(f"its {what} is computed at run time, expected a constant")
    return value.detach().numpy()


@register_exported("aten::batch_norm.default")
def batch_norm(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool = False,
) -> Expr:  # fmt: skip
    """Returns x*a + c with a = weight/sqrt(var + eps), c = bias - mean*a: in float32, as in ATen's CPU kernel."""
    if training or running_mean is None:
        raise ModelImportError(f"is in training mode; {TO_EVAL}")
    mean, var = (_constant(v, "statistics") for v in (running_mean, running_var))
    factor = np.float32(1.0) / np.sqrt(var + np.float32(eps))
    factor = factor if weight is None else factor * _constant(weight, "weight")
    offset = np.float32(0) if bias is None else _constant(bias, "bias")
    term = offset - mean * factor
    x = b.relax_of(x)
    shape = (1, -1, *(1,) * (len(shape_of(x)) - 2))
    y = b.emit(relax.op.multiply(x, constant(factor.reshape(shape), "float32")), "scale")
    return b.emit(relax.op.add(y, constant(term.reshape(shape), "float32")), "shift")


@register_exported("aten::_native_batch_norm_legit_no_training.default")
def native_batch_norm(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> list[Any]:
    """Returns [batch_norm by running statistics, statistics of the batch that must not be read]."""
    saved = Uncomputed("the statistics of a normalization")
    return [batch_norm(b, x, weight, bias, mean, var, False, momentum, eps), saved, saved]


def _standardized(b: ExportedBuilder, x: Expr, axes: Sequence[int], eps: float) -> list[Expr]:
    """Returns [(x - mean) / sqrt(var + eps), mean, 1 / sqrt(var + eps)]; statistics keep `axes` with size 1."""
    mean = b.emit(relax.op.mean(x, list(axes), True), "mean")
    distance = b.emit(relax.op.subtract(x, mean), "distance")
    rest = b.emit(relax.op.mean(distance, list(axes), True), "rest")  # the rounding error of the float sum
    distance = b.emit(relax.op.subtract(distance, rest), "distance")
    var = b.emit(relax.op.mean(b.emit(relax.op.multiply(distance, distance), "square"), list(axes), True), "var")
    spread = b.emit(relax.op.sqrt(b.emit(relax.op.add(var, constant(eps, "float32")), "above_0")), "std")
    inverse = b.emit(relax.op.divide(constant(1.0, "float32"), spread), "inverse")
    return [b.emit(relax.op.multiply(distance, inverse), "standardized"), mean, inverse]


def _scaled(b: ExportedBuilder, y: Expr, weight: Any, bias: Any, shape: Sequence[Any]) -> Expr:
    """Returns y * weight + bias, both reshaped to `shape`; either may be missing."""
    if weight is not None:
        y = b.emit(relax.op.multiply(y, reshaped(b, b.relax_of(weight), shape)), "scale")
    if bias is not None:
        y = b.emit(relax.op.add(y, reshaped(b, b.relax_of(bias), shape)), "shift")
    return y


@register_exported("aten::layer_norm.default")
def layer_norm(
    b: ExportedBuilder, x: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> Expr:  # fmt: skip
    """Returns (x - mean) / sqrt(var + eps) * weight + bias over the last dimensions."""
    scale = constant(np.ones(normalized_shape), "float32") if weight is None else b.relax_of(weight)
    shift = constant(np.zeros(normalized_shape), "float32") if bias is None else b.relax_of(bias)
    axes = list(range(-len(normalized_shape), 0))
    return b.emit(relax.op.nn.layer_norm(b.relax_of(x), scale, shift, axes=axes, epsilon=eps), "layer_norm")


@register_exported("aten::native_layer_norm.default")
def native_layer_norm(
    b: ExportedBuilder, x: Any, normalized_shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> list[Any]:
    """Returns [layer_norm, the means, 1 / the standard deviations]."""
    axes = list(range(-len(normalized_shape), 0))
    rank = len(shape_of(b.relax_of(x)))
    _, mean, inverse = _standardized(b, b.relax_of(x), [rank + axis for axis in axes], eps)
    return [layer_norm(b, x, normalized_shape, weight, bias, eps), mean, inverse]


@register_exported("aten::group_norm.default")
def group_norm(
    b: ExportedBuilder, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Expr:  # fmt: skip
    """Returns (x - mean) / sqrt(var + eps) * weight + bias over each group of channels and all later dimensions."""
    x = b.relax_of(x)
    shape = shape_of(x)
    batch, channels, *rest = shape
    grouped = reshaped(b, x, [batch, groups, channels // groups, *rest])
    y = _standardized(b, grouped, range(2, len(rest) + 3), eps)[0]
    return _scaled(b, reshaped(b, y, shape), weight, bias, [1, channels, *[1] * len(rest)])


@register_exported("aten::native_group_norm.default")
def native_group_norm(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any, batch: Any, channels: Any, size: Any, groups: int, eps: float
) -> list[Any]:
    """Returns [group_norm, statistics that must not be read]."""
    saved = Uncomputed("the statistics of a normalization")
    return [group_norm(b, x, groups, weight, bias, eps), saved, saved]


@register_exported("aten::instance_norm.default")
def instance_norm(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: bool,
    momentum: float, eps: float, cudnn_enabled: bool,
) -> Expr:  # fmt: skip
    """Returns x normalized over each channel of each image, or by running statistics."""
    if not use_input_stats:
        return batch_norm(b, x, weight, bias, running_mean, running_var, False, momentum, eps)
    x = b.relax_of(x)
    rank = len(shape_of(x))
    y = _standardized(b, x, range(2, rank), eps)[0]
    return _scaled(b, y, weight, bias, [1, shape_of(x)[1], *[1] * (rank - 2)])


@register_exported("aten::_native_batch_norm_legit.no_stats")
def batch_norm_no_stats(
    b: ExportedBuilder, x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> list[Any]:
    """Returns [x normalized over each channel of the whole batch, statistics that must not be read]."""
    x = b.relax_of(x)
    rank = len(shape_of(x))
    y = _standardized(b, x, [0, *range(2, rank)], eps)[0]
    saved = Uncomputed("the statistics of a normalization")
    return [_scaled(b, y, weight, bias, [1, shape_of(x)[1], *[1] * (rank - 2)]), saved, saved]
