"""What is refused, with which words; what a run says that it found."""

import pytest

from quantvm.data.recognition import recognize, training_images
from quantvm.errors import DataError, UnknownNameError

from . import test_forms
from .conftest import WNIDS, write_image
from .form_builders import ANY, IDS, LINES, TRAIN, VAL, flat, in_folders, label_of, lines_of, parquet, put, shard_of
from .test_forms import by_bytes, contents


def touch(root, *names):
    for name in names:
        put(root, name, b"")
    return root


def labels(found):
    return {sample.id: sample.label for sample in found.samples}


class TestWnids:
    def test_a_subset_of_the_classes_keeps_its_labels(self, tmp_path):
        root = touch(tmp_path, f"{WNIDS[999]}/a.JPEG", f"{WNIDS[7]}/b.JPEG", f"{WNIDS[7]}/deep/er/c.png")
        found = recognize(root)
        assert labels(found) == {f"{WNIDS[7]}/b.JPEG": 7, f"{WNIDS[7]}/deep/er/c.png": 7, f"{WNIDS[999]}/a.JPEG": 999}
        assert all(sample.source == root / sample.id for sample in found.samples)

    def test_hidden_files_clutter_and_files_that_are_no_images_are_left_out(self, tmp_path):
        folder = WNIDS[0]
        root = touch(tmp_path, ".git/x.png", "__MACOSX/x.png", f"{folder}/.DS_Store", f"{folder}/Thumbs.db")
        found = recognize(touch(root, f"{folder}/a.txt", f"{folder}/boxes.xml", f"{folder}/b.png"))
        assert labels(found) == {f"{folder}/b.png": 0}
        assert any("1 file that is no image is ignored (.xml)" in note for note in found.notes)

    def test_a_dangling_link_is_a_sample_so_that_the_check_names_it(self, tmp_path):
        root = touch(tmp_path, f"{WNIDS[0]}/a.png")
        (root / WNIDS[0] / "b.png").symlink_to("nowhere")
        assert len(recognize(root).samples) == 2

    def test_a_link_to_a_folder_above_ends(self, tmp_path):
        root = touch(tmp_path, f"{WNIDS[0]}/a.png")
        (root / WNIDS[0] / "up").symlink_to("..")
        assert f"{WNIDS[0]}/a.png" in labels(recognize(root))

    def test_all_unknown_names_are_told(self, tmp_path):
        unknown = [f"n{number:08}" for number in range(30)]
        root = touch(tmp_path, f"{WNIDS[0]}/a.png", *(f"{name}/a.png" for name in unknown))
        with pytest.raises(DataError, match=r"30 of 31 class folders .*--class-map sorted") as caught:
            recognize(root)
        assert ", ".join(unknown) in str(caught.value)

    def test_images_without_a_known_wnid_are_told(self, tmp_path):
        root = touch(tmp_path, f"{WNIDS[3]}_shark.JPEG", f"{WNIDS[4]}_x.JPEG", "n00000000_x.JPEG", "cat.png")
        with pytest.raises(DataError, match=r"2 of 4 file names .*cat\.png, n00000000_x\.JPEG"):
            recognize(root)

    def test_images_beside_the_folders_are_told(self, tmp_path):
        found = recognize(touch(tmp_path, f"{WNIDS[0]}/a.png", "stray.png"))
        assert len(found.samples) == 1
        assert any("1 image beside the class folders without a label: not used" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["cat/a.png", "dog/a.png"],
            r"got the folders cat, dog, which hold no wnid.*--class-map sorted.*--labels F",
        ),
        ([f"train/{WNIDS[0]}/a.png"], "got the folders train but no val, only images of the part train"),
        (["cat.jpg", "dog.jpg"], r"got cat\.jpg, dog\.jpg but no folders, .*expected val/<wnid>.*--labels FILE"),
        ([], "got no images, expected val/<wnid>.*quantvm list forms"),
        (["1000/a.png", "5/a.png"], r"the folders' numbers: the set holds 1000, .* a background class.*--labels FILE"),
        (
            ["crane/a.png", "tench/a.png"],
            r"two classes have the name crane: 134 \(n02012849\) and 517 \(.*--labels",
        ),
        (["maillot/a.png"], "two classes have the name maillot: 638"),
        (["tench/a.png", "goldfish/a.png", "my cat/a.png"], "no class has the name my cat"),
    ],
)
def test_what_has_no_certain_classes_is_explained(tmp_path, names, said):
    with pytest.raises(DataError, match=said):
        recognize(touch(tmp_path, *names))


