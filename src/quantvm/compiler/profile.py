"""Where the time of a compiled model goes: the duration of every kernel call, by the Relax VM's instrumentation.

The VM calls a Python function before and after each function that it runs. A kernel's time therefore contains a part
of that function's cost, which is measured on a builtin of the VM that does nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantvm.runtime.target import Machine, parse_target

_NOTHING = "vm.builtin.null_value"
"""The builtin that the VM calls when it drops a tensor; it takes no argument and returns at once."""


@dataclass(frozen=True)
class CallProfile:
    """One kernel call of the model.

    Attributes:
        layer: the PyTorch module, see `lowering.KernelCall`.
        op: operator that it replaces.
        kernel: name of the kernel; empty for an operator left in float.
        in_shapes: shapes of the activations that it takes, in its memory order.
        out_shape: shape of its result.
        macs: multiply-adds in 8-bit integers, of all images.
        p50_ms: median duration, including the cost of instrumentation.
    """

    layer: str
    op: str
    kernel: str
    in_shapes: tuple[tuple[int, ...], ...]
    out_shape: tuple[int, ...]
    macs: int
    p50_ms: float


@dataclass(frozen=True)
class Profile:
    """Durations of one model on one batch; medians in milliseconds.

    Attributes:
        calls: in order of execution.
        total_ms: of the whole model without instrumentation, in the same process.
        instrumented_ms: of the whole model with instrumentation, which slows down every function of the VM.
        hook_ms: what instrumentation adds to the time of one call, measured on one that does nothing.
        n: how often each call was timed.
    """

    calls: tuple[CallProfile, ...]
    total_ms: float
    instrumented_ms: float
    hook_ms: float
    n: int


class _Hook:
    """Records the duration of each function, and the shapes of its tensors, in one run of the model.

    It must not keep a tensor, because the VM could then not reuse its memory.
    """

    def __init__(self, functions: Iterable[str]) -> None:
        self._functions = frozenset(functions)
        self._start_ns = 0
        self.nothing_ns: list[int] = []
        self.begin(with_shapes=False)

    def begin(self, *, with_shapes: bool) -> None:
        """Forgets the previous run."""
        self._with_shapes = with_shapes
        self.names: list[str] = []
        self.durations_ns: list[int] = []
        self.shapes: list[list[tuple[int, ...]]] = []

    def __call__(self, called: Any, name: str, before: bool, result: Any, *arguments: Any) -> None:
        if before:
            self._start_ns = time.perf_counter_ns()
            return
        duration_ns = time.perf_counter_ns() - self._start_ns
        if name == _NOTHING:
            self.nothing_ns.append(duration_ns)
        elif name in self._functions:
            self.names.append(name)
            self.durations_ns.append(duration_ns)
            if self._with_shapes:
                tensors = [argument for argument in arguments if hasattr(argument, "shape")]  # others are sizes
                self.shapes.append([tuple(int(d) for d in tensor.shape) for tensor in tensors])


def profile(
    module: Any,
    x_f32: np.ndarray,
    machine: Machine,
    *,
    min_calls: int = 20,
    min_seconds: float = 1.0,
) -> Profile:
    """Returns the duration of every kernel call of a quantized model; compiles it.

    Runs with and without instrumentation alternate, so that both run under the same conditions.

    Args:
        module: the imported model.
        x_f32: the batch to run, (N, 3, H, W).
        machine: what is compiled for; this machine must be able to run it.
        min_calls: the least number of runs of each kind.
        min_seconds: the least duration of the instrumented runs together.

    Raises:
        CompileError: as `quantvm.compile`.
    """
    import tvm

    from quantvm.lowering import LoweringOptions, lower
    from quantvm.tvm_compat import build_executable, use_threads

    tvm_target = parse_target(machine.target)
    lowered, report = lower(module, LoweringOptions(tvm_target, threads=machine.threads))
    executable = build_executable(lowered, tvm_target)
    use_threads(machine.threads)
    # instrumentation cannot be removed from a VM again
    plain, instrumented = (tvm.relax.VirtualMachine(executable, tvm.cpu()) for _ in range(2))
    expected = [call.function for call in report.calls]
    hook = _Hook(expected)
    instrumented.set_instrument(hook)
    x = tvm.runtime.tensor(x_f32)
    for _ in range(3):
        plain["main"](x)
        hook.begin(with_shapes=True)
        instrumented["main"](x)
    assert hook.names == expected, f"the VM called {hook.names}, expected {expected}"
    shapes = hook.shapes
    plain_ms: list[float] = []
    instrumented_ms: list[float] = []
    samples_ns: list[list[int]] = []
    while len(samples_ns) < min_calls or sum(instrumented_ms) < min_seconds * 1e3:
        plain_ms.append(_milliseconds(plain["main"], x))
        hook.begin(with_shapes=False)
        instrumented_ms.append(_milliseconds(instrumented["main"], x))
        samples_ns.append(hook.durations_ns)
    durations_ms = np.median(np.asarray(samples_ns), axis=0) / 1e6
    calls = tuple(
        CallProfile(
            call.layer, call.op, call.kernel, tuple(of[: call.n_inputs]), of[-1], call.macs * len(x_f32), float(p50_ms)
        )
        for call, of, p50_ms in zip(report.calls, shapes, durations_ms, strict=True)
    )
    hook_ms = statistics.median(hook.nothing_ns) / 1e6
    return Profile(calls, statistics.median(plain_ms), statistics.median(instrumented_ms), hook_ms, len(samples_ns))


def _milliseconds(run: Callable[[Any], Any], x: Any) -> float:
    start_ns = time.perf_counter_ns()
    run(x)
    return (time.perf_counter_ns() - start_ns) / 1e6
