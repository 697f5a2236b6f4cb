"""The 1,000 ImageNet classes (``imagenet_classes.tsv``), and the class of each of the 50,000 validation images.

There are two numberings. The class index, 0..999, is the place of the WordNet id among the 1,000 sorted ones; networks
use it. ILSVRC2012_ID, 1..1000, is that of ImageNet's devkit; for no class it is the index + 1.

``imagenet_validation_labels.bin`` holds the class indices of validation images 1 to 50,000, ten bits each. They are
those of the devkit, of Caffe's val.txt and of TensorFlow's list of synsets, which all say the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType

import numpy as np

WNID = re.compile(r"n\d{8}")
N_CLASSES = 1000
N_VALIDATION = 50_000
_BITS = 10


@dataclass(frozen=True)
class ImageNetClass:
    """A class of ImageNet.

    Attributes:
        index: Its place among the networks' outputs, 0..999.
        wnid: Its WordNet id.
        name: A name, which need not be unique.
        ilsvrc2012_id: Its number in the devkit, 1..1000.
    """

    index: int
    wnid: str
    name: str
    ilsvrc2012_id: int


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Returns the classes in the order of the networks' outputs."""
    text = resources.files("quantvm.data").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines()[1:])
    return tuple(ImageNetClass(int(index), wnid, name, int(number)) for index, wnid, name, number in rows)


@lru_cache(maxsize=1)
def class_names() -> tuple[str, ...]:
    """Returns the names of the classes in the order of the networks' outputs."""
    return tuple(item.name for item in imagenet_classes())


@lru_cache(maxsize=1)
def index_of_wnid() -> MappingProxyType[str, int]:
    """Returns the class index of every wnid."""
    return MappingProxyType({item.wnid: item.index for item in imagenet_classes()})


@lru_cache(maxsize=1)
def index_of_ilsvrc2012_id() -> MappingProxyType[int, int]:
    """Returns the class index of every ILSVRC2012_ID, 1..1000."""
    return MappingProxyType({item.ilsvrc2012_id: item.index for item in imagenet_classes()})


@lru_cache(maxsize=1)
def indices_of_name() -> MappingProxyType[str, tuple[int, ...]]:
    """Returns the class indices of every name, as `plain_name` writes it; two classes can have one name."""
    return _indices_by(lambda item: plain_name(item.name))


@lru_cache(maxsize=1)
def indices_of_spelling() -> MappingProxyType[str, tuple[int, ...]]:
    """Returns the class indices of every name as it is written in the table; two classes can have one name."""
    return _indices_by(lambda item: item.name)


def _indices_by(key: Callable[[ImageNetClass], str]) -> MappingProxyType[str, tuple[int, ...]]:
    found: dict[str, list[int]] = defaultdict(list)
    for item in imagenet_classes():
        found[key(item)].append(item.index)
    return MappingProxyType({name: tuple(indices) for name, indices in found.items()})


def plain_name(name: str) -> str:
    """Returns a class's name without what differs between lists: case, blanks, hyphens, underscores, apostrophes."""
    return re.sub(r"[\s_\-'’.]+", "", name).casefold()


@lru_cache(maxsize=1)
def validation_labels() -> np.ndarray:
    """Returns (50000,) uint16: element n is the class index of the validation image n + 1."""
    packed = resources.files("quantvm.data").joinpath("imagenet_validation_labels.bin").read_bytes()
    bits = np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(N_VALIDATION, _BITS)
    return bits.astype(np.uint16) @ (1 << np.arange(_BITS - 1, -1, -1, dtype=np.uint16))
