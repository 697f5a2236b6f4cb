"""The text of a pytest file that computes one operator by both sides of a comparison."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantvm.layer_rules import Operator
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.torch_engines import QuantParams
from quantvm.runtime.target import Machine


@dataclass(frozen=True)
class ReproCase:
    """An operator, its inputs' integers in PyTorch's logical order, and the sides that compute it.

    Attributes:
        operator, inputs: what is computed.
        layer, model: where it comes from.
        reference, actual: sides: torch, torch:ENGINE, tvm or tvm:NUMERICS.
        pytorch: with the engine that the model was quantized for.
        machine: what TVM's side is compiled for.
    """

    operator: Operator
    inputs: Sequence[NDArray]
    layer: str
    model: str
    reference: str
    actual: str
    pytorch: PyTorch
    machine: Machine


TITLE = '''"""{case.layer} of {case.model}: {case.actual} against {case.reference}.

Written by quantvm diff --save-repro. It fails for as long as the two sides differ.
TVM's side is compiled with verify=False, so that it is compared here.
"""
'''

ARRAYS = '''
ARRAYS = np.load(io.BytesIO(base64.b64decode("""
{arrays}
""")))
INPUTS = {inputs}  # (scale, zero point, dtype) of each
{more}OUTPUT = {output}
THREADS = {case.machine.threads}

'''

INTEGERS = '''
def integers(y_f32):
    """The integers of real outputs."""
    scale, zero_point, _ = OUTPUT
    return np.rint(np.asarray(y_f32, np.float64) / scale).astype(np.int64) + zero_point

'''

TEST = '''
def expected():
    """The reference, {case.reference}."""
    return {expected}


def found():
    """What is compared with it, {case.actual}."""
    return {found}


def test_layer():
    """Both give the same integers."""
    e, f = expected(), found()
    differs = f != e
    assert not differs.any(), (
        f"{{differs.sum()}} of {{e.size}} differ: {case.actual} {{f[differs][:8]}}, {case.reference} {{e[differs][:8]}}"
    )
'''

_TEMPLATE = (
    TITLE
    + """
import base64
import io

import numpy as np
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.nn.functional as functional

import quantvm
"""
    + ARRAYS
    + '''
class Layer(torch.nn.Module):
    """{kind}, of real inputs that are quantized first."""

    def __init__(self):
        super().__init__()
{init}
        self.eval()

    def forward(self, {parameters}):
{forward}
        return y.dequantize()


def reals():
    """The real values of the integers; quantizing them gives the integers again."""
{reals}

'''
    + INTEGERS
    + '''
def on_torch(engine):
    """What PyTorch computes under an engine."""
    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    try:
        torch.backends.quantized.engine = engine
        torch.set_num_threads(THREADS)
        with torch.inference_mode():
            return integers(Layer()(*reals()).numpy())
    finally:
        torch.backends.quantized.engine = before
        torch.set_num_threads(threads)


def on_tvm(engine, numerics):
    """What TVM computes."""
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = engine
        artifact = quantvm.compile(
            Layer(), reals(), engine=engine, numerics=numerics, target={case.machine.target!r}, threads=THREADS,
            batch="static", cache=False, verify=False,
        )
    finally:
        torch.backends.quantized.engine = before
    return integers(artifact(*reals()).numpy())

'''
    + TEST
)


def repro_text(case: ReproCase) -> str:
    """Returns the file."""
    operator = case.operator
    arrays: dict[str, NDArray] = {f"x{i}": x for i, x in enumerate(case.inputs)}
    init, forward = _quantized_inputs(case)
    kind_init, kind_forward, kind_arrays = _layer(operator, len(case.inputs))
    return _TEMPLATE.format(
        case=case,
        arrays=encoded({**arrays, **kind_arrays}),
        inputs=[params(q) for q in operator.inputs],
        more="",
        output=params(operator.output),
        kind=operator.kind,
        init=indented([*init, *kind_init]),
        parameters=", ".join(f"x{i}" for i in range(len(case.inputs))),
        forward=indented([*forward, *kind_forward]),
        reals=indented(_reals(operator), 4),
        expected=_call(case.reference, case.pytorch),
        found=_call(case.actual, case.pytorch),
    )


def params(q: QuantParams) -> tuple[float, int, str]:
    """Returns quantization parameters as the file holds them."""
    return q.scale, q.zero_point, q.dtype


def _call(side: str, pytorch: PyTorch) -> str:
    kind, _, rest = side.partition(":")
    engine = pytorch.engine
    return f"on_torch({rest or engine!r})" if kind == "torch" else f"on_tvm({engine!r}, {rest or 'torch'!r})"


def encoded(arrays: dict[str, NDArray]) -> str:
    """Returns arrays as lines of text: the bytes of `numpy.savez_compressed`, in base64."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return "\n".join(textwrap.wrap(base64.b64encode(buffer.getvalue()).decode("ascii"), 100))


