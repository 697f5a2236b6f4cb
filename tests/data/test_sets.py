import dataclasses
import importlib.util
import io
import tarfile
import zipfile

import pytest

from quantvm.data import DATASETS, fetch_data, load_calibration, load_dataset, sets
from quantvm.errors import DataError, DownloadError, UnknownNameError
from quantvm.storage.download import record_of

from ..storage.loopback import running_web, truncated, whole
from .conftest import WNIDS, write_image


@pytest.fixture
def web():
    with running_web() as web:
        yield web


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "image.png").read_bytes()


@pytest.fixture
def publish(web, monkeypatch):
    """Makes a named set come from the test's server, as an archive of the given files."""

    def publish(name, files, sha256=None):
        content = (tar_of if name in ("imagenetv2", "imagenette") else zip_of)(files)
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], url=web.url, sha256=sha256))
        web.default = whole(content)
        return content

    return publish


def zip_of(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def labels(dataset):
    return {sample.id: sample.label for sample in dataset.samples}


class TestRegistry:
    def test_names(self):
        assert list(DATASETS) == ["sample", "imagenet-samples", "imagenetv2", "imagenette", "imagenet-1k"]

    @pytest.mark.parametrize("named", DATASETS.values(), ids=DATASETS)
    def test_every_set_is_fully_described(self, named):
        assert named.description
        assert named.class_mapping
        assert (named.package is None) == (named.url is not None)
        if named.url:
            assert named.url.startswith("https://")
            assert named.archive_name
            assert named.size_bytes
        assert named.sha256 is None or len(named.sha256) == 64

    def test_an_unknown_name_gets_the_nearest(self):
        with pytest.raises(UnknownNameError, match=r"'imagenete' .did you mean 'imagenette'.*known: sample, "):
            fetch_data("imagenete")


class TestSample:
    def test_twenty_images_with_labels(self):
        pytest.importorskip("foolbox", reason="the extra `sample` is not installed")
        dataset = load_dataset("sample")
        assert len(dataset) == 20
        assert not dataset.is_default
        assert dataset.samples[0].id == "imagenet_00_243.jpg"
        assert [sample.label for sample in dataset.samples[:5]] == [243, 559, 438, 990, 949]

    def test_it_is_the_default_and_says_so(self):
        pytest.importorskip("foolbox", reason="the extra `sample` is not installed")
        default = load_dataset(None)
        assert default.is_default
        assert default.name == "sample"
        assert default.sha256 == load_dataset("sample").sha256

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DataError, match=r"pip install 'quantvm\[sample\]'.*--data DIR"):
            load_dataset(None)

    def test_the_package_is_not_imported(self):
        import subprocess
        import sys

        code = "import sys; from quantvm.data import load_dataset; load_dataset(None); print('foolbox' in sys.modules)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if run.returncode:
            pytest.skip("the extra `sample` is not installed")
        assert run.stdout == "False\n"


