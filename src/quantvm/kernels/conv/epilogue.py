"""The epilogue of a contraction: requantize accumulators; perhaps add a residual, clip, look up in a table; store.

Fusing these steps changes no bit: each takes the integer that the previous step would have stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels import x86
from quantvm.kernels.arithmetic import dequantize_vec, quantize_vec
from quantvm.kernels.builder import LANES, Buffer, Expr, argument, cast, clamp, flat, local, ramp, splat, store_prefix
from quantvm.kernels.isa import Isa
from quantvm.numerics.requantization import Requantization
from quantvm.numerics.torch_engines import QuantParams, reciprocal_f32

from .requantize import RequantizeEpilogue

GROUP = 4
"""Vectors that are packed into bytes together."""


@dataclass(frozen=True)
class ResidualAdd:
    """Addition of a second tensor, as `elementwise.add` without scalar tails.

    Attributes:
        other: parameters of the second tensor.
        output: parameters of the sum.
        relu: whether a ReLU follows.
    """

    other: QuantParams
    output: QuantParams
    relu: bool

    def fits_int32(self, contraction: QuantParams) -> bool:
        """Whether every possible sum, in steps of the output's scale, fits int32."""
        greatest = sum(256.0 * q.scale for q in (contraction, self.other))
        return greatest / self.output.scale < 2.0**30


@dataclass(frozen=True)
class PostOps:
    """Element-wise operators fused behind a contraction, in this order.

    Attributes:
        residual: addition of a tensor of the output's shape.
        limits: least and greatest integer that passes.
        table: (256,) uint8 entries that replace uint8 integers.
        table_output: parameters of the entries.
    """

    residual: ResidualAdd | None = None
    limits: tuple[int, int] | None = None
    table: np.ndarray | None = None
    table_output: QuantParams | None = None

    @property
    def suffix(self) -> str:
        """Suffix of the kernel's name for the fused operators."""
        steps = {
            "_add_relu" if self.residual and self.residual.relu else "_add": self.residual is not None,
            "_clip": self.limits is not None,
            "_table": self.table is not None,
        }
        return "".join(name for name, present in steps.items() if present)

    def output(self, contraction: QuantParams) -> QuantParams:
        """Returns the parameters of the stored integers."""
        if self.table_output is not None:
            return self.table_output
        return self.residual.output if self.residual is not None else contraction


NO_POST_OPS = PostOps()


@dataclass(frozen=True)
class Piece:
    """A vector of accumulators to store.

    Attributes:
        acc_i32: a vector of LANES accumulators.
        channel: first channel, as an index into the padded constants.
        offset: index at which it is stored, relative to its tile's base.
        lanes: number of lanes to store.
    """

    acc_i32: Expr
    channel: Expr
    offset: int
    lanes: int


