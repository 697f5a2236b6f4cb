import os

import pytest

from quantvm.data import layouts
from quantvm.errors import DataError

from .conftest import WNIDS, write_image


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def labels(samples):
    return {sample.id: sample.label for sample in samples}


class TestWnidFolders:
    def test_a_subset_of_the_classes_keeps_its_labels(self, tmp_path):
        root = touch(tmp_path, f"{WNIDS[999]}/a.JPEG", f"{WNIDS[7]}/b.JPEG", f"{WNIDS[7]}/deep/er/c.png")
        samples = layouts.wnid_folders(root)
        assert labels(samples) == {f"{WNIDS[7]}/b.JPEG": 7, f"{WNIDS[7]}/deep/er/c.png": 7, f"{WNIDS[999]}/a.JPEG": 999}
        assert all(sample.source == root / sample.id for sample in samples)

    def test_hidden_files_and_clutter_are_no_samples_but_any_other_file_is(self, tmp_path):
        root = touch(
            tmp_path, ".git/x", "__MACOSX/x", f"{WNIDS[0]}/.DS_Store", f"{WNIDS[0]}/Thumbs.db", f"{WNIDS[0]}/a.txt"
        )
        assert labels(layouts.wnid_folders(root)) == {f"{WNIDS[0]}/a.txt": 0}

    def test_a_dangling_link_is_a_sample_so_that_the_check_names_it(self, tmp_path):
        root = touch(tmp_path, f"{WNIDS[0]}/a.png")
        (root / WNIDS[0] / "b.png").symlink_to("nowhere")
        assert len(layouts.wnid_folders(root)) == 2

    def test_all_unknown_names_are_told(self, tmp_path):
        unknown = [f"n{number:08}" for number in range(30)]
        root = touch(tmp_path, f"{WNIDS[0]}/a.png", *(f"{name}/a.png" for name in unknown))
        with pytest.raises(DataError, match=r"30 of 31 class folders .*--class-map sorted") as caught:
            layouts.wnid_folders(root)
        assert ", ".join(unknown) in str(caught.value)

    def test_folders_of_wnids_one_below_are_named(self, tmp_path):
        root = touch(tmp_path, f"train.X1/{WNIDS[3]}/a.png", f"val.X/{WNIDS[3]}/a.png")
        with pytest.raises(DataError, match=r"2 of 2 class folders .*name it as the data, .*train\.X1$"):
            layouts.wnid_folders(root)
        assert labels(layouts.wnid_folders(root / "val.X")) == {f"{WNIDS[3]}/a.png": 3}

    def test_empty_folders(self, tmp_path):
        (tmp_path / WNIDS[0]).mkdir()
        with pytest.raises(DataError, match="got no images"):
            layouts.wnid_folders(tmp_path)


class TestSortedFolders:
    def test_labels_are_places(self, tmp_path):
        assert labels(layouts.sorted_folders(touch(tmp_path, "b/1", "a/1", "c/1"))) == {"a/1": 0, "b/1": 1, "c/1": 2}

    def test_more_than_a_thousand(self, tmp_path):
        for number in range(1001):
            (tmp_path / str(number)).mkdir()
        with pytest.raises(DataError, match="got 1001 class folders, expected at most 1000"):
            layouts.sorted_folders(tmp_path)


class TestIndexFolders:
    def test_labels_are_numbers_not_places(self, tmp_path):
        assert labels(layouts.index_folders(touch(tmp_path, "10/a", "2/a", "999/a"))) == {
            "10/a": 10,
            "2/a": 2,
            "999/a": 999,
        }

    def test_wrong_numbers_are_all_told(self, tmp_path):
        with pytest.raises(DataError, match="got the folders -1, 1000, x, expected numbers from 0 to 999"):
            layouts.index_folders(touch(tmp_path, "1000/a", "x/a", "-1/a", "5/a"))


