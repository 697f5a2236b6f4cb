"""What every form of ImageNet gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantvm.data.inventory import Image, TextFile
from quantvm.errors import DataError

_MOST_NAMED = 20
INSTEAD_NUMBERS = (
    "--form validation-numbers takes the classes from the numbers in the names, by ImageNet's own list; --labels FILE "
    "names another list"
)


@dataclass(frozen=True, eq=False)
class Material:
    """The images of a part of a data set, and what may say their classes.

    Attributes:
        root: The folder that was named.
        images: Of the part.
        texts: Files beside them that may be lists of labels.
    """

    root: Path
    images: Sequence[Image]
    texts: Sequence[TextFile]


@dataclass(frozen=True)
class Labelled:
    """An image and its class.

    Attributes:
        image: The image.
        label: Its class index.
        n_above: How many of the folders and archives on its path lie above the class, or, without one, the image.
    """

    image: Image
    label: int
    n_above: int


@dataclass(frozen=True)
class Reading:
    """The classes of images, by the rule of a form.

    Attributes:
        images: With their classes.
        rule: How the classes were found, as a sentence without its end.
        notes: What a reader of the results should know, one sentence each.
    """

    images: list[Labelled]
    rule: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """A form in which ImageNet lies on disks.

    Attributes:
        name: The value for ``--form``.
        recognized_by: What it looks like, in a few words.
        labels: How labels follow, in a few words.
        read: Returns the labelled images, or None if the images do not lie in this form; raises a DataError if they do,
            but their classes are ambiguous or unknown.
    """

    name: str
    recognized_by: str
    labels: str
    read: Callable[[Material], Reading | None]


def left_out(images: Sequence[Image], why: str) -> list[str]:
    """Returns the note that tells images which are not used, if there are any."""
    if not images:
        return []
    count = "1 image" if len(images) == 1 else f"{len(images):,} images"
    return [f"{count} {why}: not used (the first is {images[0].path})"]


def listed(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def refuse_numbers(root: Path, where: str, problem: str, has_numbers: bool) -> DataError:
    """Returns the error for numbers that are no class indices."""
    instead = INSTEAD_NUMBERS if has_numbers else "--labels FILE names another list"
    return DataError(f"{root}: {where} {problem}. {instead}")
