"""Says which shards of a set are missing, by their names and by the lists that lie beside them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

_OF = re.compile(r"^(.*?)[-_.]?(\d{4,6})-of-(\d{4,6})")
_NUMBERED = re.compile(r"^(.*?)(\d+)\.tar$")
_MOST_NAMED = 3


def missing_shards(containers: Iterable[str], hints: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each set of shards that is not whole.

    Args:
        containers: The paths of archives and tables that are there.
        hints: Path and text of the files `nshards.txt` (a number) and `_info.json` (timm's list of shards).
    """
    there = list(containers)
    found = [*_by_total(there), *_by_gaps(there)]
    for path, text in hints.items():
        folder = path.rpartition("/")[0]
        names = {name for name in map(PurePosixPath, there) if str(name.parent) == (folder or ".")}
        if path.endswith("nshards.txt") and text.strip().isdecimal() and len(names) < int(text):
            found.append(f"{path}: {len(names)} of {int(text)} shards are there; the others are missing")
        elif path.endswith("_info.json"):
            found += _by_info(path, text, {name.name for name in names})
    return found


def _by_total(containers: Iterable[str]) -> list[str]:
    """Reads names such as `validation-00000-of-00014.parquet`."""
    numbers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for path in containers:
        folder, slash, name = path.rpartition("/")
        if shard := _OF.match(name):
            numbers[f"{folder}{slash}{shard[1]}", int(shard[3])].add(int(shard[2]))
    return [
        f"{name}: {len(there)} of {total} shards are there; the others are missing"
        for (name, total), there in numbers.items() if len(there) < total
    ]  # fmt: skip


def _by_gaps(containers: Iterable[str]) -> list[str]:
    """Reads names such as `imagenet-val-000000.tar`; which was the last one they do not say."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for path in containers:
        folder, slash, name = path.rpartition("/")
        if (shard := _NUMBERED.match(name)) and not re.match(r"n\d{8}", name):
            numbers[f"{folder}{slash}{shard[1]}"].add(int(shard[2]))
    found = []
    for name, there in numbers.items():
        n_gaps = max(there) + 1 - len(there) - (0 not in there)  # some count from 1
        if n_gaps > 0:
            found.append(f"{name}*.tar: of the numbers up to {max(there)}, {n_gaps:,} or more are missing")
    return found


def _by_info(path: str, text: str, there: set[str]) -> list[str]:
    try:
        splits = json.loads(text)["splits"].values()
        listed = [[str(name) for name in split["filenames"]] for split in splits]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    found = []
    for names in listed:
        missing = [name for name in names if PurePosixPath(name).name not in there]
        if missing and len(missing) < len(names):  # a part that was not downloaded at all is not missed
            some = ", ".join(missing[:_MOST_NAMED])
            found.append(f"{path}: {len(missing)} of {len(names)} shards are missing, {some} among them")
    return found
