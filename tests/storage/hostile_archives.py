"""Archives whose members are replaced, and objects that show that they were unpickled."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MARK = "PWNED"
"""The file that a payload makes in the working folder."""


class Payload:
    """Makes the marking file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARK, "w")


def members(path: Path) -> dict[str, bytes]:
    """Returns what an archive holds, by names without the archive's own folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, held: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Writes an archive as PyTorch does: everything in one folder, each member on a multiple of 64 bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in held.items():
            info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
            info.compress_type = compression
            start = archive.fp.tell() + 30 + len(info.filename)  # type: ignore[union-attr]
            pad = -(start + 4) % 64
            info.extra = b"FB" + pad.to_bytes(2, "little") + b"Z" * pad
            archive.writestr(info, data)
    return path


def edited(source: Path, target: Path, **changes: Callable[[bytes], bytes] | bytes | None) -> Path:
    """Writes a copy of an archive with members changed, added or (None) left out; `__` in a name stands for `/`."""
    held = members(source)
    for key, change in changes.items():
        name = key.replace("__", "/").replace("_DOT_", ".")
        if change is None:
            del held[name]
        else:
            held[name] = change(held[name]) if callable(change) else change
    return write(target, held)


def in_json(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """Returns the function of a member that changes its JSON in place."""

    def of(data: bytes) -> bytes:
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return of


def pickled(value: Any) -> bytes:
    """Returns what `torch.save` writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
