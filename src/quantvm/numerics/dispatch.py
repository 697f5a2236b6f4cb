"""Which library computes a quantized operator in PyTorch, and with which formula. This is the only place that decides.

PyTorch chooses a library by its engine and by the weights; the library chooses a kernel by the shape, the batch, the
threads and the CPU; and kernels of one library differ in how they saturate and scale. The lowering emits what this
module answers, and the presets of `quantvm diff` are built from it. The formulas themselves are in requantization.py,
torch_engines.py and unary_tables.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.onednn_amx import ConvGeometry, LinearGeometry, conv_separate_up_to, linear_separate_up_to
from quantvm.numerics.pytorch import Cpu, PyTorch
from quantvm.numerics.torch_engines import Library

# ------------------------------------------------------------------ convolution and linear

Formula = Literal["fbgemm", "onednn", "qnnpack", "integer"]
"""How accumulators are requantized: as in a library inside of PyTorch, or as under numerics=integer."""
Pairs = Literal["none", "window", "taps"]
"""Which products are summed in pairs that saturate to int16, as in vpmaddubsw.

None; neighbours along the whole window, in the order (row, column, channel), as in FBGEMM; or neighbours along the
channels of each tap, as in oneDNN.
"""


@dataclass(frozen=True)
class Contraction:
    """A conv2d or linear layer, as far as PyTorch's choice depends on it.

    Attributes:
        geometry: its shape.
        input_dtype: dtype of the activations.
        symmetric_weights: whether all zero points of the weights are 0.
    """

    geometry: ConvGeometry | LinearGeometry
    input_dtype: Literal["uint8", "int8"]
    symmetric_weights: bool


@dataclass(frozen=True)
class ContractionChoice:
    """How a convolution or matrix product is computed.

    Attributes:
        formula: see `Formula`.
        pairs: see `Pairs`.
        cut: index at which the pairing of a matrix product restarts, see `onednn_avx2_linear_cut`; else None.
        skips_padding: whether sums of pairs leave out taps in the padding. They always include a border that was
            added to the input explicitly.
        separate_up_to: see `OnednnRequantization`.
        divides: see `OnednnRequantization`.
    """

    formula: Formula
    pairs: Pairs = "none"
    cut: int | None = None
    skips_padding: bool = False
    separate_up_to: int | None = None
    divides: bool = False

    def has_separate_scales(self, rows: int) -> bool:
        """Whether oneDNN multiplies by one scale after the other for `rows` images, or rows of a linear layer."""
        return self.separate_up_to is None or rows <= self.separate_up_to


INTEGER = ContractionChoice("integer")
"""The choice of numerics=integer: exact sums, and no library."""


@lru_cache(maxsize=1024)
def contraction_choice(contraction: Contraction, pytorch: PyTorch) -> ContractionChoice:
    """Returns how PyTorch computes a conv2d or linear layer."""
    geometry, cpu = contraction.geometry, pytorch.cpu
    if isinstance(geometry, LinearGeometry):
        library = linear_library(pytorch)
    else:
        library = conv_library(pytorch, geometry.groups, symmetric_weights=contraction.symmetric_weights)
    if library == "fbgemm":
        saturates = not cpu.vnni or (isinstance(geometry, ConvGeometry) and _is_fbgemms_depthwise(geometry))
        return ContractionChoice("fbgemm", "window" if saturates else "none")
    if library == "onednn":
        return _of_onednn(contraction, pytorch)
    return ContractionChoice("qnnpack")


def _of_onednn(contraction: Contraction, pytorch: PyTorch) -> ContractionChoice:
    geometry = contraction.geometry
    if isinstance(geometry, LinearGeometry):
        if pytorch.cpu.onednn_amx:
            separate_up_to = linear_separate_up_to(geometry.in_features, geometry.out_features)
            return ContractionChoice("onednn", separate_up_to=separate_up_to)
        if pytorch.cpu.vnni:
            return ContractionChoice("onednn")
        if contraction.input_dtype == "int8":
            return ContractionChoice("onednn", separate_up_to=0)
        cut = onednn_avx2_linear_cut(geometry.in_features)
        return ContractionChoice("onednn", "taps", cut=cut, separate_up_to=0)
    if pytorch.cpu.onednn_amx:
        return ContractionChoice(
            "onednn", separate_up_to=conv_separate_up_to(geometry, in_parallel=pytorch.threads > 1)
        )
    if pytorch.cpu.vnni:
        return ContractionChoice("onednn")
    if onednn_avx2_refuses(geometry.in_channels, geometry.out_channels, geometry.groups):
        return ContractionChoice("onednn", divides=True)
    if contraction.input_dtype == "int8" or geometry.is_depthwise:
        return ContractionChoice("onednn", separate_up_to=0)
    return ContractionChoice("onednn", "taps", skips_padding=max(geometry.all_padding) > 0, separate_up_to=0)


def _is_fbgemms_depthwise(geometry: ConvGeometry) -> bool:
    return geometry.groups > 1 and fbgemm_depthwise_saturates(
        geometry.in_channels, geometry.out_channels, geometry.groups, geometry.kernel, geometry.stride,
        geometry.padding, geometry.dilation,
    )  # fmt: skip


def conv_library(pytorch: PyTorch, groups: int, *, symmetric_weights: bool) -> Library:
    """Returns the library that PyTorch uses for conv2d.

    Reference: ATen/native/quantized/cpu/OnednnUtils.h `should_use_onednn_quant`.
    """
    if pytorch.engine == "x86":
        return "onednn" if pytorch.cpu.vnni and groups <= 100 and symmetric_weights else "fbgemm"
    return cast("Library", pytorch.engine)


def linear_library(pytorch: PyTorch) -> Library:
    """Returns the library that PyTorch uses for linear."""
    return "fbgemm" if pytorch.engine == "x86" else cast("Library", pytorch.engine)


def onednn_avx2_refuses(in_channels: int, out_channels: int, groups: int) -> bool:
    """Returns whether oneDNN has no AVX2 kernel for a convolution and computes it in plain C++.

    It has none where the channels of a group are not a multiple of 4, unless the convolution is depthwise.
    Reference: oneDNN src/cpu/x64/jit_uni_x8s8s32x_conv_kernel.cpp `init_conf`; measured on torch 2.13.
    """
    group_in, group_out = in_channels // groups, out_channels // groups
    return groups > 1 and (group_in, group_out) != (1, 1) and (group_in % 4 != 0 or group_out % 4 != 0)


def onednn_avx2_linear_cut(in_features: int) -> int | None:
    """Returns the feature at which oneDNN's AVX2 matrix product restarts its pairing; None if that changes no pair.

    More than 256 features are cut in two halves, the first of ceil(K/2), which may be odd; 768 or more are cut into
    blocks of 384, which is even. Reference: oneDNN src/cpu/x64/gemm/gemm_driver.cpp `get_k_padd`; measured on torch
    2.13 for K from 240 to 2305, 1 to 64 outputs, 1 to 40 rows, one and two threads.
    """
    half = (in_features + 1) // 2
    return half if 256 < in_features < 768 and half % 2 else None


def fbgemm_depthwise_saturates(
    channels: int, out_channels: int, groups: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int],
) -> bool:  # fmt: skip
    """Returns whether FBGEMM runs this convolution in its depthwise kernel, which saturates sums of two taps to int16.

    Reference: FBGEMM src/FbgemmConv.cc ConvFastPath, src/FbgemmI8DepthwiseAvx2-inl.h; measured on torch 2.13.
    """
    return (
        groups == channels
        and out_channels in (groups, 2 * groups)
        and groups % 8 == 0
        and kernel[0] == kernel[1]
        and kernel[0] in (3, 5, 7)
        and all(s in (1, 2) for s in stride)
        and dilation == (1, 1)
        and padding == ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
    )


# ------------------------------------------------------------------ pools and means


def takes_qnnpack(pytorch: PyTorch, dtype: str) -> bool:
    """Returns whether PyTorch can use QNNPACK for a dtype; each operator has further conditions."""
    return pytorch.engine == "qnnpack" and dtype == "uint8"


def max_pool2d_is_qnnpacks(pytorch: PyTorch, dtype: str, *, ceil_mode: bool) -> bool:
    """Returns whether QNNPACK computes max_pool2d; in the padding it repeats the border's elements."""
    return takes_qnnpack(pytorch, dtype) and not ceil_mode


