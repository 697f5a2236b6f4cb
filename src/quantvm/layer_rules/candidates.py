"""The rules that can explain a layer: those of each engine and numerics, also with one or two facts switched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from quantvm.choices import ENGINES, ROUNDINGS
from quantvm.numerics import dispatch
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.dispatch import ContractionChoice

from .contraction import pairs_can_cross_taps
from .elementwise import FLOATS_TORCH, UNARY_TORCH
from .facts import Facts
from .family import family_of
from .operator import Environment, Operator

PRESETS: tuple[str, ...] = (*ENGINES, "integer", *(f"integer:{r}" for r in ROUNDINGS if r != "upward"), "qdq", "pt2e")
"""PyTorch's engines; fixed point with three roundings of ties; and floats between dequantize and quantize, where
quantize divides by the scale (qdq, as in Relax and ONNX) or multiplies by its reciprocal (pt2e). Sums are exact in the
last two."""


@dataclass(frozen=True)
class Rule:
    """One way to compute a layer.

    Attributes:
        preset: the one of `PRESETS` that it starts from.
        facts: fact -> value.
        switched: the facts whose values differ from the preset's.
    """

    preset: str
    facts: Facts
    switched: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The preset and the switched facts, as text."""
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
        facts = _average(operator, name, environment)
    elif kind == "max_pool2d":
        facts = {"pool_padding": "border" if _repeats_border(operator, name, environment) else "ignored"}
    elif kind in ("relu", "clip"):
        limits = "quantized" if name in ENGINES else "shifted" if name in _ROUNDING else "rounded"
        facts = {"limits": limits, "rounding": "even"}
    elif kind == "mul":
        facts = _mul(name)
    else:
        facts = _elementwise(operator, name, environment)
    return Rule(name, facts)


def _repeats_border(operator: Operator, name: str, environment: Environment) -> bool:
    assert operator.window is not None
    if name not in ENGINES:
        return False
    pytorch, dtype = environment.pytorch.under(name), operator.output.dtype
    return dispatch.max_pool2d_is_qnnpacks(pytorch, dtype, ceil_mode=operator.window.ceil_mode)


_ROUNDING = {"integer": "upward", "integer:to_even": "even", "integer:away": "away"}


def _contraction(operator: Operator, name: str, environment: Environment) -> dict[str, str]:
    facts = {"saturation": "none", "input_zero_point": "subtracted", "padding": "zero_point", "rounding": "even"}
    if name in _ROUNDING:
        bias = "int32_away"
        return {**facts, "multiplier": "fixed", "bias": bias, "zero_point": "after", "rounding": _ROUNDING[name]}
    if name in ("qdq", "pt2e"):
        return {**facts, "multiplier": "division" if name == "qdq" else "real", "bias": "real", "zero_point": "after"}
    choice = dispatch.contraction_choice(operator.contraction, environment.pytorch.under(name))
    facts |= {
        "saturation": _saturation(operator, choice),
        "padding": "skipped" if choice.skips_padding else "zero_point",
    }
    if choice.formula == "onednn":
        scales = "three" if choice.has_separate_scales(environment.images * operator.rows) else "two"
        return {**facts, "multiplier": "plain" if choice.divides else scales, "bias": "real", "zero_point": "before"}
    if choice.formula == "qnnpack":
        return {**facts, "multiplier": "reciprocal", "bias": "int32", "zero_point": "after"}
    per_tensor = operator.weight_scales is not None and operator.weight_scales.size == 1
    return {**facts, "multiplier": "one", "bias": "fma" if per_tensor else "division", "zero_point": "after"}


def _saturation(operator: Operator, choice: ContractionChoice) -> str:
    if choice.cut is not None:
        return "half_pairs"
    if choice.pairs == "taps" and pairs_can_cross_taps(operator):
        return "channel_pairs"
    return "none" if choice.pairs == "none" else "pairs"


def _average(operator: Operator, name: str, environment: Environment) -> dict[str, str]:
    facts = {"rounding": "even", "sum": "integer", "tails": "none"}
    if name in _ROUNDING:
        if operator.kind == "mean":
            return {**facts, "zero_point": "after", "divisor": "fixed", "rounding": _ROUNDING[name]}
        return {**facts, "zero_point": "inside", "divisor": "fixed", "rounding": "towards_zero"}
    if name in ("qdq", "pt2e"):
        return {**facts, "zero_point": "after", "divisor": "division"}
    formula = operator.average_choice(environment.pytorch.under(name)).formula
    if formula == "qnnpack":
        return {**facts, "zero_point": "after", "divisor": "qnnpack"}
    if formula == "floats":
        return {**facts, "zero_point": "fma", "divisor": "division", "sum": "float"}
    if operator.kind == "avg_pool2d":
        if formula == "channels_last":
            return {**facts, "zero_point": "after", "divisor": "reciprocal", "tails": "torch"}
        return {**facts, "zero_point": "before", "divisor": "reciprocal"}
    if operator.kind == "adaptive_avg_pool2d":
        if formula == "channels_last":
            return {**facts, "zero_point": "fma", "divisor": "twice", "tails": "torch"}
        return {**facts, "zero_point": "inside", "divisor": "sides"}
    return {**facts, "zero_point": "inside", "divisor": "division"}


def _mul(name: str) -> dict[str, str]:
    if name in _ROUNDING:
        return {"multiplier": "fixed", "rounding": _ROUNDING[name], "zero_point": "after"}
    multiplier = {"qdq": "division", "pt2e": "real"}.get(name, "reciprocal")
    return {"multiplier": multiplier, "rounding": "even", "zero_point": "after"}


def _elementwise(operator: Operator, name: str, environment: Environment) -> dict[str, str]:
    """Returns the facts for quantize, add, concat and functions of one input."""
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
    elif kind != "concat" and _is_qnnpacks(operator, name, environment):
        facts = {"scale": "reciprocal", "zero_point": "before", "rounding": "even", "dequantize": "product"}
        facts |= {"tails": "none", "clip": "before", "arithmetic": "qnnpack"}
        if kind == "add":
            facts["rounding"] = "away"
    else:
        facts = dict(FLOATS_TORCH if kind in ACTIVATIONS and ACTIVATIONS[kind].kernel is None else UNARY_TORCH)
        if kind == "concat" and not operator.concat_is_vectorised:
            facts |= {"dequantize": "product", "zero_point": "fma", "tails": "none"}
    defaults = {"arithmetic": "float", "clip": "after"}
    return {fact: facts.get(fact, defaults.get(fact, "")) for fact in options}


def _is_qnnpacks(operator: Operator, name: str, environment: Environment) -> bool:
    pytorch = environment.pytorch.under(name)
    if operator.kind == "add":
        return dispatch.add_is_qnnpacks(pytorch, operator.output.dtype, one_shape=operator.one_shape)
    return dispatch.unary_is_qnnpacks(pytorch, operator.kind, operator.inputs[0].dtype)


def candidates(operator: Operator, first: tuple[str, ...], environment: Environment) -> Iterator[Rule]:
    """Yields the presets, then rules with one switched fact, then with two; each choice of facts once.

    Args:
        operator: the operator to be explained.
        first: presets of the two compared sides: they come before the others, and only their facts are switched.
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