class TestDownloaded:
    def test_imagenet_samples(self, publish, image):
        folder = "imagenet-sample-images-master"
        names = [f"{WNIDS[1]}_goldfish.JPEG", f"{WNIDS[999]}_toilet_tissue.JPEG"]
        publish("imagenet-samples", {f"{folder}/README.md": b"#", **{f"{folder}/{name}": image for name in names}})
        assert labels(load_dataset("imagenet-samples")) == {names[0]: 1, names[1]: 999}

    def test_imagenetv2(self, publish, image):
        folder = "imagenetv2-matched-frequency-format-val"
        publish("imagenetv2", {f"{folder}/{label}/a.jpeg": image for label in (0, 2, 10, 999)})
        assert labels(load_dataset("imagenetv2")) == {"0/a.jpeg": 0, "10/a.jpeg": 10, "2/a.jpeg": 2, "999/a.jpeg": 999}

    @pytest.mark.parametrize(("name", "folder"), [("imagenette", "imagenette2-320"), ("imagenet-1k", "imagenet_1k")])
    def test_sets_with_a_train_part(self, publish, image, name, folder):
        files = {f"{folder}/val/{WNIDS[217]}/a.JPEG": image, f"{folder}/train/{WNIDS[217]}/b.JPEG": image}
        publish(name, {**files, f"{folder}/noisy_imagenette.csv": b"x"})
        dataset = load_dataset(name)
        assert labels(dataset) == {f"{WNIDS[217]}/a.JPEG": 217}
        calibration = load_calibration(name, None, num_samples=5, seed=0, evaluation=dataset)
        assert [path.name for path in calibration.images] == ["b.JPEG"]
        assert calibration.source == f"1 of 1 image of {name} (train/)"

    def test_only_the_extracted_folder_and_the_checksum_stay(self, publish, image, cache, web):
        publish("imagenette", {f"i/val/{WNIDS[0]}/a.JPEG": image})
        folder = fetch_data("imagenette")
        assert folder == cache / "data" / "imagenette"
        kept = {path.name for path in folder.parent.iterdir() if path.suffix != ".lock"}
        assert kept == {"imagenette", "imagenette2-320.tgz.sha256.json"}
        assert fetch_data("imagenette") == folder
        assert len(web.requests) == 1

    def test_an_interrupted_download_goes_on_at_the_next_run(self, publish, image, web, monkeypatch):
        monkeypatch.setattr(sets, "download", without_waiting(attempts=1))
        content = publish("imagenette", {f"i/val/{WNIDS[0]}/a.JPEG": image})
        web.answers = [truncated(content, 500)]
        with pytest.raises(DownloadError, match="500 bytes are kept"):
            fetch_data("imagenette")
        assert len(load_dataset("imagenette")) == 1
        assert web.requests[1]["Range"] == "bytes=500-"

    def test_a_dead_link_names_the_alternatives(self, publish, web, cache):
        publish("imagenet-1k", {})
        web.default = lambda handler: handler.send_error(403)
        with pytest.raises(DownloadError, match=r"data set imagenet-1k: .*403") as caught:
            load_dataset("imagenet-1k")
        message = str(caught.value)
        for way in (
            "--data sample",
            "imagenet-samples | imagenetv2 | imagenette",
            "--data DIR",
            str(cache / "data" / "imagenet_1k.zip"),
        ):
            assert way in message

    def test_an_archive_put_there_by_hand(self, publish, image, web, cache):
        content = publish("imagenet-1k", {f"imagenet_1k/val/{WNIDS[5]}/a.JPEG": image})
        (cache / "data").mkdir(parents=True)
        (cache / "data" / "imagenet_1k.zip").write_bytes(content)
        assert labels(load_dataset("imagenet-1k")) == {f"{WNIDS[5]}/a.JPEG": 5}
        assert web.requests == []

    def test_a_wrong_checksum(self, publish, image, cache):
        publish("imagenette", {f"i/val/{WNIDS[0]}/a.JPEG": image}, sha256="0" * 64)
        with pytest.raises(DownloadError, match=f"expected {'0' * 64}"):
            fetch_data("imagenette")
        assert not (cache / "data" / "imagenette").exists()

    def test_a_login_page_is_neither_kept_nor_recorded(self, publish, image, web, cache):
        content = publish("imagenette", {f"i/val/{WNIDS[0]}/a.JPEG": image})
        web.answers = [whole(b"<html>please log in</html>"), whole(content)]
        with pytest.raises(DownloadError, match=r"neither a zip nor a tar.*\nInstead: "):
            fetch_data("imagenette")
        assert fetch_data("imagenette").is_dir()

    def test_a_damaged_archive_put_there_by_hand_is_left(self, publish, cache):
        publish("imagenette", {})
        archive = cache / "data" / "imagenette2-320.tgz"
        archive.parent.mkdir(parents=True)
        archive.write_bytes(b"not what it seems")
        with pytest.raises(DownloadError, match="neither a zip nor a tar"):
            fetch_data("imagenette")
        assert archive.exists()
        assert not record_of(archive).exists()

    def test_an_archive_with_another_layout(self, publish, image, cache):
        publish("imagenette", {"other/a.png": image})
        with pytest.raises(DataError, match=r"data set imagenette: .* has no folder val; remove it"):
            load_dataset("imagenette")

    def test_an_unsafe_archive(self, publish, image, tmp_path, cache):
        publish("imagenette", {"../../evil": b"x"})
        with pytest.raises(DownloadError, match="not safe to extract"):
            fetch_data("imagenette")
        assert not (cache / "data" / "imagenette").exists()

    def test_another_run_that_was_quicker(self, publish, image, web, cache, monkeypatch):
        from contextlib import contextmanager

        @contextmanager
        def busy(path, progress):
            path.mkdir(parents=True)  # while we waited for the lock
            yield

        monkeypatch.setattr(sets, "exclusive", busy)
        publish("imagenette", {})
        assert fetch_data("imagenette") == cache / "data" / "imagenette"
        assert web.requests == []


def without_waiting(**fixed):
    from quantvm.storage.download import download

    return lambda url, path, **options: download(url, path, **{**options, **fixed}, sleep=lambda _: None)
