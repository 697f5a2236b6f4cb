import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from quantvm.data.preprocess import Preprocessing, crop_center, load_rgb, preprocess
from quantvm.errors import ConfigError, DataError
from quantvm.torch_compat import import_torchvision

from .conftest import write_image

LITE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}

# Width, height: landscape, portrait, square, odd differences (whose half is rounded to even), already scaled, tiny, and
# sides for which the scaled longer side is truncated.
SIZES = [(500, 375), (375, 500), (64, 64), (257, 256), (256, 259), (300, 256), (7, 5), (1, 9), (333, 331), (640, 427)]
PREPROCESSINGS = [
    Preprocessing(256, 224),
    Preprocessing(342, 299),
    Preprocessing(256, 224, "bicubic", **LITE),
    Preprocessing(33, 32),
    Preprocessing(35, 32),
    Preprocessing(32, 32),
    Preprocessing(30, 37),  # the crop is larger than the image: zeros around it
    Preprocessing(31, 64, "bicubic"),
]


def torchvision_transform(preprocessing):
    import_torchvision()
    from torchvision import transforms

    mode = transforms.InterpolationMode(preprocessing.interpolation)
    return transforms.Compose(
        [
            transforms.Resize(preprocessing.resize, interpolation=mode, antialias=True),
            transforms.CenterCrop(preprocessing.crop),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )


def expected_f32(path, preprocessing):
    import_torchvision()
    from torchvision.datasets.folder import default_loader

    return torchvision_transform(preprocessing)(default_loader(str(path))).numpy()


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS, ids=lambda p: f"{p.resize}-{p.crop}-{p.interpolation}")
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_same_bits_as_torchvision(tmp_path, size, preprocessing):
    path = write_image(tmp_path / "x.png", size)
    actual = preprocess(path, preprocessing)
    assert actual.shape == (3, preprocessing.crop, preprocessing.crop)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected_f32(path, preprocessing))


@pytest.mark.parametrize("mean_std", [{}, LITE, {"mean": (0.0,) * 3, "std": (1.0,) * 3}])
def test_every_value_of_every_channel(tmp_path, mean_std):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.stack([values, values.T, values[::-1]], axis=-1)).save(tmp_path / "x.png")
    preprocessing = Preprocessing(16, 16, **mean_std)
    np.testing.assert_array_equal(
        preprocess(tmp_path / "x.png", preprocessing), expected_f32(tmp_path / "x.png", preprocessing)
    )


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("gray.jpg", "L"),
        ("cmyk.jpg", "CMYK"),
        ("color.jpg", "RGB"),
        ("palette.png", "P"),
        ("palette.gif", "P"),
        ("alpha.png", "RGBA"),
        ("gray_alpha.png", "LA"),
        ("bits.png", "1"),
        ("palette_alpha.png", "P"),
        ("x_lab.tiff", "LAB"),
        ("x_ycbcr.tiff", "YCbCr"),
        ("x_palette_alpha.tiff", "PA"),
        ("x.webp", "RGB"),
        ("x.tiff", "CMYK"),
        ("x.bmp", "RGB"),
    ],
)
def test_every_mode_becomes_rgb_as_in_torchvision(tmp_path, name, mode):
    path = tmp_path / name
    write_image(path, mode=mode, **({"transparency": bytes(range(256))} if name == "palette_alpha.png" else {}))
    with Image.open(path) as image:
        assert image.mode == mode
    preprocessing = Preprocessing(40, 32)
    np.testing.assert_array_equal(preprocess(path, preprocessing), expected_f32(path, preprocessing))


GRAY_U16 = (np.arange(120, dtype=np.uint16) * 550).reshape(10, 12)
HIGH_BYTE = (GRAY_U16 >> 8).astype(np.uint8)


def gray_of(path):
    x_u8 = np.asarray(load_rgb(path))
    assert (x_u8 == x_u8[:, :, :1]).all()
    return x_u8[:, :, 0]


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.jp2", "x.pgm"])
def test_16_bit_gray_keeps_its_upper_8_bits(tmp_path, name):
    Image.fromarray(GRAY_U16).save(tmp_path / name)
    np.testing.assert_array_equal(gray_of(tmp_path / name), HIGH_BYTE)


