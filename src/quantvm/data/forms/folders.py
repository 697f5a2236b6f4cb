"""Forms whose folders, or names of files, say the class: by wnid, by index, or by the class's name."""

from __future__ import annotations

import re

from quantvm.data.classes import (
    N_CLASSES,
    WNID,
    imagenet_classes,
    index_of_wnid,
    indices_of_name,
    indices_of_spelling,
    plain_name,
)
from quantvm.data.forms.lists import usable_lists
from quantvm.data.forms.reading import Labelled, Material, Reading, left_out, listed, refuse_numbers
from quantvm.data.inventory import Image
from quantvm.data.label_lists import judge_numbers
from quantvm.data.parts import validation_number
from quantvm.errors import DataError

_WNID_FIRST = re.compile(r"n\d{8}(?!\d)")


def wnid_folders(material: Material) -> Reading | None:
    """Reads ``<wnid>/``, ``<wnid>_<name>/`` and ``<wnid>.tar``; the deepest such folder or archive is the class."""
    index = index_of_wnid()
    found: list[Labelled] = []
    rest: list[Image] = []
    for image in material.images:
        parts = image.parts[:-1]
        place = next((i for i in reversed(range(len(parts))) if _leading_wnid(parts[i]) in index), None)
        if place is None:
            rest.append(image)
        else:
            found.append(Labelled(image, index[parts[place][:9]], place))
    if not found:
        return None
    parents = {tuple(item.image.parts[: item.n_above]) for item in found}
    unknown: dict[str, None] = {}
    beside, elsewhere = [], []
    for image in rest:
        parts = image.parts[:-1]
        above = next((i for i in range(len(parts), -1, -1) if tuple(parts[:i]) in parents), None)
        if above is None:
            elsewhere.append(image)
        elif above == len(parts):
            beside.append(image)
        else:
            unknown[parts[above]] = None
    if unknown:
        classes = {item.image.parts[item.n_above] for item in found}
        raise DataError(
            f"{material.root}: {len(unknown)} of {len(unknown) + len(classes)} class folders hold no wnid of "
            f"ImageNet's 1,000 classes: {', '.join(unknown)}. {REMEDY}"
        )
    notes = left_out(beside, "beside the class folders without a label")
    notes += left_out(elsewhere, "outside of the class folders")
    return Reading(found, "the WordNet id that the image's folder, or the archive, begins with", notes)


REMEDY = (
    "A registered model knows ImageNet's classes only: rename the folders to their wnids, such as n01440764, or "
    "remove them. If these folders are the classes of a model of your own, name it with --model and say "
    "--class-map sorted"
)


def wnid_names(material: Material) -> Reading | None:
    """Reads ``<wnid>_<anything>`` and ``<anything>_<wnid>.<suffix>``."""
    index = index_of_wnid()
    wnids = [(image, _wnid_of_name(image.name) or "") for image in material.images]
    found = [Labelled(image, index[wnid], _above(image)) for image, wnid in wnids if wnid in index]
    unknown = [image.name for image, wnid in wnids if wnid not in index]
    if 2 * len(found) < len(wnids) or not found:
        return None
    if unknown:
        raise DataError(
            f"{material.root}: {len(unknown)} of {len(wnids)} file names hold no wnid of ImageNet's 1,000 classes: "
            f"{', '.join(unknown)}. Rename or remove them"
        )
    return Reading(found, "the WordNet id that the file's name begins or ends with")


