"""Tests whose tensors lie against pages without access: `python -m tests.guarded SIDES pytest-arguments`.

`guarded_memory.c` is preloaded into the process, and every tensor and workspace of TVM's runtime comes from it: inputs,
packed constants, outputs, and what lies between two kernels of a model. What lies on a kernel's stack is not guarded.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

SIDES = {"left": 1, "right": 2, "exact": 3}
"""The numbers of `guarded_memory.c`. exact needs kernels that assume no alignment, which the plugin has made then."""
VARIABLE = "QUANTVM_GUARD"


def library() -> ctypes.CDLL | None:
    """Returns the preloaded library, or None where this process's memory is not guarded."""
    if VARIABLE not in os.environ:
        return None
    found = ctypes.CDLL(None)
    found.quantvm_guarded.restype = ctypes.c_uint64
    return found


def sides() -> Iterator[str]:
    """Yields each asked side after it was chosen for what is allocated next; once nothing, if memory is not guarded."""
    found = library()
    if found is None:
        yield ""
        return
    for side in os.environ[VARIABLE].split(","):
        found.quantvm_guard(SIDES[side])
        yield side
