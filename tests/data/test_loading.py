import pytest

from quantvm.data import CalibrationSet, has_imagenet_labels, load_calibration, load_dataset
from quantvm.errors import ConfigError, DataError

from .conftest import WNIDS, write_image


def labels(dataset):
    return {sample.id: sample.label for sample in dataset.samples}


@pytest.fixture
def folder(tmp_path, make_images):
    """Three classes with four images each to evaluate, and ten to calibrate on."""
    root = tmp_path / "data"
    make_images(root / "val", [WNIDS[999], WNIDS[0], WNIDS[217]], 4)
    make_images(root / "train", [WNIDS[0], WNIDS[217]], 5)
    return root


def spoil(root):
    """Makes files that are no images, of every kind; returns their names."""
    folder = root / WNIDS[0]
    (folder / "empty.JPEG").touch()
    (folder / "text.JPEG").write_text("no image")
    half = write_image(folder / "half.jpg", (64, 64))
    half.write_bytes(half.read_bytes()[:-300])
    (folder / "dangling.png").symlink_to("nowhere")
    return {"empty.JPEG", "text.JPEG", "half.jpg", "dangling.png"}


class TestFolder:
    def test_val_is_used_and_keeps_true_labels(self, folder):
        dataset = load_dataset(folder)
        assert dataset.root == folder / "val"
        assert set(labels(dataset).values()) == {0, 217, 999}
        assert labels(dataset)[f"{WNIDS[217]}/3.png"] == 217
        assert (dataset.name, dataset.n_requested, dataset.bad, dataset.is_default) == (str(folder), None, (), False)

    def test_the_folder_of_the_classes_itself_has_the_same_ids(self, folder):
        assert load_dataset(folder / "val").sha256 == load_dataset(str(folder)).sha256

    def test_a_single_folder_around_val_is_stepped_into(self, folder, tmp_path):
        (tmp_path / "outer").mkdir()
        folder.rename(tmp_path / "outer" / "imagenet_1k")
        dataset = load_dataset(tmp_path / "outer")
        assert dataset.root == tmp_path / "outer" / "imagenet_1k" / "val"
        assert "imagenet_1k" in dataset.notes[0]

    def test_a_single_class_is_not_stepped_into(self, tmp_path, make_images):
        assert labels(load_dataset(make_images(tmp_path / "d", [WNIDS[9]], 1))) == {f"{WNIDS[9]}/0.png": 9}

    def test_the_home_folder(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder.parent))
        assert len(load_dataset("~/data")) == 12

    def test_a_missing_folder_names_the_nearest_set(self):
        with pytest.raises(
            DataError, match=r"data imagenett: no such folder or named set \(did you mean 'imagenette'\?\)"
        ):
            load_dataset("imagenett")

    def test_a_file(self, tmp_path):
        with pytest.raises(DataError, match="got a file, expected a folder"):
            load_dataset(write_image(tmp_path / "x.png"))

    def test_a_path_is_a_folder_even_if_it_is_called_like_a_set(self, tmp_path, make_images, monkeypatch):
        from pathlib import Path

        make_images(tmp_path / "imagenette", [WNIDS[9]], 1)
        monkeypatch.chdir(tmp_path)
        assert len(load_dataset(Path("imagenette"))) == 1

    def test_unknown_wnids(self, tmp_path, make_images):
        with pytest.raises(DataError, match=r"n99999999"):
            load_dataset(make_images(tmp_path / "d", [WNIDS[9], "n99999999"], 1))

    def test_sorted_labels_only_when_asked_for(self, tmp_path, make_images, noting):
        root = make_images(tmp_path / "d", ["dog", "cat"], 1)
        with pytest.raises(DataError, match="--class-map sorted"):
            load_dataset(root)
        dataset = load_dataset(root, class_map="sorted", progress=noting)
        assert labels(dataset) == {"cat/0.png": 0, "dog/0.png": 1}
        assert "sorted order" in dataset.notes[0]
        told, *notes = noting.notes
        assert notes == list(dataset.notes)
        assert "sorted-folders (the place of the folder's name in sorted order); 2 images of 2 classes" in told

    def test_sorted_labels_are_imagenets_only_where_the_folders_are_all_of_its_classes(self, folder, tmp_path):
        assert has_imagenet_labels(folder, "wnid")
        assert has_imagenet_labels(None, "sorted")
        assert has_imagenet_labels("imagenette", "sorted")
        assert not has_imagenet_labels(folder, "sorted")
        for wnid in WNIDS:
            (tmp_path / "all" / "val" / wnid).mkdir(parents=True)
        assert has_imagenet_labels(tmp_path / "all", "sorted")
        write_image(tmp_path / "all" / "val" / WNIDS[500] / "x.png")
        assert labels(load_dataset(tmp_path / "all", class_map="sorted")) == {f"{WNIDS[500]}/x.png": 500}

    def test_sorted_has_no_effect_where_labels_are_known(self):
        pytest.importorskip("foolbox", reason="the extra `sample` is not installed")
        dataset = load_dataset("sample", class_map="sorted")
        assert "no effect" in dataset.notes[0]

    def test_images_without_a_class_are_told(self, folder):
        write_image(folder / "val" / "stray.png")
        assert "1 image beside the class folders" in load_dataset(folder).notes[0]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"num_samples": 0}, "number of images: got 0"),
            ({"class_map": "other"}, "class map: got 'other', expected wnid or sorted"),
            ({"on_bad_image": "ignore"}, "on bad image: got 'ignore', expected stop or skip"),
        ],
    )
    def test_wrong_options(self, folder, options, said):
        with pytest.raises(ConfigError, match=said):
            load_dataset(folder, **options)


