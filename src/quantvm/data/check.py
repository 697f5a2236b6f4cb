"""Checks that every chosen image can be decoded, before any work depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from quantvm.data.batches import default_workers
from quantvm.data.dataset import BadImage
from quantvm.data.preprocess import load_rgb, orientation_of
from quantvm.data.sources import Source
from quantvm.errors import DataError
from quantvm.progress import SILENT, Progress


@dataclass(frozen=True)
class Checked:
    """What decoding images showed.

    Attributes:
        bad: Those that cannot be decoded to the last pixel, in the given order.
        n_turned: How many have an EXIF orientation, which is not applied.
    """

    bad: tuple[BadImage, ...]
    n_turned: int


def check_images(
    sources: Sequence[Source], *, progress: Progress = SILENT, description: str = "check images"
) -> Checked:
    """Decodes all images."""
    bad, n_turned = [], 0
    pool = ThreadPoolExecutor(default_workers(), thread_name_prefix="check")
    try:
        with progress.task(description, total=len(sources)) as task:
            for source, (reason, is_turned) in zip(sources, pool.map(_decoded, sources), strict=True):
                task.advance()
                n_turned += is_turned
                if reason is not None:
                    bad.append(BadImage(source, reason))
    finally:
        pool.shutdown(cancel_futures=True)
    return Checked(tuple(bad), n_turned)


def find_bad_images(
    sources: Sequence[Source], *, progress: Progress = SILENT, description: str = "check images"
) -> tuple[BadImage, ...]:
    """Returns the images that cannot be decoded to the last pixel, in the given order."""
    return check_images(sources, progress=progress, description=description).bad


def _decoded(source: Source) -> tuple[str | None, bool]:
    """Returns why an image is bad, or None, and whether it has an EXIF orientation."""
    try:
        return None, orientation_of(load_rgb(source)) != 1
    except DataError as error:
        return str(error), False


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
