"""Relax operators on constants, computed in NumPy with one rounding per operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quantvm.qdq.expressions import constant_value, is_constant, op_name


def _shape(expr: Any) -> list[int]:
    return [int(d) for d in expr.values]


def _reshaped(call: Any, x: np.ndarray, *_: Any) -> np.ndarray:
    return x.reshape(_shape(call.args[1]))


def _permuted(call: Any, x: np.ndarray) -> np.ndarray:
    axes = call.attrs.axes
    return x.transpose(None if axes is None else [int(a) for a in axes])


def _squeezed(call: Any, x: np.ndarray) -> np.ndarray:
    axes = call.attrs.axis
    return x.squeeze(None if axes is None else tuple(int(a) for a in axes))


def _expanded(call: Any, x: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, tuple(int(a) for a in call.attrs.axis))


def _cast(call: Any, x: np.ndarray) -> np.ndarray:
    return x.astype(str(call.attrs.dtype))


def _selected(call: Any, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(condition, x, y))


_OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "relax.reshape": _reshaped,
    "relax.permute_dims": _permuted,
    "relax.squeeze": _squeezed,
    "relax.expand_dims": _expanded,
    "relax.astype": _cast,
    "relax.isnan": lambda call, x: np.isnan(x),
    "relax.where": _selected,
    "relax.add": lambda call, x, y: x + y,
    "relax.subtract": lambda call, x, y: x - y,
    "relax.multiply": lambda call, x, y: x * y,
    "relax.divide": lambda call, x, y: x / y,
    "relax.sqrt": lambda call, x: np.sqrt(x),
    "relax.negative": lambda call, x: -x,
    "relax.maximum": lambda call, x, y: np.maximum(x, y),
    "relax.minimum": lambda call, x, y: np.minimum(x, y),
}


def folded(call: Any) -> np.ndarray | None:
    """Returns the value of a call, or None if a tensor is not constant or the operator is not known here."""
    name = op_name(call)
    if name not in _OPERATORS:
        return None
    tensors = [a for a in call.args if not hasattr(a, "values") or is_constant(a)]
    shapes = [a for a in call.args if hasattr(a, "values") and not is_constant(a)]
    if not tensors or not all(is_constant(a) for a in tensors):
        return None
    if any(not hasattr(d, "value") for shape in shapes for d in shape.values):
        return None
    return np.asarray(_OPERATORS[name](call, *(constant_value(a) for a in tensors)))
