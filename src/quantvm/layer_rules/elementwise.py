"""Quantize, arithmetic, concatenation, activations and limits under any choice of facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantvm.numerics import integer as integer_numerics
from quantvm.numerics import tensor_iterator
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.binary import add_by_qnnpack, centred_product, product_multiplier, qnnpack_add, sum_of
from quantvm.numerics.torch_engines import (
    QuantParams,
    dequantize_val,
    f32,
    quantize_val,
    reciprocal_f32,
    reciprocal_f64,
    round_to_integers,
)
from quantvm.numerics.unary_tables import unary_tables

from .facts import Facts
from .family import Family, register_family
from .operator import Environment, Operator
from .rounding import dequantized, fixed_point_rounding, integers_under, main_and_tail, quantized

ROUNDINGS = ("even", "away", "upward", "down", "towards_zero")
_FLOAT_OPTIONS = {
    "rounding": ROUNDINGS,
    "zero_point": ("after", "before", "fma", "dropped"),
    "dequantize": ("fma", "product"),
    "scale": ("reciprocal", "division"),
    "tails": ("torch", "none", "everywhere"),
}
_TAIL: Facts = {"dequantize": "product", "scale": "reciprocal", "zero_point": "before", "rounding": "even"}
Cache = dict[Any, Any]
Select = NDArray | None


def _selected(y: NDArray, select: Select) -> NDArray:
    return y if select is None else y.reshape(-1)[select]


def _float_is_valid(operator: Operator, facts: Facts) -> bool:
    if facts.get("zero_point") == "fma" and facts.get("scale") == "division":
        return False
    fixed = facts.get("arithmetic", "float") != "float"
    return not fixed or facts["rounding"] in ("even", "away", "upward")


# ------------------------------------------------------------------ where PyTorch's scalar tails lie


def _vectorised(operator: Operator, shapes: Sequence[tuple[int, ...]], environment: Environment) -> NDArray[np.bool_]:
    """Returns which elements of an element-wise operator PyTorch vectorises, in logical order.

    Args:
        operator: an element-wise operator.
        shapes: shapes of its inputs.
        environment: gives PyTorch, whose threads cut the loop.
    """
    result = np.broadcast_shapes(*shapes)
    formats = operator.formats or (operator.channels_last,) * len(shapes)
    strides = [
        (tensor_iterator.channels_last if is_last and len(shape) == 4 else tensor_iterator.contiguous)(shape)
        for is_last, shape in zip(formats, shapes, strict=True)
    ]
    inputs = [tensor_iterator.expanded(s, steps, result) for s, steps in zip(shapes, strides, strict=True)]
    # PyTorch suggests the first input's memory format for a result of its shape
    output = strides[0] if shapes[0] == result else None
    return tensor_iterator.vectorised_elements(result, output, inputs, environment.pytorch)


# ------------------------------------------------------------------ quantize


def evaluate_quantize(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: Cache, select: Select
) -> NDArray:
    """Returns float32 values quantized, each channel scaled and shifted first if the operator says so."""
    x_f32 = inputs[0]
    if operator.affine is not None:
        factors, terms = (vector.reshape(1, -1, 1, 1) for vector in operator.affine)
        x_f32 = np.add(np.multiply(x_f32, factors, dtype=f32), terms, dtype=f32)
    return quantized(_selected(x_f32, select), operator.output, facts)


register_family(
    ("quantize", "quantize_affine"),
    Family({name: _FLOAT_OPTIONS[name] for name in ("rounding", "zero_point", "scale")}, evaluate_quantize,
           _float_is_valid),
)  # fmt: skip


# ------------------------------------------------------------------ add, mul


def evaluate_add(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: Cache, select: Select
) -> NDArray:
    """Returns a + b, or its ReLU."""
    a, b = np.broadcast_arrays(*inputs)
    (a_q, b_q), out_q = operator.inputs, operator.output
    vectorised = _selected(_vectorised(operator, [x.shape for x in inputs], environment), select)
    a, b = _selected(a, select), _selected(b, select)
    if facts["arithmetic"] == "fixed":
        return integer_numerics.add(
            a, b, (a_q, b_q), out_q, relu=operator.relu, rounding=fixed_point_rounding(facts)
        )  # fmt: skip
    if facts["arithmetic"] == "qnnpack":
        return add_by_qnnpack(a, b, (a_q, b_q), out_q, relu=operator.relu)

    def compute(form: Facts) -> NDArray:
        first, second = (dequantized(x, q, form) for x, q in zip((a, b), operator.inputs, strict=True))
        return quantized(sum_of(first, second, relu=operator.relu), out_q, form)

    return main_and_tail(compute, facts, _TAIL, vectorised)


def _add_is_valid(operator: Operator, facts: Facts) -> bool:
    if facts["arithmetic"] == "qnnpack":
        try:
            first, second = operator.inputs
            qnnpack_add(first, second, operator.output)
        except ValueError:
            return False
        return facts["rounding"] == "away"
    return _float_is_valid(operator, facts)


register_family(
    ("add",), Family({"arithmetic": ("float", "qnnpack", "fixed"), **_FLOAT_OPTIONS}, evaluate_add, _add_is_valid)
)


def evaluate_mul(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: Cache, select: Select
) -> NDArray:
    """Returns a * b, or its ReLU."""
    a, b = (_selected(x, select) for x in np.broadcast_arrays(*inputs))
    (a_q, b_q), out_q = operator.inputs, operator.output
    multiplier = facts["multiplier"]
    if multiplier == "fixed":
        return integer_numerics.multiply(
            a, b, (a_q, b_q), out_q, relu=operator.relu, rounding=fixed_point_rounding(facts)
        )  # fmt: skip
    if multiplier in ("division", "real"):
        real = np.multiply(dequantize_val(a, a_q), dequantize_val(b, b_q), dtype=f32)
        y = quantized(real, out_q, {**facts, "scale": "division" if multiplier == "division" else "reciprocal"})
    else:
        factor = product_multiplier((a_q, b_q), out_q)
        if multiplier == "one":
            scale = np.multiply(a_q.scale_f32, b_q.scale_f32, dtype=f32)
            factor = np.divide(scale, out_q.scale_f32, dtype=f32)
        steps = np.multiply(centred_product(a, b, (a_q, b_q)), factor, dtype=f32)
        y = integers_under(facts, steps, out_q)
    return np.maximum(y, out_q.zero_point) if operator.relu else y


def _mul_is_valid(operator: Operator, facts: Facts) -> bool:
    fixed = facts["multiplier"] == "fixed"
    return not fixed or (facts["rounding"] in ("even", "away", "upward") and facts["zero_point"] == "after")


register_family(
    ("mul",),
    Family(
        {
            "rounding": ROUNDINGS,
            "zero_point": ("after", "before", "dropped"),
            "multiplier": ("one", "reciprocal", "division", "real", "fixed"),
        },
        evaluate_mul,
        _mul_is_valid,
    ),
)


# ------------------------------------------------------------------ concatenation


def evaluate_concat(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: Cache, select: Select
) -> NDArray:
    """Returns the concatenation of the requantized inputs."""
    parts = []
    for x, q in zip(inputs, operator.inputs, strict=True):
        if facts["arithmetic"] == "fixed":
            table = integer_numerics.requantize_table(q, operator.output, fixed_point_rounding(facts))
            parts.append(table[x.astype(np.int64) - q.quant_min].astype(np.int64) if q != operator.output else x)
        elif q == operator.output:
            parts.append(x.astype(np.int64))
        else:
            parts.append(_requantized(operator, x, q, facts))
    return _selected(np.concatenate(parts, operator.axis), select)


def _requantized(operator: Operator, x: NDArray, q: QuantParams, facts: Facts) -> NDArray[np.int64]:
    out_q = operator.output
    if not (operator.concat_is_vectorised and x.ndim == 4):
        form = {**facts, "dequantize": "product"} if facts["zero_point"] == "fma" else facts
        return quantized(dequantized(x, q, form), out_q, form)
    vectorised = np.broadcast_to((np.arange(x.shape[1]) < x.shape[1] // 8 * 8).reshape(1, -1, 1, 1), x.shape)

    def compute(form: Facts) -> NDArray:
        inverse = reciprocal_f64(out_q.scale) if form is facts else None
        return quantized(dequantized(x, q, form), out_q, form, inverse)

    return main_and_tail(compute, facts, _TAIL, vectorised)


register_family(
    ("concat",), Family({"arithmetic": ("float", "fixed"), **_FLOAT_OPTIONS}, evaluate_concat, _float_is_valid)
)


# ------------------------------------------------------------------ unary functions


def evaluate_unary(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: Cache, select: Select
) -> NDArray:
    """Returns a function of one input, looked up in a table of 256 entries; PyTorch's tails have a second table."""
    (q,), out_q = operator.inputs, operator.output
    x_q = np.arange(q.quant_min, q.quant_max + 1)
    activation = ACTIVATIONS[operator.kind]
    kernel = activation.kernel
    main, tail = unary_tables(operator.kind, q, out_q, operator.options)
    function = activation.rounded_once if kernel is None else activation.rounded_alone

    def table(form: Facts) -> NDArray:
        if form is _TAIL:
            return tail.astype(np.int64)
        product = kernel is not None and kernel.dequantize == "product"
        x_f32 = dequantized(x_q, q, {**form, "dequantize": "product"} if product else form)
        real = function(x_f32, operator.options)
        if form["clip"] == "before":
            steps = np.add(np.multiply(reciprocal_f32(out_q.scale), real, dtype=f32), f32(out_q.zero_point))
            clipped = np.clip(steps, f32(out_q.quant_min), f32(out_q.quant_max))
            return round_to_integers(clipped, form["rounding"]).astype(np.int64)  # type: ignore[arg-type]
        return quantized(real, out_q, form)

    x = _selected(inputs[0], select).astype(np.int64) - q.quant_min
    in_order = operator if activation.keeps_order else replace(operator, channels_last=False, formats=())
    vectorised = _selected(_vectorised(in_order, [inputs[0].shape], environment), select)
    if kernel is not None and dict(facts) == UNARY_TORCH:  # the last bits of sigmoid depend on PyTorch's expf
        return np.where(vectorised, main.astype(np.int64)[x], tail.astype(np.int64)[x])
    return main_and_tail(lambda form: table(form)[x], facts, _TAIL, vectorised)


