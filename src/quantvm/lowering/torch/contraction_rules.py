"""Rules for conv2d and linear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from quantvm.kernels import Kernel
from quantvm.kernels.conv import conv2d, depthwise
from quantvm.kernels.conv.dot import PORTABLE, DotProduct
from quantvm.kernels.conv.epilogue import PostOps
from quantvm.kernels.conv.packing import padding_saturates
from quantvm.kernels.conv.split_weights import split_product
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.lowering.float.float_ops import rows_of_one_image
from quantvm.lowering.tensors import Tensor, in_layout, logical_tensor, product, without_border
from quantvm.numerics import dispatch
from quantvm.numerics import integer as integer_numerics
from quantvm.numerics import torch_engines as numerics
from quantvm.numerics.onednn_amx import ConvGeometry, conv_separate_up_to, linear_separate_up_to
from quantvm.numerics.torch_engines import QuantParams, Requantization, Rule
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import constant_value, is_call

from .deferred import Deferred
from .legalize import Legalization, legalizes


@dataclass(frozen=True)
class _Weight:
    """Stored integers, scales and zero points of a weight; `integers` has its output channels first."""

    integers: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray

    @property
    def symmetric(self) -> bool:
        return not self.zero_points.any()


def _weight(composite: Composite) -> _Weight:
    dequantize = next(c for c in composite.calls("relax.dequantize") if hasattr(c.args[0], "value"))
    integers, scales, zero_points = (constant_value(argument) for argument in dequantize.args[:3])
    return _Weight(integers, np.atleast_1d(scales).astype(np.float64), np.atleast_1d(zero_points).astype(np.int64))


def _bias(composite: Composite) -> np.ndarray | None:
    return constant_value(composite.call("relax.add").args[1]).reshape(-1) if composite.has("relax.add") else None


def _requantization(
    state: Legalization, rule: Rule, kind: Literal["conv", "linear"], composite: Composite, input_q: QuantParams,
    weight: _Weight, channels: int, separate_up_to: int | None, divides: bool = False,
) -> Requantization:  # fmt: skip
    """Returns the requantization under the numerics to follow; `rule` is the engine's."""
    relu, bias_f32 = composite.has("relax.nn.relu"), _bias(composite)
    if state.numerics == "integer":
        return integer_numerics.requantization(
            input_q=input_q, weight_scales=weight.scales, bias_f32=bias_f32, output_q=composite.output, relu=relu,
            channels=channels, rounding=state.rounding,
        )  # fmt: skip
    return numerics.requantization(
        rule, kind, input_q=input_q, weight_scales=weight.scales, bias_f32=bias_f32, output_q=composite.output,
        relu=relu, channels=channels, separate_up_to=separate_up_to, divides=divides,
    )  # fmt: skip


@dataclass(frozen=True)
class _Operand:
    """How a contraction's products are summed, and the weight in the form that this takes.

    Attributes:
        dot: sums the products.
        weight: channels last; int16 with the zero points subtracted where `dot` needs that.
        zero_points: (O,), where the weight is as stored; else None.
    """

    dot: DotProduct
    weight: np.ndarray
    zero_points: np.ndarray | None = None


def _operand(state: Legalization, weight: _Weight, channels_last: np.ndarray, x: QuantParams, pairs: bool) -> _Operand:
    """Returns the operand for inputs of `x`; `pairs`: PyTorch's kernel sums products in pairs that saturate."""
    if pairs and x.dtype == "uint8" and weight.zero_points.min() > -128:
        return _Operand(state.pairs, channels_last, np.broadcast_to(weight.zero_points, (len(channels_last),)))
    if not weight.symmetric:
        # w - zero_point needs nine bits
        shift = weight.zero_points.reshape(-1, *(1,) * (channels_last.ndim - 1))
        return _Operand(PORTABLE, channels_last.astype(np.int16) - shift.astype(np.int16))
    dot = split_product(state.dot, channels_last) if x.dtype == "uint8" else PORTABLE
    return _Operand(dot, channels_last)


def _without_vnni(state: Legalization, rule: Rule) -> bool:
    """Whether PyTorch computes with kernels for CPUs without VNNI, whose sums of pairs saturate."""
    return state.numerics == "torch" and not state.vnni and rule in ("fbgemm", "onednn")


