"""Convolutions and matrix products: exact accumulators, and every way to requantize them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics import fixed_point
from quantvm.numerics import integer as integer_numerics
from quantvm.numerics.dispatch import onednn_avx2_linear_cut
from quantvm.numerics.requantization import OnednnRequantization, real_values, requantization, with_bias_steps
from quantvm.numerics.torch_engines import Library, f32, f64, i64, reciprocal_f32

from .facts import Facts
from .family import Family, register_family
from .operator import Environment, Operator, Window
from .rounding import fixed_point_rounding, integers_under, scaled

OPTIONS = {
    "rounding": ("even", "away", "upward", "down", "towards_zero"),
    "zero_point": ("after", "before", "fma", "dropped"),
    "multiplier": ("one", "reciprocal", "three", "two", "plain", "division", "real", "fixed"),
    "bias": ("division", "fma", "real", "int32", "int32_away", "dropped"),
    "saturation": ("none", "pairs", "channel_pairs", "half_pairs"),
    "input_zero_point": ("subtracted", "dropped"),
    "padding": ("zero_point", "zero", "skipped"),
}
_STRUCTURE = ("saturation", "input_zero_point", "padding")
_REAL = ("three", "two", "plain", "division", "real")


def is_valid(operator: Operator, facts: Facts) -> bool:
    """Whether the facts can be combined into a formula that this operator can tell from others."""
    multiplier, bias, where = facts["multiplier"], facts["bias"], facts["zero_point"]
    if bias == "real" and operator.bias_f32 is not None and multiplier not in _REAL:
        return False
    if multiplier == "fixed" and (bias in ("division", "fma") and operator.bias_f32 is not None):
        return False
    if multiplier == "fixed" and (where in ("before", "fma") or facts["rounding"] in ("down", "towards_zero")):
        return False
    if where == "fma" and multiplier not in ("one", "reciprocal"):
        return False
    if facts["saturation"] == "channel_pairs" and not pairs_can_cross_taps(operator):
        return False
    if facts["saturation"] == "half_pairs" and pair_cut(operator) is None:
        return False
    padded = operator.window is not None and any(operator.window.padding)
    if facts["padding"] == "skipped":
        return padded and facts["saturation"] != "none"
    return padded or facts["padding"] == "zero_point"


def pairs_can_cross_taps(operator: Operator) -> bool:
    """Whether pairing products along the whole window differs from pairing along the channels of each tap."""
    assert operator.weight is not None
    return operator.window is not None and operator.weight.shape[1] % 2 == 1 and operator.window.kernel != (1, 1)


def pair_cut(operator: Operator) -> int | None:
    """Returns the index at which oneDNN restarts the pairing of a matrix product; None if that changes nothing."""
    assert operator.weight is not None
    return onednn_avx2_linear_cut(operator.weight.shape[1]) if operator.window is None else None


def evaluate(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: dict[Any, Any],
    select: NDArray | None,
) -> NDArray:  # fmt: skip
    """Returns the integers of a convolution or matrix product under `facts`."""
    (x,) = inputs
    products = _products(operator, x, facts["padding"], cache)
    key = tuple(facts[fact] for fact in _STRUCTURE)
    shape = products.logical_shape
    if select is None:
        if key not in cache:
            cache[key] = products.accumulators(facts)
        channels = shape[1] if operator.kind == "conv2d" else shape[-1]
        y = _requantized(operator, cache[key].reshape(-1, channels), np.arange(channels), facts)
        return _logical(operator, y.reshape(cache[key].shape))
    at = np.unravel_index(select, shape)
    if operator.kind == "conv2d":
        n, channel, row, column = at
        pixel = (n * shape[2] + row) * shape[3] + column
    else:
        *leading, channel = at
        pixel = np.ravel_multi_index(leading, shape[:-1])
    selected_key = (*key, "selected")
    if selected_key not in cache:
        cache[selected_key] = products.selected(facts, pixel, channel)
    return _requantized(operator, cache[selected_key], channel, facts)


def exact(operator: Operator, inputs: Sequence[NDArray], cache: dict[Any, Any]) -> NDArray[np.float64]:
    """Returns the result in steps of the output, without zero point, in float64."""
    (x,) = inputs
    facts = {"saturation": "none", "input_zero_point": "subtracted", "padding": "zero_point"}
    key = tuple(facts[fact] for fact in _STRUCTURE)
    if key not in cache:
        cache[key] = _products(operator, x, "zero_point", cache).accumulators(facts)
    vectors = _Vectors(operator)
    steps = cache[key] * vectors.factor
    if operator.bias_f32 is not None:
        steps = steps + operator.bias_f32.astype(f64) / f64(operator.output.scale_f32)
    return _logical(operator, steps)


def _logical(operator: Operator, y: NDArray) -> NDArray:
    return y.transpose(0, 3, 1, 2) if operator.kind == "conv2d" else y


# ------------------------------------------------------------------ accumulators


class _Products:
    """The operands of a contraction as float64 matrices: all sums of products are exact, as none reaches 2^53.

    Attributes:
        columns: (groups, pixels, taps): the elements that each output pixel reads.
        taps: (groups, O/groups, taps) weights as stored; zero_points: (groups, O/groups, 1).
        logical_shape: of the output, in PyTorch's order.
    """

    _inside: NDArray[np.float64] | None = None
    """Which elements of `columns` lie inside of the image; given if sums of pairs leave out the padding."""

    def __init__(self, operator: Operator, x: NDArray, fill: int, *, skips_padding: bool = False) -> None:
        assert operator.weight is not None
        assert operator.weight_zero_points is not None
        weight, groups = operator.weight, 1
        self._channels, self._cut = weight.shape[1], pair_cut(operator)
        self._zero_point, self._is_conv = operator.inputs[0].zero_point, operator.window is not None
        if operator.window is None:
            self.columns = x.reshape(1, -1, x.shape[-1]).astype(f64)
            self.logical_shape: tuple[int, ...] = (*x.shape[:-1], weight.shape[0])
        else:
            groups = operator.window.groups
            self.columns, size = _columns(operator.window, x, fill)
            if skips_padding:
                self._inside = _columns(operator.window, np.ones_like(x), 0)[0]
            self.logical_shape = (x.shape[0], weight.shape[0], *size)
            weight = weight.transpose(0, 2, 3, 1)
        self.taps = weight.reshape(groups, weight.shape[0] // groups, -1).astype(f64)
        spread = np.broadcast_to(operator.weight_zero_points, (weight.shape[0],))
        self.zero_points = spread.reshape(groups, -1, 1).astype(f64)

    def accumulators(self, facts: Facts) -> NDArray[np.int64]:
        """Returns sum((x - zx) * (w - zw)) for all outputs, channels last."""
        centred = self.columns - self._centre(facts)
        if self._saturates(facts):
            corrections = np.matmul(centred, np.broadcast_to(self.zero_points, self.taps.shape).transpose(0, 2, 1))
            acc = self._paired(facts) - self._centre(facts) * self.taps.sum(2)[:, None, :] - corrections
        else:
            acc = np.matmul(centred, (self.taps - self.zero_points).transpose(0, 2, 1))
        shape = self.logical_shape
        if self._is_conv:
            n, channels, *size = shape
            shape = (n, *size, channels)
        return np.ascontiguousarray(acc.transpose(1, 0, 2)).reshape(shape).astype(i64)

    def selected(self, facts: Facts, pixel: NDArray, channel: NDArray) -> NDArray[np.int64]:
        """Returns the accumulators of some outputs."""
        group, member = np.divmod(channel, self.taps.shape[1])
        x, w, centre = self.columns[group, pixel], self.taps[group, member], self._centre(facts)
        corrections = ((x - centre) * self.zero_points[group, member]).sum(1)
        if not self._saturates(facts):
            return (((x - centre) * w).sum(1) - corrections).astype(i64)
        of_padding: Any = 0
        if self._inside is not None:
            inside = self._inside[group, pixel]
            of_padding, x = (x * w * (1 - inside)).sum(1), x * inside
        products = self._pairable(x * w, facts)
        pairs = np.clip(products[:, ::2] + products[:, 1::2], -32768, 32767).sum(1) + of_padding
        return (pairs - centre * w.sum(1) - corrections).astype(i64)

    def _centre(self, facts: Facts) -> int:
        return 0 if facts["input_zero_point"] == "dropped" else self._zero_point

    def _saturates(self, facts: Facts) -> bool:
        """Whether sums of pairs saturate, and these activations can make them do so."""
        if facts["saturation"] == "none":
            return False
        taps = self._pairable(np.abs(self.taps), facts)
        return float(self.columns.max(initial=0)) * float((taps[..., ::2] + taps[..., 1::2]).max()) > 32767

    def _paired(self, facts: Facts) -> NDArray[np.float64]:
        """Returns (groups, pixels, O/groups) accumulators; every sum of two products saturates as in vpmaddubsw."""
        columns, total = self.columns, np.zeros((*self.columns.shape[:2], self.taps.shape[1]))
        if self._inside is not None:
            total += np.matmul(columns * (1 - self._inside), self.taps.transpose(0, 2, 1))
            columns = columns * self._inside
        columns, taps = self._pairable(columns, facts), self._pairable(self.taps, facts)
        for i in range(0, columns.shape[2], 2):
            pair = np.matmul(columns[:, :, i : i + 2], taps[:, :, i : i + 2].transpose(0, 2, 1))
            total += np.clip(pair, -32768, 32767)
        return total

    def _pairable(self, values: NDArray, facts: Facts) -> NDArray:
        """Reorders values along the window, the last dimension, so that those at 2i and 2i+1 form a pair."""
        if facts["saturation"] == "channel_pairs":
            values = values.reshape(*values.shape[:-1], -1, self._channels)
        if facts["saturation"] == "half_pairs" and self._cut is not None:
            values = np.insert(values, self._cut, 0, axis=-1)
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
        return values.reshape(*values.shape[:-2], -1) if facts["saturation"] == "channel_pairs" else values


def _products(operator: Operator, x: NDArray, padding: str, cache: dict[Any, Any]) -> _Products:
    if ("products", padding) not in cache:
        fill = 0 if padding == "zero" else operator.inputs[0].zero_point
        cache["products", padding] = _Products(operator, x, fill, skips_padding=padding == "skipped")
    found: _Products = cache["products", padding]
    return found


def _columns(window: Window, x: NDArray, fill: int) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Returns what each output pixel reads, (groups, pixels, KH*KW*I/groups), and the output's height and width."""
    top, left, bottom, right = window.padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill).astype(f64)
    span = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3))
    views = views[:, :, :: window.stride[0], :: window.stride[1], :: window.dilation[0], :: window.dilation[1]]
    n, channels, height, width, kernel_h, kernel_w = views.shape
    split = views.reshape(n, window.groups, channels // window.groups, height, width, kernel_h, kernel_w)
    columns = split.transpose(1, 0, 3, 4, 5, 6, 2).reshape(window.groups, n * height * width, -1)
    return columns, (height, width)


# ------------------------------------------------------------------ requantization


def _requantized(operator: Operator, acc: NDArray, channel: NDArray, facts: Facts) -> NDArray:
    """Requantizes accumulators; `channel` gives the output channel of each."""
    vectors = _Vectors(operator)
    q, multiplier = operator.output, facts["multiplier"]
    bias = facts["bias"] if operator.bias_f32 is not None else "dropped"
    if bias in ("int32", "int32_away"):
        acc = acc + (vectors.bias_i32 if bias == "int32" else vectors.bias_i32_away)[channel]
    if multiplier == "fixed":
        factor = fixed_point.fixed_point(vectors.factor[channel], fixed_point_rounding(facts))
        zero_point = 0 if facts["zero_point"] == "dropped" else q.zero_point
        y = np.clip(fixed_point.multiply(acc, factor) + zero_point, q.quant_min, q.quant_max)
    else:
        requantized = _from_steps if multiplier in ("one", "reciprocal") else _from_real
        y = requantized(vectors, _with_bias_steps(vectors, acc.astype(f32), channel, bias), channel, facts)
    return np.maximum(y, q.zero_point) if operator.relu else y


def _with_bias_steps(vectors: _Vectors, acc_f32: NDArray, channel: NDArray, bias: str) -> NDArray:
    """Adds a bias in steps of the accumulator, if that is the rule."""
    if bias == "division":
        return with_bias_steps(acc_f32, vectors.bias_steps[channel])
    if bias == "fma":
        assert vectors.operator.bias_f32 is not None
        return with_bias_steps(acc_f32, vectors.operator.bias_f32[channel], vectors.bias_scale[channel])
    return acc_f32


def _from_steps(vectors: _Vectors, acc_f32: NDArray, channel: NDArray, facts: Facts) -> NDArray:
    """Requantizes accumulators by one factor to steps of the output, as FBGEMM and QNNPACK do."""
    factor = vectors.fbgemm if facts["multiplier"] == "one" else vectors.qnnpack
    return scaled(acc_f32, factor[channel], vectors.operator.output, facts, saturates=False)


def _from_real(vectors: _Vectors, acc_f32: NDArray, channel: NDArray, facts: Facts) -> NDArray:
    """Requantizes accumulators through real values, as oneDNN and numerics=qdq do."""
    q, multiplier, onednn = vectors.operator.output, facts["multiplier"], vectors.onednn
    if multiplier in ("three", "plain"):
        scales: tuple[Any, ...] = (onednn.source_scale_f32, onednn.weight_scales_f32[channel])
    else:
        scales = ((onednn.combined_f32 if multiplier == "two" else vectors.product)[channel],)
    bias_f32 = vectors.operator.bias_f32
    real_bias = bias_f32[channel] if facts["bias"] == "real" and bias_f32 is not None else None
    v = real_values(acc_f32, scales, real_bias)
    if multiplier in ("three", "two"):
        steps = np.multiply(v, onednn.inverse_destination_f32, dtype=f32)
    elif multiplier == "plain":
        steps = np.divide(v, onednn.destination_scale_f32, dtype=f32)
    elif multiplier == "real":
        steps = np.multiply(v, reciprocal_f32(q.scale), dtype=f32)
    else:
        steps = np.divide(v, q.scale_f32, dtype=f32)
    return integers_under(facts, steps, q)


class _Vectors:
    """Per-channel constants, as requantization.py and integer.py define them."""

    def __init__(self, operator: Operator) -> None:
        assert operator.weight is not None
        assert operator.weight_scales is not None
        self.operator, self._channels = operator, operator.weight.shape[0]
        self._scales = operator.weight_scales
        scales = np.broadcast_to(operator.weight_scales, (self._channels,))
        self.product = np.multiply(operator.inputs[0].scale_f32, scales.astype(f32), dtype=f32)

    def _of(self, library: Library) -> Any:
        operator = self.operator
        return requantization(
            library, "conv" if operator.kind == "conv2d" else "linear", input_q=operator.inputs[0],
            weight_scales=self._scales, bias_f32=operator.bias_f32, output_q=operator.output, relu=operator.relu,
            channels=self._channels,
        )  # fmt: skip

    @property
    def fbgemm(self) -> NDArray[np.float32]:
        multiplier: NDArray[np.float32] = self._of("fbgemm").multiplier_f32
        return multiplier

    @property
    def qnnpack(self) -> NDArray[np.float32]:
        multiplier: NDArray[np.float32] = self._of("qnnpack").multiplier_f32
        return multiplier

    @property
    def onednn(self) -> OnednnRequantization:
        onednn = self._of("onednn")
        assert isinstance(onednn, OnednnRequantization)
        return onednn

    @property
    def factor(self) -> NDArray[np.float64]:
        return self.product.astype(f64) / f64(self.operator.output.scale_f32)

    @property
    def bias_steps(self) -> NDArray[np.float32]:
        assert self.operator.bias_f32 is not None
        return np.divide(self.operator.bias_f32, self.product, dtype=f32)

    @property
    def bias_scale(self) -> NDArray[np.float32]:
        return (1.0 / self.product.astype(f64)).astype(f32)

    @property
    def bias_i32(self) -> NDArray:
        bias = self._of("qnnpack").bias_i32
        assert bias is not None
        return bias

    @property
    def bias_i32_away(self) -> NDArray:
        operator = self.operator
        bias = integer_numerics.requantization(
            input_q=operator.inputs[0], weight_scales=self._scales, bias_f32=operator.bias_f32,
            output_q=operator.output, relu=operator.relu, channels=self._channels, rounding="upward",
        ).bias_i32  # fmt: skip
        assert bias is not None
        return bias


register_family(("conv2d", "linear"), Family(OPTIONS, evaluate, is_valid, exact))