class TestFlatFiles:
    def test_the_wnid_is_in_the_name(self, tmp_path):
        root = touch(tmp_path, f"{WNIDS[3]}_shark.JPEG", f"{WNIDS[1]}_a_b.JPEG", "README.md", "gallery.md")
        assert labels(layouts.wnid_files(root)) == {f"{WNIDS[1]}_a_b.JPEG": 1, f"{WNIDS[3]}_shark.JPEG": 3}

    def test_images_without_a_known_wnid_are_told(self, tmp_path):
        root = touch(tmp_path, f"{WNIDS[3]}_shark.JPEG", "n00000000_x.JPEG", "cat.png")
        with pytest.raises(DataError, match=r"2 of 3 file names .*n00000000_x\.JPEG, cat\.png"):
            layouts.wnid_files(root)

    def test_the_index_is_in_the_name(self, tmp_path):
        root = touch(tmp_path, "imagenet_00_243.jpg", "imagenet_01_5.png", "cifar10_00_3.png")
        layout = layouts.index_files(r"imagenet_\d+_(\d{1,3})\.\w+")
        assert labels(layout(root)) == {"imagenet_00_243.jpg": 243, "imagenet_01_5.png": 5}


class TestLayoutOfFolder:
    def test_wnid_folders(self, tmp_path):
        assert layouts.layout_of_folder(touch(tmp_path, f"{WNIDS[0]}/a"), "wnid") is layouts.wnid_folders

    def test_wnid_files(self, tmp_path):
        assert layouts.layout_of_folder(touch(tmp_path, f"{WNIDS[0]}_a.JPEG"), "wnid") is layouts.wnid_files

    def test_files_that_end_with_their_wnid_as_hugging_face_names_them(self, tmp_path):
        names = [f"ILSVRC2012_val_00000001_{WNIDS[65]}.JPEG", f"{WNIDS[7]}_10026_{WNIDS[7]}.JPEG"]
        layout = layouts.layout_of_folder(touch(tmp_path, *names, "README_n01440764.txt"), "wnid")
        assert labels(layout(tmp_path)) == {names[0]: 65, names[1]: 7}

    def test_other_folders_only_when_asked_for(self, tmp_path):
        root = touch(tmp_path, "cat/a", "dog/a")
        assert layouts.layout_of_folder(root, "sorted") is layouts.sorted_folders
        with pytest.raises(DataError, match=r"2 of 2 class folders .*cat, dog"):
            layouts.layout_of_folder(root, "wnid")(root)

    @pytest.mark.parametrize(
        ("names", "class_map", "said"),
        [
            (["0/a", "1/a", "999/a"], "wnid", "named by numbers .0, 1, 999.*--data imagenetv2"),
            (["train/n01440764/a"], "wnid", "got the folders train but no val"),
            (["train/a/a", "Validation/b/a"], "sorted", "got the folders Validation, train but no val"),
            (["ILSVRC2012_val_00000001.JPEG"], "wnid", "validation images lie flat.*valprep"),
            (["cat.jpg", "dog.jpg"], "wnid", "got 2 files but no folders, expected val/<wnid>"),
            (["cat.jpg"], "sorted", "got no folders, but --class-map sorted"),
            ([], "wnid", "got an empty folder"),
        ],
    )
    def test_what_has_no_labels_is_explained(self, tmp_path, names, class_map, said):
        with pytest.raises(DataError, match=said):
            layouts.layout_of_folder(touch(tmp_path, *names), class_map)


class TestImageNames:
    def test_all_below_and_only_images_beside(self, tmp_path):
        root = touch(tmp_path, "b/x.txt", "b/c/y", "a.JPG", "README.md", ".hidden/z.png")
        assert layouts.image_names(root) == ["a.JPG", "b/c/y", "b/x.txt"]

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
        layouts.wnid_folders(tmp_path / "missing")
    with pytest.raises(DataError, match="cannot be listed"):
        layouts.wnid_folders(write_image(tmp_path / "x.png"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX file names")
def test_names_that_are_no_unicode(tmp_path):
    folder = tmp_path / WNIDS[0]
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).touch()
    assert layouts.wnid_folders(tmp_path)[0].source.exists()
