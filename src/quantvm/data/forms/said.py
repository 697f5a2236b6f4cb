"""Forms that say the class of each image themselves: tables, and archives with labels beside the images."""

from __future__ import annotations

from collections.abc import Callable

from quantvm.data.classes import WNID, index_of_wnid, indices_of_name, plain_name
from quantvm.data.forms.reading import Labelled, Material, Reading, left_out, refuse_numbers
from quantvm.data.inventory import Image
from quantvm.data.label_lists import judge_numbers
from quantvm.data.parts import validation_number
from quantvm.errors import DataError


def said_by(containers: tuple[str, ...], rule: str) -> Callable[[Material], Reading | None]:
    """Returns the reader of images that lie in tables or archives of a kind, which say their labels."""

    def read(material: Material) -> Reading | None:
        inside = [image for image in material.images if image.container in containers and image.label is not None]
        if not inside:
            return None
        rest = [image for image in material.images if image.container not in containers]
        if 10 * len(rest) > len(inside):
            raise DataError(
                f"{material.root}: images lie here in several forms: {inside[0].path} and {len(inside) - 1:,} others, "
                f"and {rest[0].path} and {len(rest) - 1:,} others. Name the folder of one of them as --data"
            )
        numbers = [_index(image) for image in inside]
        names = [image.name for image in inside]
        judged = judge_numbers(numbers, names)
        if judged.problem is not None:
            has_numbers = any(validation_number(name) is not None for name in names)
            where = f"the labels in {inside[0].path} and {len(inside) - 1:,} others:"
            raise refuse_numbers(material.root, where, f"the set {judged.problem}", has_numbers)
        _check_wnids(material, inside, numbers)
        found = [Labelled(image, number, _above(image)) for image, number in zip(inside, numbers, strict=True)]
        unlabelled = [image for image in material.images if image.container in containers and image.label is None]
        notes = left_out(unlabelled, "without a label") + left_out(rest, "in another form")
        return Reading(found, rule, notes)

    return read


def _index(image: Image) -> int:
    """Returns the class index that is said: as a number, as a wnid, or as the name of only one class."""
    label = image.label
    if isinstance(label, int):
        return label
    text = str(label).strip()
    if text in index_of_wnid():
        return index_of_wnid()[text]
    classes = indices_of_name().get(plain_name(text), ())
    if text.isdecimal():
        return int(text)
    if len(classes) != 1:
        raise DataError(f"{image.source}: got the label {text!r}, expected a class index 0..999 or a wnid")
    return classes[0]


def _check_wnids(material: Material, inside: list[Image], numbers: list[int]) -> None:
    """Compares the labels with the wnids in names, as Hugging Face and WebDataset's converter write them.

    Raises:
        DataError: They say different classes.
    """
    index = index_of_wnid()
    wrong = []
    for image, number in zip(inside, numbers, strict=True):
        wnids = [wnid for wnid in WNID.findall(f"{image.original or ''}/{image.path}") if wnid in index]
        if wnids and number not in {index[wnid] for wnid in wnids}:
            wrong.append((image, number, index[wnids[0]]))
    if wrong:
        image, number, other = wrong[0]
        raise DataError(
            f"{material.root}: the labels of {len(wrong):,} images differ from the wnids in their names, such as "
            f"{number} for {image.original or image.path}, whose wnid is class {other}. --form wnid-names or "
            "--form wnid-folders takes the wnids; --labels FILE names a list"
        )


def _above(image: Image) -> int:
    """Returns how many folders lie above the table or the archive."""
    return image.path.partition("!")[0].count("/")
