"""Where an image's bytes are: a file, or a place inside of an archive or a table.

A `Source` is a small value that can be hashed, compared, pickled and opened in any process, in any order. `str` of it
is what messages show. Nothing is unpacked to disk, and no archive is read whole.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from quantvm.data.gzip_reader import gzip_reader
from quantvm.errors import DataError
from quantvm.storage.regular_files import open_regular

MOST_IMAGE_BYTES = 1 << 30
STORED, DEFLATED = 0, 8
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_KEPT_ROW_GROUPS = 4
_KEPT_BYTES = 1 << 28


class _Inside:
    """A source that is not a file of its own."""

    __slots__ = ()
    file: Path
    name: str

    def __str__(self) -> str:
        return f"{self.file}!{self.name}"


@dataclass(frozen=True, slots=True)
class FileSlice(_Inside):
    """Consecutive bytes of a file: a member of an uncompressed archive, or a value of an uncompressed table.

    Attributes:
        file: The archive or table.
        offset: Of the first byte.
        size_bytes: How many.
        name: The member, for messages; `!` stands between an archive and its member, also in nested ones.
    """

    file: Path
    offset: int
    size_bytes: int
    name: str


@dataclass(frozen=True, slots=True)
class ZipMember(_Inside):
    """A member of a zip file, compressed or not.

    Attributes:
        file: The zip file, or the file that holds it.
        offset: Of the member's local header.
        compressed_bytes, size_bytes: How many bytes it has in the zip file, and unpacked.
        method: How it is compressed: STORED or DEFLATED.
        crc: The checksum of the unpacked bytes.
        name: As in FileSlice.
    """

    file: Path
    offset: int
    compressed_bytes: int
    size_bytes: int
    method: int
    crc: int
    name: str


@dataclass(frozen=True, slots=True)
class GzipSlice(_Inside):
    """Consecutive bytes of the content of a gzip file, such as a member of a .tar.gz.

    To reach them, everything before is decompressed once in each process; see `GzipReader`.

    Attributes:
        file: The file that holds the gzip file.
        start, length: Where in that file the gzip file is.
        offset: Of the first byte in the uncompressed content.
        size_bytes, name: As in FileSlice.
    """

    file: Path
    start: int
    length: int
    offset: int
    size_bytes: int
    name: str


@dataclass(frozen=True, slots=True)
class ParquetRow(_Inside):
    """A value of a Parquet file.

    Attributes:
        file: The Parquet file.
        row_group: Which of its row groups.
        row: Which row of that group.
        column: The path of the column in the schema, such as `image.bytes`.
        name: As in FileSlice; the number of the row in the file.
    """

    file: Path
    row_group: int
    row: int
    column: str
    name: str


Source = Path | FileSlice | ZipMember | GzipSlice | ParquetRow
"""Where an image's bytes are; a file is simply its path."""


def open_source(source: Source) -> IO[bytes]:
    """Returns the bytes of an image, opened for reading.

    Raises:
        DataError: The file is missing, empty, or no regular file; or an archive was cut off, or has changed.
    """
    if isinstance(source, Path):
        file = open_regular(source, DataError)
        if os.fstat(file.fileno()).st_size:
            return file
        file.close()
        raise DataError("empty file, 0 bytes")
    content = read_inside(source)
    if not content:
        raise DataError("empty, 0 bytes")
    return io.BytesIO(content)


def read_inside(source: FileSlice | ZipMember | GzipSlice | ParquetRow) -> bytes:
    """Returns the bytes of a source that is not a file of its own.

    Raises:
        DataError: as `open_source`.
    """
    if isinstance(source, ParquetRow):
        return _ROWS.read(source)
    if source.size_bytes > MOST_IMAGE_BYTES:
        raise DataError(f"{source.size_bytes:,} bytes, expected at most {MOST_IMAGE_BYTES:,} for an image")
    if isinstance(source, ZipMember):
        return _read_zip_member(source)
    if isinstance(source, GzipSlice):
        reader = gzip_reader(source.file, source.start, source.length)
        content = reader.read_at(source.offset, source.size_bytes)
    else:
        with open_regular(source.file, DataError) as file:
            file.seek(source.offset)
            content = file.read(source.size_bytes)
    if len(content) != source.size_bytes:
        raise DataError(f"the archive ends after {len(content):,} of its {source.size_bytes:,} bytes")
    return content


