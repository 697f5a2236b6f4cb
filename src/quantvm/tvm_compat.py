"""The only file that knows how versions of TVM differ, and that asks TVM about this machine."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from quantvm.errors import STATIC_MAY_HELP, CompileError, OutputError, last_line, stage
from quantvm.storage.scratch import file_size_limit, memory_file, room_advice, room_bytes, scratch_folder


def release_pooled_memory() -> None:
    """Frees the working memory that TVM keeps from models that ran, to reuse it for later runs.

    Its pool has as many buffers of each size as were ever in use at once, and never shrinks by itself.
    """
    tvm.get_global_func("vm.builtin.memory_manager.clear")()


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
        raise CompileError(f"TVM does not take the target {dict(options)}: {last_line(error)}") from error
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
        tvm.transform.module_pass(_with_ordered_shapes, opt_level=0),
        relax.transform.AttachGlobalSymbol(),
    ]
    return tvm.compile(module, target=target, relax_pipeline=tvm.transform.Sequential(passes))


def _with_ordered_shapes(module: tvm.IRModule, _: Any) -> tvm.IRModule:
    """Sorts what the functions of VMShapeLower compute: TVM orders it by addresses, which differ in every process."""
    for name, function in module.functions.items():
        if name.name_hint.startswith("shape_func") and isinstance(function, tvm.tirx.PrimFunc):
            module[name] = function.with_body(_in_order_of_slots(function.body))
    return module


def _in_order_of_slots(body: Any) -> Any:
    stores = list(body.seq) if isinstance(body, tvm.tirx.SeqStmt) else []
    if not all(isinstance(store, tvm.tirx.BufferStore) for store in stores):
        return body
    read = {slot for store in stores for slot in _slots_read(store.value)}  # of variables, which are never stored here
    ordered = sorted(stores, key=lambda store: int(store.indices[0]))
    is_independent = read.isdisjoint(int(store.indices[0]) for store in stores)
    return tvm.tirx.SeqStmt(ordered) if stores and is_independent else body


def _slots_read(value: Any) -> Iterator[int]:
    if isinstance(value, tvm.ir.TensorLoad):
        yield int(value.indices[0])
        return
    parts = [getattr(value, name, None) for name in ("a", "b", "value", "condition", "true_value", "false_value")]
    for part in (*parts, *getattr(value, "args", ())):
        if part is not None:
            yield from _slots_read(part)


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

    A virtual machine writes an empty memory scope for each constant into the executable that it starts. If the
    executable is saved after that, it has other bytes, and TVM warns about every scope when it is saved or loaded.
    """
    with ExitStack() as stack:
        in_memory = stack.enter_context(memory_file("executable"))
        path = in_memory or stack.enter_context(scratch_folder("executable")) / "executable"
        executable.mod.write_to_file(str(path), "")
        if in_memory is None and (room_bytes(path.parent) == 0 or path.stat().st_size == file_size_limit()):
            # TVM reports no error if the disk is full
            raise OutputError(f"there is no room for a copy of the executable; {room_advice(path.parent)}")
        copy = tvm.get_global_func("relax.ExecutableLoadFromFile")(str(path))
    for library in executable.mod.imports:
        copy.import_module(library)
    return copy


def load_library(path: Path) -> Any:
    """Returns the module in a shared library of `write_library`; the file may be removed afterwards.

    The system unloads the library when the module, and what was made from it, is no longer used. Tensors stay valid:
    TVM's runtime allocates them, not the library.

    Raises:
        OSError: the library cannot be loaded.
    """
    try:
        return tvm_ffi.load_module(str(path), keep_module_alive=False)
    except (RuntimeError, ValueError, tvm.error.InternalError) as error:
        raise OSError(last_line(error)) from error


def find_linker() -> str:
    """Returns the C++ compiler that links libraries.

    Raises:
        CompileError: there is none.
    """
    from tvm.support import cc

    linker = cc.get_cc()
    if linker is None:
        raise CompileError(
            "a compiled model can only be saved with a C++ linker, and none was found; install g++ or clang, or name "
            "one by the environment variable CXX"
        )
    return str(linker)


def code_objects(executable: Any, folder: Path) -> list[bytes]:
    """Returns the objects that LLVM generates for an executable's code; constants and bytecode are not in them.

    Args:
        executable: of `build_executable`.
        folder: of `scratch_folder`, for systems without files in memory.

    Raises:
        CompileError: LLVM fails, or there is no room.
    """
    with _objects_reported():
        return [_object(module, folder / "code.o") for module in _code_modules(executable)]


def write_library(executable: Any, code: list[bytes], linker: str, path: Path) -> None:
    """Writes an executable as a shared library, the same bytes for equal executables.

    Args:
        executable: of `build_executable`.
        code: its `code_objects`.
        linker: of `find_linker`.
        path: of the library, in a folder of `scratch_folder`.

    Raises:
        CompileError: the linker fails, or there is no room.
    """
    target = next((str(module["_get_target_string"]()) for module in _code_modules(executable)), '{"kind": "llvm"}')
    constants = tvm.get_global_func("runtime.ModulePackImportsToLLVM")(executable.mod, False, target, "")
    with ExitStack() as stack:
        with _objects_reported():
            objects = [_stored(content, path.with_name(f"{index}.o"), stack) for index, content in enumerate(code)]
            objects.append(_object_file(constants, path.with_name("constants.o"), stack))
        _link(linker, objects, path)


