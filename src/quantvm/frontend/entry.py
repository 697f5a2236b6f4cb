"""The entry for every kind of quantized program: chooses the importer by its type, or by the contents of its file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tvm

from quantvm.errors import ModelImportError, first_line, gist
from quantvm.storage.regular_files import checked_path, open_regular

from .program_inputs import bind_batch, importing
from .source import Source

Format = Literal["torchscript", "exported", "onnx", "tflite"]
_TFLITE_MAGIC = b"TFL3"
_ONNX_FIRST_BYTE = 0x08  # field 1 of a ModelProto, ir_version, as a varint
_KINDS = "TorchScript (torch.jit.save), an exported program (torch.export.save), ONNX or TFLite"


def import_model(
    model_or_path: Any, example_inputs: Any = None, *, engine: str | None = None, batch: str = "dynamic"
) -> tvm.IRModule:
    """Returns the quantized program in Relax QDQ form; an attribute says which engine's arithmetic it has.

    Args:
        model_or_path: an `nn.Module` or ScriptModule, an `ExportedProgram`, an `onnx.ModelProto`, or the path of a
            TorchScript, `.pt2`, `.onnx` or `.tflite` file; the file's contents decide, not its name.
        example_inputs: one float32 tensor, a sequence of arguments (tensors, or dicts, lists and tuples of them), or a
            dict of them by name; needed for modules and TorchScript. If the program states its input shapes, the
            examples are checked against them.
        engine: PyTorch engine that an eager module or TorchScript was quantized for, see `from_torch`.
        batch: dynamic: dimension 0 of every input is symbolic; in an exported, ONNX or TFLite program, only where the
            program says so. static: it is the example's.

    Raises:
        ModelImportError, UnsupportedOpError: it cannot be imported; the message says why and what to call instead.
    """
    with importing(model_or_path, batch):
        return _imported(Source(model_or_path, example_inputs, engine, batch))


def _imported(source: Source) -> tvm.IRModule:
    model = source.model
    if isinstance(model, (str, Path)):
        return _import_file(replace(source, model=checked_path(model, ModelImportError)))
    if type(model).__name__ == "ModelProto":
        return _onnx(source)
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        return _exported(source)
    if isinstance(model, torch.nn.Module) and needs_export(model):
        _check_converted(model)
        return _exported(replace(source, model=export_module(model, source.example_inputs, source.batch)))
    return _torchscript(source)


def format_of(path: Path) -> Format:
    """Returns the format of a file.

    Raises:
        ModelImportError: no such file, or none of the formats that can be imported.
    """
    with open_regular(path, ModelImportError) as file:
        head = file.read(8)
    if not head:
        raise ModelImportError(f"{path} is empty")
    if head[4:8] == _TFLITE_MAGIC:
        return "tflite"
    if head[:2] == b"PK":
        return _format_of_archive(path)
    if head[0] == _ONNX_FIRST_BYTE:
        return "onnx"
    what = "a pickle of torch.save, which holds no program" if head[0] == 0x80 else "none of the formats known here"
    raise ModelImportError(f"{path} is {what}; expected {_KINDS}")


def _format_of_archive(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            first = min((info.header_offset for info in archive.infolist()), default=0)
    except zipfile.BadZipFile as error:
        raise ModelImportError(
            f"{path} is truncated: it begins as a ZIP archive, but has no directory at its end"
        ) from error
    except Exception as error:  # Python's reader raises any kind of error on a damaged directory
        raise ModelImportError(f"{path} is a damaged ZIP archive: {gist(error)}") from error
    if first:  # the directory that was found belongs to a complete archive inside of this one
        raise ModelImportError(f"{path} is truncated: it begins as a ZIP archive, but its end is missing")
    inner = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in inner:
        return "torchscript"
    if any(name.startswith("models/") or name == "archive_format" for name in inner) or any(
        name.startswith("serialized_exported_program") for name in names
    ):
        return "exported"
    if "data.pkl" in inner:
        raise ModelImportError(
            f"{path} was written by torch.save and holds weights or a pickled object, no program; save "
            "torch.jit.trace(model, inputs) or torch.export.export(model, inputs)"
        )
    raise ModelImportError(f"{path} is a ZIP archive that holds no program; expected {_KINDS}")


def _import_file(source: Source) -> tvm.IRModule:
    by_kind: dict[Format, Callable[[Source], tvm.IRModule]] = {
        "onnx": _onnx,
        "tflite": _tflite,
        "exported": _exported,
        "torchscript": _torchscript,
    }
    return by_kind[format_of(source.model)](source)


def _onnx(source: Source) -> tvm.IRModule:
    from quantvm.frontend.onnx.model import from_onnx

    return from_onnx(source.model, example_inputs=source.arguments, batch=source.batch)


def _tflite(source: Source) -> tvm.IRModule:
    from quantvm.frontend.tflite.model import from_tflite

    return from_tflite(source.model, example_inputs=source.arguments, batch=source.batch)


def _exported(source: Source) -> tvm.IRModule:
    from quantvm.frontend.exported.importer import from_exported_program

    if source.arguments is None:
        return from_exported_program(source.model, batch=source.batch)
    try:
        module = from_exported_program(source.model)
    except ModelImportError:
        if source.batch == "dynamic":
            raise
        module = from_exported_program(source.model, batch="static")  # other dimensions than the batch are dynamic
    return bind_batch(module, source.arguments, source.batch)


def _torchscript(source: Source) -> tvm.IRModule:
    from quantvm.frontend.torchscript.importer import import_torch

    if source.example_inputs is None:
        what = str(source.model) if isinstance(source.model, Path) else f"a {type(source.model).__name__}"
        raise ModelImportError(f"{what} does not say the shapes of its inputs; pass example_inputs")
    return import_torch(source)


def needs_export(model: Any) -> bool:
    """Returns whether a live module must be exported: PT2E or torchao's quantize_ made it."""
    import torch

    is_graph = isinstance(model, torch.fx.GraphModule)
    if is_graph and any("quantized_decomposed" in str(node.target) for node in model.graph.nodes):
        return True
    if is_graph and any(_is_observer(inner) for inner in model.modules()):
        return True
    return any(type(p).__module__.startswith("torchao.") for p in model.parameters())


