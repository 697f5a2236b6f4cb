"""`quantvm diff`: equal runs, other rules, and bugs that were put in on purpose."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quantvm import numerics
from quantvm.cli import app
from quantvm.errors import ConfigError
from quantvm.evaluate.diff import DiffConfig, diff
from quantvm.evaluate.layer_parity import DifferenceCount
from quantvm.frontend import capture, import_layers
from quantvm.kernels import conv2d
from quantvm.lowering import contraction_rules
from tests.quantized_modules import SmallNetwork, image, save_traced

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


def test_a_live_module_names_its_layers_and_pytorch_gives_all_of_them():
    network = SmallNetwork()
    found = import_layers(network, image(*SHAPE), engine="fbgemm")
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
    found = import_layers(InPlace().eval(), x, engine="fbgemm")
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


@pytest.mark.parametrize(("engine", "rule"), [("onednn", "rule onednn: "), ("x86", "rule x86: ")])
def test_another_engine_is_named_as_the_rule(engine, rule, tmp_path):
    program = str(save_traced(Ties(), image(*SHAPE), tmp_path / "ties.pt"))
    row = compare(program, reference=f"torch:{engine}")
    found = causes(row)
    assert found["conv"].startswith(rule), found
    assert all(cause == "inherited" for name, cause in found.items() if name != "conv"), found
    assert (row["layers"][row["first"]]["name"], row["layers"][row["first"]]["own"]["max_steps"]) == ("conv", 1)
    assert compare(program)["n_differing"] == 0


def test_the_integer_path_differs_where_floats_round_otherwise(program):
    found = causes(compare(program, actual="tvm:integer"))
    assert found
    assert all(cause == "inherited" or cause.startswith("rule ") for cause in found.values()), found
    exact = compare(program, reference="tvm:integer", actual="tvm:integer")
    assert exact["n_differing"] == 0
    swapped = causes(compare(program, reference="tvm:integer", actual="tvm"))
    assert any(cause.startswith("rule integer") for cause in swapped.values()), swapped


def test_the_relax_form_in_float_can_be_a_side(program):
    row = compare(program, actual="qdq", num_samples=1)
    assert row["layers"][0]["whole"]["n"] == 3 * 19 * 17
    assert all(layer["whole"]["max_steps"] <= 3 for layer in row["layers"])


def _rolled(original):
    def requantization(*arguments, **options):
        r = original(*arguments, **options)
        return replace(r, multiplier_f32=np.roll(r.multiplier_f32, 1))

    return requantization


def _without_zero_point(original):
    def build(shape, weight, input_zero_point, *arguments, **options):
        return original(shape, weight, 0, *arguments, **options)

    return build


def _rounded_down(original):
    def requantization(*arguments, **options):
        r = original(*arguments, **options)
        bias_f32 = None if r.bias_f32 is None else r.bias_f32 - np.float32(0.5) / r.multiplier_f32
        return replace(r, bias_f32=bias_f32)

    return requantization


def _padded_by_one_more(original):
    def padding(conv):
        top, left, bottom, right = original(conv)
        return (top + 1, left, bottom - 1, right) if bottom else (top, left, bottom, right)

    return padding


BUGS = {
    "swapped channels": (numerics, "requantization", _rolled, "stem"),
    "dropped zero point": (conv2d, "conv2d", _without_zero_point, "stem"),
    "wrong rounding": (numerics, "requantization", _rounded_down, "stem"),
    "padding off by one": (contraction_rules, "_padding", _padded_by_one_more, "stem"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_caught_in_its_layer_and_no_rule_explains_it(bug, program, monkeypatch):
    module, name, wrong, layer = BUGS[bug]
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    row = compare(program)
    first = row["layers"][row["first"]]
    assert first["name"] == layer
    assert first["cause"] == "unexplained: likely a bug"
    assert first["own"]["equal"] < first["own"]["n"]


def test_the_command_prints_the_differing_layers_and_writes_all(program, tmp_path):
    arguments = ("diff", program, "--input-shape", "1,3,19,17", "--threads", "1", "--num-samples", "1")
    equal = CliRunner().invoke(app, arguments)
    assert equal.exit_code == 0, equal.output
    assert f"All {len(LAYERS)} layers are equal" in equal.stdout
    differing = CliRunner().invoke(app, (*arguments, "--actual", "tvm:integer", "--out", "found"))
    assert differing.exit_code == 1, differing.output
    lines = differing.stdout.splitlines()
    assert lines[0].split() == ["#", "layer", "op", "shape", "equal", "off", "by", "1", "max", "SQNR", "cause"]
    assert "layers differ; the first is" in lines[-1]
    row = json.loads((tmp_path / "found" / "diff.json").read_text())
    with (tmp_path / "found" / "layers.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["name"] for line in table] == [layer["name"] for layer in row["layers"]]
    assert [int(line["own_equal"]) for line in table] == [layer["own"]["equal"] for layer in row["layers"]]


def test_wrong_options_are_told_at_once(program):
    config = DiffConfig(model=program, reference="torch:mkl", actual="float", num_samples=0)
    with pytest.raises(ConfigError, match="3 wrong options") as error:
        diff(config)
    assert "expected one of torch, torch:fbgemm" in str(error.value)
    with pytest.raises(ConfigError, match="got a config and also threads"):
        diff(config, threads=1)


def test_counts_of_a_tensor():
    count = DifferenceCount()
    count.add(np.array([10, 11, 8, 0], np.uint8), np.array([10, 10, 10, 255], np.uint8), 10)
    row = count.row()
    assert (row["n"], row["equal"], row["off_by_one"], row["max_steps"]) == (4, 1, 1, 255)
    assert row["sqnr_db"] == pytest.approx(10 * np.log10(245**2 / (1 + 4 + 255**2)))
    assert DifferenceCount().row()["sqnr_db"] is None
