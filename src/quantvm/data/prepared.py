"""Prepared images: scaled and cut pixels in a folder, so that each image is decoded once whatever is done with it.

The folder holds pieces of some images each. A piece is a file of pixels for each geometry, and an index that is written
last: what has no index does not exist, so a process that is killed loses one piece. The index has a digest of each
image's bytes, which tells whether the image has been replaced since, and a checksum of its pixels.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from quantvm.data.ahead import ahead_in_order, default_workers
from quantvm.data.check import Checked
from quantvm.data.dataset import BadImage
from quantvm.data.preprocess import Geometry, load_rgb, orientation_of, pixels_of
from quantvm.data.sources import Source, open_source, order_of_storage
from quantvm.errors import DataError, OutputError
from quantvm.progress import IMAGES, SILENT, Progress
from quantvm.storage.output_files import make_folder, write_file
from quantvm.storage.scratch import room_bytes

_VERSION = 1
_PIECE = 32
_DIGEST_BYTES, _CHUNK_BYTES = 16, 1 << 20
_ROOM_LEFT_BYTES = 1 << 30
_INDEX, _PIXELS = ".index.json", ".u8"


@dataclass(frozen=True)
class Facts:
    """What is known of an image once it was decoded.

    Attributes:
        digest: BLAKE2b of its bytes as far as they could be read, 128 bits in hexadecimal.
        reason: Why it is bad; None if it is good.
        is_turned: Whether it has an EXIF orientation, which is not applied.
    """

    digest: str
    reason: str | None
    is_turned: bool


@dataclass(frozen=True)
class _Place:
    """Where an image's pixels are: in which file, from which byte, with which CRC-32."""

    file: str
    offset: int
    crc: int


@dataclass(frozen=True)
class _Decoded:
    """What a thread found out about an image; `pixels_u8` has what is to be kept."""

    name: str
    facts: Facts
    pixels_u8: dict[Geometry, np.ndarray]


@dataclass
class _Entry:
    facts: Facts
    places: dict[Geometry, _Place] = field(default_factory=dict)


