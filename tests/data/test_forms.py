"""Every form of ImageNet is read with the true classes and the same bytes, whatever its files are called."""

import gzip
import json
import zipfile

import pytest

from quantvm.choices import DATA_FORMS
from quantvm.data.forms import FORMS
from quantvm.data.recognition import recognize, training_images
from quantvm.data.sources import open_source

from . import form_builders as make
from .form_builders import ANY, CLASSES, IDS, LINES, NAMES, TRAIN, VAL, WNIDS, flat, in_folders, label_of, put, tar_of


def official_archives(root):
    put(root, "ILSVRC2012_img_val.tar", tar_of((n, c) for n, c, _ in make.shuffled(VAL)))
    put(root, "ILSVRC2012_img_train.tar", tar_of(make.class_tars()))
    return put(root, "ILSVRC2012_devkit_t12.tar.gz", make.devkit_tar())


def official_half_untarred(root):
    flat(root, "ILSVRC2012_img_val/")
    for name, content in make.class_tars()[:2]:
        put(root, f"ILSVRC2012_img_train/{name}", content)
    for name, content, _ in TRAIN[2:]:
        put(root, f"ILSVRC2012_img_train/{name[:9]}/{name}", content)
    return put(root, "ILSVRC2012_devkit_t12.tar.gz", make.devkit_tar())


def official_untarred(root):
    flat(root, "val/")
    in_folders(root / "train", TRAIN, lambda i: WNIDS[i])
    for name, content in make.devkit():
        put(root, name, content)
    return root


def clsloc_devkit(root):
    flat(root, "ILSVRC/Data/CLS-LOC/val/")
    data = "ILSVRC/devkit/data"
    put(root, f"{data}/map_clsloc.txt", "".join(f"{item.wnid} {item.ilsvrc2012_id} {item.name}\n" for item in CLASSES))
    truth = "".join(f"{IDS[label_of(n)]}\n" for n in range(1, LINES + 1))
    put(root, f"{data}/ILSVRC2015_clsloc_validation_ground_truth.txt", truth)
    return put(root, f"{data}/ILSVRC2015_clsloc_validation_blacklist.txt", "6\n17\n")


def kaggle(root):
    for name, content in make.kaggle_files():
        put(root, name, content)
    return root


def kaggle_zip(root):
    return put(root, "imagenet-object-localization-challenge.zip", make.zip_of(make.kaggle_files()))


def kaggle_tar_gz(root):
    members = [(f"imagenet_object_localization_patched2019/{name}", content) for name, content in make.kaggle_files()]
    return put(root, "patched2019.tar.gz", gzip.compress(tar_of(members)))


def valprep(root):
    in_folders(root / "val", VAL, lambda i: WNIDS[i])
    return in_folders(root / "train", TRAIN, lambda i: WNIDS[i]).parent


def torchvision_root(root):
    put(valprep(root), "meta.bin", make.zip_of([("meta/data.pkl", b"\x80\x02cos\nsystem\n.")], zipfile.ZIP_STORED))
    return put(root, "ILSVRC2012_devkit_t12.tar.gz", make.devkit_tar())


def wnid_name_folders(root):
    return in_folders(root / "val", VAL, lambda i: f"{WNIDS[i]}_{NAMES[i]}").parent


def wnid_name_files(root):
    return flat(root, "", [(f"{WNIDS[i]}_{NAMES[i]}.JPEG", c, i) for _, c, i in VAL])


def name_folders(root):
    return in_folders(root / "val", ANY, lambda i: NAMES[i].replace("_", " ").title()).parent


def imagenetv2(root):
    return in_folders(root / "imagenetv2-matched-frequency-format-val", ANY, str).parent


def index_folders_padded(root):
    return in_folders(root / "val", VAL, lambda i: f"{i:05d}").parent


