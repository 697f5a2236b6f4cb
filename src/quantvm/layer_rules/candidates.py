"""The rules that can explain a layer: what each engine and numerics does, and that with a fact or two switched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.dispatch import conv_rule, fbgemm_depthwise_saturates, linear_rule, onednn_avx2_refuses
from quantvm.numerics.fixed_point import ROUNDINGS
from quantvm.numerics.onednn_amx import ConvGeometry, conv_separate_up_to, linear_separate_up_to
from quantvm.numerics.torch_engines import ENGINES, Engine

from .contraction import pair_cut, pairs_can_cross_taps
from .elementwise import FLOATS_TORCH, UNARY_TORCH
from .facts import Facts
from .family import family_of
from .operator import Environment, Operator, Window

PRESETS: tuple[str, ...] = (*ENGINES, "integer", *(f"integer:{r}" for r in ROUNDINGS if r != "upward"), "qdq", "pt2e")
"""PyTorch's engines; fixed point under three roundings of ties; and floats between dequantize and quantize, which
divides by the scale (qdq, as Relax and ONNX do) or multiplies with its reciprocal (pt2e); sums are exact in both."""


@dataclass(frozen=True)
class Rule:
    """One way to compute a layer.

    Attributes:
        preset: of `PRESETS`, what it starts from.
        facts: fact -> value.
        switched: the facts that are not the preset's.
    """

    preset: str
    facts: Facts
    switched: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The preset, and what is switched."""
        switched = ", ".join(f"{fact}={self.facts[fact]}" for fact in self.switched)
        return f"{self.preset} with {switched}" if switched else self.preset

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """The facts in a form that can be compared."""
        return tuple(sorted(self.facts.items()))


def preset_of(operator: Operator, name: str, environment: Environment) -> Rule:
    """Returns how a preset computes an operator."""
    kind = operator.kind
    if kind in ("conv2d", "linear"):
        facts = _contraction(operator, name, environment)
    elif kind in ("avg_pool2d", "adaptive_avg_pool2d", "mean"):
        facts = _average(operator, name)
    elif kind == "max_pool2d":
        repeats = name == "qnnpack" and operator.output.dtype == "uint8" and not _window(operator).ceil_mode
        facts = {"pool_padding": "border" if repeats else "ignored"}
    elif kind in ("relu", "clip"):
        facts = {"limits": "quantized" if name in ENGINES else "rounded", "rounding": "even"}
    elif kind == "mul":
        facts = _mul(name)
    else:
        facts = _elementwise(operator, name)
    return Rule(name, facts)


def _window(operator: Operator) -> Window:
    assert operator.window is not None
    return operator.window


_ROUNDING = {"integer": "upward", "integer:to_even": "even", "integer:away": "away"}


def _contraction(operator: Operator, name: str, environment: Environment) -> dict[str, str]:
    vnni = environment.vnni
    facts = {"saturation": "none", "input_zero_point": "subtracted", "padding": "zero_point", "rounding": "even"}
    if name in _ROUNDING:
        bias = "int32_away"
        return {**facts, "multiplier": "fixed", "bias": bias, "zero_point": "after", "rounding": _ROUNDING[name]}
    if name in ("qdq", "pt2e"):
        return {**facts, "multiplier": "division" if name == "qdq" else "real", "bias": "real", "zero_point": "after"}
    assert operator.weight is not None
    assert operator.weight_zero_points is not None
    symmetric = not operator.weight_zero_points.any()
    window = operator.window
    engine: Engine = name  # type: ignore[assignment]
    rule = linear_rule(engine) if window is None else conv_rule(engine, window.groups, symmetric, vnni=vnni)
    if rule == "onednn":
        facts |= {"bias": "real", "zero_point": "before"}
        channels, outputs = operator.weight.shape[1], operator.weight.shape[0]
        plain = window is not None and onednn_avx2_refuses(channels * window.groups, outputs, window.groups)
        if environment.onednn_amx:
            return {**facts, "multiplier": "three" if _has_separate_scales(operator, environment) else "two"}
        if vnni or plain:
            return {**facts, "multiplier": "three"}
        exact = operator.inputs[0].dtype == "int8" or (window is not None and window.groups > 1 and channels == 1)
        pairs = "channel_pairs" if pairs_can_cross_taps(operator) else "pairs"
        if pair_cut(operator) is not None:
            pairs = "half_pairs"
        if window is not None and any(window.padding) and not exact:
            facts["padding"] = "skipped"
        return {**facts, "multiplier": "two", "saturation": "none" if exact else pairs}
    if rule == "qnnpack":
        return {**facts, "multiplier": "reciprocal", "bias": "int32", "zero_point": "after"}
    per_tensor = operator.weight_scales is not None and operator.weight_scales.size == 1
    if not vnni:
        facts["saturation"] = "pairs"  # activations are uint8
    elif window is not None and window.groups > 1 and operator.weight.shape[1] == 1:
        saturates = fbgemm_depthwise_saturates(
            window.groups, operator.weight.shape[0], window.groups, window.kernel, window.stride, window.padding[:2],
            window.dilation,
        )  # fmt: skip
        facts["saturation"] = "pairs" if saturates else "none"
    return {**facts, "multiplier": "one", "bias": "fma" if per_tensor else "division", "zero_point": "after"}


