"""Dense and grouped int8 convolution and matrix product, NHWC, with the requantization fused into the epilogue.

Their loops are in conv_emitter.py, depthwise convolutions in depthwise.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.builder import LANES, Buffer, Expr, Kernel, argument, ceil_div, flat, prim_func, symbolic_batch
from quantvm.kernels.isa import PLAIN, Isa
from quantvm.kernels.schedule.schedule import Conv2dShape, Schedule, Work, choose_schedule
from quantvm.kernels.staging import copy_flat

from .conv_emitter import ConvEmitter, Source
from .dot import DotProduct
from .epilogue import NO_POST_OPS, PostOps
from .program_epilogue import OutputStage


def conv2d(
    shape: Conv2dShape,
    weight: np.ndarray,
    input_zero_point: int,
    output_stage: OutputStage,
    dot: DotProduct,
    *,
    threads: int = 2,
    schedule: Schedule | None = None,
    x_dtype: str = "uint8",
    isa: Isa = PLAIN,
    post: PostOps = NO_POST_OPS,
    weight_zero_points: np.ndarray | None = None,
    pairs_cross_taps: bool = False,
    skips_padding: bool = False,
) -> Kernel:
    """Returns an exact quantized convolution: (n, H, W, C) integers -> (n, OH, OW, O) integers.

    With `post.residual`, the kernel takes the tensor to add, which has the output's shape, after x.

    Args:
        shape: geometry.
        weight: (O, KH, KW, I/groups) int8, or int16 with the weight zero point already subtracted.
        input_zero_point: zero point of x and value of the padding.
        output_stage: formula and per-channel vectors; or a float program, whose tensors follow x.
        dot: how products are accumulated; its k_step must be 1 unless x is uint8 and the weight int8.
        threads: cores to cut the work for.
        schedule: register blocking; chosen by a cost model by default.
        x_dtype: uint8 or int8.
        isa: instruction groups that may be used.
        post: operators fused behind the output stage.
        weight_zero_points: (O,) integers, only if `dot.saturates`; they are then not subtracted from the weight.
        pairs_cross_taps: if `dot.saturates`, whether products are paired along the whole window (FBGEMM) and not along
            the channels of each tap (oneDNN). The two differ if the number of channels of a group is odd.
        skips_padding: if `dot.saturates` along channels, whether products of padding are left out, so that they cannot
            saturate.

    Exactness: acc = sum (x - zx) * w in int32, by starting at -zx * sum(w); then `numerics.requantize`, or
        `numerics.qdq.evaluate`. If `dot.saturates`, sum x * w is made of sums of two raw products, each saturated to
        int16; pairs follow the order (row, column, channel) of the window.
    """
    original = shape
    windows = None
    if dot.saturates and pairs_cross_taps and shape.has_odd_windows:
        windows, shape = shape, shape.as_windows(dot.k_step)
        weight = weight.reshape(shape.out_channels, 1, 1, -1)
        schedule = _few_rows(choose_schedule(Work(shape, dot.name, threads)), shape)
    else:
        shape = shape.merged()
    staged = windows is not None or shape.is_staged(dot)
    if shape.out_height * shape.out_width == 1 and shape.is_pointwise and shape.groups == 1 and not staged:
        return linear(
            shape.in_channels, weight[:, 0, 0, :], input_zero_point, output_stage, dot,
            threads=threads, x_dtype=x_dtype, spatial=True, isa=isa, post=post, weight_zero_points=weight_zero_points,
        )  # fmt: skip
    if schedule is None:
        schedule = choose_schedule(Work(shape, dot.name, threads))
    emitter = ConvEmitter(
        shape, weight, input_zero_point, output_stage, dot, schedule, x_dtype, staged, isa, post,
        weight_zero_points, windows, skips_padding=skips_padding,
    )  # fmt: skip
    out_shape = (original.out_height, original.out_width, original.out_channels)
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        out_numel = n * math.prod(out_shape)
        x = argument("x", (n, original.in_height, original.in_width, original.in_channels), x_dtype)
        emitter.epilogue.declare_residual((n, *out_shape))
        emitter.declare(n)
        y = argument("y", (n, *out_shape), emitter.epilogue.out_dtype)
        emitter.epilogue.view_residual(out_numel)
        emitter.emit(n, flat(x, n * original.in_height * original.in_width * original.in_channels), flat(y, out_numel))
    return Kernel(f"conv2d_u8i8acc32_{dot.name}{post.suffix}", builder.get(), emitter.constants, original.macs)


_STAGED_BYTES = 128 << 10
"""Maximum size in bytes of the staged windows of a task, so that they stay in the second-level cache."""


def _few_rows(schedule: Schedule, shape: Conv2dShape) -> Schedule:
    """Returns the schedule with enough row tasks that the staged windows of a task are not too large."""
    rows = max(1, _STAGED_BYTES // (shape.in_width * shape.in_channels))
    return replace(schedule, row_tasks=max(schedule.row_tasks, ceil_div(shape.out_height, rows)), channel_tasks=1)


def linear(
    in_features: int,
    weight: np.ndarray,
    input_zero_point: int,
    output_stage: OutputStage,
    dot: DotProduct,
    *,
    threads: int = 2,
    x_dtype: str = "uint8",
    spatial: bool = False,
    isa: Isa = PLAIN,
    post: PostOps = NO_POST_OPS,
    weight_zero_points: np.ndarray | None = None,
    cut: int | None = None,
) -> Kernel:
    """Returns an exact quantized matrix product: (n, K) integers -> (n, O) integers.

    Args:
        in_features: K.
        weight: (O, K) int8, or int16 with the weight zero point already subtracted.
        input_zero_point: zero point of x.
        output_stage: formula and per-channel vectors; or a float program, whose tensors follow x.
        dot: how products are accumulated.
        threads: cores to cut the work for.
        x_dtype: uint8 or int8.
        spatial: whether tensors are (n, 1, 1, K) and (n, 1, 1, O).
        isa: instruction groups that may be used.
        post: operators fused behind the output stage.
        weight_zero_points: as in `conv2d`.
        cut: if `dot.saturates`, an odd number of features after which the pairing restarts.
    """
    out_features = weight.shape[0]
    shape = Conv2dShape(1, 1, in_features, out_features)
    macs = shape.macs
    if cut is not None:  # an added feature whose products are zero makes the first part even
        shape, weight = replace(shape, in_channels=in_features + 1), np.insert(weight, cut, 0, axis=1)
    staged = cut is not None or in_features % dot.k_step != 0
    vectors = ceil_div(out_features, LANES)
    width = max(d for d in (4, 3, 2, 1) if vectors % d == 0 and vectors // d >= min(threads, vectors))
    schedule = Schedule(max(1, min(6, dot.greatest_pixels(width))), width, 1, vectors // width)
    weight_ohwi = weight[:, None, None, :]
    emitter = _LinearEmitter(
        shape, weight_ohwi, input_zero_point, output_stage, dot, schedule, x_dtype, staged, isa, post,
        weight_zero_points, cut=cut,
    )  # fmt: skip
    unit = (1, 1) if spatial else ()
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *unit, in_features), x_dtype)
        emitter.epilogue.declare_residual((n, *unit, out_features))
        emitter.declare(n)
        y = argument("y", (n, *unit, out_features), emitter.epilogue.out_dtype)
        emitter.epilogue.view_residual(n * out_features)
        emitter.emit_rows(n, flat(x, n * in_features), flat(y, n * out_features))
    return Kernel(f"linear_u8i8acc32_{dot.name}{post.suffix}", builder.get(), emitter.constants, macs)


class _LinearEmitter(ConvEmitter):
    """Emits a matrix product, whose pixels are the images of the batch."""

    def __init__(self, *arguments: Any, cut: int | None) -> None:
        super().__init__(*arguments)
        self.cut = cut

    def _copy_row(self, scratch: Buffer, x: Buffer, row: Expr) -> None:
        stride, cut = self.shape.in_channels, self.cut
        if cut is None:
            copy_flat(scratch, row * stride, x, row * stride, stride)
            return
        copy_flat(scratch, row * stride, x, row * (stride - 1), cut)
        T.buffer_store(scratch, tirx.const(self.zero_point, self.x_dtype), [row * stride + cut])
        copy_flat(scratch, row * stride + cut + 1, x, row * (stride - 1) + cut, stride - 1 - cut)

    def emit_rows(self, n: Expr, x: Buffer, y: Buffer) -> None:
        vectors, pixels = self.schedule.vectors, self.schedule.pixels
        blocks = self.group_vectors // vectors
        ragged = self.shape.out_channels % LANES

        def rows(source: Buffer, stride: int, block: Expr, last_lanes: int) -> None:
            def tile(row: Expr, width: int) -> None:
                acc = self._accumulate(
                    Source(source, 0, 0, stride),
                    row * stride,
                    tirx.const(0, "int32"),
                    block * vectors,
                    (1, width),
                    vectors,
                )
                at = row * self.shape.out_channels
                self._write(y, at, acc, tirx.const(0, "int32"), block * vectors, width, vectors, last_lanes)

            with T.serial(0, n // pixels) as row_block:
                tile(row_block * pixels, pixels)
            with T.serial(0, n % pixels) as row:
                tile(n // pixels * pixels + row, 1)

        with T.parallel(0, blocks) as block:
            source, stride = x, self.shape.in_channels
            if self.staged:
                # the last step of a row reads a few bytes beyond it, and multiplies them by zero
                source = T.alloc_buffer((n * stride + LANES,), self.x_dtype)
                with T.serial(0, n) as row:
                    self._copy_row(source, x, row)
            if not ragged:
                rows(source, stride, block, LANES)
            elif blocks == 1:
                rows(source, stride, block, ragged)
            else:
                with T.If(block < blocks - 1):
                    with T.Then():
                        rows(source, stride, block, LANES)
                    with T.Else():
                        rows(source, stride, block, ragged)