def imagenette(root):
    data = root / "imagenette2-320"
    in_folders(data / "val", TRAIN[:2], lambda i: WNIDS[i])
    in_folders(data / "train", TRAIN[2:], lambda i: WNIDS[i])
    put(data, "noisy_imagenette.csv", "path,noisy_labels_0,is_valid\n" + f"val/x.JPEG,{WNIDS[7]},True\n")
    put(data, "val/.DS_Store", b"\0\0\0\1Bud1")
    put(data, f"val/{WNIDS[0]}/._{TRAIN[0][0]}", b"\0\5\x16\7")
    return root


def imagenet_r(root):
    pictures = [(f"art_{place}.jpg", c, i) for place, (_, c, i) in enumerate(ANY)]
    put(root, "imagenet-r/README.txt", "n01498041 stingray\nn01440764 tench\n")
    return in_folders(root / "imagenet-r", pictures, lambda i: WNIDS[i]).parent


def val_txt(root):
    flat(root, "val/")
    return put(root, "val.txt", make.lines_of(make.shuffled(VAL), lambda n, i: f"{n} {i}\n"))


def val_map(root):
    flat(root, "")
    return put(root, "val_map.txt", make.lines_of(VAL, lambda n, i: f"{n}\t{i}\n"))


def val_list(root):
    flat(root, "val/")
    in_folders(root / "train", TRAIN, lambda i: WNIDS[i])
    put(root, "train_list.txt", make.lines_of(TRAIN, lambda n, i: f"train/{n[:9]}/{n} {i}\n"))
    return put(root, "val_list.txt", make.lines_of(VAL, lambda n, i: f"val/{n.replace('JPEG', 'jpeg')} {i}\n"))


def labels_csv(root):
    flat(root, "images/")
    return put(root, "labels.csv", "filename,label\n" + make.lines_of(VAL, lambda n, i: f"{n},{i}\n"))


def wnid_csv(root):
    flat(root, "images/", ANY)
    return put(root, "labels.csv", "filename,wnid\r\n" + make.lines_of(ANY, lambda n, i: f"{n},{WNIDS[i]}\r\n"))


def list_of_others(root):
    flat(root, "images/", ANY)
    return put(root, "truth.lst", make.lines_of(ANY, lambda n, i: f"./images/{n} {i}\n"))


def synset_labels(root):
    flat(root, "val/")
    lines = "".join(f"{WNIDS[label_of(n)]}\n" for n in range(1, LINES + 1))
    return put(root, "imagenet_2012_validation_synset_labels.txt", lines)


def no_labels(root):
    return flat(root, "")


def val_tar_alone(root):
    return put(root, "ILSVRC2012_img_val.tar", tar_of((n, c) for n, c, _ in VAL))


def hf_parquet(root):
    make.parquet(root / "data/validation-00000-of-00002.parquet", VAL[:5])
    make.parquet(root / "data/validation-00001-of-00002.parquet", VAL[5:])
    make.parquet(root / "data/train-00000-of-00001.parquet", TRAIN)
    make.parquet(root / "data/test-00000-of-00001.parquet", [("ILSVRC2012_test_00000001.JPEG", make.picture(9), -1)])
    return root


def hf_snapshot(root):
    hub = root / "datasets--ILSVRC--imagenet-1k"
    make.parquet(hub / "blobs/0123456789abcdef", VAL)
    (hub / "snapshots/49e2/data").mkdir(parents=True)
    (hub / "snapshots/49e2/data/validation-00000-of-00001.parquet").symlink_to("../../../blobs/0123456789abcdef")
    (hub / "snapshots/49e2/data/train-00000-of-00001.parquet").symlink_to("../../../blobs/missing")
    return put(root, "datasets--ILSVRC--imagenet-1k/refs/main", "49e2")


def hf_mirror(root):
    make.parquet(root / "data/train-00000-of-00001-1ce8a97d12e20fb9.parquet", VAL)
    return root


def hf_converted(root):
    make.parquet(root / "default/validation/0000.parquet", VAL, wnid_in_path=False)
    return root


def hf_imagenette(root):
    """Its labels count its own ten classes, whose names the file holds."""
    make.parquet(
        root / "data/validation.parquet",
        [(name, content, place) for place, (name, content, _) in enumerate(ANY)],
        wnid_in_path=False,
        names=[NAMES[i] for _, _, i in ANY],
    )
    return root


