"""Quantized torch programs -> Relax in QDQ form (`R.quantize`, `R.dequantize` around float operators).

`from_torch` is the entry. Converters are registered by qualified op name, one op family per file; `registry.py` says
how to add one. Nothing here chooses layouts, kernels or rounding: that is `lowering`.
"""

from .torchscript import from_torch

__all__ = ["from_torch"]
