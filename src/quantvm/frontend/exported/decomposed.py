"""Has PyTorch decompose operators of exported programs that have no converter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quantvm.torch_compat import operator_decompositions

_ROUNDS = 4
"""Maximum number of rounds, since results of a decomposition may have to be decomposed too."""


def decomposed(program: Any, unknown: Callable[[Any], list[Any]]) -> Any:
    """Returns the program with its unsupported operators decomposed, as far as PyTorch can.

    The rest of the program is not changed.

    Args:
        program: a `torch.export.ExportedProgram`.
        unknown: returns the calls of a program that cannot be imported.
    """
    for _ in range(_ROUNDS):
        missing = {node.target for node in unknown(program)}
        rules = _rules(missing) if missing else {}
        table = {target: rules[target] for target in missing if target in rules}
        if not table:
            return program
        program = program.run_decompositions(table)
    return program


def _rules(missing: set[Any]) -> dict[Any, Any]:
    """Returns PyTorch's decompositions for exported programs, and its other ones for operators that these keep."""
    rules = dict(torch.export.default_decompositions())
    kept = [target for target in missing if target not in rules]
    return {**rules, **operator_decompositions(kept)}
