"""Quantized torch programs -> Relax in QDQ form (`R.quantize`, `R.dequantize` around float operators).

`from_torch` is the entry. Converters are registered by qualified op name, one op family per file; `registry.py` says
how to add one. Nothing here chooses layouts, kernels or rounding: that is `lowering`.
"""

from .exported import from_exported_program
from .layers import Layer, LayeredProgram, capture
from .torchscript import from_torch, import_layers

__all__ = ["Layer", "LayeredProgram", "capture", "from_exported_program", "from_torch", "import_layers"]
