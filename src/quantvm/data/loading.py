"""Loads the images that a user asks for and checks them: ``load_dataset`` and ``load_calibration``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from quantvm.choices import ClassMap, OnBadImage
from quantvm.data.check import find_bad_images, raise_bad_images
from quantvm.data.dataset import BadImage, CalibrationSet, Dataset, choose_subset, draw_order
from quantvm.data.layouts import Layout, has_every_wnid, image_names, layout_of_folder, single_subfolder, stray_images
from quantvm.data.sets import DATASETS, fetch_data, nearest_name, set_root
from quantvm.data.sources import Source, real_source
from quantvm.errors import ConfigError, DataError
from quantvm.progress import SILENT, Progress

DEFAULT_SET = "sample"


@dataclass(frozen=True)
class _Place:
    """Where the requested images are."""

    name: str
    root: Path
    train: Path | None
    layout: Layout | None  # None for a user's own folder
    notes: tuple[str, ...] = ()


def load_dataset(
    name_or_dir: str | Path | None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    class_map: ClassMap = "wnid",
    on_bad_image: OnBadImage = "stop",
    progress: Progress = SILENT,
) -> Dataset:
    """Returns labelled images, each decoded once as a check, in an order that depends only on the arguments.

    Args:
        name_or_dir: A named set; or a folder that holds ``val/<wnid>/`` or ``<wnid>/``; None for the default, `sample`.
        num_samples: How many images to choose; None for all. If there are fewer, all are taken and a note says so.
        seed: Seed of the choice.
        class_map: How the folders of a user's own data map to classes: `wnid` by ImageNet's table, `sorted` by the
            order of their names.
        on_bad_image: Whether a file that cannot be decoded is an error or is left out and listed.
        progress: Where downloading and checking are shown.

    Raises:
        DataError: No such folder or set, no images, unknown class folders, or files that are not images (all named).
        DownloadError: A named set cannot be downloaded.
    """
    _check_options(num_samples, class_map, on_bad_image)
    place = _locate(name_or_dir, progress)
    layout = place.layout or layout_of_folder(place.root, class_map)
    samples = layout(place.root)
    chosen = choose_subset(samples, num_samples, seed)
    notes = [*place.notes, *_layout_notes(place, class_map)]
    if num_samples is not None and num_samples > len(samples):
        notes.append(f"{_images(num_samples)} were asked for, but {place.name} has {len(samples):,}: all are used")
    bad = find_bad_images([sample.source for sample in chosen], progress=progress)
    if on_bad_image == "stop":
        raise_bad_images(bad, f"data set {place.name}")
    left_out = {image.source for image in bad}
    kept = tuple(sample for sample in chosen if sample.source not in left_out)
    if not kept:
        raise DataError(
            f"data set {place.name}: none of the chosen files can be read as an image, {len(chosen):,} in all; the "
            f"first is {bad[0].source}: {bad[0].reason}"
        )
    if bad:
        notes.append(f"{len(bad):,} of the {len(chosen):,} chosen files cannot be read as images and are left out")
    for note in notes:
        progress.note(note)
    return Dataset(place.name, place.root, kept, num_samples, bad, name_or_dir is None, tuple(notes))


def load_calibration(
    dataset_arg: str | Path | None,
    calibration_arg: str | Path | None,
    *,
    num_samples: int,
    seed: int,
    evaluation: Dataset,
    on_bad_image: OnBadImage = "stop",
    progress: Progress = SILENT,
) -> CalibrationSet:
    """Returns exactly `num_samples` calibration images, or all if there are fewer; each has been decoded once.

    They come from `calibration_arg` if given, else from the train part of the data set, else from the evaluation images
    by a seeded choice; `source` says which. Under `on_bad_image="skip"` a file that cannot be decoded is replaced by
    the next one drawn.

    Args:
        dataset_arg: The argument that the evaluation images were loaded from.
        calibration_arg: A folder (its ``train/`` if it has one), a named set (likewise), or None.
        num_samples: How many.
        seed: Seed of the choice.
        evaluation: The evaluation images.
        on_bad_image: Whether a file that cannot be decoded is an error or is left out and listed.
        progress: Where downloading and checking are shown.

    Raises:
        DataError: No such folder, no images in it, or files that are not images (all are named).
        DownloadError: A named set cannot be downloaded.
    """
    _check_options(num_samples, "wnid", on_bad_image)
    if calibration_arg is not None:
        place = _locate(calibration_arg, progress)
        root = place.train or place.root
    else:
        place = _locate(dataset_arg, progress)
        if place.train is None:
            return _part_of_evaluation(evaluation, num_samples, seed)
        root = place.train
    if place.layout is not None and root == place.root:
        candidates = [sample.id for sample in place.layout(root)]
    else:
        candidates = image_names(root)
    if not candidates:
        raise DataError(
            f"calibration: {root} holds no images, expected at least one; name another with --calibration-data"
        )
    order = [root / name for name in draw_order(candidates, seed)]
    images, bad = _draw_good(order, num_samples, on_bad_image, str(root), progress)
    where = f"{place.name} ({root.name}/)" if root == place.train else place.name
    notes = _calibration_notes(images, bad, num_samples, where, evaluation)
    for note in notes:
        progress.note(note)
    return CalibrationSet(images, f"{len(images):,} of {_images(len(candidates))} of {where}", bad, notes)


def has_imagenet_labels(name_or_dir: str | Path | None, class_map: ClassMap) -> bool:
    """Returns whether the labels of the images are ImageNet's class indices; only the names of folders are read.

    With `sorted` a user's own folders have other labels, unless they are all 1,000 wnids.

    Raises:
        DataError: No such folder or set.
    """
    if class_map == "wnid" or _is_named(name_or_dir):
        return True
    return has_every_wnid(_locate(name_or_dir, SILENT).root)


def _is_named(name_or_dir: str | Path | None) -> bool:
    return name_or_dir is None or (isinstance(name_or_dir, str) and name_or_dir in DATASETS)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _check_options(num_samples: int | None, class_map: str, on_bad_image: str) -> None:
    if num_samples is not None and num_samples < 1:
        raise ConfigError(f"number of images: got {num_samples}, expected at least 1")
    for name, value, known in (
        ("class map", class_map, get_args(ClassMap)),
        ("on bad image", on_bad_image, get_args(OnBadImage)),
    ):
        if value not in known:
            raise ConfigError(f"{name}: got {value!r}, expected {' or '.join(known)}")


def _locate(name_or_dir: str | Path | None, progress: Progress) -> _Place:
    """Finds a named set, downloading it if necessary, or a user's folder and the part of it that holds the images."""
    if name_or_dir is None or _is_named(name_or_dir):
        named = DATASETS[str(name_or_dir or DEFAULT_SET)]
        folder = fetch_data(named.name, progress)
        root = set_root(named, folder)
        train = root / named.train if named.train and (root / named.train).is_dir() else None
        return _Place(named.name, root / named.images, train, named.layout)
    root = Path(name_or_dir).expanduser()
    if not root.exists():
        near = nearest_name(str(name_or_dir))
        raise DataError(f"data {name_or_dir}: no such folder or named set{near}; named sets: {', '.join(DATASETS)}")
    if not root.is_dir():
        raise DataError(f"data {name_or_dir}: got a file, expected a folder that holds val/<wnid>/ or <wnid>/")
    notes: tuple[str, ...] = ()
    if not (root / "val").is_dir() and (inner := single_subfolder(root)) and (inner / "val").is_dir():
        notes = (f"{name_or_dir}: uses the images of its only folder {inner.name}",)
        root = inner
    val, train = root / "val", root / "train"
    return _Place(
        str(name_or_dir), val if val.is_dir() else root, train if val.is_dir() and train.is_dir() else None, None, notes
    )


