"""Layers of exported programs: what differs from PyTorch's float sums lies at ties, and a bug does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from quantvm import diff
from quantvm.cli import app
from quantvm.errors import ConfigError
from quantvm.frontend.exported.importer import load_program
from quantvm.frontend.exported.layers import import_exported_layers
from quantvm.jobs.layer_differences.layer_parity import UNEXPLAINED
from quantvm.models.quantize import quantize

from .layers_alone import add_to_zero_points, check_layers_alone, executed

SIDE = 40


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.body(x) + x)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    rng = np.random.default_rng(0)
    exported = quantize(Network().eval(), [rng.standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)], flow="pt2e")
    path = tmp_path_factory.mktemp("program") / "network.pt2"
    torch.export.save(exported, path)
    return str(path)


def test_what_differs_lies_at_ties(program):
    row = diff(model=program, num_samples=3, threads=1).row
    assert row["engine"] == "pt2e"
    assert [layer["op"] for layer in row["layers"]][:2] == ["input", "aten::relu"]
    for layer in row["layers"]:
        cause = layer["cause"]
        assert cause in (None, "inherited") or "of a tie" in cause
        assert layer["own"]["max_steps"] <= 1
        assert layer["own"]["n"] - layer["own"]["equal"] <= layer["own"]["n"] // 1000
    assert [fusion["n"] - fusion["equal"] for fusion in row["fusion"]] == [0]


def test_a_bug_is_no_tie_and_is_shown_alone(program, monkeypatch, tmp_path):
    path = tmp_path / "test_layer.py"
    with monkeypatch.context() as patch:
        add_to_zero_points(patch)
        row = diff(model=program, num_samples=1, threads=1, save_repro=path).row
        assert row["layers"][row["first"]]["cause"] == UNEXPLAINED
        assert (row["repro"], row["repro_problem"]) == (str(path), None)
        names = executed(path.read_text())
        with pytest.raises(AssertionError, match="differ: tvm"):
            names["test_layer"]()
    assert np.abs(names["found"]() - names["expected"]()).max() <= 1, "in float sums, at ties"
    assert "relu = torch.ops.aten.relu.default(conv2d)\n" in path.read_text()


def test_layers_alone_give_what_they_gave_in_the_network(program):
    x = torch.randn((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    check_layers_alone(import_exported_layers(load_program(Path(program)), [x]))


def test_ties_are_told_by_their_distance(program, monkeypatch):
    """A step that is added to one element in a hundred is no tie; one at a tie is."""
    from quantvm.verification.layer_runs import TvmLayerRun

    def with_one_more(original):
        def layers(*given):
            found = original(*given)
            found[1] = found[1].copy()
            found[1].reshape(-1)[::100] += 1
            return found

        return layers

    monkeypatch.setattr(TvmLayerRun, "chained", with_one_more(TvmLayerRun.chained))
    monkeypatch.setattr(TvmLayerRun, "isolated", with_one_more(TvmLayerRun.isolated))
    row = diff(model=program, num_samples=1, threads=1).row
    assert row["layers"][1]["cause"] == UNEXPLAINED


def test_the_command_takes_programs(program):
    result = CliRunner().invoke(app, ["diff", program, "--num-samples", "1", "--json"])
    row = json.loads(result.stdout)
    assert row["engine"] == "pt2e"
    assert [layer["op"] for layer in row["layers"]][:2] == ["input", "aten::relu"]
    assert result.exit_code == (1 if row["n_differing"] else 0)


def test_fixed_point_is_told_from_a_bug(program):
    row = diff(model=program, actual="tvm:integer", num_samples=1, threads=1).row
    assert row["n_differing"]
    named = [layer["rule"]["actual"] for layer in row["layers"] if layer["rule"] is not None]
    assert set(named) <= {"integer"}
    assert UNEXPLAINED not in [layer["cause"] for layer in row["layers"]]


def test_an_operator_without_a_float_form_is_no_bug(program, monkeypatch):
    from quantvm.verification import qdq_in_float
    from quantvm.verification.layer_runs import TvmLayerRun

    monkeypatch.setattr(qdq_in_float, "unknown_ops", lambda module: ["relax.of_tomorrow"])
    for name in ("chained", "isolated"):
        original = getattr(TvmLayerRun, name)
        monkeypatch.setattr(TvmLayerRun, name, lambda *given, o=original: [found ^ 1 for found in o(*given)])
    row = diff(model=program, num_samples=1, threads=1).row
    assert row["layers"][1]["cause"] == "not checked for ties: no float form of relax.of_tomorrow is known"


def test_an_engine_cannot_be_a_side(program):
    with pytest.raises(ConfigError, match="for no engine of PyTorch"):
        diff(model=program, reference="torch:x86", num_samples=1)
