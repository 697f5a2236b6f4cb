"""The tools of converters: quantized tensors, and a builder that emits Relax in QDQ form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from quantvm.errors import ModelImportError
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq import expressions
from quantvm.qdq.expressions import Expr


@dataclass(frozen=True)
class QTensor:
    """An integer tensor and its quantization parameters; `expr` has the integers' dtype and PyTorch's logical shape."""

    expr: Expr
    q: QuantParams


def shape_of(x: Expr | QTensor) -> list[Any]:
    """Returns the logical shape: Python ints, and symbolic expressions where a dimension is dynamic."""
    return expressions.shape_of(x.expr if isinstance(x, QTensor) else x)


def constant(value: Any, dtype: str) -> Expr:
    """Returns a Relax constant."""
    return relax.const(np.asarray(value, dtype, order="C"), dtype)


def constant_array(expr: Expr) -> np.ndarray:
    """Returns the value of a Relax constant.

    Raises:
        ModelImportError: it is not constant.
    """
    if not expressions.is_constant(expr):
        raise ModelImportError(f"expected a tensor that is known at import, got {expr}")
    return expressions.constant_value(expr)


class QdqBuilder:
    """Emits bindings of one Relax function; every quantized operator becomes dequantize -> float op -> quantize."""

    def __init__(self, block_builder: relax.BlockBuilder) -> None:
        self._bb = block_builder
        self.where = ""
        self._names: dict[str, int] = {}
        self.quantizes: set[Expr] = set()
        """Variables that hold the result of a quantize."""
        self._islands: dict[Expr, Expr] = {}

    def emit(self, expr: Expr, hint: str = "") -> Expr:
        """Binds `expr` to a new variable, named after the module path of the current node."""
        name = re.sub(r"\W+", "_", self.where).strip("_") or "v"
        name = f"{name}_{hint}" if hint else name
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        var = self._bb.emit(expr, name if not count else f"{name}_{count}")
        if getattr(var.ty, "shape", ()) is None:
            operands = ", ".join(str(shape_of(x)) for x in expr.args if getattr(x.ty, "shape", None) is not None)
            raise ModelImportError(
                f"{expr.op.name.removeprefix('relax.')} at {self.where}: the shape of its result does not follow from "
                f"{operands}; a dynamic batch cannot be broadcast against another dimension (batch='static', "
                "--batch static, can)"
            )
        return var

    def real(self, x: Expr | QTensor) -> Expr:
        """Returns the float32 tensor; every use of a quantized tensor gets its own dequantize."""
        if not isinstance(x, QTensor):
            return self._islands.get(x, x) if isinstance(x, relax.Var) else x
        scale, zero_point = constant(x.q.scale, "float32"), constant(x.q.zero_point, x.q.dtype)
        return self.emit(relax.op.dequantize(x.expr, scale, zero_point), "dq")

    def island(self, x: QTensor) -> Expr:
        """Returns a tensor that the program itself dequantizes; operators on it are PyTorch's float operators.

        The result passes through an `astype` to float32, which changes no value but marks it. Without the mark,
        dequantize -> operator -> quantize means PyTorch's quantized operator, which rounds differently.
        """
        plain = self.real(x)
        self._islands[plain] = self.emit(relax.op.astype(plain, "float32"), "float")
        return plain

    def quantized(self, x_f32: Expr, q: QuantParams) -> QTensor:
        """Returns the float32 tensor quantized to `q`."""
        scale, zero_point = constant(q.scale, "float32"), constant(q.zero_point, q.dtype)
        var = self.emit(relax.op.quantize(x_f32, scale, zero_point, out_dtype=q.dtype))
        self.quantizes.add(var)
        return QTensor(var, q)

    def quantized_like(self, x: QTensor | Expr, y_f32: Expr) -> QTensor | Expr:
        """Returns y, quantized with x's parameters if x is quantized; for ops that keep their input's parameters."""
        return self.quantized(y_f32, x.q) if isinstance(x, QTensor) else y_f32

    def moved(self, x: QTensor | Expr, expr_of: Any) -> QTensor | Expr:
        """Applies a pure data movement (reshape, slice, ...), to the integers if x is quantized."""
        if isinstance(x, QTensor):
            return QTensor(self.emit(expr_of(x.expr)), x.q)
        return self.emit(expr_of(x))

    def without_gaps(self, x: Any) -> Any:
        """Returns x as PyTorch's `contiguous(x.suggest_memory_format())` holds it: an `astype` to its own dtype."""
        if isinstance(x, QTensor) and x.expr not in self.quantizes:
            return QTensor(self.emit(relax.op.astype(x.expr, x.q.dtype), "dense"), x.q)
        return x

    def params(self, scale: float, zero_point: int, dtype: str = "uint8") -> QuantParams:
        """Returns checked quantization parameters.

        Raises:
            ModelImportError: NaN, zero or negative scale, or a zero point outside of the dtype.
        """
        try:
            return QuantParams.of_torch(float(scale), int(zero_point), dtype)  # type: ignore[arg-type]
        except ValueError as error:
            raise ModelImportError(f"bad quantization parameters at {self.where or 'the graph'}: {error}") from error

    def expect_quantized(self, op: str, *tensors: Any) -> Sequence[QTensor]:
        """Returns the tensors if all are quantized.

        Raises:
            ModelImportError: one of them is a float tensor.
        """
        for index, tensor in enumerate(tensors):
            if not isinstance(tensor, QTensor):
                raise ModelImportError(
                    f"{op} at {self.where}: input {index} is a float tensor, expected a quantized one; "
                    "is a QuantStub missing before it?"
                )
        return tensors
