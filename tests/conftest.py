"""What holds for every test."""

from __future__ import annotations

import pytest
import torch
import tvm

from quantvm import tvm_compat
from quantvm.compiler.build import BuiltLibrary
from quantvm.qdq.verify import VERIFY_VARIABLE
from quantvm.torch_compat import quantization_engine

SHIPPED = (
    "compiler", "kernels", "models", "runtime",
    "test_end_to_end.py", "test_run_time_checks.py", "test_seeded_faults.py",
)  # fmt: skip
"""Folders and files of tests for which code is generated as users get it; so it is for commands in other processes.

In the nightly run it is so for all but the searches, which are about what is lowered, not about LLVM.
"""

LEFT_OUT = (
    "disable-lsr", "disable-cgp", "disable-machine-licm", "disable-machine-sink", "disable-machine-cse",
    "disable-block-placement", "disable-post-ra", "disable-branch-fold", "disable-constant-hoisting",
    "disable-tail-duplicate", "disable-copyprop",
)  # fmt: skip
"""Passes of LLVM's code generator that only make code faster: a fourth of its time."""

_generate, _linked = tvm_compat._executable, BuiltLibrary._linked


@pytest.fixture(autouse=True, scope="session")
def _no_compiled_models_are_kept():
    """Tests neither find what an earlier run compiled nor fill the user's cache; those of the cache make one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTVM_CACHE_BYTES", "0")
        yield


@pytest.fixture(autouse=True, scope="session")
def _every_phase_is_verified():
    """Whatever a test lowers is in normal form after each phase (`quantvm.qdq.verify`); so it is in its commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VERIFY_VARIABLE, "1")
        yield


@pytest.fixture
def one_torch_thread():
    """Where PyTorch's scalar tails lie depends on its thread count; what a test sets is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fbgemm():
    """PyTorch's arithmetic depends on its engine; what a test sets is put back."""
    with quantization_engine("fbgemm"):
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Has most tests generate code in half the time: what importing and lowering make of a model is not LLVM's matter.

    The kernels are the same. LLVM unrolls, combines and moves less, what is computed twice or for nothing is left to
    it, and kernels do not check once more the shapes of what the virtual machine hands them, which the lowering has
    checked (`tensors.call_kernel`). What is never saved is not linked.
    """
    is_nightly = "nightly" in (item.config.getoption("markexpr") or "").replace("not nightly", "")
    parts = item.path.relative_to(item.config.rootpath / "tests").parts
    as_shipped = bool({parts[0], parts[-1]} & {*SHIPPED}) or (is_nightly and not parts[0].startswith("test_fuzz"))
    tvm_compat._executable = _generate if as_shipped else _generate_quickly  # type: ignore[assignment]
    BuiltLibrary._linked = _linked if as_shipped else lambda self: None  # type: ignore[method-assign]


def _generate_quickly(module: tvm.IRModule, target: tvm.target.Target) -> object:
    quick = tvm.target.Target({**target.export(), "opt-level": 1, "cl-opt": [f"-{it}:bool=true" for it in LEFT_OUT]})
    left_out = ["tirx.RemoveNoOp", "tirx.CommonSubexprElim"]
    with tvm.transform.PassContext(opt_level=2, config={"tirx.disable_assert": True}, disabled_pass=left_out):
        return _generate(module, quick)
