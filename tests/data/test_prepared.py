import pickle
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from quantvm.data import ahead, iterate_batches, iterate_inputs, prepared
from quantvm.data.dataset import Sample
from quantvm.data.prepared import PreparedImages
from quantvm.data.preprocess import Preprocessing, load_rgb, preprocess
from quantvm.data.sources import FileSlice

from .conftest import write_image

LITE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
PREPROCESSINGS = [
    Preprocessing(40, 32),
    Preprocessing(40, 32, **LITE),  # the same pixels
    Preprocessing(40, 32, "bicubic", **LITE),
    Preprocessing(31, 64),  # the crop is larger than the image
]
GEOMETRIES = [preprocessing.geometry for preprocessing in PREPROCESSINGS]


@pytest.fixture
def images(tmp_path):
    """Images as they are found: of many modes and sizes, with a bad one between them; the last is in an archive."""
    forms = [
        ("a.jpg", (50, 37), "RGB"), ("gray.jpg", (37, 50), "L"), ("cmyk.jpg", (64, 64), "CMYK"),
        ("palette.png", (41, 40), "P"), ("alpha.png", (12, 10), "RGBA"), ("bits.png", (33, 90), "1"),
        ("tiny.png", (1, 1), "RGB"), ("thin.png", (1, 9), "RGB"), ("x.webp", (40, 40), "RGB"),
    ]  # fmt: skip
    paths = [write_image(tmp_path / "in" / name, size, mode, seed=i) for i, (name, size, mode) in enumerate(forms)]
    Image.fromarray((np.arange(120, dtype=np.uint16) * 550).reshape(10, 12)).save(tmp_path / "in" / "u16.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    paths += [tmp_path / "in" / "u16.png", write_image(tmp_path / "in" / "turned.jpg", (50, 37), exif=turned)]
    bad = tmp_path / "in" / "bad.jpg"
    bad.write_bytes(paths[0].read_bytes()[:200])
    archive = tmp_path / "in" / "x.tar"
    archive.write_bytes(b"before" + paths[1].read_bytes() + b"behind")
    return [*paths[:4], bad, *paths[4:], FileSlice(archive, 6, paths[1].stat().st_size, "gray.jpg")]


@pytest.fixture
def good(images):
    return [source for source in images if "bad" not in str(source)]


@pytest.fixture
def decoded(monkeypatch):
    """The images that were decoded, in order of storage or not."""
    found = []
    monkeypatch.setattr(prepared, "load_rgb", lambda source, *rest: found.append(source) or load_rgb(source, *rest))
    return found


def opened(tmp_path, **options):
    return PreparedImages(tmp_path / "images", GEOMETRIES, "decoder", **options)


def inputs(sources, preprocessing, store):
    return np.concatenate(list(iterate_inputs(sources, preprocessing, 4, prepared=store)))


def test_prepared_inputs_have_the_same_bits(tmp_path, images, good, monkeypatch):
    store = opened(tmp_path)
    checked = store.check(images)
    assert [str(image.source) for image in checked.bad] == [str(images[4])]
    assert checked.n_turned == 1
    expected = [np.stack([preprocess(source, each) for source in good]) for each in PREPROCESSINGS]
    for source in good[:-1]:
        source.unlink()  # nothing is decoded any more
    for again in (store, pickle.loads(pickle.dumps(store)), opened(tmp_path)):
        for preprocessing, x_f32 in zip(PREPROCESSINGS, expected, strict=True):
            np.testing.assert_array_equal(inputs(good, preprocessing, again), x_f32)


def test_a_check_alone_keeps_nothing_and_finds_the_same(tmp_path, images):
    assert PreparedImages().check(images) == opened(tmp_path).check(images)
    assert [path.name for path in tmp_path.iterdir() if path.name != "in"] == ["images"]


def test_an_image_is_decoded_once(tmp_path, images, good, decoded):
    store = opened(tmp_path)
    store.check(images)
    assert sorted(map(str, decoded)) == sorted(map(str, images))
    store.check(good[:5])
    store.prepare(good)
    opened(tmp_path).check(good)
    assert len(decoded) == len(images)


def test_pieces_of_a_killed_process_are_used(tmp_path, images, good, decoded, monkeypatch):
    monkeypatch.setattr(prepared, "_PIECE", 3)
    store, write = opened(tmp_path), PreparedImages._write
    written = []

    def write_twice(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(store, *arguments))

    monkeypatch.setattr(store, "_write", write_twice)
    with pytest.raises(KeyboardInterrupt):
        store.check(good)
    n_before = len(decoded)
    (tmp_path / "images" / "0123.index.json.tmp1-01234567").write_bytes(b"{")
    (tmp_path / "images" / "0123.index.json").write_bytes(b"{")  # damaged
    again = opened(tmp_path)
    again.check(images)
    assert len(decoded) - n_before == len(images) - 2 * 3
    np.testing.assert_array_equal(
        inputs(good, PREPROCESSINGS[0], again), np.stack([preprocess(source, PREPROCESSINGS[0]) for source in good])
    )


def test_a_new_geometry_is_added_to_what_is_there(tmp_path, good):
    PreparedImages(tmp_path / "images", GEOMETRIES[:1], "decoder").check(good)
    n_files = len(list((tmp_path / "images").iterdir()))
    store = opened(tmp_path)
    store.check(good)
    assert len(list((tmp_path / "images").iterdir())) == n_files + 3  # two geometries and an index
    for preprocessing in PREPROCESSINGS:
        expected = np.stack([preprocess(source, preprocessing) for source in good])
        np.testing.assert_array_equal(inputs(good, preprocessing, store), expected)


def test_an_image_that_was_replaced_is_decoded_again(tmp_path, good):
    opened(tmp_path).check(good)
    before = opened(tmp_path).facts[str(good[0])]
    write_image(good[0], (60, 40), seed=99)
    store = opened(tmp_path)
    store.check(good)
    assert store.facts[str(good[0])].digest != before.digest
    for again in (store, opened(tmp_path)):
        found = inputs(good[:1], PREPROCESSINGS[0], again)
        np.testing.assert_array_equal(found[0], preprocess(good[0], PREPROCESSINGS[0]))


def test_other_versions_or_damaged_pixels_are_not_used(tmp_path, good):
    opened(tmp_path).check(good)
    assert PreparedImages(tmp_path / "images", GEOMETRIES, "another").facts == {}
    store = opened(tmp_path)
    for path in (tmp_path / "images").glob("*.u8"):
        content = bytearray(path.read_bytes())
        content[5] ^= 1
        path.write_bytes(content)
    first = store.pixels(good[0], GEOMETRIES[0])
    rest = [store.pixels(source, GEOMETRIES[0]) for source in good]
    assert first is None or len(first) == 32
    assert sum(each is None for each in rest) == 1
    np.testing.assert_array_equal(
        inputs(good, PREPROCESSINGS[0], store), np.stack([preprocess(source, PREPROCESSINGS[0]) for source in good])
    )


def test_what_is_known_to_be_good_is_read_and_not_decoded(tmp_path, images, good, decoded):
    facts = PreparedImages()
    facts.check(images)
    known = {each.digest: each.is_turned for each in facts.facts.values() if each.reason is None}
    decoded.clear()
    store = opened(tmp_path, known=known)
    assert store.check(images).n_turned == 1
    assert decoded == [images[4]]
    store.prepare(good)
    assert len(decoded) == 1 + len(good)
    assert all(store.pixels(source, GEOMETRIES[3]) is not None for source in good)


@pytest.mark.parametrize("room", [0, 1 << 30])
def test_without_room_nothing_is_kept(tmp_path, good, noting, monkeypatch, room):
    monkeypatch.setattr(prepared, "room_bytes", lambda folder: room)
    store = opened(tmp_path)
    store.check(good, progress=noting)
    assert not (tmp_path / "images").exists()
    assert "each model decodes them itself" in noting.notes[0]
    np.testing.assert_array_equal(
        inputs(good, PREPROCESSINGS[0], store), np.stack([preprocess(source, PREPROCESSINGS[0]) for source in good])
    )


def test_a_disk_that_fills_up_gets_its_room_back(tmp_path, good, noting, monkeypatch):
    monkeypatch.setattr(prepared, "_PIECE", 3)
    full = iter([None] * 6)

    def write(path, content):
        if next(full, "full") == "full":
            raise prepared.OutputError("no space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(prepared, "write_file", write)
    store = opened(tmp_path)
    assert store.check(good, progress=noting).bad == ()
    assert not (tmp_path / "images").exists()
    assert len(noting.notes) == 1
    assert store.pixels(good[0], GEOMETRIES[0]) is None


def test_removing_leaves_other_files(tmp_path, good):
    store = opened(tmp_path)
    store.check(good)
    (tmp_path / "images" / "mine.txt").write_text("")
    store.remove()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["mine.txt"]


def test_batches_say_the_same_with_and_without(tmp_path, good):
    samples = [Sample(str(source), source, i) for i, source in enumerate(good)]
    store = opened(tmp_path)
    store.check(good)
    for plain, kept in zip(
        iterate_batches(samples, PREPROCESSINGS[2], 5),
        iterate_batches(samples, PREPROCESSINGS[2], 5, prepared=store),
        strict=True,
    ):
        assert plain.ids == kept.ids
        np.testing.assert_array_equal(plain.x_f32, kept.x_f32)


def test_work_ahead_is_bounded_and_in_order():
    read, done = [], []
    items = (read.append(i) or i for i in range(1000))
    results = ahead.ahead_in_order(lambda i: done.append(i) or i, items, most=10, workers=3)
    assert list(islice(results, 50)) == list(range(50))
    assert len(read) <= 61
    results.close()
    assert len(done) <= 61
