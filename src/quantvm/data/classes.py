"""The 1,000 ImageNet classes: index, wnid and name, from the bundled table ``imagenet_classes.tsv``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType

WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ImageNetClass:
    """A class of ImageNet: its output index 0..999, its WordNet id and a name, which need not be unique."""

    index: int
    wnid: str
    name: str


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Returns the classes in the order of the networks' outputs."""
    text = resources.files("quantvm.data").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines()[1:])
    return tuple(ImageNetClass(int(index), wnid, name) for index, wnid, name in rows)


@lru_cache(maxsize=1)
def class_names() -> tuple[str, ...]:
    """Returns the names of the classes in the order of the networks' outputs."""
    return tuple(item.name for item in imagenet_classes())


@lru_cache(maxsize=1)
def index_of_wnid() -> MappingProxyType[str, int]:
    """Returns the class index of every wnid."""
    return MappingProxyType({item.wnid: item.index for item in imagenet_classes()})
