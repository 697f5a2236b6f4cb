"""The only file that knows TVM version differences and host probing through TVM."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import tvm


@lru_cache(maxsize=1)
def native_target() -> Any:
    """Returns the TVM target of this machine's CPU, with every feature that LLVM detects."""
    cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
    return tvm.target.Target({"kind": "llvm", "mcpu": str(cpu)})
