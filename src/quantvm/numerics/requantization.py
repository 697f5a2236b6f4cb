"""Requantization: from the int32 accumulators of a convolution or matrix product to quantized outputs, in NumPy.

There are four formulas: three of the libraries inside PyTorch, and that of numerics=integer. dispatch.py says which
library computes an operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics import fixed_point
from quantvm.numerics.fixed_point import FixedPoint
from quantvm.numerics.torch_engines import (
    F32,
    I64,
    Library,
    QuantParams,
    Values,
    f32,
    f64,
    fma_f32,
    i32,
    i64,
    integers_of,
    reciprocal_f32,
    reciprocal_f64,
)

OfChannels = Callable[[NDArray], NDArray]
"""Maps a vector with one value per channel to another of the same dtype, for example one with gaps."""


@dataclass(frozen=True)
class FbgemmRequantization:
    """FBGEMM: v = fl(acc); v = fl(v + bias) or fma(bias, bias_scale, v); clip(cvt(fl(v*multiplier)) + z); relu: max(z).

    Attributes:
        multiplier_f32: (C,) fl(fl(sa*sw) / so).
        bias_f32: (C,) in steps of sa*sw, or in real values if there is a `bias_scale_f32`; or None.
        bias_scale_f32: (float)(1.0 / (sa*sw)) for weights with one scale; else None.
        output: parameters of the output.
        relu: whether a ReLU follows.
    """

    multiplier_f32: F32
    bias_f32: F32 | None
    bias_scale_f32: np.float32 | None
    output: QuantParams
    relu: bool

    def mapped(self, of_channels: OfChannels) -> FbgemmRequantization:
        """Returns it with every vector of channels replaced."""
        bias = None if self.bias_f32 is None else of_channels(self.bias_f32)
        return replace(self, multiplier_f32=of_channels(self.multiplier_f32), bias_f32=bias)


@dataclass(frozen=True)
class OnednnRequantization:
    """oneDNN: v = fl(fl(acc*sa) * sw); v = fl(v + bias); relu: max(0); rne(clip(fl(fl(v * fl(1/so)) + z))).

    Its AMX kernels multiply once, fl(acc * fl(sa*sw)), in batches larger than `separate_up_to`; its AVX2 kernels
    always do. Its plain C++ code divides by so.

    Attributes:
        source_scale_f32: sa.
        weight_scales_f32: (C,) sw.
        bias_f32: (C,) float bias or None.
        destination_scale_f32: so.
        output: parameters of the output.
        relu: whether a ReLU follows.
        separate_up_to: largest number of images, or rows of a linear layer, for which the accumulator is multiplied by
            the two scales one after the other; 0: never; None: always.
        divides: whether fl(v / so) takes the place of fl(v * fl(1/so)).
    """

    source_scale_f32: np.float32
    weight_scales_f32: F32
    bias_f32: F32 | None
    destination_scale_f32: np.float32
    output: QuantParams
    relu: bool
    separate_up_to: int | None = None
    divides: bool = False

    @property
    def combined_f32(self) -> F32:
        """(C,) fl(sa*sw)."""
        return np.multiply(self.source_scale_f32, self.weight_scales_f32, dtype=f32)

    @property
    def inverse_destination_f32(self) -> np.float32:
        """fl(1/so)."""
        return reciprocal_f32(self.destination_scale_f32)

    def mapped(self, of_channels: OfChannels) -> OnednnRequantization:
        """Returns it with every vector of channels replaced."""
        bias = None if self.bias_f32 is None else of_channels(self.bias_f32)
        return replace(self, weight_scales_f32=of_channels(self.weight_scales_f32), bias_f32=bias)


@dataclass(frozen=True)
class QnnpackRequantization:
    """QNNPACK: v = fl(acc + bias_i32); clip(cvt(fl(v*multiplier)) + z); relu: max(z).

    Attributes:
        multiplier_f32: (C,) fl(fl(sw*sa) * fl(1/so)).
        bias_i32: (C,) in steps of sa*sw, or None.
        output: parameters of the output.
        relu: whether a ReLU follows.
    """

    multiplier_f32: F32
    bias_i32: NDArray[np.int32] | None
    output: QuantParams
    relu: bool

    def mapped(self, of_channels: OfChannels) -> QnnpackRequantization:
        """Returns it with every vector of channels replaced."""
        bias = None if self.bias_i32 is None else of_channels(self.bias_i32)
        return replace(self, multiplier_f32=of_channels(self.multiplier_f32), bias_i32=bias)


@dataclass(frozen=True)
class IntegerRequantization:
    """numerics=integer: clip(fixed_point.multiply(acc + bias_i32, factor) + z); relu: max(z).

    Attributes:
        factor: (C,) sa*sw / so.
        bias_i32: (C,) in steps of sa*sw, or None.
        output: parameters of the output.
        relu: whether a ReLU follows.
    """

    factor: FixedPoint
    bias_i32: NDArray[np.int32] | None
    output: QuantParams
    relu: bool

    def mapped(self, of_channels: OfChannels) -> IntegerRequantization:
        """Returns it with every vector of channels replaced."""
        multiplier, shift = (of_channels(vector) for vector in (self.factor.multiplier, self.factor.shift))
        bias = None if self.bias_i32 is None else of_channels(self.bias_i32)
        return replace(self, factor=replace(self.factor, multiplier=multiplier, shift=shift), bias_i32=bias)


Requantization = FbgemmRequantization | OnednnRequantization | QnnpackRequantization | IntegerRequantization


def requantization(
    library: Library,
    kind: Literal["conv", "linear"],
    *,
    input_q: QuantParams,
    weight_scales: NDArray[np.float64],
    bias_f32: F32 | None,
    output_q: QuantParams,
    relu: bool,
    channels: int,
    separate_up_to: int | None = None,
    divides: bool = False,
) -> Requantization:
    """Returns the constants of a library's formula.

    Args:
        library: from `dispatch.contraction_choice`.
        kind: conv or linear; oneDNN treats their weight scales differently.
        input_q: parameters of the activation.
        weight_scales: (C,) for per-channel weights, (1,) for per-tensor ones.
        bias_f32: (C,) or None.
        output_q: parameters of the output.
        relu: whether a ReLU follows.
        channels: C, the number of output channels.
        separate_up_to: see `OnednnRequantization`.
        divides: see `OnednnRequantization`.

    Exactness: docs/numerics.md, section on convolution and linear.
    """
    per_tensor = weight_scales.size == 1
    weight_scales_f32 = weight_scales.astype(f32)
    scale_in = input_q.scale_f32

    def per_channel(values: NDArray) -> F32:
        return np.ascontiguousarray(np.broadcast_to(values.astype(f32), (channels,)))

    if library == "fbgemm":
        product = np.multiply(scale_in, weight_scales_f32, dtype=f32)
        multiplier = per_channel(np.divide(product, output_q.scale_f32, dtype=f32))
        if bias_f32 is None or not per_tensor:
            bias = None if bias_f32 is None else np.divide(bias_f32, product, dtype=f32)
            return FbgemmRequantization(multiplier, bias, None, output_q, relu)
        return FbgemmRequantization(multiplier, bias_f32, reciprocal_f64(float(product[0])), output_q, relu)
    if library == "onednn":
        weights = weight_scales_f32
        if kind == "linear":
            inverse = 1.0 / (weight_scales if per_tensor else weights.astype(f64))
            weights = np.divide(f32(1), inverse.astype(f32), dtype=f32)
        source = reciprocal_f32(reciprocal_f64(input_q.scale))
        destination = reciprocal_f32(reciprocal_f64(output_q.scale))
        return OnednnRequantization(
            source, per_channel(weights), bias_f32, destination, output_q, relu, separate_up_to, divides
        )
    multiplier = per_channel(
        np.multiply(np.multiply(weight_scales_f32, scale_in, dtype=f32), reciprocal_f32(output_q.scale), dtype=f32)
    )
    bias_i32 = None
    if bias_f32 is not None:
        bias_scale = np.divide(f32(1), (weight_scales * input_q.scale).astype(f32), dtype=f32)
        bias_i32 = np.rint(np.multiply(bias_f32, bias_scale, dtype=f32).astype(f64)).astype(i32)
    return QnnpackRequantization(multiplier, bias_i32, output_q, relu)


def requantize(acc_i32: Values, r: Requantization) -> I64:
    """Returns the quantized output for exact accumulators; batch first, channels last.

    Computes: the formula of the requantization's type.
    Exactness: bit-exact to the three libraries inside torch 2.13, and to TVM 0.16's QNN (docs/numerics.md).
    """
    acc, q = np.asarray(acc_i32, i64), r.output
    if isinstance(r, OnednnRequantization):
        return _by_onednn(acc.astype(f32), r)
    if isinstance(r, FbgemmRequantization):
        v = with_bias_steps(acc.astype(f32), r.bias_f32, r.bias_scale_f32)
        y = integers_of(np.multiply(v, r.multiplier_f32, dtype=f32), q)
    else:
        acc = acc if r.bias_i32 is None else acc + r.bias_i32
        if isinstance(r, QnnpackRequantization):
            y = integers_of(np.multiply(acc.astype(f32), r.multiplier_f32, dtype=f32), q)
        else:
            y = np.clip(fixed_point.multiply(acc, r.factor) + q.zero_point, q.quant_min, q.quant_max)
    return np.maximum(y, q.zero_point) if r.relu else y


def _by_onednn(acc_f32: F32, r: OnednnRequantization) -> I64:
    is_combined = r.separate_up_to is not None and len(acc_f32) > r.separate_up_to
    scales = (r.combined_f32,) if is_combined else (r.source_scale_f32, r.weight_scales_f32)
    v = real_values(acc_f32, scales, r.bias_f32)
    v = np.maximum(v, f32(0)) if r.relu else v
    if r.divides:
        steps = np.divide(v, r.destination_scale_f32, dtype=f32)
    else:
        steps = np.multiply(v, r.inverse_destination_f32, dtype=f32)
    return integers_of(steps, r.output, zero_point="before", saturates=True)


def with_bias_steps(acc_f32: F32, bias_f32: Values | None, bias_scale_f32: Any = None) -> F32:
    """Returns fl(acc + bias), the bias in steps of the accumulator; if there is a scale, fma(bias, bias_scale, acc)."""
    if bias_f32 is None:
        return acc_f32
    if bias_scale_f32 is not None:
        return fma_f32(bias_f32, bias_scale_f32, acc_f32)
    return np.add(acc_f32, bias_f32, dtype=f32)


def real_values(acc_f32: F32, scales: tuple[Values, ...], bias_f32: Values | None) -> F32:
    """Returns the real values of accumulators: fl(...fl(fl(acc * scales[0]) * scales[1])... + bias)."""
    v = acc_f32
    for scale in scales:
        v = np.multiply(v, scale, dtype=f32)
    return v if bias_f32 is None else np.add(v, bias_f32, dtype=f32)
