"""Samples, data sets and calibration sets, as the other stages see them. Values only, no file access."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantvm.data.sources import Source, order_of_storage


@dataclass(frozen=True, slots=True)
class Sample:
    """A labelled image.

    Attributes:
        id: Its path relative to the data set's root, with `/` between the parts.
        source: Where its bytes are: a file, or a place in an archive or table.
        label: Its ImageNet class index, 0..999.
    """

    id: str
    source: Source
    label: int


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used, and why."""

    source: Source
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The images of an evaluation, in order; each has been decoded once as a check.

    Attributes:
        name: The set's name, or the folder as given.
        root: The folder that the ids are relative to.
        samples: The chosen images, sorted by id; those inside of archives and tables, in the order of storage.
        n_requested: How many were requested, or None for all.
        bad: Chosen files that were left out because they cannot be read.
        is_default: Whether the set is the default because the user named none.
        form: In which form the images lie: a name of `FORMS`, "named-set" or "sorted-folders".
        labels: The rule by which their classes were found, as a sentence without its end.
        summary: How many images and classes there are, before a choice, as a sentence without its end.
        notes: What a reader of the results should know, one sentence each.
    """

    name: str
    root: Path
    samples: tuple[Sample, ...]
    n_requested: int | None = None
    bad: tuple[BadImage, ...] = ()
    is_default: bool = False
    form: str = ""
    labels: str = ""
    summary: str = ""
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The hash of the id list, one id per line: equal for the same images in the same order."""
        return hashlib.sha256(_bytes("".join(f"{sample.id}\n" for sample in self.samples))).hexdigest()

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class CalibrationSet:
    """The images for calibrating quantized ranges; each has been decoded once as a check.

    Attributes:
        images: Where their bytes are, in order of use.
        source: A description of where they come from.
        bad: Files that were drawn but left out because they cannot be read.
        notes: What a reader of the results should know, one sentence each.
    """

    images: tuple[Source, ...]
    source: str
    bad: tuple[BadImage, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def draw_order(ids: Iterable[str], seed: int) -> list[str]:
    """Returns the ids in an order that looks random and depends only on the ids and the seed.

    Sorting by a hash keeps the choice the same on every machine and version of Python, makes a smaller subset part
    of a larger one with the same seed, and does not reshuffle the rest when images are added or removed.
    """
    return sorted(ids, key=lambda name: (hashlib.sha256(_bytes(f"{seed}\n{name}")).digest(), name))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # file names need not be valid Unicode


def choose_subset(samples: Sequence[Sample], num_samples: int | None, seed: int) -> tuple[Sample, ...]:
    """Returns a seeded choice of `num_samples` of the samples, or all, if there are no more.

    They are sorted by id; those inside of archives and tables by their place, so that these are read from start to end.
    """
    ordered = sorted(samples, key=lambda sample: (order_of_storage(sample.source), sample.id))
    if num_samples is None or num_samples >= len(ordered):
        return tuple(ordered)
    chosen = set(draw_order((sample.id for sample in ordered), seed)[:num_samples])
    return tuple(sample for sample in ordered if sample.id in chosen)
