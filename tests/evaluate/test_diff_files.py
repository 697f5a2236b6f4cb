"""Layers of ONNX and TFLite files against the imported program in float, and against ONNX Runtime."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantvm.cli import app
from quantvm.errors import ConfigError
from quantvm.evaluate.diff import diff
from quantvm.evaluate.layer_parity import UNEXPLAINED

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """What ONNX Runtime quantized, as the example does it."""
    pytest.importorskip("onnxruntime")
    folder, before = tmp_path_factory.mktemp("onnx"), Path.cwd()
    os.chdir(folder)
    try:
        runpy.run_path(str(ROOT / "examples" / "onnx_file.py"))["main"]()
    finally:
        os.chdir(before)
    return str(folder / "int8.onnx")


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory):
    pytest.importorskip("tflite")
    from tests.frontend.test_tflite import network

    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    path.write_bytes(network())
    return str(path)


def compare(model, **options):
    return diff(**{"model": model, "num_samples": 2, "threads": 1, **options}).row


def check_ties_alone(row):
    """Own differences may lie at ties, and nowhere else."""
    for layer in row["layers"]:
        assert layer["cause"] in (None, "inherited") or "of a tie" in layer["cause"], layer
        assert layer["own"]["max_steps"] <= 1
    assert all(fusion["n"] == fusion["equal"] for fusion in row["fusion"])


@pytest.mark.parametrize(("reference", "said"), [(None, "onnxruntime"), ("qdq", "qdq")])
def test_an_onnx_file(onnx_file, reference, said):
    row = compare(onnx_file, reference=reference)
    assert (row["reference"], row["actual"], row["engine"]) == (said, "tvm", "onnx")
    assert [layer["op"] for layer in row["layers"]][:2] == ["input", "relax.nn.conv2d"]
    check_ties_alone(row)


def test_onnx_runtime_computes_layers_from_given_ones(onnx_file):
    row = compare(onnx_file, reference="qdq", actual="onnxruntime", num_samples=1)
    check_ties_alone(row)
    assert all(layer["own"]["n"] == layer["whole"]["n"] for layer in row["layers"])


def test_without_onnx_runtime_the_program_in_float_is_right(onnx_file, monkeypatch):
    from quantvm.frontend.onnx_layers import OnnxSource

    monkeypatch.setattr(OnnxSource, "is_installed", staticmethod(lambda: False))
    assert compare(onnx_file, num_samples=1)["reference"] == "qdq"
    with pytest.raises(ConfigError, match=r"onnxruntime: .* not installed.*compare qdq, tvm"):
        compare(onnx_file, reference="onnxruntime")


def test_a_tflite_file_takes_images_in_its_own_order(tflite_file):
    row = compare(tflite_file)
    assert (row["reference"], len(row["layers"])) == ("qdq", 7)
    assert all(image.startswith("imagenet") for image in row["images"])
    check_ties_alone(row)


def test_a_bug_is_found(onnx_file, monkeypatch):
    from quantvm.lowering import qdq_legalize

    original = qdq_legalize.conv2d.conv2d

    def with_another_zero_point(shape, weight, zero_point, *arguments, **options):
        return original(shape, weight, zero_point + 3, *arguments, **options)

    monkeypatch.setattr(qdq_legalize.conv2d, "conv2d", with_another_zero_point)
    row = compare(onnx_file, num_samples=1)
    assert row["layers"][row["first"]]["cause"] == UNEXPLAINED


def test_the_command(onnx_file, tmp_path):
    result = CliRunner().invoke(
        app, ["diff", onnx_file, "--num-samples", "1", "--json", "--out", str(tmp_path / "out")]
    )
    assert json.loads(result.stdout)["reference"] == "onnxruntime"
    assert len((tmp_path / "out" / "layers.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "torch"}, "torch: .*compare onnxruntime, qdq, tvm"),
        ({"reference": "fp32"}, r"fp32: .*int8.onnx does not hold the float model"),
        ({"waterfall": True}, r"waterfall: .*int8.onnx does not hold the float model"),
    ],
)
def test_sides_that_a_file_does_not_have(onnx_file, options, message):
    with pytest.raises(ConfigError, match=message):
        compare(onnx_file, num_samples=1, **options)


def test_no_file_shows_layers_of_onnx_alone(onnx_file, tmp_path, monkeypatch):
    from quantvm.runtime.layers import TvmLayerRun

    original = TvmLayerRun.isolated

    def one_more(self, x_f32, layers, wanted=None):
        return [found ^ 1 for found in original(self, x_f32, layers, wanted)]

    monkeypatch.setattr(TvmLayerRun, "isolated", one_more)
    row = compare(onnx_file, num_samples=1, save_repro=tmp_path / "test_layer.py")
    assert row["repro_problem"] == "side onnxruntime cannot be called alone; compare torch or tvm"
    assert not (tmp_path / "test_layer.py").exists()
