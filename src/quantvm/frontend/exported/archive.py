"""Reads an exported program from a `.pt2` file without executing anything in it.

`torch.export.load` unpickles example inputs and weights, and loads compiled code from the file. So the archive is read
here: pickles may hold only plain tensors, and `archive_checks` checks all strings. Only then PyTorch's reader gets the
description of the program and the tensors.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import (
    ExportedProgramDeserializer,
    _bytes_to_dataclass,
    _dict_to_dataclass,
    deserialize_scalar_type,
    deserialize_size,
    deserialize_storage_offset,
    deserialize_stride,
)

from quantvm.errors import ModelImportError, UnsupportedOpError, gist
from quantvm.frontend.archive_checks import check_untrusted
from quantvm.storage.regular_files import open_regular
from quantvm.torch_compat import quiet_torchao

from .registry import find_exported  # noqa: F401  (converters are registered where programs are read)

_MODEL, _INPUTS = "models/model.json", "data/sample_inputs/model.pt"
_CONFIG, _LEGACY_TENSORS = "data/{0}/model_{0}_config.json", "data/{0}/model.pt"
_OLD = "serialized_exported_program.json"
_OLD_TENSORS, _OLD_INPUTS = "serialized_{}.pt", "serialized_example_inputs.pt"
_ARCHIVE_VERSION, _OLDEST_SCHEMA = "0", 2
_MOST_VIEWED_BYTES = 2 << 30
_MOST_TIMES_PACKED, _ALWAYS_UNPACKED_BYTES = 200, 256 << 20
_NO_CODE = (
    "data that is pickled may run any code where it is opened, so only plain tensors are. Save the program without it: "
    "program.example_inputs = None, or load and save it yourself with torch.export, and pass the ExportedProgram"
)


def read_program(path: Path) -> Any:
    """Returns the `torch.export.ExportedProgram` of a file; nothing of the file is executed.

    Raises:
        ModelImportError: it is not a regular file, or holds pickles of anything but tensors, custom objects, compiled
            code, or strings that PyTorch must not evaluate; the message names the member.
        UnsupportedOpError: it calls functions outside of PyTorch's libraries of operators.
        Exception: any error of PyTorch or zipfile on damaged files.
    """
    with open_regular(path, ModelImportError) as file:
        archive = _Archive(file)
        content, weights, constants, inputs = (
            _read_old_format(archive) if archive.has(_OLD) else _read_current_format(archive)
        )
    check_untrusted(content)
    program = ExportedProgramDeserializer().deserialize(content, weights, constants, inputs)
    _check_targets(program.graph_module)
    return program


class _Archive:
    """The members of a ZIP archive by name, without the name of its top folder."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file)
        infos = self._zip.infolist()
        size_bytes = file.seek(0, io.SEEK_END)
        unpacked_bytes = sum(info.file_size for info in infos)
        if unpacked_bytes > max(_ALWAYS_UNPACKED_BYTES, _MOST_TIMES_PACKED * size_bytes):
            raise ModelImportError(
                f"it unpacks to {unpacked_bytes:,} bytes, {unpacked_bytes // size_bytes:,} times its size"
            )
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename if info.filename.startswith("serialized_") else info.filename.partition("/")[2]
            if name in self._members:
                raise ModelImportError(f"it holds {info.filename} twice")
            self._members[name] = info
        code = [name for name in self._members if name.startswith("data/aotinductor/")]
        if code:
            raise ModelImportError(f"it holds compiled code ({code[0]}), expected what torch.export.save writes")

    def has(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> bytes:
        if name not in self._members:
            raise ModelImportError(f"it lacks {name}")
        return self._zip.read(self._members[name])

    def text(self, name: str) -> str:
        return self.read(name).decode("utf-8")

    def storage(self, name: str) -> torch.Tensor:
        """Returns the bytes of a member, in newly allocated memory."""
        if name not in self._members:
            raise ModelImportError(f"it lacks {name}")
        info = self._members[name]
        storage = torch.empty(info.file_size, dtype=torch.uint8)
        with self._zip.open(info) as member:
            target, filled = memoryview(storage.numpy()), 0
            while filled < info.file_size and (count := member.readinto(target[filled:])):  # type: ignore[attr-defined]
                filled += count
            if filled != info.file_size or member.read(1):
                raise ModelImportError(f"{name} has another size than the archive says")
        return storage


def _read_current_format(archive: _Archive) -> tuple[Any, Any, Any, Any]:
    version = archive.text("archive_version")
    if version != _ARCHIVE_VERSION:
        raise ModelImportError(f"it has archive version {version!r}, expected {_ARCHIVE_VERSION!r}")
    content = _bytes_to_dataclass(schema.ExportedProgram, archive.read(_MODEL))
    inputs = archive.read(_INPUTS) if archive.has(_INPUTS) else b""
    return content, _tensors(archive, "weights"), _tensors(archive, "constants"), _inputs(inputs, _INPUTS)


def _read_old_format(archive: _Archive) -> tuple[Any, Any, Any, Any]:
    """Reads the format of PyTorch 2.2 to 2.7."""
    content = _bytes_to_dataclass(schema.ExportedProgram, archive.read(_OLD))
    held = []
    for kind in ("state_dict", "constants"):
        name = _OLD_TENSORS.format(kind)
        held.append(_named_tensors(archive.read(name), name))
    inputs = archive.read(_OLD_INPUTS) if archive.has(_OLD_INPUTS) else b""
    return content, *held, _inputs(inputs, _OLD_INPUTS)


def _tensors(archive: _Archive, kind: str) -> dict[str, Any]:
    """Returns weights or constants by name; tensors in the same member share memory, as in the model."""
    legacy = _LEGACY_TENSORS.format(kind)
    if archive.has(legacy):
        return _named_tensors(archive.read(legacy), legacy)
    config = _dict_to_dataclass(schema.PayloadConfig, json.loads(archive.text(_CONFIG.format(kind))))
    storages: dict[str, torch.Tensor] = {}
    tensors: dict[str, Any] = {}
    for name, meta in config.config.items():
        member = f"data/{kind}/{meta.path_name}"
        if not str(meta.path_name).startswith(("weight_", "tensor_")):
            raise ModelImportError(f"{name} is an object of a custom class ({member}), expected a tensor. {_NO_CODE}")
        if meta.use_pickle:
            tensors[name] = _checked_tensor(_unpickled(archive.read(member), member), member)
            continue
        if member not in storages:
            storages[member] = archive.storage(member)
        tensors[name] = _view(storages[member], meta, name)
    return tensors


def _view(storage_u8: torch.Tensor, meta: Any, name: str) -> Any:
    """Returns a tensor that is a view of a member's bytes."""
    held = meta.tensor_meta
    if held.device.type != "cpu":
        raise ModelImportError(f"{name} lies on the device {held.device.type}; move the model to the CPU and export it")
    dtype = deserialize_scalar_type(held.dtype)
    size, stride = deserialize_size(held.sizes), deserialize_stride(held.strides)
    if math.prod(size) * dtype.itemsize > max(storage_u8.numel(), _MOST_VIEWED_BYTES):
        raise ModelImportError(f"{name} has shape {tuple(size)} of {storage_u8.numel():,} bytes")
    flat = storage_u8.view(dtype) if storage_u8.numel() else torch.zeros(math.prod(size), dtype=dtype)
    tensor = torch.as_strided(flat, size, stride, deserialize_storage_offset(held.storage_offset))
    return torch.nn.Parameter(tensor, requires_grad=bool(held.requires_grad)) if meta.is_param else tensor


# ------------------------------------------------------------------ pickles


def _unpickled(data: bytes, member: str) -> Any:
    """Returns tensors, numbers and containers of them that `torch.save` wrote; no function of the file is called."""
    if b"torchao" in data:  # importing it registers its tensor classes with PyTorch
        with quiet_torchao():
            try:
                import torchao.quantization  # noqa: F401
            except ImportError as error:
                raise ModelImportError(
                    f"{member} holds tensors of torchao, which is not installed: pip install 'quantvm[pt2e]'"
                ) from error
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # pickle's own error, RuntimeError, or any kind on damaged archives
        raise ModelImportError(
            f"{member} is damaged, or holds more than tensors: {_reason(error)}. {_NO_CODE}"
        ) from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line]
    return told[0][:300] if told else gist(error)