def index_folders(material: Material) -> Reading | None:
    """Reads ``0/`` to ``999/``, also with zeros before; the number is the class, never its rank."""
    inside = [image for image in material.images if _folder(image).isdecimal()]
    if not inside or not any(int(_folder(image)) < N_CLASSES for image in inside):
        return None
    above = {tuple(image.parts[:-2]) for image in inside}
    rest = [image for image in material.images if not _folder(image).isdecimal()]
    strays = [image for image in rest if tuple(image.parts[:-1]) in above]
    if len(strays) < len(rest):
        return None
    numbers = [int(_folder(image)) for image in inside]
    judged = judge_numbers(numbers, [image.name for image in inside])
    has_numbers = any(validation_number(image.name) for image in inside)
    if judged.problem is not None:
        if has_numbers:
            return None  # the folders count something else; the numbers in the names are certain
        raise refuse_numbers(material.root, "the folders' numbers:", f"the set {judged.problem}", has_numbers)
    found = [Labelled(image, number, len(image.parts) - 2) for image, number in zip(inside, numbers, strict=True)]
    _check_lists(material, found, "the numbers of the folders")
    notes = left_out(strays, "beside the class folders without a label")
    return Reading(found, "the number of the folder, which is the class index", notes)


def name_folders(material: Material) -> Reading | None:
    """Reads ``tench/``, ``great_white_shark/``: folders named like classes."""
    known = indices_of_name()
    above = {tuple(image.parts[:-2]) for image in material.images if plain_name(_folder(image)) in known}
    inside = [image for image in material.images if tuple(image.parts[:-1]) not in above and _folder(image)]
    strays = [image for image in material.images if tuple(image.parts[:-1]) in above]
    exact = indices_of_spelling()
    spelled = {_folder(image).replace(" ", "_") for image in inside}
    if spelled <= exact.keys():  # case tells Cardigan, a dog, from cardigan, if all names are spelled as in the list
        names = {_folder(image): exact[_folder(image).replace(" ", "_")] for image in inside}
    else:
        names = {_folder(image): known.get(plain_name(_folder(image)), ()) for image in inside}
    unknown = sorted(name for name, classes in names.items() if not classes)
    if not names or 2 * len(unknown) > len(names):
        return None
    several = sorted(name for name, classes in names.items() if len(classes) > 1)
    if unknown or several:
        meanings = [f"{name}: {' and '.join(map(_described, names[name]))}" for name in several]
        what = ([f"two classes have the name {'; '.join(meanings)}"] if several else []) + (
            [f"no class has the name {listed(unknown)}"] if unknown else []
        )
        raise DataError(
            f"{material.root}: the folders are named like ImageNet's classes, but {'; '.join(what)}. Rename these "
            "folders to wnids, such as n01440764, if you know which class is meant, or move them away; or name a list "
            "of the images and their class indices with --labels FILE"
        )
    found = [Labelled(image, names[_folder(image)][0], len(image.parts) - 2) for image in inside]
    _check_lists(material, found, "the names of the folders")
    notes = left_out(strays, "beside the class folders without a label")
    return Reading(found, "the folder's name, which only one class has", notes)


def _described(label: int) -> str:
    item = imagenet_classes()[label]
    return f"{label} ({item.wnid})"


def _check_lists(material: Material, found: list[Labelled], what: str) -> None:
    """Refuses folders that a list beside them contradicts.

    Raises:
        DataError: There is such a list.
    """
    for usable in usable_lists(material):
        labels = dict(zip((image.path for image in material.images), usable.labels, strict=True))
        wrong = [item for item in found if labels.get(item.image.path) not in (None, item.label)]
        if wrong:
            first = wrong[0]
            raise DataError(
                f"{material.root}: {what} and {usable.found.name} say different classes for {len(wrong):,} images, "
                f"such as {first.label} and {labels[first.image.path]} for {first.image.path}. Name the list with "
                "--labels FILE if it is right, or else move it away"
            )


def _folder(image: Image) -> str:
    parts = image.parts
    return parts[-2] if len(parts) > 1 else ""


def _above(image: Image) -> int:
    return len(image.parts) - 1


def _leading_wnid(name: str) -> str:
    return name[:9] if _WNID_FIRST.match(name) else ""


def _wnid_of_name(name: str) -> str | None:
    """Returns the wnid that a file's name ends or begins with."""
    stem = name.rpartition(".")[0] or name
    last = stem.rpartition("_")[2]
    if WNID.fullmatch(last) and last in index_of_wnid():
        return last
    return name[:9] if WNID.match(name) and name[9:10] in ("_", ".", "-") else None
