"""The order of the lowering passes, and what they report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import tvm
from tvm import relax

from quantvm.choices import ENGINES
from quantvm.errors import STATIC_MAY_HELP, CompileError, stage
from quantvm.kernels.builder import target_features
from quantvm.kernels.conv.dot import PORTABLE, select_dot, select_pairs
from quantvm.kernels.float.float_matmul import select_tile
from quantvm.kernels.isa import PLAIN, select_isa
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.kernels.schedule.schedules import Schedules
from quantvm.lowering.float.float_kernels import call_float_kernels
from quantvm.lowering.float.float_ops import PYTORCHS, float_ops, legalize_float_ops
from quantvm.lowering.qdq.legalize import legalize_qdq
from quantvm.lowering.torch.legalize import Legalization, legalize
from quantvm.numerics.integer import parse_numerics
from quantvm.qdq.attributes import engine_of, pytorch_of, torch_tables
from quantvm.qdq.bindings import definitions, resolved
from quantvm.qdq.expressions import is_call, is_per_tensor, quant_params
from quantvm.qdq.verify import is_asked_for, verify
from quantvm.tvm_compat import is_dynamic

from .calls import KernelCall, kernel_calls
from .channel_affine import merge_channel_affines
from .fuse_qdq import fuse_qdq
from .hoist_quantize import hoist_quantize
from .owned_outputs import copy_shared_outputs
from .run_time_checks import add_run_time_checks
from .torch import contractions, elementwise, integer, normalizations, pools, reductions  # noqa: F401  (registers the lowerings)
from .validate import validate

_OF_FILES = ("onnx", "tflite")
"""Engines of programs that are not PyTorch's."""


@dataclass(frozen=True)
class LoweringOptions:
    """Options of the lowering.

    Attributes:
        target: a TVM target.
        numerics: one of `numerics.integer.NUMERICS`; None for `default_numerics`. torch: the same bits as the engine
            that the module's attribute `quantvm.engine` names. qdq: dequantize, float32, quantize, as the module says.
            integer, integer:to_even, integer:away: no float between quantize and dequantize.
        threads: PyTorch's thread count, on which the scalar tails of its element-wise kernels depend.
        dot: name of the dot product to force, of `kernels.conv.dot.DOT_PRODUCTS`; by default the first that the target
            has. With portable, no kernel uses special instructions.
        schedules: measured schedules for the target's CPU; for other convolutions a cost model chooses.
        in_float: whether all operators but quantize and dequantize stay in float, like unrecognised ones.
        dump_dir: folder to which the module is written after each phase, as TVMScript.
    """

    target: tvm.target.Target
    numerics: str | None = None
    threads: int = 1
    dot: str | None = None
    schedules: Schedules = field(default_factory=Schedules)
    in_float: bool = False
    dump_dir: Path | None = None


@dataclass(frozen=True)
class LoweringReport:
    """What the lowering did with the operators.

    Attributes:
        int8_macs: multiply-adds per image in int8 kernels.
        float_macs: multiply-adds per image left in float.
        float_ops: operators left in float, with the variable that holds the result.
        kernels: number of calls of each kernel.
        output_scale: scale of the output's quantization; None if the output does not come from a dequantize.
        calls: every call of a kernel or another function, in order of execution.
        convolutions: geometry and dot product of every convolution that has a schedule, without duplicates.
    """

    int8_macs: int
    float_macs: int
    float_ops: tuple[str, ...]
    kernels: dict[str, int]
    output_scale: float | None
    calls: tuple[KernelCall, ...] = ()
    convolutions: tuple[tuple[Conv2dShape, str], ...] = ()

    @property
    def int8_mac_share(self) -> float:
        """Share of the multiply-adds that run in int8, 0..1; 1 if there are no multiply-adds."""
        total = self.int8_macs + self.float_macs
        return self.int8_macs / total if total else 1.0


def default_numerics(module: tvm.IRModule) -> str:
    """Returns torch for a module of a PyTorch engine, and qdq if the engine is pt2e, onnx or tflite."""
    return "torch" if engine_of(module) in ENGINES else "qdq"


