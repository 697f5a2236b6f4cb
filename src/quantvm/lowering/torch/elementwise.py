"""Lowerings of quantize, dequantize, add, mul, concat and activations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from quantvm.kernels.elementwise import concat, elementwise, quantize
from quantvm.lowering import strides as torch_strides
from quantvm.lowering.strides import Strides
from quantvm.lowering.tensors import (
    Tensor,
    arranged,
    broadcast,
    broadcast_shape,
    have_one_shape,
    in_layout,
    is_gate,
    misread,
    rearranged,
)
from quantvm.numerics import dispatch
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.binary import qnnpack_add
from quantvm.numerics.torch_engines import QuantParams, add_scalar
from quantvm.numerics.unary_tables import add_scalar_table, prelu_tables
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import constant_value, quant_params

from .activation import clamp_limits, unary_tables
from .deferred import misreads_clip
from .legalize import Legalization, legalizes


@legalizes("quantize")
def lower_quantize(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """float32 -> integers; 4-d tensors go to NHWC on the way."""
    x, q = inputs[0], composite.output
    if x.layout != "NCHW" or not x.batch_first:
        return state.run(quantize.quantize(x.item_shape, q), [x], x, q.dtype, name)
    n, c, h, w = x.shape
    like = Tensor(None, (n, c, h, w), "NHWC", x.channels_last)
    return state.run(quantize.quantize_nchw_to_nhwc(c, h, w, q, state.isa), [x], like, q.dtype, name)


@legalizes("quantize_affine")
def lower_quantize_affine(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """float32 -> integers in NHWC, each channel scaled and shifted first."""
    x, q = state.logical(inputs[0]), composite.output
    factors, terms = (constant_value(composite.call(op).args[1]).reshape(-1) for op in ("relax.multiply", "relax.add"))
    _, c, h, w = x.shape
    kernel = quantize.quantize_nchw_to_nhwc(c, h, w, q, state.isa, affine=(factors, terms))
    return state.run(kernel, [x], replace(x, expr=None, layout="NHWC"), q.dtype, name)


@legalizes("dequantize")
def lower_dequantize(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """Integers -> float32, in PyTorch's logical order."""
    x = state.logical(inputs[0])
    q = quant_params(composite.call("relax.dequantize"))
    return state.run(quantize.dequantize(x.item_shape, q), [x], x, "float32", name)


