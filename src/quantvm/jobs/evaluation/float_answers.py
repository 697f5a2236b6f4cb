"""Answers of float models, which are kept in the user's cache: a float model takes most of a run's time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from quantvm.data.prepared import Facts
from quantvm.errors import OutputError
from quantvm.jobs.evaluation.parts import Part, part_bytes, part_in
from quantvm.jobs.evaluation.units import Shard
from quantvm.storage.download import cache_dir
from quantvm.storage.output_files import make_folder, write_file

_MOST_BYTES = 256 << 20
_SUFFIX = ".parquet"


def float_answers_folder() -> Path:
    """Returns the folder in the user's cache."""
    return cache_dir() / "float_answers"


def kept_float_answers() -> list[Path]:
    """Returns the files in the user's cache."""
    return sorted(float_answers_folder().glob(f"*{_SUFFIX}"))


def clear_float_answers() -> tuple[int, int]:
    """Removes all answers from the user's cache; returns how many files, and of how many bytes."""
    count = total = 0
    for path in kept_float_answers():
        with suppress(OSError):
            size_bytes = path.stat().st_size
            path.unlink()
            count, total = count + 1, total + size_bytes
    return count, total


class FloatAnswers:
    """The answers of float models on shards of images, by all that decides them.

    Args:
        folder: of the answers; None: none are kept.
        conditions: what decides answers beside weights, preprocessing and images: versions, threads, batch size, CPU.
        facts: of the images, by `str` of their source; their digests say which images they are.
    """

    def __init__(self, folder: Path | None, conditions: Mapping[str, Any], facts: Mapping[str, Facts]) -> None:
        self._folder, self._facts = folder, facts
        self._conditions = json.dumps(dict(conditions), sort_keys=True)

    def find(self, shard: Shard, fingerprint: str) -> Part:
        """Returns the answers on a whole shard, or an empty part.

        Args:
            shard: the images.
            fingerprint: of the model's weights and preprocessing.
        """
        path = self._path(shard, fingerprint)
        if path is None:
            return Part()
        part = part_in(path)
        is_of_shard = part.ids == tuple(sample.id for sample in shard.samples) and "fp32_top5" in part.columns
        return part if is_of_shard and part.facts.get("fingerprint") == fingerprint else Part()

    def add(self, shard: Shard, fingerprint: str, part: Part) -> None:
        """Keeps the answers on a whole shard; a cache that cannot be written is left as it is."""
        path = self._path(shard, fingerprint)
        if path is None or len(part) != len(shard) or path.exists():
            return
        with suppress(OutputError, OSError):
            make_folder(path.parent)
            write_file(path, part_bytes(part))
            self._shrink()

    def _path(self, shard: Shard, fingerprint: str) -> Path | None:
        if self._folder is None or any(str(sample.source) not in self._facts for sample in shard.samples):
            return None
        digest = sha256(f"{fingerprint}\n{self._conditions}\n".encode())
        for sample in shard.samples:
            line = json.dumps([sample.id, sample.label, self._facts[str(sample.source)].digest])
            digest.update(f"{line}\n".encode())
        return self._folder / f"{digest.hexdigest()}{_SUFFIX}"

    def _shrink(self) -> None:
        """Removes the oldest answers until all are within the limit."""
        assert self._folder is not None
        rows = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob(f"*{_SUFFIX}"))
        total = sum(size_bytes for _, size_bytes, _ in rows)
        for _, size_bytes, path in rows:
            if total <= _MOST_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= size_bytes
