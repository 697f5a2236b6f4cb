"""How images and their labels lie in folders. A layout is one function from a folder to its labelled samples.

To add a layout: write a function that takes the root folder and returns all samples or raises one DataError that names
every problem of a kind, and give it to a set in ``sets.py`` (or, if a user's own folder may have it, to
``layout_of_folder``). Whether the files are images is not decided here: ``check.py`` decodes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from quantvm.data.classes import WNID, index_of_wnid
from quantvm.data.dataset import Sample
from quantvm.errors import DataError

Layout = Callable[[Path], list[Sample]]

_N_CLASSES = 1000
_MOST_NAMED = 20
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


def wnid_folders(root: Path) -> list[Sample]:
    """Returns the files of ``<wnid>/``; the label is that wnid's ImageNet class, however many classes there are."""
    index = index_of_wnid()
    folders = _folders(root)
    unknown = [folder.name for folder in folders if folder.name not in index]
    if unknown:
        raise DataError(f"{root}: {_unknown_folders(unknown, len(folders))}")
    return _labelled(root, ((folder, index[folder.name]) for folder in folders))


def sorted_folders(root: Path) -> list[Sample]:
    """Returns the files of all folders; the label is the place of the folder's name in sorted order."""
    folders = _folders(root)
    if len(folders) > _N_CLASSES:
        raise DataError(f"{root}: got {len(folders)} class folders, expected at most {_N_CLASSES}")
    return _labelled(root, ((folder, label) for label, folder in enumerate(folders)))


def index_folders(root: Path) -> list[Sample]:
    """Returns the files of ``0/`` .. ``999/``; the label is the folder's number."""
    folders = _folders(root)
    wrong = [folder.name for folder in folders if not folder.name.isdecimal() or int(folder.name) >= _N_CLASSES]
    if wrong:
        raise DataError(f"{root}: got the folders {_listed(wrong)}, expected numbers from 0 to {_N_CLASSES - 1}")
    return _labelled(root, ((folder, int(folder.name)) for folder in folders))


def wnid_files(root: Path) -> list[Sample]:
    """Returns the images ``<wnid>_<anything>`` that lie flat in a folder; other files are no part of the set."""
    index = index_of_wnid()
    named = [(path, path.name[:9]) for path in _files(root) if _has_wnid(path)]
    unknown = sorted({wnid for _, wnid in named if wnid not in index})
    if unknown:
        raise DataError(f"{root}: {_unknown_folders(unknown, len({wnid for _, wnid in named}))}")
    return _some(root, [Sample(path.name, path, index[wnid]) for path, wnid in named])


def index_files(pattern: str) -> Layout:
    """Returns the layout of files whose name matches the pattern, its group being the class index."""

    def layout(root: Path) -> list[Sample]:
        matches = [(path, re.fullmatch(pattern, path.name)) for path in _files(root)]
        return _some(root, [Sample(path.name, path, int(match[1])) for path, match in matches if match])

    return layout


def layout_of_folder(root: Path, class_map: str) -> Layout:
    """Returns the layout of a user's own folder.

    With the class map `sorted`, any folders are classes. With `wnid`, folders named by wnid are, or files
    ``<wnid>_<anything>`` where there are no folders.

    Raises:
        DataError: The folder has neither; the message says what it has and what would do.
    """
    folders, files = _folders(root), _files(root)
    if class_map == "sorted":
        if not folders:
            raise DataError(f"{root}: got no folders, but --class-map sorted takes each folder for a class")
        return sorted_folders
    if folders:
        if all(folder.name.isdecimal() and int(folder.name) < _N_CLASSES for folder in folders):
            raise DataError(
                f"{root}: got folders named by numbers ({_listed([folder.name for folder in folders])}), expected "
                "wnids such as n01440764. If the numbers are class indices as in ImageNetV2, use --data imagenetv2, or "
                "rename the folders to wnids; `--class-map sorted` would order them as text (0, 1, 10, 100, ...)"
            )
        return wnid_folders
    if any(_has_wnid(path) for path in files):
        return wnid_files
    if any(path.name.startswith("ILSVRC2012_val_") for path in files):
        raise DataError(
            f"{root}: ImageNet's validation images lie flat here, without labels; sort them into folders named by wnid "
            "first (for instance with the valprep.sh that is often used)"
        )
    found = f"{len(files)} files but no folders" if files else "an empty folder"
    raise DataError(
        f"{root}: got {found}, expected val/<wnid>/<images>, or <wnid>/<images>, with wnids such as n01440764"
    )


def all_images(root: Path) -> list[Path]:
    """Returns the files of a folder and of all folders in it, sorted; labels do not matter.

    Only names that end like an image count where files lie beside folders: READMEs and archives often do.
    """
    beside = [path for path in _files(root) if path.suffix.lower() in _IMAGE_SUFFIXES]
    return sorted([*beside, *(path for folder in _folders(root) for path in _files_below(folder))])


def single_subfolder(root: Path) -> Path | None:
    """Returns the only folder of `root` if there is one and no image beside it: archives often wrap their content."""
    folders = _folders(root)
    alone = len(folders) == 1 and not any(path.suffix.lower() in _IMAGE_SUFFIXES for path in _files(root))
    return folders[0] if alone else None


def _labelled(root: Path, folders: Iterable[tuple[Path, int]]) -> list[Sample]:
    return _some(
        root,
        [
            Sample(path.relative_to(root).as_posix(), path, label)
            for folder, label in folders
            for path in _files_below(folder)
        ],
    )


def _some(root: Path, samples: list[Sample]) -> list[Sample]:
    if not samples:
        raise DataError(
            f"{root}: got no images, expected at least one; check the folder, or remove it to fetch it again"
        )
    return samples


def _visible(root: Path) -> list[Path]:
    try:
        entries = sorted(root.iterdir(), key=lambda path: path.name)
    except FileNotFoundError:
        raise DataError(f"{root}: no such folder; check the path") from None
    except OSError as error:
        raise DataError(f"{root}: cannot be listed as a folder: {error.strerror or error}") from error
    return [path for path in entries if not path.name.startswith(".") and path.name.lower() not in _CLUTTER]


def _folders(root: Path) -> list[Path]:
    return [path for path in _visible(root) if path.is_dir()]


def _files(root: Path) -> list[Path]:
    return [path for path in _visible(root) if not path.is_dir()]


def _files_below(root: Path) -> list[Path]:
    """Returns all files of a folder and its subfolders; a dangling link counts, so that the check names it."""
    return [path for entry in _visible(root) for path in (_files_below(entry) if entry.is_dir() else [entry])]


def _has_wnid(path: Path) -> bool:
    return WNID.match(path.name) is not None and path.name[9:10] in ("_", ".", "-")


def _unknown_folders(unknown: list[str], n_all: int) -> str:
    return (
        f"{len(unknown)} of {n_all} class names are no wnid of ImageNet's 1,000 classes: "
        f"{_listed(unknown, most=None)}. Rename or remove them; where the labels are the folders' places in sorted order, say so with "
        "--class-map sorted"
    )


def _listed(names: list[str], most: int | None = _MOST_NAMED) -> str:
    shown = names if most is None else names[:most]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