class TestSubset:
    def test_the_same_arguments_the_same_images(self, folder):
        one, other = load_dataset(folder, num_samples=5, seed=3), load_dataset(folder, num_samples=5, seed=3)
        assert one.samples == other.samples
        assert len(one) == one.n_requested == 5

    def test_another_seed_other_images(self, folder):
        assert len({load_dataset(folder, num_samples=5, seed=seed).sha256 for seed in range(4)}) == 4

    def test_more_than_there_are_is_told(self, folder):
        dataset = load_dataset(folder, num_samples=100)
        assert len(dataset) == 12
        assert dataset.n_requested == 100
        assert "100 images were asked for" in dataset.notes[0]
        assert "has 12" in dataset.notes[0]


class TestBadImages:
    def test_all_are_named_at_once_with_their_reasons(self, folder):
        spoil(folder / "val")
        with pytest.raises(DataError, match=r"4 files of data set .* cannot be read") as caught:
            load_dataset(folder)
        lines = str(caught.value).splitlines()
        for name, reason in {
            "empty.JPEG": "empty file",
            "text.JPEG": "not an image",
            "half.jpg": "truncated",
            "dangling.png": "no such file",
        }.items():
            line = next(line for line in lines if name in line)
            assert reason in line
            assert str(folder) in line
        assert "--on-bad-image skip" in lines[-1]

    def test_skip_drops_counts_and_lists_them(self, folder):
        clean = load_dataset(folder)
        names = spoil(folder / "val")
        dataset = load_dataset(folder, on_bad_image="skip")
        assert dataset.samples == clean.samples
        assert {image.source.name for image in dataset.bad} == names
        assert all(image.reason for image in dataset.bad)
        assert dataset.notes == ("4 of the 16 chosen files cannot be read as images and are left out",)

    def test_only_chosen_images_are_checked(self, folder):
        names = spoil(folder / "val")
        sets = [load_dataset(folder, num_samples=6, seed=seed, on_bad_image="skip") for seed in range(8)]
        assert all(len(dataset) + len(dataset.bad) == 6 for dataset in sets)
        assert {len(dataset.bad) for dataset in sets} > {1}
        assert {image.source.name for dataset in sets for image in dataset.bad} <= names

    def test_none_left_is_an_error(self, tmp_path):
        root = tmp_path / "d"
        (root / WNIDS[0]).mkdir(parents=True)
        (root / WNIDS[0] / "x.png").touch()
        with pytest.raises(DataError, match=r"none of the chosen files can be read.*empty file"):
            load_dataset(root, on_bad_image="skip")


