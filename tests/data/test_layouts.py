import os

import pytest

from quantvm.data import layouts
from quantvm.data.recognition import recognize
from quantvm.errors import DataError

from .conftest import WNIDS, write_image


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def labels(samples):
    return {sample.id: sample.label for sample in samples}


class TestSortedFolders:
    def test_labels_are_places(self, tmp_path):
        root = touch(tmp_path, "b/1.png", "a/1.png", "c/1.png")
        assert labels(layouts.sorted_folders(root)) == {"a/1.png": 0, "b/1.png": 1, "c/1.png": 2}

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["train/a/a.png", "Validation/b/a.png"], "got the folders Validation, train but no val"),
            (["cat.jpg"], "got no folders, but --class-map sorted"),
            (["cat/README.md"], "got no images"),
        ],
    )
    def test_what_has_no_classes_is_explained(self, tmp_path, names, said):
        with pytest.raises(DataError, match=said):
            layouts.sorted_folders(touch(tmp_path, *names))

    def test_more_than_a_thousand(self, tmp_path):
        for number in range(1001):
            (tmp_path / str(number)).mkdir()
        with pytest.raises(DataError, match="got 1001 class folders, expected at most 1000"):
            layouts.sorted_folders(tmp_path)


def test_the_index_is_in_the_name(tmp_path):
    root = touch(tmp_path, "imagenet_00_243.jpg", "imagenet_01_5.png", "cifar10_00_3.png")
    layout = layouts.index_files(r"imagenet_\d+_(\d{1,3})\.\w+")
    assert labels(layout(root)) == {"imagenet_00_243.jpg": 243, "imagenet_01_5.png": 5}


class TestImageNames:
    def test_all_below_and_only_images_beside(self, tmp_path):
        root = touch(tmp_path, "b/x.txt", "b/c/y.tiff", "a.JPG", "README.md", ".hidden/z.png")
        write_image(root / "b" / "x.png").rename(root / "b" / "without a suffix")
        assert layouts.image_names(root) == ["a.JPG", "b/c/y.tiff", "b/without a suffix"]

    def test_stray_images(self, tmp_path):
        root = touch(tmp_path, "a.png", "note.txt")
        assert layouts.stray_images(root) == []
        assert layouts.stray_images(touch(root, f"{WNIDS[0]}/b.png")) == ["a.png"]


class TestSingleSubfolder:
    def test_only_one_without_images_beside(self, tmp_path):
        root = touch(tmp_path, "one/x", "README", "__MACOSX/x")
        assert layouts.single_subfolder(root) == root / "one"
        touch(root, "image.png")
        assert layouts.single_subfolder(root) is None

    def test_two(self, tmp_path):
        assert layouts.single_subfolder(touch(tmp_path, "one/x", "two/x")) is None


def test_a_missing_folder_and_a_file(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        layouts.sorted_folders(tmp_path / "missing")
    with pytest.raises(DataError, match="cannot be listed"):
        layouts.sorted_folders(write_image(tmp_path / "x.png"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX file names")
def test_names_that_are_no_unicode(tmp_path):
    folder = tmp_path / WNIDS[0]
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).touch()
    assert layouts.sorted_folders(tmp_path)[0].source.exists()
    assert recognize(tmp_path).samples[0].source.exists()