UNARY_TORCH = {
    "dequantize": "fma",
    "scale": "reciprocal",
    "zero_point": "after",
    "rounding": "even",
    "tails": "torch",
    "clip": "after",
}
"""The facts of PyTorch's own kernels for functions of one input."""
FLOATS_TORCH = {**UNARY_TORCH, "dequantize": "product", "zero_point": "fma", "tails": "none"}
"""The facts of PyTorch where a program computes functions in float between dequantize and quantize."""

register_family(
    tuple(ACTIVATIONS),
    Family({**_FLOAT_OPTIONS, "clip": ("after", "before")}, evaluate_unary, _float_is_valid),
)


# ------------------------------------------------------------------ limits


def evaluate_limits(
    operator: Operator, inputs: Sequence[NDArray], facts: Facts, environment: Environment, cache: Cache, select: Select
) -> NDArray:
    """Returns a ReLU or clip that keeps its input's parameters, so that it limits the integers."""
    q, x = operator.output, _selected(inputs[0], select).astype(np.int64)
    if operator.kind == "relu":
        return np.maximum(x, q.zero_point)
    limits = np.array(operator.options)
    if facts["limits"] == "quantized":
        low, high = quantize_val(limits.astype(f32), q)
    elif facts["limits"] == "shifted":
        low, high = integer_numerics.clip_limits((operator.options[0], operator.options[1]), q)
    else:
        steps = round_to_integers(limits / q.scale, facts["rounding"])  # type: ignore[arg-type]
        low, high = np.clip(steps + q.zero_point, q.quant_min, q.quant_max)
    return np.clip(x, int(low), int(high))


register_family(
    ("relu", "clip"),
    Family({"limits": ("quantized", "rounded", "shifted"), "rounding": ("even", "away", "upward")}, evaluate_limits),
)
