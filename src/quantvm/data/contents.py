"""What a file is: by its first bytes, since names prove little."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path, PurePosixPath
from typing import Literal

from quantvm.errors import DataError
from quantvm.storage.regular_files import open_regular

HEAD_BYTES = 512

Kind = Literal[
    "image", "tar", "zip", "gzip", "other archive", "parquet", "arrow", "tfrecord", "pointer", "text", "other"
]

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
_OTHER_ARCHIVES = (b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd")
_ARROW_FILE, _ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
_LFS = b"version https://git-lfs"


def is_image_name(name: str) -> bool:
    """Returns whether a file is named like an image."""
    return PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES


def is_clutter(name: str) -> bool:
    """Returns whether a file or folder is hidden, or what systems leave everywhere."""
    return name.startswith(".") or name.lower() in _CLUTTER


def is_image_file(file: Path) -> bool:
    """Returns whether a file is named like an image, or begins like one."""
    if is_image_name(file.name):
        return True
    try:
        with open_regular(file, DataError) as opened:
            return kind_of_content(opened.read(HEAD_BYTES)) == "image"
    except DataError:
        return False


def kind_of_content(head: bytes) -> Kind:
    """Returns what a file is.

    Args:
        head: Its first 512 bytes, or all of them if it is shorter.
    """
    if (head.startswith(_IMAGES) and not _is_text(head)) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if _is_tar_header(head):
        return "tar"
    for kind, begins in _BEGINNINGS:
        if head.startswith(begins):
            return kind
    if head.startswith(_ARROW_STREAM) and len(head) > 8:
        return "arrow"
    if _is_tfrecord(head):
        return "tfrecord"
    return "text" if _is_text(head) else "other"


_BEGINNINGS: tuple[tuple[Kind, tuple[bytes, ...]], ...] = (
    ("zip", (b"PK\3\4", b"PK\5\6")),
    ("gzip", (b"\x1f\x8b\x08",)),
    ("other archive", _OTHER_ARCHIVES),
    ("parquet", (b"PAR1",)),
    ("arrow", (_ARROW_FILE,)),
    ("pointer", (_LFS,)),
)


def _is_tar_header(head: bytes) -> bool:
    if len(head) < HEAD_BYTES or not head[:1].strip(b"\0"):
        return False
    try:
        return bool(tarfile.TarInfo.frombuf(head[:HEAD_BYTES], "utf-8", "surrogateescape").name)  # checks the checksum
    except tarfile.HeaderError:
        return False


def _is_tfrecord(head: bytes) -> bool:
    """Whether a record begins here: its length, and the checksum of that."""
    if len(head) < 12:
        return False
    (checksum,) = struct.unpack("<I", head[8:12])
    return masked_crc32c(head[:8]) == checksum


def masked_crc32c(content: bytes) -> int:
    """Returns the checksum of TFRecord files: CRC-32C, rotated and shifted."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and len(head) == HEAD_BYTES  # a letter that the cut divides
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
