"""The epilogue of a contraction under numerics=qdq: a float program turns accumulators into integers or float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tvm.tirx.script.builder as T

from quantvm.kernels import x86
from quantvm.kernels.builder import LANES, Buffer, Expr, argument, cast, flat, local, ramp, store_prefix
from quantvm.kernels.float.program_emitter import quantize, run_program, steps_of
from quantvm.kernels.isa import Isa
from quantvm.numerics.qdq import AccumulatorLeaf, ChannelLeaf, FloatProgram, Leaf
from quantvm.numerics.requantization import Requantization

from .epilogue import GROUP, Epilogue, Piece, PostOps, pack_within, store_bytes

OutputStage = Requantization | FloatProgram
"""From accumulators to outputs: a requantization for numerics torch and integer, a float program for qdq."""


class ProgramEpilogue:
    """Emits a float program on int32 accumulators, and the store of its result, into the open PrimFunc.

    Args:
        program: its first leaf is the accumulator.
        channels_padded: length that the per-channel vectors are padded to.
        isa: instruction groups that may be used.
        order: the channel whose constants each position of the vectors holds; by default, position c holds channel c.
    """

    def __init__(
        self, program: FloatProgram, channels_padded: int, isa: Isa, order: np.ndarray | None = None
    ) -> None:  # fmt: skip
        self._program, self._isa = program, isa
        self.out_dtype = program.out_dtype
        self.constants = tuple(_padded(v, channels_padded, order) for v in program.channel_vectors())

    def declare_residual(self, shape: Sequence[Expr]) -> None:
        """Adds the program's tensors, which have the output's shape, as arguments of the open PrimFunc."""
        self._arguments = [argument(f"t{i}", shape, leaf.dtype) for i, leaf in enumerate(self._program.tensors)]

    def view_residual(self, numel: Expr) -> None:
        """Makes flat views of the tensors; to be called after the last argument is declared."""
        self._tensors = [flat(tensor, numel) for tensor in self._arguments]

    def declare(self, n: Expr) -> None:
        """Adds the constants as arguments of the open PrimFunc of `n` images, in the order of `constants`."""
        self._vectors: list[Buffer] = [
            argument(f"channel{i}", vector.shape, "float32") for i, vector in enumerate(self.constants)
        ]

    def store(self, y: Buffer, base: Expr, pieces: Sequence[Piece]) -> None:
        """Emits the program and the store into the flat output for all pieces."""
        output = self._program.output
        if output is not None and self._isa.packs:
            for start in range(0, len(pieces), GROUP):
                group = pieces[start : start + GROUP]
                store_bytes(y, base, group, self._packed([self._steps(piece, base) for piece in group], LANES))
            return
        for piece in pieces:
            value = self._real(piece, base)
            if output is not None:
                value = cast(quantize(value, output, LANES), output.q.dtype)
            store_prefix(y, [], base + piece.offset, value, piece.lanes, self.out_dtype)

    def store_lanes(self, y: Buffer, at: Expr, acc_i32: Expr, channel: Expr, lanes: int) -> None:
        """Emits the program and the store for a vector of any length, in portable code; the program has no tensors."""
        value, output = self._real(Piece(acc_i32, channel, 0, lanes), at, lanes), self._program.output
        if output is not None:
            value = cast(quantize(value, output, lanes), output.q.dtype, lanes)
        T.buffer_store(y, value, [ramp(at, lanes)])

    def store_interleaved(self, y: Buffer, at: Expr, accs: Sequence[Expr], channel: Expr, lanes: int) -> None:
        """Emits the program for four vectors and stores 4*lanes channels at `at`; see `Epilogue.store_interleaved`."""
        pieces = [Piece(acc, channel + v * lanes, 4 * v, lanes) for v, acc in enumerate(accs)]
        if self._program.output is not None:
            packed = self._packed([self._steps(piece, at, lanes) for piece in pieces], lanes, in_order=False)
            T.buffer_store(y, packed, [ramp(at, 4 * lanes)])
            return
        for piece in pieces:
            real = local(lanes, "float32")
            T.buffer_store(real, self._real(piece, at, lanes), [ramp(0, lanes)])
            for segment in range(0, lanes, 4):
                T.buffer_store(y, real[ramp(segment, 4)], [ramp(at + piece.offset + 4 * segment, 4)])

    def _real(self, piece: Piece, base: Expr, lanes: int = LANES) -> Expr:
        return run_program(
            self._program,
            lanes,
            lambda i: self._tensors[i][ramp(base + piece.offset, lanes)],
            lambda i: self._vectors[i][ramp(piece.channel, lanes)],
            piece.acc_i32,
        )

    def _steps(self, piece: Piece, base: Expr, lanes: int = LANES) -> Expr:
        """Returns int32 steps of the output's scale, neither clipped nor shifted."""
        output = self._program.output
        assert output is not None
        return x86.convert_to_int32(steps_of(self._real(piece, base, lanes), output, lanes), lanes)

    def _packed(self, vectors: Sequence[Expr], lanes: int, *, in_order: bool = True) -> Expr:
        """Returns the bytes of up to four vectors of steps, vector after vector if `in_order`."""
        output = self._program.output
        assert output is not None
        vectors = [*vectors, *([vectors[-1]] * (GROUP - len(vectors)))]
        packed = pack_within(vectors, output.q.zero_point, output.q.dtype, (output.low, output.high), lanes)
        return x86.in_vector_order(packed, output.q.dtype) if in_order else packed


def epilogue_of(
    output_stage: OutputStage, channels_padded: int, acc_bound: int, isa: Isa, post: PostOps,
    order: np.ndarray | None = None,
) -> Epilogue | ProgramEpilogue:  # fmt: skip
    """Returns the epilogue of a requantization with fused operators, or of a float program."""
    if isinstance(output_stage, FloatProgram):
        return ProgramEpilogue(output_stage, channels_padded, isa, order)
    return Epilogue(output_stage, channels_padded, acc_bound, isa, post, order)


def spread_channels(program: FloatProgram, groups: int, group_padded: int) -> FloatProgram:
    """Returns the program with each group's channels padded to whole vectors."""

    def spread(vector: np.ndarray) -> np.ndarray:
        out = np.zeros((groups, group_padded), np.float32)
        out[:, : vector.size // groups] = vector.reshape(groups, -1)
        return out.reshape(-1)

    def of(leaf: Leaf) -> Leaf:
        if isinstance(leaf, AccumulatorLeaf):
            return AccumulatorLeaf(spread(leaf.multiplier_f32))
        return ChannelLeaf(spread(leaf.values_f32)) if isinstance(leaf, ChannelLeaf) else leaf

    return program if groups == 1 else replace(program, leaves=tuple(of(leaf) for leaf in program.leaves))


def _padded(vector: np.ndarray, length: int, order: np.ndarray | None) -> np.ndarray:
    padded = np.zeros(length, np.float32)
    source = vector if order is None else vector[order]
    padded[: source.size] = source
    return padded