def lower(module: tvm.IRModule, options: LoweringOptions) -> tuple[tvm.IRModule, LoweringReport]:
    """Returns the module with quantized operators as calls of int8 kernels, and the report.

    Args:
        module: Relax in QDQ form, with the attribute `quantvm.engine`.
        options: target and numerics.

    Raises:
        CompileError: unknown numerics, a kernel that the target cannot run, or an unexpected internal error.
    """
    with stage("lowering the model to int8 kernels", CompileError, STATIC_MAY_HELP if is_dynamic(module) else ""):
        return _lowered(module, options)


def _lowered(module: tvm.IRModule, options: LoweringOptions) -> tuple[tvm.IRModule, LoweringReport]:
    try:
        followed, rounding = parse_numerics(options.numerics or default_numerics(module))
    except ValueError as error:
        raise CompileError(str(error)) from error
    if followed == "torch" and default_numerics(module) != "torch":
        raise CompileError(
            "numerics torch needs a program of a quantized PyTorch engine; use qdq or integer for this one"
        )
    phases = _Phases(options.dump_dir)
    phases.dump(module, "imported")
    validate(module)  # a program's own problems are reported before deviations from normal form
    phases.verify(module, "imported")
    output_scale = _output_scale(module)
    module = merge_channel_affines(relax.transform.CanonicalizeBindings()(module))
    phases.end(module, "channel_affine")
    engine = engine_of(module)
    try:
        dot = select_dot(options.target, options.dot)
    except ValueError as error:
        raise CompileError(str(error)) from error
    isa = PLAIN if options.dot == PORTABLE.name else select_isa(options.target)
    pytorch = pytorch_of(module, avx512="avx512f" in target_features(options.target))
    state = Legalization(
        replace(pytorch, threads=options.threads), dot, isa, options.schedules, followed, rounding,
        select_pairs(options.target, options.dot), torch_tables(module),
    )  # fmt: skip
    if followed == "qdq":
        module = hoist_quantize(module)
        phases.end(module, "hoist_quantize")
        module = legalize_qdq(module, state, divides=engine in _OF_FILES)
    else:
        module = fuse_qdq(module, ends_only=options.in_float, torch_only=followed == "torch")
        phases.end(module, "fuse_qdq")
        module = legalize(module, state)
    phases.end(module, "legalize")
    left_in_float, float_macs = float_ops(module)
    module = add_run_time_checks(module)
    phases.end(module, "run_time_checks")
    rules = {} if engine in _OF_FILES else PYTORCHS
    module = legalize_float_ops(call_float_kernels(module, select_tile(options.target)), rules)
    phases.end(module, "float_ops")
    module = copy_shared_outputs(module)
    phases.end(module, "owned_outputs")
    return module, LoweringReport(
        state.int8_macs, float_macs, left_in_float, dict(state.kernels), output_scale,
        kernel_calls(module, state.calls), tuple(state.convolutions),
    )  # fmt: skip


def _output_scale(module: tvm.IRModule) -> float | None:
    """Returns the scale of the per-tensor dequantize that computes the function's result, if there is one."""
    main = module["main"]
    expr = resolved(main.body.body, definitions(main))
    if not is_call(expr, "relax.dequantize") or not is_per_tensor(expr):
        return None
    return quant_params(expr).scale


class _Phases:
    """After each phase, writes the module to a folder and verifies it, if asked to."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._counter = folder, iter(range(100))

    def end(self, module: tvm.IRModule, phase: str) -> None:
        """Dumps and verifies the module; to be called after each phase."""
        self.dump(module, phase)
        self.verify(module, phase)

    def dump(self, module: tvm.IRModule, phase: str) -> None:
        """Writes the module as TVMScript."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            text = module.script(show_meta=False)
            (self._folder / f"{next(self._counter)}_{phase}.py").write_text(text, encoding="utf-8")

    def verify(self, module: tvm.IRModule, phase: str) -> None:
        """Raises an InternalError if the module is not in the normal form of the phase."""
        if is_asked_for():
            verify(module, phase)