@legalizes("add")
def lower_add(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A + b (+ relu), broadcast; with the scalar tails of PyTorch's loop over both."""
    (index_a, a_q), (index_b, b_q) = composite.inputs(composite.call("relax.add"))
    a, b = inputs[index_a], inputs[index_b]
    relu = composite.has("relax.nn.relu")
    shape = broadcast_shape(a.shape, b.shape)
    if dispatch.add_is_qnnpacks(state.pytorch, composite.output.dtype, one_shape=have_one_shape(a.shape, b.shape)):
        factors = qnnpack_add(a_q, b_q, composite.output)
        a = state.memory_order(a)
        b = in_layout(state.builder, b, a.layout)
        kernel = elementwise.qnnpack_add(a.item_shape, a_q, b_q, composite.output, factors, relu=relu)
        return state.run(kernel, [a, b], a, composite.output.dtype, name)
    keeps_shape = have_one_shape(a.shape, shape)
    strides = [torch_strides.expanded(x.shape, x.torch_strides, shape) for x in (a, b)]
    found = torch_strides.walk(shape, _suggested(a) if keeps_shape else None, strides)
    one_for_all = keeps_shape and found.vectorised and _is_row_of(b, a, found)
    a, b = (x if x is b and one_for_all else broadcast(state.builder, x, shape) for x in (a, b))
    a, b = (arranged(state.builder, x, found.order) for x in (a, b))
    kernel = elementwise.add(
        a.item_shape, a_q, b_q, composite.output, relu=relu, pytorch=state.pytorch, one_for_all=one_for_all,
        row=found.row, vectorised=found.vectorised,
    )  # fmt: skip
    y = state.run(kernel, [a, b], a, composite.output.dtype, name)
    return rearranged(state.builder, y, found.order, found.strides)


def _suggested(x: Tensor) -> Strides:
    """Returns the strides that PyTorch gives the result of an operator on x: those of x's suggested format."""
    made = torch_strides.channels_last if x.channels_last else torch_strides.contiguous
    return made(x.shape)


def _is_row_of(b: Tensor, a: Tensor, found: torch_strides.Walk) -> bool:
    """Whether b has the size of one image of a, and each of PyTorch's rows is one image."""
    same = len(a.shape) == len(b.shape) and have_one_shape(a.shape[1:], b.shape[1:])
    if not same or not _is_one(b.shape[0]) or isinstance(a.shape[0], int) or not a.batch_first or found.row is None:
        return False
    row = found.row(a.shape[0], None)
    return isinstance(row, int) and row == math.prod(b.shape)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


@legalizes("mul")
def lower_mul(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A * b (+ relu), broadcast; the result has the suggested memory format of the first operand."""
    (index_a, a_q), (index_b, b_q) = composite.inputs(composite.call("relax.multiply"))
    a, b = inputs[index_a], inputs[index_b]
    shape, channels_last = broadcast_shape(a.shape, b.shape), a.channels_last
    if is_gate(a, b):
        a, a_q, b, b_q = b, b_q, a, a_q  # the product is commutative, in every rounding
    gated = is_gate(b, a)
    a, b = (x if gated else broadcast(state.builder, x, shape) for x in (a, b))
    a, b = state.rows(a), state.rows(b)
    kernel = elementwise.multiply(
        a.item_shape, a_q, b_q, composite.output, relu=composite.has("relax.nn.relu"), broadcast=gated
    )
    like = replace(a, channels_last=channels_last and len(shape) == 4)
    return state.run(kernel, [a, b], like, composite.output.dtype, name)


@legalizes("concat")
def lower_concat(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """Concatenation, each input requantized; PyTorch's formula depends on all inputs being channels-last."""
    call = composite.call("relax.concat")
    operands = composite.inputs(call)
    tensors, params = [inputs[i] for i, _ in operands], [q for _, q in operands]
    output, axis, rank = composite.output, int(call.attrs.axis), len(inputs[0].shape)
    if dispatch.concat_is_vectorised(rank, axis, channels_last=all(t.behaves_channels_last for t in tensors)):
        tensors = [state.nhwc(t) for t in tensors]
        n, _, h, w = tensors[0].shape
        channels = [t.shape[1] for t in tensors]
        kernel = concat.concat_nhwc((h, w), channels, params, output, state.isa)
        like = Tensor(None, (n, sum(channels), h, w), "NHWC", channels_last=True)
        return state.run(kernel, tensors, like, output.dtype, name)
    pieces = []
    for tensor, q in zip(tensors, params, strict=True):
        piece = state.logical(tensor)
        if q != output:
            kernel = quantize.requantize_arr(piece.item_shape, q, output)
            piece = state.run(kernel, [piece], piece, output.dtype, f"{name}_requantize")
        pieces.append(piece.expr)
    axis = axis + rank if axis < 0 else axis
    expr = state.builder.emit(relax.op.concat(pieces, axis), name)
    shape = list(tensors[0].shape)
    shape[axis] = sum(t.shape[axis] for t in tensors)
    # PyTorch concatenates dequantized tensors in the suggested memory format that all inputs share
    suggested = all(t.channels_last for t in tensors)
    return Tensor(expr, tuple(shape), "NCHW" if rank == 4 else "flat", channels_last=suggested)


@legalizes("add_scalar", "mul_scalar")
def lower_with_number(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """An operator of a tensor and a number, as a table; in PyTorch's memory order."""
    q, out = quant_params(composite.call("relax.dequantize")), composite.output
    if composite.name == "add_scalar":
        steps = add_scalar(q, float(constant_value(composite.call("relax.add").args[1])))[1]
        entries = add_scalar_table(q, steps, out)
    else:
        entries = np.arange(q.quant_max, q.quant_min - 1, -1).astype(q.dtype)
    x = state.memory_order(inputs[0])
    kernel = elementwise.table(
        x.item_shape, entries, entries, in_dtype=q.dtype, pytorch=state.pytorch, name=composite.name
    )
    return state.run(kernel, [x], x, out.dtype, name)


@legalizes(*ACTIVATIONS)
def lower_table(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A unary operator, as a table over the 256 input values and a second one for PyTorch's scalar tails."""
    q = quant_params(composite.call("relax.dequantize"))
    main, tail = unary_tables(state.pytorch, composite, state.torch_tables)
    x = inputs[0]
    output = _suggested(x) if ACTIVATIONS[composite.name].keeps_order else torch_strides.contiguous(x.shape)
    found = torch_strides.walk(x.shape, output, [x.torch_strides])
    arranged_x = arranged(state.builder, x, found.order)
    kernel = elementwise.table(
        arranged_x.item_shape, main, tail, in_dtype=q.dtype, pytorch=state.pytorch, name=composite.name,
        row=found.row, vectorised=found.vectorised,
    )  # fmt: skip
    y = state.run(kernel, [arranged_x], arranged_x, composite.output.dtype, name)
    return rearranged(state.builder, y, found.order, found.strides)


@legalizes("prelu")
def lower_prelu(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """PReLU in PyTorch's integer arithmetic, as a table over the 256 input values for each channel."""
    prelu = composite.call("relax.nn.prelu")
    slope = composite.resolve(prelu.args[1])
    q, out = quant_params(composite.resolve(prelu.args[0])), composite.output
    tables = prelu_tables(q, constant_value(slope.args[0]), quant_params(slope), out)
    x = state.memory_order(inputs[0])
    if (tables == tables[0]).all():
        kernel = elementwise.table(
            x.item_shape, tables[0], tables[0], in_dtype=q.dtype, pytorch=state.pytorch, name=composite.name
        )
    else:
        inner = 1 if x.layout == "NHWC" else math.prod(int(size) for size in x.shape[2:])
        kernel = elementwise.table_by_channel(x.item_shape, tables, inner, in_dtype=q.dtype, name=composite.name)
    return state.run(kernel, [x], x, out.dtype, name)


@legalizes("relu", "clip")
def lower_clamp(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """relu, clip and the like that keep the parameters: limits on the integers."""
    q: QuantParams = composite.output
    low, high = clamp_limits(composite)
    is_misread = misreads_clip(state, composite, inputs[0])
    x = in_layout(state.builder, inputs[0], "NHWC" if is_misread else inputs[0].layout)
    kernel = elementwise.clamp_integers(x.item_shape, low, high, q.dtype, composite.name)
    y = state.run(kernel, [x], x, q.dtype, name)
    return misread(state.builder, y, name) if is_misread else y
