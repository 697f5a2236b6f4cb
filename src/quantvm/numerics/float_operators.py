"""The element-wise float32 operators of Relax programs. Each is declared once, here.

A row holds the operator's name in Relax and its arithmetic in NumPy, in kernels (TIR) and in PyTorch; a formula of
simpler operators can replace the first two. The lowering recognizes, kernels fuse and tests compare the operators of
this table. Of these libraries only NumPy is imported; the others are handed to the functions in the table.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Values = Any
"""Numbers, or an array of any numeric dtype."""
Formula = Callable[..., Any]
"""(arithmetic, operands and options) -> result: calls the operators as methods of the `Arithmetic`."""


def _no_options(call: Any) -> tuple[float, ...]:
    return ()


@dataclass(frozen=True)
class FloatOperator:
    """One operator. Its result is rounded to float32.

    Attributes:
        name: its name in formulas and in float programs.
        relax: its name in Relax, without `relax.`; empty if Relax has no such operator.
        arity: number of tensors that it takes. Options follow them.
        formula: what it computes, in simpler operators.
        numpy: (arrays) -> array, if there is no formula.
        tir: (vectors, registers) -> expression, if there is no formula; `vectors` has the functions for which Python
            has no operator sign.
        aten: its operator in TorchScript, if that takes one float tensor and nothing else.
        torch: path of PyTorch's function inside `torch`; `name` if empty.
        torch_options: keyword arguments of that function.
        is_ieee: for an operator without a formula: whether it is one IEEE 754 operation, which every implementation
            rounds alike. NumPy computes all others in double precision and rounds.
        options: reads the options of a Relax call.
        options_are_operands: whether the Relax call passes them as operands, not as attributes.
        fuses: whether kernels of numerics=qdq fuse it with others.
    """

    name: str
    relax: str
    arity: int = 1
    formula: Formula | None = None
    numpy: Callable[..., Values] | None = None
    tir: Callable[..., Any] | None = None
    aten: str = ""
    torch: str = ""
    torch_options: Mapping[str, Any] = field(default_factory=dict)
    is_ieee: bool = False
    options: Callable[[Any], tuple[float, ...]] = _no_options
    options_are_operands: bool = False
    fuses: bool = False

    @property
    def relax_name(self) -> str:
        """Its full name in Relax, with `relax.`."""
        return f"relax.{self.relax}"

    @property
    def is_exact(self) -> bool:
        """Whether every implementation gives the same bits, being IEEE operations in a known order."""
        return self.is_ieee if self.formula is None else all(step.is_exact for step, _ in steps_of(self.formula))

    @property
    def reads(self) -> int:
        """Number of times that its formula reads its first operand."""
        return 1 if self.formula is None else sum(read.count(0) for _, read in steps_of(self.formula))


class Arithmetic:
    """Computes formulas: each operator of the table is a method.

    Args:
        apply: (operator, operands and options) -> result. Constants of formulas are Python numbers.
    """

    def __init__(self, apply: Callable[..., Any]) -> None:
        self._apply = apply

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FLOAT_OPERATORS:
            raise AttributeError(f"there is no operator {name}")
        operator = FLOAT_OPERATORS[name]
        return lambda *operands: self._apply(operator, *operands)


def numpy_arithmetic(dtype: type) -> Arithmetic:
    """Returns arithmetic on NumPy arrays that rounds the result of every operator to `dtype`.

    Computes: IEEE operations in the dtype; all others in double precision, then rounded.
    """

    def apply(operator: FloatOperator, *operands: Values) -> Values:
        if operator.formula is not None:
            return operator.formula(arithmetic, *operands)
        assert operator.numpy is not None
        arrays = [x if _is_boolean(x) else np.asarray(x, dtype) for x in operands]
        if operator.is_ieee:
            return operator.numpy(*arrays)
        with np.errstate(over="ignore"):
            return np.asarray(operator.numpy(*(x.astype(np.float64) for x in arrays))).astype(dtype)

    arithmetic = Arithmetic(apply)
    return arithmetic


def _is_boolean(x: Values) -> bool:
    return getattr(x, "dtype", None) == np.bool_


# ------------------------------------------------------------------ parts of a formula


def option_names(formula: Formula) -> tuple[str, ...]:
    """Returns the names of the options of a formula with one operand."""
    return tuple(inspect.signature(formula).parameters)[2:]


def steps_of(formula: Formula) -> list[tuple[FloatOperator, tuple[Any, ...]]]:
    """Returns the operators that a formula calls, in order, each with its operands.

    An operand that is a parameter of the formula is given by its index; intermediate results and constants are None.
    """
    parameters = [object() for _ in range(len(inspect.signature(formula).parameters) - 1)]
    found = []

    def apply(step: FloatOperator, *operands: Any) -> object:
        found.append((step, tuple(next((i for i, p in enumerate(parameters) if p is x), None) for x in operands)))
        return object()

    formula(Arithmetic(apply), *parameters)
    return found


# ------------------------------------------------------------------ the table


def _limits(clip: Any) -> tuple[float, ...]:
    """Returns the limits of a call of clip."""
    return tuple(float(getattr(limit, "value", limit)) for limit in clip.args[1:3])


def _sigmoid(o: Arithmetic, x: Any) -> Any:
    return o.divide(1.0, o.add(1.0, o.exp(o.subtract(0.0, x))))


FLOAT_OPERATORS: dict[str, FloatOperator] = {
    row.name: row
    for row in (
        # of two tensors
        FloatOperator("add", "add", 2, numpy=np.add, tir=lambda t, a, b: a + b, is_ieee=True, fuses=True),
        FloatOperator(
            "subtract", "subtract", 2, numpy=np.subtract, tir=lambda t, a, b: a - b, torch="sub", is_ieee=True,
            fuses=True,
        ),
        FloatOperator(
            "multiply", "multiply", 2, numpy=np.multiply, tir=lambda t, a, b: t.rounded(a * b), torch="mul",
            is_ieee=True, fuses=True,
        ),
        FloatOperator(
            "divide", "divide", 2, numpy=np.divide, tir=lambda t, a, b: t.divide(a, b), torch="div", is_ieee=True,
            fuses=True,
        ),
        FloatOperator(
            "maximum", "maximum", 2, numpy=np.maximum, tir=lambda t, a, b: t.maximum(a, b), is_ieee=True, fuses=True
        ),
        FloatOperator(
            "minimum", "minimum", 2, numpy=np.minimum, tir=lambda t, a, b: t.minimum(a, b), is_ieee=True, fuses=True
        ),
        FloatOperator("power", "power", 2, numpy=np.power, torch="pow"),
        # of one tensor
        FloatOperator("relu", "nn.relu", formula=lambda o, x: o.maximum(x, 0.0), fuses=True),
        FloatOperator("relu6", "nn.relu6", formula=lambda o, x: o.clip(x, 0.0, 6.0), torch="nn.functional.relu6"),
        FloatOperator(
            "clip", "clip", formula=lambda o, x, low, high: o.minimum(o.maximum(x, low), high), torch="clamp",
            options=_limits, options_are_operands=True, fuses=True,
        ),
        FloatOperator(
            "leaky_relu", "nn.leakyrelu",
            formula=lambda o, x, slope: o.where(o.greater(x, 0.0), x, o.multiply(x, slope)),
            torch="nn.functional.leaky_relu", options=lambda call: (float(call.attrs.alpha),), fuses=True,
        ),
        FloatOperator("negative", "negative", numpy=np.negative, tir=lambda t, a: t.number(-0.0) - a, torch="neg",
                      is_ieee=True, fuses=True),
        FloatOperator("abs", "abs", aten="aten::abs", numpy=np.abs, tir=lambda t, a: t.abs(a), is_ieee=True,
                      fuses=True),
        FloatOperator("sigmoid", "sigmoid", formula=_sigmoid, fuses=True),
        FloatOperator(
            "silu", "nn.silu", formula=lambda o, x: o.multiply(x, o.sigmoid(x)), torch="nn.functional.silu", fuses=True
        ),
        FloatOperator("tanh", "tanh", numpy=np.tanh),
        FloatOperator(
            "gelu", "nn.gelu", numpy=lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x * math.sqrt(0.5))),
            torch="nn.functional.gelu",
        ),
        FloatOperator(
            "gelu_tanh", "nn.gelu_tanh",
            numpy=lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            torch="nn.functional.gelu", torch_options={"approximate": "tanh"},
        ),
        FloatOperator("exp", "exp", aten="aten::exp", numpy=np.exp, tir=lambda t, a: t.exp(a)),
        FloatOperator("erf", "erf", numpy=np.vectorize(math.erf)),
        FloatOperator("sqrt", "sqrt", aten="aten::sqrt", numpy=np.sqrt),
        FloatOperator("rsqrt", "rsqrt", numpy=lambda x: 1 / np.sqrt(x)),
        FloatOperator("log", "log", numpy=np.log),
        # of formulas only
        FloatOperator("expm1", "", numpy=np.expm1),
        FloatOperator("greater", "", 2, numpy=np.greater, tir=lambda t, a, b: a > b, is_ieee=True),
        FloatOperator("where", "", 3, numpy=np.where, tir=lambda t, c, a, b: t.select(c, a, b), is_ieee=True),
    )
}  # fmt: skip
"""Every operator by its name."""

RELAX_OPERATORS: dict[str, FloatOperator] = {row.relax_name: row for row in FLOAT_OPERATORS.values() if row.relax}
"""Every operator that Relax has, by its Relax name."""

FUSED: dict[str, FloatOperator] = {name: row for name, row in RELAX_OPERATORS.items() if row.fuses}
"""The operators that float programs compute, by their Relax names."""
