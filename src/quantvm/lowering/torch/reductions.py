"""Lowerings of means and bilinear interpolation; PyTorch's rounding there depends on the strides."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tvm import relax

from quantvm.kernels.pool import bilinear, pool
from quantvm.kernels.pool import mean as mean_kernels
from quantvm.kernels.pool.bilinear import Interpolation
from quantvm.kernels.pool.mean import SUM_BLOCK, SUM_LANES, KeptAxis, SummedAxis, SumPlan
from quantvm.lowering import strides as torch_strides
from quantvm.lowering.tensors import Tensor, arranged, of_single_pixels
from quantvm.numerics import dispatch
from quantvm.qdq.composite import Composite

from .legalize import Legalization, legalizes
from .pools import whole_image

_PIXELS_OUTSIDE = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


@legalizes("mean", "mean_of_axes")
def lower_mean(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """The mean over dimensions of an image."""
    x, call = inputs[0], composite.call("relax.mean")
    rank, keepdims = len(x.shape), bool(call.attrs.keepdims)
    given = [int(axis) for axis in call.attrs.axis]
    axes = sorted(axis % rank for axis in given)
    q, dtype = composite.output, composite.output.dtype
    kept = [size for axis, size in enumerate(x.shape) if axis not in axes]
    count = math.prod(int(x.shape[axis]) for axis in axes)
    choice = dispatch.mean_choice(state.pytorch, dtype, tuple(given), rank, contiguous=x.behaves_contiguous)
    if count == 1:
        y = state.logical(x)
    elif choice.formula == "qnnpack":
        x = state.nhwc(x)
        one_pixel = Tensor(None, (*x.shape[:2], 1, 1), "NHWC")
        y = state.run(pool.avg_pool2d_qnnpack(whole_image(x), q), [x], one_pixel, dtype, name)
    elif choice.formula == "contiguous":
        x = state.logical(x)
        kernel = mean_kernels.inner_mean(x.item_shape, count, q)
        y = state.run(kernel, [x], _flat(kept), dtype, name)
    elif rank == 4 and axes == [2, 3] and x.channels_last and x.shape[1] != 1:
        x = state.nhwc(x)
        kernel = pool.spatial_mean((x.shape[2], x.shape[3]), x.shape[1], q)
        y = state.run(kernel, [x], _flat(kept), dtype, name)
    else:
        plan = sum_plan(x, axes, keepdims=keepdims)
        x = arranged(state.builder, x, _PIXELS_OUTSIDE[rank] if x.channels_last else tuple(range(rank)))
        y = state.run(mean_kernels.mean(x.item_shape, plan, q), [x], _flat(kept), dtype, name)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(inputs[0].shape)) if keepdims else tuple(kept)
    expr = state.builder.emit(relax.op.reshape(y.expr, relax.ShapeExpr(list(shape))))
    return Tensor(expr, shape, "NCHW" if len(shape) == 4 else "flat")  # PyTorch returns it contiguous


def _flat(kept: list[Any]) -> Tensor:
    """Returns the kernel's result: the kept elements of each image, side by side."""
    return Tensor(None, (kept[0], math.prod(int(size) for size in kept[1:])), "flat")


def sum_plan(x: Tensor, axes: list[int], *, keepdims: bool) -> SumPlan:
    """Returns how PyTorch sums over dimensions of the dequantized x, for several images or one.

    Reference: ATen/TensorIterator.cpp, ATen/native/cpu/SumKernel.cpp `cascade_sum`.
    """
    shape = x.shape
    source = torch_strides.channels_last(shape) if x.channels_last else torch_strides.contiguous(shape)
    result = torch_strides.contiguous([1 if axis in axes else size for axis, size in enumerate(shape)])
    is_one = [isinstance(size, int) and size == 1 for size in shape]
    output = tuple(
        0 if axis in axes and not (keepdims and is_one[axis]) else stride for axis, stride in enumerate(result)
    )
    groups = torch_strides.merged(shape, output, source)
    is_summed = [any(axis in axes and not is_one[axis] for axis in group) for group in groups]
    summed = tuple(
        SummedAxis(math.prod(int(shape[axis]) for axis in group), _step(group, source, is_one))
        for group, sums in zip(groups, is_summed, strict=True)
        if sums
    )
    kept = [[axis for axis in group if axis != 0] for group, sums in zip(groups, is_summed, strict=True) if not sums]
    columns = 0 if len(summed) > 1 or not kept else len(kept[0])
    axes_kept = tuple(KeptAxis(int(shape[a]), int(source[a]), int(output[a])) for group in kept for a in group)
    if len(summed) > 1:
        stride, size = summed[1].stride, summed[1].size
    elif len(groups) > 1:
        stride = _step(groups[1], source, is_one)
        size = math.prod(torch_strides.at_batch(shape[axis], torch_strides.SEVERAL_IMAGES) for axis in groups[1])
    else:
        stride, size = 0, 1
    first = summed[0]
    if first.stride == 1 and first.size >= SUM_LANES:
        return SumPlan(summed, axes_kept, columns, "rows")
    if stride == 1 and size >= SUM_LANES:
        return SumPlan(summed, axes_kept, columns, "blocks", SUM_BLOCK)
    if first.stride < stride:
        return SumPlan(summed, axes_kept, columns, "single")
    return SumPlan(summed, axes_kept, columns, "blocks", SUM_BLOCK // SUM_LANES)


def _step(group: list[int], strides: torch_strides.Strides, is_one: list[bool]) -> int:
    """Returns the stride of merged dimensions: that of the innermost with more than one element."""
    axis = next((axis for axis in group if not is_one[axis]), group[0])
    return torch_strides.at_batch(strides[axis], torch_strides.SEVERAL_IMAGES)


@legalizes("bilinear")
def lower_bilinear(state: Legalization, composite: Composite, inputs: list[Tensor], name: str) -> Tensor:
    """Bilinear interpolation that keeps the quantization parameters."""
    channels_last = inputs[0].behaves_channels_last and (inputs[0].channels_last or not inputs[0].behaves_contiguous)
    x, call = state.nhwc(inputs[0]), composite.call("relax.image.resize2d")
    height, width = (int(size) for size in list(call.ty.shape)[2:])
    row_ratio, column_ratio = (float(v) for v in list(call.attrs.roi)[2:])
    shape = Interpolation(
        (x.shape[2], x.shape[3]), (height, width), x.shape[1], (row_ratio, column_ratio),
        align_corners=str(call.attrs.coordinate_transformation_mode) == "align_corners",
    )  # fmt: skip
    kernel = bilinear.bilinear(shape, composite.output, channels_last=inputs[0].behaves_channels_last)
    like = replace(x, shape=(*x.shape[:2], height, width), channels_last=channels_last, strides=None)
    y = state.run(kernel, [x], like, composite.output.dtype, name)
    return of_single_pixels(state.builder, x, y, name)
