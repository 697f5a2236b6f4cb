"""Lists the images of TFRecord files, with the places of their bytes. Needs no TensorFlow.

A record is its length (8 bytes), a checksum (4), a `tf.train.Example` in protocol buffers, and a checksum (4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from quantvm.data.contents import masked_crc32c
from quantvm.data.sources import MOST_IMAGE_BYTES, FileSlice
from quantvm.data.tables import Row
from quantvm.errors import DataError
from quantvm.storage.regular_files import open_regular

_IMAGES = ("image", "image/encoded")
_ZERO_BASED, _ONE_BASED = "label", "image/class/label"
_SYNSET = "image/class/synset"
_NAMES = ("file_name", "image/filename")

_Features = dict[str, tuple[int, bytes] | int]  # bytes with their place, or an integer


def tfrecord_rows(file: Path) -> Iterator[Row]:
    """Yields the images of a TFRecord file of TFDS (labels from 0) or of TF-slim (labels from 1, and the wnid).

    Raises:
        DataError: It is damaged, was cut off, or its records hold no images.
    """
    with open_regular(file, DataError) as opened:
        number = 0
        while head := opened.read(12):
            place = opened.tell()
            size = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            if len(head) < 12 or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]) or size > MOST_IMAGE_BYTES:
                raise DataError(f"{file}: damaged or cut off at byte {place:,}: no record begins there")
            content = opened.read(size)
            if len(content) < size or len(opened.read(4)) < 4:
                raise DataError(f"{file}: cut off in the middle of record {number:,}")
            try:
                yield _row(file, number, place, _features(content))
            except (IndexError, UnicodeDecodeError, struct.error) as error:
                raise DataError(f"{file}: record {number:,} is no tf.train.Example") from error
            number += 1


def _row(file: Path, number: int, place: int, features: _Features) -> Row:
    image = next((features[name] for name in _IMAGES if isinstance(features.get(name), tuple)), None)
    if not isinstance(image, tuple):
        raise DataError(f"{file}: record {number:,} has no image, only {', '.join(sorted(features)) or 'nothing'}")
    label: int | str | None = None
    synset, one_based, zero_based = (features.get(name) for name in (_SYNSET, _ONE_BASED, _ZERO_BASED))
    if isinstance(synset, tuple) and synset[1]:
        label = synset[1].decode()
    elif isinstance(one_based, int):
        label = one_based - 1
    elif isinstance(zero_based, int) and zero_based >= 0:
        label = zero_based
    original = next((value[1].decode() for name in _NAMES if isinstance(value := features.get(name), tuple)), None)
    return Row(FileSlice(file, place + image[0], len(image[1]), str(number)), label, original)


def _features(example: bytes) -> _Features:
    """Returns the first value of every feature of a `tf.train.Example`."""
    found: _Features = {}
    for _, start, features in _fields(example, 0, len(example)):
        for _, entry_start, entry_end in _fields(example, start, features):
            fields = list(_fields(example, entry_start, entry_end))
            key = next((example[a:b].decode() for number, a, b in fields if number == 1), "")
            value = next(((a, b) for number, a, b in fields if number == 2), (0, 0))
            for kind, a, b in _fields(example, *value):
                for _, c, d in _fields(example, a, b):
                    # an integer list is packed, or one field for each value
                    found.setdefault(key, (c, example[c:d]) if kind == 1 else _signed(_varint(example, c)[0]))
    return found


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the number of each field of a message, and where its value begins and ends."""
    while start < end:
        key, start = _varint(content, start)
        kind = key & 7
        if kind == 0:
            stop = _varint(content, start)[1]
        elif kind == 2:
            size, start = _varint(content, start)
            stop = start + size
        else:
            stop = start + {1: 8, 5: 4}.get(kind, len(content) + 1)
        if stop > end:
            raise IndexError("a field is longer than its message")
        yield key >> 3, start, stop
        start = stop


def _varint(content: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[start]
        value |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128 or shift > 63:
            return value, start


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
