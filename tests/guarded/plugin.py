"""What a test run with guarded memory changes in TVM and in the kernels."""

from __future__ import annotations

import functools
import os

import pytest

from . import SIDES, VARIABLE, library


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the first side, kernels without alignment for `exact`, and storage of a tensor's own size in models."""
    from tvm.runtime.vm import VirtualMachine

    from quantvm.kernels import builder

    first = os.environ[VARIABLE].split(",")[0]
    found = library()
    assert found is not None
    found.quantvm_guard(SIDES[first])
    if first == "exact":
        builder.ALIGNMENT_BYTES = 1
    # TVM's pooled allocator rounds every size up to whole pages
    VirtualMachine.__init__ = functools.partialmethod(VirtualMachine.__init__, memory_cfg="naive")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how much was guarded."""
    found = library()
    assert found is not None
    tensors, workspaces = found.quantvm_guarded(0), found.quantvm_guarded(1)
    terminalreporter.write_line(f"guarded ({os.environ[VARIABLE]}): {tensors} tensors, {workspaces} workspaces")
