"""`quantvm diff`: equal runs, other rules, the sides that there are, and what the command prints."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quantvm import DiffConfig, diff
from quantvm.cli import app
from quantvm.data import load_dataset
from quantvm.errors import ConfigError, RunError
from quantvm.frontend import capture, import_layers
from quantvm.frontend.source import Source
from quantvm.jobs.layer_differences.layer_parity import DifferenceCount
from quantvm.jobs.layer_differences.text import diff_lines
from quantvm.torch_compat import has_vnni
from quantvm.verification.layer_runs import TvmLayerRun
from quantvm.workload import plan
from tests.quantized_modules import SmallNetwork, image, save_traced
from tests.workload.own_models import write_factories

SHAPE = (1, 3, 19, 17)
LAYERS = [
    "quantize", "stem", "depthwise", "hardswish", "adaptive_avg_pool2d", "squeeze", "excite", "hardsigmoid", "mul",
    "add", "branch", "cat", "pool", "adaptive_avg_pool2d_1", "head",
]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    torch.backends.quantized.engine = "fbgemm"
    return str(save_traced(SmallNetwork(), image(*SHAPE), tmp_path_factory.mktemp("program") / "small.pt"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)


def compare(program, **options):
    return diff(**{"model": program, "input_shape": SHAPE, "num_samples": 2, "threads": 1, **options}).row


def causes(row):
    return {layer["name"]: layer["cause"] for layer in row["layers"] if layer["cause"] is not None}


def test_a_layer_of_another_shape_is_named_with_both_shapes(program, monkeypatch):
    kept = TvmLayerRun.chained
    monkeypatch.setattr(TvmLayerRun, "chained", lambda self, x: [y[:, 1:] if y.ndim == 4 else y for y in kept(self, x)])
    message = r"layer quantize_per_tensor \(\S+\) has shape \(1, 2, .*\) by tvm, and \(1, 3, .*\) by torch"
    with pytest.raises(RunError, match=message):
        compare(program)


def test_outputs_of_other_numbers_and_shapes_are_told(program, monkeypatch):
    kept = TvmLayerRun.fused_outputs
    monkeypatch.setattr(TvmLayerRun, "fused_outputs", lambda self, x: [y[:, 1:] for y in kept(self, x)])
    with pytest.raises(RunError, match=r"output 0 has shape \(1, \d+\) by tvm, fused, and \(1, \d+\) by tvm, every"):
        compare(program)
    monkeypatch.setattr(TvmLayerRun, "fused_outputs", lambda self, x: kept(self, x) * 2)
    with pytest.raises(RunError, match=r"tvm, fused gives 2 tensors, tvm, every layer kept 1, expected 1 of each"):
        compare(program)


def test_a_live_module_names_its_layers_and_pytorch_gives_all_of_them():
    network = SmallNetwork()
    found = import_layers(Source(network, image(*SHAPE), "fbgemm"))
    assert [layer.name for layer in found.layers] == LAYERS
    tensors = capture(found, image(*SHAPE))
    assert [tuple(tensor.shape) for tensor in tensors] == [layer.shape for layer in found.layers]
    x_q = network.quantize(image(*SHAPE))
    assert torch.equal(tensors[0], x_q.int_repr())
    assert torch.equal(tensors[1], network.stem(x_q).int_repr())


def test_what_is_written_in_place_is_captured_before():
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantize = torch.ao.nn.quantized.Quantize(0.05, 120, torch.quint8)

        def forward(self, x):
            return torch.relu_(self.quantize(x)).dequantize()

    x = image(*SHAPE)
    found = import_layers(Source(InPlace().eval(), x, "fbgemm"))
    before, after = capture(found, x)
    assert int(before.min()) < 120 == int(after.min())


def test_equal_runs(program):
    row = compare(program)
    assert (row["first"], row["n_differing"], causes(row)) == (None, 0, {})
    assert all(layer["own"]["equal"] == layer["own"]["n"] == layer["whole"]["n"] > 0 for layer in row["layers"])
    assert len(row["layers"]) == len(LAYERS)


class Ties(torch.nn.Module):
    """A convolution whose products often lie half-way between integers, where the engines round differently."""

    def __init__(self):
        super().__init__()
        self.quantize = torch.ao.nn.quantized.Quantize(0.5, 100, torch.quint8)
        self.conv = torch.ao.nn.quantized.Conv2d(3, 16, 3, bias=False)
        weight = torch.from_numpy(np.random.default_rng(0).integers(-20, 21, (16, 3, 3, 3)).astype(np.float32))
        scales, zero_points = torch.full((16,), 0.5), torch.zeros(16, dtype=torch.int64)
        self.conv.set_weight_bias(torch.quantize_per_channel(weight / 2, scales, zero_points, 0, torch.qint8), None)
        self.conv.scale, self.conv.zero_point = 64.0, 77
        self.relu = torch.nn.ReLU6()
        self.eval()

    def forward(self, x):
        return self.relu(self.conv(self.quantize(x))).dequantize()


X86_IS_FBGEMM = pytest.mark.skipif(not has_vnni(), reason="without VNNI, engine x86 is FBGEMM")


@pytest.mark.parametrize("engine", ["onednn", pytest.param("x86", marks=X86_IS_FBGEMM)])
def test_another_engine_is_told_by_the_fact_in_which_it_differs(engine, tmp_path):
    program = str(save_traced(Ties(), image(*SHAPE), tmp_path / "ties.pt"))
    row = compare(program, reference=f"torch:{engine}")
    conv = row["layers"][row["first"]]
    assert (conv["name"], conv["own"]["max_steps"]) == ("conv", 1)
    assert conv["rule"] == {
        "reference": engine, "reference_said": engine, "actual": "fbgemm", "actual_said": "fbgemm",
        "facts": [{"fact": "zero_point", "reference": "before", "actual": "after"}],
    }  # fmt: skip
    assert conv["cause"] == (
        f"rule zero point: torch:{engine}: added before rounding; tvm (fbgemm): added after rounding"
    )
    found = causes(row)
    assert all(cause == "inherited" for name, cause in found.items() if name != "conv"), found


def test_pytorch_is_compared_with_pytorch_layer_by_layer(tmp_path):
    program = str(save_traced(Ties(), image(*SHAPE), tmp_path / "ties.pt"))
    row = compare(program, reference="torch:onednn", actual="torch:fbgemm")
    assert {layer["name"]: layer["rule"] is not None for layer in row["layers"]}["conv"]
    assert row["layers"][row["first"]]["own"] is not None
    assert row["fusion"] == []
    assert compare(program, reference="torch:fbgemm", actual="torch")["n_differing"] == 0


def test_the_integer_path_differs_where_floats_round_otherwise(program):
    row = compare(program, actual="tvm:integer", num_samples=1)
    found = causes(row)
    assert found
    assert all(cause == "inherited" or cause.startswith("rule ") for cause in found.values()), found
    named = [layer["rule"] for layer in row["layers"] if layer["rule"] is not None]
    assert named
    assert all((rule["reference"], rule["actual"]) == ("fbgemm", "integer") for rule in named), named


def test_the_relax_form_in_float_can_be_a_side(program):
    row = compare(program, actual="qdq", num_samples=1)
    assert row["layers"][0]["whole"]["n"] == 3 * 19 * 17
    if not X86_IS_FBGEMM.args[0]:  # without VNNI FBGEMM's sums saturate
        assert all(layer["whole"]["max_steps"] <= 3 for layer in row["layers"])
    differing = [layer for layer in row["layers"] if layer["own"]["equal"] < layer["own"]["n"]]
    assert all(layer["rule"]["actual"] == "QDQ in float" for layer in differing), causes(row)
    reverse = compare(program, reference="qdq", actual="torch", num_samples=1)
    assert [layer["whole"]["equal"] for layer in reverse["layers"]] == [
        layer["whole"]["equal"] for layer in row["layers"]
    ]


def test_fusion_that_changes_an_output_is_reported(program, monkeypatch):
    original = TvmLayerRun.fused_outputs
    monkeypatch.setattr(TvmLayerRun, "fused_outputs", lambda self, x: [y + np.float32(1) for y in original(self, x)])
    result = diff(model=program, input_shape=SHAPE, num_samples=1, threads=1)
    (fusion,) = result.row["fusion"]
    assert (fusion["side"], fusion["equal"], fusion["n"], fusion["max_abs_diff"]) == ("tvm", 0, 10, 1.0)
    assert result.row["n_differing"] == 0
    assert result.exit_code == 1
    assert "FUSION CHANGES 10 of 10 raw outputs, by up to 1" in "\n".join(diff_lines(result.row))


def test_the_command_prints_the_differing_layers_and_writes_all(program, tmp_path):
    arguments = ("diff", program, "--input-shape", "1,3,19,17", "--threads", "1", "--num-samples", "1")
    equal = CliRunner().invoke(app, arguments)
    assert equal.exit_code == 0, equal.output
    assert f"All {len(LAYERS)} layers are equal" in equal.stdout
    differing = CliRunner().invoke(app, (*arguments, "--actual", "tvm:integer", "--out", "found"))
    assert differing.exit_code == 1, differing.output
    lines = differing.stdout.splitlines()
    assert lines[0].split() == ["#", "layer", "op", "shape", "equal", "off", "by", "1", "max", "SQNR", "cause"]
    assert "layers differ; the first is" in lines[-2]
    assert lines[-1] == "tvm:integer fused: all 10 raw outputs are those of the layers"
    assert any(line.startswith("rule 1: ") for line in lines)
    row = json.loads((tmp_path / "found" / "diff.json").read_text())
    with (tmp_path / "found" / "layers.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["name"] for line in table] == [layer["name"] for layer in row["layers"]]
    assert [int(line["own_equal"]) for line in table] == [layer["own"]["equal"] for layer in row["layers"]]


def test_shares_of_a_layer_add_up(program):
    row = compare(program, actual="tvm:integer", num_samples=1)
    whole, n = row["layers"][row["first"]]["whole"], 1_000_000
    for equal, shares in {
        0: "0 % 100 %",
        1: "<0.01 % >99.99 %",
        66_667: "6.67 % 93.33 %",
        999_901: ">99.99 % <0.01 %",
        n: "100 % 0 %",
    }.items():
        whole |= {"n": n, "equal": equal, "off_by_one": n - equal, "max_steps": 1}
        assert f" {shares} 1 " in " ".join(diff_lines(row)[1].split())


def test_wrong_options_are_told_at_once(program):
    config = DiffConfig(
        model=program, reference="torch:mkl", actual="float", num_samples=0, save_repro=Path("nowhere/layer.txt")
    )
    with pytest.raises(ConfigError, match="5 wrong options") as error:
        diff(config)
    assert "expected one of torch, torch:fbgemm" in str(error.value)
    assert "expected a name like test_layer.py" in str(error.value)
    with pytest.raises(ConfigError, match=r"fp32: .*small.pt does not hold the float model"):
        diff(model=program, actual="fp32")
    with pytest.raises(ConfigError, match=r"waterfall: .*small.pt does not hold the float model"):
        diff(model=program, waterfall=True)
    for one in ("tvm:integer", "tvm:integer:upward", "torch"):
        reference = None if one == "torch" else "tvm:integer"
        with pytest.raises(ConfigError, match=f"actual: got '{one}', which is the reference, too"):
            diff(model=program, reference=reference, actual=one)
    with pytest.raises(ConfigError, match="got a config and also threads"):
        diff(config, threads=1)
    with pytest.raises(ConfigError, match="out: cannot make /proc/"):
        diff(model=program, input_shape=SHAPE, out=Path("/proc/nowhere"))


def test_a_shape_that_does_not_fit_is_told_before_any_import(program):
    with pytest.raises(ConfigError, match=r"small.pt cannot take an input 1,4,19,17: .*--input-shape"):
        diff(model=program, input_shape=(1, 4, 19, 17))


def test_a_float_factory_is_quantized_and_gives_the_waterfall(tmp_path, monkeypatch):
    write_factories(tmp_path, "factories_of_diff")
    monkeypatch.syspath_prepend(str(tmp_path))
    read = []
    monkeypatch.setattr(
        plan, "load_dataset", lambda name, **options: read.append(name) or load_dataset(name, **options)
    )
    row = diff(model="factories_of_diff:floating_with_input", num_samples=2, threads=1, waterfall=True).row
    assert len(read) == 1, "calibration and comparison share the images"
    assert row["n_differing"] == 0
    assert next(stage["stage"] for stage in row["waterfall"]["stages"]) == "fp32"
    options = {"model": "factories_of_diff:floating_with_input", "num_samples": 1, "threads": 1, "flow": "pt2e"}
    with pytest.raises(ConfigError, match=r"fp32: a program of the flow pt2e .* take --waterfall"):
        diff(**options, reference="fp32")
    row = diff(**options).row
    assert row["engine"] == "pt2e"
    assert all(layer["cause"] in (None, "inherited") or "of a tie" in layer["cause"] for layer in row["layers"])
    with pytest.raises(ConfigError, match="waterfall: factories_of_diff:with_inputs does not hold the float model"):
        diff(model="factories_of_diff:with_inputs", waterfall=True)


def test_counts_of_a_tensor():
    count = DifferenceCount()
    count.add(np.array([10, 11, 8, 0], np.uint8), np.array([10, 10, 10, 255], np.uint8), 10)
    row = count.row()
    assert (row["n"], row["equal"], row["off_by_one"], row["max_steps"]) == (4, 1, 1, 255)
    assert row["sqnr_db"] == pytest.approx(10 * np.log10(245**2 / (1 + 4 + 255**2)))
    assert DifferenceCount().row()["sqnr_db"] is None