def hf_arrow_cache(root):
    make.arrow(root / "ILSVRC___imagenet-1k/default/0.0.0/49e2/imagenet-1k-validation.arrow", VAL)
    return root


def hf_tar(root):
    members = [(f"{n[:-5]}_{WNIDS[i]}.JPEG", c) for n, c, i in VAL]
    put(root, "data/train_images_0.tar.gz", gzip.compress(tar_of((n, c) for n, c, _ in TRAIN)))
    return put(root, "data/val_images.tar.gz", gzip.compress(tar_of(members)))


def hf_flat_suffix(root):
    return flat(root, "val_images/", [(f"{n[:-5]}_{WNIDS[i]}.JPEG", c, i) for n, c, i in VAL])


def wds_timm(root):
    put(root, "imagenet1k-train-0000.tar", make.shard_of(TRAIN))
    put(root, "imagenet1k-validation-00.tar", make.shard_of(VAL[:5]))
    put(root, "_info.json", json.dumps({"splits": {}}))
    return put(root, "imagenet1k-validation-01.tar", make.shard_of(VAL[5:]))


def wds_imagenet(root):
    shard = make.shard_of(VAL, lambda n, place, i: f"{WNIDS[i]}/{place:08d}", "jpeg")
    return put(root, "imagenet-val-000000.tar", shard)


def wds_clip_benchmark(root):
    put(root, "test/nshards.txt", "1")
    return put(root, "test/0.tar", make.shard_of(ANY, lambda n, place, i: f"s{place:07d}"))


def wds_untarred(root):
    for name, content, label in ANY:
        put(put(root, f"shard/{name}", content), f"shard/{name[:-4]}.cls", str(label))
    return root


def wds_json(root):
    members = []
    for name, content, label in ANY:
        members += [(name, content), (f"{name[:-4]}.json", json.dumps({"filename": name, "label": label}).encode())]
    return put(root, "shard-000000.tar", tar_of(members))


def tfds(root):
    examples = [{"file_name": n.encode(), "image": c, "label": i} for n, c, i in VAL]
    return put(root, "imagenet2012/5.1.0/imagenet2012-validation.tfrecord-00000-of-00001", make.tfrecord(examples))


def tf_slim(root):
    examples = [
        {"image/encoded": c, "image/class/label": i + 1, "image/class/synset": WNIDS[i].encode()} for _, c, i in ANY
    ]
    return put(root, "validation-00000-of-00001", make.tfrecord(examples))


INSTANCES = {
    official_archives: ("devkit", VAL, TRAIN),
    official_half_untarred: ("devkit", VAL, TRAIN),
    official_untarred: ("devkit", VAL, TRAIN),
    clsloc_devkit: ("devkit", VAL, []),
    kaggle: ("kaggle", VAL, TRAIN),
    kaggle_zip: ("kaggle", VAL, TRAIN),
    kaggle_tar_gz: ("kaggle", VAL, TRAIN),
    valprep: ("wnid-folders", VAL, TRAIN),
    torchvision_root: ("wnid-folders", VAL, TRAIN),
    wnid_name_folders: ("wnid-folders", VAL, []),
    wnid_name_files: ("wnid-names", VAL, []),
    name_folders: ("name-folders", ANY, []),
    imagenetv2: ("index-folders", ANY, []),
    index_folders_padded: ("index-folders", VAL, []),
    imagenette: ("wnid-folders", TRAIN[:2], TRAIN[2:]),
    imagenet_r: ("wnid-folders", ANY, []),
    val_txt: ("label-list", VAL, []),
    val_map: ("label-list", VAL, []),
    val_list: ("label-list", VAL, TRAIN),
    labels_csv: ("label-list", VAL, []),
    wnid_csv: ("label-list", ANY, []),
    list_of_others: ("label-list", ANY, []),
    synset_labels: ("synset-list", VAL, []),
    no_labels: ("validation-numbers", VAL, []),
    val_tar_alone: ("validation-numbers", VAL, []),
    hf_parquet: ("parquet", VAL, TRAIN),
    hf_mirror: ("parquet", VAL, []),
    hf_snapshot: ("parquet", VAL, None),
    hf_converted: ("parquet", VAL, []),
    hf_imagenette: ("parquet", ANY, []),
    hf_arrow_cache: ("arrow", VAL, []),
    hf_tar: ("wnid-names", VAL, TRAIN),
    hf_flat_suffix: ("wnid-names", VAL, []),
    wds_timm: ("webdataset", VAL, TRAIN),
    wds_imagenet: ("webdataset", VAL, []),
    wds_clip_benchmark: ("webdataset", ANY, []),
    wds_untarred: ("webdataset", ANY, []),
    wds_json: ("webdataset", ANY, []),
    tfds: ("tfrecord", VAL, []),
    tf_slim: ("tfrecord", ANY, []),
}