def _code_modules(executable: Any) -> list[Any]:
    return [module for module in executable.mod.imports if module.kind == "llvm"]


@contextmanager
def _objects_reported() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError, tvm.error.InternalError) as error:
        advice = f"; {room_advice(Path(tempfile.gettempdir()) / 'objects')}" if isinstance(error, OSError) else ""
        raise CompileError(f"cannot write objects for the linker: {last_line(error)}{advice}") from error


def _object(module: Any, path: Path) -> bytes:
    with ExitStack() as stack:
        return _object_file(module, path, stack).read_bytes()


def _object_file(module: Any, path: Path, stack: ExitStack) -> Path:
    """Returns a file that holds the object of an LLVM module; `path`, or one in memory until the stack is left.

    LLVM ends the process if it cannot write an object. So objects are written to memory, or only if there is room.
    """
    in_memory = stack.enter_context(memory_file(path.name))
    if in_memory is None:
        need_bytes = len(module.inspect_source("ll"))  # an object is smaller than its text
        room = room_bytes(path.parent)
        if room is not None and room < need_bytes:
            raise OSError(
                errno.ENOSPC,
                f"{room:,} bytes are free, and up to {need_bytes:,} are needed; {room_advice(path.parent)}",
            )
    module.write_to_file(str(in_memory or path), "o")
    return in_memory or path


def _stored(content: bytes, path: Path, stack: ExitStack) -> Path:
    """Returns a file with a content; `path`, or one in memory until the stack is left."""
    stored = stack.enter_context(memory_file(path.name)) or path
    stored.write_bytes(content)
    return stored


def _link(linker: str, objects: list[Path], path: Path) -> None:
    flags = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    command = [linker, "-shared", "-fPIC", *flags, "-o", str(path), *map(str, objects)]
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise CompileError(f"the linker {linker} failed: {error.strerror or error}") from error
    if done.returncode == 0 and path.is_file():
        return
    said = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    no_room = next((line for line in said if any(text in line for text in _NO_ROOM)), None)
    reason = no_room or next(
        (line for line in said if "error" in line.lower()), (said or [f"exit {done.returncode}"])[0]
    )
    cause = OSError(errno.ENOSPC, reason) if no_room else None
    raise CompileError(f"the linker {linker} failed: {reason}; {room_advice(path.parent)}") from cause


_NO_ROOM = ("File size limit exceeded", *map(os.strerror, (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)))
"""What linkers say when the disk is full."""


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


def use_threads(threads: int) -> int:
    """Makes TVM's thread pool use `threads` threads; returns how many it uses.

    It uses fewer if the pool was started with fewer, because a pool never grows. Each thread that calls TVM has its own
    pool, which starts at its first use with TVM_NUM_THREADS threads; that variable is raised here if needed.
    """
    begins_with = os.environ.get("TVM_NUM_THREADS", "")
    if not begins_with.isdecimal() or int(begins_with) < threads:
        os.environ["TVM_NUM_THREADS"] = str(threads)
    note_thread_pool()
    tvm.get_global_func("runtime.config_threadpool")(_ALL_CORES, threads)
    return int(tvm.runtime.num_threads())


def note_thread_pool() -> None:
    """Notes that the calling thread has a thread pool from now on, as every thread that runs compiled code does."""
    _thread.has_pool = True


def renew_thread_pool() -> bool:
    """Replaces the calling thread's pool, if it has one, by a new one of as many threads; False if TVM cannot do that.

    The threads of the new pool wait for work without a lock, so the process may be forked. Only the calling thread
    exists in the child, where its pool is renewed again. If pool threads have slept before the fork, the child hangs or
    aborts.
    """
    if not getattr(_thread, "has_pool", False):
        return True
    try:
        reset = getattr(ctypes.CDLL(_loaded_runtime()), _RESET_THREAD_POOL)
    except (AttributeError, OSError):
        return False
    n_threads = int(tvm.runtime.num_threads())
    reset()
    tvm.get_global_func("runtime.config_threadpool")(_ALL_CORES, n_threads)
    return True


def _loaded_runtime() -> str | None:
    """Returns the file of TVM's runtime, which is already loaded; None means all that this process has loaded."""
    return next((str(path) for path in (Path(tvm.__file__).parent / "lib").glob("libtvm_runtime.*")), None)


_thread = threading.local()
_RESET_THREAD_POOL = "_ZN3tvm7runtime9threading15ResetThreadPoolEv"
"""`tvm::runtime::threading::ResetThreadPool`, which TVM exports and registers under no name."""

_ALL_CORES = -3
"""TVM's affinity mode that lets every thread run on every core, so that none is pinned."""


@contextmanager
def closed_on_error(block_builder: Any) -> Iterator[None]:
    """Closes the block of a Relax builder that an error leaves open; otherwise TVM warns about it on stderr."""
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
