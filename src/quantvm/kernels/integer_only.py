"""Kernels of numerics=integer where they differ from PyTorch's: quantize, add, multiply, average pools, mean.

Formulas: `quantvm.numerics.integer`. Convolutions and matrix products are those of `conv2d.py` and `depthwise.py` under
`IntegerRequantization`; tables, clips, maxima and copies do not round, so they are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.choices import Rounding
from quantvm.kernels.elementwise.elementwise import over_elements, over_products
from quantvm.kernels.elementwise.quantize import nchw_to_nhwc
from quantvm.kernels.pool.pool import PoolShape, averaged, output_pixels, window_sums, windows_function
from quantvm.numerics.fixed_point import fixed_point
from quantvm.numerics.integer import product_factor, scale_factor
from quantvm.numerics.pool_geometry import Taps, adaptive_taps
from quantvm.numerics.torch_engines import QuantParams

from .builder import (
    Buffer,
    Expr,
    Kernel,
    cast,
    clamp,
    flat_function,
    for_vectors,
    image_function,
    intrinsic,
    ramp,
    splat,
    typed,
)
from .fixed_point import fixed_multiply_by


def _saturated(value_i32: Expr, q: QuantParams, relu: bool, lanes: int) -> Expr:
    """Returns integers, which include the zero point, saturated to the output's dtype."""
    low = max(q.quant_min, q.zero_point) if relu else q.quant_min
    bounds = (splat(bound, lanes, "int32") for bound in (low, q.quant_max))
    return cast(clamp(value_i32, *bounds), q.dtype, lanes)


def _centred(x_q: Expr, q: QuantParams, lanes: int) -> Expr:
    return cast(x_q, "int32", lanes) - splat(q.zero_point, lanes, "int32")


def integer_quantize(
    item_shape: Sequence[int], q: QuantParams, *, to_nhwc: bool, affine: tuple[np.ndarray, np.ndarray] | None = None
) -> Kernel:
    """Returns `numerics.integer.quantize` of (n, *item_shape) float32; with `to_nhwc`, (n, C, H, W) -> (n, H, W, C).

    With `affine`, (C,) float32 factors and terms, fl(fl(x*factor) + term) is quantized.
    """

    def value(x_f32: Expr, lanes: int) -> Expr:
        quotient = tirx.div(x_f32, splat(q.scale_f32, lanes, "float32"))
        steps = intrinsic("llvm.round", typed("float32", lanes), quotient)  # tirx.round takes ties to even
        bounds = (float(q.quant_min - q.zero_point), float(q.quant_max - q.zero_point))
        steps = clamp(steps, *(splat(bound, lanes, "float32") for bound in bounds))
        return cast(steps, "int32", lanes) + splat(q.zero_point, lanes, "int32")

    if to_nhwc:
        channels, height, width = item_shape
        func = nchw_to_nhwc(channels, height, width, q.dtype, value, affine)
        return Kernel("quantize_integer_nchw_to_nhwc_u8", func)
    with flat_function(item_shape, ("float32",), q.dtype) as f:
        (x,) = f.inputs

        def emit(at: Expr, lanes: int) -> None:
            T.buffer_store(f.output, cast(value(x[ramp(at, lanes)], lanes), q.dtype, lanes), [ramp(at, lanes)])

        over_elements(f.numel, emit)
    return Kernel("quantize_integer_u8", f.builder.get())


def integer_add(
    item_shape: Sequence[int], a_q: QuantParams, b_q: QuantParams, out_q: QuantParams, *, relu: bool, rounding: Rounding
) -> Kernel:
    """Returns `numerics.integer.add` of two (n, *item_shape) tensors of one layout."""

    def term(x_q: Expr, q: QuantParams, lanes: int) -> Expr:
        centred, factor = _centred(x_q, q, lanes), scale_factor(q, out_q, rounding)
        return centred if factor is None else fixed_multiply_by(centred, factor, lanes)

    with flat_function(item_shape, (a_q.dtype, b_q.dtype), out_q.dtype) as f:
        a, b = f.inputs

        def emit(at: Expr, lanes: int) -> None:
            index = ramp(at, lanes)
            total = term(a[index], a_q, lanes) + term(b[index], b_q, lanes) + splat(out_q.zero_point, lanes, "int32")
            T.buffer_store(f.output, _saturated(total, out_q, relu, lanes), [index])

        over_elements(f.numel, emit)
    return Kernel("add_relu_integer_u8" if relu else "add_integer_u8", f.builder.get())


