import json
from pathlib import Path

import pytest

from quantvm.errors import ConfigError
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.options.checks import resolve_threads
from quantvm.options.option import raise_problems


@pytest.fixture(autouse=True)
def _no_threads_in_the_environment(monkeypatch):
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)


def test_the_defaults_have_no_problems():
    assert RunConfig().problems() == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheme": "per-row"}, "scheme: got 'per-row', expected per-channel or per-tensor"),
        ({"engine": "cuda"}, "engine: got 'cuda'"),
        ({"numerics": "float"}, "numerics: got 'float'"),
        ({"class_map": "names"}, "class_map: got 'names'"),
        ({"on_bad_image": "ignore"}, "on_bad_image: got 'ignore'"),
        ({"weights": "autoo"}, "weights: got 'autoo', expected auto, random, torchvision-quantized or a folder"),
        ({"calibration_samples": 0}, "calibration_samples: got 0, expected at least 1"),
        ({"num_samples": -3}, "num_samples: got -3"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"threads": 0}, "threads: got 0"),
        ({"seed": -1}, "seed: got -1, expected 0 or more"),
        ({"min_top1": 100.5}, "min_top1: got 100.5, expected a percentage"),
        ({"check_parity": "near"}, "check_parity: got 'near', expected 'exact' or 'lsb:N'"),
        ({"min_top1": 50.0, "weights": "random"}, "with random weights accuracy means nothing"),
    ],
)
def test_every_wrong_option_has_its_sentence(options, text):
    (problem,) = RunConfig(**options).problems()
    assert text in problem


def test_all_problems_come_at_once():
    problems = RunConfig(scheme="x", engine="y", batch_size=0, seed=-1).problems()
    assert len(problems) == 4
    with pytest.raises(ConfigError, match=r"4 wrong options:\n  scheme: .*\n  engine: .*\n  batch_size: .*\n  seed: "):
        raise_problems(problems)


def test_a_folder_of_weights_is_fine(tmp_path):
    assert RunConfig(weights=str(tmp_path)).problems() == []


def test_the_run_folder_may_not_be_a_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert "is a file" in RunConfig(out=path).problems()[0]
    assert RunConfig(out=tmp_path).problems() == []


def test_threads_asked_for_beat_the_environment_beats_the_cores(monkeypatch):
    assert resolve_threads(None, 6) == 6
    monkeypatch.setenv("TVM_NUM_THREADS", "4")
    assert resolve_threads(None, 6) == 4
    assert resolve_threads(2, 6) == 2


@pytest.mark.parametrize("text", ["many", "0", "-2", "1.5"])
def test_a_wrong_environment_is_a_problem_unless_the_option_beats_it(monkeypatch, text):
    monkeypatch.setenv("TVM_NUM_THREADS", text)
    assert f"TVM_NUM_THREADS='{text}'" in RunConfig().problems()[0]
    assert RunConfig(threads=2).problems() == []


def test_names_and_paths_may_be_given_as_python_has_them(tmp_path):
    config = RunConfig(models="resnet18", data=tmp_path, weights=tmp_path, out="runs/x")
    assert config.models == ("resnet18",)
    assert config.data == config.weights == str(tmp_path)
    assert config.out == Path("runs/x")
    assert RunConfig(models=["a", "b"]).models == ("a", "b")


def test_options_are_json():
    values = RunConfig(models=("a", "b"), out=Path("runs/x")).as_json()
    assert json.loads(json.dumps(values)) == values
    assert values["models"] == ["a", "b"]
    assert values["out"] == "runs/x"
