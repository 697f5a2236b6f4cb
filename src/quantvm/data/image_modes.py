"""Converts images of every Pillow mode to 8-bit RGB; refuses those with an unknown range of values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantvm.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "JPEG2000", "PPM"})  # Pillow scales their gray values to 16 bits
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_TIFF_WHITE_IS_ZERO, _TIFF_UNSIGNED = 0, 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an opened image in 8-bit RGB.

    Computes: Pillow's `convert("RGB")`, as torchvision's default loader does: gray, palette, CMYK, YCbCr and LAB images
    are converted, and alpha is dropped. Only gray images of more than 8 bits differ, because `convert` clips them to
    255, so nearly everything becomes white. Of 9 to 16 bits the upper 8 are kept, as Pillow and libpng do with each
    channel of 16-bit RGB.

    Raises:
        DataError: 32-bit, signed or floating-point gray values; the file does not say which value is white.
    """
    from PIL import Image

    if image.mode in _DEEP_MODES:
        return Image.fromarray(_upper_bits(image)).convert("RGB")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA").convert("RGB")  # the same colours, without Pillow's warning about the alpha
    if image.mode in ("La", "RGBa"):  # multiplied by alpha
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]).convert("RGB")
    return image.convert("RGB")


def _upper_bits(image: Image.Image) -> np.ndarray:
    """Returns (H, W) uint8: the upper 8 bits of the gray values, whose width the file states."""
    n_bits = _bits_of_gray(image)
    if n_bits is None:
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise DataError(
            f"gray image of {kind} (mode {image.mode} of a {image.format} file), which does not say which value is "
            "white; scale it to 8 bits, with Pillow and NumPy: "
            "Image.fromarray((255.0 * (x - x.min()) / (x.max() - x.min())).astype('uint8')), or by the range that you "
            "know"
        )
    x_u8 = (np.asarray(image).astype(np.int64) >> (n_bits - 8)).astype(np.uint8)
    return 255 - x_u8 if _is_white_zero(image) else x_u8


def _bits_of_gray(image: Image.Image) -> int | None:
    """Returns the number of bits of unsigned gray values with more than 8; None if it is not certain."""
    if image.mode == "F":
        return None
    if image.format in _SIXTEEN_BIT_FORMATS:
        return 16
    if image.format != "TIFF" or image.mode == "I":
        return None
    tags = image.tag_v2  # type: ignore[attr-defined]
    (n_bits,) = tags.get(_TIFF_BITS, (1,))
    return n_bits if 8 < n_bits <= 16 and tags.get(_TIFF_SAMPLE_FORMAT, (1,)) == (_TIFF_UNSIGNED,) else None


def _is_white_zero(image: Image.Image) -> bool:
    """Returns whether 0 is white; Pillow corrects that only in 8-bit images."""
    return image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO  # type: ignore[attr-defined]
