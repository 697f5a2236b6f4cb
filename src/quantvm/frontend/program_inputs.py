"""The inputs of an imported program: which engine's arithmetic it has, and what size its batch is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx

from quantvm.errors import STATIC_MAY_HELP, ModelImportError, stage
from quantvm.qdq.attributes import INTERFACE, interface_of
from quantvm.qdq.expressions import shape_of
from quantvm.structure import Structure, in_order, is_flat


def importing(program_or_path: Any, batch: str = "static") -> AbstractContextManager[None]:
    """Returns a context for an import that turns unexpected errors into a ModelImportError."""
    is_path = isinstance(program_or_path, (str, Path))
    name = str(program_or_path) if is_path else f"the {type(program_or_path).__name__}"
    return stage(f"importing {name}", ModelImportError, STATIC_MAY_HELP if batch == "dynamic" else "")


def with_interface(module: tvm.IRModule, inputs: Sequence[str], outputs: Structure | None) -> tvm.IRModule:
    """Returns the module with an attribute that names its inputs and says how its outputs are nested."""
    described = None if outputs is None or is_flat(outputs) or _is_alone(outputs) else outputs
    try:
        text = json.dumps({"inputs": list(inputs), "outputs": described})
    except (TypeError, ValueError) as error:
        raise ModelImportError(f"the structure of the outputs cannot be stored: {error}") from error
    return module.with_attr(INTERFACE, text)


def _is_alone(outputs: Structure) -> bool:
    """Returns whether a tuple or list holds one tensor only; that is returned without the container."""
    ((kind, content),) = outputs.items()
    return kind in ("tuple", "list") and len(content) == 1 and "tensor" in content[0]


def input_shapes(module: tvm.IRModule) -> list[list[Any]]:
    """Returns the shape of each input: Python ints, and a variable for a dynamic dimension."""
    return [shape_of(param) for param in module["main"].params]


def examples_in_order(names: Sequence[str], example_inputs: Sequence[Any]) -> list[Any]:
    """Returns the tensors of example inputs, which may be dicts by name, in the order of the program's inputs."""
    try:
        return in_order(names, example_inputs, {})
    except ValueError as error:
        raise ModelImportError(f"example inputs: {error}") from error


def input_names(module: tvm.IRModule) -> list[str]:
    """Returns the names of the program's inputs: the framework's, or else those of the function's parameters."""
    return interface_of(module).get("inputs") or [str(param.name) for param in module["main"].params]


def check_examples(module: tvm.IRModule, example_inputs: Sequence[Any]) -> None:
    """Raises ModelImportError if example inputs have other shapes than the program takes."""
    shapes = input_shapes(module)
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
    """Returns the module with its symbolic sizes named n, n_1, ..., or replaced by the example's if `batch` is static.

    Raises:
        ModelImportError: the example inputs have other shapes, or a dynamic program with batch static has none.
    """
    if example_inputs is not None:
        example_inputs = examples_in_order(input_names(module), example_inputs)
        check_examples(module, example_inputs)
    sizes: dict[Any, Any] = {}
    for index, shape in enumerate(input_shapes(module)):
        for at, size in enumerate(shape):
            if not isinstance(size, tirx.Var) or any(size.same_as(known) for known in sizes):
                continue
            if batch == "dynamic":
                sizes[size] = tirx.Var("n" if not sizes else f"n_{len(sizes)}", "int64")
            elif example_inputs is None:
                raise ModelImportError("batch='static' of a program with a dynamic batch needs example inputs")
            else:
                sizes[size] = tirx.IntImm("int64", int(example_inputs[index].shape[at]))
    if sizes:
        module["main"] = module["main"].bind_symbolic_vars(sizes)
    return relax.transform.Normalize()(module)
