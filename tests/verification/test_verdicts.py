"""What compiling says of its own outputs: verdicts, where they stand, and when they are found again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import quantvm
from quantvm.cli import app
from quantvm.errors import VerificationError
from quantvm.frontend.source import Source
from quantvm.frontend.torchscript import contractions
from quantvm.runtime.signature import Signature, TensorSpec
from quantvm.verification import checking
from quantvm.verification.inputs import runs_for
from quantvm.verification.kept import digest_of_model
from quantvm.verification.outputs import Difference
from tests.quantized_modules import Quantized, conv2d, image, save_traced

SHAPE = (1, 3, 6, 6)


@pytest.fixture
def module():
    return Quantized(conv2d(3, 4, padding=1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path))
    monkeypatch.delenv("QUANTVM_CACHE_BYTES")
    return tmp_path


def test_a_second_compilation_compares_nothing(module, folder, monkeypatch):
    first = quantvm.compile(module, image(*SHAPE), engine="fbgemm", threads=1)
    assert (first.verification.verdict, first.verification.batch_sizes) == ("exact", (1, 2))
    monkeypatch.setattr(checking, "reference_of", lambda *args, **options: pytest.fail("compared again"))
    again = quantvm.compile(module, image(*SHAPE), engine="fbgemm", threads=1)
    assert again.report.cached
    assert again.verification == first.verification
    assert repr(again).endswith(f"verified: {first.verification.text}>")


class Scaled(nn.Module):
    """A module of which an attribute that is in no state and no repr decides the program."""

    def __init__(self, options: dict[str, float]) -> None:
        super().__init__()
        self.options, self.body = options, Quantized(conv2d(3, 4, padding=1))
        self.eval()

    def forward(self, x):
        return self.body(x * self.options["by"])


def test_digests_of_models_see_what_only_a_trace_shows(module):
    digests = [digest_of_model(Source(Scaled({"by": by}), image(*SHAPE), "fbgemm")) for by in (1.5, 1.5, 2.0)]
    assert digests[0] is not None
    assert digests[0] == digests[1] != digests[2]


def test_compiling_leaves_torch_as_it_was(module):
    before = torch.backends.quantized.engine, torch.get_num_threads()
    quantvm.compile(module, image(*SHAPE), engine="qnnpack", threads=before[1] + 1, cache=False)
    assert (torch.backends.quantized.engine, torch.get_num_threads()) == before


def test_not_asked_for(module):
    found = quantvm.compile(module, image(*SHAPE), engine="fbgemm", threads=1, cache=False, verify=False)
    assert found.verification.text == "not run: verify=False"
    other = quantvm.compile(
        module, image(*SHAPE), engine="fbgemm", threads=1, cache=False, target="llvm -mtriple=aarch64-linux-gnu"
    )
    assert other.verification.verdict == "not run"
    assert "aarch64" in other.verification.reason


def test_outputs_of_few_values_prove_nothing():
    saturated = Quantized(conv2d(3, 4, scale=1e4))
    found = quantvm.compile(saturated, image(*SHAPE), engine="fbgemm", threads=1, cache=False).verification
    assert found.verdict == "degenerate"
    assert "output 0 has only 1 distinct value among" in found.reason


def test_the_command_ends_with_1(module, tmp_path, monkeypatch):
    path = save_traced(module, image(*SHAPE), tmp_path / "model.pt")
    command = ["compile", str(path), "--input-shape", "1,3,6,6", "--threads", "1", "--json"]
    right = CliRunner().invoke(app, command)
    assert json.loads(right.stdout)["verification"]["verdict"] == "exact"
    monkeypatch.setattr(contractions, "_bias", lambda bias, rank: None)
    wrong = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "model.qvm")])
    assert wrong.exit_code == 1
    assert "the compiled code is not what PyTorch (fbgemm)" in wrong.output
    assert "The first layer that differs is body (quantized::conv2d)" in wrong.output
    assert f"quantvm diff {path} --input-shape 1,3,6,6 --engine fbgemm --threads 1" in wrong.output
    assert not (tmp_path / "model.qvm").exists()
    anyway = CliRunner().invoke(app, [*command, "--no-verify"])
    assert (anyway.exit_code, json.loads(anyway.stdout)["verification"]["verdict"]) == (0, "not run")


def test_an_example_that_is_constant_is_replaced():
    signature = Signature((TensorSpec("x", (None, 3, 4, 4)),), ())
    zeros, noise = np.zeros((6, 3, 4, 4), np.float32), image(6, 3, 4, 4).numpy()
    runs, sizes = runs_for(signature, [noise])
    assert sizes == (4, 1)
    assert np.array_equal(runs[0][0], noise[:4])
    runs, _ = runs_for(signature, [zeros])
    assert len(np.unique(runs[0][0])) > 100
    again, _ = runs_for(signature, [zeros])
    assert np.array_equal(runs[1][0], again[1][0])
    fixed, sizes = runs_for(Signature((TensorSpec("x", (2, 3)),), ()), None)
    assert (len(fixed), sizes) == (1, (2,))


def test_bits_are_compared_and_shapes():
    found = Difference()
    x = np.array([0.0, 1.0, np.nan], np.float32)
    found.add([x], [x.copy()], 1)
    assert (found.n, found.different) == (3, 0)
    found.add([np.array([-0.0, 1.0, 2.0], np.float32)], [x], 1)
    assert found.different == 2
    assert found.greatest == np.inf
    found.add([x[:2]], [x], 1)
    assert found.different == 5


def test_the_error_is_of_quantvm():
    assert issubclass(VerificationError, quantvm.QuantvmError)
