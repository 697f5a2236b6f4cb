"""Quantized element-wise functions of one tensor. Each is declared once, here.

Between two quantized tensors such a function is a table of 256 entries. A row of `ACTIVATIONS` says how programs write
it and how PyTorch computes the entries. Importers, the lowering, the tables, `quantvm diff` and docs/supported_ops.md
read it. CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from quantvm.numerics.float_operators import Formula, numpy_arithmetic, option_names, steps_of
from quantvm.numerics.torch_engines import F32, QuantParams, f32, f64

_MISSING = inspect.Parameter.empty
_IN_FLOAT32, _IN_FLOAT64 = numpy_arithmetic(f32), numpy_arithmetic(f64)


@dataclass(frozen=True)
class QuantizedKernel:
    """How PyTorch's kernel for quantized tensors computes, and how it is called; `unary_tables` has the formulas.

    Attributes:
        reciprocal: dtype in which 1 / (output scale) is divided; a float64 quotient is then rounded to float32.
        dequantize: in the vectorised loop: fma(scale, x, -scale*zero_point), or the product scale * (x - z).
        tail: function that scalar tails apply to dequantized float32 values, where it is not the formula.
        qnnpack: whether QNNPACK has a uint8 kernel for it; that kernel rounds in its own way.
        operator: its name in `torch.ops.quantized`; empty where PyTorch's float function accepts quantized tensors.
        arguments: that operator's arguments after the tensor; empty: scale and zero point, then the options.
        module: class in `torch.ao.nn.quantized` that takes scale, zero point and the options; empty if there is none.
    """

    reciprocal: Literal["float64", "float32"] = "float64"
    dequantize: Literal["fma", "product"] = "fma"
    tail: Callable[[F32], F32] | None = None
    qnnpack: bool = False
    operator: str = ""
    arguments: tuple[str, ...] = ()
    module: str = ""


@dataclass(frozen=True)
class Activation:
    """One element-wise function.

    Attributes:
        name: name of the quantized operator in patterns, kernels, tables and reports.
        text: the formula as documentation shows it.
        formula: (operators, x, options) -> result, as Relax writes it between dequantize and quantize.
        torch: path of PyTorch's float function inside `torch`.
        torch_options: its keyword arguments.
        aten: names of its operators in TorchScript, including the in-place one; exported programs append `.default`.
            Empty where PyTorch composes it from other operators, or where converters are written by hand.
        of_quantized: parameters of the aten operator's result for a quantized input: "input", those of the input; or
            fixed ones for each dtype. None where PyTorch has no such kernel.
        kernel: PyTorch's kernel for quantized tensors. None where it dequantizes, computes floats and quantizes again.
        computed: like `formula`, but as PyTorch computes it, where that differs.
        exported: like `formula`, but as exported programs write it, where that differs.
        integer: how numerics=integer computes it: by its own table of the rounded function, by PyTorch's, or by floats.
        keeps_order: whether PyTorch's result has the memory format of its input; if so, convolutions fuse the table.
        needs_dense: whether the kernel makes its input contiguous first.
        accurate_near_zero: whether f(x) ~ x near zero; for exported programs it is computed in double precision there.
    """

    name: str
    text: str
    formula: Formula
    torch: str
    torch_options: Mapping[str, Any] = field(default_factory=dict)
    aten: tuple[str, ...] = ()
    of_quantized: Literal["input"] | Mapping[str, QuantParams] | None = None
    kernel: QuantizedKernel | None = None
    computed: Formula | None = None
    exported: Formula | None = None
    integer: Literal["own", "torch", "float"] = "own"
    keeps_order: bool = True
    needs_dense: bool = False
    accurate_near_zero: bool = False

    @property
    def torchscript(self) -> tuple[str, ...]:
        """Names of all TorchScript operators that compute it."""
        kernel = self.kernel
        return (*self.aten, *([f"quantized::{kernel.operator}"] if kernel is not None and kernel.operator else []))

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its numeric arguments besides x."""
        return option_names(self.formula)

    @property
    def defaults(self) -> dict[str, float]:
        """Default values of the options that may be left out."""
        parameters = inspect.signature(self.formula).parameters
        return {name: parameters[name].default for name in self.options if parameters[name].default is not _MISSING}

    @property
    def is_exact(self) -> bool:
        """Whether every implementation computes the same float32 bits."""
        return all(step.is_exact for step, _ in steps_of(self.formula))

    def rounded_alone(self, x_f32: F32, options: tuple[float, ...] = ()) -> F32:
        """Returns f(x) for float32 values; the result of every operator is rounded to float32."""
        return np.asarray((self.computed or self.formula)(_IN_FLOAT32, x_f32, *options))

    def rounded_once(self, x_f32: F32, options: tuple[float, ...] = ()) -> F32:
        """Returns f(x) for float32 values, computed in double precision and rounded once, unless it is exact."""
        if self.is_exact:
            return self.rounded_alone(x_f32, options)
        return np.asarray((self.computed or self.formula)(_IN_FLOAT64, x_f32, *options)).astype(f32)