def test_16_bit_gray_is_what_the_same_image_in_16_bit_rgb_is(tmp_path):
    height, width = GRAY_U16.shape
    rgb = np.repeat(GRAY_U16.astype(">u2")[:, :, None], 3, axis=2).tobytes()
    rows = [b"\0" + rgb[start : start + 6 * width] for start in range(0, len(rgb), 6 * width)]

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    (tmp_path / "rgb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(gray_of(tmp_path / "rgb.png"), HIGH_BYTE)


def write_tiff(path, x, *, bits=16, photometric=1, sample_format=1, big_endian=False):
    """Writes an uncompressed gray TIFF by hand, for Pillow itself writes few of the forms that it reads."""
    end = ">" if big_endian else "<"
    height, width = x.shape
    if bits == 12:
        pairs = x.reshape(-1, 2).astype(int)
        bytes_of = [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
        pixels = np.stack(bytes_of, axis=1).astype(np.uint8).tobytes()
    else:
        pixels = x.astype(x.dtype.newbyteorder(end)).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(pixels), 339: sample_format}
    entries = b"".join(struct.pack(f"{end}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = (b"MM" if big_endian else b"II") + struct.pack(f"{end}HI", 42, 8 + len(pixels))
    path.write_bytes(head + pixels + struct.pack(f"{end}H", len(tags)) + entries + b"\0\0\0\0")
    return path


def test_the_forms_of_16_bit_tiff(tmp_path):
    path = write_tiff(tmp_path / "x.tiff", GRAY_U16, big_endian=True)
    np.testing.assert_array_equal(gray_of(path), HIGH_BYTE)
    path = write_tiff(tmp_path / "x.tiff", GRAY_U16, photometric=0)  # 0 is white
    np.testing.assert_array_equal(gray_of(path), 255 - HIGH_BYTE)
    path = write_tiff(tmp_path / "x.tiff", GRAY_U16 >> 4, bits=12)
    np.testing.assert_array_equal(gray_of(path), HIGH_BYTE)


def test_a_pgm_of_another_maximum_is_scaled(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 3 1 1000\n" + np.array([0, 250, 1000], ">u2").tobytes())
    np.testing.assert_array_equal(gray_of(tmp_path / "x.pgm"), [[0, 64, 255]])


def test_gray_multiplied_by_its_alpha_is_divided_again(tmp_path):
    path = tmp_path / "x.tiff"
    Image.fromarray(np.array([[[60, 120], [200, 255]]], np.uint8), "LA").save(path)
    not_multiplied, multiplied = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))  # tag ExtraSamples
    assert not_multiplied in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(not_multiplied, multiplied))
    with Image.open(path) as opened:
        assert opened.mode == "La"
    np.testing.assert_array_equal(gray_of(path), [[127, 200]])


@pytest.mark.parametrize(
    ("name", "x", "mode", "said"),
    [
        ("x.tiff", np.arange(120, dtype=np.int32).reshape(10, 12) * 500, "I", "32-bit integers"),
        ("x.tiff", np.linspace(0, 1, 120, dtype=np.float32).reshape(10, 12), "F", "floats"),
        ("x.pfm", np.linspace(0, 1, 120, dtype=np.float32).reshape(10, 12), "F", "floats"),
    ],
)
def test_gray_of_an_unknown_range_is_refused(tmp_path, name, x, mode, said):
    path = tmp_path / name
    Image.fromarray(x).save(path)
    with pytest.raises(DataError, match=rf"x\.\w+: gray image of .*{said} \(mode {mode} of a .* file\).*scale it"):
        preprocess(path, Preprocessing(8, 8))
    # What the message says to do makes a file that can be read.
    x = np.asarray(Image.open(path))
    Image.fromarray((255.0 * (x - x.min()) / (x.max() - x.min())).astype("uint8")).save(tmp_path / "scaled.png")
    assert {0, 255} <= set(gray_of(tmp_path / "scaled.png").flat)


def test_signed_16_bit_gray_is_refused(tmp_path):
    x = np.arange(-60, 60, dtype=np.int16).reshape(10, 12) * 500
    path = write_tiff(tmp_path / "x.tiff", x, sample_format=2)
    with pytest.raises(DataError, match="signed or 32-bit integers"):
        load_rgb(path)


def test_a_progressive_jpeg(tmp_path):
    path = write_image(tmp_path / "x.jpg", (70, 50), progressive=True)
    np.testing.assert_array_equal(preprocess(path, Preprocessing(40, 32)), expected_f32(path, Preprocessing(40, 32)))


def test_an_orientation_in_the_exif_data_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write_image(tmp_path / "x.jpg", (12, 10), exif=exif)
    assert load_rgb(path).size == (12, 10)


def jpeg_bytes():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(file, "jpeg")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"no image", "not an image of a known format"),
        (jpeg_bytes()[:-500], "truncated"),
        (jpeg_bytes()[:30], "(?i)truncated"),
    ],
    ids=["empty", "text", "half a JPEG", "part of a header"],
)
def test_a_bad_file_says_why(tmp_path, content, reason):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        load_rgb(tmp_path / "x.jpg")


def test_a_bad_png_says_why(tmp_path):
    path = write_image(tmp_path / "x.png", (60, 50))
    content = path.read_bytes()
    for broken in (content[:-200], content[:100] + b"\0" * 50 + content[150:]):
        path.write_bytes(broken)
        with pytest.raises(DataError):
            load_rgb(path)


def test_a_folder_and_a_missing_file_are_no_images(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_rgb(tmp_path / "x")
    with pytest.raises(DataError, match="is a folder"):
        load_rgb(tmp_path)


def test_an_image_of_a_size_that_is_an_attack_is_refused(tmp_path, monkeypatch):
    path = write_image(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="exceeds limit"):
        load_rgb(path)


def test_preprocess_names_the_bad_file(tmp_path):
    with pytest.raises(DataError, match=r"x\.jpg: no such file; remove or replace"):
        preprocess(tmp_path / "x.jpg", Preprocessing(8, 8))


def test_crop_center_takes_the_even_neighbour_of_a_half():
    x_u8 = np.arange(35, dtype=np.uint8)[:, None, None] + np.zeros((35, 33, 1), np.uint8)
    assert crop_center(x_u8, 32)[0, 0, 0] == 2  # 1.5 goes to 2
    assert crop_center(x_u8[:33], 32)[0, 0, 0] == 0  # 0.5 goes to 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resize": 0}, "resize 0"),
        ({"crop": -1}, "crop -1"),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
        ({"mean": (1.0,)}, "three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "no std of zero"),
    ],
)
def test_wrong_preprocessing_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        Preprocessing(**{"resize": 8, "crop": 8, **change})
