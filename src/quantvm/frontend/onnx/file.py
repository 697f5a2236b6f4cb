"""Reads an ONNX file and the external files of its tensors in the same folder, and no other file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from quantvm.errors import ModelImportError, first_line
from quantvm.storage.regular_files import check_regular, open_regular

_MOST_NODES = 1_000_000


def read_onnx(path: Path) -> Any:
    """Returns the `onnx.ModelProto` of a file, with all tensors in memory.

    Raises:
        ModelImportError: not a regular file, not an ONNX file, or tensors in files outside of its folder.
    """
    import onnx

    with open_regular(path, ModelImportError) as file:
        data = file.read()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # each version of protobuf raises another kind
        raise ModelImportError(f"{path} is truncated or no ONNX file: {first_line(error)}") from error
    if not model.graph.node or not model.opset_import:
        raise ModelImportError(f"{path} is truncated or no ONNX file: it holds no graph")
    _check_texts(model, str(path))
    check_functions(model, str(path))
    return with_external_data(model, path.parent, str(path))


def _check_texts(model: Any, name: str) -> None:
    """Raises ModelImportError if a text is not UTF-8: protobuf then returns bytes for it."""
    pending = [model]
    while pending:
        message = pending.pop()
        if message.DESCRIPTOR.name == "TensorProto":  # its numbers are not copied
            texts = [message.name, *(text for entry in message.external_data for text in (entry.key, entry.value))]
        else:
            texts = []
            for field, held in message.ListFields():
                values = [held] if isinstance(held, str | bytes) or hasattr(held, "DESCRIPTOR") else held
                if field.type == field.TYPE_MESSAGE:
                    pending += values
                elif field.type == field.TYPE_STRING and field.name != "doc_string":
                    texts += values
        for text in texts:
            if not isinstance(text, str):
                raise ModelImportError(f"{name} is damaged: it holds the name {text!r}, expected UTF-8")


def check_functions(model: Any, name: str = "the model") -> None:
    """Raises ModelImportError if inlining the functions would give too many nodes, or if one calls itself.

    In a file of two kilobytes, thirty functions can each call the next one twice.
    """
    held = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    pending = list(held)
    while pending:
        key = pending[-1]
        called = [(node.domain, node.op_type) for node in _nodes(held[key])]
        missing = {other for other in called if other in held and other not in sizes}
        if missing and len(pending) > len(held) ** 2 + len(held):
            raise ModelImportError(f"{name}: the function {key[1]} calls itself")
        pending += missing
        if not missing:
            sizes[key] = min(sum(sizes.get(other, 1) for other in called), 10**15)
            pending.pop()
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _nodes(model))
    if total > _MOST_NODES:
        raise ModelImportError(f"{name}: its functions come to {total:,} nodes, expected at most {_MOST_NODES:,}")


def _nodes(holder: Any) -> Iterator[Any]:
    """Yields the nodes of a model's graph, or of a function, and of all nested graphs."""
    pending = [holder.graph if hasattr(holder, "graph") else holder]
    while pending:
        for node in pending.pop().node:
            yield node
            for held in node.attribute:
                pending += [inner for inner in (held.g, *held.graphs) if inner.node]


def with_external_data(model: Any, folder: Path, name: str = "the model") -> Any:
    """Returns the model with all tensors in memory: the same object if they are there already, else a copy.

    Args:
        model: an `onnx.ModelProto`; it is not modified.
        folder: the folder with the files of its tensors.
        name: the name of the model in messages.

    Raises:
        ModelImportError: the file of a tensor is not in the folder, is not a regular file, or is too short.
    """
    from onnx import ModelProto, TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(model)):
        return model
    complete = ModelProto()
    complete.CopyFrom(model)
    for tensor in _tensors(complete):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        held = {entry.key: entry.value for entry in tensor.external_data}
        location = held.get("location", "")
        _check_location(location, folder, f"{name}: the tensor {tensor.name!r} lies in {location!r}")
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # onnx's checks raise several kinds
            raise ModelImportError(
                f"{name}: the tensor {tensor.name!r} in {location!r}: {first_line(error)}"
            ) from error
    return complete


def _check_location(location: str, folder: Path, what: str) -> None:
    """Raises ModelImportError unless a location is a regular file in the folder, after resolving links."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if (
        not location
        or "\0" in location
        or posix.is_absolute()
        or windows.anchor
        or ".." in {*posix.parts, *windows.parts}
    ):
        raise ModelImportError(f"{what}, expected a file in the folder of the model")
    found = (folder / location).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise ModelImportError(f"{what}, a link out of the folder of the model")
    try:
        check_regular(found, ModelImportError)
    except ModelImportError as error:
        raise ModelImportError(f"{what}: {error}") from error


def _tensors(model: Any) -> Iterator[Any]:
    """Yields all tensors of a model, however deeply nested."""
    pending = [model.graph, *model.functions, *(info.initialization for info in model.training_info)]
    while pending:
        graph = pending.pop()
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for held in node.attribute:
                yield from (held.t, *held.tensors)
                for sparse in (held.sparse_tensor, *held.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                pending += [inner for inner in (held.g, *held.graphs) if inner.node or inner.initializer]
