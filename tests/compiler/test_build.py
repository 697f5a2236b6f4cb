"""Code is generated once, whether it is run, saved or both; without a linker it runs all the same."""

from __future__ import annotations

import pytest
import torch

import quantvm
from quantvm import tvm_compat
from quantvm.compiler import compile as compile_model
from tests.quantized_modules import Quantized, image

pytestmark = pytest.mark.usefixtures("one_torch_thread", "fbgemm")
RELU, X = Quantized(torch.nn.functional.relu), image(1, 3, 4, 4)


@pytest.fixture
def generated(monkeypatch):
    """Returns the names of the functions that had LLVM generate code, in order."""
    names: list[str] = []
    for name in ("code_objects", "copied"):
        function = getattr(tvm_compat, name)
        monkeypatch.setattr(tvm_compat, name, lambda *a, n=name, f=function: (names.append(n), f(*a))[1])
    return names


def test_code_that_was_run_is_saved_without_llvm(generated, tmp_path):
    artifact = quantvm.compile(RELU, X, cache=False)
    assert artifact.verification.verdict == "exact"
    path = artifact.save(tmp_path / "run.qvm")
    assert torch.equal(quantvm.load(path)(X), RELU(X))
    assert generated == ["code_objects"]
    assert path.read_bytes() == artifact.save(tmp_path / "again.qvm").read_bytes()
    assert generated == ["code_objects"]


def test_code_that_was_saved_is_run_without_llvm(generated, tmp_path):
    artifact = compile_model(RELU, X, cache=False)
    saved = artifact.save(tmp_path / "before.qvm").read_bytes()
    assert torch.equal(artifact(X), RELU(X))
    assert generated == ["code_objects"]
    assert artifact.save(tmp_path / "after.qvm").read_bytes() == saved


@pytest.mark.parametrize("linker", [None, "false"])
def test_what_cannot_be_linked_runs_in_memory_and_is_saved_when_it_can(generated, tmp_path, linker):
    artifact = compile_model(RELU, X, cache=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tvm.support.cc.get_cc", lambda: linker)
        assert torch.equal(artifact(X), RELU(X))
    assert generated == ["code_objects", "copied"][linker is None :]
    assert torch.equal(quantvm.load(artifact.save(tmp_path / "later.qvm"))(X), RELU(X))


def test_what_the_system_does_not_load_runs_in_memory(generated, monkeypatch):
    def refuse(path):
        raise OSError(f"{path}: failed to map segment")

    monkeypatch.setattr(tvm_compat, "load_library", refuse)
    assert torch.equal(compile_model(RELU, X, cache=False)(X), RELU(X))
    assert generated == ["code_objects", "copied"]