def indented(lines: Sequence[str], by: int = 8) -> str:
    """Returns indented lines of code."""
    return textwrap.indent("\n".join(lines), " " * by)


def _reals(operator: Operator) -> list[str]:
    if operator.kind == "quantize":
        return ["return [torch.from_numpy(ARRAYS['x0'])]"]
    return [
        "return [",
        "    torch.from_numpy((ARRAYS[f'x{i}'].astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale))",
        "    for i, (scale, zero_point, _) in enumerate(INPUTS)",
        "]",
    ]


_DTYPES = {"uint8": "torch.quint8", "int8": "torch.qint8"}


def _quantized_inputs(case: ReproCase) -> tuple[list[str], list[str]]:
    """Returns the statements that quantize the inputs and bring them into PyTorch's channels-last order."""
    operator = case.operator
    init, forward = [], []
    needs_order = operator.channels_last and operator.kind not in ("conv2d", "linear", "relu", "clip", "max_pool2d")
    for i, (x, q) in enumerate(zip(case.inputs, operator.inputs, strict=False)):
        init.append(f"self.quantize{i} = nnq.Quantize({q.scale!r}, {q.zero_point}, {_DTYPES[q.dtype]})")
        forward.append(f"x{i} = self.quantize{i}(x{i})")
        if needs_order and x.shape[1] > 1 and x.shape[2:] != (1, 1):
            init += [
                f"self.same{i} = nnq.Conv2d({x.shape[1]}, {x.shape[1]}, 1, bias=False)",
                f"same = torch.quantize_per_tensor(torch.eye({x.shape[1]})[:, :, None, None], 1.0, 0, torch.qint8)",
                f"self.same{i}.set_weight_bias(same, None)",
                f"self.same{i}.scale, self.same{i}.zero_point = {q.scale!r}, {q.zero_point}",
            ]
            forward.append(f"x{i} = self.same{i}(x{i})  # a convolution's result is channels-last in memory")
    return init, forward


def _layer(operator: Operator, n_inputs: int) -> tuple[list[str], list[str], dict[str, NDArray]]:
    """Returns the statements that make the operator and call it, and the arrays that it holds."""
    kind, q = operator.kind, operator.output
    out = f"{q.scale!r}, {q.zero_point}"
    if kind in ("conv2d", "linear"):
        return _contraction(operator)
    if kind == "quantize":
        return [f"self.layer = nnq.Quantize({out}, {_DTYPES[q.dtype]})"], ["y = self.layer(x0)"], {}
    if kind in ("add", "mul", "concat"):
        call = "cat([" + ", ".join(f"x{i}" for i in range(n_inputs)) + f"], {operator.axis})"
        if kind != "concat":
            call = f"{kind}{'_relu' if operator.relu else ''}(x0, x1)"
        init = ["self.layer = nnq.QFunctional()", f"self.layer.scale, self.layer.zero_point = {out}"]
        return init, [f"y = self.layer.{call}"], {}
    if kind in ACTIVATIONS:
        return _activation(operator)
    return [], [f"y = {_function(operator)}"], {}