class Epilogue:
    """Emits the epilogue of int32 accumulators, including the store, into the open PrimFunc.

    Args:
        r: the contraction's requantization.
        channels_padded: length that the per-channel vectors are padded to.
        acc_bound: greatest |acc_i32| that can occur.
        isa: instruction groups that may be used.
        post: operators fused behind the requantization.
        order: see `RequantizeEpilogue`.
    """

    def __init__(
        self, r: Requantization, channels_padded: int, acc_bound: int, isa: Isa, post: PostOps = NO_POST_OPS,
        order: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.requantize = RequantizeEpilogue(r, channels_padded, acc_bound, order)
        self._isa, self._post = isa, post
        self._inner = r.output
        self.output = post.output(r.output)
        self.out_dtype: str = self.output.dtype
        table = () if post.table is None else (post.table,)
        self.constants: tuple[np.ndarray, ...] = (*self.requantize.constants, *table)

    def declare_residual(self, shape: Sequence[Expr]) -> None:
        """Adds the tensor to add as an argument of the open PrimFunc, if there is one."""
        if self._post.residual is not None:
            self._residual_argument: Buffer = argument("residual", shape, self._post.residual.other.dtype)

    def view_residual(self, numel: Expr) -> None:
        """Makes a flat view of the tensor to add; to be called after the last argument is declared."""
        if self._post.residual is not None:
            self._residual: Buffer = flat(self._residual_argument, numel)

    def declare(self, n: Expr) -> None:
        """Adds the constants as arguments of the open PrimFunc of `n` images, in the order of `constants`."""
        self.requantize.declare(n)
        if self._post.table is not None:
            self._table: Buffer = argument("table", (256,), "uint8")

    @property
    def _packs(self) -> bool:
        r = self.requantize
        # oneDNN clips before it converts; packing gives the same only if values fit int32
        return self._isa.packs and not (r.zero_included and r.may_overflow)

    # ---- vectors of LANES in order

    def store(self, y: Buffer, base: Expr, pieces: Sequence[Piece]) -> None:
        """Emits the epilogue and the store into the flat output for all pieces."""
        if not self._packs:
            for piece in pieces:
                value = self._integers(piece, base)
                store_prefix(y, [], base + piece.offset, cast(value, self.output.dtype), piece.lanes, self.output.dtype)
            return
        for start in range(0, len(pieces), GROUP):
            self._store_group(y, base, pieces[start : start + GROUP])

    def _integers(self, piece: Piece, base: Expr) -> Expr:
        """Returns one piece as int32 inside of the output's range, in portable code."""
        residual, bounds = self._post.residual, self._bounds
        if residual is None:
            value, known = self.requantize.apply(piece.acc_i32, piece.channel), self.requantize.bounds
        else:
            output = residual.output
            value = quantize_vec(self._sum(piece, base, residual), reciprocal_f32(output.scale), output)
            known = output.quant_min, output.quant_max
        return value if bounds == known else clamp(value, *(splat(v, LANES, "int32") for v in bounds))

    def _store_group(self, y: Buffer, base: Expr, pieces: Sequence[Piece]) -> None:
        vectors = [self._unclipped(piece, base) for piece in pieces]
        vectors += vectors[-1:] * (GROUP - len(vectors))
        packed = x86.in_vector_order(self._packed(vectors, LANES), self.output.dtype)
        store_bytes(y, base, pieces, self._looked_up(packed))

    def store_lanes(self, y: Buffer, at: Expr, acc_i32: Expr, channel: Expr, lanes: int) -> None:
        """Emits the epilogue and the store of one vector of any length, in portable code; there is no residual."""
        value, bounds = self.requantize.apply(acc_i32, channel, lanes), self._bounds
        if bounds != self.requantize.bounds:
            value = clamp(value, *(splat(v, lanes, "int32") for v in bounds))
        if self._post.table is None:
            T.buffer_store(y, cast(value, self.output.dtype, lanes), [ramp(at, lanes)])
            return
        indices = local(lanes, "int32")
        T.buffer_store(indices, value, [ramp(0, lanes)])
        for lane in range(lanes):
            T.buffer_store(y, self._table[indices[lane]], [at + lane])

    # ---- vectors whose segments alternate

    def store_interleaved(self, y: Buffer, at: Expr, accs: Sequence[Expr], channel: Expr, lanes: int) -> None:
        """Emits the epilogue of four vectors and stores 4*lanes channels at `at`.

        Args:
            y: flat output.
            at: index of the first channel.
            accs: four int32 vectors; lane 4s + i of vector v belongs to channel 16s + 4v + i.
            channel: index of the first constant; constants are stored vector after vector.
            lanes: number of lanes of each vector.
        """
        pieces = [Piece(acc, channel + v * lanes, 4 * v, lanes) for v, acc in enumerate(accs)]
        vectors = [self._unclipped(piece, at, lanes) for piece in pieces]
        T.buffer_store(y, self._looked_up(self._packed(vectors, lanes), 4 * lanes), [ramp(at, 4 * lanes)])

    # ---- steps

    @property
    def _summed(self) -> QuantParams:
        return self._inner if self._post.residual is None else self._post.residual.output

    @property
    def _bounds(self) -> tuple[int, int]:
        """Least and greatest integer before the table look-up."""
        residual = self._post.residual
        if residual is None:
            low, high = self.requantize.bounds
        else:
            low, high = residual.output.quant_min, residual.output.quant_max
            low = max(low, residual.output.zero_point) if residual.relu else low
        if self._post.limits is not None:
            low, high = max(low, self._post.limits[0]), min(high, self._post.limits[1])
        return low, high

    def _sum(self, piece: Piece, base: Expr, residual: ResidualAdd) -> Expr:
        """Returns fl(D_VEC(a) + D_VEC(b))."""
        a = self.requantize.real(piece.acc_i32, piece.channel)
        b = self._residual[ramp(base + piece.offset)]
        return dequantize_vec(a, self._inner) + dequantize_vec(b, residual.other)

    def _unclipped(self, piece: Piece, base: Expr, lanes: int = LANES) -> Expr:
        """Returns int32 that is not clipped, without the zero point unless `zero_included`."""
        residual = self._post.residual
        if self.requantize.is_integer:
            return self.requantize.integers(piece.acc_i32, piece.channel, lanes)
        if residual is None:
            return x86.convert_to_int32(self.requantize.scaled(piece.acc_i32, piece.channel, lanes), lanes)
        inverse = splat(reciprocal_f32(residual.output.scale), LANES, "float32")
        return x86.convert_to_int32(self._sum(piece, base, residual) * inverse, lanes)

    def _packed(self, vectors: Sequence[Expr], lanes: int) -> Expr:
        """Returns bytes inside of the bounds; packing itself limits to the range of the dtype."""
        q = self._summed
        zero_point = 0 if self._post.residual is None and self.requantize.zero_included else q.zero_point
        return pack_within(vectors, zero_point, q.dtype, self._bounds, lanes)

    def _looked_up(self, packed: Expr, count: int = GROUP * LANES) -> Expr:
        if self._post.table is None:
            return packed
        quarters = [self._table[ramp(64 * i, 64)] for i in range(4)]
        return x86.look_up(packed, quarters, count)


def pack_within(vectors: Sequence[Expr], zero_point: int, dtype: str, bounds: tuple[int, int], lanes: int) -> Expr:
    """Returns `x86.pack_to_bytes` limited to the bounds; the range of the dtype itself costs nothing.

    The limits must come before anything that moves the bytes: see `x86.in_vector_order`.
    """
    x, count = x86.pack_to_bytes(vectors, zero_point, dtype, lanes), GROUP * lanes
    low, high = bounds
    if low > np.iinfo(dtype).min:
        x = tirx.max(x, splat(low, count, dtype))
    if high < np.iinfo(dtype).max:
        x = tirx.min(x, splat(high, count, dtype))
    return x


def store_bytes(y: Buffer, base: Expr, pieces: Sequence[Piece], packed: Expr) -> None:
    """Emits the stores of up to GROUP pieces; `packed` holds LANES bytes of each, one piece after the other."""
    for start, count, offset in _runs(pieces):
        if count == GROUP * LANES:
            T.buffer_store(y, packed, [ramp(base + offset, count)])
            continue
        for width in (32, 16, 8, 4, 2, 1):
            if count & width:
                part = x86.shuffle([packed], range(start, start + width))
                T.buffer_store(y, part, [ramp(base + offset, width)])
                start, offset = start + width, offset + width


def _runs(pieces: Sequence[Piece]) -> list[tuple[int, int, int]]:
    """Returns (first byte, bytes, offset) of each contiguous run that pieces packed in order form in the output."""
    runs: list[tuple[int, int, int]] = []
    for index, piece in enumerate(pieces):
        start = index * LANES
        if runs:
            first, count, offset = runs[-1]
            if first + count == start and offset + count == piece.offset:
                runs[-1] = first, count + piece.lanes, offset
                continue
        runs.append((start, piece.lanes, piece.offset))
    return runs
