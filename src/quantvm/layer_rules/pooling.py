"""Pools and means under any choice of facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics import fixed_point
from quantvm.numerics import integer as integer_numerics
from quantvm.numerics.averages import adaptive_scale, count_factor, mean_of_pixels, qnnpack_factor, sides_factor
from quantvm.numerics.dispatch import pool_vector_channels
from quantvm.numerics.pool_geometry import Taps, adaptive_taps
from quantvm.numerics.torch_engines import (
    f32,
    i64,
    integers_of,
    quantize_arr,
    reciprocal_f32,
)

from .facts import Facts
from .family import Family, register_family
from .operator import Environment, Operator
from .rounding import fixed_point_rounding, integers_under, main_and_tail, scaled

OPTIONS = {
    "rounding": ("even", "away", "upward", "down", "towards_zero"),
    "zero_point": ("after", "before", "fma", "inside", "dropped"),
    "divisor": ("reciprocal", "twice", "sides", "qnnpack", "division", "fixed"),
    "tails": ("torch", "none", "everywhere"),
    "sum": ("integer", "float"),
}
_TAIL: Facts = {"rounding": "even", "zero_point": "before", "divisor": "twice"}
Cell = tuple[slice, slice, int, int, int]
"""Rows and columns inside of the image, their number of elements, the divisor, and the kernel's number of elements."""


def is_valid(operator: Operator, facts: Facts) -> bool:
    """Whether the facts can be combined into a formula."""
    if facts["sum"] == "float":
        return operator.kind == "mean" and facts["divisor"] == "division" and facts["zero_point"] in ("fma", "after")
    if facts["zero_point"] == "fma" and facts["divisor"] in ("division", "fixed"):
        return False
    if facts["divisor"] == "fixed":
        return facts["zero_point"] != "before" and facts["rounding"] in ("even", "away", "upward", "towards_zero")
    return True


def evaluate_average(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: dict[Any, Any],
    select: NDArray | None,
) -> NDArray:  # fmt: skip
    """Returns the averages over windows."""
    (x,) = inputs
    if facts["sum"] == "float":
        y = _float_mean(operator, x, facts)[:, :, None, None]
    else:
        rows = list(_cells(operator, x))
        y = np.stack(
            [np.stack([_average(operator, x, cell, facts, environment) for cell in row], -1) for row in rows], -2
        )
    if operator.kind == "mean" and not operator.keepdims:
        y = y[:, :, 0, 0]
    return y if select is None else y.reshape(-1)[select]


def _cells(operator: Operator, x: NDArray) -> Iterator[list[Cell]]:
    """Yields, row by row, what each output pixel reads."""
    height, width = x.shape[2:]
    if operator.kind == "mean" or operator.kind == "adaptive_avg_pool2d":
        out_height, out_width = (1, 1) if operator.kind == "mean" else operator.out_size
        for i in range(out_height):
            rows = adaptive_taps(i, height, out_height)
            row = []
            for j in range(out_width):
                columns = adaptive_taps(j, width, out_width)
                n = rows.count * columns.count
                row.append((_slice(rows), _slice(columns), n, n, n))
            yield row
        return
    window = operator.window
    assert window is not None
    vertical, horizontal = window.axis(0, height), window.axis(1, width)
    for i in range(vertical.out_size):
        rows = vertical.inside(i)
        row = []
        for j in range(horizontal.out_size):
            columns = horizontal.inside(j)
            inside = rows.count * columns.count
            count = vertical.counted(i) * horizontal.counted(j) if window.count_include_pad else max(inside, 1)
            row.append((_slice(rows), _slice(columns), inside, count, window.kernel[0] * window.kernel[1]))
        yield row


def _slice(taps: Taps) -> slice:
    return slice(taps.first, taps.first + taps.count * taps.step, taps.step)


