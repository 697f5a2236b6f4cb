"""The cache of compiled models: model files in one folder, up to a limit of bytes.

Processes may share the folder: an entry appears whole or not at all, and a reader keeps it open. Imports neither torch
nor tvm.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantvm.errors import ConfigError, MachineError, ModelFileError, OutputError
from quantvm.storage.download import cache_dir

if TYPE_CHECKING:
    from quantvm.runtime.artifact import Artifact
    from quantvm.runtime.manifest import Manifest

BYTES_VARIABLE = "QUANTVM_CACHE_BYTES"
_DEFAULT_BYTES = 2 << 30
_SUFFIX = ".qvm"
VERDICT_SUFFIX = ".verdict.json"
"""The suffix of verdicts, which `quantvm.verification` keeps beside the models."""

_MAX_VERDICTS = 2000
_ABANDONED_S = 3600.0
"""Unfinished files older than this belong to a process that has ended."""


@dataclass(frozen=True)
class CacheEntry:
    """One compiled model of the cache.

    Attributes:
        key: what it was compiled from, as a digest.
        path: of the model file.
        size_bytes: of the model file.
        used_s: when it was last used, in seconds since the epoch.
        manifest: the manifest of the file; None if the file is damaged.
    """

    key: str
    path: Path
    size_bytes: int
    used_s: float
    manifest: Manifest | None


def default_cache() -> CompileCache:
    """Returns the user's cache: in QUANTVM_CACHE or the user's cache folder, of QUANTVM_CACHE_BYTES or 2 GiB.

    Raises:
        ConfigError: QUANTVM_CACHE_BYTES is no number.
    """
    text = os.environ.get(BYTES_VARIABLE, "").strip()
    if text and not text.isdecimal():
        raise ConfigError(f"the environment has {BYTES_VARIABLE}='{text}', expected a whole number of bytes; 0: none")
    return CompileCache(cache_dir() / "compiled", int(text) if text else _DEFAULT_BYTES)


def chosen_cache(cache: bool) -> CompileCache | None:
    """Returns the user's cache; None if a compilation is to use none, or if the cache keeps nothing.

    Raises:
        ConfigError: as `default_cache`.
    """
    store = default_cache() if cache else None
    return None if store is None or store.limit_bytes == 0 else store


class CompileCache:
    """Compiled models by key; the least recently used are removed first.

    Args:
        folder: created when something is stored.
        limit_bytes: the most bytes of all entries together; 0 to keep nothing.
    """

    def __init__(self, folder: Path, limit_bytes: int = _DEFAULT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def find(self, key: str) -> Artifact | None:
        """Returns the compiled model of that key, ready to run if this machine can run it; None if there is none.

        A damaged entry is removed.
        """
        from quantvm.runtime.model_file import open_model_file

        path = self._path(key)
        if not path.is_file():
            return None
        try:
            artifact = open_model_file(path)
            artifact.prepare()
        except MachineError:  # compiled for another one, to be saved
            return artifact
        except OutputError:  # there is no room to unpack it; the entry itself may be fine
            return None
        except ModelFileError:
            path.unlink(missing_ok=True)
            return None
        self._mark_used(path)
        return artifact

    def store(self, key: str, artifact: Artifact) -> None:
        """Keeps a compiled model, and removes the least recently used until all are within the limit.

        Raises:
            CompileError: there is no C++ linker, or it fails.
            OutputError: the cache cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {self.folder}: {error.strerror or error}") from error
        artifact.save(self._path(key))
        self._shrink()

    def entries(self) -> list[CacheEntry]:
        """Returns what is kept, the last used first."""
        from quantvm.runtime.model_file import read_manifest

        found = []
        for path, size_bytes, used_s in self._files():
            try:
                manifest = read_manifest(path)
            except ModelFileError:
                manifest = None
            found.append(CacheEntry(path.stem, path, size_bytes, used_s, manifest))
        return found[::-1]

    def clear(self) -> tuple[int, int]:
        """Removes everything; returns the number of entries, and of bytes."""
        count = total = 0
        for path, size_bytes, _ in self._files():
            path.unlink(missing_ok=True)
            count, total = count + 1, total + size_bytes
        self._drop_verdicts(0)
        self._drop_abandoned(0.0)
        return count, total

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _files(self) -> list[tuple[Path, int, float]]:
        """Returns path, bytes and time of last use of each entry, the least recently used first."""
        rows = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            try:
                status = path.stat()
            except OSError:  # another process has removed it
                continue
            rows.append((path, status.st_size, status.st_mtime))
        return sorted(rows, key=lambda row: (row[2], row[0].name))

    def _mark_used(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:  # removed by another process, or a cache that can only be read
            return

    def _shrink(self) -> None:
        rows = self._files()
        total = sum(size_bytes for _, size_bytes, _ in rows)
        for path, size_bytes, _ in rows:
            if total <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size_bytes
        self._drop_verdicts(_MAX_VERDICTS)
        self._drop_abandoned(_ABANDONED_S)

    def _drop_verdicts(self, kept: int) -> None:
        names = sorted(self.folder.glob(f"*{VERDICT_SUFFIX}"), key=_written_s)
        for path in names[: max(0, len(names) - kept)]:
            path.unlink(missing_ok=True)

    def _drop_abandoned(self, age_s: float) -> None:
        unfinished = [path for suffix in (_SUFFIX, VERDICT_SUFFIX) for path in self.folder.glob(f"*{suffix}.tmp*")]
        for path in unfinished:
            try:
                if time.time() - path.stat().st_mtime >= age_s:
                    path.unlink(missing_ok=True)
            except OSError:
                continue


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process has removed it
        return 0.0