def contents(found):
    """Returns the class of every image by its bytes."""
    return {open_source(sample.source).read(): sample.label for sample in found.samples}


def by_bytes(pictures):
    return {content: label for _, content, label in pictures}


@pytest.mark.parametrize("build", INSTANCES, ids=lambda build: build.__name__)
def test_a_form_is_read_with_the_true_classes_and_the_same_bytes(build, tmp_path):
    form, evaluated, training = INSTANCES[build]
    found = recognize(build(tmp_path))
    assert contents(found) == by_bytes(evaluated)
    assert found.form == form
    assert found.damage == []
    assert found.labels
    assert found.summary.startswith(f"{len(evaluated)} images of {len(by_bytes(evaluated).values())} classes")
    assert len({sample.id for sample in found.samples}) == len(evaluated)
    if training is not None:
        images = {open_source(source).read() for _, source in training_images(tmp_path)}
        assert images == {content for _, content, _ in training}


@pytest.mark.parametrize("build", [valprep, val_txt, val_tar_alone, hf_parquet, kaggle_zip], ids=lambda f: f.__name__)
def test_a_folder_around_it_and_clutter_beside_it_change_nothing(build, tmp_path):
    build(tmp_path / "my sets" / "imagenet")
    put(tmp_path, "my sets/notes.md", "# what I have")
    put(tmp_path, "my sets/imagenet/__MACOSX/._x.JPEG", "x")
    put(tmp_path, "my sets/imagenet/.DS_Store", "x")
    put(tmp_path, "my sets/imagenet/SHA256SUMS", "0123  a\n4567  b\n")
    assert contents(recognize(tmp_path)) == by_bytes(VAL)


def test_the_table_of_forms_and_the_option_name_the_same(tmp_path):
    assert tuple(FORMS) == DATA_FORMS
    assert {form for form, _, _ in INSTANCES.values()} == set(DATA_FORMS)
    assert all(form.recognized_by and form.labels for form in FORMS.values())


