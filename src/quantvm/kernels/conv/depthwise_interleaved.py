"""Depthwise int8 convolution that interleaves the bytes of four taps, and multiplies and adds them in one step.

vpdpbusd adds four products exactly. If pairs can saturate in FBGEMM with these weights, vpmaddubsw replaces it, which
saturates in the same way, and vpdpwssd adds the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels import x86
from quantvm.kernels.builder import Buffer, Expr, argument, ceil_div, ramp, splat
from quantvm.kernels.isa import Isa
from quantvm.kernels.schedule.schedule import Conv2dShape

from .epilogue import PostOps
from .program_epilogue import OutputStage, epilogue_of

_TAPS = 4
_WIDTHS = (64, 32, 16)
MIN_CHANNELS = _WIDTHS[-1]


def channel_blocks(channels: int) -> list[tuple[int, int]]:
    """Returns (first channel, width) of the vectors that cover `channels` >= 16; the last ones may overlap."""
    blocks, at = [], 0
    while at < channels:
        rest = channels - at
        enough = [w for w in _WIDTHS if rest <= w <= channels]
        width = min(enough) if enough else max(w for w in _WIDTHS if w <= rest)
        start = min(at, channels - width)
        blocks.append((start, width))
        at = start + width
    return blocks


def can_saturate(taps_i8: np.ndarray) -> bool:
    """Returns whether x[2i]*w[2i] + x[2i+1]*w[2i+1] can leave int16 for some x in 0..255; taps are (taps, channels)."""
    even = taps_i8[: len(taps_i8) // 2 * 2].astype(np.int64).reshape(-1, 2, taps_i8.shape[1])
    greatest = 255 * np.maximum(even, 0).sum(1).max(initial=0)
    least = 255 * np.minimum(even, 0).sum(1).min(initial=0)
    return bool(greatest > 32767 or least < -32768)


class InterleavedDepthwise:
    """Emits the pixels of a depthwise convolution with one output channel per input channel.

    Args:
        shape: geometry.
        taps_i8: (KH*KW, C) weights, row-major taps.
        start_i32: (C,) initial accumulators.
        output_stage: formula and per-channel vectors; or a float program.
        saturate_pairs: whether sums of two products saturate to int16.
        isa: must have `pairs`.
        post: operators fused behind the output stage; no residual.
    """

    name = "depthwise_conv2d_u8i8acc32_vnni"

    def __init__(
        self, shape: Conv2dShape, taps_i8: np.ndarray, start_i32: np.ndarray,
        output_stage: OutputStage, saturate_pairs: bool, isa: Isa, post: PostOps,
    ) -> None:  # fmt: skip
        self._shape = shape
        self._saturates = saturate_pairs and can_saturate(taps_i8)
        self._groups = ceil_div(len(taps_i8), _TAPS)
        padded = np.zeros((self._groups * _TAPS, taps_i8.shape[1]), np.int8)
        padded[: len(taps_i8)] = taps_i8
        self._row_bytes = shape.out_width * shape.out_channels
        # With stride 1, element e of an output row reads the input at e + constants. So a row is one long vector with
        # repeating channels, and vectors have full width even if the channel count is not a multiple of 64.
        self._flat = shape.stride[1] == 1 and self._row_bytes >= _WIDTHS[0]
        if self._flat:
            period = math.lcm(shape.out_channels, _WIDTHS[0])
            self._phases = min(period, self._row_bytes) // _WIDTHS[0]
            self._blocks = [(phase * _WIDTHS[0], _WIDTHS[0]) for phase in range(self._phases)]
            if self._row_bytes % _WIDTHS[0]:
                self._blocks.append((self._row_bytes - _WIDTHS[0], _WIDTHS[0]))
        else:
            self._blocks = channel_blocks(shape.out_channels)
        orders = [_order(start, width) % shape.out_channels for start, width in self._blocks]
        order = np.concatenate(orders)
        # for each block: (groups, taps, 4*lanes) -> (groups, 4*lanes, taps)
        packed = [padded[:, o].reshape(self._groups, _TAPS, -1).transpose(0, 2, 1).reshape(-1) for o in orders]
        self._weights = np.ascontiguousarray(np.concatenate(packed))
        self._start = np.ascontiguousarray(start_i32[order])
        bound = int(np.abs(padded.astype(np.int64)).sum(0).max()) * 256
        self.epilogue = epilogue_of(output_stage, order.size, bound, isa, post, order)
        self.constants = (self._weights, self._start, *self.epilogue.constants)

    def declare(self, n: Expr) -> None:
        """Adds the constants as arguments of the open PrimFunc of `n` images, in the order of `constants`."""
        self._w = argument("w", self._weights.shape, "int8")
        self._acc_start = argument("acc_start", self._start.shape, "int32")
        self.epilogue.declare(n)

    def emit_row(self, x: Buffer, in_row: Expr, row_stride: int, y: Buffer, out_row: Expr) -> None:
        """Emits one row of output pixels.

        Args:
            x: flat activations.
            in_row: index of the first window's first element.
            row_stride: elements between rows of x.
            y: flat output.
            out_row: index of the row's first element.
        """
        source = (x, in_row, row_stride)
        if self._flat:
            self._flat_row(source, y, out_row)
            return
        columns = self._shape.out_width
        widest = sum(width == _WIDTHS[0] and start == i * width for i, (start, width) in enumerate(self._blocks))
        if widest:
            with T.serial(0, widest) as step, T.serial(0, columns) as column:
                self._vector(source, y, out_row, column, step * _WIDTHS[0], step * _WIDTHS[0], _WIDTHS[0])
        place = widest * _WIDTHS[0]
        for start, width in self._blocks[widest:]:
            with T.serial(0, columns) as column:
                self._vector(source, y, out_row, column, tirx.const(start, "int32"), place, width)
            place += width

    def _flat_row(self, source: tuple[Buffer, Expr, int], y: Buffer, out_row: Expr) -> None:
        width, phases = _WIDTHS[0], self._phases
        vectors = self._row_bytes // width
        with T.serial(0, phases) as phase, T.serial(0, (vectors - phase + (phases - 1)) // phases) as turn:
            self._vector(source, y, out_row, 0, (turn * phases + phase) * width, phase * width, width)
        if self._row_bytes % width:
            self._vector(source, y, out_row, 0, tirx.const(self._row_bytes - width, "int32"), phases * width, width)

    def _vector(
        self, source: tuple[Buffer, Expr, int], y: Buffer, out_row: Expr, column: Expr, channel: Expr, place: Expr,
        width: int,
    ) -> None:  # fmt: skip
        """Emits `width` outputs of a column, starting at `channel`; their constants begin at `place`."""
        shape, (x, in_row, row_stride) = self._shape, source
        at = in_row + column * (shape.stride[1] * shape.in_channels) + channel
        taps = []
        for kh in range(shape.kernel[0]):
            for kw in range(shape.kernel[1]):
                offset = kh * shape.dilation[0] * row_stride + kw * shape.dilation[1] * shape.in_channels
                taps.append(x[ramp(at + offset, width)])
        accs = self._accumulate(taps, place, width)
        self.epilogue.store_interleaved(y, out_row + column * shape.out_channels + channel, accs, place, width // 4)

    def _accumulate(self, taps: Sequence[Expr], place: Expr, width: int) -> list[Expr]:
        lanes = width // 4
        accs = [self._acc_start[ramp(place + v * lanes, lanes)] for v in range(4)]
        zero = splat(0, width, "uint8")
        for group in range(self._groups):
            four = list(taps[group * _TAPS : (group + 1) * _TAPS])
            four += [zero] * (_TAPS - len(four))
            pairs = [[x86.interleave(four[i], four[i + 1], width, 1, high) for high in (False, True)] for i in (0, 2)]
            for v in range(4):
                bytes_u8 = x86.interleave(pairs[0][v // 2], pairs[1][v // 2], width, 2, bool(v % 2))
                at = place * (self._groups * 4) + (group * 4 + v) * width
                accs[v] = self._multiply_add(accs[v], bytes_u8, self._w[ramp(at, width)], lanes)
        return accs

    def _multiply_add(self, acc_i32: Expr, x_u8: Expr, w_i8: Expr, lanes: int) -> Expr:
        if self._saturates:
            return x86.add_word_pairs(acc_i32, x86.multiply_pairs(x_u8, w_i8, lanes), lanes)
        return x86.dot_bytes(acc_i32, x_u8, w_i8, lanes)


def _order(start: int, width: int) -> np.ndarray:
    """Returns the channels in the order of four interleaved vectors: lane 4s+i of vector v is channel 16s+4v+i."""
    v, s, i = np.meshgrid(np.arange(4), np.arange(width // 16), np.arange(4), indexing="ij")
    return (start + 16 * s + 4 * v + i).reshape(-1)
