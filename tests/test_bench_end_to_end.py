"""The benchmark of latency with nothing replaced: worker processes, PyTorch, TVM. No duration is ever asserted."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

from quantvm.cli import app

pytest.importorskip("foolbox", reason="carries the sample images")

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(48, 48, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return self.conv2(self.conv1(x).relu()).relu()

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv1, self.layer1, self.fc = nn.Conv2d(3, 48, 3, 2, 1), nn.Sequential(Block()), nn.Linear(12288, 1000)

    def forward(self, x):
        return self.dequant(self.fc(self.layer1(self.conv1(self.quant(x)).relu()).flatten(1)))

def network():
    return Network().eval()
"""
OWN = ("--model", "network_of_the_user:network", "--input-shape", "1,3,32,32")
OWN_MACS = 16 * 16 * (27 * 48 + 2 * 9 * 48 * 48) + 12288 * 1000
RESNET18 = ("--model", "resnet18", "--weights", "random")
SHORT = ("--threads", "1", "--rounds", "2", "--seconds", "0.1")


def run(tmp_path, *options):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["bench", *SHORT, "--calibration-samples", "4", "--out", str(out), *options])
    return result, json.loads((out / "bench.json").read_text())


@pytest.mark.parametrize(
    ("model", "title", "n_convolutions", "macs"),
    [
        pytest.param(OWN, OWN[1], 3, OWN_MACS, id="own"),
        pytest.param(RESNET18, "resnet18", 20, 1_814_073_344, id="resnet18", marks=pytest.mark.nightly),
    ],
)
def test_tvm_beside_pytorch(tmp_path, monkeypatch, model, title, n_convolutions, macs):
    (tmp_path / "network_of_the_user.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    result, found = run(tmp_path, *model, "--engines", "tvm,torch_fbgemm", "--profile")
    assert result.exit_code == 0, result.output
    (measured,) = found["models"]
    assert (measured["batch"], measured["threads"]) == (1, 1)
    assert measured["tvm_vs_best"] > 0
    for name, row in measured["engines"].items():
        assert (row["status"], row["reason"]) == ("measured", None), name
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["n"] >= 10
        assert row["n_rounds"] >= 2
        assert row["first_call_ms"] > 0
        assert row["peak_rss_bytes"] > 10 * 2**20
    tvm, torch = measured["engines"]["tvm"], measured["engines"]["torch_fbgemm"]
    assert tvm["outputs_identical"] == tvm["outputs_total"] == 1000
    assert tvm["cosine_to_float"] == torch["cosine_to_float"]
    assert tvm["int8_mac_share"] > 0.99
    assert tvm["compile_s"] > 0
    assert 0 < tvm["load_s"] < 1
    assert tvm["artifact_bytes"] > 10 * 2**20
    assert tvm["inference_peak_rss_bytes"] < torch["inference_peak_rss_bytes"]
    assert torch["artifact_bytes"] > 10 * 2**20
    assert f"| {title} |" in result.stdout
    calls = measured["profile"]["calls"]
    layers = [call["layer"] for call in calls if call["op"] == "conv2d"]
    assert layers[:2] == ["conv1", "layer1_0_conv1"]
    assert len(layers) == n_convolutions
    assert sum(call["macs"] for call in calls) == macs
    assert min(call["p50_ms"] for call in calls) > 0
    assert f"Where TVM's time goes: {title}" in result.stdout


def test_onnx_runtime_and_openvino_know_the_batch_size(tmp_path):
    for package in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package, reason="of the extra peers")
    result, found = run(tmp_path, *RESNET18, "--engines", "onnxruntime,openvino", "--batch-size", "1,2")
    assert result.exit_code == 0, result.output
    assert [model["batch"] for model in found["models"]] == [1, 2]
    rows = [row for model in found["models"] for row in model["engines"].values()]
    assert {row["status"] for row in rows} == {"measured"}
    assert min(row["cosine_to_float"] for row in rows) > 0.5
