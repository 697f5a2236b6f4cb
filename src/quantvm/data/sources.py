"""Where an image's bytes are: a file, or a place inside of an archive or a table.

A `Source` is a small value that can be hashed, compared, pickled and opened in any process, in any order. `str` of it
is what messages show.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quantvm.errors import DataError
from quantvm.storage.regular_files import open_regular


@dataclass(frozen=True)
class FileSlice:
    """Consecutive bytes of a file: an uncompressed member of an archive.

    Attributes:
        file: The archive.
        offset: Of the first byte.
        size_bytes: How many.
        name: The member, for messages; `!` stands between an archive and its member, also in nested ones.
    """

    file: Path
    offset: int
    size_bytes: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}!{self.name}"


Source = Path | FileSlice
"""Where an image's bytes are; a file is simply its path."""


def open_source(source: Source) -> IO[bytes]:
    """Returns the bytes of an image, opened for reading.

    Raises:
        DataError: The file is missing, empty, or no regular file; or an archive has changed or was cut off.
    """
    if isinstance(source, Path):
        file = open_regular(source, DataError)
        if os.fstat(file.fileno()).st_size:
            return file
        file.close()
        raise DataError("empty file, 0 bytes")
    return io.BytesIO(_read_slice(source))


def real_source(source: Source) -> Source:
    """Returns a source that is equal for the same bytes of the same file, whatever links lead there."""
    return source.resolve() if isinstance(source, Path) else source


def _read_slice(source: FileSlice) -> bytes:
    if not source.size_bytes:
        raise DataError("empty member, 0 bytes")
    with open_regular(source.file, DataError) as file:
        file.seek(source.offset)
        content = file.read(source.size_bytes)
    if len(content) != source.size_bytes:
        raise DataError(f"the archive ends after {len(content):,} of its {source.size_bytes:,} bytes")
    return content
