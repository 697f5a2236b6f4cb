"""The images of an evaluation, with fake models on real files."""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from quantvm.data import PreparedImages, iterate_parts, load_calibration, load_dataset, prepared
from quantvm.data.preprocess import Preprocessing, load_rgb
from quantvm.errors import ConfigError, DataError
from quantvm.jobs.evaluation.float_answers import clear_float_answers, kept_float_answers

from .fakes import FakeWorkload, evaluate
from .test_resume import run_json, samples

N = 11
OPTIONS = {"batch_size": 2, "shard_size": 4, "class_map": "sorted", "weights": "random"}


class OnFiles(FakeWorkload):
    """Models of two preprocessings, with one geometry each."""

    def get_model(self, name):
        crop = 4 if name == "alpha" else 6
        spec = super().get_model(name)
        return SimpleNamespace(**{**vars(spec), "preprocessing": Preprocessing(8, crop)})

    def load_dataset(self, data, **options):
        return load_dataset(data, **options)

    def load_calibration(self, data, calibration_data, **options):
        return load_calibration(data, calibration_data, **options)

    def iterate_parts(self, *arguments, **options):
        return iterate_parts(*arguments, **options)


@pytest.fixture
def data(tmp_path):
    for number in range(N):
        path = tmp_path / "data" / "val" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels_u8 = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels_u8).save(path)
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch):
    found = []
    for module in (prepared, import_module("quantvm.data.preprocess")):
        monkeypatch.setattr(module, "load_rgb", lambda source, *rest: found.append(source) or load_rgb(source, *rest))
    return found


def test_each_image_is_decoded_once_for_all_models_and_the_check(tmp_path, data, decoded):
    result = evaluate(OnFiles(), data=data, out=tmp_path / "run", **OPTIONS)
    assert [row["n_images"] for row in result.run["models"]] == [N, N]
    assert sorted(decoded) == sorted(data.rglob("*.png"))
    assert not (tmp_path / "run" / "images").exists()


@pytest.mark.parametrize("cache", ["none", "kept", None])
def test_where_images_are_decoded_into_changes_no_result(tmp_path, data, decoded, cache):
    evaluate(OnFiles(), data=data, out=tmp_path / "auto", **OPTIONS)
    decoded.clear()
    if cache is None:
        evaluate(OnFiles(), data=data, **OPTIONS)
        assert len(decoded) == N
        return
    place = "none" if cache == "none" else tmp_path / "kept"
    evaluate(OnFiles(), data=data, out=tmp_path / "other", image_cache=place, **OPTIONS)
    assert len(decoded) == (3 * N if cache == "none" else N)
    assert samples(tmp_path / "other").equals(samples(tmp_path / "auto"))
    if cache == "kept":
        evaluate(OnFiles(), data=data, out=tmp_path / "third", image_cache=place, **OPTIONS)
        assert len(decoded) == N
        assert samples(tmp_path / "third").equals(samples(tmp_path / "auto"))


def test_bad_images_are_all_named_before_any_model_is_worked_on(tmp_path, data):
    bad = [data / "val" / "class0" / "0.png", data / "val" / "class1" / "1.png"]
    for path in bad:
        path.write_bytes(b"none")
    fakes = OnFiles()
    with pytest.raises(DataError, match=r"(?s)0\.png.*1\.png"):
        evaluate(fakes, data=data, out=tmp_path / "run", **OPTIONS)
    assert fakes.runners == []
    assert not (tmp_path / "run").exists()
    result = evaluate(OnFiles(), data=data, out=tmp_path / "run", on_bad_image="skip", **OPTIONS)
    assert result.run["dataset"]["n_used"] == N - 2


def test_a_run_that_ends_while_images_are_checked_is_taken_up(tmp_path, data, decoded, monkeypatch):
    monkeypatch.setattr(prepared, "_PIECE", 4)
    write, written = PreparedImages._write, []

    def write_once(self, *arguments):
        if written:
            raise KeyboardInterrupt
        written.append(write(self, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(PreparedImages, "_write", write_once)
        with pytest.raises(KeyboardInterrupt):
            evaluate(OnFiles(), data=data, out=tmp_path / "run", **OPTIONS)
    decoded.clear()
    evaluate(OnFiles(), resume=tmp_path / "run")
    assert len(decoded) == N - 4
    evaluate(OnFiles(), data=data, out=tmp_path / "whole", **OPTIONS)
    assert samples(tmp_path / "run").equals(samples(tmp_path / "whole"))


def test_a_run_goes_on_with_the_same_images_only(tmp_path, data, decoded):
    evaluate(OnFiles(), data=data, out=tmp_path / "run", models="alpha", **OPTIONS)
    before = run_json(tmp_path / "run")
    decoded.clear()
    evaluate(OnFiles(), resume=tmp_path / "run")
    assert decoded == []  # their bytes were read, and are the same
    assert run_json(tmp_path / "run")["dataset"] == before["dataset"]
    evaluate(OnFiles(), resume=tmp_path / "run", models=("alpha", "beta"))
    assert len(decoded) == N  # for the new model, once
    replaced = data / "val" / "class1" / "4.png"
    replaced.write_bytes((data / "val" / "class1" / "1.png").read_bytes())
    with pytest.raises(ConfigError, match=r"cannot go on .*class1/4\.png was replaced"):
        evaluate(OnFiles(), resume=tmp_path / "run")
    assert run_json(tmp_path / "run")["dataset"] == before["dataset"]


def test_answers_of_a_float_model_are_kept_for_later_runs(tmp_path, data, monkeypatch):
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QUANTVM_CACHE_BYTES", str(1 << 20))
    ran = {"data": data, "models": ("alpha",), **OPTIONS}

    def runs(name, **options):
        fakes = OnFiles()
        (row,) = evaluate(fakes, out=tmp_path / name, **{**ran, **options}).run["models"]
        return sum(len(x_f32) for runner in fakes.runners for x_f32 in runner.seen), row

    n_first, first = runs("first")
    n_second, second = runs("second")
    assert (n_first, n_second) == (3 * N, 2 * N)
    assert second["fp32"] == first["fp32"]
    assert samples(tmp_path / "second").equals(samples(tmp_path / "first"))
    assert runs("fewer", fp32="4")[1]["n_fp32_images"] == 4
    assert runs("none", fp32="none")[1]["n_fp32_images"] == 0
    assert runs("threads", threads=2)[0] == 3 * N
    path = data / "val" / "class1" / "4.png"
    path.write_bytes((data / "val" / "class1" / "1.png").read_bytes())
    assert 2 * N < runs("other image")[0] <= 2 * N + 4  # the shard of this image
    kept = kept_float_answers()
    assert len(kept) == 3 + 3 + 1
    kept[0].write_bytes(b"damaged")
    runs("damaged")
    assert clear_float_answers()[0] == len(kept)
    assert runs("cleared")[0] == 3 * N
