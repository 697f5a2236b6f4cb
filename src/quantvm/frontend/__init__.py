"""Quantized torch programs -> Relax in QDQ form (`R.quantize`, `R.dequantize` around float operators).

`import_model` is the entry. Converters are registered by qualified op name, one op family per file; `registry.py` says
how to add one. Nothing here chooses layouts, kernels or rounding: that is `lowering`.
"""

from .builder import QdqBuilder, QTensor, constant, shape_of
from .entry import import_model
from .exported import from_exported_program
from .layers import Layer, LayeredProgram, capture
from .registry import register_converter
from .torchscript import from_torch, import_layers

__all__ = [
    "Layer",
    "LayeredProgram",
    "QTensor",
    "QdqBuilder",
    "capture",
    "constant",
    "from_exported_program",
    "from_torch",
    "import_layers",
    "import_model",
    "register_converter",
    "shape_of",
]