def _activation(operator: Operator) -> tuple[list[str], list[str], dict[str, NDArray]]:
    """Returns the statements of a function of `ACTIVATIONS`."""
    activation, q = ACTIVATIONS[operator.kind], operator.output
    kernel, options = activation.kernel, "".join(f", {value!r}" for value in operator.options)
    if kernel is not None and kernel.module:
        made = f"self.layer = nnq.{kernel.module}({q.scale!r}, {q.zero_point}{options})"
        return [made], ["y = self.layer(x0)"], {}
    if kernel is not None and kernel.operator and activation.of_quantized is None:
        called = f"torch.ops.quantized.{kernel.operator}(x0, {q.scale!r}, {q.zero_point}{options})"
        return [], [f"y = {called}"], {}
    function = f"torch.{activation.torch}".replace("torch.nn.functional.", "functional.")
    options += "".join(f", {name}={value!r}" for name, value in activation.torch_options.items())
    if kernel is not None:
        return [], [f"y = {function}(x0{options})"], {}
    floats = f"{function}(x0.dequantize(){options})"
    return [], [f"y = torch.quantize_per_tensor({floats}, {q.scale!r}, {q.zero_point}, {_DTYPES[q.dtype]})"], {}


def _function(operator: Operator) -> str:
    kind = operator.kind
    if kind in ("avg_pool2d", "max_pool2d"):
        window = operator.window
        assert window is not None
        options: dict[str, Any] = {
            "stride": window.stride,
            "padding": window.padding[:2],
            "ceil_mode": window.ceil_mode,
        }
        if kind == "avg_pool2d":
            options["count_include_pad"] = window.count_include_pad
        else:
            options["dilation"] = window.dilation
        return f"functional.{kind}(x0, {window.kernel}, {', '.join(f'{k}={v!r}' for k, v in options.items())})"
    if kind == "clip":
        return f"torch.clamp(x0, {operator.options[0]!r}, {operator.options[1]!r})"
    return {
        "adaptive_avg_pool2d": f"functional.adaptive_avg_pool2d(x0, {operator.out_size})",
        "mean": f"x0.mean({list(operator.axes)}, keepdim={operator.keepdims})",
        "relu": "torch.relu(x0)",
    }[kind]


def _contraction(operator: Operator) -> tuple[list[str], list[str], dict[str, NDArray]]:
    weight, scales, zero_points = operator.weight, operator.weight_scales, operator.weight_zero_points
    assert weight is not None
    assert scales is not None
    assert zero_points is not None
    arrays: dict[str, NDArray] = {"weight": weight, "scales": scales, "zero_points": zero_points}
    has_bias = operator.bias_f32 is not None
    if operator.bias_f32 is not None:
        arrays["bias"] = operator.bias_f32
    if operator.kind == "linear":
        kind = "nniq.LinearReLU" if operator.relu else "nnq.Linear"
        made = f"self.layer = {kind}({weight.shape[1]}, {weight.shape[0]}, {has_bias})"
    else:
        window = operator.window
        assert window is not None
        kind = "nniq.ConvReLU2d" if operator.relu else "nnq.Conv2d"
        made = (
            f"self.layer = {kind}({weight.shape[1] * window.groups}, {weight.shape[0]}, {window.kernel}, "
            f"stride={window.stride}, padding={window.padding[:2]}, dilation={window.dilation}, "
            f"groups={window.groups}, bias={has_bias})"
        )
    integers = "torch.from_numpy(ARRAYS['weight'])"
    if scales.size == weight.shape[0]:
        packed = (
            f"torch._make_per_channel_quantized_tensor({integers}, torch.from_numpy(ARRAYS['scales']), "
            "torch.from_numpy(ARRAYS['zero_points']), 0)"
        )
    else:
        packed = (
            f"torch._make_per_tensor_quantized_tensor({integers}, float(ARRAYS['scales'][0]), "
            "int(ARRAYS['zero_points'][0]))"
        )
    bias = "torch.from_numpy(ARRAYS['bias'])" if has_bias else "None"
    init = [
        made,
        f"weight = {packed}",
        f"self.layer.set_weight_bias(weight, {bias})",
        f"self.layer.scale, self.layer.zero_point = {operator.output.scale!r}, {operator.output.zero_point}",
    ]
    return init, ["y = self.layer(x0)"], arrays