class TestCalibration:
    @pytest.fixture
    def evaluation(self, folder):
        return load_dataset(folder)

    def test_from_the_train_part(self, folder, evaluation):
        found = load_calibration(folder, None, num_samples=4, seed=0, evaluation=evaluation)
        assert len(found) == 4
        assert all((folder / "train") in path.parents for path in found.images)
        assert found.source == f"4 of 10 images of {folder} (train/)"
        assert found.notes == ()

    def test_is_seeded(self, folder, evaluation):
        one, same, other = (
            load_calibration(folder, None, num_samples=4, seed=seed, evaluation=evaluation) for seed in (0, 0, 1)
        )
        assert one == same
        assert one.images != other.images

    def test_all_there_are(self, folder, evaluation):
        found = load_calibration(folder, None, num_samples=1000, seed=0, evaluation=evaluation)
        assert len(found) == 10
        assert "1,000 calibration images were asked for" in found.notes[0]

    def test_an_argument_beats_the_train_part(self, folder, evaluation, tmp_path, make_images):
        other = make_images(tmp_path / "other", ["anything"], 3)
        write_image(other / "flat.png")
        found = load_calibration(folder, str(other), num_samples=10, seed=0, evaluation=evaluation)
        assert {path.name for path in found.images} == {"0.png", "1.png", "2.png", "flat.png"}
        assert found.source == f"4 of 4 images of {other}"

    def test_a_folder_with_a_train_part(self, folder, evaluation):
        found = load_calibration(None, folder, num_samples=2, seed=0, evaluation=evaluation)
        assert found.source == f"2 of 10 images of {folder} (train/)"

    def test_the_sample(self, folder, evaluation):
        pytest.importorskip("foolbox", reason="the extra `sample` is not installed")
        found = load_calibration(folder, "sample", num_samples=30, seed=0, evaluation=evaluation)
        assert found.source == "20 of 20 images of sample"
        assert all(path.name.startswith("imagenet_") for path in found.images)

    def test_a_part_of_the_evaluation_images(self, folder):
        dataset = load_dataset(folder / "val")
        found = load_calibration(folder / "val", None, num_samples=5, seed=0, evaluation=dataset)
        assert len(found) == 5
        assert set(found.images) <= {sample.source for sample in dataset.samples}
        assert found.source.startswith("5 of the 12 evaluation images themselves")
        assert "also evaluated" in found.notes[0]

    def test_all_of_the_evaluation_images(self, folder):
        dataset = load_dataset(folder / "val")
        found = load_calibration(folder / "val", None, num_samples=500, seed=0, evaluation=dataset)
        assert len(found) == 12
        assert found.source.startswith("all 12 evaluation images themselves")

    def test_images_in_both_are_told(self, folder, evaluation):
        found = load_calibration(folder, folder / "val", num_samples=6, seed=0, evaluation=evaluation)
        assert found.notes == ("6 of the 6 calibration images are also evaluated",)

    def test_bad_images_stop(self, folder, evaluation):
        names = spoil(folder / "train")
        with pytest.raises(DataError, match=r"4 files of the calibration images in .*train/\) cannot be") as caught:
            load_calibration(folder, None, num_samples=100, seed=0, evaluation=evaluation)
        assert all(name in str(caught.value) for name in names)

    @pytest.mark.parametrize("seed", range(4))
    def test_skipped_images_are_replaced(self, folder, evaluation, seed):
        names = spoil(folder / "train")
        found = load_calibration(folder, None, num_samples=10, seed=seed, evaluation=evaluation, on_bad_image="skip")
        assert len(set(found.images)) == 10
        assert {image.source.name for image in found.bad} <= names
        assert bool(found.bad) == any("left out" in note for note in found.notes)

    def test_no_good_image(self, folder, evaluation, tmp_path):
        bad = tmp_path / "bad"
        bad.mkdir()
        (bad / "x.png").touch()
        with pytest.raises(DataError, match=r"none of the files in .*bad can be read as an image, 1 in all"):
            load_calibration(folder, bad, num_samples=1, seed=0, evaluation=evaluation, on_bad_image="skip")

    @pytest.mark.parametrize("files", [[], ["README.md"]])
    def test_no_images(self, folder, evaluation, tmp_path, files):
        empty = tmp_path / "none"
        empty.mkdir()
        for name in files:
            (empty / name).touch()
        with pytest.raises(DataError, match=r"holds no images.*--calibration-data"):
            load_calibration(folder, empty, num_samples=1, seed=0, evaluation=evaluation)

    def test_none_asked_for(self, folder, evaluation):
        with pytest.raises(ConfigError, match="got 0, expected at least 1"):
            load_calibration(folder, None, num_samples=0, seed=0, evaluation=evaluation)

    def test_is_a_value(self, folder, evaluation):
        assert isinstance(load_calibration(folder, None, num_samples=1, seed=0, evaluation=evaluation), CalibrationSet)
