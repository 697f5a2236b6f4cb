"""Bilinear interpolation of quantized NHWC tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm.tirx.script.builder as T
from numpy.typing import NDArray

from quantvm.kernels.arithmetic import quantize_val
from quantvm.kernels.builder import (
    Expr,
    Kernel,
    argument,
    cast,
    fma,
    for_vectors,
    prim_func,
    ramp,
    rounded,
    splat,
    symbolic_batch,
)
from quantvm.numerics.torch_engines import QuantParams, f32, fma_f32

_VEC_CHANNELS = 8


@dataclass(frozen=True)
class Interpolation:
    """Geometry: sizes are (H, W); `ratios` are the ratios of input to output size with which PyTorch computes."""

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    channels: int
    ratios: tuple[float, float]
    align_corners: bool


def sources(size: int, ratio: float, *, align_corners: bool, contracted: bool) -> NDArray[np.float32]:
    """Returns the position of each of `size` outputs among the inputs: an index plus a fraction.

    Computes: fl(r*i) if corners are aligned, else max(fl(fl(r*fl(i+.5)) - .5), 0), by one FMA if `contracted`.
    Exactness: `area_pixel_compute_source_index` of torch 2.13 (ATen/native/UpSample.h).
    """
    at = np.arange(size, dtype=f32)
    if align_corners:
        return np.multiply(f32(ratio), at, dtype=f32)
    centre = np.add(at, f32(0.5), dtype=f32)
    if contracted:
        place = fma_f32(f32(ratio), centre, f32(-0.5))
    else:
        place = np.subtract(np.multiply(f32(ratio), centre, dtype=f32), f32(0.5), dtype=f32)
    return np.maximum(place, f32(0))


def _neighbours(places: NDArray[np.float32], length: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns (2, size) indices of the two inputs next to each position, and their (2, size) weights."""
    first = places.astype(np.int32)
    second = first + (first < length - 1)
    far = np.subtract(places, first.astype(f32), dtype=f32)
    near = np.subtract(f32(1), far, dtype=f32)
    return np.stack([first, second]).astype(np.int32), np.stack([near, far])


def bilinear(shape: Interpolation, q: QuantParams, *, channels_last: bool) -> Kernel:
    """Returns `F.interpolate(mode="bilinear")` of a quantized tensor: (n, H, W, C) -> (n, OH, OW, C).

    Computes: for the four neighbours p with weights h and w; if `channels_last`, the first C//8*8 channels
        fma(h1, fma(w1, p11, fl(w0*p10)), fl(h0*fma(w1, p01, fl(w0*p00)))); the others
        fma(h0, fma(w0, p00, fl(w1*p01)), fl(h1*fma(w0, p10, fl(w1*p11)))). A tensor that PyTorch holds contiguous:
        every product and sum rounded. Then - z and + z, each rounded, and rne.
    Exactness: torch 2.13 bit for bit.
    """
    (height, width), (out_height, out_width), channels = shape.in_size, shape.out_size, shape.channels
    cut = channels // _VEC_CHANNELS * _VEC_CHANNELS if channels_last else 0
    rows, columns = (
        _neighbours(sources(size, ratio, align_corners=shape.align_corners, contracted=channels_last), length)
        for length, size, ratio in zip(shape.in_size, shape.out_size, shape.ratios, strict=True)
    )
    if shape.in_size == shape.out_size and not channels_last:  # PyTorch copies
        rows, columns = (
            (np.stack([np.arange(size)] * 2).astype(np.int32), np.stack([np.ones(size), np.zeros(size)]).astype(f32))
            for size in shape.out_size
        )
    constants = (rows[0], rows[1], columns[0], columns[1])
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, height, width, channels), q.dtype)
        row_at, row_weight, column_at, column_weight = (
            argument(name, values.shape, str(values.dtype))
            for name, values in zip(("row", "row_weight", "column", "column_weight"), constants, strict=True)
        )
        y = argument("y", (n, out_height, out_width, channels), q.dtype)
        with T.parallel(0, n * out_height) as task, T.serial(0, out_width) as column:
            image, row = task // out_height, task % out_height

            def emit(channel: Expr, lanes: int, is_tail: bool) -> None:
                h0, h1 = (splat(row_weight[i, row], lanes) for i in (0, 1))
                w0, w1 = (splat(column_weight[i, column], lanes) for i in (0, 1))
                (p00, p01), (p10, p11) = (
                    [
                        cast(x[image, row_at[i, row], column_at[j, column], ramp(channel, lanes)], "float32", lanes)
                        for j in (0, 1)
                    ]
                    for i in (0, 1)
                )
                if not channels_last:
                    above, below = (
                        rounded(rounded(w0 * a, lanes) + rounded(w1 * b, lanes), lanes)
                        for a, b in ((p00, p01), (p10, p11))
                    )
                    real = rounded(h0 * above, lanes) + rounded(h1 * below, lanes)
                elif is_tail:
                    above, below = (fma(w0, a, rounded(w1 * b, lanes), lanes) for a, b in ((p00, p01), (p10, p11)))
                    real = fma(h0, above, rounded(h1 * below, lanes), lanes)
                else:
                    above, below = (fma(w1, b, rounded(w0 * a, lanes), lanes) for a, b in ((p00, p01), (p10, p11)))
                    real = fma(h1, below, rounded(h0 * above, lanes), lanes)
                centred = rounded(real, lanes) - splat(float(q.zero_point), lanes, "float32")
                value = quantize_val(centred, QuantParams(1.0, q.zero_point, q.dtype), lanes)
                T.buffer_store(y, cast(value, q.dtype, lanes), [image, row, column, ramp(channel, lanes)])

            for_vectors(cut, lambda at, lanes: emit(at, lanes, False))
            for_vectors(channels - cut, lambda at, lanes: emit(at + cut, lanes, True))
    return Kernel("bilinear_u8", builder.get(), constants)
