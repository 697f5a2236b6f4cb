"""Keeps verdicts, so that a second compilation of the same model compares nothing.

A verdict is used again only if everything that it depends on is the same: the compiled code, the model itself (not only
the imported program, because the import may be wrong), the reference and its version, the inputs, and the CPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantvm.compiler.cache import VERDICT_SUFFIX, CompileCache
from quantvm.errors import OutputError
from quantvm.frontend.entry import needs_export
from quantvm.frontend.source import Source
from quantvm.frontend.torchscript.loading import load_program
from quantvm.runtime.target import cpu_model
from quantvm.runtime.verdict import VERDICTS, Verification
from quantvm.storage.digests import sha256_of_sources
from quantvm.storage.output_files import make_folder, write_file

_MANGLED = re.compile(r"___torch_mangle_\d+\.?")
"""What TorchScript adds to the name of a class that it sees again."""

_ENVIRONMENT = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def verdict_key(code: str | None, source: Source, reference: str, runs: Sequence[Sequence[np.ndarray]]) -> str | None:
    """Returns 64 hexadecimal digits, equal for comparisons with the same result; None if a part has no digest.

    Args:
        code: key of the compiled code, which covers engine, threads, numerics and target.
        source: what was compiled; its example is nested as the model takes it.
        reference: name and version.
        runs: inputs of every run.
    """
    model = digest_of_model(source)
    if code is None or model is None:
        return None
    inputs = hashlib.sha256()
    for array in (array for run in runs for array in run):
        _add_array(inputs, array)
    parts = {
        "code": code,
        "source": model,
        "reference": reference,
        "inputs": inputs.hexdigest(),
        "cpu": cpu_model(),
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        "sources": _digest_of_sources(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find(store: CompileCache, key: str) -> Verification | None:
    """Returns the verdict of that key; None if there is none, or its file is damaged."""
    path = store.folder / f"{key}{VERDICT_SUFFIX}"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        found = Verification(**{**row, "batch_sizes": tuple(row["batch_sizes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found.verdict in VERDICTS else None


def keep(store: CompileCache, key: str, found: Verification) -> None:
    """Keeps a verdict; if the folder cannot be written, the next compilation compares again."""
    path = store.folder / f"{key}{VERDICT_SUFFIX}"
    with suppress(OutputError):
        make_folder(store.folder)
        write_file(path, json.dumps(dataclasses.asdict(found)).encode())


def digest_of_model(source: Source) -> str | None:
    """Returns the SHA-256 of what was compiled, with every bit of its weights; None if it holds unknown objects.

    A live module is traced, because any attribute or closure may influence its program. Modules that are exported when
    they are compiled have no digest.
    """
    model = source.model
    digest = hashlib.sha256(type(model).__qualname__.encode())
    try:
        if isinstance(model, (str, Path)):
            with Path(model).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        elif isinstance(model, torch.export.ExportedProgram):
            digest.update(str(model.graph).encode())
            _add(digest, dict(model.state_dict))
            _add(digest, dict(model.constants))
        elif isinstance(model, torch.jit.ScriptModule):
            buffer = io.BytesIO()
            torch.jit.save(model, buffer)
            digest.update(buffer.getvalue())
        elif isinstance(model, torch.nn.Module):
            if needs_export(model):
                return None
            graph = load_program(source).script.inlined_graph
            digest.update(_MANGLED.sub("", str(graph)).encode())
            _add(digest, dict(model.state_dict()))
        else:
            digest.update(model.SerializeToString(deterministic=True))  # of ONNX
    except Exception:  # noqa: BLE001 - whatever cannot be read so is compared each time
        return None
    return digest.hexdigest()


def digest_of_state(module: torch.nn.Module) -> str:
    """Returns the SHA-256 of a module's state: the names and every bit of its tensors.

    Raises:
        TypeError: the state holds an object of an unknown kind.
    """
    digest = hashlib.sha256()
    _add(digest, dict(module.state_dict()))
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Adds a value of a state dict.

    Raises:
        TypeError: it is of an unknown kind.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            digest.update(f"{name}\n".encode())
            _add(digest, item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(digest, item)
    elif hasattr(value, "__tensor_flatten__"):  # torchao's
        names, context = value.__tensor_flatten__()
        digest.update(repr(context).encode())
        _add(digest, [getattr(value, name) for name in names])
    elif isinstance(value, torch.Tensor):
        tensor = value.detach()
        if tensor.is_quantized:
            is_channel = tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
            rest = (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()) if is_channel else (
                tensor.q_scale(), tensor.q_zero_point()
            )  # fmt: skip
            _add(digest, [tensor.int_repr(), *rest])
        else:
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        digest.update(repr(value).encode())
    else:
        raise TypeError(type(value).__name__)


def _add_array(digest: Any, array: np.ndarray) -> None:
    digest.update(f"{array.dtype} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


@lru_cache(maxsize=1)
def _digest_of_sources() -> str:
    """Returns the SHA-256 of the sources that compare, and of those that import for the comparison."""
    return sha256_of_sources(Path(__file__).parents[1], ("verification", "frontend"))
