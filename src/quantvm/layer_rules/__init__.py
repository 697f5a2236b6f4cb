"""Rules by which a quantized layer can be computed, in NumPy, and the search for the rule that explains its integers.

A rule is a choice of facts: how ties are rounded, where the zero point is added, whether a scale divides or multiplies,
and so on (`facts.py`). Each family of operators computes a layer's output integers from its input integers under any
such choice (`contraction.py`, `elementwise.py`, `pooling.py`). Every engine and every numerics is one choice, a preset;
`candidates.py` switches one or two facts of a preset, and `search.py` keeps the candidates that match every element.

To add a fact: name it and its values in `facts.py`, list it under the family that has it, and let the family's
`evaluate` follow it. tests/layer_rules compares every preset with PyTorch or with the compiled kernels.
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
