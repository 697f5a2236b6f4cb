"""The values of an exported program during its import, and the builder that converters use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, constant

BOUNDS = {"int8": (-128, 127), "uint8": (0, 255)}


@dataclass(frozen=True)
class Params:
    """Quantization of one tensor.

    Attributes:
        scale: float64 as in the program, () or (C,).
        zero_point: int64, of the same shape.
        dtype: int8 or uint8.
        quant_min: smallest integer used.
        quant_max: largest integer used.
        axis: the dimension along which scales differ.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    dtype: str
    quant_min: int
    quant_max: int
    axis: int = 0

    def equals(self, other: Params) -> bool:
        """Returns whether a quantize with these parameters restores the integers that `other` dequantized."""
        return (
            (self.dtype, self.quant_min, self.quant_max) == (other.dtype, other.quant_min, other.quant_max)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
            and (self.scale.ndim == 0 or self.axis == other.axis)
        )


@dataclass(frozen=True)
class Dequantized:
    """A dequantized tensor; each use emits its own dequantize. `integers` is a constant or an expression."""

    integers: torch.Tensor | Expr
    params: Params


class Pending:
    """An intermediate value of several calls that are converted together; emitted only if another call reads it."""

    def expression(self, b: ExportedBuilder) -> Expr:
        """Returns the intermediate value."""
        raise NotImplementedError


class Unreadable(Pending):
    """A result that is not computed: a program may have it, but must not read it."""

    def expression(self, b: ExportedBuilder | None = None) -> Expr:
        """Raises an error: something reads it."""
        raise NotImplementedError


class ExportedBuilder(QdqBuilder):
    """Emits bindings of one function, named after the layer of the current node.

    Attributes:
        node: the call that is imported.
    """

    node: Any = None

    def relax_of(self, value: Any) -> Any:
        """Returns the Relax expression of a tensor, or of each tensor in a list; other values stay unchanged."""
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous().numpy()
            return constant(array, str(array.dtype))
        if isinstance(value, Dequantized):
            return self.dequantized(value)
        if isinstance(value, Pending):
            return value.expression(self)
        if isinstance(value, (list, tuple)):
            return type(value)(self.relax_of(item) for item in value)
        return value

    def dequantized(self, value: Dequantized) -> Expr:
        """Emits a new dequantize of the value."""
        params = value.params
        scale, zero_point = constant(params.scale, "float32"), constant(params.zero_point, params.dtype)
        integers = self.relax_of(value.integers)
        axis = params.axis if params.scale.ndim else -1
        hint = "weight" if isinstance(value.integers, torch.Tensor) else "dq"
        return self.emit(relax.op.dequantize(integers, scale, zero_point, axis=axis), hint)

    def checked(
        self, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: torch.dtype, axis: int = 0
    ) -> Params:
        """Returns quantization parameters of a node.

        Raises:
            ModelImportError: a scale that is NaN, infinite or not above zero, a zero point or a range outside of the
                dtype, or a dtype that is not int8 or uint8; one message lists all problems.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in BOUNDS:
            raise ModelImportError(f"{self.where}: quantized to {name}, expected int8 or uint8")
        scales, zero_points = (
            np.asarray(v.numpy() if isinstance(v, torch.Tensor) else v, d)
            for v, d in ((scale, np.float64), (zero_point, np.int64))
        )
        if scales.size == 1:
            scales, zero_points = scales.reshape(()), zero_points.reshape(())
        low, high = BOUNDS[name]
        problems = []
        with np.errstate(over="ignore"):
            bad = ~(np.isfinite(scales.astype(np.float32)) & (scales.astype(np.float32) > 0))
        if bad.any():
            problems.append(f"scale {scales[bad].ravel()[0]}, expected a positive, finite float32")
        outside = (zero_points < low) | (zero_points > high)
        if outside.any():
            problems.append(f"zero point {zero_points[outside].ravel()[0]} lies outside of {name}")
        if not low <= quant_min < quant_max <= high:
            problems.append(f"range [{quant_min}, {quant_max}] is not one of {name}")
        if scales.shape != zero_points.shape:
            problems.append(f"{scales.size} scales, but {zero_points.size} zero points")
        if problems:
            raise ModelImportError(f"bad quantization parameters: {'; '.join(problems)}")
        return Params(scales, zero_points, name, int(quant_min), int(quant_max), axis)
