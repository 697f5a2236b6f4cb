"""One entry for every kind of quantized program: which importer it is for, by its type or its file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import tvm

from quantvm.errors import ModelImportError

from .exported import from_exported_program
from .torchscript import from_torch


def import_model(
    model_or_path: Any, example_inputs: Any = None, *, engine: str | None = None, batch: str = "dynamic"
) -> tvm.IRModule:
    """Returns the quantized program in Relax QDQ form.

    Args:
        model_or_path: an eager-quantized module, a traced one, or the path of a TorchScript file.
        example_inputs: one float32 tensor or a sequence of them.
        engine: as for `from_torch`.
        batch: dynamic or static.

    Raises:
        ModelImportError, UnsupportedOpError: it cannot be imported.
    """
    suffix = Path(model_or_path).suffix.lower() if isinstance(model_or_path, (str, Path)) else ""
    if suffix == ".pt2" or isinstance(model_or_path, torch.export.ExportedProgram):
        return from_exported_program(model_or_path, batch=batch)
    if example_inputs is None:
        what = Path(model_or_path) if isinstance(model_or_path, (str, Path)) else f"a {type(model_or_path).__name__}"
        raise ModelImportError(f"{what} does not say the shapes of its inputs; pass example_inputs")
    return from_torch(model_or_path, example_inputs, engine=engine, batch=batch)
