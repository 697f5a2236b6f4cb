"""TFLite files -> Relax in QDQ form, through TVM's own importer; knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm

from quantvm.errors import ModelImportError


def from_tflite(
    model_or_path: Any, *, example_inputs: Sequence[Any] | None = None, batch: str = "dynamic"
) -> tvm.IRModule:
    """Raises ModelImportError."""
    raise ModelImportError("TFLite files are not supported yet; convert the model to ONNX")
