"""Loads the images that a user asks for and checks them: ``load_dataset`` and ``load_calibration``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from quantvm.choices import ClassMap, OnBadImage
from quantvm.data.check import CheckImages, raise_bad_images
from quantvm.data.dataset import BadImage, CalibrationSet, Dataset, choose_subset, draw_order
from quantvm.data.inventory import is_container
from quantvm.data.layouts import has_every_wnid, image_names, single_subfolder, sorted_folders, stray_images
from quantvm.data.prepared import PreparedImages
from quantvm.data.recognition import Found, all_images, recognize, summary_of, training_images
from quantvm.data.sets import DATASETS, NamedSet, fetch_data, nearest_name, set_root
from quantvm.data.sources import Source, real_source
from quantvm.errors import ConfigError, DataError
from quantvm.progress import SILENT, Progress

DEFAULT_SET = "sample"


@dataclass(frozen=True)
class _Place:
    """Where the requested images are.

    Attributes:
        name: The named set, or the folder as given.
        whole: The folder, archive or table that was named; for a named set, its folder.
        root: The folder of the images: `val` of a user's folder, if there is one.
        train: The folder `train` beside it, or None.
        named: The named set; None for a user's own data.
        notes: What a reader of the results should know, one sentence each.
    """

    name: str
    whole: Path
    root: Path
    train: Path | None
    named: NamedSet | None
    notes: tuple[str, ...] = ()


def load_dataset(
    name_or_dir: str | Path | None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    class_map: ClassMap = "wnid",
    labels: str | Path | None = None,
    form: str | None = None,
    on_bad_image: OnBadImage = "stop",
    check: CheckImages | None = None,
    progress: Progress = SILENT,
) -> Dataset:
    """Returns labelled images, each decoded once as a check, in an order that depends only on the arguments.

    Args:
        name_or_dir: A named set; or a folder, archive or table that holds ImageNet in one of the forms of
            `quantvm.data.forms`; None for the default, `sample`.
        num_samples: How many images to choose; None for all. If there are fewer, all are taken and a note says so.
        seed: Seed of the choice.
        class_map: How the folders of a user's own data map to classes: `wnid` by ImageNet's table, `sorted` by the
            order of their names.
        labels: A list of labels for a user's own data; None to find out what says them.
        form: The form in which a user's own data lies; None to find out.
        on_bad_image: Whether a file that cannot be decoded, or an archive that was cut off, is an error or is left out
            and listed.
        check: Decodes the images, and may keep what it decodes; None: it only checks them.
        progress: Where downloading and checking are shown.

    Raises:
        DataError: No such folder or set, no images, unknown or ambiguous classes, or files that are not images (all
            named).
        DownloadError: A named set cannot be downloaded.
    """
    _check_options(num_samples, class_map, on_bad_image)
    place = _locate(name_or_dir, progress)
    _check_choice(place, class_map, labels, form)
    found = _labelled(place, class_map, labels, form, progress)
    if found.damage and on_bad_image == "stop":
        raise DataError(
            f"data {place.name}: " + "\n  ".join(["images may be missing:", *found.damage])
            + "\nRepair or remove these, or evaluate what can be read with --on-bad-image skip"
        )  # fmt: skip
    told = f"data {place.name}: {found.form} ({found.labels}); {found.summary}"
    progress.note(told)
    samples = found.samples
    chosen = choose_subset(samples, num_samples, seed)
    notes = [*place.notes, *found.damage, *found.notes]
    if num_samples is not None and num_samples > len(samples):
        notes.append(f"{_images(num_samples)} were asked for, but {place.name} has {len(samples):,}: all are used")
    check = check or PreparedImages().check
    checked = check([sample.source for sample in chosen], progress=progress)
    bad = checked.bad
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
    if checked.n_turned:
        have = "1 image has" if checked.n_turned == 1 else f"{checked.n_turned:,} images have"
        notes.append(f"{have} an EXIF orientation, which is not applied, as in torchvision")
    for note in notes:
        progress.note(note)
    return Dataset(
        place.name, found.root, kept, num_samples, bad, name_or_dir is None, found.form, found.labels, found.summary,
        tuple(notes),
    )  # fmt: skip


def load_calibration(
    dataset_arg: str | Path | None,
    calibration_arg: str | Path | None,
    *,
    num_samples: int,
    seed: int,
    evaluation: Dataset,
    on_bad_image: OnBadImage = "stop",
    check: CheckImages | None = None,
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
        check: Decodes the images, and may keep what it decodes; None: it only checks them.
        progress: Where downloading and checking are shown.

    Raises:
        DataError: No such folder, no images in it, or files that are not images (all are named).
        DownloadError: A named set cannot be downloaded.
    """
    _check_options(num_samples, "wnid", on_bad_image)
    place = _locate(dataset_arg if calibration_arg is None else calibration_arg, progress)
    candidates, where = _candidates(place, calibration_arg is not None, progress)
    if not candidates and calibration_arg is None:
        return _part_of_evaluation(evaluation, num_samples, seed)
    if not candidates:
        raise DataError(
            f"calibration: {place.whole} holds no images, expected at least one; name another with --calibration-data"
        )
    order = [candidates[name] for name in draw_order(candidates, seed)]
    check = check or PreparedImages().check
    images, bad = _draw_good(order, num_samples, on_bad_image, where, check, progress)
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