def pool_vector_channels(kind: str, cpu: Cpu) -> int:
    """Returns how many channels an average pool of channels-last images computes at once; the rest are scalar tails."""
    return 16 if kind == "avg_pool2d" and cpu.avx512 else 8


@dataclass(frozen=True)
class AverageChoice:
    """How an average over windows or dimensions is computed.

    Attributes:
        formula: qnnpack: the sum times s / (s*count). channels_last, contiguous: PyTorch's own integer code for that
            memory format. floats: dequantize, sum in PyTorch's order, divide, quantize.
        vec_channels: for channels_last: channels of a vector; channels after the last whole vector have another
            formula.
        window: for an adaptive pool by QNNPACK: the size of its windows, which lie side by side.
    """

    formula: Literal["qnnpack", "channels_last", "contiguous", "floats"]
    vec_channels: int = 0
    window: tuple[int, int] | None = None


def avg_pool2d_choice(pytorch: PyTorch, dtype: str, *, ceil_mode: bool, channels_last: bool) -> AverageChoice:
    """Returns how PyTorch computes avg_pool2d.

    Args:
        pytorch: the PyTorch whose bits are reproduced.
        dtype: dtype of the integers.
        ceil_mode: the pool's option.
        channels_last: whether `is_contiguous(memory_format=torch.channels_last)` holds for the input.
    """
    if takes_qnnpack(pytorch, dtype) and not ceil_mode:
        return AverageChoice("qnnpack")
    if not channels_last:
        return AverageChoice("contiguous")
    return AverageChoice("channels_last", pool_vector_channels("avg_pool2d", pytorch.cpu))


