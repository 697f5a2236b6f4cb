"""Converters of element-wise ONNX operators that TVM's importer supports only in part, or computes differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import UnsupportedOpError
from quantvm.frontend.builder import constant
from quantvm.qdq.expressions import constant_value, is_constant

from .converters import converts, optional_input

_CAST_TYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
               10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}  # fmt: skip
"""ONNX types that compiled code supports, by their numbers."""


def _dtype(x: Any) -> str:
    return str(x.ty.dtype)


@converts("Cast")
def _cast(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter, for types that compiled code supports."""
    if attrs.get("to") not in _CAST_TYPES:
        raise UnsupportedOpError(f"ONNX's type {attrs.get('to')} is not supported; cast to one of "
                                 f"{', '.join(_CAST_TYPES.values())}")  # fmt: skip
    return None


@converts("IsInf")
def _is_inf(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Returns whether each element is an infinity with one of the requested signs."""
    x = inputs[0]
    found = [
        bb.normalize(relax.op.equal(x, constant(sign * np.inf, _dtype(x))))
        for sign, name in ((1, "detect_positive"), (-1, "detect_negative"))
        if attrs.get(name, 1)
    ]
    if not found:
        return relax.op.not_equal(x, x) if _dtype(x) == "bool" else relax.op.less(x, constant(-np.inf, _dtype(x)))
    return relax.op.logical_or(*found) if len(found) == 2 else found[0]


@converts("Equal")
def _equal(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter, except for booleans: LLVM compares those as floats."""
    if not all(hasattr(x.ty, "dtype") and _dtype(x) == "bool" for x in inputs):
        return None
    return relax.op.equal(*[bb.normalize(relax.op.astype(x, "uint8")) for x in inputs])


@converts("Pow")
def _pow(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Returns x ** y in the type of x; powers of integers are computed in float64, as ONNX Runtime computes them."""
    x, y = inputs
    if _dtype(x) == _dtype(y) and _dtype(x).startswith("float"):
        return None
    wide = _dtype(x) if _dtype(x).startswith("float") else "float64"
    power = bb.normalize(relax.op.power(_as(bb, x, wide), _as(bb, y, wide)))
    return _as(bb, power, _dtype(x))


@converts("Mod")
def _mod(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter, for the definitions before operator set 28."""
    if _dtype(inputs[0]).startswith("float") and not attrs.get("fmod", 0):
        raise UnsupportedOpError("of floats it is supported with fmod=1 only")
    return None


def _as(bb: relax.BlockBuilder, x: Any, dtype: str) -> Any:
    if is_constant(x):
        return constant(constant_value(x).astype(dtype), dtype)
    return x if _dtype(x) == dtype else bb.normalize(relax.op.astype(x, dtype))


@converts("Dropout")
def _dropout(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Uses TVM's converter if nothing is dropped."""
    training, ratio = optional_input(inputs, 2), optional_input(inputs, 1)
    is_off = training is None or (is_constant(training) and not constant_value(training).any())
    is_zero = is_constant(ratio) and not constant_value(ratio).any()
    if not is_off and not is_zero:
        raise UnsupportedOpError("it drops values at random; export the model for inference (training_mode false)")
    return None


__all__: list[str] = []
