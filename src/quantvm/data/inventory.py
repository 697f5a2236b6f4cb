"""Everything below a folder that may be an image or say labels: files, members of archives, rows of tables.

Where something lies is a path relative to the folder, with `/` between folders and `!` between an archive or table and
what it holds. Parts that are not wanted (the training images, for an evaluation) are not even listed.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from quantvm.data.contents import HEAD_BYTES, Kind, is_clutter, is_image_name, kind_of_content
from quantvm.data.members import Unusable, members_of
from quantvm.data.parts import PartName, part_of_folders, part_of_name
from quantvm.data.shards import missing_shards
from quantvm.data.sources import Source, beginning_of, open_source
from quantvm.data.tables import Row, arrow_rows, parquet_rows
from quantvm.data.tfrecords import tfrecord_rows
from quantvm.errors import DataError
from quantvm.progress import SILENT, Progress

_MOST_DEEP = 12
_MOST_TEXT_BYTES = 1 << 26
_TEXT_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".lst", ".list", ".labels", ".map", ""})
_NEVER_SNIFFED = frozenset(
    {".xml", ".json", ".md", ".py", ".m", ".mat", ".html", ".htm", ".yaml", ".yml", ".pdf", ".log"}
)
_CONTAINER_SUFFIXES = frozenset({".tar", ".zip", ".gz", ".tgz", ".parquet", ".arrow", ".tfrecord"})
_NO_IMAGES = frozenset({"annotations"})  # 590,000 files in the Kaggle set, all of them boxes
_TABLES: dict[Kind, Callable[[Path], Iterator[Row]]] = {
    "parquet": parquet_rows, "arrow": arrow_rows, "tfrecord": tfrecord_rows,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Image:
    """An image, wherever it lies.

    Attributes:
        path: Where, relative to the folder that was listed.
        source: Its bytes.
        label: What its table, or the file `.cls` beside it, says of its class: an index, or text; None if nothing.
        original: The name of the file that a table's row was made from.
        container: What kind of file holds it: "file" (its own), "archive", "shard" (an archive with labels beside the
            images), "parquet", "arrow" or "tfrecord".
    """

    path: str
    source: Source
    label: int | str | None = None
    original: str | None = None
    container: str = "file"

    @property
    def parts(self) -> list[str]:
        """The folders, archives and the name that its path is made of."""
        return self.path.replace("!", "/").split("/")

    @property
    def name(self) -> str:
        """Its name without folders; of a row, that of the file which it was made from."""
        return self.original or self.path.replace("!", "/").rpartition("/")[2]


@dataclass(frozen=True)
class TextFile:
    """A file that may be a list of labels."""

    path: str
    source: Source

    def read(self) -> str:
        """Returns its text; bytes that are no UTF-8 are replaced."""
        with open_source(self.source) as file:
            return file.read(_MOST_TEXT_BYTES).decode("utf-8-sig", "replace")


@dataclass
class Inventory:
    """What a folder holds.

    Attributes:
        root: The folder.
        images: In the order of their paths; those of an archive or table, in the order of storage.
        texts: Files that may be lists of labels.
        damage: What keeps images from being read, a sentence each.
        notes: What else was left out, a sentence each.
        unlisted: Folders and archives of parts that were not wanted.
    """

    root: Path
    images: list[Image] = field(default_factory=list)
    texts: list[TextFile] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)


def is_container(file: Path) -> bool:
    """Returns whether a file is an archive or a table that may hold images."""
    try:
        kind = kind_of_content(beginning_of(file, HEAD_BYTES))
    except DataError:
        return False
    return kind in ("tar", "zip", "gzip") or kind in _TABLES


def take_inventory(root: Path, *, without: Sequence[PartName] = (), progress: Progress = SILENT) -> Inventory:
    """Returns what a folder, or an archive or table, holds.

    Args:
        root: A folder; or an archive or table, which is then listed alone.
        without: Parts whose folders and archives are not listed.
        progress: Where the listing of archives is shown.

    Raises:
        DataError: The folder cannot be listed.
    """
    walk = _Walk(root if root.is_dir() else root.parent, frozenset(without), progress)
    if root.is_dir():
        walk.folder(root, "", None, 0)
    else:
        walk.file(root, root.name, None)
    return walk.finished()


class _Walk:
    def __init__(self, root: Path, without: frozenset[PartName], progress: Progress) -> None:
        self.found = Inventory(root)
        self._without, self._progress = without, progress
        self._pointers: list[str] = []
        self._dangling: list[str] = []
        self._others: Counter[str] = Counter()
        self._labels: dict[str, Source] = {}
        self._seen: set[tuple[int, int]] = set()  # folders and containers, which links can reach again
        self._containers: list[str] = []

    def folder(self, folder: Path, path: str, part: PartName | None, depth: int) -> None:
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not path:
                raise DataError(f"{folder}: cannot be listed as a folder: {error.strerror or error}") from error
            self.found.damage.append(f"{folder} cannot be listed: {error.strerror or error}")
            return
        names = {entry.name for entry in entries}
        folders = []
        for entry in entries:
            if is_clutter(entry.name):
                continue
            if entry.is_dir():
                is_cache = entry.name == "blobs" and "snapshots" in names  # links in snapshots lead there
                if not is_cache and entry.name.lower() not in _NO_IMAGES:
                    folders.append(entry)
            else:
                self.file(Path(entry.path), f"{path}{entry.name}", part)
        for entry in folders:
            inner = part_of_name(entry.name) or part
            if inner in self._without:
                self.found.unlisted.append(f"{path}{entry.name}")
            elif depth < _MOST_DEEP and self._is_new(entry):
                self.folder(Path(entry.path), f"{path}{entry.name}/", inner, depth + 1)

    def file(self, file: Path, path: str, part: PartName | None) -> None:
        if is_image_name(path):
            self.found.images.append(Image(path, file))
            return
        name = PurePosixPath(path).name
        suffix = PurePosixPath(name).suffix.lower()
        if suffix == ".cls":
            self._labels[path] = file
            return
        if suffix in _NEVER_SNIFFED:
            self._others[suffix] += 1
            if suffix == ".json":
                self._labels[path] = file
            return
        if suffix in _CONTAINER_SUFFIXES and (part_of_name(name) or part) in self._without:
            self.found.unlisted.append(path)
            return
        try:
            kind = kind_of_content(beginning_of(file, HEAD_BYTES))
        except DataError as error:
            if suffix in _CONTAINER_SUFFIXES:
                (self._dangling if file.is_symlink() else self.found.damage).append(
                    path if file.is_symlink() else str(error)
                )
            return
        self._take(file, path, name, suffix, kind, part)

    def _take(self, file: Path, path: str, name: str, suffix: str, kind: Kind, part: PartName | None) -> None:
        is_container = kind in ("tar", "zip", "gzip") or kind in _TABLES
        if is_container and (part_of_name(name) or part) in self._without:
            self.found.unlisted.append(path)
        elif is_container and not self._is_new(file):
            return
        elif kind == "image":
            self.found.images.append(Image(path, file))
        elif kind == "pointer":
            self._pointers.append(path)
        elif kind in _TABLES:
            self._table(file, path, kind)
        elif is_container:
            self._archive(file, path, kind, part_of_name(name) or part)
        elif kind == "other archive":
            self.found.damage.append(f"{file} is an archive of a kind that is not read; unpack it, or make it a .tar")
        elif kind == "text" and suffix in _TEXT_SUFFIXES and file.stat().st_size <= _MOST_TEXT_BYTES:
            self.found.texts.append(TextFile(path, file))
        elif suffix in _CONTAINER_SUFFIXES:
            size = file.stat().st_size
            self.found.damage.append(f"{file} ({size:,} bytes) is not what its name says: damaged, or half a download")
        else:
            self._others[suffix or "without a suffix"] += 1
        if is_container:
            self._containers.append(path)

    def _archive(self, file: Path, path: str, kind: Kind, part: PartName | None) -> None:
        unlisted: dict[str, None] = {}
        labels: dict[str, list[Source]] = defaultdict(list)
        images: list[Image] = []
        with self._progress.task(f"list {file.name}", total=file.stat().st_size, unit="bytes") as task:
            for member in members_of(file, kind, task):
                if isinstance(member, Unusable):
                    (self.found.damage if member.is_damage else self.found.notes).append(f"{file.parent}/{member.what}")
                    continue
                inside = f"{path}!{member.name}"
                parts = member.name.replace("!", "/").split("/")
                name = parts[-1]
                folder = inside[: -len(name) - 1]
                if (part_of_folders(folder) or part) in self._without:
                    unlisted[folder] = None
                    continue
                if any(map(is_clutter, parts)):
                    continue
                suffix = PurePosixPath(name).suffix.lower()
                if is_image_name(name):
                    images.append(Image(inside, member.source, container="archive"))
                elif suffix in (".cls", ".json"):
                    labels[f"{_key(member.name)}{suffix}"].append(member.source)
                elif suffix in _TEXT_SUFFIXES and member.size_bytes <= _MOST_TEXT_BYTES:
                    self.found.texts.append(TextFile(inside, member.source))
        self.found.images += _with_labels(images, labels, len(path) + 1)
        self.found.unlisted += unlisted

    def _table(self, file: Path, path: str, kind: Kind) -> None:
        try:
            for row in _TABLES[kind](file):
                self.found.images.append(Image(f"{path}!{row.source.name}", row.source, row.label, row.original, kind))
        except DataError as error:
            self.found.damage.append(str(error))

    def _is_new(self, entry: os.DirEntry[str] | Path) -> bool:
        """Whether no link has led to this folder or container before."""
        status = entry.stat()
        known = status.st_dev, status.st_ino
        if known in self._seen:
            return False
        self._seen.add(known)
        return True

    def finished(self) -> Inventory:
        """Returns what was found, with all of a kind told in one sentence."""
        found = self.found
        files = {path: [source] for path, source in self._labels.items()}
        if files:
            keyed = {f"{_key(path)}{PurePosixPath(path).suffix}": sources for path, sources in files.items()}
            own = [image for image in found.images if image.container == "file"]
            others = [image for image in found.images if image.container != "file"]
            found.images = [*_with_labels(own, keyed, 0), *others]
        if self._pointers:
            found.damage.append(
                f"{_some(self._pointers)} in {found.root}: pointers of Git LFS, of about 130 bytes, and not the data; "
                "run `git lfs pull` there"
            )
        if self._dangling:
            found.damage.append(
                f"{_some(self._dangling)} in {found.root}: links to missing files, as an unfinished download from "
                "Hugging Face leaves them; download the set again (hf download ... --repo-type dataset)"
            )
        hints = {text.path: text.read() for text in found.texts if text.path.endswith("nshards.txt")}
        hints |= {
            path: TextFile(path, source).read() for path, source in self._labels.items() if path.endswith("_info.json")
        }
        found.notes += missing_shards(self._containers, hints)
        n_others = sum(self._others.values())
        if n_others and found.images:
            kinds = ", ".join(suffix for suffix, _ in self._others.most_common(4))
            count = "1 file that is no image is" if n_others == 1 else f"{n_others:,} files that are no images are"
            found.notes.append(f"{count} ignored ({kinds})")
        return found


def _key(path: str) -> str:
    """Returns what the files of one sample share, by WebDataset's rule: the path up to the first dot of the name."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.split('.')[0]}"


def _with_labels(images: list[Image], labels: dict[str, list[Source]], prefix: int) -> Iterable[Image]:
    """Returns the images, each with the label that the `.cls` or `.json` beside it holds, if there is one."""
    if not labels:
        return images
    places: Counter[str] = Counter()
    found = []
    for image in images:
        key = _key(image.path[prefix:])
        beside = labels.get(f"{key}.cls") or labels.get(f"{key}.json")
        place = places[key]
        places[key] += 1
        text = None
        if beside and place < len(beside):
            text = _label_in(beside[place], "cls" if f"{key}.cls" in labels else "json")
        if text is None:
            found.append(image)
        else:
            container = "shard" if image.container == "archive" else "file"
            found.append(replace(image, label=text, container=container))
    return found


def _label_in(source: Source, kind: str) -> int | str | None:
    import json

    try:
        text = beginning_of(source, 4096).decode("utf-8", "replace").strip()
        if kind == "cls":
            return int(text) if text.lstrip("-").isdecimal() else text or None
        content = json.loads(text)
    except (DataError, ValueError):
        return None
    label = content.get("label") if isinstance(content, dict) else None
    return label if isinstance(label, (int, str)) and not isinstance(label, bool) else None


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more
