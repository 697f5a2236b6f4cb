"""What a layer computes, apart from how it rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics.pool_geometry import PoolAxis
from quantvm.numerics.torch_engines import QuantParams


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool.

    Attributes:
        kernel, stride, dilation: (height, width).
        padding: top, left, bottom, right.
        groups: of a convolution.
        ceil_mode, count_include_pad: of a pool.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    ceil_mode: bool = False
    count_include_pad: bool = True

    def axis(self, index: int, size: int) -> PoolAxis:
        """Returns the rows (0) or the columns (1) of a pool of so many."""
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
        channels_last: whether PyTorch holds all inputs in channels-last order, on which some formulas depend.
        relu: whether a ReLU is part of it.
        weight: (O, I/groups, KH, KW) or (O, I), int8 as stored.
        weight_scales: (O,) or (1,) float64; weight_zero_points: (O,) or (1,).
        bias_f32: (O,) or None.
        window: of a convolution or pool.
        in_size: of a convolution's images, (H, W).
        rows: of one image, that a linear layer multiplies.
        out_size: of an adaptive pool.
        keepdims: of a mean.
        axis: of a concatenation.
        options: limits of a clip, as real numbers; what an activation takes besides its tensor.
        affine: (factors, terms) of each channel, applied before it is quantized.
    """

    kind: str
    inputs: tuple[QuantParams, ...]
    output: QuantParams
    channels_last: bool = False
    relu: bool = False
    weight: NDArray[np.int8] | None = None
    weight_scales: NDArray[np.float64] | None = None
    weight_zero_points: NDArray[np.int64] | None = None
    bias_f32: NDArray[np.float32] | None = None
    window: Window | None = None
    in_size: tuple[int, int] = (1, 1)
    rows: int = 1
    out_size: tuple[int, int] = (1, 1)
    keepdims: bool = False
    axis: int = 1
    options: tuple[float, ...] = ()
    affine: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Environment:
    """What PyTorch's formulas depend on besides the operator.

    Attributes:
        threads: PyTorch's, which place the scalar tails of element-wise loops.
        vec_channels: channels of an average pool's vector, 16 with AVX512 and 8 with AVX2.
        vnni: whether the CPU has AVX512-VNNI; FBGEMM and oneDNN have other kernels where it has not.
        onednn_amx: whether oneDNN uses AMX, where it scales by the shape and the number of images.
        images: of a batch.
    """

    threads: int = 1
    vec_channels: int = 16
    vnni: bool = True
    onednn_amx: bool = False
    images: int = 1
