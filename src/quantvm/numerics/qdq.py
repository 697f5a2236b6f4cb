"""The arithmetic of numerics=qdq, in NumPy: dequantize, float32 operators one by one, quantize, as in the QDQ form.

PT2E's `quantized_decomposed` operators and ONNX's QuantizeLinear define quantize and dequantize exactly. Between them
are float32 operators: a `FloatProgram`, in which every operator rounds its result. Only the order of summation in
convolutions and matrix products is not prescribed by any reference. Here products are summed as exact integers, which
has the least error of all orders; a result differs from a reference's where the reference's error crosses a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics.float_operators import numpy_arithmetic
from quantvm.numerics.torch_engines import (
    F32,
    QuantParams,
    Values,
    dequantize_val,
    f32,
    i64,
    reciprocal_f64,
    round_to_integers,
)

_FLOAT32 = numpy_arithmetic(f32)
"""Every operator rounds its result. Inside of formulas exp is correctly rounded; in kernels its last bit may differ."""


@dataclass(frozen=True)
class Quantization:
    """How a float32 tensor is quantized.

    Computes: clip(rne(fl(x * (float)(1/scale))) + zero_point, low, high), or rne(fl(x / scale)) if `divides`.
    Exactness: `quantized_decomposed.quantize_per_tensor` (torch/ao/quantization/fx/_decomposed.py), bit for bit; if
        `divides`, QuantizeLinear of ONNX; if `ties_away` besides, QUANTIZE of float32 in TFLite's reference kernels.

    Attributes:
        q: parameters.
        low, high: range of the integers, within that of the dtype.
        divides: whether x is divided by the scale, not multiplied by its reciprocal.
        ties_away: whether halves round away from zero, not to even.
    """

    q: QuantParams
    low: int
    high: int
    divides: bool = False
    ties_away: bool = False

    @classmethod
    def full_range(cls, q: QuantParams, *, divides: bool, ties_away: bool = False) -> Quantization:
        """Returns a quantization with the full range of the dtype."""
        return cls(q, q.quant_min, q.quant_max, divides, ties_away)

    def limited(self, low: int, high: int) -> Quantization:
        """Returns this quantization with its integers further limited to [low, high]."""
        low, high = max(self.low, low), min(self.high, high)
        return replace(self, low=low, high=max(low, high))


def quantize(x_f32: Values, quantization: Quantization) -> NDArray[np.int64]:
    """Quantizes float32 values by the formula of `Quantization`."""
    q = quantization.q
    if quantization.divides:
        steps = np.divide(x_f32, q.scale_f32, dtype=f32)
    else:
        steps = np.multiply(x_f32, reciprocal_f64(q.scale), dtype=f32)
    rounded = round_to_integers(steps, "away" if quantization.ties_away else "even")
    return np.clip(rounded + q.zero_point, quantization.low, quantization.high).astype(i64)


def multiplier(input_q: QuantParams, weight_scales: NDArray[np.float64], channels: int) -> F32:
    """Returns (channels,) fl(sa * sw), the real value of one unit of an integer accumulator."""
    product = np.multiply(input_q.scale_f32, weight_scales.astype(f32), dtype=f32)
    return np.ascontiguousarray(np.broadcast_to(product, (channels,)))


# ------------------------------------------------------------------ programs


@dataclass(frozen=True)
class TensorLeaf:
    """An input: integers that are dequantized by fl(scale * (x - zero_point)), or float32 values if `q` is None.

    With `gate` it has one value per channel: (n, 1, 1, C).
    """

    q: QuantParams | None
    gate: bool = False

    @property
    def dtype(self) -> str:
        """Dtype of the tensor."""
        return "float32" if self.q is None else self.q.dtype


@dataclass(frozen=True)
class AccumulatorLeaf:
    """fl(acc * multiplier) of an exact int32 accumulator; the first leaf of a contraction's program."""

    multiplier_f32: F32


