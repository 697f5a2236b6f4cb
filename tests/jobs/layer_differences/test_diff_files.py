"""Layers of ONNX and TFLite files against the imported program in float, and against ONNX Runtime."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quantvm import diff
from quantvm.cli import app
from quantvm.errors import ConfigError
from quantvm.frontend.file_layers import import_file_layers
from quantvm.jobs.layer_differences.layer_parity import UNEXPLAINED

from .layers_alone import add_to_zero_points, check_layers_alone, executed

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[3]


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
    from quantvm.frontend.onnx.layers import OnnxSource

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
    add_to_zero_points(monkeypatch)
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


def test_a_bug_is_shown_alone(onnx_file, tmp_path, monkeypatch):
    """While the bug is there, the file's two sides differ; without it they are equal."""
    path = tmp_path / "test_layer.py"
    with monkeypatch.context() as patch:
        add_to_zero_points(patch)
        row = compare(onnx_file, num_samples=1, save_repro=path)
        assert (row["repro"], row["repro_problem"]) == (str(path), None)
        names = executed(path.read_text())
        with pytest.raises(AssertionError, match="differ: tvm"):
            names["test_layer"]()
    assert np.abs(names["found"]() - names["expected"]()).max() <= 1  # in float sums, at ties
    assert "QuantizeLinear" in names["TEXT"]
    assert names["expected"]().shape == tuple(row["layers"][1]["shape"])


def test_layers_of_a_file_alone_give_what_they_gave_in_the_network(onnx_file):
    from quantvm.workload.user_models import load_model

    found = load_model(onnx_file, input_shapes=((1, 3, 224, 224),))
    shape = [d or 1 for d in found.shapes[0]]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    check_layers_alone(import_file_layers(Path(onnx_file), [x]))


def test_a_side_that_nothing_can_call_alone(onnx_file, tflite_file, tmp_path, monkeypatch):
    add_to_zero_points(monkeypatch)
    path = tmp_path / "test_layer.py"
    with pytest.raises(ConfigError, match="side qdq cannot be called alone; compare torch, onnxruntime or tvm"):
        compare(onnx_file, reference="qdq", num_samples=1, save_repro=path)
    row = compare(tflite_file, num_samples=1, save_repro=path)
    assert row["repro_problem"] == "no framework is at hand that computes layers of this file alone"
    assert not path.exists()
