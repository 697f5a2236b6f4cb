"""Lists the members of tar, zip and gzip files, nested ones too, with the places of their bytes. Nothing is unpacked.

Read by the standard library's tarfile, zipfile and zlib. Members' names are data: they are never used as paths, and
those that would lead out of a folder are left out. Links are not followed, but for hard links to earlier members.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from quantvm.data.contents import HEAD_BYTES, Kind, kind_of_content
from quantvm.data.gzip_reader import gzip_reader
from quantvm.data.sources import (
    DEFLATED,
    MOST_IMAGE_BYTES,
    STORED,
    FileSlice,
    GzipSlice,
    ZipMember,
    beginning_of,
    place_in_zip,
)
from quantvm.errors import DataError
from quantvm.progress import Task
from quantvm.storage.archive import safe_name
from quantvm.storage.regular_files import open_regular

_MOST_NESTED = 3
_ZIP_ENCRYPTED = 1
_BUFFER_BYTES = 1 << 13


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside of an archive.

    Attributes:
        name: Its path; `!` stands between an archive and its member.
        source: Where its bytes are.
        size_bytes: How many.
    """

    name: str
    source: FileSlice | ZipMember | GzipSlice
    size_bytes: int


@dataclass(frozen=True)
class Unusable:
    """What of an archive cannot be used, as a sentence without its end.

    Attributes:
        what: The archive or member, and what is wrong with it.
        is_damage: Whether images may be missing because of that, so that a run should not begin.
    """

    what: str
    is_damage: bool


@dataclass(frozen=True)
class _Region:
    """Where an archive is: a part of a file, or, if that part is a gzip file, a part of its content.

    Attributes:
        file, start, length: The part of the file.
        prefix: What its members' names begin with: empty, or the names of the archives around them, with `!`.
        inner: Offset and size of the archive in the gzip file's content; the size is None up to the end.
    """

    file: Path
    start: int
    length: int
    prefix: str = ""
    inner: tuple[int, int | None] | None = None

    def opened(self) -> IO[bytes]:
        return io.BufferedReader(_Content(self), _BUFFER_BYTES)

    def at(self, offset: int, size_bytes: int, name: str) -> FileSlice | GzipSlice:
        if self.inner is None:
            return FileSlice(self.file, self.start + offset, size_bytes, name)
        return GzipSlice(self.file, self.start, self.length, self.inner[0] + offset, size_bytes, name)