def test_names_that_differ_in_case_only(tmp_path):
    root = touch(tmp_path / "exact", "Cardigan/a.png", "cardigan/b.png", "great white shark/c.png")
    assert labels(recognize(root)) == {"Cardigan/a.png": 264, "cardigan/b.png": 474, "great white shark/c.png": 2}
    with pytest.raises(DataError, match=r"two classes have the name Cardigan: 264 .* and 474"):
        recognize(touch(tmp_path / "title", "Cardigan/a.png", "Tench/b.png"))


def test_the_way_out_of_ambiguous_names_works(tmp_path):
    in_folders(tmp_path / "x", ANY, lambda i: "crane" if i else "tench")
    with pytest.raises(DataError, match=r"crane.*--labels FILE"):
        recognize(tmp_path)
    right = put(tmp_path / "other", "right.csv", lines_of(ANY, lambda n, i: f"{n},{i}\n")) / "right.csv"
    assert contents(recognize(tmp_path, labels=right)) == by_bytes(ANY)


class TestLists:
    def test_the_name_of_the_class_may_follow(self, tmp_path):
        flat(tmp_path, "x/", ANY)
        put(tmp_path, "x.txt", lines_of(ANY, lambda n, i: f"{n} {i} some kind of animal\n"))
        assert contents(recognize(tmp_path)) == by_bytes(ANY)

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (
                lambda n, i: f"{n} {i + 1}\n",
                r"val\.txt counts a background class as 0, so its numbers are the class",
            ),
            (lambda n, i: f"{n} {IDS[i]}\n", r"val\.txt holds ILSVRC2012_IDs, .*from 1"),
            (lambda n, i: f"{n} {IDS[i] - 1}\n", r"val\.txt numbers the classes in the order of the ILSVRC2012_IDs"),
            (lambda n, i: f"{n} {(i * 7) % 1000}\n", r"gives 8 of 8 validation images another class than ImageNet"),
            (lambda n, i: f"{n} {WNIDS[999 - i]}\n", r"gives 8 of 8 validation images another class"),
        ],
    )
    def test_another_numbering_is_refused_and_the_way_out_works(self, tmp_path, line, said):
        flat(tmp_path, "val/")
        put(tmp_path, "val.txt", lines_of(VAL, line))
        with pytest.raises(DataError, match=rf"{said}.*--form validation-numbers.*--labels FILE"):
            recognize(tmp_path)
        assert contents(recognize(tmp_path, form="validation-numbers")) == by_bytes(VAL)
        right = put(tmp_path / "other", "right.csv", lines_of(VAL, lambda n, i: f"{n},{i}\n")) / "right.csv"
        assert contents(recognize(tmp_path, labels=right)) == by_bytes(VAL)

    def test_a_background_class_is_told_without_imagenets_names(self, tmp_path):
        flat(tmp_path, "x/", ANY)
        put(tmp_path, "x.txt", lines_of(ANY, lambda n, i: f"{n} {i + 1}\n"))
        with pytest.raises(DataError, match=r"x\.txt holds 1000, .*background class as 0.*--labels FILE"):
            recognize(tmp_path)
        with pytest.raises(DataError, match=r"--labels .*x\.txt: it holds 1000"):
            recognize(tmp_path, labels=tmp_path / "x.txt")

    def test_a_wrong_list_beside_a_right_one_is_told_and_not_used(self, tmp_path):
        flat(tmp_path, "val/")
        put(tmp_path, "right.txt", lines_of(VAL, lambda n, i: f"{n} {i}\n"))
        put(tmp_path, "wrong.txt", lines_of(VAL, lambda n, i: f"{n} {i + 1}\n"))
        found = recognize(tmp_path)
        assert contents(found) == by_bytes(VAL)
        assert any("wrong.txt counts a background class" in note for note in found.notes)

    def test_lists_that_disagree_are_refused_and_the_choice_works(self, tmp_path):
        flat(tmp_path, "x/", ANY)
        put(tmp_path, "one.txt", lines_of(ANY, lambda n, i: f"{n} {i}\n"))
        put(tmp_path, "two.txt", lines_of(ANY, lambda n, i: f"{n} {999 - i}\n"))
        with pytest.raises(DataError, match=r"one\.txt says class 0 and two\.txt says class 999 for x/shot0.*--labels"):
            recognize(tmp_path)
        assert contents(recognize(tmp_path, labels=tmp_path / "one.txt")) == by_bytes(ANY)

    def test_a_list_that_contradicts_folders_is_refused(self, tmp_path):
        in_folders(tmp_path / "x", ANY, str)
        put(tmp_path, "x.txt", lines_of(ANY, lambda n, i: f"{n} {999 - i}\n"))
        with pytest.raises(DataError, match=r"the numbers of the folders and x\.txt say different classes for 4 "):
            recognize(tmp_path)

    def test_two_lines_for_one_image(self, tmp_path):
        flat(tmp_path, "x/", ANY)
        put(tmp_path, "x.txt", lines_of(ANY, lambda n, i: f"{n} {i}\n") + "shot0.png 5\n")
        with pytest.raises(DataError, match=r"x\.txt says several classes for x/shot0\.png"):
            recognize(tmp_path)

    def test_names_that_only_their_folders_tell_apart(self, tmp_path):
        flat(tmp_path, "a/", [("0.png", ANY[0][1], 3)])
        flat(tmp_path, "b/", [("0.png", ANY[1][1], 4)])
        put(tmp_path, "x.csv", "path,label\na/0.png,3\nb/0.png,4\n")
        assert labels(recognize(tmp_path)) == {"a/0.png": 3, "b/0.png": 4}

    def test_a_count_of_the_lines_is_no_list(self, tmp_path):
        flat(tmp_path, "val/")
        put(tmp_path, "val.txt", lines_of(VAL, lambda n, i: f"{n[:-5]} {int(n[15:23])}\n"))
        found = recognize(tmp_path)
        assert (found.form, contents(found)) == ("validation-numbers", by_bytes(VAL))

    def test_a_shuffled_list_of_synsets_is_refused(self, tmp_path):
        flat(tmp_path, "val/")
        put(tmp_path, "synsets.txt", "".join(f"{WNIDS[label_of(n)]}\n" for n in range(LINES, 0, -1)))
        with pytest.raises(DataError, match=r"synsets\.txt gives \d of 8 validation images another class"):
            recognize(tmp_path)

    def test_half_a_list_is_completed_by_the_numbers(self, tmp_path):
        flat(tmp_path, "val/")
        put(tmp_path, "val.txt", lines_of(VAL[:4], lambda n, i: f"{n} {i}\n"))
        found = recognize(tmp_path)
        assert contents(found) == by_bytes(VAL)
        assert any("4 images are not in val.txt" in note for note in found.notes)

    def test_images_that_the_list_does_not_have_are_told(self, tmp_path):
        flat(tmp_path, "x/", ANY)
        put(tmp_path, "x.txt", lines_of(ANY[:2], lambda n, i: f"{n} {i}\n"))
        found = recognize(tmp_path)
        assert len(found.samples) == 2
        assert any("2 images that x.txt does not have: not used" in note for note in found.notes)

    def test_a_file_that_is_no_list(self, tmp_path):
        flat(tmp_path, "x/", ANY)
        put(tmp_path, "x.txt", "this is\nno list at all\n")
        with pytest.raises(DataError, match=r"--labels .*x\.txt: not a list of labels.*Known are"):
            recognize(tmp_path, labels=tmp_path / "x.txt")


