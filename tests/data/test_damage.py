"""Half a download, damaged and hostile archives: told, never read wrongly, and never anything outside of them."""

import gzip
import io
import pickle
import random
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from quantvm.data import load_calibration, load_dataset
from quantvm.data.gzip_reader import GzipReader, gzip_reader
from quantvm.data.recognition import recognize
from quantvm.data.sources import open_source, order_of_storage
from quantvm.errors import DataError

from .form_builders import ANY, TRAIN, VAL, WNIDS, arrow, flat, parquet, put, shard_of, tar_of, tfrecord, zip_of
from .test_forms import by_bytes, contents

MEMBERS = [(f"{WNIDS[i]}/{n}", c) for n, c, i in VAL]
MARK_BYTES = 512


def readable(found):
    """Returns what can be read, and how many samples cannot."""
    images, n_bad = {}, 0
    for sample in found.samples:
        try:
            images[open_source(sample.source).read()] = sample.label
        except DataError:
            n_bad += 1
    return images, n_bad


class TestCut:
    """However a file is cut, what is missing is told, and the rest is read right."""

    def outcome(self, root):
        try:
            return recognize(root), ""
        except DataError as error:
            return None, str(error)

    def check(self, root, name, content, cuts):
        for cut in cuts:
            put(root, name, content[:cut])
            found, error = self.outcome(root)
            if found is None:
                assert name in error or "no images" in error, cut
                continue
            images, n_bad = readable(found)
            assert images.items() <= by_bytes(VAL).items(), cut
            assert found.damage or images == by_bytes(VAL), cut
            assert n_bad <= 1, cut

    def test_a_tar(self, tmp_path):
        whole = tar_of(MEMBERS)
        end = len(tar_of(MEMBERS, end=False))
        self.check(tmp_path, "val.tar", whole, [*range(0, end + 2048, 512), *range(700, end, 997)])
        put(tmp_path, "val.tar", whole[:end])
        assert "cut off: it has no mark of its end" in recognize(tmp_path).damage[0]
        put(tmp_path, "val.tar", whole[: end + MARK_BYTES])
        assert recognize(tmp_path).damage == []

    def test_a_tar_inside_of_a_tar(self, tmp_path):
        inner = [(f"{n[:9]}.tar", tar_of([(n, c)])[:-9000]) for n, c, _ in TRAIN]
        put(tmp_path, "classes.tar", tar_of(inner))
        found = recognize(tmp_path)
        assert len(found.damage) == len(TRAIN)
        assert "classes.tar!n01440764.tar is cut off: it has no mark of its end" in found.damage[0]

    @pytest.mark.parametrize("make", [zip_of, lambda members: gzip.compress(tar_of(members))], ids=["zip", "tar.gz"])
    def test_compressed_archives(self, tmp_path, make):
        whole = make(MEMBERS)
        self.check(tmp_path, "val.bin", whole, random.Random(0).sample(range(len(whole)), 60))

    @pytest.mark.parametrize("kind", ["parquet", "arrow", "tfrecord"])
    def test_tables(self, tmp_path, kind):
        path = tmp_path / "made"
        if kind == "tfrecord":
            put(tmp_path, "made", tfrecord([{"file_name": n.encode(), "image": c, "label": i} for n, c, i in VAL]))
        else:
            (parquet if kind == "parquet" else arrow)(path, VAL)
        whole = path.read_bytes()
        path.unlink()
        self.check(tmp_path, f"val.{kind}", whole, random.Random(0).sample(range(len(whole) - 9), 60))

    def test_garbage_in_the_middle(self, tmp_path):
        whole = bytearray(tar_of(MEMBERS))
        second = whole.index(MEMBERS[1][0].encode())
        whole[second : second + 512] = b"x" * 512
        put(tmp_path, "val.tar", bytes(whole))
        found = recognize(tmp_path)
        assert len(found.samples) == 1
        assert f"damaged at byte {second:,}: no member begins there" in found.damage[0]

    def test_zeros_in_the_middle_are_no_end(self, tmp_path):
        whole = bytearray(tar_of(MEMBERS))
        second = whole.index(MEMBERS[1][0].encode())
        whole[second : second + 512] = bytes(512)
        put(tmp_path, "val.tar", bytes(whole))
        assert f"a mark of its end at byte {second:,}, and more behind that" in recognize(tmp_path).damage[0]
        put(tmp_path, "val.tar", tar_of(MEMBERS[:4]) + tar_of(MEMBERS[4:], end=False))
        assert "and more behind that" in recognize(tmp_path).damage[0]