def real_source(source: Source) -> Source:
    """Returns a source that is equal for the same bytes of the same file, whatever links lead there."""
    return source.resolve() if isinstance(source, Path) else source


def order_of_storage(source: Source) -> tuple[str, int, int]:
    """Returns a key by which sources inside of one file are sorted as they lie there."""
    if isinstance(source, Path):
        return "", 0, 0
    if isinstance(source, ParquetRow):
        return str(source.file), source.row_group, source.row
    return str(source.file), source.start if isinstance(source, GzipSlice) else 0, source.offset


def place_in_zip(source: ZipMember) -> FileSlice:
    """Returns where a member's bytes are in the zip file, compressed or not.

    Raises:
        DataError: No member begins there.
    """
    with open_regular(source.file, DataError) as file:
        file.seek(source.offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
        raise DataError("the zip file was cut off or has changed: no member begins where its table says")
    *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    offset = source.offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    return FileSlice(source.file, offset, source.compressed_bytes, source.name)


def beginning_of(source: Source, size_bytes: int) -> bytes:
    """Returns the first bytes of a source, fewer if it has fewer, without reading or unpacking all of it.

    Raises:
        DataError: as `open_source`.
    """
    if isinstance(source, Path):
        with open_regular(source, DataError) as file:
            return file.read(size_bytes)
    if isinstance(source, ZipMember):
        place = place_in_zip(source)
        content = read_inside(replace(place, size_bytes=min(place.size_bytes, 2 * size_bytes + 64)))
        return _inflated(content, size_bytes) if source.method == DEFLATED else content[:size_bytes]
    if isinstance(source, ParquetRow):
        return read_inside(source)[:size_bytes]
    return read_inside(replace(source, size_bytes=min(source.size_bytes, size_bytes)))


def _inflated(content: bytes, most_bytes: int) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(content, most_bytes)
    except zlib.error as error:
        raise DataError(f"damaged in the zip file ({error})") from error


def _read_zip_member(source: ZipMember) -> bytes:
    content = read_inside(place_in_zip(source))
    if source.method == DEFLATED:
        content = _inflated(content, source.size_bytes + 1)
    if len(content) != source.size_bytes or zlib.crc32(content) != source.crc:
        raise DataError("damaged in the zip file: its checksum does not fit")
    return content


class _RowGroups:
    """The row groups that were read last, since one can only be decoded as a whole."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def read(self, source: ParquetRow) -> bytes:
        """Returns a value.

        Raises:
            DataError: The file cannot be read, or the value is missing.
        """
        if self._process != os.getpid():  # a forked process: the lock may be held by a thread that is not there
            self.__init__()  # type: ignore[misc]
        with self._lock:
            values = self._values(source)
        value = values[source.row].as_py() if source.row < len(values) else None
        if not isinstance(value, bytes):
            raise DataError(f"row {source.name} holds no bytes in the column {source.column}")
        return value

    def _values(self, source: ParquetRow) -> Any:
        key = source.file, source.row_group, source.column
        if key not in self._kept:
            self._kept[key] = _read_row_group(source)
            total = sum(values.nbytes for values in self._kept.values())
            while len(self._kept) > 1 and (len(self._kept) > _KEPT_ROW_GROUPS or total > _KEPT_BYTES):
                total -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]


def _read_row_group(source: ParquetRow) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(source.file, DataError) as file, pq.ParquetFile(file) as parquet:
            table = parquet.read_row_group(source.row_group, columns=[source.column], use_threads=False)
            table.validate(full=True)
            values = table.column(0).combine_chunks()
            for part in source.column.split(".")[1:]:
                values = values.field(part)
            return values
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DataError(f"the Parquet file cannot be read: {error}") from error


_ROWS = _RowGroups()