def adaptive_avg_pool2d_choice(
    pytorch: PyTorch, dtype: str, in_size: tuple[int, int], out_size: tuple[int, int], *, channels_last: bool
) -> AverageChoice:
    """Returns how PyTorch computes adaptive_avg_pool2d; for the arguments see `avg_pool2d_choice`."""
    window = qnnpack_window(in_size, out_size) if takes_qnnpack(pytorch, dtype) else None
    if window is not None:
        return AverageChoice("qnnpack", window=window)
    if not channels_last:
        return AverageChoice("contiguous")
    return AverageChoice("channels_last", pool_vector_channels("adaptive_avg_pool2d", pytorch.cpu))


def mean_choice(pytorch: PyTorch, dtype: str, axes: tuple[int, ...], rank: int, *, contiguous: bool) -> AverageChoice:
    """Returns how PyTorch computes a mean over more than one element.

    Args:
        pytorch: the PyTorch whose bits are reproduced.
        dtype: dtype of the integers.
        axes: as the program writes them: QNNPACK accepts (2, 3) but not (-2, -1).
        rank: rank of the input.
        contiguous: whether `is_contiguous()` holds for the input.
    """
    if takes_qnnpack(pytorch, dtype) and rank == 4 and axes == (2, 3):
        return AverageChoice("qnnpack")
    is_inner = sorted(axis % rank for axis in axes) == list(range(rank - len(axes), rank))
    return AverageChoice("contiguous" if contiguous and is_inner else "floats")


def qnnpack_window(in_size: tuple[int, int], out_size: tuple[int, int]) -> tuple[int, int] | None:
    """Returns the window with which QNNPACK computes `adaptive_avg_pool2d`; None if PyTorch's own code does.

    QNNPACK is used if windows of equal size, side by side, cover the image, unless a window is one pixel. Reference:
    torch aten/src/ATen/native/quantized/cpu/AdaptiveAveragePooling.cpp `enable_qnnpack_for_ada_avgpool2d`.
    """
    is_even = all(size % out == 0 for size, out in zip(in_size, out_size, strict=True))
    return (in_size[0] // out_size[0], in_size[1] // out_size[1]) if is_even and in_size != out_size else None


# ------------------------------------------------------------------ element-wise operators


def add_is_qnnpacks(pytorch: PyTorch, dtype: str, *, one_shape: bool) -> bool:
    """Returns whether QNNPACK adds two tensors; it cannot broadcast."""
    return takes_qnnpack(pytorch, dtype) and one_shape


def unary_is_qnnpacks(pytorch: PyTorch, name: str, dtype: str) -> bool:
    """Returns whether QNNPACK computes a function of one tensor."""
    kernel = ACTIVATIONS[name].kernel
    return takes_qnnpack(pytorch, dtype) and kernel is not None and kernel.qnnpack


def concat_is_vectorised(rank: int, axis: int, *, channels_last: bool) -> bool:
    """Returns whether PyTorch concatenates integers, with tails every 8 channels; otherwise it concatenates floats.

    Args:
        rank: rank of the inputs.
        axis: as the program writes it: 1, but not -3.
        channels_last: whether `is_contiguous(memory_format=torch.channels_last)` holds for all inputs.
    """
    return rank == 4 and axis == 1 and channels_last