def find_data(name_or_dir: str | Path | None) -> None:
    """Makes sure that a user's own data are there, before anything is read or downloaded.

    Raises:
        DataError: No such folder or set.
    """
    if not _is_named(name_or_dir):
        _locate(name_or_dir, SILENT)


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
        return _Place(named.name, folder, root / named.images, train, named)
    root = Path(name_or_dir).expanduser()
    if not root.exists():
        near = nearest_name(str(name_or_dir))
        raise DataError(f"data {name_or_dir}: no such folder or named set{near}; named sets: {', '.join(DATASETS)}")
    if not root.is_dir() and not is_container(root):
        raise DataError(
            f"data {name_or_dir}: got a file, expected a folder that holds val/<wnid>/ or <wnid>/, an archive, or a "
            "table"
        )
    notes: tuple[str, ...] = ()
    whole = root
    if root.is_dir() and not (root / "val").is_dir() and (inner := single_subfolder(root)) and (inner / "val").is_dir():
        notes = (f"{name_or_dir}: uses the images of its only folder {inner.name}",)
        root = inner
    val, train = root / "val", root / "train"
    has_both = val.is_dir() and train.is_dir()
    return _Place(str(name_or_dir), whole, val if val.is_dir() else root, train if has_both else None, None, notes)


def _check_choice(place: _Place, class_map: str, labels: str | Path | None, form: str | None) -> None:
    """Refuses labels and forms that would have no effect.

    Raises:
        ConfigError: There are such.
    """
    given = [name for name, value in (("labels", labels), ("form", form)) if value is not None]
    if given and (place.named is not None or class_map == "sorted"):
        why = f"the labels of {place.name} are known" if place.named else "--class-map sorted says the labels"
        raise ConfigError(f"{' and '.join(given)}: {why}; leave it out")


def _labelled(place: _Place, class_map: str, labels: str | Path | None, form: str | None, progress: Progress) -> Found:
    """Returns the images with their labels, and how these were found."""
    if place.named is not None:
        unused = f"--class-map sorted has no effect on {place.name}, whose labels are known"
        notes = [unused] if class_map == "sorted" else []
        samples = place.named.layout(place.root)
        rule, form = place.named.class_mapping, "named-set"
    elif class_map == "sorted":
        if not place.root.is_dir():
            raise DataError(f"data {place.name}: got a file, but --class-map sorted takes each folder for a class")
        samples = sorted_folders(place.root)
        stray, notes = stray_images(place.root), []
        if stray:
            notes.append(f"{_images(len(stray))} beside the class folders of {place.root} without a label: not used")
        notes.append("labels are the places of the folders' names in sorted order, as asked by --class-map sorted")
        rule, form = "the place of the folder's name in sorted order", "sorted-folders"
    else:
        return recognize(place.whole, labels=labels, form=form, progress=progress)
    classes = Counter(sample.label for sample in samples)
    return Found(form, rule, place.root, samples, summary_of(classes), [], notes)


def _candidates(place: _Place, is_named_for_it: bool, progress: Progress) -> tuple[dict[str, Source], str]:
    """Returns the images that may be used for calibration by id, and the place that they are in."""
    if place.train is not None and (names := image_names(place.train)):
        return {name: place.train / name for name in names}, f"{place.name} ({place.train.name}/)"
    if place.named is not None:
        if not is_named_for_it:
            return {}, place.name
        return {sample.id: sample.source for sample in place.named.layout(place.root)}, place.name
    training = dict(training_images(place.whole, progress=progress))
    if training:
        return training, f"{place.name} (the training part)"
    if not is_named_for_it:
        return {}, place.name
    if place.root.is_dir() and (names := image_names(place.root)):
        return {name: place.root / name for name in names}, place.name
    return dict(all_images(place.whole, progress=progress)), place.name


def _part_of_evaluation(evaluation: Dataset, num_samples: int, seed: int) -> CalibrationSet:
    """Returns a seeded choice of the evaluation images, which are already checked."""
    sources = {sample.id: sample.source for sample in evaluation.samples}
    images = tuple(sources[name] for name in draw_order(sources, seed)[:num_samples])
    share = f"all {len(sources):,}" if len(images) == len(sources) else f"{len(images):,} of the {len(sources):,}"
    why = f"{evaluation.name} has no train part; --calibration-data names other images"
    source = f"{share} evaluation images themselves ({why})"
    return CalibrationSet(images, source, notes=("the ranges are calibrated on images that are also evaluated",))


def _draw_good(
    order: Sequence[Source],
    num_samples: int,
    on_bad_image: OnBadImage,
    what: str,
    check: CheckImages,
    progress: Progress,
) -> tuple[tuple[Source, ...], tuple[BadImage, ...]]:
    """Takes images in order until there are enough good ones."""
    good: list[Source] = []
    bad: list[BadImage] = []
    start = 0
    while len(good) < num_samples and start < len(order):
        drawn = order[start : start + num_samples - len(good)]
        start += len(drawn)
        new_bad = check(drawn, progress=progress, description="check calibration images").bad
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
