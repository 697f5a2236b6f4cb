"""The inputs of an imported program: which engine's arithmetic it has, and what size its batch is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx

from quantvm.errors import STATIC_MAY_HELP, ModelImportError, stage

ENGINE_ATTR = "quantvm.engine"
"""Module attribute: the engine whose arithmetic the quantized operators have."""


def importing(program_or_path: Any, batch: str = "static") -> AbstractContextManager[None]:
    """Returns the boundary of an import: what nothing in the block expected becomes a ModelImportError."""
    is_path = isinstance(program_or_path, (str, Path))
    name = str(program_or_path) if is_path else f"the {type(program_or_path).__name__}"
    return stage(f"importing {name}", ModelImportError, STATIC_MAY_HELP if batch == "dynamic" else "")


def input_shapes(module: tvm.IRModule) -> list[list[Any]]:
    """Returns the shape of each input: Python ints, and a variable where a dimension is dynamic."""
    return [[int(d) if hasattr(d, "value") else d for d in param.ty.shape] for param in module["main"].params]


def check_examples(module: tvm.IRModule, example_inputs: Sequence[Any] | None) -> None:
    """Raises ModelImportError where example inputs are of other shapes than the program takes."""
    if example_inputs is None:
        return
    shapes = input_shapes(module)
    if len(example_inputs) != len(shapes):
        raise ModelImportError(f"the program takes {len(shapes)} inputs, got {len(example_inputs)} example inputs")
    problems = []
    for index, (shape, example) in enumerate(zip(shapes, example_inputs, strict=True)):
        given = list(example.shape)
        if len(given) != len(shape) or any(
            isinstance(size, int) and size != actual for size, actual in zip(shape, given, strict=True)
        ):
            text = ", ".join(str(size) for size in shape)
            problems.append(f"input {index} has shape ({', '.join(map(str, given))}), the program takes ({text})")
    if problems:
        raise ModelImportError("; ".join(problems) + "; export the program with the shapes that it will run with")


def bind_batch(module: tvm.IRModule, example_inputs: Sequence[Any] | None, batch: str) -> tvm.IRModule:
    """Returns the module with its symbolic sizes called n, or replaced by the example's if the batch is static.

    Raises:
        ModelImportError: example inputs of other shapes, or none for a static batch of a dynamic program.
    """
    check_examples(module, example_inputs)
    sizes: dict[Any, Any] = {}
    for index, shape in enumerate(input_shapes(module)):
        if not shape or isinstance(shape[0], int) or any(shape[0].same_as(known) for known in sizes):
            continue
        if batch == "dynamic":
            sizes[shape[0]] = tirx.Var("n" if not sizes else f"n_{len(sizes)}", "int64")
        elif example_inputs is None:
            raise ModelImportError("batch='static' of a program with a dynamic batch needs example inputs")
        else:
            sizes[shape[0]] = tirx.IntImm("int64", int(example_inputs[index].shape[0]))
    if sizes:
        module["main"] = module["main"].bind_symbolic_vars(sizes)
    return relax.transform.Normalize()(module)