@legalizes("conv2d")
def lower_conv2d(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Deferred:
    """conv2d (+ bias) (+ relu), under the arithmetic of the engine that PyTorch would dispatch to."""
    conv = composite.call("relax.nn.conv2d")
    ((index, input_q),) = composite.inputs(conv)
    x, border = inputs[index], (0, 0, 0, 0)
    weight = _weight(composite)
    own_padding = _padding(conv)
    w_ohwi = np.ascontiguousarray(weight.integers.transpose(0, 2, 3, 1))
    engine_rule = dispatch.conv_rule(state.engine, int(conv.attrs.groups), weight.symmetric, vnni=state.vnni)
    # oneDNN leaves out its own padding, but not a border that was put around the input
    skips_padding = (
        _without_vnni(state, engine_rule) and engine_rule == "onednn" and input_q.dtype == "uint8"
        and any(own_padding) and padding_saturates(w_ohwi, input_q.zero_point)
    )  # fmt: skip
    if any(x.border) and x.border_value == input_q.zero_point and not skips_padding:
        border, x = x.border, without_border(x)
    x = state.nhwc(x)
    shape = conv_shape(conv, x, weight.integers.shape, border)
    separate_up_to, divides = None, False
    if engine_rule == "onednn" and state.onednn_amx:
        separate_up_to = conv_separate_up_to(_geometry(shape, border), state.threads)
    elif engine_rule == "onednn" and not state.vnni:
        divides = dispatch.onednn_avx2_refuses(shape.in_channels, shape.out_channels, shape.groups)
        separate_up_to = None if divides else 0
    requantization = _requantization(
        state, engine_rule, "conv", composite, input_q, weight, shape.out_channels, separate_up_to, divides
    )
    is_depthwise = shape.groups == shape.in_channels and shape.groups > 1
    if is_depthwise:
        saturates = requantization.rule == "fbgemm" and (
            not state.vnni
            or dispatch.fbgemm_depthwise_saturates(
                shape.in_channels, shape.out_channels, shape.groups, shape.kernel, shape.stride, own_padding[:2],
                shape.dilation,
            )
        )  # fmt: skip
        zero_points = np.broadcast_to(weight.zero_points, (shape.out_channels,))

        def build(post: PostOps) -> Kernel:
            return depthwise.depthwise_conv2d(
                shape, w_ohwi, zero_points, input_q.zero_point, requantization, saturate_pairs=saturates,
                threads=state.threads, x_dtype=input_q.dtype, isa=state.isa, post=post,
            )  # fmt: skip
    else:
        pairs = _without_vnni(state, engine_rule) and not divides
        operand = _operand(state, weight, w_ohwi, input_q, pairs)
        schedule = state.schedule(shape, operand.dot)

        def build(post: PostOps) -> Kernel:
            return conv2d.conv2d(
                shape, operand.weight, input_q.zero_point, requantization, operand.dot, threads=state.threads,
                schedule=schedule, x_dtype=input_q.dtype, isa=state.isa, post=post,
                weight_zero_points=operand.zero_points, pairs_cross_taps=engine_rule == "fbgemm",
                skips_padding=skips_padding and operand.dot.saturates,
            )  # fmt: skip

    like = Tensor(None, (x.shape[0], shape.out_channels, shape.out_height, shape.out_width), "NHWC", channels_last=True)
    return Deferred(build, x, like, composite.output, name, takes_residual=not is_depthwise and shape.groups == 1)


def _padding(conv: Any) -> tuple[int, int, int, int]:
    top, left, bottom, right = (int(p) for p in conv.attrs.padding)
    return top, left, bottom, right


def conv_shape(conv: Any, x: Tensor, weight_shape: tuple[int, ...], border: tuple[int, int, int, int]) -> Conv2dShape:
    """Returns the geometry of a conv2d call.

    Args:
        conv: the call.
        x: its input, without a border that is not filled in.
        weight_shape: (O, I/groups, KH, KW).
        border: (top, left, bottom, right) of zero points, which padding takes in.
    """
    attrs = conv.attrs
    top, left, bottom, right = (own + extra for own, extra in zip(_padding(conv), border, strict=True))
    out_channels, _, kernel_h, kernel_w = weight_shape
    return Conv2dShape(
        in_height=x.shape[2], in_width=x.shape[3], in_channels=x.shape[1], out_channels=out_channels,
        kernel=(kernel_h, kernel_w), stride=_pair(attrs.strides), padding=(top, left, bottom, right),
        dilation=_pair(attrs.dilation), groups=int(attrs.groups),
    )  # fmt: skip


def _geometry(shape: Conv2dShape, border: tuple[int, int, int, int]) -> ConvGeometry:
    """Returns what PyTorch hands to oneDNN: a border of zero points is there a part of the input."""
    top, left, bottom, right = border
    return ConvGeometry(
        in_size=(shape.in_height + top + bottom, shape.in_width + left + right),
        out_size=(shape.out_height, shape.out_width), in_channels=shape.in_channels, out_channels=shape.out_channels,
        kernel=shape.kernel, stride=shape.stride, padding=(shape.padding[0] - top, shape.padding[1] - left),
        dilation=shape.dilation, groups=shape.groups,
    )  # fmt: skip


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


@legalizes("linear")
def lower_linear(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """X @ w.T (+ bias) (+ relu), for any number of leading dimensions."""
    from tvm import relax

    matmul = composite.call("relax.matmul")
    assert is_call(composite.resolve(matmul.args[1]), "relax.permute_dims")
    ((index, input_q),) = composite.inputs(matmul)
    x = in_layout(state.builder, inputs[index], "NCHW")
    weight = _weight(composite)
    out_features, in_features = weight.integers.shape
    rule = dispatch.linear_rule(state.engine)
    separate_up_to = None
    if rule == "onednn" and state.onednn_amx:
        separate_up_to = linear_separate_up_to(in_features, out_features)
    elif rule == "onednn" and not state.vnni:
        separate_up_to = 0
    requantization = _requantization(state, rule, "linear", composite, input_q, weight, out_features, separate_up_to)
    operand = _operand(state, weight, weight.integers, input_q, _without_vnni(state, rule))
    cut = dispatch.onednn_avx2_linear_cut(in_features) if rule == "onednn" and operand.dot.saturates else None
    kernel = conv2d.linear(
        in_features, operand.weight, input_q.zero_point, requantization, operand.dot, threads=state.threads,
        x_dtype=input_q.dtype, isa=state.isa, weight_zero_points=operand.zero_points, cut=cut,
    )  # fmt: skip
    leading = list(x.shape[:-1])
    kernel = replace(kernel, macs=kernel.macs * rows_of_one_image(leading))
    rows = product(leading)
    if len(leading) != 1:
        flat = state.builder.emit(relax.op.reshape(x.expr, relax.ShapeExpr([rows, in_features])))
        x = Tensor(flat, (rows, in_features), "flat")
    y = state.run(kernel, [x], Tensor(None, (rows, out_features), "flat"), composite.output.dtype, name)
    if len(leading) == 1:
        return y
    shape = (*leading, out_features)
    return logical_tensor(state.builder.emit(relax.op.reshape(y.expr, relax.ShapeExpr(list(shape)))))
