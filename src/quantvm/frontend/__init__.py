"""Quantized programs -> Relax in QDQ form (`R.quantize`, `R.dequantize` around float operators).

`import_model` is the entry, for modules and files of every kind. Converters are registered by qualified op name, one
op family per file; `registry.py` says how to add one for TorchScript, `exported/registry.py` for exported programs.
Nothing here chooses layouts, kernels or rounding; `lowering` does. Modules are imported on first use, so that ONNX and
TFLite files need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantvm.frontend.exported.importer import from_exported_program
    from quantvm.frontend.onnx.model import from_onnx
    from quantvm.frontend.tflite.model import from_tflite
    from quantvm.frontend.torchscript.importer import from_torch, import_layers

    from .builder import QdqBuilder, QTensor, constant, shape_of
    from .entry import import_model
    from .layers import Layer, LayeredProgram, capture
    from .registry import register_converter

__all__ = [
    "Layer",
    "LayeredProgram",
    "QTensor",
    "QdqBuilder",
    "capture",
    "constant",
    "from_exported_program",
    "from_onnx",
    "from_tflite",
    "from_torch",
    "import_layers",
    "import_model",
    "register_converter",
    "shape_of",
]

_HOME = {
    "Layer": "layers",
    "LayeredProgram": "layers",
    "QTensor": "builder",
    "QdqBuilder": "builder",
    "capture": "layers",
    "constant": "builder",
    "from_exported_program": "exported.importer",
    "from_onnx": "onnx.model",
    "from_tflite": "tflite.model",
    "from_torch": "torchscript.importer",
    "import_layers": "torchscript.importer",
    "import_model": "entry",
    "register_converter": "registry",
    "shape_of": "builder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quantvm.frontend' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
