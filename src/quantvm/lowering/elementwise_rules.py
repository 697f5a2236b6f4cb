"""Rules for quantize, dequantize, add, mul, concat and activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import relax

from quantvm import numerics
from quantvm.kernels import concat, elementwise, quantize
from quantvm.numerics import QuantParams
from quantvm.unary_tables import add_scalar_table

from .activation import clamp_limits, unary_tables
from .composite import Composite, constant_value, quant_params
from .legalize import Legalization, legalizes
from .tensors import Tensor, have_one_order, in_layout, repeated


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
    """A + b (+ relu), b of one image or of all; the scalar tails lie where PyTorch's memory order puts them."""
    (index_a, a_q), (index_b, b_q) = composite.inputs(composite.call("relax.add"))
    one_order = have_one_order(inputs[index_a], inputs[index_b])
    a = state.memory_order(inputs[index_a])
    b = in_layout(state.builder, inputs[index_b], a.layout)
    one_for_all = b.shape[0] == 1 and a.shape[0] != 1
    if state.engine == "qnnpack" and composite.output.dtype == "uint8":
        fixed = numerics.qnnpack_add(a_q, b_q, composite.output)
        b = repeated(state.builder, b, a)
        kernel = elementwise.add_fixed_point(
            a.item_shape, a_q, b_q, composite.output, fixed, relu=composite.has("relax.nn.relu")
        )
        return state.run(kernel, [a, b], a, composite.output.dtype, name)
    kernel = elementwise.add(
        a.item_shape, a_q, b_q, composite.output, relu=composite.has("relax.nn.relu"), threads=state.threads,
        one_for_all=one_for_all, vectorised=one_order,
    )  # fmt: skip
    return state.run(kernel, [a, b], a, composite.output.dtype, name)


@legalizes("mul")
def lower_mul(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A * b (+ relu), either of which may be (n, C, 1, 1)."""
    (index_a, a_q), (index_b, b_q) = composite.inputs(composite.call("relax.multiply"))
    a, b = (state.rows(inputs[index]) for index in (index_a, index_b))
    broadcast = a.item_shape != b.item_shape
    if broadcast and a.item_shape[:2] == (1, 1):
        a, a_q, b, b_q = b, b_q, a, a_q  # the product is commutative, in every rounding
    kernel = elementwise.multiply(
        a.item_shape, a_q, b_q, composite.output, relu=composite.has("relax.nn.relu"), broadcast=broadcast
    )
    return state.run(kernel, [a, b], a, composite.output.dtype, name)


@legalizes("concat")
def lower_concat(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """Concatenation, each input requantized; PyTorch's formula depends on all inputs being channels-last."""
    call = composite.call("relax.concat")
    operands = composite.inputs(call)
    tensors, params = [inputs[i] for i, _ in operands], [q for _, q in operands]
    output, axis, rank = composite.output, int(call.attrs.axis), len(inputs[0].shape)
    # PyTorch takes its channels-last kernel for dim=1 and not for dim=-3
    if rank == 4 and axis == 1 and all(t.behaves_channels_last for t in tensors):
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
    return Tensor(expr, tuple(shape), "NCHW" if rank == 4 else "flat")


@legalizes("add_scalar", "mul_scalar")
def lower_with_number(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A tensor and a number: a table, in PyTorch's memory order."""
    q, out = quant_params(composite.call("relax.dequantize")), composite.output
    if composite.name == "add_scalar":
        steps = numerics.add_scalar(q, float(constant_value(composite.call("relax.add").args[1])))[1]
        entries = add_scalar_table(q, steps, out)
    else:
        entries = np.arange(q.quant_max, q.quant_min - 1, -1).astype(q.dtype)
    x = state.memory_order(inputs[0])
    kernel = elementwise.table(
        x.item_shape, entries, entries, in_dtype=q.dtype, threads=state.threads, name=composite.name
    )
    return state.run(kernel, [x], x, out.dtype, name)


@legalizes("hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "silu", "gelu", "gelu_tanh")
def lower_table(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A unary operator is a table over the 256 input values, and a second one for PyTorch's scalar tails."""
    q = quant_params(composite.call("relax.dequantize"))
    main, tail = unary_tables(state.engine, composite, state.torch_tables)
    x = state.memory_order(inputs[0])
    kernel = elementwise.table(x.item_shape, main, tail, in_dtype=q.dtype, threads=state.threads, name=composite.name)
    return state.run(kernel, [x], x, composite.output.dtype, name)


@legalizes("relu", "clip")
def lower_clamp(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """relu, relu6, hardtanh and clamp under unchanged parameters: limits on the integers."""
    q: QuantParams = composite.output
    low, high = clamp_limits(composite)
    x = in_layout(state.builder, inputs[0], inputs[0].layout)
    kernel = elementwise.clamp_integers(x.item_shape, low, high, q.dtype, composite.name)
    return state.run(kernel, [x], x, q.dtype, name)
