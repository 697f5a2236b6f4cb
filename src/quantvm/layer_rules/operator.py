"""What a layer computes, apart from how it rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics import dispatch
from quantvm.numerics.dispatch import AverageChoice, Contraction
from quantvm.numerics.onednn_amx import ConvGeometry, LinearGeometry
from quantvm.numerics.pool_geometry import PoolAxis
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.torch_engines import QuantParams


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool.

    Attributes:
        kernel, stride, dilation: (height, width).
        padding: top, left, bottom, right.
        groups: number of a convolution's groups.
        ceil_mode, count_include_pad: a pool's options.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    ceil_mode: bool = False
    count_include_pad: bool = True

    def axis(self, index: int, size: int) -> PoolAxis:
        """Returns the axis of the rows (0) or of the columns (1) of a pool over `size` of them."""
        return PoolAxis(
            size, self.kernel[index], self.stride[index], self.padding[index], self.padding[index + 2],
            self.dilation[index], self.ceil_mode,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Operator:
    """One quantized operator.

    Attributes:
        kind: conv2d, linear, add, mul, concat, quantize, quantize_affine, relu, clip, max_pool2d, avg_pool2d,
            adaptive_avg_pool2d, mean, or one of `ACTIVATIONS`.
        inputs: parameters of each quantized input.
        output: parameters of the output.
        channels_last: whether `is_contiguous(memory_format=torch.channels_last)` holds for all inputs, on which some
            formulas depend.
        contiguous: whether `is_contiguous()` holds for all inputs.
        formats: for each input, whether PyTorch holds it in channels-last order; empty: all as `channels_last` says.
        one_shape: for an addition, whether both inputs have the same shape.
        relu: whether a ReLU is part of it.
        weight: (O, I/groups, KH, KW) or (O, I), int8 as stored.
        weight_scales: (O,) or (1,) float64; weight_zero_points: (O,) or (1,).
        bias_f32: (O,) or None.
        window: window of a convolution or pool.
        in_size: (H, W) of the images of a convolution or adaptive pool.
        rows: number of rows that a linear layer multiplies for one image.
        out_size: (H, W) of the output of an adaptive pool.
        axes: axes of a mean, as the program writes them.
        keepdims: a mean's option.
        axis: axis of a concatenation.
        options: limits of a clip, as real numbers; an activation's further numeric arguments.
        affine: (factors, terms) for each channel, applied before quantize_affine quantizes.
    """

    kind: str
    inputs: tuple[QuantParams, ...]
    output: QuantParams
    channels_last: bool = False
    contiguous: bool = True
    formats: tuple[bool, ...] = ()
    one_shape: bool = True
    relu: bool = False
    weight: NDArray[np.int8] | None = None
    weight_scales: NDArray[np.float64] | None = None
    weight_zero_points: NDArray[np.int64] | None = None
    bias_f32: NDArray[np.float32] | None = None
    window: Window | None = None
    in_size: tuple[int, int] = (1, 1)
    rows: int = 1
    out_size: tuple[int, int] = (1, 1)
    axes: tuple[int, ...] = (2, 3)
    keepdims: bool = False
    axis: int = 1
    options: tuple[float, ...] = ()
    affine: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @property
    def contraction(self) -> Contraction:
        """This conv2d or linear as `contraction_choice` takes it."""
        assert self.weight is not None
        assert self.weight_zero_points is not None
        symmetric, dtype = not self.weight_zero_points.any(), self.inputs[0].dtype
        outputs, group_in = self.weight.shape[:2]
        if self.window is None:
            return Contraction(LinearGeometry(group_in, outputs), dtype, symmetric)
        window = self.window
        geometry = ConvGeometry.of_window(
            self.in_size, (group_in * window.groups, outputs), kernel=window.kernel, stride=window.stride,
            padding=window.padding, dilation=window.dilation, groups=window.groups,
        )  # fmt: skip
        return Contraction(geometry, dtype, symmetric)

    def average_choice(self, pytorch: PyTorch) -> AverageChoice:
        """Returns how PyTorch computes an average pool or mean."""
        dtype = self.output.dtype
        if self.kind == "mean":
            return dispatch.mean_choice(pytorch, dtype, self.axes, 4, contiguous=self.contiguous)
        if self.kind == "adaptive_avg_pool2d":
            return dispatch.adaptive_avg_pool2d_choice(
                pytorch, dtype, self.in_size, self.out_size, channels_last=self.channels_last
            )
        assert self.window is not None
        return dispatch.avg_pool2d_choice(
            pytorch, dtype, ceil_mode=self.window.ceil_mode, channels_last=self.channels_last
        )

    @property
    def concat_is_vectorised(self) -> bool:
        """Whether PyTorch concatenates integers in channels-last order."""
        return dispatch.concat_is_vectorised(4, self.axis, channels_last=self.channels_last)


@dataclass(frozen=True)
class Environment:
    """What PyTorch's formulas depend on besides the operator.

    Attributes:
        pytorch: its threads and CPU count; each preset has an engine of its own.
        images: number of images in a batch; with AMX, oneDNN's scales depend on it.
    """

    pytorch: PyTorch
    images: int = 1