class TestSaidLabels:
    def test_shards_that_count_a_background_class(self, tmp_path):
        put(tmp_path, "val-0.tar", shard_of(VAL, label_text=lambda i: str(i + 1)))
        with pytest.raises(DataError, match=r"the labels in val-0\.tar!.* counts a background class.*--form valid"):
            recognize(tmp_path)
        assert contents(recognize(tmp_path, form="validation-numbers")) == by_bytes(VAL)

    def test_labels_and_wnids_that_disagree(self, tmp_path):
        parquet(tmp_path / "val.parquet", [(f"x{i}.JPEG", c, i) for _, c, i in ANY])
        assert contents(recognize(tmp_path)) == by_bytes(ANY)
        put(tmp_path, "s/0.tar", shard_of(ANY, lambda n, k, i: f"{WNIDS[5]}/{k}"))
        with pytest.raises(DataError, match=r"the labels of 4 images differ from the wnids in their names"):
            recognize(tmp_path / "s")

    def test_labels_that_are_wnids_or_names(self, tmp_path):
        put(tmp_path, "0.tar", shard_of(ANY[:2], lambda n, k, i: f"a{k}", label_text=lambda i: WNIDS[i]))
        put(tmp_path, "1.tar", shard_of(ANY[2:], lambda n, k, i: f"b{k}", label_text=lambda i: f"{i}\n"))
        assert contents(recognize(tmp_path)) == by_bytes(ANY)

    def test_a_table_of_other_classes(self, tmp_path):
        parquet(tmp_path / "val.parquet", ANY, wnid_in_path=False, names=["airplane of mine", "my bird", "my cat"])
        with pytest.raises(DataError, match=r"it numbers 3 classes, of which 3 have no name of exactly one of "):
            recognize(tmp_path)

    def test_a_table_and_its_files_beside_it(self, tmp_path):
        parquet(tmp_path / "part-0.parquet", ANY, wnid_in_path=False)
        flat(tmp_path, "images/", ANY)
        with pytest.raises(DataError, match=r"several forms: part-0\.parquet!0 and 3 others, and images/.*as --data"):
            recognize(tmp_path)