def _checked_tensor(value: Any, member: str) -> Any:
    kind = type(value)
    if not isinstance(value, torch.Tensor) or (
        not kind.__module__.startswith(("torch.", "torchao.")) and kind.__module__ != "torch"
    ):
        raise ModelImportError(f"{member} holds a {kind.__name__}, expected a tensor. {_NO_CODE}")
    return value


def _named_tensors(data: bytes, member: str) -> dict[str, Any]:
    if not data:
        return {}
    held = _unpickled(data, member)
    if not isinstance(held, dict):
        raise ModelImportError(f"{member} holds a {type(held).__name__}, expected tensors by name")
    return {name: _checked_tensor(value, f"{member}, {name},") for name, value in held.items()}


def _inputs(data: bytes, member: str) -> Any:
    """Returns the example inputs: a tuple of arguments and a dict of them, or None."""
    if not data:
        return None
    held = _unpickled(data, member)
    if not isinstance(held, tuple):
        raise ModelImportError(f"{member} holds a {type(held).__name__}, expected arguments")
    return held


def _check_targets(module: Any) -> None:
    """Raises UnsupportedOpError if a name in the file was resolved to anything but an operator."""
    kinds = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
    for inner in module.modules():
        for node in inner.graph.nodes if isinstance(inner, torch.fx.GraphModule) else ():
            target = node.target
            if node.op != "call_function" or isinstance(target, kinds):
                continue
            if getattr(target, "__module__", None) not in ("_operator", "math", "torch"):
                raise UnsupportedOpError(f"it calls {target!r} at {node.name}, which is no operator of PyTorch")
