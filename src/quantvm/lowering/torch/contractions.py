"""Lowerings of conv2d and linear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from tvm import relax

from quantvm.kernels import Kernel
from quantvm.kernels.conv import conv2d, depthwise
from quantvm.kernels.conv.dot import PORTABLE, DotProduct
from quantvm.kernels.conv.epilogue import PostOps
from quantvm.kernels.conv.packing import padding_saturates
from quantvm.kernels.conv.split_weights import split_product
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.lowering.float.float_ops import rows_of_one_image
from quantvm.lowering.tensors import Tensor, in_layout, logical_tensor, without_border
from quantvm.numerics import dispatch
from quantvm.numerics import integer as integer_numerics
from quantvm.numerics.dispatch import Contraction, ContractionChoice
from quantvm.numerics.onednn_amx import ConvGeometry, LinearGeometry
from quantvm.numerics.requantization import Requantization, requantization
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import constant_value, is_call, shape_of
from quantvm.sizes import product

from .deferred import Deferred
from .legalize import Legalization, legalizes


@dataclass(frozen=True)
class Weight:
    """Stored integers, scales and zero points of a weight; `integers` has its output channels first."""

    integers: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are 0."""
        return not self.zero_points.any()


def weight_of(composite: Composite) -> Weight:
    """Returns the weight of a conv2d or linear."""
    dequantize = next(c for c in composite.calls("relax.dequantize") if hasattr(c.args[0], "value"))
    integers, scales, zero_points = (constant_value(argument) for argument in dequantize.args[:3])
    return Weight(integers, np.atleast_1d(scales).astype(np.float64), np.atleast_1d(zero_points).astype(np.int64))


def bias_of(composite: Composite) -> np.ndarray | None:
    """Returns the (C,) float32 bias of a conv2d or linear, or None."""
    return constant_value(composite.call("relax.add").args[1]).reshape(-1) if composite.has("relax.add") else None


def contraction_of(composite: Composite) -> Contraction:
    """Returns a conv2d or linear as `contraction_choice` takes it."""
    weight = weight_of(composite)
    if composite.name == "linear":
        out_features, in_features = weight.integers.shape
        ((_, input_q),) = composite.inputs(composite.call("relax.matmul"))
        return Contraction(LinearGeometry(in_features, out_features), input_q.dtype, weight.symmetric)
    conv = composite.call("relax.nn.conv2d")
    ((_, input_q),) = composite.inputs(conv)
    groups, (out_channels, group_in, *kernel) = int(conv.attrs.groups), weight.integers.shape
    geometry = ConvGeometry.of_window(
        _pair(shape_of(conv.args[0])[2:]), (group_in * groups, out_channels), kernel=_pair(kernel),
        stride=_pair(conv.attrs.strides), padding=_padding(conv), dilation=_pair(conv.attrs.dilation), groups=groups,
    )  # fmt: skip
    return Contraction(geometry, input_q.dtype, weight.symmetric)


def _choice(state: Legalization, composite: Composite) -> ContractionChoice:
    if state.numerics == "integer":
        return dispatch.INTEGER
    return dispatch.contraction_choice(contraction_of(composite), state.pytorch)


def _requantization(
    state: Legalization, choice: ContractionChoice, kind: Literal["conv", "linear"], composite: Composite,
    input_q: QuantParams, weight: Weight, channels: int,
) -> Requantization:  # fmt: skip
    relu, bias_f32 = composite.has("relax.nn.relu"), bias_of(composite)
    if choice.formula == "integer":
        return integer_numerics.requantization(
            input_q=input_q, weight_scales=weight.scales, bias_f32=bias_f32, output_q=composite.output, relu=relu,
            channels=channels, rounding=state.rounding,
        )  # fmt: skip
    return requantization(
        choice.formula, kind, input_q=input_q, weight_scales=weight.scales, bias_f32=bias_f32,
        output_q=composite.output, relu=relu, channels=channels, separate_up_to=choice.separate_up_to,
        divides=choice.divides,
    )  # fmt: skip


@dataclass(frozen=True)
class _Operand:
    """How a contraction's products are summed, and the weight in the form that `dot` needs.

    Attributes:
        dot: sums the products.
        weight: channels last; int16 with the zero points subtracted if `dot` needs that.
        zero_points: (O,) if they are not subtracted from the weight; else None.
    """

    dot: DotProduct
    weight: np.ndarray
    zero_points: np.ndarray | None = None