class PreparedImages:
    """Images that are decoded once: as a check, and for all preprocessings.

    It can be pickled; another process reads what its folder holds then.

    Args:
        folder: Of the pieces, made when there are any; None: images are only checked, and nothing is kept.
        geometries: How images are scaled and cut.
        decoder: What decides the pixels beside that, such as versions; pieces with another are not used.
        known: By the digests of images that were decoded before, whether they have an EXIF orientation. They are good,
            and are not decoded for the check.
        share: How much of the folder's room may be used, 0 to 1.
    """

    def __init__(
        self,
        folder: Path | None = None,
        geometries: Iterable[Geometry] = (),
        decoder: str = "",
        known: Mapping[str, bool] | None = None,
        share: float = 1.0,
    ) -> None:
        self.folder, self.decoder, self.known, self._share = folder, decoder, dict(known or {}), share
        self.geometries = tuple(dict.fromkeys(geometries))
        self._entries: dict[str, _Entry] = {}
        self._is_closed = folder is None
        self._read_indexes()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "geometries": self.geometries, "decoder": self.decoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def facts(self) -> dict[str, Facts]:
        """What is known of the images that were checked, by `str` of their source."""
        return {name: entry.facts for name, entry in self._entries.items()}

    def needed_bytes(self, n_images: int) -> int:
        """Returns how much room so many images take."""
        return n_images * sum(geometry.n_bytes for geometry in self.geometries)

    def check(
        self, sources: Sequence[Source], *, progress: Progress = SILENT, description: str = "check images"
    ) -> Checked:
        """Reads all images and decodes those that are new, or were replaced; keeps the pixels of these.

        Without room for all, or if it cannot be written, nothing more is kept: whoever needs an image decodes it.
        """
        self._close_without_room(sources, progress)
        self._decode(sorted(sources, key=order_of_storage), progress, description, again=False)
        bad, n_turned = [], 0
        for source in sources:
            facts = self._entries[str(source)].facts
            n_turned += facts.is_turned
            if facts.reason is not None:
                bad.append(BadImage(source, facts.reason))
        return Checked(tuple(bad), n_turned)

    def prepare(
        self, sources: Sequence[Source], *, progress: Progress = SILENT, description: str = "decode images"
    ) -> None:
        """Makes sure that the pixels of good images are kept, if any are kept."""
        if self._is_closed:
            return
        missing = [source for source in sources if not self._has_all(self._entries.get(str(source)))]
        if missing:
            self._close_without_room(missing, progress)
            if not self._is_closed:
                self._decode(sorted(missing, key=order_of_storage), progress, description, again=True)

    def pixels(self, source: Source, geometry: Geometry) -> np.ndarray | None:
        """Returns an image's pixels, (crop, crop, 3), uint8; None if they are not kept, or are damaged."""
        entry = self._entries.get(str(source))
        place = None if entry is None else entry.places.get(geometry)
        if place is None or self.folder is None:
            return None
        try:
            with (self.folder / place.file).open("rb") as file:
                file.seek(place.offset)
                content = file.read(geometry.n_bytes)
        except OSError:
            return None
        if len(content) != geometry.n_bytes or zlib.crc32(content) != place.crc:
            return None
        return np.frombuffer(content, np.uint8).reshape(geometry.crop, geometry.crop, 3)

    def remove(self) -> None:
        """Removes the pieces, and the folder if nothing else is in it."""
        self._is_closed = True
        for entry in self._entries.values():
            entry.places.clear()
        if self.folder is None or not self.folder.is_dir():
            return
        try:
            for path in [*self.folder.glob(f"*{_INDEX}"), *self.folder.glob(f"*{_PIXELS}")]:
                path.unlink(missing_ok=True)
            self.folder.rmdir()
        except OSError:  # other files are there, or it cannot be written any more: nothing depends on it
            return

    def _decode(self, sources: Sequence[Source], progress: Progress, description: str, *, again: bool) -> None:
        """Decodes what is new or was replaced; with `again`, all that lacks pixels."""
        piece: list[_Decoded] = []
        looked_at = ahead_in_order(
            lambda source: self._look_at(source, again), sources, most=max(_PIECE, 2 * default_workers())
        )
        with progress.task(description, total=len(sources), unit=IMAGES) as task, closing(looked_at):
            for found in looked_at:
                entry = self._entries.get(found.name)
                if entry is None or entry.facts != found.facts:
                    self._entries[found.name] = _Entry(found.facts)
                if found.pixels_u8:
                    piece.append(found)
                if len(piece) == _PIECE:
                    self._write(piece, progress)
                    piece = []
                task.advance()
            if piece:
                self._write(piece, progress)

    def _look_at(self, source: Source, again: bool) -> _Decoded:
        """Returns what is known of an image, and its pixels for each geometry that is missing."""
        name, digest = str(source), blake2b(digest_size=_DIGEST_BYTES)
        before = self._entries.get(name)
        if not again and (facts := self._known(source, before)) is not None:
            return _Decoded(name, facts, {})
        try:
            image = load_rgb(source, digest)
        except DataError as error:
            return _Decoded(name, Facts(digest.hexdigest(), str(error), False), {})
        facts = Facts(digest.hexdigest(), None, orientation_of(image) != 1)
        if self._is_closed:
            return _Decoded(name, facts, {})
        kept = before.places if before is not None and before.facts == facts else {}
        try:
            return _Decoded(name, facts, {each: pixels_of(image, each) for each in self.geometries if each not in kept})
        except MemoryError:  # an image of extreme proportions: whoever needs it says so
            return _Decoded(name, facts, {})

    def _known(self, source: Source, before: _Entry | None) -> Facts | None:
        """Returns the facts of an image that need not be decoded: its bytes are those that were decoded before."""
        if not self.known and before is None:
            return None
        try:
            digest = _digest_of(source)
        except (DataError, OSError):  # decoding says why
            return None
        if before is not None and before.facts.digest == digest and self._has_all(before):
            return before.facts
        is_turned = self.known.get(digest)
        return None if is_turned is None else Facts(digest, None, is_turned)

    def _has_all(self, entry: _Entry | None) -> bool:
        """Whether nothing more is to be kept of an image."""
        if entry is None:
            return False
        return self._is_closed or entry.facts.reason is not None or all(g in entry.places for g in self.geometries)

    def _close_without_room(self, sources: Sequence[Source], progress: Progress) -> None:
        """Gives up keeping pixels if the disk has no room for those of all these images."""
        if self._is_closed:
            return
        assert self.folder is not None
        missing = sum(not self._has_all(self._entries.get(str(source))) for source in sources)
        needed, room = self.needed_bytes(missing), _room(self.folder)
        if room is not None and needed + _ROOM_LEFT_BYTES > room * self._share:
            self._give_up(
                f"{self.folder} has room for {room / 1e9:.1f} GB, and {needed / 1e9:.1f} GB are needed", progress
            )

    def _give_up(self, why: str, progress: Progress) -> None:
        self._is_closed = True
        progress.note(f"prepared images are not kept, each model decodes them itself: {why}")

    def _write(self, piece: Sequence[_Decoded], progress: Progress) -> None:
        """Writes a piece; its files are read by nobody before the index is there."""
        if self._is_closed:
            return
        assert self.folder is not None
        stem = uuid4().hex[:16]
        places: list[dict[str, tuple[int, int]]] = [{} for _ in piece]
        try:
            make_folder(self.folder)
            for geometry in self.geometries:
                there = [(i, found.pixels_u8[geometry]) for i, found in enumerate(piece) if geometry in found.pixels_u8]
                for slot, (i, x_u8) in enumerate(there):
                    places[i][_word(geometry)] = slot * geometry.n_bytes, zlib.crc32(x_u8.data)
                if there:
                    write_file(self.folder / _file_name(stem, geometry), b"".join(x_u8.data for _, x_u8 in there))
            rows = [
                [found.name, found.facts.digest, found.facts.is_turned, place]
                for found, place in zip(piece, places, strict=True)
            ]
            index = {"version": _VERSION, "decoder": self.decoder, "images": rows}
            write_file(self.folder / f"{stem}{_INDEX}", json.dumps(index).encode())
        except OutputError as error:
            self._give_up(str(error), progress)
            self.remove()
            return
        self._add(stem, index)

    def _read_indexes(self) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        # the last written of an image counts
        for path in sorted(self.folder.glob(f"*{_INDEX}"), key=_written_ns):
            try:
                index = json.loads(path.read_bytes())
                if index["version"] == _VERSION and index["decoder"] == self.decoder:
                    self._add(path.name.removesuffix(_INDEX), index)
            except (OSError, ValueError, KeyError, TypeError):  # damaged: its images are decoded again
                continue

    def _add(self, stem: str, index: Mapping[str, Any]) -> None:
        for name, digest, is_turned, places in index["images"]:
            facts = Facts(digest, None, is_turned)
            entry = self._entries.get(name)
            if entry is None or entry.facts != facts:
                entry = self._entries[name] = _Entry(facts)
            for geometry in self.geometries:
                if (found := places.get(_word(geometry))) is not None:
                    entry.places[geometry] = _Place(_file_name(stem, geometry), *found)


def image_libraries() -> dict[str, str | None]:
    """Returns the versions of the libraries by which Pillow decodes images."""
    from PIL import features

    return {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib", "webp", "libtiff")}


def decoder_identity() -> str:
    """Returns a text that differs where pixels of an image may differ: versions, and the sources that make them."""
    import PIL

    sources = blake2b(digest_size=_DIGEST_BYTES)
    for file in ("preprocess.py", "image_modes.py"):
        sources.update(Path(__file__).with_name(file).read_bytes())
    libraries = [f"{name} {version}" for name, version in image_libraries().items()]
    return ", ".join([f"Pillow {PIL.__version__}", *libraries, sources.hexdigest()])


def _digest_of(source: Source) -> str:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    with open_source(source) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _word(geometry: Geometry) -> str:
    return f"{geometry.resize}-{geometry.crop}-{geometry.interpolation}"


def _file_name(stem: str, geometry: Geometry) -> str:
    return f"{stem}.{_word(geometry)}{_PIXELS}"


def _written_ns(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_mtime_ns, path.name
    except OSError:
        return 0, path.name


def _room(folder: Path) -> int | None:
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.is_dir())
    return room_bytes(there)
