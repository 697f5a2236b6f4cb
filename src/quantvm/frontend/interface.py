"""The named inputs and outputs of a PyTorch program: arguments of any structure, outputs in the model's own."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from quantvm.errors import ModelImportError
from quantvm.structure import Structure, paths, put_together, take_apart


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call.

    Attributes:
        names: the parameter of each value; None for a value without one, as in *args.
        values: the structure of each argument, in order.
        tensors: all tensors in the values.
    """

    names: tuple[str | None, ...]
    values: tuple[Structure, ...]
    tensors: tuple[torch.Tensor, ...]

    def filled(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns the arguments with other tensors in place of theirs."""
        return [put_together(value, tensors) for value in self.values]

    def input_names(self) -> list[str]:
        """Returns a name for each tensor: its key or parameter, or the whole path to it if that is not unique."""
        found = [
            (number, (name, *path)) for name, value in zip(self.names, self.values, strict=True)
            for number, path in paths(value)
        ]  # fmt: skip
        return input_names([path for _, path in sorted(found)])


def input_names(found: Sequence[tuple[Any, ...]]) -> list[str]:
    """Returns a name for each path of keys: its last key, or the whole path if that is not unique."""
    last = [next((str(key) for key in reversed(path) if isinstance(key, str)), "") for path in found]
    counts = Counter(last)
    names = [
        word if word and counts[word] == 1 else ".".join(str(key) for key in path if key is not None)
        for word, path in zip(last, found, strict=True)
    ]
    if all(path and path[0] for path in found) and len(set(names)) == len(names):
        return names
    return ["input"] if len(found) == 1 else [f"input_{index}" for index in range(len(found))]


def is_tensor(value: Any) -> bool:
    """Returns whether a value is a tensor of some library."""
    return isinstance(value, torch.Tensor) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def split_examples(example_inputs: Any, parameters: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Returns the positional and the named arguments; a dict whose keys are all parameters gives named ones."""
    if isinstance(example_inputs, Mapping):
        if example_inputs and set(example_inputs) <= set(parameters):
            return [], dict(example_inputs)
        return [example_inputs], {}
    return (list(example_inputs) if isinstance(example_inputs, (list, tuple)) else [example_inputs]), {}


def arguments_of(example_inputs: Any, parameters: Sequence[str], varargs: bool = False) -> Arguments:
    """Returns example inputs as arguments of a function.

    Args:
        example_inputs: a tensor, a sequence of arguments, or a dict of them by name.
        parameters: names, in order.
        varargs: whether unnamed arguments may follow.

    Raises:
        ModelImportError: something in them is neither a tensor nor a container, a number, a string or None.
    """
    positional, by_name = split_examples(example_inputs, parameters)
    if len(positional) > len(parameters) and not varargs:
        raise ModelImportError(f"the model takes {len(parameters)} inputs, got {len(positional)} example inputs")
    last = max((parameters.index(name) for name in by_name), default=-1)
    missing = [name for name in parameters[: last + 1] if name not in by_name]
    if missing:
        raise ModelImportError(f"example inputs lack {', '.join(missing)}, which come before {parameters[last]}")
    values = positional + [by_name[name] for name in parameters[: last + 1]]
    names: list[str | None] = [*parameters[: len(values)], *[None] * (len(values) - len(parameters))]
    try:
        structure, tensors = take_apart([_with_tensors(value) for value in values], is_tensor)
        tensors = [torch.as_tensor(x) for x in tensors]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelImportError(
            f"example inputs must be float32 tensors of torch or NumPy, or dicts, lists and tuples of them: {error}"
        ) from error
    return Arguments(tuple(names), tuple(structure["list"]), tuple(tensors))


def _with_tensors(value: Any) -> Any:
    """Returns a number, or nested lists of numbers, as a tensor, and anything else unchanged."""
    if isinstance(value, float):
        return torch.tensor(value)
    if isinstance(value, (list, tuple)) and value and _are_numbers(value):
        return torch.as_tensor(value)
    return value


def _are_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_are_numbers(item) for item in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parameters_of(function: Any) -> tuple[list[str], bool]:
    """Returns the names of a function's positional parameters, and whether it takes *args.

    Raises:
        ModelImportError: a parameter without a default can be given by name only.
    """
    graph = getattr(getattr(function, "__self__", None), "graph", None)
    exported = getattr(getattr(graph, "_codegen", None), "pytree_info", None)
    if exported is not None:  # its forward takes (*args, **kwargs)
        return [name for name in exported.orig_args if name != "self"], False
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [], True
    only = [p.name for p in found if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if only:
        raise ModelImportError(f"the model takes {', '.join(only)} by keyword only, which cannot be recorded; wrap it")
    names = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names, any(p.kind is p.VAR_POSITIONAL for p in found)


def parameters_of_model(model: Any) -> tuple[list[str], bool]:
    """Does `parameters_of` for a module or a TorchScript program."""
    if isinstance(model, torch.jit.ScriptModule):
        return [argument.name for argument in model.forward.schema.arguments][1:], False
    return parameters_of(model.forward)


def dynamic_shapes(arguments: Arguments) -> tuple[Any, ...]:
    """Returns the `dynamic_shapes` of `torch.export.export` for a batch in dimension 0 of each tensor."""
    sizes = {x.shape[0] for x in arguments.tensors if x.ndim}
    batches = {size: torch.export.Dim(f"n_{size}") for size in sizes if size != 1 or sizes == {1}}
    shapes = [{0: batches[x.shape[0]]} if x.ndim and x.shape[0] in batches else {} for x in arguments.tensors]
    return tuple(_shapes_of(value, shapes) for value in arguments.values)


def _shapes_of(structure: Structure, shapes: Sequence[Any]) -> Any:
    ((kind, content),) = structure.items()
    if kind == "constant":
        return None
    if kind == "tensor":
        return shapes[content]
    if kind == "dict":
        return {key: _shapes_of(inner, shapes) for key, inner in content}
    pairs = content[1] if kind == "namedtuple" else enumerate(content)
    items = [_shapes_of(inner, shapes) for _, inner in pairs]
    return items if kind == "list" else tuple(items)


@contextmanager
def flattened(model: torch.nn.Module, arguments: Arguments) -> Iterator[list[Structure]]:
    """Makes a module take and return plain tensors while it is recorded; yields the structures of its outputs.

    Raises:
        ModelImportError: an output is neither a tensor nor a container, a number, a string or None.
    """
    outputs: list[Structure] = []

    def before(module: torch.nn.Module, tensors: tuple[Any, ...]) -> Any:
        return tuple(arguments.filled(tensors)) if module is model else None

    def after(module: torch.nn.Module, tensors: Any, output: Any) -> Any:
        if module is not model:
            return None
        try:
            structure, found = take_apart(output, lambda value: isinstance(value, torch.Tensor))
        except TypeError as error:
            raise ModelImportError(f"the model's output cannot be compiled: {error}") from error
        if not found:
            raise ModelImportError("the model returns no tensor")
        outputs.append(structure)
        return found[0] if len(found) == 1 else tuple(found)

    hooks = torch.nn.modules.module
    handles = [hooks.register_module_forward_pre_hook(before), hooks.register_module_forward_hook(after)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
