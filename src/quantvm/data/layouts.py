"""How images and labels are organized in folders. A layout is a function from a folder to its labelled samples.

To add a layout: write a function that takes the root folder and returns all samples or raises one DataError that names
every problem of a kind, and give it to a set in ``sets.py`` (or, if users' own folders may have it, to
``layout_of_folder``). This module does not open the files; ``check.py`` decodes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from quantvm.data.classes import WNID, index_of_wnid
from quantvm.data.dataset import Sample
from quantvm.errors import DataError

Layout = Callable[[Path], list[Sample]]

_N_CLASSES = 1000
_MOST_NAMED = 20
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_PARTS_OF_A_SET = frozenset({"train", "training", "valid", "validation", "test"})


def wnid_folders(root: Path) -> list[Sample]:
    """Returns the files of ``<wnid>/``; the label is that wnid's ImageNet class, however many classes there are."""
    index = index_of_wnid()
    folders, _ = _list_folder(root)
    unknown = [name for name in folders if name not in index]
    if unknown:
        raise DataError(_unknown_names(root, "class folders", unknown, len(folders)))
    return _labelled(root, ((name, index[name]) for name in folders))


def sorted_folders(root: Path) -> list[Sample]:
    """Returns the files of all folders; the label is the index of the folder's name in sorted order."""
    folders, _ = _list_folder(root)
    if len(folders) > _N_CLASSES:
        raise DataError(f"{root}: got {len(folders)} class folders, expected at most {_N_CLASSES}")
    return _labelled(root, ((name, label) for label, name in enumerate(folders)))


def index_folders(root: Path) -> list[Sample]:
    """Returns the files of ``0/`` .. ``999/``; the label is the folder's number."""
    folders, _ = _list_folder(root)
    wrong = [name for name in folders if not _is_class_index(name)]
    if wrong:
        raise DataError(f"{root}: got the folders {_listed(wrong)}, expected numbers from 0 to {_N_CLASSES - 1}")
    return _labelled(root, ((name, int(name)) for name in folders))


def wnid_files(root: Path) -> list[Sample]:
    """Returns the images ``<wnid>_<anything>`` or ``<anything>_<wnid>.<suffix>`` directly in a folder.

    Other files there are ignored.
    """
    index = index_of_wnid()
    _, files = _list_folder(root)
    wnids = {name: wnid for name in files if (wnid := _wnid_of(name)) is not None}
    unknown = [name for name, wnid in wnids.items() if wnid not in index]
    unknown += [name for name in files if is_image_name(name) and name not in wnids]
    if unknown:
        raise DataError(_unknown_names(root, "file names", unknown, len(files)))
    return _require_images(root, [Sample(name, root / name, index[wnid]) for name, wnid in wnids.items()])


def index_files(pattern: str) -> Layout:
    """Returns the layout of files whose names match the pattern; its group is the class index."""

    def layout(root: Path) -> list[Sample]:
        _, files = _list_folder(root)
        matches = [(name, re.fullmatch(pattern, name)) for name in files]
        return _require_images(root, [Sample(name, root / name, int(match[1])) for name, match in matches if match])

    return layout


def layout_of_folder(root: Path, class_map: str) -> Layout:
    """Returns the layout of a user's own folder.

    With the class map `sorted`, every folder is a class. With `wnid`, folders must be named by wnid; if there are no
    folders, files must be named ``<wnid>_<anything>`` or ``<anything>_<wnid>.<suffix>``, as in Hugging Face's ImageNet.

    Raises:
        DataError: The folder has neither; the message says what it has and what is expected.
    """
    folders, files = _list_folder(root)
    parts = [name for name in folders if name.lower() in _PARTS_OF_A_SET]
    if parts:
        raise DataError(
            f"{root}: got the folders {_listed(parts)} but no val, expected val/<wnid>/<images>; rename the folder of "
            f"images to evaluate to val, or name it as the data, such as {root / parts[-1]}"
        )
    if class_map == "sorted":
        if not folders:
            raise DataError(f"{root}: got no folders, but --class-map sorted takes each folder for a class")
        return sorted_folders
    if folders:
        if all(_is_class_index(name) for name in folders):
            raise DataError(
                f"{root}: got folders named by numbers ({_listed(folders)}), expected wnids such as n01440764. If the "
                "numbers are class indices as in ImageNetV2, use --data imagenetv2, or rename the folders to wnids; "
                "--class-map sorted would order them as text (0, 1, 10, 100, ...)"
            )
        return wnid_folders
    if any(_wnid_of(name) is not None for name in files):
        return wnid_files
    if any(name.startswith("ILSVRC2012_val_") for name in files):
        raise DataError(
            f"{root}: ImageNet's validation images lie flat here, without labels; sort them into folders named by wnid "
            "first (for instance with the valprep.sh that is often used)"
        )
    found = f"{len(files)} files but no folders" if files else "an empty folder"
    raise DataError(
        f"{root}: got {found}, expected val/<wnid>/<images>, or <wnid>/<images>, with wnids such as n01440764"
    )


