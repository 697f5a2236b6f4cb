"""Checks that every chosen image can be decoded, before any work depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from quantvm.data.batches import default_workers
from quantvm.data.dataset import BadImage
from quantvm.data.preprocess import load_rgb
from quantvm.data.sources import Source
from quantvm.errors import DataError
from quantvm.progress import SILENT, Progress


def find_bad_images(
    sources: Sequence[Source], *, progress: Progress = SILENT, description: str = "check images"
) -> tuple[BadImage, ...]:
    """Returns the images that cannot be decoded to the last pixel, in the given order."""
    bad = []
    pool = ThreadPoolExecutor(default_workers(), thread_name_prefix="check")
    try:
        with progress.task(description, total=len(sources)) as task:
            for source, reason in zip(sources, pool.map(_reason_why_bad, sources), strict=True):
                task.advance()
                if reason is not None:
                    bad.append(BadImage(source, reason))
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(bad)


def _reason_why_bad(source: Source) -> str | None:
    try:
        load_rgb(source)
    except DataError as error:
        return str(error)
    return None


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