@dataclass(frozen=True)
class ChannelLeaf:
    """A constant for each channel, (C,) float32."""

    values_f32: F32


@dataclass(frozen=True)
class ScalarLeaf:
    """A float32 constant."""

    value: float


Leaf = TensorLeaf | AccumulatorLeaf | ChannelLeaf | ScalarLeaf


@dataclass(frozen=True)
class Step:
    """One operator.

    Attributes:
        op: a name of `FLOAT_OPERATORS`, or `requantize`: quantize and dequantize again.
        args: indices of registers, which are the leaves in order, then the results of the steps.
        options: further numeric arguments, like the limits of clip.
        quantization: that of `requantize`.
    """

    op: str
    args: tuple[int, ...]
    options: tuple[float, ...] = ()
    quantization: Quantization | None = None


@dataclass(frozen=True)
class FloatProgram:
    """Element-wise float32 operators between integers; the last register is the result.

    Attributes:
        leaves: inputs, accumulators and constants.
        steps: operators, in order.
        output: how the result is quantized; None if it stays float32.
    """

    leaves: tuple[Leaf, ...]
    steps: tuple[Step, ...]
    output: Quantization | None

    @property
    def tensors(self) -> tuple[TensorLeaf, ...]:
        """The leaves that are inputs, in order."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, TensorLeaf))

    @property
    def accumulator(self) -> AccumulatorLeaf | None:
        """The leaf that holds the accumulators of a contraction, if there is one."""
        return next((leaf for leaf in self.leaves if isinstance(leaf, AccumulatorLeaf)), None)

    @property
    def out_dtype(self) -> str:
        """Dtype of the result."""
        return "float32" if self.output is None else self.output.q.dtype

    def channel_vectors(self) -> list[F32]:
        """Returns the per-channel constants: the accumulators' multiplier and every `ChannelLeaf`, in order."""
        vectors = []
        for leaf in self.leaves:
            if isinstance(leaf, AccumulatorLeaf):
                vectors.append(leaf.multiplier_f32)
            elif isinstance(leaf, ChannelLeaf):
                vectors.append(leaf.values_f32)
        return vectors


def evaluate(program: FloatProgram, tensors: Sequence[Values], acc_i32: Values | None = None) -> NDArray:
    """Returns the result of a program. All arrays have their channels last.

    Args:
        program: the program.
        tensors: an array for each `TensorLeaf`, integers or float32.
        acc_i32: accumulators, if the program has a leaf for them.
    """
    given = iter(tensors)
    registers: list[F32] = []
    for leaf in program.leaves:
        if isinstance(leaf, TensorLeaf):
            x = next(given)
            registers.append(np.asarray(x, f32) if leaf.q is None else dequantize_val(x, leaf.q))
        elif isinstance(leaf, AccumulatorLeaf):
            registers.append(np.multiply(np.asarray(acc_i32).astype(f32), leaf.multiplier_f32, dtype=f32))
        elif isinstance(leaf, ChannelLeaf):
            registers.append(leaf.values_f32)
        else:
            registers.append(np.asarray(leaf.value, f32))
    for step in program.steps:
        args = [registers[i] for i in step.args]
        if step.op == "requantize":
            assert step.quantization is not None
            registers.append(dequantize_val(quantize(args[0], step.quantization), step.quantization.q))
        else:
            registers.append(np.asarray(getattr(_FLOAT32, step.op)(*args, *step.options), f32))
    result = registers[-1]
    return result if program.output is None else quantize(result, program.output).astype(program.out_dtype)


def table(program: FloatProgram) -> NDArray | None:
    """Returns the (256,) results for all inputs if the program has one quantized tensor and only scalars; else None."""
    (*tensors,) = program.tensors
    if len(tensors) != 1 or tensors[0].q is None or program.output is None:
        return None
    if any(isinstance(leaf, (AccumulatorLeaf, ChannelLeaf)) for leaf in program.leaves):
        return None
    return evaluate(program, [np.arange(256, dtype=i64) + tensors[0].q.quant_min])
