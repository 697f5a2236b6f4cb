"""Bugs that are put in on purpose: `quantvm diff` finds the layer, and names the rule where the bug is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import nn
from tvm import relax

from quantvm import diff
from quantvm.jobs.layer_differences.layer_parity import UNEXPLAINED
from quantvm.kernels.conv import conv2d as conv2d_kernels
from quantvm.lowering import pipeline
from quantvm.lowering.patterns import all_patterns
from quantvm.lowering.torch import contractions as contraction_lowerings
from tests.quantized_modules import conv2d, image, linear, save_traced

from .layers_alone import executed
from .test_diff import Ties

SHAPE = (1, 3, 19, 17)


class TwoConvolutions(nn.Module):
    """The first has borders, the second none: a bug in borders is no difference of its own there."""

    def __init__(self):
        super().__init__()
        self.quantize = nnq.Quantize(float(np.float32(0.0417)), 100, torch.quint8)
        self.stem = conv2d(3, 8, 3, stride=2, padding=1, seed=1, scale=0.9, zero_point=110)
        self.project = conv2d(8, 8, 1, seed=2, scale=1.1, zero_point=93)
        self.head = linear(8, 5, seed=3, scale=0.5, zero_point=128)
        self.eval()

    def forward(self, x):
        x = self.project(self.stem(self.quantize(x)))
        return self.head(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1)).dequantize()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    torch.backends.quantized.engine = "fbgemm"
    return str(save_traced(TwoConvolutions(), image(*SHAPE), tmp_path_factory.mktemp("program") / "two.pt"))


def compare(program):
    return diff(model=program, input_shape=SHAPE, num_samples=2, threads=1).row


def swapped_channels(monkeypatch):
    original = contraction_lowerings._requantization

    def rolled(*arguments, **options):
        r = original(*arguments, **options)
        return replace(r, multiplier_f32=np.roll(r.multiplier_f32, 1))

    monkeypatch.setattr(contraction_lowerings, "_requantization", rolled)


def rounded_down(monkeypatch):
    original = contraction_lowerings._requantization

    def requantization(*arguments, **options):
        r = original(*arguments, **options)
        return replace(r, bias_f32=r.bias_f32 - np.float32(0.5) / r.multiplier_f32)

    monkeypatch.setattr(contraction_lowerings, "_requantization", requantization)


def dropped_zero_point(monkeypatch):
    original = conv2d_kernels.conv2d

    def build(shape, weight, input_zero_point, *arguments, **options):
        return original(shape, weight, 0, *arguments, **options)

    monkeypatch.setattr(conv2d_kernels, "conv2d", build)


def dropped_bias(monkeypatch):
    monkeypatch.setattr(contraction_lowerings, "bias_of", lambda composite: None)


def left_in_float(monkeypatch):
    def fuse(module, *, ends_only=False, torch_only=False):
        ends = ("quantvm.quantize", "quantvm.dequantize")
        every = all_patterns()
        left = ends if ends_only else [row[0] for row in every if row[0] != "quantvm.conv2d"]
        patterns = [row for row in every if row[0] in left]
        return relax.transform.FuseOpsByPattern(patterns, bind_constants=True)(module)

    monkeypatch.setattr(pipeline, "fuse_qdq", fuse)


def padded_by_one_more(monkeypatch):
    original = contraction_lowerings._padding

    def padding(conv):
        top, left, bottom, right = original(conv)
        return (top + 1, left, bottom - 1, right) if bottom else (top, left, bottom, right)

    monkeypatch.setattr(contraction_lowerings, "_padding", padding)


def first_of(program):
    row = compare(program)
    first = row["layers"][row["first"]]
    assert first["own"]["equal"] < first["own"]["n"]
    return row, first


RULES = {
    "wrong rounding": (rounded_down, [("rounding", "even", "down")]),
    "dropped zero point": (
        dropped_zero_point, [("input_zero_point", "subtracted", "dropped"), ("padding", "zero_point", "zero")],
    ),
    "dropped bias": (dropped_bias, [("bias", "division", "dropped")]),
}  # fmt: skip


@pytest.mark.parametrize("bug", RULES)
def test_a_bug_that_is_a_rule_is_named(bug, program, monkeypatch):
    put_in, facts = RULES[bug]
    put_in(monkeypatch)
    row, first = first_of(program)
    assert first["name"] == "stem"
    rule = first["rule"]
    assert [(fact["fact"], fact["reference"], fact["actual"]) for fact in rule["facts"]] == facts
    assert (rule["reference"], rule["actual_said"]) == ("fbgemm", "fbgemm")
    assert rule["actual"].startswith("fbgemm with ")
    assert f"({rule['actual']}, not fbgemm)" in first["cause"]
    assert row["layers"][0]["cause"] is None


def test_a_bug_is_shown_alone(program, monkeypatch, tmp_path):
    """While the bug is there, the file's two sides differ; without it they are equal."""
    path = tmp_path / "test_layer.py"
    with monkeypatch.context() as patch:
        rounded_down(patch)
        row = diff(model=program, input_shape=SHAPE, num_samples=1, threads=1, save_repro=path).row
        assert (row["repro"], row["repro_problem"]) == (str(path), None)
        names = executed(path.read_text())
        with pytest.raises(AssertionError, match="differ: tvm"):
            names["test_layer"]()
    names["test_layer"]()


def test_a_layer_left_in_float_is_named(tmp_path, monkeypatch):
    left_in_float(monkeypatch)
    row, first = first_of(str(save_traced(Ties(), image(*SHAPE), tmp_path / "ties.pt")))
    assert first["op"] == "quantized::conv2d"
    assert first["rule"]["actual"] == "QDQ in float"
    assert first["cause"] == "rule QDQ in float: torch (fbgemm); tvm (QDQ in float, not fbgemm)"
    kinds = {layer["op"] for layer in row["layers"] if layer["rule"] is not None}
    assert kinds == {"quantized::conv2d"}, "all else went to int8 kernels"


@pytest.mark.parametrize("put_in", [swapped_channels, padded_by_one_more])
def test_a_bug_that_is_no_rule_is_told_to_be_one(put_in, program, monkeypatch):
    put_in(monkeypatch)
    row, first = first_of(program)
    assert (first["name"], first["cause"], first["rule"]) == ("stem", UNEXPLAINED, None)
    if put_in is padded_by_one_more:
        assert {layer["cause"] for layer in row["layers"][2:]} == {"inherited"}
