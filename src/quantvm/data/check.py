"""What decoding every chosen image shows, before any work depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from quantvm.data.dataset import BadImage
from quantvm.data.sources import Source
from quantvm.errors import DataError
from quantvm.progress import Progress


@dataclass(frozen=True)
class Checked:
    """What decoding images showed.

    Attributes:
        bad: Those that cannot be decoded to the last pixel, in the given order.
        n_turned: How many have an EXIF orientation, which is not applied.
    """

    bad: tuple[BadImage, ...]
    n_turned: int


class CheckImages(Protocol):
    """Decodes all images; `quantvm.data.prepared` does it."""

    def __call__(self, sources: Sequence[Source], *, progress: Progress, description: str = ...) -> Checked:
        """Returns what is found; `description` is of the work, for the progress."""
        ...


def raise_bad_images(bad: Iterable[BadImage], what: str) -> None:
    """Raises one DataError that names every bad file and its reason, if there are any.

    Args:
        bad: The files.
        what: What the images belong to, for the message.
    """
    lines = [f"  {image.source}: {image.reason}" for image in bad]
    if lines:
        count = "1 file" if len(lines) == 1 else f"{len(lines)} files"
        raise DataError(
            f"{count} of {what} cannot be read as images:\n"
            + "\n".join(lines)
            + "\nRemove or replace them, or leave them out with --on-bad-image skip"
        )
