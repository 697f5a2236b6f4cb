"""Which part of ImageNet an image belongs to: by ImageNet's own names of images, else by folders and archives above."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from quantvm.data.classes import index_of_wnid, indices_of_name, plain_name

PartName = Literal["train", "val", "test"]

_WORDS: dict[str, PartName] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_IMAGENET_NAME = re.compile(r"ILSVRC20\d\d_(val|test)_(\d{8})(?!\d)", re.IGNORECASE)
_TRAINING_NAME = re.compile(r"(n\d{8})_\d+(?!\d)")


def part_of_name(name: str) -> PartName | None:
    """Returns the part that a folder or an archive says it holds; None if it says none, or several.

    A folder that is a class says none, `bullet_train` for instance.
    """
    if name[:9] in index_of_wnid() or plain_name(name) in indices_of_name():
        return None
    found = {_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=1 << 12)
def part_of_folders(path: str) -> PartName | None:
    """Returns the part that the deepest of some folders and archives says it holds.

    Args:
        path: Their names, with `/` or `!` between them.
    """
    names = reversed(path.replace("!", "/").split("/"))
    return next((part for name in names if (part := part_of_name(name)) is not None), None)


def part_of_image(name: str) -> PartName | None:
    """Returns the part that an image's own name says: `ILSVRC2012_val_00000001.JPEG` is one of the validation set."""
    found = _IMAGENET_NAME.search(name)
    return _WORDS[found[1].lower()] if found else None


def validation_number(name: str) -> int | None:
    """Returns the number, 1..50000, of a validation image; None if its name is another."""
    found = _IMAGENET_NAME.search(name)
    return int(found[2]) if found and found[1].lower() == "val" and 1 <= int(found[2]) <= 50_000 else None


def training_name(name: str) -> str | None:
    """Returns the name of an image of the training set, as `n01440764_10026`; None if it is named otherwise."""
    found = _TRAINING_NAME.match(name)
    return found[0] if found is not None and found[1] in index_of_wnid() else None
