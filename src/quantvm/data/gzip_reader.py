"""Reads a gzip file at any place without unpacking it: by states of the decompressor that are kept now and then."""

from __future__ import annotations

import os
import threading
import zlib
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from quantvm.errors import DataError
from quantvm.storage.regular_files import open_regular

_CHUNK_BYTES = 1 << 16
_STEP_BYTES = 1 << 24
_MOST_STATES = 512  # about 40 kB each
_MOST_RATIO, _ALWAYS_ALLOWED_BYTES = 100, 1 << 30  # images hardly shrink; what grows like this is a bomb
_GZIP = 31


class GzipReader:
    """The uncompressed content of a gzip file.

    Reading forward costs one pass. Going back, or far ahead where reading has been before, starts at the last state
    that was kept before that place, every 16 MiB at first; when there are 512 of them, every second is dropped.
    """

    def __init__(self, file: Path, offset: int, size_bytes: int) -> None:
        self._name, self._start, self._end = file, offset, offset + size_bytes
        self._file: IO[bytes] = open_regular(file, DataError)
        self._states: list[tuple[int, int, Any]] = []
        self._step = _STEP_BYTES
        self._rest = b""  # content at self._done, decompressed but not taken
        self._done, self._at, self._decompressor = 0, self._start, zlib.decompressobj(_GZIP)
        self._lock = threading.Lock()
        self._keep_state()

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Returns the bytes at a place of the uncompressed content, fewer at its end.

        Raises:
            DataError: The file is damaged or cut off before that place, or grows beyond all measure.
        """
        with self._lock:
            self._go_to(offset)
            parts, missing = [], size_bytes
            while missing and (self._rest or self._decompress()):
                part = self._rest[:missing]
                self._rest = self._rest[len(part) :]
                self._done += len(part)
                missing -= len(part)
                parts.append(part)
            return b"".join(parts)

    def _go_to(self, offset: int) -> None:
        place = bisect_right(self._states, offset, key=lambda state: state[0]) - 1
        done, at, state = self._states[place]
        if offset < self._done or done > self._done:
            self._done, self._at, self._decompressor, self._rest = done, at, state.copy(), b""
        while self._done < offset:
            if not self._rest and not self._decompress():
                return
            skipped = min(len(self._rest), offset - self._done)
            self._rest = self._rest[skipped:]
            self._done += skipped

    def _decompress(self) -> bool:
        """Fills `_rest`, which is empty, with the next content; returns whether there is any."""
        while not self._rest:
            if self._decompressor.eof:
                if self._at >= self._end:
                    return False
                self._decompressor = zlib.decompressobj(_GZIP)  # gzip files may follow each other
            # a state is kept only where all input that was given has been taken
            if self._done >= self._states[-1][0] + self._step:
                self._keep_state()
            self._file.seek(self._at)
            given = self._file.read(min(_CHUNK_BYTES, self._end - self._at))
            if not given:
                raise DataError(f"{self._name}: the gzip file ends too early, after {self._at - self._start:,} bytes")
            try:
                self._rest = self._decompressor.decompress(given)
            except zlib.error as error:
                if self._at > self._start and given.strip(b"\0") == b"":
                    return False  # padding behind the last gzip file
                raise DataError(f"{self._name}: damaged gzip data at byte {self._at:,} ({error})") from error
            self._at += len(given) - len(self._decompressor.unused_data)
            read = self._at - self._start
            if self._done + len(self._rest) > _MOST_RATIO * read + _ALWAYS_ALLOWED_BYTES:
                raise DataError(
                    f"{self._name}: {read:,} bytes unpack to more than {self._done:,}; images do not shrink so much, "
                    "so this file is not read further"
                )
        return True

    def _keep_state(self) -> None:
        self._states.append((self._done, self._at, self._decompressor.copy()))
        if len(self._states) > _MOST_STATES:
            del self._states[1::2]
            self._step *= 2


def gzip_reader(file: Path, offset: int, size_bytes: int) -> GzipReader:
    """Returns the reader of a gzip file that is a part of a file, with the states that were kept before.

    A forked process gets one of its own: places in open files and locks must not be shared.
    """
    return _reader_of_process(os.getpid(), file, offset, size_bytes)


@lru_cache(maxsize=4)
def _reader_of_process(process: int, file: Path, offset: int, size_bytes: int) -> GzipReader:
    return GzipReader(file, offset, size_bytes)