def _layout_notes(place: _Place, class_map: str) -> list[str]:
    """Returns notes about how labels were found."""
    if place.layout is not None:
        unused = f"--class-map sorted has no effect on {place.name}, whose labels are known"
        return [unused] if class_map == "sorted" else []
    notes = []
    if stray := stray_images(place.root):
        notes.append(f"{_images(len(stray))} beside the class folders of {place.root} without a label: not used")
    if class_map == "sorted":
        notes.append("labels are the places of the folders' names in sorted order, as asked by --class-map sorted")
    return notes


def _part_of_evaluation(evaluation: Dataset, num_samples: int, seed: int) -> CalibrationSet:
    """Returns a seeded choice of the evaluation images, which are already checked."""
    sources = {sample.id: sample.source for sample in evaluation.samples}
    images = tuple(sources[name] for name in draw_order(sources, seed)[:num_samples])
    share = f"all {len(sources):,}" if len(images) == len(sources) else f"{len(images):,} of the {len(sources):,}"
    why = f"{evaluation.name} has no train part; --calibration-data names other images"
    source = f"{share} evaluation images themselves ({why})"
    return CalibrationSet(images, source, notes=("the ranges are calibrated on images that are also evaluated",))


def _draw_good(
    order: Sequence[Source], num_samples: int, on_bad_image: OnBadImage, what: str, progress: Progress
) -> tuple[tuple[Source, ...], tuple[BadImage, ...]]:
    """Takes images in order until there are enough good ones."""
    good: list[Source] = []
    bad: list[BadImage] = []
    start = 0
    while len(good) < num_samples and start < len(order):
        drawn = order[start : start + num_samples - len(good)]
        start += len(drawn)
        new_bad = find_bad_images(drawn, progress=progress, description="check calibration images")
        bad += new_bad
        if on_bad_image == "stop":
            raise_bad_images(new_bad, f"the calibration images in {what}")
        left_out = {image.source for image in new_bad}
        good += [source for source in drawn if source not in left_out]
    if not good:
        raise DataError(f"calibration: none of the files in {what} can be read as an image, {len(order):,} in all")
    return tuple(good), tuple(bad)


def _calibration_notes(
    images: Sequence[Source], bad: Sequence[BadImage], num_samples: int, where: str, evaluation: Dataset
) -> tuple[str, ...]:
    notes = []
    if len(images) < num_samples:
        notes.append(
            f"{num_samples:,} calibration images were asked for, but {where} has {len(images):,}: all are used"
        )
    if bad:
        notes.append(f"{len(bad):,} files drawn for calibration cannot be read as images and are left out")
    evaluated = {real_source(sample.source) for sample in evaluation.samples}
    n_both = sum(real_source(source) in evaluated for source in images)
    if n_both:
        notes.append(f"{n_both:,} of the {len(images):,} calibration images are also evaluated")
    return tuple(notes)
