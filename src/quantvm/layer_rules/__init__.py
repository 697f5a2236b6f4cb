"""Rules by which quantized layers can be computed, as NumPy oracles, and the search for the one that explains integers.

A rule is a choice of facts: how ties are rounded, where the zero point is added, whether a scale is divided by or
multiplied with, and so on (`facts.py`). Each family of operators computes a layer's integers from its inputs' under any
such choice (`contraction.py`, `elementwise.py`, `pooling.py`). Every engine and every numerics is one choice, a preset;
`candidates.py` switches one or two facts of a preset, and `search.py` keeps the candidates that give every element.

To add a fact: name it and its values in `facts.py`, list it under the family that has it, and let the family's
`evaluate` follow it. tests/layer_rules holds every preset against PyTorch or against the compiled kernels.
"""

from . import contraction, elementwise, pooling  # noqa: F401  (registers the families)
from .candidates import PRESETS, Rule, candidates, preset_of
from .facts import Facts, differing_facts
from .operator import Environment, Operator, Window
from .search import Search

__all__ = [
    "PRESETS",
    "Environment",
    "Facts",
    "Operator",
    "Rule",
    "Search",
    "Window",
    "candidates",
    "differing_facts",
    "preset_of",
]