class TestHalfADownload:
    def test_a_run_stops_or_leaves_out_what_is_cut(self, tmp_path):
        whole = tar_of(MEMBERS)
        put(tmp_path, "val.tar", whole[: whole.index(MEMBERS[-1][1]) + 20])
        with pytest.raises(DataError, match=r"(?s)images may be missing:.*val\.tar is damaged or cut off.*-image skip"):
            load_dataset(tmp_path)
        dataset = load_dataset(tmp_path, on_bad_image="skip")
        assert len(dataset) == len(VAL) - 1
        assert [str(bad.source) for bad in dataset.bad] == [f"{tmp_path}/val.tar!{MEMBERS[-1][0]}"]
        assert any("cut off" in note for note in dataset.notes)

    def test_pointers_of_git_lfs(self, tmp_path):
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
        put(tmp_path, "data/validation-00000-of-00001.parquet", pointer)
        with pytest.raises(DataError, match=r"validation-00000-of-00001\.parquet .*pointers of Git LFS.*`git lfs "):
            recognize(tmp_path)
        put(tmp_path / "images", f"{WNIDS[0]}/a.JPEG", pointer)
        with pytest.raises(DataError, match=r"a\.JPEG: a pointer of Git LFS and not the image"):
            load_dataset(tmp_path / "images")

    def test_links_whose_blob_is_missing(self, tmp_path):
        data = tmp_path / "datasets--ILSVRC--imagenet-1k/snapshots/49e2/data"
        parquet(data / "validation-00000-of-00002.parquet", VAL)
        (data / "validation-00001-of-00002.parquet").symlink_to("../../../blobs/missing")
        found = recognize(tmp_path)
        assert "validation-00001-of-00002.parquet" in found.damage[0]
        assert "links to missing files" in found.damage[0]
        assert "hf download" in found.damage[0]
        (data / "validation-00000-of-00002.parquet").unlink()
        with pytest.raises(DataError, match=r"no image can be read\. .*links to missing files"):
            recognize(tmp_path)

    def test_an_archive_of_another_kind(self, tmp_path):
        put(tmp_path, "val.tar.xz", b"\xfd7zXZ\0" + b"x" * 600)
        with pytest.raises(DataError, match=r"val\.tar\.xz is an archive of a kind that is not read; unpack it"):
            recognize(tmp_path)

    def test_a_login_page(self, tmp_path):
        put(tmp_path, "val.tar", "<html>please log in</html>" * 30)
        with pytest.raises(DataError, match=r"val\.tar .780 bytes. is not what its name says"):
            recognize(tmp_path)

    def test_training_images_that_are_cut(self, tmp_path):
        flat(tmp_path, "val/")
        put(tmp_path, "ILSVRC2012_img_train.tar", tar_of((n, c) for n, c, _ in TRAIN)[:1500])
        evaluation = load_dataset(tmp_path)
        with pytest.raises(DataError, match=r"calibration: .*img_train\.tar .*cut off.*--calibration-data"):
            load_calibration(tmp_path, None, num_samples=4, seed=0, evaluation=evaluation)

    def test_tables_inside_of_archives_are_told(self, tmp_path):
        content = parquet(tmp_path / "x.parquet", VAL).read_bytes()
        (tmp_path / "x.parquet").unlink()
        put(tmp_path, "set.tar", tar_of([("data/val.parquet", content)]))
        with pytest.raises(DataError, match=r"got no images.*set\.tar!data/val\.parquet: a table.*unpack that"):
            recognize(tmp_path)


