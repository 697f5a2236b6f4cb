"""Turns an image file into a network's input tensor, with the same bits as torchvision's transforms.

PIL and NumPy only, so that a deployed artifact can be fed without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, get_args

import numpy as np

from quantvm.choices import Interpolation
from quantvm.data.image_modes import to_rgb
from quantvm.data.sources import Source, beginning_of, open_source
from quantvm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

_EXIF_ORIENTATION, _UPRIGHT = 0x0112, 1
_LFS_POINTER = b"version https://git-lfs"
_CHUNK_BYTES = 1 << 20


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, content: bytes, /) -> None:
        """Adds bytes."""


@dataclass(frozen=True)
class Geometry:
    """How an image is scaled and cut, before its values are normalized; the attributes are those of Preprocessing."""

    resize: int
    crop: int
    interpolation: Interpolation

    @property
    def n_bytes(self) -> int:
        """Bytes of an image's pixels."""
        return self.crop * self.crop * 3


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network.

    Attributes:
        resize: Length of the shorter side after scaling, in pixels.
        crop: Side of the square that is cut from the centre, in pixels.
        interpolation: How pixels are interpolated; always antialiased.
        mean: Subtracted from R, G, B after these are scaled to 0..1.
        std: Divides R, G, B after that.
    """

    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        wrong = []
        if self.resize < 1 or self.crop < 1:
            wrong.append(f"resize {self.resize} and crop {self.crop}, expected at least 1 pixel")
        if self.interpolation not in get_args(Interpolation):
            wrong.append(f"interpolation {self.interpolation!r}, expected {' or '.join(get_args(Interpolation))}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            wrong.append(f"mean {self.mean} and std {self.std}, expected three numbers each and no std of zero")
        if wrong:
            raise ConfigError(f"preprocessing: got {'; got '.join(wrong)}")

    @property
    def geometry(self) -> Geometry:
        """The part of it that scales and cuts."""
        return Geometry(self.resize, self.crop, self.interpolation)


@dataclass(frozen=True)
class ImageOptions:
    """How images become the input of a user's own model, of which only the input size is known.

    Attributes:
        resize: as in Preprocessing; None for 256/224 of the model's input, as is usual for ImageNet.
        crop: as in Preprocessing; None for the model's input.
        interpolation, mean, std: as in Preprocessing.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def preprocessing(self, size: int) -> Preprocessing:
        """Returns the preprocessing for a model that takes `size` x `size` pixels."""
        resize = self.resize or max(size, round(size * 256 / 224))
        return Preprocessing(resize, size, self.interpolation, self.mean, self.std)  # type: ignore[arg-type]


