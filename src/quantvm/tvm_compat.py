"""The only file that knows TVM version differences and host probing through TVM."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import tvm

from quantvm.errors import CompileError


@lru_cache(maxsize=1)
def native_target() -> Any:
    """Returns the TVM target of this machine's CPU, with every feature that LLVM detects."""
    cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
    return tvm.target.Target({"kind": "llvm", "mcpu": str(cpu)})


def make_target(options: Mapping[str, str]) -> Any:
    """Returns an LLVM target.

    Args:
        options: mcpu, mtriple, and mattr as a comma-separated list.

    Raises:
        CompileError: LLVM does not know the CPU, or TVM does not take an option.
    """
    fields: dict[str, Any] = {"kind": "llvm", **options}
    if "mattr" in fields:
        fields["mattr"] = [part for part in options["mattr"].split(",") if part]
    try:
        target = tvm.target.Target(fields)
    except (ValueError, TypeError, tvm.error.InternalError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CompileError(f"TVM does not take the target {dict(options)}: {reason}") from error
    cpu = options.get("mcpu")
    if cpu is not None:
        known = {str(name) for name in tvm.get_global_func("target.llvm_get_cpu_archlist")(target)}
        if cpu not in known:
            raise CompileError(f"LLVM knows no CPU {cpu!r} for this target; see `quantvm list targets`")
    return target


def build_executable(module: tvm.IRModule, target: Any) -> Any:
    """Returns the Relax VM executable of a lowered module.

    No operator is fused here: the int8 kernels are complete, and fusing float ones would let LLVM contract products
    and sums that PyTorch rounds one by one.
    """
    from tvm import relax

    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return tvm.compile(module, target=target, relax_pipeline=tvm.transform.Sequential(passes))


def use_threads(threads: int) -> None:
    """Makes TVM's thread pool of this process use `threads` threads."""
    tvm.get_global_func("runtime.config_threadpool")(_ALL_CORES, threads)


_ALL_CORES = -3
"""TVM's affinity mode in which every thread may run on every core, so that nothing is pinned."""