class TestHostile:
    def test_names_that_lead_out_are_left_out(self, tmp_path):
        members = [*MEMBERS, (f"../{WNIDS[0]}/a.png", b"x" * 600), (f"/etc/{WNIDS[0]}/b.png", b"y" * 600)]
        put(tmp_path, "val.tar", tar_of(members))
        found = recognize(tmp_path)
        assert contents(found) == by_bytes(VAL)
        assert any("2 members are left out, since their names lead out" in note for note in found.notes)
        put(tmp_path, "val.tar", zip_of(members))
        assert contents(recognize(tmp_path)) == by_bytes(VAL)

    def test_links_are_not_followed_but_hard_links_to_members_are(self, tmp_path):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for kind, name, target in (
                (tarfile.REGTYPE, f"{WNIDS[1]}/a.png", ""),
                (tarfile.LNKTYPE, f"{WNIDS[2]}/b.png", f"{WNIDS[1]}/a.png"),
                (tarfile.SYMTYPE, f"{WNIDS[3]}/c.png", "/etc/passwd"),
                (tarfile.LNKTYPE, f"{WNIDS[4]}/d.png", "etc/passwd"),
                (tarfile.FIFOTYPE, f"{WNIDS[5]}/e.png", ""),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                info.size = len(ANY[0][1]) if kind == tarfile.REGTYPE else 0
                archive.addfile(info, io.BytesIO(ANY[0][1]) if info.size else None)
        put(tmp_path, "val.tar", file.getvalue())
        found = recognize(tmp_path)
        assert sorted(sample.label for sample in found.samples) == [1, 2]
        assert {open_source(sample.source).read() for sample in found.samples} == {ANY[0][1]}
        assert any("3 links, devices or sparse files are not read" in note for note in found.notes)

    def test_a_size_that_is_a_lie(self, tmp_path):
        whole = bytearray(tar_of(MEMBERS))
        whole[124:136] = b"77777777777\0"
        whole[148:156] = b" " * 8
        whole[148:156] = b"%06o\0 " % sum(whole[:512])
        put(tmp_path, "val.tar", bytes(whole))
        with pytest.raises(DataError, match=r"no image can be read.*val\.tar"):
            recognize(tmp_path)

    def test_a_gzip_bomb_is_not_read_to_its_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr("quantvm.data.gzip_reader._ALWAYS_ALLOWED_BYTES", 1 << 20)
        put(tmp_path, "val.tar.gz", gzip.compress(tar_of([(f"{WNIDS[0]}/a.png", bytes(1 << 24))])))
        with pytest.raises(DataError, match=r"unpack to more than .* images do not shrink so much"):
            recognize(tmp_path)

    def test_a_zip_bomb_is_not_unpacked(self, tmp_path):
        put(tmp_path, "val.zip", zip_of([(f"{WNIDS[0]}/a.png", bytes(1 << 22))]))
        (sample,) = recognize(tmp_path).samples
        content = (tmp_path / "val.zip").read_bytes()
        place = content.index(b"PK\1\2") + 24
        put(tmp_path, "val.zip", content[:place] + (1000).to_bytes(4, "little") + content[place + 4 :])
        (sample,) = recognize(tmp_path).samples
        with pytest.raises(DataError, match="checksum does not fit"):
            open_source(sample.source)

    def test_archives_inside_of_each_other_end(self, tmp_path):
        content = tar_of(MEMBERS)
        for _ in range(6):
            content = tar_of([("x.tar", content)])
        put(tmp_path, "val.tar", content)
        with pytest.raises(DataError, match="archives inside of each other, more than 3 deep"):
            recognize(tmp_path)

    def test_an_encrypted_member(self, tmp_path):
        content = bytearray(zip_of(MEMBERS))
        place = content.index(b"PK\1\2") + 8
        content[place] |= 1
        put(tmp_path, "val.zip", bytes(content))
        assert "1 members are encrypted" in recognize(tmp_path).damage[0]


class TestReadingInPlace:
    @pytest.fixture(params=["tar", "stored zip", "deflated zip", "tar.gz", "parquet"])
    def found(self, request, tmp_path, monkeypatch):
        monkeypatch.setattr("quantvm.data.gzip_reader._STEP_BYTES", 700)
        monkeypatch.setattr("quantvm.data.gzip_reader._CHUNK_BYTES", 300)
        monkeypatch.setattr("quantvm.data.gzip_reader._MOST_STATES", 4)
        gzip_readers_are_new()
        if request.param == "parquet":
            parquet(tmp_path / "val.parquet", VAL)
        else:
            method = zipfile.ZIP_STORED if request.param == "stored zip" else zipfile.ZIP_DEFLATED
            content = zip_of(MEMBERS, method) if "zip" in request.param else tar_of(MEMBERS)
            put(tmp_path, "val", gzip.compress(content) if request.param == "tar.gz" else content)
        return recognize(tmp_path)

    def test_in_any_order_by_many_threads_and_after_pickling(self, found):
        assert contents(found) == by_bytes(VAL)
        samples = pickle.loads(pickle.dumps(random.Random(1).choices(found.samples, k=200)))
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda sample: open_source(sample.source).read(), samples))
        assert [by_bytes(VAL)[content] for content in read] == [sample.label for sample in samples]

    def test_the_order_of_storage(self, found):
        places = [order_of_storage(sample.source) for sample in found.samples]
        assert places == sorted(places)
        assert len(set(places)) == len(VAL)

    def test_no_archive_is_left_open_for_writing_or_unpacked(self, found, tmp_path):
        assert len(list(tmp_path.rglob("*"))) == 1


def gzip_readers_are_new():
    from quantvm.data import gzip_reader as module

    module._reader_of_process.cache_clear()


