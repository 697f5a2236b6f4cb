"""The only file that knows TVM version differences and host probing through TVM."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import tvm

from quantvm.errors import STATIC_MAY_HELP, CompileError, stage


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
        raise CompileError(f"TVM does not take the target {dict(options)}: {_last_line(error)}") from error
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

    Raises:
        CompileError: TVM or LLVM cannot generate the code.
    """
    with stage("generating code", CompileError, STATIC_MAY_HELP if is_dynamic(module) else ""):
        return _executable(module, target)


def is_dynamic(module: tvm.IRModule) -> bool:
    """Returns whether a dimension of an input of `main` is symbolic."""
    sizes = (size for param in module["main"].params for size in getattr(param.ty, "shape", None) or ())
    return any(not hasattr(size, "value") for size in sizes)


def _executable(module: tvm.IRModule, target: Any) -> Any:
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


def start_vm(module: Any) -> Any:
    """Returns a Relax virtual machine on this CPU; `vm["main"]` is the model.

    Args:
        module: an executable of `build_executable`, whose code is generated now, or a module of `load_library`.
    """
    from tvm.runtime.vm import VirtualMachine

    with stage("starting the compiled code", CompileError):
        return VirtualMachine(module, tvm.cpu())


def copied(executable: Any) -> Any:
    """Returns a module for `start_vm`, of the same code and constants as an executable of `build_executable`.

    A virtual machine writes into what it starts: an empty memory scope for each constant. Saved after that, an
    executable has other bytes, and TVM warns of every scope, when it is saved and whenever it is loaded.
    """
    with tempfile.TemporaryDirectory(prefix="quantvm-") as folder:
        path = str(Path(folder, "executable"))
        executable.mod.write_to_file(path, "")
        copy = tvm.get_global_func("relax.ExecutableLoadFromFile")(path)
    for library in executable.mod.imports:
        copy.import_module(library)
    return copy


def load_library(path: Path) -> Any:
    """Returns the module in a shared library of `write_library`; the file may be removed afterwards.

    Raises:
        OSError: the library cannot be loaded.
    """
    try:
        return tvm.runtime.load_module(str(path))
    except (RuntimeError, ValueError, tvm.error.InternalError) as error:
        raise OSError(_last_line(error)) from error


def write_library(executable: Any, path: Path) -> None:
    """Writes an executable as a shared library.

    Raises:
        CompileError: there is no linker, or it fails.
    """
    from tvm.support import cc

    linker = cc.get_cc()
    if linker is None:
        raise CompileError(
            "a compiled model can only be saved with a C++ linker, and none was found; install g++ or clang, or name "
            "one by the environment variable CXX"
        )
    try:
        executable.export_library(str(path))
    except (RuntimeError, OSError, ValueError, tvm.error.InternalError) as error:
        raise CompileError(f"the linker {linker} failed: {_last_line(error)}") from error


def assembly(executable: Any) -> str:
    """Returns the assembly of all code of an executable of `build_executable`."""
    modules = [executable.mod, *executable.mod.imports]
    return "\n".join(module.inspect_source("asm") for module in modules if module.kind == "llvm")


def called_functions(executable: Any) -> Counter[str]:
    """Returns how often each function is called in one run of an executable, TVM's own among them."""
    lines = (line.split() for line in executable.as_text().splitlines())
    return Counter(words[1] for words in lines if len(words) > 1 and words[0] == "call")


def tvm_version() -> str:
    """Returns TVM's version."""
    return str(tvm.__version__)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def use_threads(threads: int) -> int:
    """Makes TVM's thread pool use `threads` threads; returns how many it uses.

    They are fewer where the pool began with fewer, for it never grows. Each thread that calls TVM has a pool of its
    own, which begins at its first use with TVM_NUM_THREADS threads; that variable is raised here if need be.
    """
    begins_with = os.environ.get("TVM_NUM_THREADS", "")
    if not begins_with.isdecimal() or int(begins_with) < threads:
        os.environ["TVM_NUM_THREADS"] = str(threads)
    tvm.get_global_func("runtime.config_threadpool")(_ALL_CORES, threads)
    return int(tvm.runtime.num_threads())


_ALL_CORES = -3
"""TVM's affinity mode in which every thread may run on every core, so that nothing is pinned."""


@contextmanager
def closed_on_error(block_builder: Any) -> Iterator[None]:
    """Closes the block of a Relax builder that an error leaves open, or TVM would warn of it on stderr."""
    try:
        yield
    except BaseException:
        block_builder._end_block()  # TVM opens one more behind a dataflow block
        raise


@contextmanager
def dataflow(block_builder: Any) -> Iterator[None]:
    """A dataflow block of a Relax builder, closed whatever happens."""
    with closed_on_error(block_builder), block_builder.dataflow():
        yield
