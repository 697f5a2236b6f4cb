"""Average pools, means and sums under numerics=qdq, of integers or of floats, quantized or not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tvm import relax

from quantvm.kernels import tflite
from quantvm.kernels.pool import float_pool
from quantvm.lowering.tensors import Tensor, expect_batch_first, logical_tensor
from quantvm.lowering.torch.legalize import Legalization
from quantvm.lowering.torch.pools import is_spatial_mean, pool_shape, reduced_axes
from quantvm.numerics.qdq import Quantization
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.expressions import op_name


def is_average(call: Any) -> bool:
    """Returns whether an expression is an average pool, an adaptive average pool, or a mean over H and W."""
    name = op_name(call)
    return is_spatial_mean(call) or name in ("relax.nn.avg_pool2d", "relax.nn.adaptive_avg_pool2d")


def averaged(
    state: Legalization, call: Any, x: Tensor, q: QuantParams | None, output: Quantization | None, name: str,
    dtype_in_file: str,
) -> Tensor:  # fmt: skip
    """Emits the kernel of an average, see `is_average`.

    Args:
        state: state of the lowering.
        call: the average.
        x: its input: uint8 with the parameters `q`, or float32.
        q: parameters of x; None for float32.
        output: how the result is quantized to uint8; None leaves it in float32.
        name: name of the layer.
        dtype_in_file: dtype of the quantized result in the file; TFLite rounds int8 and uint8 differently.
    """
    is_tflite = state.pytorch.engine == "tflite"
    op = str(call.op.name).rsplit(".", 1)[-1]
    expect_batch_first(op, name, x)
    x = state.nhwc(x)
    dtype = "float32" if output is None else "uint8"
    state.op = op
    if op == "avg_pool2d":
        shape = pool_shape(call, x)
        like = replace(x, expr=None, shape=(*x.shape[:2], shape.out_height, shape.out_width))
        include = bool(call.attrs.count_include_pad)
        if is_tflite and output is not None and q == output.q and not include:
            kernel = tflite.tflite_avg_pool2d(shape, output, 128 if dtype_in_file == "int8" else 0)
        else:
            kernel = float_pool.float_avg_pool2d(shape, q, output, count_include_pad=include)
        return state.run(kernel, [x], like, dtype, name)
    height, width = (1, 1) if op == "mean" else (int(d) for d in call.attrs.output_size)
    like = replace(x, expr=None, shape=(*x.shape[:2], height, width))
    plane, channels = (int(x.shape[2]), int(x.shape[3])), int(x.shape[1])
    if is_tflite and op == "mean" and output is not None and q is not None:
        kernel = tflite.tflite_reduction("mean", plane, channels, q, output, 0)
    else:
        kernel = float_pool.float_adaptive_avg_pool2d(plane, channels, (height, width), q, output)
    y = state.run(kernel, [x], like, dtype, name)
    if op != "mean" or call.attrs.keepdims:
        return y
    flat = relax.op.reshape(y.expr, relax.ShapeExpr([*y.shape[:2]]))
    return logical_tensor(state.builder.emit(flat, name))


def reduced_items(
    state: Legalization, call: Any, x: Tensor, q: QuantParams, output: Quantization, name: str, dtype_in_file: str
) -> Tensor:
    """Emits a mean or sum over any axes but the first, rounded as in TFLite; moves the reduced axes to the front."""
    builder, x, axes = state.builder, state.logical(x), reduced_axes(call) or []
    kept = [i for i in range(1, len(x.shape)) if i not in axes]
    count, items = (math.prod(int(x.shape[i]) for i in group) for group in (axes, kept))
    moved = builder.emit(relax.op.permute_dims(x.expr, [0, *axes, *kept]))
    rows = builder.emit(relax.op.reshape(moved, relax.ShapeExpr([x.expr.ty.shape[0], count, 1, items])))
    state.op = str(call.op.name).rsplit(".", 1)[-1]
    offset = 128 if dtype_in_file == "int8" else 0
    y = state.run(
        tflite.tflite_reduction(state.op, (count, 1), items, q, output, offset),
        [Tensor(rows, (x.shape[0], items, count, 1), "NHWC")],
        Tensor(None, (x.shape[0], items, 1, 1), "NHWC"), "uint8", name,
    )  # fmt: skip
    shape = relax.ShapeExpr([x.expr.ty.shape[0], *list(call.ty.shape)[1:]])
    return logical_tensor(builder.emit(relax.op.reshape(y.expr, shape), name))