class _Content(io.RawIOBase):
    """An archive as a file of its own."""

    def __init__(self, region: _Region) -> None:
        self._region, self._position = region, 0
        self._file = open_regular(region.file, DataError) if region.inner is None else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._region.length if self._region.inner is None else self._region.inner[1]
        if whence == io.SEEK_END and end is None:
            raise OSError("the size of a gzip file's content is not known before it is read")
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end or 0}[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._read(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _read(self, size_bytes: int) -> bytes:
        region = self._region
        if self._file is not None:
            self._file.seek(region.start + self._position)
            return self._file.read(max(0, min(size_bytes, region.length - self._position)))
        assert region.inner is not None
        offset, length = region.inner
        wanted = size_bytes if length is None else max(0, min(size_bytes, length - self._position))
        return gzip_reader(region.file, region.start, region.length).read_at(offset + self._position, wanted)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def members_of(file: Path, kind: Kind, task: Task) -> Iterator[Member | Unusable]:
    """Yields the members of an archive, and what of it cannot be used.

    Args:
        file: A tar, zip or gzip file.
        kind: Which of these, from `kind_of_content`.
        task: Advances by the bytes of the file.
    """
    yield from _listed(_Region(file, 0, file.stat().st_size), file.name, kind, 0, task)


def _listed(region: _Region, shown: str, kind: Kind, depth: int, task: Task | None) -> Iterator[Member | Unusable]:
    if depth > _MOST_NESTED:
        yield Unusable(f"{shown}: archives inside of each other, more than {_MOST_NESTED} deep", False)
        return
    try:
        if kind == "tar":
            yield from _tar_members(region, shown, depth, task)
        elif kind == "zip":
            yield from _zip_members(region, shown, depth, task)
        else:
            content = replace(region, inner=(0, None))
            with content.opened() as file:
                head = file.read(HEAD_BYTES)
            if kind_of_content(head) == "tar":
                yield from _tar_members(content, shown, depth, task)
    except (DataError, OSError, EOFError, ValueError) as error:
        yield Unusable(str(error) if region.file.name in str(error) else f"{shown}: {error}", True)


def _tar_members(region: _Region, shown: str, depth: int, task: Task | None) -> Iterator[Member | Unusable]:
    links, unsafe, position = 0, 0, 0
    places: dict[str, tuple[int, int]] = {}
    with region.opened() as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
                    if task is not None and region.inner is None:
                        task.advance(info.offset_data + info.size - position)
                        position = info.offset_data + info.size
                    if info.isdir():
                        continue
                    name = safe_name(info.name)
                    offset, size = info.offset_data, info.size
                    if name is not None and info.islnk() and info.linkname in places:
                        offset, size = places[info.linkname]
                    elif not info.isreg() or info.issparse():
                        links += 1
                        continue
                    if name is None or (size > MOST_IMAGE_BYTES and not name.lower().endswith(".tar")):
                        unsafe += 1
                        continue
                    places[info.name] = offset, size
                    member = Member(region.prefix + name, region.at(offset, size, region.prefix + name), size)
                    yield from _or_nested(member, f"{shown}!{name}", depth)
                end = tar.offset
        except tarfile.ReadError as error:
            yield Unusable(f"{shown} is damaged or cut off: {error}", True)
            return
        yield from _end_of_tar(file, end, region, shown)
    if links:
        yield Unusable(f"{shown}: {links:,} links, devices or sparse files are not read", False)
    if unsafe:
        yield _left_out(shown, unsafe, "or they are larger")


def _end_of_tar(file: IO[bytes], end: int, region: _Region, shown: str) -> Iterator[Unusable]:
    """Says whether the place where tarfile stopped is the end: blocks of zeros, and nothing behind them."""
    file.seek(end)
    mark, behind = file.read(HEAD_BYTES), file.read(HEAD_BYTES)
    if region.inner is None and region.length > end + 2 * HEAD_BYTES:
        file.seek(region.length - HEAD_BYTES)
        behind += file.read(HEAD_BYTES)
    if len(mark) < HEAD_BYTES:
        yield Unusable(f"{shown} is cut off: it has no mark of its end, so members may be missing", True)
    elif mark.strip(b"\0"):
        yield Unusable(f"{shown} is damaged at byte {end:,}: no member begins there", True)
    elif behind.strip(b"\0"):
        yield Unusable(f"{shown} is damaged: it has a mark of its end at byte {end:,}, and more behind that", True)


def _left_out(shown: str, count: int, other: str) -> Unusable:
    return Unusable(
        f"{shown}: {count:,} members are left out, since their names lead out of the folder, {other} than "
        f"{MOST_IMAGE_BYTES:,} bytes",
        False,
    )


def _zip_members(region: _Region, shown: str, depth: int, task: Task | None) -> Iterator[Member | Unusable]:
    unsafe, locked, outside = 0, 0, 0
    with region.opened() as file:
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            yield Unusable(
                f"{shown} is damaged or cut off: the table of its members, which stands at the end, cannot be read "
                f"({error})",
                True,
            )
            return
    if task is not None:
        task.advance(region.length)
    for info in infos:
        if info.is_dir():
            continue
        name = safe_name(info.filename)
        is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
        if name is None or is_link or (info.file_size > MOST_IMAGE_BYTES and not name.lower().endswith(".tar")):
            unsafe += 1
        elif info.flag_bits & _ZIP_ENCRYPTED or info.compress_type not in (STORED, DEFLATED):
            locked += 1
        elif not 0 <= info.header_offset <= info.header_offset + info.compress_size <= region.length:
            outside += 1
        else:
            source = ZipMember(
                region.file, region.start + info.header_offset, info.compress_size, info.file_size, info.compress_type,
                info.CRC, region.prefix + name,
            )  # fmt: skip
            member = Member(region.prefix + name, source, info.file_size)
            yield from _or_nested(member, f"{shown}!{name}", depth)
    if unsafe:
        yield _left_out(shown, unsafe, "they are links, or larger")
    if outside:
        yield Unusable(f"{shown} is damaged or cut off: {outside:,} members lie outside of it", True)
    if locked:
        yield Unusable(f"{shown}: {locked:,} members are encrypted, or compressed in a way that is not read", True)


_NOT_INSIDE = ("parquet", "arrow", "tfrecord", "other archive")
_NEVER_ARCHIVES = (".jpg", ".jpeg", ".png", ".webp", ".cls", ".json", ".txt", ".xml", ".csv", ".mat", ".m")


def _or_nested(member: Member, shown: str, depth: int) -> Iterator[Member | Unusable]:
    """Yields the member, or those of the archive that it is."""
    if member.size_bytes < HEAD_BYTES or member.name.lower().endswith(_NEVER_ARCHIVES):
        yield member
        return
    kind = kind_of_content(beginning_of(member.source, HEAD_BYTES))
    if kind in _NOT_INSIDE:
        yield Unusable(
            f"{shown}: a table, or an archive of this kind, inside of an archive is not read; unpack that", False
        )
        return
    if kind not in ("tar", "zip", "gzip"):
        yield member
        return
    source, prefix = member.source, f"{member.name}!"
    if isinstance(source, ZipMember) and source.method == STORED:
        source = place_in_zip(source)
    if isinstance(source, FileSlice):
        inner = _Region(source.file, source.offset, source.size_bytes, prefix)
    elif isinstance(source, GzipSlice) and kind == "tar":
        inner = _Region(source.file, source.start, source.length, prefix, (source.offset, source.size_bytes))
    else:
        yield Unusable(f"{shown}: an archive inside of a compressed one is not read; unpack that", False)
        return
    yield from _listed(inner, shown, kind, depth + 1, None)
