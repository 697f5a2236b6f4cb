"""The layers of ONNX and TFLite files: the result of each quantize in the Relax form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm

from quantvm.frontend.onnx.layers import OnnxSource
from quantvm.qdq.bindings import definitions
from quantvm.qdq.expressions import is_call, is_per_tensor, quant_params, shape_of

from .entry import format_of
from .layer_graphs import with_layers
from .layers import Layer, LayeredProgram
from .program_inputs import importing


def import_file_layers(path: Path, example_inputs: Sequence[Any]) -> LayeredProgram:
    """Returns a program that also returns every tensor it quantizes per tensor, for batches of the example's size.

    Its source is ONNX Runtime if that is installed and each layer is known to be one tensor of an ONNX file.

    Args:
        path: an `.onnx` or `.tflite` file.
        example_inputs: float32 torch tensors, in the file's order of dimensions.

    Raises:
        ModelImportError, UnsupportedOpError: see `from_onnx` and `from_tflite`.
    """
    with importing(path):
        return _layers_of(path, tuple(example_inputs))


def _layers_of(path: Path, inputs: tuple[Any, ...]) -> LayeredProgram:
    tensors: dict[str, str] = {}
    if format_of(path) == "onnx":
        from quantvm.frontend.onnx.model import from_onnx_with_tensors, load_onnx

        model = load_onnx(path)
        module, tensors = from_onnx_with_tensors(model, inputs, "static")
    else:
        from quantvm.frontend.tflite.model import from_tflite

        module = from_tflite(path, example_inputs=inputs, batch="static")
    found, layers = _layers(module, tensors)
    chained = with_layers(module, found)
    source = OnnxSource(model) if tensors and OnnxSource.is_installed() else None
    n_outputs = len(chained["main"].ret_ty.fields) - len(layers)
    return LayeredProgram(source, layers, chained, n_outputs, inputs)


def _layers(module: tvm.IRModule, tensors: dict[str, str]) -> tuple[list[Any], tuple[Layer, ...]]:
    """Returns the variables that hold results of quantizes, and the layer of each."""
    bound = definitions(module["main"])
    found, layers = [], []
    for var, call in bound.items():
        if not is_call(call, "relax.quantize") or not is_per_tensor(call):
            continue
        name, q = str(var.name), quant_params(call)
        found.append(var)
        layers.append(Layer(name, _made_by(call, bound), tensors.get(name, name), tuple(shape_of(var)), q))
    return found, tuple(layers)


def _made_by(call: Any, bound: dict[Any, Any]) -> str:
    """Returns the operator whose result is quantized; for a convolution with bias and ReLU, the convolution."""
    name, made = "input", bound.get(call.args[0])
    while isinstance(made, tvm.ir.Call) and not is_call(made, "relax.dequantize"):
        name = str(getattr(made.op, "name", made.op))
        made = next((bound[a] for a in made.args if a in bound), None)
    return name