def _operand(
    state: Legalization, weight: Weight, channels_last: np.ndarray, x: QuantParams, choice: ContractionChoice
) -> _Operand:
    """Returns the operand for inputs of `x`."""
    if choice.pairs != "none" and x.dtype == "uint8":
        return _Operand(state.pairs, channels_last, np.broadcast_to(weight.zero_points, (len(channels_last),)))
    if not weight.symmetric:
        # w - zero_point needs nine bits
        shift = weight.zero_points.reshape(-1, *(1,) * (channels_last.ndim - 1))
        return _Operand(PORTABLE, channels_last.astype(np.int16) - shift.astype(np.int16))
    dot = split_product(state.dot, channels_last) if x.dtype == "uint8" else PORTABLE
    return _Operand(dot, channels_last)


@legalizes("conv2d")
def lower_conv2d(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Deferred:
    """conv2d (+ bias) (+ relu), in the arithmetic of the library to which PyTorch would dispatch."""
    conv = composite.call("relax.nn.conv2d")
    ((index, input_q),) = composite.inputs(conv)
    x, border = inputs[index], (0, 0, 0, 0)
    weight, choice = weight_of(composite), _choice(state, composite)
    w_ohwi = np.ascontiguousarray(weight.integers.transpose(0, 2, 3, 1))
    # oneDNN skips its own padding, but not a border that was added to the input explicitly
    skips_padding = choice.skips_padding and padding_saturates(w_ohwi, input_q.zero_point)
    if any(x.border) and x.border_value == input_q.zero_point and not skips_padding:
        border, x = x.border, without_border(x)
    x = state.nhwc(x)
    shape = conv_shape(conv, x, weight.integers.shape, border)
    requantization = _requantization(state, choice, "conv", composite, input_q, weight, shape.out_channels)
    is_depthwise = shape.groups == shape.in_channels and shape.groups > 1
    if is_depthwise:
        zero_points = np.broadcast_to(weight.zero_points, (shape.out_channels,))

        def build(post: PostOps) -> Kernel:
            return depthwise.depthwise_conv2d(
                shape, w_ohwi, zero_points, input_q.zero_point, requantization, saturate_pairs=choice.pairs != "none",
                threads=state.pytorch.threads, x_dtype=input_q.dtype, isa=state.isa, post=post,
            )  # fmt: skip
    else:
        operand = _operand(state, weight, w_ohwi, input_q, choice)
        schedule = state.schedule(shape, operand.dot)

        def build(post: PostOps) -> Kernel:
            return conv2d.conv2d(
                shape, operand.weight, input_q.zero_point, requantization, operand.dot, threads=state.pytorch.threads,
                schedule=schedule, x_dtype=input_q.dtype, isa=state.isa, post=post,
                weight_zero_points=operand.zero_points, pairs_cross_taps=choice.pairs == "window",
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
        x: its input, without its border.
        weight_shape: (O, I/groups, KH, KW).
        border: (top, left, bottom, right) border of zero points, which is added to the padding.
    """
    attrs = conv.attrs
    top, left, bottom, right = (own + extra for own, extra in zip(_padding(conv), border, strict=True))
    out_channels, _, kernel_h, kernel_w = weight_shape
    return Conv2dShape(
        in_height=x.shape[2], in_width=x.shape[3], in_channels=x.shape[1], out_channels=out_channels,
        kernel=(kernel_h, kernel_w), stride=_pair(attrs.strides), padding=(top, left, bottom, right),
        dilation=_pair(attrs.dilation), groups=int(attrs.groups),
    )  # fmt: skip


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


@legalizes("linear")
def lower_linear(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """X @ w.T (+ bias) (+ relu), for any number of leading dimensions."""
    matmul = composite.call("relax.matmul")
    assert is_call(composite.resolve(matmul.args[1]), "relax.permute_dims")
    ((index, input_q),) = composite.inputs(matmul)
    x = in_layout(state.builder, inputs[index], "NCHW")
    weight, choice = weight_of(composite), _choice(state, composite)
    out_features, in_features = weight.integers.shape
    requantization = _requantization(state, choice, "linear", composite, input_q, weight, out_features)
    operand = _operand(state, weight, weight.integers, input_q, choice)
    cut = choice.cut if operand.dot.saturates else None
    kernel = conv2d.linear(
        in_features, operand.weight, input_q.zero_point, requantization, operand.dot, threads=state.pytorch.threads,
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