class TestIds:
    """Ids choose subsets, and their hash stands in results."""

    @pytest.mark.parametrize(
        ("build", "root", "first"),
        [
            (valprep, "val", f"{WNIDS[57]}/ILSVRC2012_val_00000006.JPEG"),
            (val_txt, "val", "ILSVRC2012_val_00000001.JPEG"),
            (official_archives, "ILSVRC2012_img_val.tar", "ILSVRC2012_val_00000001.JPEG"),
            (
                kaggle_zip,
                "imagenet-object-localization-challenge.zip!ILSVRC/Data/CLS-LOC/val",
                "ILSVRC2012_val_00000001.JPEG",
            ),
            (wds_timm, "", "imagenet1k-validation-00.tar!ILSVRC2012_val_00000001.jpg"),
            (hf_parquet, "data", "validation-00000-of-00002.parquet!0"),
        ],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_they_are_relative_to_what_holds_all_images(self, build, root, first, tmp_path):
        found = recognize(build(tmp_path))
        assert found.root == tmp_path / root
        assert min(sample.id for sample in found.samples) == first


class TestNamesProveNothing:
    def test_renamed_files(self, tmp_path):
        put(tmp_path, "photos", tar_of((n, c) for n, c, _ in VAL))
        put(tmp_path, "kit", make.devkit_tar())
        assert recognize(tmp_path).form == "devkit"
        assert contents(recognize(tmp_path)) == by_bytes(VAL)

    def test_renamed_folders_of_both_parts(self, tmp_path):
        flat(tmp_path, "a/")
        in_folders(tmp_path / "b", TRAIN, lambda i: WNIDS[i])
        put(tmp_path, "c.txt", make.lines_of(VAL, lambda n, i: f"{n} {i}\n"))
        assert contents(recognize(tmp_path)) == by_bytes(VAL)
        assert len(training_images(tmp_path)) == len(TRAIN)

    def test_renamed_tables_and_columns(self, tmp_path):
        table = make.table_of(VAL).rename_columns(["picture", "answer"])
        (tmp_path / "x").mkdir()
        make.pq.write_table(table, tmp_path / "x" / "part-0")
        assert contents(recognize(tmp_path)) == by_bytes(VAL)

    def test_renamed_images(self, tmp_path):
        pictures = [(name.lower().replace("jpeg", "jpg"), c, i) for name, c, i in VAL]
        flat(tmp_path, "x/", pictures)
        put(tmp_path, "y.txt", make.lines_of(VAL, lambda n, i: f"{n} {i}\n"))
        assert contents(recognize(tmp_path)) == by_bytes(VAL)

    def test_images_without_a_suffix(self, tmp_path):
        in_folders(tmp_path, [(name[:-5], c, i) for name, c, i in VAL], lambda i: WNIDS[i])
        assert contents(recognize(tmp_path)) == by_bytes(VAL)

    def test_sharded_folders_archives_and_lists(self, tmp_path):
        flat(tmp_path, "part/0/", VAL[:2])
        flat(tmp_path, "part/1/", VAL[2:4])
        put(tmp_path, "part/2.tar", tar_of((n, c) for n, c, _ in VAL[4:6]))
        put(tmp_path, "part/3.zip", make.zip_of((n, c) for n, c, _ in VAL[6:]))
        put(tmp_path, "one.txt", make.lines_of(VAL[:3], lambda n, i: f"{n} {i}\n"))
        put(tmp_path, "two.txt", make.lines_of(VAL[3:], lambda n, i: f"{n} {i}\n"))
        assert contents(recognize(tmp_path)) == by_bytes(VAL)

    def test_sharded_lists_of_images_without_numbers(self, tmp_path):
        flat(tmp_path, "images/", ANY)
        put(tmp_path, "one.txt", make.lines_of(ANY[:2], lambda n, i: f"{n} {i}\n"))
        put(tmp_path, "two.txt", make.lines_of(ANY[2:], lambda n, i: f"{n} {i}\n"))
        assert contents(recognize(tmp_path)) == by_bytes(ANY)

    def test_a_shuffled_shard(self, tmp_path):
        members = [(f"{n}.cls", str(i).encode()) for n, _, i in ANY] + [(f"{n}.png", c) for n, c, _ in ANY]
        put(tmp_path, "x.tar", tar_of(make.shuffled(members)))
        assert contents(recognize(tmp_path)) == by_bytes(ANY)

    def test_an_archive_alone_as_the_data(self, tmp_path):
        val_txt(tmp_path)
        archive = tmp_path / "v.tar"
        archive.write_bytes(tar_of((n, c) for n, c, _ in VAL))
        found = recognize(archive)
        assert contents(found) == by_bytes(VAL)
        assert found.root == archive

    def test_an_archive_and_its_files_are_used_once(self, tmp_path):
        flat(official_archives(tmp_path), "ILSVRC2012_img_val/")
        found = recognize(tmp_path)
        assert len(found.samples) == len(VAL)
        assert any(f"{len(VAL)} images lie in an archive and also beside it" in note for note in found.notes)
