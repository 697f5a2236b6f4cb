"""The vocabulary of rules: each fact in which two ways of computing a layer can differ, and its values in words."""

from __future__ import annotations

from collections.abc import Mapping

Facts = Mapping[str, str]
"""Fact -> value, of `FACTS`."""

FACTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "rounding": (
        "rounding",
        {
            "even": "ties to even",
            "away": "ties away from zero",
            "upward": "ties upward",
            "down": "rounded down",
            "towards_zero": "rounded towards zero",
        },
    ),
    "zero_point": (
        "zero point",
        {
            "after": "added after rounding",
            "before": "added before rounding",
            "fma": "added before rounding in one FMA",
            "inside": "left inside of the sum",
            "dropped": "dropped",
        },
    ),
    "input_zero_point": ("input zero point", {"subtracted": "subtracted", "dropped": "dropped"}),
    "padding": (
        "padding",
        {
            "zero_point": "holds the zero point",
            "zero": "holds the integer 0",
            "skipped": "is left out of sums of pairs",
        },
    ),
    "multiplier": (
        "multiplier",
        {
            "one": "one float: sa*sw/so",
            "reciprocal": "one float: sa*sw * (1/so)",
            "three": "three floats: sa, sw, 1/so",
            "two": "two floats: sa*sw, 1/so",
            "plain": "two floats, sa and sw, and divided by so",
            "division": "real values divided by so",
            "real": "real values times 1/so",
            "fixed": "fixed point, 31 bits and a shift",
        },
    ),
    "bias": (
        "bias",
        {
            "division": "float steps of sa*sw",
            "fma": "float steps by 1/(sa*sw) in one FMA",
            "real": "float, added to real values",
            "int32": "int32",
            "int32_away": "int32 (ties away from zero)",
            "dropped": "dropped",
        },
    ),
    "saturation": (
        "7-bit saturation",
        {
            "none": "sums exact",
            "pairs": "pairs of products saturate at int16",
            "channel_pairs": "pairs of products of each tap saturate at int16",
            "half_pairs": "pairs of products of each half saturate at int16",
        },
    ),
    "arithmetic": (
        "arithmetic",
        {"float": "float", "qnnpack": "QNNPACK's fixed point", "fixed": "fixed point, 31 bits and a shift"},
    ),
    "dequantize": ("dequantize", {"fma": "one FMA", "product": "one product"}),
    "scale": ("output scale", {"reciprocal": "its reciprocal", "division": "divided by"}),
    "clip": ("clip", {"after": "after rounding", "before": "before rounding"}),
    "tails": (
        "scalar tails",
        {
            "torch": "PyTorch's other formula at the end of rows",
            "none": "none",
            "everywhere": "the tails' formula everywhere",
        },
    ),
    "divisor": (
        "pool's divisor",
        {
            "reciprocal": "its reciprocal",
            "twice": "the reciprocal of its reciprocal",
            "sides": "1/height divided by width",
            "qnnpack": "s / (s*count)",
            "division": "divided by",
            "fixed": "fixed point, 31 bits and a shift",
        },
    ),
    "pool_padding": ("pool's padding", {"ignored": "ignored", "border": "reads the border, as QNNPACK"}),
    "sum": ("pool's sum", {"integer": "integers", "float": "floats, in PyTorch's order"}),
    "limits": (
        "limits",
        {
            "quantized": "quantized, ties to even",
            "rounded": "rounded before the zero point",
            "shifted": "rounded behind the zero point, in double precision",
        },
    ),
}
"""Fact -> (its name in words, value -> what that means)."""


def differing_facts(first: Facts, second: Facts) -> list[str]:
    """Returns the facts whose values differ, in the order of `FACTS`; a fact that only one has counts as differing."""
    return [fact for fact in FACTS if first.get(fact) != second.get(fact)]


def in_words(fact: str, value: str | None) -> str:
    """Returns the meaning of a fact's value; for None, that the rule has no such step."""
    return "no such step" if value is None else FACTS[fact][1][value]