def _has_separate_scales(operator: Operator, environment: Environment) -> bool:
    """Whether oneDNN on a CPU with AMX multiplies by one scale after the other; see onednn_amx.py."""
    assert operator.weight is not None
    outputs, group_in = operator.weight.shape[:2]
    window = operator.window
    if window is None:
        return environment.images * operator.rows <= linear_separate_up_to(group_in, outputs)
    height, width = (
        (size + before + after - (k - 1) * d - 1) // s + 1
        for size, before, after, k, d, s in zip(
            operator.in_size, window.padding[:2], window.padding[2:], window.kernel, window.dilation, window.stride,
            strict=True,
        )
    )  # fmt: skip
    geometry = ConvGeometry(
        operator.in_size, (height, width), group_in * window.groups, outputs, window.kernel, window.stride,
        (window.padding[0], window.padding[1]), window.dilation, window.groups,
    )  # fmt: skip
    return environment.images <= conv_separate_up_to(geometry, environment.threads)


def _average(operator: Operator, name: str) -> dict[str, str]:
    facts = {"rounding": "even", "sum": "integer", "tails": "none"}
    if name in _ROUNDING:
        if operator.kind == "mean":
            return {**facts, "zero_point": "after", "divisor": "fixed", "rounding": _ROUNDING[name]}
        return {**facts, "zero_point": "inside", "divisor": "fixed", "rounding": "towards_zero"}
    if name in ("qdq", "pt2e"):
        return {**facts, "zero_point": "after", "divisor": "division"}
    whole = operator.window is not None and not operator.window.ceil_mode
    if name == "qnnpack" and operator.output.dtype == "uint8" and (operator.kind == "mean" or whole):
        return {**facts, "zero_point": "after", "divisor": "qnnpack"}
    if operator.kind == "avg_pool2d":
        if operator.channels_last:
            return {**facts, "zero_point": "after", "divisor": "reciprocal", "tails": "torch"}
        return {**facts, "zero_point": "before", "divisor": "reciprocal"}
    if operator.kind == "adaptive_avg_pool2d":
        if operator.channels_last:
            return {**facts, "zero_point": "fma", "divisor": "twice", "tails": "torch"}
        return {**facts, "zero_point": "inside", "divisor": "sides"}
    if operator.channels_last:
        return {**facts, "zero_point": "fma", "divisor": "division", "sum": "float"}
    return {**facts, "zero_point": "inside", "divisor": "division"}


def _mul(name: str) -> dict[str, str]:
    if name in _ROUNDING:
        return {"multiplier": "fixed", "rounding": _ROUNDING[name], "zero_point": "after"}
    multiplier = {"qdq": "division", "pt2e": "real"}.get(name, "reciprocal")
    return {"multiplier": multiplier, "rounding": "even", "zero_point": "after"}


def _elementwise(operator: Operator, name: str) -> dict[str, str]:
    """Quantize, add, concat and functions of one input."""
    kind = operator.kind
    options = family_of(kind).options
    if name in _ROUNDING and kind in ACTIVATIONS and ACTIVATIONS[kind].integer == "torch":
        facts = dict(UNARY_TORCH)
    elif name in _ROUNDING:
        facts = {"arithmetic": "fixed", "scale": "division", "zero_point": "after", "rounding": _ROUNDING[name]}
        if kind not in ("add", "concat"):
            facts["rounding"] = "away"
        facts |= {"dequantize": "product", "tails": "none"}
    elif name in ("qdq", "pt2e"):
        scale = "division" if name == "qdq" else "reciprocal"
        facts = {"scale": scale, "zero_point": "after", "rounding": "even", "dequantize": "product", "tails": "none"}
    elif kind in ("quantize", "quantize_affine"):
        facts = {"scale": "reciprocal", "zero_point": "fma", "rounding": "even"}
    elif name == "qnnpack" and operator.output.dtype == "uint8" and _qnnpack_has(kind):
        facts = {"scale": "reciprocal", "zero_point": "before", "rounding": "even", "dequantize": "product"}
        facts |= {"tails": "none", "clip": "before", "arithmetic": "qnnpack"}
        if kind == "add":
            facts["rounding"] = "away"
    else:
        facts = dict(FLOATS_TORCH if kind in ACTIVATIONS and ACTIVATIONS[kind].kernel is None else UNARY_TORCH)
        if kind == "concat" and not (operator.channels_last and operator.axis == 1):
            facts |= {"dequantize": "product", "zero_point": "fma", "tails": "none"}
    defaults = {"arithmetic": "float", "clip": "after"}
    return {fact: facts.get(fact, defaults.get(fact, "")) for fact in options}


def _qnnpack_has(kind: str) -> bool:
    """Whether QNNPACK has a kernel of its own for an element-wise operator."""
    if kind not in ACTIVATIONS:
        return kind == "add"
    kernel = ACTIVATIONS[kind].kernel
    return kernel is not None and kernel.qnnpack


def candidates(operator: Operator, first: tuple[str, ...], environment: Environment) -> Iterator[Rule]:
    """Yields rules, each choice of facts once: presets, then with one fact switched, then with two.

    Args:
        operator: what is to be explained.
        first: presets of the sides that are compared: they come before the others, and only of them facts are switched.
        environment: what PyTorch's formulas depend on besides the operator.
    """
    family, seen = family_of(operator.kind), set()

    def new(rule: Rule) -> bool:
        if rule.key in seen or not family.is_valid(operator, rule.facts):
            return False
        seen.add(rule.key)
        return True

    for name in dict.fromkeys((*first, *PRESETS)):
        rule = preset_of(operator, name, environment)
        if new(rule):
            yield rule
    for count in (1, 2):
        for name in first:
            base = preset_of(operator, name, environment)
            for facts in itertools.combinations(family.options, count):
                for values in itertools.product(*(family.options[fact] for fact in facts)):
                    switches = dict(zip(facts, values, strict=True))
                    if any(base.facts[fact] == value for fact, value in switches.items()):
                        continue
                    rule = Rule(name, {**base.facts, **switches}, facts)
                    if new(rule):
                        yield rule
