"""Plain folders of images: where every folder is a class of a user's own, or where classes do not matter.

The forms of ImageNet are in ``forms/``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from quantvm.data.classes import N_CLASSES, index_of_wnid
from quantvm.data.contents import is_clutter, is_image_file, is_image_name
from quantvm.data.dataset import Sample
from quantvm.errors import DataError

_PARTS_OF_A_SET = frozenset({"train", "training", "valid", "validation", "test"})

Layout = Callable[[Path], list[Sample]]


def sorted_folders(root: Path) -> list[Sample]:
    """Returns the images of all folders; the label is the index of the folder's name in sorted order.

    Raises:
        DataError: There are no folders, none with images, more than 1,000, or parts of a set instead of classes.
    """
    folders, _ = _list_folder(root)
    if not folders:
        raise DataError(f"{root}: got no folders, but --class-map sorted takes each folder for a class")
    parts = [name for name in folders if name.lower() in _PARTS_OF_A_SET]
    if parts:
        raise DataError(
            f"{root}: got the folders {', '.join(parts)} but no val, expected val/<class>/<images>; rename the folder "
            f"of images to evaluate to val, or name it as the data, such as {root / parts[-1]}"
        )
    if len(folders) > N_CLASSES:
        raise DataError(f"{root}: got {len(folders)} class folders, expected at most {N_CLASSES}")
    labelled = enumerate(folders)
    samples = [Sample(name, root / name, label) for label, folder in labelled for name in _images_below(root, folder)]
    return _require_images(root, samples)


def index_files(pattern: str) -> Layout:
    """Returns the layout of files whose names match the pattern; its group is the class index."""

    def layout(root: Path) -> list[Sample]:
        _, files = _list_folder(root)
        matches = [(name, re.fullmatch(pattern, name)) for name in files]
        return _require_images(root, [Sample(name, root / name, int(match[1])) for name, match in matches if match])

    return layout


def has_every_wnid(root: Path) -> bool:
    """Returns whether the folders of `root` are ImageNet's 1,000 wnids, whose sorted order is that of the labels."""
    return _list_folder(root)[0] == sorted(index_of_wnid())


def image_names(root: Path) -> list[str]:
    """Returns all images in a folder and its subfolders as relative paths, sorted; labels do not matter."""
    folders, files = _list_folder(root)
    below = (name for folder in folders for name in _images_below(root, folder))
    return sorted([*filter(is_image_name, files), *below])


def stray_images(root: Path) -> list[str]:
    """Returns the names of images beside the class folders, which have no label."""
    folders, files = _list_folder(root)
    return [name for name in files if is_image_name(name)] if folders else []


def single_subfolder(root: Path) -> Path | None:
    """Returns the only folder of `root`, or None if there are more or images beside it: archives often wrap files."""
    folders, files = _list_folder(root)
    return root / folders[0] if len(folders) == 1 and not any(map(is_image_name, files)) else None


def _require_images(root: Path, samples: list[Sample]) -> list[Sample]:
    if not samples:
        raise DataError(
            f"{root}: got no images, expected at least one; check the folder (remove it if it is a cache's)"
        )
    return samples


def _list_folder(root: Path) -> tuple[list[str], list[str]]:
    """Returns the names of folders and of files (dangling links too), sorted, without hidden ones and clutter."""
    try:
        with os.scandir(root) as entries:
            named = sorted((entry.name, entry.is_dir()) for entry in entries if not is_clutter(entry.name))
    except FileNotFoundError:
        raise DataError(f"{root}: no such folder; check the path") from None
    except OSError as error:
        raise DataError(f"{root}: cannot be listed as a folder: {error.strerror or error}") from error
    return [name for name, is_folder in named if is_folder], [name for name, is_folder in named if not is_folder]


def _images_below(root: Path, folder: str) -> Iterator[str]:
    """Yields all images in a folder of `root` and its subfolders, as paths relative to `root`."""
    folders, files = _list_folder(root / folder)
    yield from (f"{folder}/{name}" for name in files if is_image_file(root / folder / name))
    for name in folders:
        yield from _images_below(root, f"{folder}/{name}")
