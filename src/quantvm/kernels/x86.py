"""AVX512 instructions that LLVM does not choose on its own, as expressions on vectors of 128, 256 or 512 bits."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from .builder import Expr, intrinsic, splat, typed

BYTES_PER_SEGMENT = 16
"""Packs and interleaves work within segments of 128 bits."""

_NEAREST_EVEN = 8
"""Rounding operand of a conversion: to nearest, ties to even, independent of the thread's rounding mode."""


def convert_to_int32(x_f32: Expr, lanes: int) -> Expr:
    """Returns cvtps2dq: rounded to nearest, ties to even; INT32_MIN for results that do not fit.

    Args:
        x_f32: float32 vector.
        lanes: 4, 8 or 16.
    """
    if lanes == 16:
        nothing, everything = splat(0, 16, "int32"), tirx.const(-1, "int16")
        rounding = tirx.const(_NEAREST_EVEN, "int32")
        return intrinsic("llvm.x86.avx512.mask.cvtps2dq.512", "int32x16", x_f32, nothing, everything, rounding)
    name = "llvm.x86.avx.cvt.ps2dq.256" if lanes == 8 else "llvm.x86.sse2.cvtps2dq"
    return intrinsic(name, typed("int32", lanes), x_f32)


_PACK = {4: "llvm.x86.sse2.{}.128", 8: "llvm.x86.avx2.{}", 16: "llvm.x86.avx512.{}.512"}


def pack_to_bytes(vectors: Sequence[Expr], zero_point: int, dtype: str, lanes: int) -> Expr:
    """Packs four int32 vectors into bytes: saturated to int16, plus the zero point, saturated to `dtype`.

    Byte 16s + 4v + i of the result is lane 4s + i of vector v: the vectors' segments alternate.

    Args:
        vectors: four of `lanes` int32.
        zero_point: added with saturation to int16.
        dtype: uint8 or int8.
        lanes: 4, 8 or 16.
    """
    words = []
    for first, second in (vectors[:2], vectors[2:]):
        word = intrinsic(_PACK[lanes].format("packssdw"), typed("int16", 2 * lanes), first, second)
        if zero_point:
            word = intrinsic("llvm.sadd.sat", typed("int16", 2 * lanes), word, splat(zero_point, 2 * lanes, "int16"))
        words.append(word)
    name = "packuswb" if dtype == "uint8" else "packsswb"
    return intrinsic(_PACK[lanes].format(name), typed(dtype, 4 * lanes), *words)


def shuffle(vectors: Sequence[Expr], indices: Sequence[int]) -> Expr:
    """Returns the elements of the concatenated vectors at constant indices."""
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in indices])


def in_vector_order(packed: Expr, dtype: str) -> Expr:
    """Returns the 64 bytes of `pack_to_bytes` reordered, vector after vector.

    Apply limits before it: if they follow, and fewer than 16 bytes of a vector are stored, LLVM's shuffle combining
    loops forever on CPUs with VBMI.
    """
    words = tirx.reinterpret("int32x16", packed)
    return tirx.reinterpret(typed(dtype, 64), shuffle([words], [4 * s + v for v in range(4) for s in range(4)]))


def interleave(a: Expr, b: Expr, count: int, unit: int, high: bool) -> Expr:
    """Returns alternating units of a and b, from the lower or the higher half of each 128-bit segment.

    Args:
        a: vector of `count` bytes.
        b: vector of `count` bytes.
        count: 16, 32 or 64.
        unit: bytes of a unit: 1 or 2.
        high: whether the higher half is used.
    """
    half = BYTES_PER_SEGMENT // 2
    indices = [
        source * count + segment + half * high + at + byte
        for segment in range(0, count, BYTES_PER_SEGMENT)
        for at in range(0, half, unit)
        for source in (0, 1)
        for byte in range(unit)
    ]
    return shuffle([a, b], indices)


def look_up(x_u8: Expr, quarters: Sequence[Expr], count: int = 64) -> Expr:
    """Returns the entries of a table of 256 bytes at `count` indices.

    Args:
        x_u8: vector of `count` uint8.
        quarters: the table as four uint8x64 vectors.
        count: 8, 16, 32 or 64.
    """
    if count < 64:
        wide = shuffle([x_u8] * (64 // count), range(64))
        return shuffle([look_up(wide, quarters)], range(count))

    def of_half(first: Expr, second: Expr) -> Expr:
        return intrinsic("llvm.x86.avx512.vpermi2var.qi.512", "uint8x64", first, x_u8, second)

    return tirx.Select(x_u8 < splat(128, 64, "uint8"), of_half(*quarters[:2]), of_half(*quarters[2:]))


_PAIRS = {4: "llvm.x86.ssse3.pmadd.ub.sw.128", 8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}


def multiply_pairs(x_u8: Expr, w_i8: Expr, lanes: int) -> Expr:
    """Returns vpmaddubsw of 4*lanes bytes: int16 x[2i]*w[2i] + x[2i+1]*w[2i+1], saturated."""
    return intrinsic(_PAIRS[lanes], typed("int16", 2 * lanes), x_u8, w_i8)


def add_word_pairs(acc_i32: Expr, words_i16: Expr, lanes: int) -> Expr:
    """Returns vpdpwssd with ones: acc[i] + words[2i] + words[2i+1], exact."""
    name = f"llvm.x86.avx512.vpdpwssd.{32 * lanes}"
    return intrinsic(name, typed("int32", lanes), acc_i32, words_i16, splat(1, 2 * lanes, "int16"))


def dot_bytes(acc_i32: Expr, x_u8: Expr, w_i8: Expr, lanes: int) -> Expr:
    """Returns vpdpbusd: acc[i] + the sum of four products, exact."""
    return intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", typed("int32", lanes), acc_i32, x_u8, w_i8)


def widen(x_u8: Expr, count: int, high: bool) -> Expr:
    """Returns the lower or the higher half of each 128-bit segment of `count` bytes as int16; `narrow` undoes it."""
    zeros = splat(0, count, "uint8")
    return tirx.reinterpret(typed("int16", count // 2), interleave(x_u8, zeros, count, 1, high))


def narrow(low_i16: Expr, high_i16: Expr, lanes: int) -> Expr:
    """Returns packuswb: two vectors of 2*lanes int16, as `widen` makes them, saturated to uint8."""
    return intrinsic(_PACK[lanes].format("packuswb"), typed("uint8", 4 * lanes), low_i16, high_i16)


_HIGH = {4: "llvm.x86.ssse3.pmul.hr.sw.128", 8: "llvm.x86.avx2.pmul.hr.sw", 16: "llvm.x86.avx512.pmul.hr.sw.512"}


def multiply_high(a_i16: Expr, b_i16: Expr, lanes: int) -> Expr:
    """Returns vpmulhrsw: (a*b + 2^14) >> 15 of 2*lanes int16."""
    return intrinsic(_HIGH[lanes], typed("int16", 2 * lanes), a_i16, b_i16)
