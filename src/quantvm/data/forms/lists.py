"""Forms whose images lie flat, and a list says their classes: by name, or by the numbers of validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from quantvm.data.classes import validation_labels
from quantvm.data.forms.reading import INSTEAD_NUMBERS, Labelled, Material, Reading, left_out
from quantvm.data.label_lists import KINDS, LabelList, ListKind, judge, read_list
from quantvm.data.parts import validation_number
from quantvm.errors import DataError


@dataclass(frozen=True)
class UsableList:
    """A list whose numbering is known.

    Attributes:
        found: The list.
        labels: The class index that it gives to each image of the material, or None.
    """

    found: LabelList
    labels: list[int | None]


@dataclass(frozen=True)
class _Lists:
    usable: list[UsableList]
    problems: list[str]


def usable_lists(material: Material) -> list[UsableList]:
    """Returns the lists that say classes of the images, in ImageNet's order."""
    return _judged(material).usable


def list_form(kind: ListKind) -> Callable[[Material], Reading | None]:
    """Returns the reader of images whose classes a list of the kind says."""

    def read(material: Material) -> Reading | None:
        return _read(material, kind)

    return read


def validation_numbers(material: Material) -> Reading | None:
    """Reads validation images of ImageNet without any list."""
    found, rest = [], []
    truth = validation_labels()
    for image in material.images:
        number = validation_number(image.name)
        if number is None:
            rest.append(image)
        else:
            found.append(Labelled(image, int(truth[number - 1]), len(image.parts) - 1))
    if not found:
        return None
    notes = left_out(rest, "without a number of the validation set in the name")
    return Reading(
        found, "the number in the image's name, by ImageNet's own list of the 50,000 validation images", notes
    )


def read_named_list(material: Material, name: str, text: str) -> Reading:
    """Reads images with the list of ``--labels``, whatever else lies beside them.

    Raises:
        DataError: It is no list of labels, has none of the images, or its numbers are no class indices.
    """
    found = read_list(name, text)
    if found is None:
        raise DataError(
            f"--labels {name}: not a list of labels. Known are lines of an image's name and its class index 0..999 or "
            "wnid (by blank, comma or tab; a header may come first), Kaggle's LOC_val_solution.csv, the devkit's "
            "validation ground truth, and one wnid a line in the order of the validation images"
        )
    judged = judge(found, [image.parts for image in material.images])
    if judged.problem is not None:
        raise DataError(f"--labels {name}: it {judged.problem}")
    return _reading(material, [UsableList(found, judged.labels)], found.kind, [])


def _read(material: Material, kind: ListKind) -> Reading | None:
    lists = _judged(material)
    usable = sorted(
        lists.usable, key=lambda item: (item.found.kind != kind, -sum(label is not None for label in item.labels))
    )
    if not usable:
        if lists.problems:
            has_numbers = any(validation_number(image.name) for image in material.images)
            instead = INSTEAD_NUMBERS if has_numbers else "--labels FILE names another list"
            raise DataError(f"{material.root}: {'; '.join(lists.problems)}. {instead}")
        return None
    if usable[0].found.kind != kind:
        return None
    for image, *said in zip(material.images, *(item.labels for item in usable), strict=True):
        labels = {label: item.found.name for label, item in zip(said, usable, strict=True) if label is not None}
        if len(labels) > 1:
            ways = " and ".join(f"{name} says class {label}" for label, name in sorted(labels.items()))
            raise DataError(f"{material.root}: {ways} for {image.path}. Name the right one with --labels FILE")
    notes = [f"{problem}; it is not used" for problem in lists.problems]
    return _reading(material, usable, kind, notes)


def _reading(material: Material, usable: list[UsableList], kind: ListKind, notes: list[str]) -> Reading:
    """Returns the classes that lists say, which do not contradict each other; a list may be a part of a whole one."""
    truth = validation_labels()
    found, rest = [], []
    n_filled = 0
    needed = dict.fromkeys(item.found.name for item in usable[:1])
    for image, *said in zip(material.images, *(item.labels for item in usable), strict=True):
        by = next((place for place, label in enumerate(said) if label is not None), None)
        label = None if by is None else said[by]
        if by is not None:
            needed[usable[by].found.name] = None
        elif (number := validation_number(image.name)) is not None:
            label, n_filled = int(truth[number - 1]), n_filled + 1
        if label is None:
            rest.append(image)
        else:
            found.append(Labelled(image, label, len(image.parts) - 1))
    names = " and ".join(needed)
    others = [item.found.name for item in usable if item.found.name not in needed]
    if others:
        notes.append(f"{', '.join(others)} say the same classes")
    if n_filled:
        notes.append(f"{n_filled:,} images are not in {names}; their classes follow from their numbers")
    several = [image.path for image in rest if any(item.found.says_several(image.parts) for item in usable)]
    if several:
        raise DataError(
            f"{material.root}: {names} says several classes for {several[0]}, and for {len(several) - 1:,} others. "
            "Name a list without such lines with --labels FILE"
        )
    notes += left_out(rest, f"that {names} does not have")
    return Reading(found, KINDS[kind].format(names), notes)


@lru_cache(maxsize=2)
def _judged(material: Material) -> _Lists:
    usable, problems = [], []
    paths = [image.parts for image in material.images]
    for text in material.texts:
        found = read_list(text.path, text.read())
        if found is None:
            continue
        if not any(found.label_of(path) is not None or found.says_several(path) for path in paths):
            continue
        judged = judge(found, paths)
        if judged.problem is None:
            usable.append(UsableList(found, judged.labels))
        elif found.kind != "ids" or None not in judged.labels:  # a shorter list of numbers counts something else
            problems.append(f"{text.path} {judged.problem}")
    return _Lists(usable, problems)
