"""SHA-256 of files, and of sources of quantvm."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_sources(root: Path, places: Sequence[str], patterns: Sequence[str] = ("*.py",)) -> str:
    """Returns the SHA-256 of files of a package, with their names.

    Args:
        root: The folder of the package.
        places: Files, and folders that are searched, relative to it; an empty text for all of it.
        patterns: Of the names of files in folders.
    """
    digest = hashlib.sha256()
    for place in (root / name for name in places):
        found = sorted(path for pattern in patterns for path in place.rglob(pattern)) if place.is_dir() else [place]
        for path in found:
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
