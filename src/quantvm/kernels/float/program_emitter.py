"""TIR form of `numerics.qdq.FloatProgram`: float32 operators on vectors, each of which rounds its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm.tirx.script.builder as T
from tvm import tirx

from quantvm.kernels.arithmetic import dequantize_val
from quantvm.kernels.builder import LANES, Expr, cast, clamp, fma, local, ramp, round_even, rounded, splat
from quantvm.numerics.float_operators import FLOAT_OPERATORS, Arithmetic, FloatOperator
from quantvm.numerics.qdq import AccumulatorLeaf, ChannelLeaf, FloatProgram, Quantization, ScalarLeaf, Step, TensorLeaf
from quantvm.numerics.torch_engines import f32, reciprocal_f64

_MOST_STEPS = 65536.0
"""Steps are limited to this: more saturates any byte anyway, and might not fit when converted to int32."""
_PAST_A_TIE = 1 + 2.0**-9
"""Factor that moves halves of up to 256 steps away from zero, but not as far as the next integer."""
_TO_INTEGERS = 1.5 * 2.0**23
"""Adding and subtracting it rounds numbers below 2**22 in magnitude to the nearest integer, ties to even."""


def steps_of(x_f32: Expr, quantization: Quantization, lanes: int) -> Expr:
    """Returns x in steps of the scale, as float32 before rounding, limited to at most `_MOST_STEPS`.

    If halves round away from zero, they are moved off the middle, so that any rounding to nearest gives that result.
    """
    q = quantization.q
    if quantization.divides:
        steps = tirx.div(x_f32, splat(q.scale_f32, lanes, "float32"))
    else:
        steps = x_f32 * splat(reciprocal_f64(q.scale), lanes, "float32")
    steps = T.min(steps, splat(_MOST_STEPS, lanes, "float32"))
    return behind_ties(steps, lanes) if quantization.ties_away else steps


def behind_ties(steps: Expr, lanes: int) -> Expr:
    """Moves halves of up to 256 away from zero, so that rounding to nearest even rounds them away from zero."""
    off = steps - round_even(steps)  # exact
    half = off * off == splat(0.25, lanes, "float32")
    return tirx.Select(half, steps * splat(_PAST_A_TIE, lanes, "float32"), steps)


def quantize_steps(x_f32: Expr, quantization: Quantization, lanes: int, *, stays_float: bool = False) -> Expr:
    """Returns float32 integers: clip(rne(steps) + zero_point) - zero_point.

    Args:
        x_f32: values to quantize.
        quantization: how to quantize them.
        lanes: number of lanes of the vector.
        stays_float: whether float operators follow, to which -0 would be visible; an integer minus a zero point is
            never -0. `nearbyint` keeps the sign of values that it rounds to zero; a sum that cancels out is +0.
    """
    zero, steps = quantization.q.zero_point, steps_of(x_f32, quantization, lanes)
    low, high = (splat(float(bound - zero), lanes, "float32") for bound in (quantization.low, quantization.high))
    if not stays_float:
        return clamp(round_even(steps), low, high)
    shift = splat(_TO_INTEGERS, lanes, "float32")
    return clamp(rounded(steps + shift, lanes) - shift, low, high)


def quantize(x_f32: Expr, quantization: Quantization, lanes: int) -> Expr:
    """Returns `numerics.qdq.quantize` as int32."""
    value = cast(quantize_steps(x_f32, quantization, lanes), "int32", lanes)
    return value + splat(quantization.q.zero_point, lanes, "int32")


def run_program(
    program: FloatProgram, lanes: int, tensor: Callable[[int], Expr], vector: Callable[[int], Expr],
    acc_i32: Expr | None = None,
) -> Expr:  # fmt: skip
    """Emits the operators on one vector and returns the float32 result, before it is quantized.

    Args:
        program: what to compute.
        lanes: elements of the vector.
        tensor: load of the i-th tensor.
        vector: load of the i-th per-channel constant.
        acc_i32: the accumulators, if the program has a leaf for them.
    """
    registers: list[Expr] = []
    n_tensors = n_vectors = 0
    uses = _uses(program)
    for index, leaf in enumerate(program.leaves):
        if isinstance(leaf, TensorLeaf):
            x = tensor(n_tensors)
            value = x if leaf.q is None else dequantize_val(x, leaf.q, lanes)
            n_tensors += 1
        elif isinstance(leaf, AccumulatorLeaf):
            value = rounded(cast(acc_i32, "float32", lanes) * vector(n_vectors), lanes)
            n_vectors += 1
        elif isinstance(leaf, ChannelLeaf):
            value = vector(n_vectors)
            n_vectors += 1
        else:
            assert isinstance(leaf, ScalarLeaf)
            value = splat(leaf.value, lanes, "float32")
        registers.append(_kept(value, lanes) if uses[index] > 1 and not isinstance(leaf, ScalarLeaf) else value)
    for index, step in enumerate(program.steps, len(program.leaves)):
        value = _apply(step, [registers[i] for i in step.args], lanes)
        registers.append(_kept(value, lanes) if uses[index] > 1 else value)
    return registers[-1]


def _uses(program: FloatProgram) -> list[int]:
    uses = [0] * (len(program.leaves) + len(program.steps))
    for step in program.steps:
        for argument in step.args:
            uses[argument] += _reads(step.op)
    return uses


def _kept(value: Expr, lanes: int) -> Expr:
    """Stores a value that is read more than once in a register, and returns that."""
    register = local(lanes, "float32")
    T.buffer_store(register, value, [ramp(0, lanes)])
    return register[ramp(0, lanes)]


def _reads(op: str) -> int:
    return 1 if op == "requantize" else FLOAT_OPERATORS[op].reads


def _apply(step: Step, args: Sequence[Expr], lanes: int) -> Expr:
    if step.op == "requantize":
        assert step.quantization is not None
        scale = splat(step.quantization.q.scale_f32, lanes, "float32")
        return rounded(quantize_steps(args[0], step.quantization, lanes, stays_float=True) * scale, lanes)
    return getattr(_vector_arithmetic(lanes), step.op)(*args, *step.options)


@dataclass(frozen=True)
class _Vectors:
    """Functions of float32 registers for which Python has no operator sign; `FloatOperator.tir` receives them."""

    lanes: int

    def number(self, value: float) -> Expr:
        return splat(f32(value), self.lanes, "float32")

    def rounded(self, product: Expr) -> Expr:
        return rounded(product, self.lanes)

    def divide(self, a: Expr, b: Expr) -> Expr:
        return tirx.div(a, b)

    def maximum(self, a: Expr, b: Expr) -> Expr:
        return T.max(a, b)

    def minimum(self, a: Expr, b: Expr) -> Expr:
        return T.min(a, b)

    def select(self, condition: Expr, a: Expr, b: Expr) -> Expr:
        return tirx.Select(condition, a, b)

    def abs(self, a: Expr) -> Expr:
        return tirx.abs(a)

    def exp(self, a: Expr) -> Expr:
        return exp(a, self.lanes)


def _vector_arithmetic(lanes: int) -> Arithmetic:
    vectors = _Vectors(lanes)

    def apply(operator: FloatOperator, *operands: Any) -> Expr:
        registers = [vectors.number(x) if isinstance(x, (int, float)) else x for x in operands]
        if operator.formula is not None:
            return operator.formula(arithmetic, *registers)
        assert operator.tir is not None
        return operator.tir(vectors, *registers)

    arithmetic = Arithmetic(apply)
    return arithmetic


_LOG2_E = f32(1.4426950408889634)
_LN_2_HIGH, _LN_2_LOW = f32(0.693359375), f32(-2.12194440e-4)
_EXP_COEFFICIENTS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_EXP_RANGE = (-87.3, 88.3)


def exp(x_f32: Expr, lanes: int = LANES) -> Expr:
    """Returns e**x within one unit in the last place; limited to the range of normal numbers.

    Computes: x = k*ln2 + r with |r| <= ln2/2; 2**k * (1 + r + r**2 * p(r)).
    Reference: S. L. Moshier, Cephes Mathematical Library, expf.
    """

    def number(value: float | np.float32) -> Expr:
        return splat(f32(value), lanes, "float32")

    x = _kept(clamp(x_f32, number(_EXP_RANGE[0]), number(_EXP_RANGE[1])), lanes)
    k = _kept(round_even(x * number(_LOG2_E)), lanes)
    r = _kept(fma(k, number(-_LN_2_LOW), fma(k, number(-_LN_2_HIGH), x, lanes), lanes), lanes)
    polynomial = number(_EXP_COEFFICIENTS[0])
    for coefficient in _EXP_COEFFICIENTS[1:]:
        polynomial = fma(polynomial, r, number(coefficient), lanes)
    y = fma(polynomial, r * r, r + number(1.0), lanes)
    exponent = (cast(k, "int32", lanes) + splat(127, lanes, "int32")) << splat(23, lanes, "int32")
    return y * tirx.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", exponent)