class TestFound:
    def test_what_is_missing_doubled_and_uneven_is_told(self, tmp_path):
        in_folders(tmp_path / "val", VAL, lambda i: WNIDS[i])
        put(tmp_path, f"val/{WNIDS[65]}/copy/{VAL[0][0]}", VAL[0][1])
        found = recognize(tmp_path)
        assert found.summary == "9 images of 8 classes, 1 to 2 of each"
        assert "1 images are there more than once, by their names; all of them are used" in found.notes
        assert "49,992 of ImageNet's 50,000 validation images are missing" in found.notes

    def test_the_folder_val_is_used_before_others_of_such_names(self, tmp_path):
        in_folders(tmp_path / "val", VAL, lambda i: WNIDS[i])
        in_folders(tmp_path / "val_backup", ANY, lambda i: WNIDS[i])
        found = recognize(tmp_path)
        assert (contents(found), found.root) == (by_bytes(VAL), tmp_path / "val")
        assert any("4 images outside of the validation images" in note for note in found.notes)

    def test_several_sets_in_one_folder_are_refused(self, tmp_path):
        in_folders(tmp_path / "a" / "val", VAL, lambda i: WNIDS[i])
        in_folders(tmp_path / "b" / "val", ANY, lambda i: WNIDS[i])
        with pytest.raises(DataError, match=r"several folders val .a/val, b/val., expected one; .*such as .*/a$"):
            recognize(tmp_path)
        assert contents(recognize(tmp_path / "b")) == by_bytes(ANY)

    def test_validation_and_other_images(self, tmp_path):
        flat(flat(tmp_path, "val/"), "holiday/", ANY)
        found = recognize(tmp_path)
        assert len(found.samples) == len(VAL)
        assert any("4 images outside of the validation images: not used" in note for note in found.notes)

    def test_missing_shards(self, tmp_path):
        parquet(tmp_path / "validation-00001-of-00014.parquet", VAL)
        assert any("1 of 14 shards are there" in note for note in recognize(tmp_path).notes)

    @pytest.mark.parametrize(
        ("names", "hint", "text", "said"),
        [
            (["val-000.tar", "val-003.tar"], "x", "", "val-*.tar: of the numbers up to 3, 2 or more are missing"),
            (["val-001.tar", "val-002.tar"], "x", "", None),
            (["n01440764.tar"], "x", "", None),
            (["0.tar"], "nshards.txt", "2\n", "nshards.txt: 1 of 2 shards are there"),
            (["0.tar", "1.tar"], "nshards.txt", "2", None),
            (
                ["0.tar"],
                "_info.json",
                '{"splits": {"a": {"filenames": ["0.tar", "1.tar"]}}}',
                "1 of 2 shards are missing",
            ),
            (["0.tar"], "_info.json", '{"splits": {"a": {"filenames": ["7.tar"]}}}', None),
            (["0.tar"], "_info.json", '{"splits": 5}', None),
        ],
    )
    def test_missing_shards_of_tars(self, tmp_path, names, hint, text, said):
        put(tmp_path, f"d/{hint}", text)
        for number, name in enumerate(names):
            put(tmp_path, f"d/{name}", shard_of(ANY[number : number + 1]))
        told = [note for note in recognize(tmp_path).notes if "missing" in note]
        assert bool(told) == (said is not None)
        assert all(said in note for note in told)


def test_another_form_than_the_one_named(tmp_path):
    flat(tmp_path, "x/", ANY)
    with pytest.raises(DataError, match=r"do not lie in the form kaggle .LOC_val_solution.*Leave out --form"):
        recognize(tmp_path, form="kaggle")
    with pytest.raises(UnknownNameError, match="no form is called 'flat'; known: parquet, "):
        recognize(tmp_path, form="flat")


@pytest.mark.parametrize(
    "build", [test_forms.official_archives, test_forms.official_half_untarred, test_forms.kaggle_zip,
              test_forms.hf_parquet, test_forms.wds_timm, test_forms.hf_tar],
    ids=lambda build: build.__name__,
)  # fmt: skip
def test_training_images_have_the_same_ids_everywhere_so_that_the_same_are_drawn(build, tmp_path):
    folders = dict(training_images(test_forms.valprep(tmp_path / "folders")))
    assert dict(training_images(build(tmp_path / "other"))).keys() == folders.keys()


def test_training_images_of_tables_and_loose_ones(tmp_path):
    assert training_images(put(tmp_path, "x.png", b"")) == []
    in_folders(tmp_path / "loose", TRAIN, lambda i: WNIDS[i])
    assert [name for name, _ in training_images(tmp_path)] == sorted(f"{WNIDS[i]}/{n}" for n, _, i in TRAIN)
    write_image(tmp_path / "train" / "a.png")
    assert [name for name, _ in training_images(tmp_path)] == ["a.png"]
