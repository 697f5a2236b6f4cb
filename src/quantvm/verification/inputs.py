"""The inputs that a compiled model and its reference run: the user's example, and seeded ones that fill the range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantvm.numerics.torch_engines import QuantParams
from quantvm.runtime.signature import Signature, TensorSpec

MAX_BATCH = 4
"""The most images that are taken from an example if the batch is dynamic."""

_SEED = 20
_FEWEST_VALUES = 16
_BEYOND = 1.1
"""Seeded inputs reach this far, in half ranges of their quantization, so that some saturate."""

Run = list[np.ndarray]
"""The inputs of one call, in the order of the signature."""


def runs_for(signature: Signature, examples: Sequence[np.ndarray] | None) -> tuple[list[Run], tuple[int, ...]]:
    """Returns the inputs and the batch size of each run; with a dynamic batch there are two sizes.

    The first run is the example, unless it is missing or constant: constant inputs, such as zeros, prove nothing.
    """
    is_free = any(size is None for spec in signature.inputs for size in spec.shape)
    told = examples is not None and all(_is_informative(x) for x in examples)
    first = min(_batch(signature, examples), MAX_BATCH) if is_free else _batch(signature, examples)
    second = (2 if first == 1 else 1) if is_free else first
    if examples is not None and told:
        given = [
            np.ascontiguousarray(_rows(x, spec, first)) for x, spec in zip(examples, signature.inputs, strict=True)
        ]
        return [given, seeded(signature, second)], (first, second)
    return [seeded(signature, first), *([seeded(signature, second)] if is_free else [])], (first, second)[: 1 + is_free]


def seeded(signature: Signature, batch: int, seed: int = _SEED) -> Run:
    """Returns inputs that are equal in every process: half noise and half waves, over the range and a little beyond."""
    rng = np.random.default_rng(seed)
    return [_seeded(spec, batch, rng) for spec in signature.inputs]


def _seeded(spec: TensorSpec, batch: int, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(batch if size is None else size for size in spec.shape)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = (limits.min, limits.max) if dtype.itemsize == 1 else (0, 1)  # wider integers mostly index a table
        return rng.integers(low, high, shape, endpoint=True).astype(dtype)
    if spec.quantization is None:
        return (2 * _waves(shape, rng) + rng.standard_normal(shape)).astype(dtype)
    return _over_range(spec.quantization, shape, rng).astype(dtype)


def _over_range(q: QuantParams, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns values half of which are multiples of half a step: integers and ties, which show how they are rounded."""
    unit = np.clip(0.6 * _waves(shape, rng) + 0.7 * rng.uniform(-1, 1, shape), -1, 1)
    middle = (q.quant_min + q.quant_max) / 2 - q.zero_point
    steps = middle + unit * _BEYOND * (q.quant_max - q.quant_min) / 2
    steps = np.where(rng.integers(0, 2, shape) == 0, np.round(2 * steps) / 2, steps)
    return steps.astype(np.float32) * np.float32(q.scale)


def _waves(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns waves whose length differs by image and channel; neighbours are similar, as in photographs."""
    field = np.ones(shape)
    for axis in range(max(len(shape) - 2, 0), len(shape)):
        lead = (*shape[: min(axis, max(len(shape) - 2, 0))], *(1 for _ in shape[min(axis, max(len(shape) - 2, 0)) :]))
        along = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        field = field * np.cos(rng.uniform(0.05, 0.6, lead) * along + rng.uniform(0, 6.28, lead))
    return field


def _is_informative(x: np.ndarray) -> bool:
    """Whether an example is finite and not constant, as a tensor of zeros is."""
    sample = x.reshape(-1)[:100_000]
    is_finite = bool(np.isfinite(sample).all()) if sample.dtype.kind == "f" else True
    return is_finite and np.unique(sample).size >= min(_FEWEST_VALUES, max(2, sample.size // 2))


def _batch(signature: Signature, examples: Sequence[np.ndarray] | None) -> int:
    """Returns the example's number of images, or 1 without an example; for inputs of fixed size, that size."""
    for i, spec in enumerate(signature.inputs):
        for axis, size in enumerate(spec.shape):
            if size is None:
                return 1 if examples is None else int(examples[i].shape[axis])
    first = signature.inputs[0].shape
    return int(first[0] or 1) if first else 1


def _rows(x: np.ndarray, spec: TensorSpec, count: int) -> np.ndarray:
    for axis, size in enumerate(spec.shape):
        if size is None:
            x = x.take(range(min(count, x.shape[axis])), axis=axis)
    return x.astype(spec.dtype, copy=False)
