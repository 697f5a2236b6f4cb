"""For which batch sizes oneDNN's AMX kernels use one combined scale, inside of PyTorch 2.13 (oneDNN 3.12).

On a CPU without AMX, oneDNN multiplies accumulators by the input's scale and then by the weight's: fl(fl(acc*sa) * sw).
Its unrolled AMX kernel multiplies once, by the product: fl(acc * fl(sa*sw)). The shape, the number of images and the
number of threads decide which kernel runs, and thereby PyTorch's bits on a CPU with AMX.

Reference: oneDNN 3.12 src/cpu/x64/jit_brgemm_conv_utils.cpp (`init_jcp`, `init_conf`, `init_1x1_conf`: `use_uker`) and
matmul/brgemm_matmul_utils.cpp (`is_small_shapes`); measured on torch 2.13.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantvm.numerics.pool_geometry import PoolAxis

_SIMD = 64
"""Bytes of a vector register, and thus input channels of a full step."""
_VNNI = 4
"""Input channels that one dot-product instruction sums."""
_L1_BYTES = 48 * 1024 * 7 // 8
"""Share of the first-level data cache that oneDNN counts on; the cache has 48 KiB on all CPUs with AMX so far."""
_LARGE = 2**31 - 1
"""More images than any batch has: the combined scale is never used."""


@dataclass(frozen=True)
class LinearGeometry:
    """A matrix product as PyTorch hands it to a library."""

    in_features: int
    out_features: int


@dataclass(frozen=True)
class ConvGeometry:
    """A conv2d as PyTorch hands it to a library; `padding` is at the top and at the left."""

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of_window(
        cls, in_size: tuple[int, int], channels: tuple[int, int], *, kernel: tuple[int, int], stride: tuple[int, int],
        padding: tuple[int, int, int, int], dilation: tuple[int, int], groups: int,
    ) -> ConvGeometry:  # fmt: skip
        """Returns the geometry of a window that moves over an image.

        Args:
            in_size: height and width of the image.
            channels: numbers of input and of output channels.
            kernel: height and width.
            stride: height and width.
            dilation: height and width.
            padding: top, left, bottom, right.
            groups: number of groups of channels.
        """
        height, width = (
            PoolAxis(size, k, s, before, after, d).out_size
            for size, before, after, k, d, s in zip(
                in_size, padding[:2], padding[2:], kernel, dilation, stride, strict=True
            )
        )
        return cls(in_size, (height, width), *channels, kernel, stride, padding[:2], dilation, groups)

    @property
    def is_depthwise(self) -> bool:
        """Whether there are several groups, each with one input channel and one output channel."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def all_padding(self) -> tuple[int, int, int, int]:
        """Padding at the top, left, bottom and right, as far as windows reach."""
        return (*self.padding, *self._end_padding)

    @property
    def _extents(self) -> tuple[int, int]:
        height, width = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return height, width

    @property
    def _end_padding(self) -> tuple[int, int]:
        bottom, right = (
            (out - 1) * stride + extent - size - padding
            for out, stride, extent, size, padding in zip(
                self.out_size, self.stride, self._extents, self.in_size, self.padding, strict=True
            )
        )
        return bottom, right


def conv_separate_up_to(conv: ConvGeometry, *, in_parallel: bool) -> int:
    """Returns up to which batch size accumulators are multiplied by one scale after the other; 0: never.

    It depends on whether oneDNN computes in several threads.
    """
    group_in, group_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if conv.is_depthwise:
        return _LARGE  # depthwise: no AMX at all
    pointwise = conv.kernel == (1, 1) and max(*conv.padding, *conv._end_padding) <= 0
    if not (_pointwise_has_amx(group_in) if pointwise else _general_is_unrolled(conv, group_in)):
        return _LARGE
    largest = 0
    out_height, out_width = conv.out_size
    if out_height * out_width <= 4 and group_in <= 512:
        # oneDNN leaves whatever fits into the cache to its VNNI kernels
        room = _L1_BYTES // 2 if pointwise else _L1_BYTES
        largest = room // (conv.groups * group_in * group_out)
    # oneDNN pads the input channels to whole dot products, which those of a pointwise one are here
    if pointwise and in_parallel and group_in * out_height <= 28 * 1024 and group_out * out_height <= 14 * 1024:
        largest = max(largest, 1)  # AMX, but not unrolled
    return largest


def linear_separate_up_to(in_features: int, out_features: int) -> int:
    """Returns up to how many rows accumulators are multiplied by one scale after the other; 0: never."""
    if in_features <= 16:
        return _LARGE
    return max(1 if in_features == 256 else 0, min(32, 256 // out_features))


def _pointwise_has_amx(group_in: int) -> bool:
    return group_in % _VNNI == 0


def _general_is_unrolled(conv: ConvGeometry, group_in: int) -> bool:
    """Returns whether a convolution that is not pointwise runs in the unrolled AMX kernel."""
    (height, width), (out_height, out_width) = conv._extents, conv.out_size
    _, right = conv._end_padding
    if conv.padding[0] >= height or right >= width:
        return False
    if group_in == conv.out_channels // conv.groups and group_in in (128, 256) and out_height == out_width == 150:
        return False
    if max(conv.padding[1], right) <= 0:
        whole = group_in % _VNNI == 0 if group_in <= _SIMD else group_in % _SIMD == 0
        if whole:
            return out_width < 8 * 1024
    return out_width < 256 or _rearranges_rows(conv, group_in)


def _rearranges_rows(conv: ConvGeometry, group_in: int) -> bool:
    """Returns whether the taps of a row are laid out as one run of channels; oneDNN then unrolls wide images too.

    oneDNN does so as well where that halves the memory of a row, but with 32 or more channels it never does.
    """
    return conv.kernel[1] > 1 and conv.dilation[1] == 1 and group_in < _SIMD // 2
