"""`quantvm diff --save-repro`: the file that is written fails while the two sides differ, and only then."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import quantvm
from quantvm import diff
from quantvm.errors import CompileError
from quantvm.jobs.layer_differences.repro import parts
from quantvm.jobs.layer_differences.repro_text import ReproCase, repro_text
from quantvm.runtime.target import Machine
from quantvm.torch_compat import has_vnni
from quantvm.verification.torch_state import TorchState
from tests.quantized_modules import image, save_traced

from ...layer_rules.conftest import subject_of  # noqa: F401  (a fixture)
from .layers_alone import executed
from .test_diff import SHAPE, Ties

MACHINE = Machine("native", 1)
FBGEMM = TorchState("fbgemm", 1)


def run_pytest(*paths):
    """Runs files in one process: starting it takes longer than they do."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, paths)], capture_output=True,
        text=True, cwd=paths[0].parent, check=False,
    )  # fmt: skip


def test_a_difference_is_shown_alone(tmp_path):
    torch.backends.quantized.engine = "fbgemm"
    program = str(save_traced(Ties(), image(*SHAPE), tmp_path / "ties.pt"))
    options = {"model": program, "input_shape": SHAPE, "num_samples": 1, "threads": 1}
    path = tmp_path / "test_layer.py"
    row = diff(**options, reference="torch:onednn", save_repro=path).row
    assert (row["repro"], row["repro_problem"]) == (str(path), None)
    text = path.read_text()
    assert "nnq.Conv2d(3, 1, (3, 3), stride=(1, 1), padding=(0, 0)" in text, "one output channel, one pixel"
    assert len(text) < 6000
    of_equals = tmp_path / "test_equal_layer.py"
    of_equals.write_text(text.replace("on_torch('onednn')", "on_torch('fbgemm')"))
    done = run_pytest(path, of_equals)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 1 differ: tvm" in done.stdout
    assert "FAILED test_layer.py::" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_without_a_difference_none_is_written(tmp_path):
    program = str(save_traced(Ties(), image(*SHAPE), tmp_path / "ties.pt"))
    path = tmp_path / "test_layer.py"
    row = diff(model=program, input_shape=SHAPE, num_samples=1, threads=1, save_repro=path).row
    assert (row["repro"], row["n_differing"]) == (None, 0)
    assert row["repro_problem"] == "no layer differs where it is computed from equal inputs"
    assert not path.exists()


def test_a_layer_that_cannot_be_compiled_alone_is_told(tmp_path, monkeypatch):
    """It is not called equal."""

    def failing(*_, **__):
        raise CompileError("no code for this")

    torch.backends.quantized.engine = "fbgemm"
    program = str(save_traced(Ties(), image(*SHAPE), tmp_path / "ties.pt"))
    options = {"model": program, "input_shape": SHAPE, "num_samples": 1, "threads": 1, "reference": "torch:onednn"}
    monkeypatch.setattr(quantvm, "compile", failing)
    row = diff(**options, save_repro=tmp_path / "test_layer.py").row
    first = row["layers"][row["first"]]["name"]
    assert row["repro"] is None
    assert row["repro_problem"].startswith(f"layer {first} cannot be computed as the only one of a model: ")
    assert "no code for this" in row["repro_problem"]


def test_every_operator_alone_gives_what_it_gave_in_the_network(subject_of):  # noqa: F811
    """PyTorch computes the layer of the file; whole layers must come out as they were captured."""
    subject = subject_of("fbgemm")
    for index, layer in enumerate(subject.program.layers):
        operator, inputs = subject.operator(index), subject.inputs(index)
        case = ReproCase(operator, inputs, layer.name, "small", "torch", "torch:fbgemm", FBGEMM, MACHINE)
        found = executed(repro_text(case))["expected"]()
        np.testing.assert_array_equal(found, subject.layers[index], layer.name)


def test_parts_hold_the_element_that_they_were_cut_out_for(subject_of):  # noqa: F811
    subject = subject_of("fbgemm")
    for index, layer in enumerate(subject.program.layers):
        operator, expected = subject.operator(index), subject.layers[index]
        at = tuple(int(d) // 2 for d in expected.shape)
        inputs = subject.inputs(index)
        sizes = []
        for part, part_inputs in parts(operator, inputs, at):
            case = ReproCase(part, part_inputs, layer.name, "small", "torch", "torch", FBGEMM, MACHINE)
            found = executed(repro_text(case))["expected"]()
            if operator.kind in ("conv2d", "linear", "max_pool2d", "relu", "clip"):  # no formula depends on the place
                assert (found == expected[at]).any(), layer.name
            sizes.append(sum(x.size for x in part_inputs))
        assert sizes == sorted(sizes)
        assert sizes[-1] == sum(x[:1].size for x in inputs)


@pytest.mark.parametrize("side", ["tvm:integer", "tvm:qdq"])
def test_tvm_is_a_side_under_any_numerics(side, subject_of):  # noqa: F811
    subject = subject_of("fbgemm")
    index = subject.index("wide")
    case = ReproCase(subject.operator(index), subject.inputs(index), "wide", "small", "tvm", side, FBGEMM, MACHINE)
    text = repro_text(case)
    assert f"on_tvm('fbgemm', '{side.removeprefix('tvm:')}')" in text
    names = executed(text)
    np.testing.assert_array_equal(names["expected"](), subject.layers[index])
    if has_vnni():  # without, PyTorch's sums saturate, and only PyTorch's
        assert np.abs(names["found"]() - subject.layers[index].astype(int)).max() <= 1