class TestGzipReader:
    def test_every_place_of_several_gzip_files_in_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr("quantvm.data.gzip_reader._STEP_BYTES", 1000)
        monkeypatch.setattr("quantvm.data.gzip_reader._CHUNK_BYTES", 128)
        content = random.Random(0).randbytes(9000)
        packed = gzip.compress(content[:4000]) + gzip.compress(content[4000:]) + bytes(100)
        path = put(tmp_path, "x", b"before" + packed + b"behind") / "x"
        reader = GzipReader(path, 6, len(packed))
        for offset in random.Random(1).sample(range(9100), 300):
            assert reader.read_at(offset, 50) == content[offset : offset + 50]

    def test_a_process_gets_its_own(self, tmp_path, monkeypatch):
        path = put(tmp_path, "x", gzip.compress(b"content")) / "x"
        size = path.stat().st_size
        assert gzip_reader(path, 0, size) is gzip_reader(path, 0, size)
        first = gzip_reader(path, 0, size)
        monkeypatch.setattr("os.getpid", lambda: -1)
        assert gzip_reader(path, 0, size) is not first


def test_members_names_are_normal_and_unique(tmp_path):
    put(tmp_path, "0.tar", tar_of([(f"./{name}", content) for name, content in MEMBERS]))
    assert contents(recognize(tmp_path)) == by_bytes(VAL)


def test_shards_are_read_in_order_of_storage(tmp_path):
    put(tmp_path, "val-00.tar", shard_of(VAL[4:]))
    put(tmp_path, "val-01.tar", shard_of(VAL[:4]))
    dataset = recognize(tmp_path)
    names = [sample.id for sample in dataset.samples]
    assert [name[:9] for name in names] == ["val-00.ta"] * 4 + ["val-01.ta"] * 4


def containers(folder):
    parquet(folder / "p", VAL)
    arrow(folder / "a", VAL)
    tables = {"v.parquet": (folder / "p").read_bytes(), "v.arrow": (folder / "a").read_bytes()}
    for name in "pa":
        (folder / name).unlink()
    return {
        "v.tar": tar_of(MEMBERS),
        "v.tar.gz": gzip.compress(tar_of(MEMBERS)),
        "v.zip": zip_of(MEMBERS),
        "s.tar": shard_of(VAL),
        "validation-00000-of-00001": tfrecord([{"file_name": n.encode(), "image": c, "label": i} for n, c, i in VAL]),
        **tables,
    }


def spoiled(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        place, how = rng.randrange(len(content)), rng.random()
        if how < 0.5:
            content[rng.randrange(min(len(content), rng.choice([64, 600, 1 << 20])))] = rng.randrange(256)
        elif how < 0.7:
            content[place : place + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(40))
        elif how < 0.85:
            content[place : place + 8] = b"\xff" * 8
        else:
            del content[place:]
        content = content or bytearray(b"x")
    return bytes(content)


def check_spoiled(folder, seed, count):
    """Spoiled files raise errors of our own only, and an image that can be read has its true class."""
    rng = random.Random(seed)
    whole = containers(folder)
    for _ in range(count):
        name = rng.choice(list(whole))
        put(folder, name, spoiled(whole[name], rng))
        try:
            found = recognize(folder)
        except DataError:
            found = None
        if found is not None:
            images, _ = readable(found)
            assert all(by_bytes(VAL).get(content, label) == label for content, label in images.items())
        (folder / name).unlink()


def test_spoiled_files(tmp_path):
    check_spoiled(tmp_path, 0, 120)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_spoiled_files(tmp_path, seed):
    check_spoiled(tmp_path, seed, 1000)


def test_a_table_with_offsets_that_lie(tmp_path):
    """Pyarrow checks none of them by itself."""
    arrow(tmp_path / "v.arrow", VAL)
    content = (tmp_path / "v.arrow").read_bytes()
    lengths = [len(f"{name[:-5]}_n01440764.JPEG") for name, _, _ in VAL]
    offsets = b"".join(sum(lengths[:place]).to_bytes(4, "little") for place in range(4))
    assert offsets in content
    (tmp_path / "v.arrow").write_bytes(content.replace(offsets, offsets[:4] + b"\xff\xff\xff\x7f" + offsets[8:], 1))
    with pytest.raises(DataError, match=r"v\.arrow: damaged or cut off"):
        recognize(tmp_path)


def test_a_zip_file_whose_members_lie_outside(tmp_path):
    content = zip_of(MEMBERS)
    place = content.index(b"PK\1\2") + 42
    put(tmp_path, "v.zip", content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
    assert "1 members lie outside of it" in recognize(tmp_path).damage[0]
