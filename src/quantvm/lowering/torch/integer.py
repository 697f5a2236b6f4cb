"""Lowerings of numerics=integer for operators whose formula differs from PyTorch's; the others use PyTorch's."""

from __future__ import annotations

from dataclasses import replace

from tvm import relax

from quantvm.kernels import integer_only
from quantvm.kernels.elementwise import concat, elementwise
from quantvm.lowering.tensors import Tensor, broadcast, broadcast_shape, in_layout, is_gate
from quantvm.numerics import integer as integer_numerics
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.float_operators import FUSED
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import constant_value, quant_params

from .activation import options_of
from .legalize import Legalization, legalizes
from .pools import pool_shape


@legalizes("quantize", numerics="integer")
def lower_quantize(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """float32 -> integers; 4-d tensors go to NHWC on the way."""
    x, q = inputs[0], composite.output
    if x.layout != "NCHW" or not x.batch_first:
        return state.run(integer_only.integer_quantize(x.item_shape, q, to_nhwc=False), [x], x, q.dtype, name)
    like = replace(x, expr=None, layout="NHWC")
    return state.run(integer_only.integer_quantize(x.item_shape, q, to_nhwc=True), [x], like, q.dtype, name)


@legalizes("quantize_affine", numerics="integer")
def lower_quantize_affine(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """float32 -> integers in NHWC, each channel scaled and shifted first."""
    x, q = state.logical(inputs[0]), composite.output
    factors, terms = (constant_value(composite.call(op).args[1]).reshape(-1) for op in ("relax.multiply", "relax.add"))
    kernel = integer_only.integer_quantize(x.item_shape, q, to_nhwc=True, affine=(factors, terms))
    return state.run(kernel, [x], replace(x, expr=None, layout="NHWC"), q.dtype, name)


@legalizes("add", numerics="integer")
def lower_add(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A + b (+ relu), broadcast, both requantized to the output's parameters."""
    (index_a, a_q), (index_b, b_q) = composite.inputs(composite.call("relax.add"))
    shape = broadcast_shape(inputs[index_a].shape, inputs[index_b].shape)
    a, b = (broadcast(state.builder, inputs[index], shape) for index in (index_a, index_b))
    a = in_layout(state.builder, a, a.layout)
    b = in_layout(state.builder, b, a.layout)
    kernel = integer_only.integer_add(
        a.item_shape, a_q, b_q, composite.output, relu=composite.has("relax.nn.relu"), rounding=state.rounding
    )
    return state.run(kernel, [a, b], a, composite.output.dtype, name)


@legalizes("mul", numerics="integer")
def lower_mul(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A * b (+ relu), broadcast."""
    (index_a, a_q), (index_b, b_q) = composite.inputs(composite.call("relax.multiply"))
    a, b = inputs[index_a], inputs[index_b]
    shape = broadcast_shape(a.shape, b.shape)
    if is_gate(a, b):
        a, a_q, b, b_q = b, b_q, a, a_q
    gated = is_gate(b, a)
    a, b = (x if gated else broadcast(state.builder, x, shape) for x in (a, b))
    a, b = state.rows(a), state.rows(b)
    kernel = integer_only.integer_multiply(
        a.item_shape, a_q, b_q, composite.output, relu=composite.has("relax.nn.relu"), broadcast=gated,
        rounding=state.rounding,
    )  # fmt: skip
    return state.run(kernel, [a, b], a, composite.output.dtype, name)


@legalizes("concat", numerics="integer")
def lower_concat(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """Concatenation, each input requantized by a table."""
    call = composite.call("relax.concat")
    operands = composite.inputs(call)
    tensors, params = [inputs[i] for i, _ in operands], [q for _, q in operands]
    output, axis, rank = composite.output, int(call.attrs.axis), len(inputs[0].shape)
    tables = [integer_numerics.requantize_table(q, output, state.rounding) for q in params]
    if rank == 4 and axis % rank == 1 and all(t.batch_first for t in tensors):
        tensors = [state.nhwc(t) for t in tensors]
        n, _, h, w = tensors[0].shape
        channels = [t.shape[1] for t in tensors]
        kernel = concat.concat_nhwc((h, w), channels, params, output, state.isa, exact_tables=tables)
        like = Tensor(None, (n, sum(channels), h, w), "NHWC", channels_last=True)
        return state.run(kernel, tensors, like, output.dtype, name)
    pieces = []
    for tensor, q, entries in zip(tensors, params, tables, strict=True):
        piece = state.logical(tensor)
        if q != output:
            kernel = elementwise.table(
                piece.item_shape, entries, entries, in_dtype=q.dtype, pytorch=state.pytorch, name="requantize"
            )
            piece = state.run(kernel, [piece], piece, output.dtype, f"{name}_requantize")
        pieces.append(piece.expr)
    axis %= rank
    expr = state.builder.emit(relax.op.concat(pieces, axis), name)
    shape = list(tensors[0].shape)
    shape[axis] = sum(t.shape[axis] for t in tensors)
    return Tensor(expr, tuple(shape), "NCHW" if rank == 4 else "flat")


@legalizes(*(row.name for row in ACTIVATIONS.values() if row.integer == "own"), numerics="integer")
def lower_table(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """A unary operator, as a table over the 256 input values."""
    q = quant_params(composite.call("relax.dequantize"))
    entries = integer_numerics.unary_table(composite.name, q, composite.output, options_of(composite))
    x = in_layout(state.builder, inputs[0], inputs[0].layout)
    kernel = elementwise.table(
        x.item_shape, entries, entries, in_dtype=q.dtype, pytorch=state.pytorch, name=composite.name
    )
    return state.run(kernel, [x], x, composite.output.dtype, name)


@legalizes("avg_pool2d", numerics="integer")
def lower_avg_pool2d(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """The average over windows, rounded towards zero."""
    x = state.nhwc(inputs[0])
    call = composite.call("relax.nn.avg_pool2d")
    shape = pool_shape(call, x)
    kernel = integer_only.integer_avg_pool2d(
        shape, composite.output, count_include_pad=bool(call.attrs.count_include_pad)
    )
    like = replace(x, shape=(*x.shape[:2], shape.out_height, shape.out_width))
    return state.run(kernel, [x], like, composite.output.dtype, name)


@legalizes("adaptive_avg_pool2d", numerics="integer")
def lower_adaptive_avg_pool2d(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """The average over a given number of windows, rounded towards zero."""
    x = state.nhwc(inputs[0])
    height, width = (int(v) for v in composite.call("relax.nn.adaptive_avg_pool2d").attrs.output_size)
    kernel = integer_only.integer_adaptive_avg_pool2d(
        (x.shape[2], x.shape[3]), x.shape[1], (height, width), composite.output
    )
    like = replace(x, shape=(*x.shape[:2], height, width))
    return state.run(kernel, [x], like, composite.output.dtype, name)


@legalizes("mean", numerics="integer")
def lower_mean(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """The mean over height and width."""
    x = state.nhwc(inputs[0])
    n, c, h, w = x.shape
    kernel = integer_only.integer_spatial_mean((h, w), c, composite.output, rounding=state.rounding)
    y = state.run(kernel, [x], Tensor(None, (n, c), "flat"), composite.output.dtype, name)
    if not composite.call("relax.mean").attrs.keepdims:
        return y
    expr = state.builder.emit(relax.op.reshape(y.expr, relax.ShapeExpr([n, 1, 1, c])))
    return Tensor(expr, (n, c, 1, 1), "NHWC", channels_last=x.channels_last)


@legalizes("clip", numerics="integer")
def lower_clip(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """Clip and the like: limits on the integers, rounded half to even."""
    q = composite.output
    low, high = FUSED["relax.clip"].options(composite.call("relax.clip"))
    low_q, high_q = integer_numerics.clip_limits((low, high), q)
    x = in_layout(state.builder, inputs[0], inputs[0].layout)
    kernel = elementwise.clamp_integers(x.item_shape, low_q, high_q, q.dtype, composite.name)
    return state.run(kernel, [x], x, q.dtype, name)