def load_rgb(source: Source, digest: Digest | None = None) -> Image.Image:
    """Returns the fully decoded image in RGB, as torchvision's default loader does, except 16-bit gray: see `to_rgb`.

    Colour profiles and EXIF orientations are not applied; an animation gives its first frame.

    Args:
        source: The image.
        digest: A hash of `hashlib`, which is updated with the bytes of the image first.

    Raises:
        DataError: The image is missing, empty, truncated, not an image that PIL can read, or gray with an unknown
            range; the message holds the reason only.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open_source(source) as file:
            if digest is not None:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                file.seek(0)
            with Image.open(file, formats=_formats()) as image:
                return to_rgb(image)
    except DataError as error:
        raise DataError(str(error).removesuffix(f": {source}").removeprefix(f"{source} ")) from error
    except UnidentifiedImageError:
        if beginning_of(source, len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataError("a pointer of Git LFS and not the image; run `git lfs pull`") from None
        raise DataError("not an image of a known format") from None
    except MemoryError:
        raise DataError("too large for the memory") from None
    except Exception as error:  # PIL's decoders raise many kinds on damaged data, struct.error among them
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(reason or type(error).__name__) from error


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image from `load_rgb`: 1 if it has none, or its EXIF cannot be read."""
    from PIL import Image

    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        return int(exif.get(_EXIF_ORIENTATION, _UPRIGHT))
    except Exception:  # noqa: BLE001  # damaged EXIF raises many kinds; no pixel depends on it
        return _UPRIGHT


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Returns the formats that Pillow decodes itself: for EPS it would run Ghostscript on the file."""
    from PIL import Image

    Image.init()
    return sorted(set(Image.ID) - {"EPS"})


def preprocess(source: Source, preprocessing: Preprocessing, out_f32: np.ndarray | None = None) -> np.ndarray:
    """Returns the network's input for one image, with the same bits as torchvision's transforms.

    Computes: ``Normalize(ToTensor(CenterCrop(Resize(image))))``, that is ``(x_u8 / 255 - mean) / std`` per channel,
    each step rounded to float32.

    Exactness: bit-exact to ``torchvision.transforms`` on PIL images; for 16-bit gray files, on the result of
    `to_rgb`.

    Args:
        source: An image: a file, or a place in an archive or table.
        preprocessing: Sizes, interpolation, mean and std.
        out_f32: The result is written there; as what is returned.

    Returns:
        (3, crop, crop), CHW, C-contiguous, float32.

    Raises:
        DataError: The file cannot be read as an image.
    """
    try:
        image = load_rgb(source)
    except DataError as error:
        raise DataError(f"{source}: {error}; remove or replace the file") from error
    return normalized(pixels_of(image, preprocessing.geometry), preprocessing, out_f32)


def pixels_of(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Returns the scaled and cut image: ``CenterCrop(Resize(image))`` of torchvision.

    Returns:
        (crop, crop, 3), uint8, C-contiguous.
    """
    scaled_u8 = np.asarray(_resize_shorter_side(image, geometry))
    return np.ascontiguousarray(crop_center(scaled_u8, geometry.crop))


def normalized(x_u8: np.ndarray, preprocessing: Preprocessing, out_f32: np.ndarray | None = None) -> np.ndarray:
    """Returns the network's input for the pixels of an image: ``(x_u8 / 255 - mean) / std``, as `preprocess`.

    Args:
        x_u8: (crop, crop, 3), uint8.
        preprocessing: Mean and std.
        out_f32: The result is written there; (3, crop, crop), C-contiguous, float32.
    """
    if out_f32 is None:
        out_f32 = np.empty((3, *x_u8.shape[:2]), np.float32)
    tables = _normalized_values(preprocessing.mean, preprocessing.std)
    for channel in range(3):  # (H, W, C) -> (C, H, W)
        np.take(tables[channel], x_u8[:, :, channel], out=out_f32[channel], mode="clip")  # without a buffer
    return out_f32


def _resize_shorter_side(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Scales the shorter side to the requested length; the longer one is truncated to an integer, as in torchvision."""
    from PIL import Image

    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_short, new_long = geometry.resize, int(geometry.resize * long / short)
    new_size = (new_short, new_long) if width <= height else (new_long, new_short)
    if new_size == image.size:
        return image
    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    return image.resize(new_size, resampling[geometry.interpolation])


def crop_center(x_u8: np.ndarray, crop: int) -> np.ndarray:
    """Returns the central square of side `crop`; a smaller image is padded with zeros first.

    Args:
        x_u8: (H, W, C), uint8.
        crop: Side in pixels.
    """
    height, width = x_u8.shape[:2]
    missing_h, missing_w = max(crop - height, 0), max(crop - width, 0)
    if missing_h or missing_w:
        pads = ((missing_h // 2, (missing_h + 1) // 2), (missing_w // 2, (missing_w + 1) // 2), (0, 0))
        x_u8 = np.pad(x_u8, pads)
        height, width = x_u8.shape[:2]
    # Python's round: a half goes to the even neighbour, so 33 - 32 starts at 0 but 35 - 32 at 2.
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    return x_u8[top : top + crop, left : left + crop]


@lru_cache(maxsize=16)
def _normalized_values(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Returns (3, 256) float32: the normalized value for each of the 256 values of a channel."""
    unit_f32 = np.arange(256, dtype=np.float32) / np.float32(255)
    mean_f32 = np.asarray(mean, dtype=np.float32)[:, None]
    std_f32 = np.asarray(std, dtype=np.float32)[:, None]
    return (unit_f32 - mean_f32) / std_f32