def _average(operator: Operator, x: NDArray, cell: Cell, facts: Facts, environment: Environment) -> NDArray:
    """Returns one output pixel, (N, C)."""
    rows, columns, inside, _, _ = cell
    total = x[:, :, rows, columns].astype(i64).sum((2, 3))
    centred = total - inside * operator.output.zero_point
    vec = pool_vector_channels(operator.kind, environment.pytorch.cpu)
    channels = x.shape[1]
    is_main = np.arange(channels) < (channels // vec * vec if operator.channels_last else channels)
    return main_and_tail(lambda form: _divided(operator, total, centred, cell, form), facts, _TAIL, is_main)


def _divided(operator: Operator, total: NDArray, centred: NDArray, cell: Cell, facts: Facts) -> NDArray:
    rows, columns, inside, count, kernel = cell
    q, divisor, raw = operator.output, facts["divisor"], facts["zero_point"] == "inside"
    # padding adds the zero point to the sum
    acc = total + (count - inside) * q.zero_point if raw else centred
    if divisor == "fixed":
        if facts["rounding"] == "towards_zero":
            y = integer_numerics.average(acc, count)
        else:
            y = fixed_point.multiply(acc, fixed_point.fixed_point(1.0 / count, fixed_point_rounding(facts)))
        return np.clip(y + (q.zero_point if facts["zero_point"] == "after" else 0), q.quant_min, q.quant_max)
    acc_f32 = acc.astype(f32)
    if divisor == "division":
        return integers_under(facts, np.divide(acc_f32, f32(count), dtype=f32), q)
    if divisor == "twice":
        factor = reciprocal_f32(adaptive_scale(count))
    elif divisor == "sides":
        factor = sides_factor(*(len(range(taps.start, taps.stop, taps.step)) for taps in (rows, columns)))
    else:
        factor = qnnpack_factor(q.scale, kernel) if divisor == "qnnpack" else count_factor(count)
    return scaled(acc_f32, factor, q, facts, saturates=True)


# ------------------------------------------------------------------ the mean of real values


def _float_mean(operator: Operator, x: NDArray, facts: Facts) -> NDArray[np.int64]:
    """Returns the quantized mean of dequantized values, (N, C), summed in PyTorch's order."""
    q, mean = operator.output, mean_of_pixels(x, operator.inputs[0])
    if facts["zero_point"] == "fma" and facts["rounding"] == "even":
        return quantize_arr(mean, q)
    steps = np.divide(mean, q.scale_f32, dtype=f32)
    return integers_of(steps, q, rounding=facts["rounding"], saturates=True)  # type: ignore[arg-type]


register_family(("avg_pool2d", "adaptive_avg_pool2d", "mean"), Family(OPTIONS, evaluate_average, is_valid))


# ------------------------------------------------------------------ maximum


def evaluate_maximum(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: dict[Any, Any],
    select: NDArray | None,
) -> NDArray:  # fmt: skip
    """Returns the maximum over windows; taps in the padding are ignored, or read the border."""
    (x,) = inputs
    window = operator.window
    assert window is not None
    outputs = []
    for axis in (0, 1):
        size = x.shape[2 + axis]
        geometry = window.axis(axis, size)
        taps = [
            [geometry.start(o) + k * geometry.dilation for k in range(geometry.kernel)]
            for o in range(geometry.out_size)
        ]
        if facts["pool_padding"] == "border":
            outputs.append([[min(max(t, 0), size - 1) for t in row] for row in taps])
        else:
            outputs.append([[t for t in row if 0 <= t < size] for row in taps])
    lowest = operator.output.quant_min  # result of a window that lies entirely in the padding
    columns = np.stack([x[..., taps].max(-1, initial=lowest) for taps in outputs[1]], -1)
    y = np.stack([columns[:, :, taps].max(2, initial=lowest) for taps in outputs[0]], 2).astype(i64)
    return y if select is None else y.reshape(-1)[select]


register_family(("max_pool2d",), Family({"pool_padding": ("ignored", "border")}, evaluate_maximum))
