"""quantized::conv2d, quantized::linear and their fused ReLUs; weights are the stored integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, constant
from quantvm.frontend.registry import register_converter
from quantvm.numerics.torch_engines import QuantParams


def _weight(b: QdqBuilder, weight: Any) -> Expr:
    """Returns dequantize(stored integers), per channel along axis 0 or per tensor."""
    import torch

    integers = weight.int_repr().contiguous().numpy()
    if integers.dtype != np.int8:
        raise ModelImportError(f"weight at {b.where} has dtype {weight.dtype}, expected qint8")
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        if weight.q_per_channel_axis() != 0:
            raise ModelImportError(
                f"weight at {b.where} is quantized along axis {weight.q_per_channel_axis()}, expected 0"
            )
        scale, zero_point = weight.q_per_channel_scales().numpy(), weight.q_per_channel_zero_points().numpy()
    else:
        scale, zero_point = np.float64(weight.q_scale()), np.int64(weight.q_zero_point())
    if not (np.isfinite(scale).all() and (np.asarray(scale).astype(np.float32) > 0).all()):
        raise ModelImportError(f"weight at {b.where} has a scale that is NaN, infinite or not above zero")
    axis = 0
    dequantize = relax.op.dequantize(
        constant(integers, "int8"), constant(scale, "float32"), constant(zero_point, "int8"), axis=axis
    )
    return b.emit(dequantize, "weight")


def _bias(bias: Any, rank: int) -> Expr | None:
    if bias is None:
        return None
    values = bias.detach().numpy()
    return constant(values.reshape((1, -1, *(1,) * (rank - 2))), "float32")


def _finish(b: QdqBuilder, y: Expr, bias: Expr | None, relu: bool, out: QuantParams) -> QTensor:
    if bias is not None:
        y = b.emit(relax.op.add(y, bias), "bias")
    if relu:
        y = b.emit(relax.op.nn.relu(y), "relu")
    return b.quantized(y, out)


def _conv2d(b: QdqBuilder, x: Any, packed: Any, scale: float, zero_point: int, *, relu: bool) -> QTensor:
    b.expect_quantized("quantized::conv2d", x)
    weight, bias = packed.unpack()
    if packed.transpose():
        raise ModelImportError(f"transposed convolution at {b.where} is not supported")
    pad_h, pad_w = packed.padding()
    y = relax.op.nn.conv2d(
        b.real(x), _weight(b, weight), strides=list(packed.stride()), padding=[pad_h, pad_w, pad_h, pad_w],
        dilation=list(packed.dilation()), groups=packed.groups(), data_layout="NCHW", kernel_layout="OIHW",
        out_dtype="float32",
    )  # fmt: skip
    return _finish(b, b.emit(y, "conv"), _bias(bias, 4), relu, b.params(scale, zero_point, x.q.dtype))


@register_converter("quantized::conv2d")
def conv2d(b: QdqBuilder, x: Any, packed: Any, output_scale: float, output_zero_point: int) -> QTensor:
    """Returns quantize(conv2d(dequantize(x), dequantize(w)) + bias)."""
    return _conv2d(b, x, packed, output_scale, output_zero_point, relu=False)


@register_converter("quantized::conv2d_relu")
def conv2d_relu(b: QdqBuilder, x: Any, packed: Any, output_scale: float, output_zero_point: int) -> QTensor:
    """Returns quantize(relu(conv2d(dequantize(x), dequantize(w)) + bias))."""
    return _conv2d(b, x, packed, output_scale, output_zero_point, relu=True)


def _linear(b: QdqBuilder, x: Any, packed: Any, scale: float, zero_point: int, *, relu: bool) -> QTensor:
    b.expect_quantized("quantized::linear", x)
    weight, bias = packed.unpack()
    transposed = b.emit(relax.op.permute_dims(_weight(b, weight), [1, 0]), "weight_t")
    y = b.emit(relax.op.matmul(b.real(x), transposed), "linear")
    return _finish(b, y, _bias(bias, 2), relu, b.params(scale, zero_point, x.q.dtype))


@register_converter("quantized::linear")
def linear(b: QdqBuilder, x: Any, packed: Any, output_scale: float, output_zero_point: int) -> QTensor:
    """Returns quantize(dequantize(x) @ dequantize(w).T + bias)."""
    return _linear(b, x, packed, output_scale, output_zero_point, relu=False)


@register_converter("quantized::linear_relu")
def linear_relu(b: QdqBuilder, x: Any, packed: Any, output_scale: float, output_zero_point: int) -> QTensor:
    """Returns quantize(relu(dequantize(x) @ dequantize(w).T + bias))."""
    return _linear(b, x, packed, output_scale, output_zero_point, relu=True)
