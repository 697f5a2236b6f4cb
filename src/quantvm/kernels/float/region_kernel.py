"""Element-wise float operators between integers, as one loop; for numerics=qdq, apart from contractions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm.tirx.script.builder as T

from quantvm.kernels import x86
from quantvm.kernels.builder import (
    LANES,
    Buffer,
    Expr,
    Kernel,
    argument,
    cast,
    flat,
    for_vectors,
    prim_func,
    ramp,
    symbolic_batch,
)
from quantvm.kernels.conv.epilogue import GROUP, pack_within
from quantvm.kernels.elementwise.elementwise import over_elements
from quantvm.kernels.isa import PLAIN, Isa
from quantvm.numerics.qdq import FloatProgram, TensorLeaf, table

from .program_emitter import quantize, run_program, steps_of


def region_kernel(item_shape: Sequence[int], program: FloatProgram, isa: Isa = PLAIN) -> Kernel:
    """Returns a float program over dense (n, *item_shape) tensors whose innermost dimension is the channels.

    A tensor leaf with `gate` is (n, 1, ..., 1, C); all pixels of an image share its values.

    Args:
        item_shape: physical shape of one image's part, channels last.
        program: a program without an accumulator.
        isa: instruction groups that may be used.

    Exactness: `numerics.qdq.evaluate`, bit for bit, except for the last bit of exp.
    """
    entries = table(program)
    if entries is not None and isa.byte_tables and program.tensors[0].dtype == program.out_dtype == "uint8":
        return _table(item_shape, entries)
    vectors = program.channel_vectors()
    channels, pixels = item_shape[-1], math.prod(item_shape[:-1])
    gates = [(*(1 for _ in item_shape[:-1]), channels) if leaf.gate else item_shape for leaf in program.tensors]
    by_channel = bool(vectors) or any(leaf.gate for leaf in program.tensors)
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        tensors = [
            argument(f"t{i}", (n, *shape), leaf.dtype)
            for i, (leaf, shape) in enumerate(zip(program.tensors, gates, strict=True))
        ]
        constants = [argument(f"channel{i}", v.shape, "float32") for i, v in enumerate(vectors)]
        y = argument("y", (n, *item_shape), program.out_dtype)
        numel = n * (pixels * channels)
        views = [
            flat(tensor, n * channels if leaf.gate else numel)
            for tensor, leaf in zip(tensors, program.tensors, strict=True)
        ]
        region = _Region(program, isa, views, constants, flat(y, numel))
        if by_channel:
            rows = item_shape[0] if len(item_shape) > 1 else 1
            with T.parallel(0, n * rows) as row, T.serial(0, pixels // rows) as pixel:
                base = (row * (pixels // rows) + pixel) * channels
                gate = row // rows * channels
                _for_groups(channels, isa, lambda at, lanes, count: region.emit(base + at, gate + at, at, lanes, count))
        else:
            _over_groups(numel, isa, lambda at, lanes, count: region.emit(at, at, at, lanes, count))
    name = "_".join(dict.fromkeys(step.op for step in program.steps)) or "convert"
    return Kernel(f"float_{name}_{'f32' if program.output is None else 'u8'}", builder.get(), tuple(vectors))


class _Region:
    """Emits a program at any index of the flat tensors."""

    def __init__(
        self, program: FloatProgram, isa: Isa, tensors: list[Buffer], constants: list[Buffer], y: Buffer
    ) -> None:
        self._program, self._isa, self._tensors, self._constants, self._y = program, isa, tensors, constants, y
        self._leaves: tuple[TensorLeaf, ...] = program.tensors

    def emit(self, at: Expr, gate: Expr, channel: Expr, lanes: int, count: int) -> None:
        """Emits `count` vectors of `lanes` elements from `at`.

        Args:
            at: index of the first element.
            gate: index of the first element in tensors with one value per channel.
            channel: channel of the first element.
            lanes: number of lanes of a vector.
            count: 1, or GROUP if bytes are packed.
        """
        output = self._program.output

        def real(offset: int) -> Expr:
            def tensor(i: int) -> Expr:
                return self._tensors[i][ramp((gate if self._leaves[i].gate else at) + offset, lanes)]

            def vector(i: int) -> Expr:
                return self._constants[i][ramp(channel + offset, lanes)]

            return run_program(self._program, lanes, tensor, vector)

        if count == 1 or output is None:
            for i in range(count):
                value = real(i * lanes)
                if output is not None:
                    value = cast(quantize(value, output, lanes), output.q.dtype, lanes)
                T.buffer_store(self._y, value, [ramp(at + i * lanes, lanes)])
            return
        steps = [x86.convert_to_int32(steps_of(real(i * lanes), output, lanes), lanes) for i in range(count)]
        packed = pack_within(steps, output.q.zero_point, output.q.dtype, (output.low, output.high), lanes)
        T.buffer_store(self._y, x86.in_vector_order(packed, output.q.dtype), [ramp(at, GROUP * lanes)])


def _for_groups(count: int, isa: Isa, body: object) -> None:
    """Emits body(at, lanes, vectors) over `count` elements: groups of vectors if bytes are packed, then the rest."""
    wide = GROUP * LANES
    groups = count // wide if isa.packs else 0
    if groups:
        with T.serial(0, groups) as step:
            body(step * wide, LANES, GROUP)  # type: ignore[operator]
    for_vectors(count - groups * wide, lambda at, lanes: body(at + groups * wide, lanes, 1))  # type: ignore[operator]


def _over_groups(numel: Expr, isa: Isa, body: object) -> None:
    """Emits body(at, lanes, vectors) over `numel` elements in parallel."""
    if not isa.packs:
        over_elements(numel, lambda at, lanes: body(at, lanes, 1))  # type: ignore[operator]
        return
    wide, block = GROUP * LANES, 16
    groups = numel // wide
    with (
        T.parallel(0, (groups + (block - 1)) // block) as piece,
        T.serial(0, T.min(block, groups - piece * block)) as step,
    ):
        body((piece * block + step) * wide, LANES, GROUP)  # type: ignore[operator]
    with T.serial(0, numel % wide) as rest:
        body(groups * wide + rest, 1, 1)  # type: ignore[operator]


def _table(item_shape: Sequence[int], entries: np.ndarray) -> Kernel:
    """Returns y[i] = entries[x[i]], for 64 elements at once."""
    with prim_func() as builder:
        T.func_name("main")
        n = symbolic_batch()
        x = argument("x", (n, *item_shape), "uint8")
        c = argument("c", (256,), "uint8")
        y = argument("y", (n, *item_shape), "uint8")
        numel = n * math.prod(item_shape)
        x_flat, y_flat = flat(x, numel), flat(y, numel)
        groups, block = numel // 64, 64
        with (
            T.parallel(0, (groups + (block - 1)) // block) as piece,
            T.serial(0, T.min(block, groups - piece * block)) as step,
        ):
            at = ramp((piece * block + step) * 64, 64)
            T.buffer_store(y_flat, x86.look_up(x_flat[at], [c[ramp(64 * i, 64)] for i in range(4)]), [at])
        with T.serial(0, numel % 64) as rest:
            T.buffer_store(y_flat, c[cast(x_flat[groups * 64 + rest], "int32", 1)], [groups * 64 + rest])
    return Kernel("table_u8", builder.get(), (np.ascontiguousarray(entries),))
