"""Operators of exported programs that nothing imports, written by PyTorch itself in terms of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quantvm.torch_compat import operator_decompositions

_ROUNDS = 4
"""What one operator becomes may have to be rewritten, too."""


def decomposed(program: Any, unknown: Callable[[Any], list[Any]]) -> Any:
    """Returns the program without the operators that nothing imports, as far as PyTorch can rewrite them.

    Nothing else of the program is rewritten.

    Args:
        program: a `torch.export.ExportedProgram`.
        unknown: returns the calls of a program that nothing imports.
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
    """Returns PyTorch's rules for exported programs, and its others for what these keep."""
    rules = dict(torch.export.default_decompositions())
    kept = [target for target in missing if target not in rules]
    return {**rules, **operator_decompositions(kept)}