def _is_observer(module: Any) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torchao.") and ("Observer" in kind.__name__ or "FakeQuant" in kind.__name__)


def _check_converted(model: Any) -> None:
    from quantvm.frontend.exported.checks import NOT_CONVERTED

    observers = [name for name, inner in model.named_modules() if _is_observer(inner)]
    if observers:
        raise ModelImportError(f"the model holds {len(observers)} observers ({observers[0]}, ...): {NOT_CONVERTED}")


def export_module(model: Any, examples: Any, batch: str) -> Any:
    """Returns the exported program of a live module; its batch is symbolic if `batch` is dynamic."""
    import torch

    from quantvm.frontend.exported.importer import register_operators

    from .interface import arguments_of, dynamic_shapes, parameters_of

    if examples is None:
        raise ModelImportError(f"a {type(model).__name__} does not say the shapes of its inputs; pass example_inputs")
    register_operators()
    arguments = arguments_of(examples, *parameters_of(model.forward))
    inputs = tuple(arguments.filled(arguments.tensors))
    shapes = dynamic_shapes(arguments) if batch == "dynamic" else None
    try:
        with torch.no_grad():
            return torch.export.export(model, inputs, dynamic_shapes=shapes)
    except Exception as error:  # each version of torch raises other kinds
        reason = first_line(error)
        raise ModelImportError(
            f"torch.export cannot export the model with a {batch} batch: {reason}. Export it yourself and pass the "
            "ExportedProgram" + ("; or use batch='static'" if batch == "dynamic" else "")
        ) from error