def integer_multiply(
    item_shape: Sequence[int], a_q: QuantParams, b_q: QuantParams, out_q: QuantParams, *, relu: bool, broadcast: bool,
    rounding: Rounding,
) -> Kernel:  # fmt: skip
    """Returns `numerics.integer.multiply` of (n, *item_shape) by the same shape, or by (n, 1, 1, C) if `broadcast`."""
    factor = product_factor(a_q, b_q, out_q, rounding)

    def value(a: Expr, b: Expr, lanes: int) -> Expr:
        product = fixed_multiply_by(_centred(a, a_q, lanes) * _centred(b, b_q, lanes), factor, lanes)
        return _saturated(product + splat(out_q.zero_point, lanes, "int32"), out_q, relu, lanes)

    func = over_products(item_shape, (a_q.dtype, b_q.dtype), out_q.dtype, value, broadcast=broadcast)
    return Kernel("mul_relu_integer_u8" if relu else "mul_integer_u8", func)


def integer_avg_pool2d(shape: PoolShape, q: QuantParams, *, count_include_pad: bool) -> Kernel:
    """Returns the average of the integers in each window: (n, H, W, C) -> (n, OH, OW, C).

    Computes: size = window elements (with padding if count_include_pad, cut at its end in ceil mode); padding holds the
        zero point; `numerics.integer.average` of the sum and the size.
    """
    with windows_function(shape, q.dtype) as f, output_pixels(shape, f.n) as (image, out_row, out_column):
        rows, columns, inside, size = averaged(shape, out_row, out_column, count_include_pad=count_include_pad)
        padding = (size - inside) * q.zero_point

        def emit(channel: Expr, lanes: int) -> None:
            sums = window_sums(f.x, image, rows, columns, channel, lanes)[ramp(0, lanes)] + splat(padding, lanes)
            _store_average(f.y, sums, splat(size, lanes), [image, out_row, out_column, ramp(channel, lanes)], q, lanes)

        for_vectors(shape.channels, emit)
    return Kernel("avg_pool2d_integer_u8", f.builder.get())


def integer_adaptive_avg_pool2d(
    in_size: tuple[int, int], channels: int, out_size: tuple[int, int], q: QuantParams
) -> Kernel:
    """Returns the average of the integers over windows: (n, H, W, C) -> (n, OH, OW, C).

    Computes: window floor(i*H/OH)..ceil((i+1)*H/OH); `numerics.integer.average` of its sum and size.
    """
    (height, width), (out_height, out_width) = in_size, out_size
    with image_function(in_size, out_size, channels, q.dtype, q.dtype) as f, T.parallel(0, f.n) as image:
        for i in range(out_height):
            for j in range(out_width):
                rows, columns = adaptive_taps(i, height, out_height), adaptive_taps(j, width, out_width)
                _average_window(f.x, f.y, image, (i, j), rows, columns, channels, q)
    return Kernel("adaptive_avg_pool2d_integer_u8", f.builder.get())


def _average_window(
    x: Buffer, y: Buffer, image: Expr, out: tuple[int, int], rows: Taps, columns: Taps, channels: int, q: QuantParams
) -> None:  # fmt: skip
    size = rows.count * columns.count

    def emit(channel: Expr, lanes: int) -> None:
        sums = window_sums(x, image, rows, columns, channel, lanes)[ramp(0, lanes)]
        _store_average(y, sums, splat(size, lanes, "int32"), [image, *out, ramp(channel, lanes)], q, lanes)

    for_vectors(channels, emit)


def _store_average(y: Buffer, sums_i32: Expr, size: Expr, indices: list[Expr], q: QuantParams, lanes: int) -> None:
    T.buffer_store(y, cast(tirx.truncdiv(sums_i32, size), q.dtype, lanes), indices)


def integer_spatial_mean(in_size: tuple[int, int], channels: int, q: QuantParams, *, rounding: Rounding) -> Kernel:
    """Returns the mean over pixels: (n, H, W, C) -> (n, C), fixed_point.multiply(sum - size*z, 1/size) + z."""
    size = in_size[0] * in_size[1]
    factor = fixed_point(1.0 / size, rounding)
    with image_function(in_size, (), channels, q.dtype, q.dtype) as f, T.parallel(0, f.n) as image:

        def emit(channel: Expr, lanes: int) -> None:
            sums = window_sums(f.x, image, Taps(0, in_size[0]), Taps(0, in_size[1]), channel, lanes)[ramp(0, lanes)]
            mean = fixed_multiply_by(sums - splat(size * q.zero_point, lanes, "int32"), factor, lanes)
            value = _saturated(mean + splat(q.zero_point, lanes, "int32"), q, False, lanes)
            T.buffer_store(f.y, value, [image, ramp(channel, lanes)])

        for_vectors(channels, emit)
    return Kernel("spatial_mean_integer_u8", f.builder.get())