_UNIT_INTERVAL = {"uint8": QuantParams(1.0 / 256.0, 0), "int8": QuantParams(1.0 / 256.0, -128, "int8")}
"""Parameters that ATen fixes for results in [0, 1)."""
_AROUND_ZERO = {"uint8": QuantParams(1.0 / 128.0, 128), "int8": QuantParams(1.0 / 128.0, 0, "int8")}
"""Parameters that ATen fixes for results in (-1, 1)."""


def _gate(o: Any, x: Any) -> Any:
    return o.clip(o.add(x, 3.0), 0, 6)


def _elu(o: Any, x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    below = o.multiply(o.subtract(o.exp(o.multiply(o.minimum(x, 0.0), input_scale)), 1.0), alpha)
    return o.multiply(o.add(o.maximum(x, 0.0), below), scale)


def _elu_of_torch(o: Any, x: Any, alpha: float, scale: float, input_scale: float) -> Any:
    curve = o.expm1(o.multiply(x, input_scale))
    return o.multiply(o.where(o.greater(x, 0.0), x, o.multiply(curve, alpha)), scale)


def _sigmoid_tail(x_f32: F32) -> F32:
    """Returns 1 / (1 + expf(-x)), all but the exponential in double precision."""
    with np.errstate(over="ignore"):
        exp_f32 = np.exp(-x_f32.astype(f64)).astype(f32)
    return (1.0 / (1.0 + exp_f32.astype(f64))).astype(f32)


ACTIVATIONS: dict[str, Activation] = {
    row.name: row
    for row in (
        Activation(
            "hardswish", "x * min(max(x+3, 0), 6) / 6", lambda o, x: o.divide(o.multiply(x, _gate(o, x)), 6.0),
            "nn.functional.hardswish", aten=("aten::hardswish", "aten::hardswish_"),
            kernel=QuantizedKernel(qnnpack=True, operator="hardswish", module="Hardswish"),
        ),
        Activation(
            "hardsigmoid", "min(max(x+3, 0), 6) / 6", lambda o, x: o.divide(_gate(o, x), 6.0),
            "nn.functional.hardsigmoid", aten=("aten::hardsigmoid", "aten::hardsigmoid_"),
            of_quantized=_UNIT_INTERVAL, kernel=QuantizedKernel(qnnpack=True),
        ),
        Activation(
            "sigmoid", "1 / (1 + exp(-x))", lambda o, x: o.sigmoid(x), "sigmoid",
            aten=("aten::sigmoid", "aten::sigmoid_"), of_quantized=_UNIT_INTERVAL,
            kernel=QuantizedKernel(dequantize="product", tail=_sigmoid_tail, qnnpack=True, operator="sigmoid"),
        ),
        Activation(
            "tanh", "the hyperbolic tangent", lambda o, x: o.tanh(x), "tanh", aten=("aten::tanh", "aten::tanh_"),
            of_quantized=_AROUND_ZERO, kernel=QuantizedKernel(reciprocal="float32"), integer="torch",
            accurate_near_zero=True,
        ),
        Activation(
            "leaky_relu", "x > 0 ? x : negative_slope * x",
            lambda o, x, negative_slope=0.01: o.leaky_relu(x, negative_slope), "nn.functional.leaky_relu",
            aten=("aten::leaky_relu", "aten::leaky_relu_"), of_quantized="input", needs_dense=True,
            kernel=QuantizedKernel(
                reciprocal="float32", operator="leaky_relu", module="LeakyReLU",
                arguments=("negative_slope", "inplace", "output_scale", "output_zero_point"),
            ),
        ),
        Activation(
            "elu", "scale * (x > 0 ? x : alpha * (exp(input_scale*x) - 1))", _elu, "nn.functional.elu",
            kernel=QuantizedKernel(operator="elu"), computed=_elu_of_torch, integer="float", keeps_order=False,
        ),
        # PyTorch divides; TVM's own silu multiplies by a reciprocal, which rounds twice
        Activation(
            "silu", "x / (1 + exp(-x))", lambda o, x: o.divide(x, o.add(o.exp(o.negative(x)), 1.0)),
            "nn.functional.silu", aten=("aten::silu", "aten::silu_"), exported=lambda o, x: o.silu(x),
        ),
        Activation(
            "gelu", "x * Phi(x)", lambda o, x: o.gelu(x), "nn.functional.gelu", of_quantized="input"
        ),
        Activation(
            "gelu_tanh", "x * Phi(x), by tanh", lambda o, x: o.gelu_tanh(x), "nn.functional.gelu",
            {"approximate": "tanh"}, of_quantized="input",
        ),
        Activation(
            "softsign", "x / (1 + |x|)", lambda o, x: o.divide(x, o.add(o.abs(x), 1.0)), "nn.functional.softsign"
        ),
    )
}  # fmt: skip
"""Every function by its name."""

LIMITS = ("aten::relu", "aten::relu6", "aten::hardtanh", "aten::clamp")
"""Functions that limit values and keep the quantization parameters; a trailing `_` marks the in-place form."""
