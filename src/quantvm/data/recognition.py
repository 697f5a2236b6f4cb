"""Finds out in which form ImageNet lies in a folder, and reads it: evaluation images with classes, training images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantvm.data.classes import N_VALIDATION
from quantvm.data.dataset import Sample
from quantvm.data.forms import FORMS, Labelled, Material, Reading, read_named_list
from quantvm.data.forms.folders import REMEDY
from quantvm.data.forms.reading import left_out, listed
from quantvm.data.inventory import Image, Inventory, take_inventory
from quantvm.data.parts import PartName, part_of_folders, part_of_image, training_name, validation_number
from quantvm.data.sources import Source
from quantvm.errors import ConfigError, DataError, UnknownNameError
from quantvm.progress import SILENT, Progress
from quantvm.storage.regular_files import open_regular

_MOST_LIST_BYTES = 1 << 26


@dataclass(frozen=True)
class Found:
    """The labelled images that a folder holds.

    Attributes:
        form: The name of the form, from `FORMS`.
        labels: The rule by which the classes were found, as a sentence without its end.
        root: The folder or archive that the samples' ids are relative to.
        samples: The images.
        summary: How many images and classes there are, as a sentence without its end.
        damage: What keeps images from being read, a sentence each.
        notes: What a reader of the results should know, one sentence each.
    """

    form: str
    labels: str
    root: Path
    samples: list[Sample]
    summary: str
    damage: list[str]
    notes: list[str]


def recognize(
    root: Path, *, labels: str | Path | None = None, form: str | None = None, progress: Progress = SILENT
) -> Found:
    """Returns the images to evaluate that a folder, an archive or a table holds, with their classes.

    Args:
        root: The folder or file.
        labels: A list that says the classes, whatever lies beside the images; None to find out.
        form: The name of a form; None to find out.
        progress: Where the listing of archives is shown.

    Raises:
        UnknownNameError: There is no such form.
        DataError: There are no images, or their classes are unknown or ambiguous; the message says what would do.
    """
    if form is not None and form not in FORMS:
        raise UnknownNameError(f"no form is called {form!r}; known: {', '.join(FORMS)}")
    if form is not None and labels is not None:
        raise ConfigError("labels and form: a list of labels is a form of its own; leave out one of them")
    inventory = take_inventory(root, without=("train", "test"), progress=progress)
    chosen, notes = _to_evaluate(inventory)
    if not chosen and inventory.unlisted and not inventory.damage:
        # the name of a part proves nothing: mirrors of the validation set call it train
        inventory = take_inventory(root, progress=progress)
        chosen, notes = _to_evaluate(inventory)
    if not chosen:
        raise _no_images(root, inventory)
    material = Material(root, chosen, inventory.texts)
    name, reading = _read(material, labels, form)
    reading, doubles = _once(reading)
    notes += [*reading.notes, *doubles, *inventory.notes]
    above, samples = _samples(reading.images, root if root.is_dir() else root.parent)
    summary, more = _summary(reading.images)
    return Found(name, reading.rule, above, samples, summary, inventory.damage, [*notes, *more])


def in_form(name: str) -> Callable[[Path], list[Sample]]:
    """Returns the function that reads the images of a folder in one form of `FORMS`."""

    def layout(root: Path) -> list[Sample]:
        return recognize(root, form=name).samples

    return layout


def training_images(root: Path, *, progress: Progress = SILENT) -> list[tuple[str, Source]]:
    """Returns the training images that a folder holds, with their ids.

    These are paths relative to what holds all of them; images in archives and tables that have ImageNet's names get
    those that they would have in folders.

    Raises:
        DataError: Some of them lie in damaged archives or tables.
    """
    inventory = take_inventory(root, without=("val", "test"), progress=progress)
    named = [image for image in inventory.images if _part(image) == "train"]
    if not named:
        named = [image for image in inventory.images if _part(image) is None and training_name(image.name) is not None]
    if inventory.damage and (named or inventory.unlisted):
        raise DataError(f"calibration: {'; '.join(inventory.damage)}. Other images: --calibration-data")
    if not named:
        return []
    n_above = min(_shared([image.parts[:-1] for image in named]), *(_class_depth(image) for image in named))
    prefix = len("/".join(named[0].parts[:n_above])) + 1 if n_above else 0
    return [(_training_id(image, prefix), image.source) for image in named]


def _training_id(image: Image, prefix: int) -> str:
    """Returns an id that is the same in archives and tables as in folders, so that the same images are drawn."""
    name = training_name(image.name)
    return image.path[prefix:] if image.container == "file" or name is None else f"{name[:9]}/{name}.JPEG"


def all_images(root: Path, *, progress: Progress = SILENT) -> list[tuple[str, Source]]:
    """Returns all images that a folder, an archive or a table holds, whatever their part, with their paths in it.

    Raises:
        DataError: Some of them lie in damaged archives or tables.
    """
    inventory = take_inventory(root, progress=progress)
    if inventory.damage:
        raise DataError(f"calibration: {'; '.join(inventory.damage)}. Other images: --calibration-data")
    return [(image.path, image.source) for image in inventory.images]


def _class_depth(image: Image) -> int:
    parts = image.parts
    return next((i for i, part in enumerate(parts[:-1]) if re.match(r"n\d{8}(?!\d)", part)), len(parts) - 1)


def _part(image: Image) -> PartName | None:
    """Returns the part that an image belongs to; its own name counts more than those of folders."""
    own = part_of_image(image.name)
    return own if own is not None else part_of_folders(image.path.replace("!", "/").rpartition("/")[0])


def _to_evaluate(inventory: Inventory) -> tuple[list[Image], list[str]]:
    """Returns the images of the part that is evaluated, and what is left out."""
    parts: dict[PartName | None, list[Image]] = {"train": [], "val": [], "test": [], None: []}
    for image in inventory.images:
        parts[_part(image)].append(image)
    labelled_test = [image for image in parts["test"] if image.label is not None]
    if parts["val"]:
        chosen, rest = _in_folder_val(inventory.root, parts["val"])
        others = rest + [image for image in parts[None] if training_name(image.name) is None]
        return chosen, left_out(others, "outside of the validation images")
    if parts[None]:
        return parts[None], []
    return labelled_test, []


def _in_folder_val(root: Path, images: list[Image]) -> tuple[list[Image], list[Image]]:
    """Returns the images in the folder `val`, if there is one, and the others, such as those of `val_backup`.

    Raises:
        DataError: There are several, each of which would be a set of its own.
    """
    places: dict[tuple[str, ...], None] = {}
    for image in images:
        folders = image.parts[:-1]
        if "val" in folders:
            places[tuple(folders[: folders.index("val") + 1])] = None
    if not places:
        return images, []
    highest = min(map(len, places))
    named = ["/".join(place) for place in places if len(place) == highest]
    if len(named) > 1:
        raise DataError(
            f"{root}: got several folders val ({listed(named)}), expected one; name the folder of one set as the data, "
            f"such as {(root / named[0]).parent}"
        )
    prefix = f"{named[0]}/"
    inside = [image for image in images if image.path.replace("!", "/").startswith(prefix)]
    return inside, [image for image in images if not image.path.replace("!", "/").startswith(prefix)]


def _read(material: Material, labels: str | Path | None, form: str | None) -> tuple[str, Reading]:
    if labels is not None:
        with open_regular(Path(labels).expanduser(), DataError) as file:
            text = file.read(_MOST_LIST_BYTES).decode("utf-8-sig", "replace")
        return "label-list", read_named_list(material, str(labels), text)
    for name in FORMS if form is None else (form,):
        reading = FORMS[name].read(material)
        if reading is not None:
            return name, reading
    if form is not None:
        raise DataError(
            f"{material.root}: the images do not lie in the form {form} ({FORMS[form].recognized_by}), but so: "
            f"{_described(material.images)}. Leave out --form to find out which form it is"
        )
    raise _unlabelled(material)


def _once(reading: Reading) -> tuple[Reading, list[str]]:
    """Leaves out images in archives that lie unpacked beside them, too."""
    files = {(item.image.name.casefold(), item.label) for item in reading.images if item.image.container == "file"}
    if not files:
        return reading, []
    kept = [
        item for item in reading.images
        if item.image.container == "file" or (item.image.name.casefold(), item.label) not in files
    ]  # fmt: skip
    n_doubles = len(reading.images) - len(kept)
    if not n_doubles:
        return reading, []
    note = f"{n_doubles:,} images lie in an archive and also beside it as files: each is used once"
    return Reading(kept, reading.rule, reading.notes), [note]


def _samples(items: Sequence[Labelled], folder: Path) -> tuple[Path, list[Sample]]:
    """Returns the deepest folder or archive above all classes, and the samples with ids relative to it."""
    n_above = _shared([item.image.parts[: item.n_above] for item in items])
    first = items[0].image
    prefix = len("/".join(first.parts[:n_above])) + 1 if n_above else 0
    samples = [Sample(item.image.path[prefix:], item.image.source, item.label) for item in items]
    return folder / first.path[: max(0, prefix - 1)], samples


def _shared(paths: Sequence[list[str]]) -> int:
    """Returns how many parts all paths begin with."""
    low, high = min(paths), max(paths)
    count = 0
    while count < min(len(low), len(high)) and low[count] == high[count]:
        count += 1
    return count


def _summary(items: Sequence[Labelled]) -> tuple[str, list[str]]:
    """Returns how many images and classes there are, and what is doubled or missing."""
    notes = []
    numbers = Counter(number for item in items if (number := validation_number(item.image.name)) is not None)
    if numbers:
        doubles = sum(count - 1 for count in numbers.values())
    else:
        named = Counter((item.image.name.casefold(), item.label) for item in items)
        doubles = (
            0 if items[0].image.container in ("parquet", "arrow", "tfrecord") else sum(named.values()) - len(named)
        )
    if doubles:
        notes.append(f"{doubles:,} images are there more than once, by their names; all of them are used")
    if 2 * sum(numbers.values()) > len(items) and len(numbers) < N_VALIDATION:
        notes.append(f"{N_VALIDATION - len(numbers):,} of ImageNet's {N_VALIDATION:,} validation images are missing")
    return summary_of(Counter(item.label for item in items)), notes


def summary_of(counts: Counter[int]) -> str:
    """Returns how many images and classes there are, as a sentence without its end.

    Args:
        counts: How many images each class has.
    """
    n_images = sum(counts.values())
    least, most = min(counts.values()), max(counts.values())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    classes = "1 class" if len(counts) == 1 else f"{len(counts):,} classes"
    return f"{'1 image' if n_images == 1 else f'{n_images:,} images'} of {classes}, {each} of each"


def _described(images: Sequence[Image]) -> str:
    more = f" and {len(images) - 2:,} more" if len(images) > 2 else ""
    return ", ".join(image.path for image in images[:2]) + more


def _no_images(root: Path, inventory: Inventory) -> DataError:
    if inventory.damage:
        return DataError(f"{root}: no image can be read. {'; '.join(inventory.damage)}")
    parts = sorted({part for image in inventory.images if (part := _part(image)) is not None})
    if inventory.images:
        folders = sorted({image.parts[0] for image in inventory.images})
        return DataError(
            f"{root}: got the folders {listed(folders)} but no val, only images of the part {' and '.join(parts)}; "
            f"rename the folder of images to evaluate to val, or name it as the data, such as {root / folders[-1]}"
        )
    why = f" {'; '.join(inventory.notes)}." if inventory.notes else ""
    return DataError(f"{root}: got no images, expected {_EXPECTED}.{why}")


_EXPECTED = (
    "val/<wnid>/<images>, or <wnid>/<images>, with wnids such as n01440764, or another form of ImageNet (quantvm list "
    "forms)"
)


def _unlabelled(material: Material) -> DataError:
    folders = sorted({image.parts[-2] for image in material.images if len(image.parts) > 1})
    if folders:
        what = f"got the folders {listed(folders)}"
        return DataError(
            f"{material.root}: {what}, which hold no wnid of ImageNet's 1,000 classes, and no list of labels beside "
            f"them. {REMEDY}; or name a list of the images and their classes with --labels FILE"
        )
    return DataError(
        f"{material.root}: got {_described(material.images)} but no folders, and no list of labels beside them; "
        f"expected {_EXPECTED}; or name a list of the images and their classes with --labels FILE"
    )
