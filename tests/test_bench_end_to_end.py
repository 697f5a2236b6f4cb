"""The benchmark of latency with nothing replaced: worker processes, PyTorch, TVM. No duration is ever asserted."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from quantvm.cli import app

pytest.importorskip("foolbox", reason="carries the sample images")

SHORT = ("--weights", "random", "--model", "resnet18", "--threads", "1", "--rounds", "2", "--seconds", "0.1")


def run(tmp_path, *options):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["bench", *SHORT, "--calibration-samples", "4", "--out", str(out), *options])
    return result, json.loads((out / "bench.json").read_text())


def test_tvm_beside_pytorch(tmp_path):
    result, found = run(tmp_path, "--engines", "tvm,torch_fbgemm", "--profile")
    assert result.exit_code == 0, result.output
    (model,) = found["models"]
    assert (model["batch"], model["threads"]) == (1, 1)
    assert model["tvm_vs_best"] > 0
    for name, row in model["engines"].items():
        assert (row["status"], row["reason"]) == ("measured", None), name
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["n"] >= 10
        assert row["n_rounds"] >= 2
        assert row["first_call_ms"] > 0
        assert row["peak_rss_bytes"] > 10 * 2**20
    tvm, torch = model["engines"]["tvm"], model["engines"]["torch_fbgemm"]
    assert tvm["outputs_identical"] == tvm["outputs_total"] == 1000
    assert tvm["cosine_to_float"] == torch["cosine_to_float"]
    assert tvm["int8_mac_share"] > 0.99
    assert tvm["compile_s"] > 0
    assert 0 < tvm["load_s"] < 1
    assert tvm["artifact_bytes"] > 10 * 2**20
    assert tvm["inference_peak_rss_bytes"] < torch["inference_peak_rss_bytes"]
    assert torch["artifact_bytes"] > 10 * 2**20
    assert "| resnet18 |" in result.stdout
    calls = model["profile"]["calls"]
    layers = [call["layer"] for call in calls if call["op"] == "conv2d"]
    assert layers[:2] == ["conv1", "layer1_0_conv1"]
    assert len(layers) == 20
    assert sum(call["macs"] for call in calls) == 1_814_073_344
    assert min(call["p50_ms"] for call in calls) > 0
    assert "Where TVM's time goes: resnet18" in result.stdout


def test_onnx_runtime_and_openvino_know_the_batch_size(tmp_path):
    for package in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package, reason="of the extra peers")
    result, found = run(tmp_path, "--engines", "onnxruntime,openvino", "--batch-size", "1,2")
    assert result.exit_code == 0, result.output
    assert [model["batch"] for model in found["models"]] == [1, 2]
    rows = [row for model in found["models"] for row in model["engines"].values()]
    assert {row["status"] for row in rows} == {"measured"}
    assert min(row["cosine_to_float"] for row in rows) > 0.5
