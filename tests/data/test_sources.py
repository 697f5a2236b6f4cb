import pickle
from pathlib import Path

import numpy as np
import pytest

from quantvm.data.preprocess import Preprocessing, load_rgb, preprocess
from quantvm.data.sources import FileSlice, open_source, real_source
from quantvm.errors import DataError

from .conftest import write_image

PREPROCESSING = Preprocessing(10, 8)


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "image.png")


@pytest.fixture
def inside(tmp_path, image):
    """The same image in the middle of another file."""
    content = image.read_bytes()
    archive = tmp_path / "archive.tar"
    archive.write_bytes(b"x" * 700 + content + b"y" * 300)
    return FileSlice(archive, 700, len(content), "a/image.png")


def test_a_slice_has_the_bytes_and_the_pixels_of_the_file(image, inside):
    assert open_source(inside).read() == open_source(image).read() == image.read_bytes()
    np.testing.assert_array_equal(preprocess(inside, PREPROCESSING), preprocess(image, PREPROCESSING))


def test_sources_are_values_that_other_processes_can_open(image, inside):
    for source in (image, inside):
        assert pickle.loads(pickle.dumps(source)) == source
        assert hash(source) == hash(pickle.loads(pickle.dumps(source)))
    assert str(inside) == f"{inside.file}!a/image.png"


def test_an_archive_that_was_cut_is_told(inside):
    with inside.file.open("r+b") as file:
        file.truncate(inside.offset + 20)
    with pytest.raises(DataError, match=r"archive\.tar!a/image\.png: the archive ends after 20 of its .* bytes"):
        preprocess(inside, PREPROCESSING)


def test_a_missing_archive_and_an_empty_member(tmp_path, inside):
    with pytest.raises(DataError, match="empty, 0 bytes"):
        load_rgb(FileSlice(inside.file, 0, 0, "x"))
    with pytest.raises(DataError, match=r"no such file: .*nothing\.tar"):
        load_rgb(FileSlice(tmp_path / "nothing.tar", 0, 5, "x"))


def test_links_to_one_file_are_one_source(tmp_path, image):
    (tmp_path / "link.png").symlink_to(image)
    assert real_source(tmp_path / "link.png") == real_source(Path(image))
