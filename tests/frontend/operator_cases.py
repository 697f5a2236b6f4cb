"""Inputs of single operators, as tables of cases name them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Constant:
    """An input that stands in the file; all others are computed at run time."""

    value: np.ndarray


def floats(*shape: int, seed: int = 1, scale: float = 2.0) -> np.ndarray:
    """Returns random float32 numbers."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, np.float32)