def has_every_wnid(root: Path) -> bool:
    """Returns whether the folders of `root` are ImageNet's 1,000 wnids, whose sorted order is that of the labels."""
    return _list_folder(root)[0] == sorted(index_of_wnid())


def image_names(root: Path) -> list[str]:
    """Returns all files in a folder and its subfolders as relative paths, sorted; labels do not matter.

    Directly in `root` only files named like images count, since READMEs and archives are kept there too.
    """
    folders, files = _list_folder(root)
    below = (name for folder in folders for name in _names_below(root, folder))
    return sorted([*filter(is_image_name, files), *below])


def stray_images(root: Path) -> list[str]:
    """Returns the names of images beside the class folders, which have no label."""
    folders, files = _list_folder(root)
    return [name for name in files if is_image_name(name)] if folders else []


def single_subfolder(root: Path) -> Path | None:
    """Returns the only folder of `root`, or None if there are more or images beside it: archives often wrap files."""
    folders, files = _list_folder(root)
    return root / folders[0] if len(folders) == 1 and not any(map(is_image_name, files)) else None


def is_image_name(name: str) -> bool:
    """Returns whether a file is named like an image."""
    return PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES


def _labelled(root: Path, folders: Iterable[tuple[str, int]]) -> list[Sample]:
    samples = [Sample(name, root / name, label) for folder, label in folders for name in _names_below(root, folder)]
    return _require_images(root, samples)


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
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            named = sorted((entry.name, entry.is_dir()) for entry in visible if entry.name.lower() not in _CLUTTER)
    except FileNotFoundError:
        raise DataError(f"{root}: no such folder; check the path") from None
    except OSError as error:
        raise DataError(f"{root}: cannot be listed as a folder: {error.strerror or error}") from error
    return [name for name, is_folder in named if is_folder], [name for name, is_folder in named if not is_folder]


def _names_below(root: Path, folder: str) -> Iterator[str]:
    """Yields all files in a folder of `root` and its subfolders, as paths relative to `root`."""
    folders, files = _list_folder(root / folder)
    yield from (f"{folder}/{name}" for name in files)
    for name in folders:
        yield from _names_below(root, f"{folder}/{name}")


def _is_class_index(name: str) -> bool:
    return name.isdecimal() and int(name) < _N_CLASSES


def _wnid_of(name: str) -> str | None:
    """Returns the wnid that a file's name begins or ends with."""
    if WNID.match(name) and name[9:10] in ("_", ".", "-"):
        return name[:9]
    last = PurePosixPath(name).stem.rpartition("_")[2]
    return last if is_image_name(name) and WNID.fullmatch(last) else None


def _unknown_names(root: Path, what: str, unknown: list[str], n_all: int) -> str:
    return (
        f"{root}: {len(unknown)} of {n_all} {what} hold no wnid of ImageNet's 1,000 classes: {', '.join(unknown)}. "
        f"{_remedy(root, unknown)}"
    )


def _remedy(root: Path, unknown: list[str]) -> str:
    inner = next((name for name in unknown if (root / name).is_dir() and _holds_wnids(root / name)), None)
    if inner is not None:
        return f"The folder {inner} holds wnids: name it as the data, {root / inner}"
    if not (root / unknown[0]).is_dir():
        return "Rename or remove them"
    return (
        "A registered model knows ImageNet's classes only: rename the folders to their wnids, such as n01440764, or "
        "remove them. If these folders are the classes of a model of your own, name it with --model and say "
        "--class-map sorted"
    )


def _holds_wnids(folder: Path) -> bool:
    return any(name in index_of_wnid() for name in _list_folder(folder)[0])


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
