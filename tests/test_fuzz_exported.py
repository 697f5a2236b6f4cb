"""Random modules, quantized by PT2E and exported, compute what PyTorch says when compiled, but for ties of rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis.errors import UnsatisfiedAssumption

import quantvm
from quantvm.compiler import compile as compile_model

from .drawn_plans import PARTS, check_together, drawn, searched
from .random_module_plans import KINDS_OF_SEQUENCES, module_plans
from .random_modules import ModulePlan, RandomModule
from .random_programs import (
    QUANTIZERS,
    TORCHAO,
    RejectedError,
    Side,
    as_tuple,
    quantized_program,
    torchao_program,
    unexplained,
    within_float_sums,
)

pytest.importorskip("torchao")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

TOGETHER = 5
"""Modules in one program of the quick test."""
LEFT_OUT: tuple[str, ...] = ()
"""Quantizers of which quantvm does not compute something right yet."""
NAMES = [name for name in (*QUANTIZERS, *TORCHAO) if name not in LEFT_OUT]
QUICK_NAMES = ("x86", "xnnpack", "arm", "uint8", "int8 symmetric", "channels", "rows", "asymmetric")


def strategy(quantizer: str, max_steps: int) -> Any:
    """Returns the strategy of modules that a quantizer is for; torchao's is for linear layers of several features."""
    if quantizer not in TORCHAO:
        return module_plans(max_steps)
    return module_plans(max_steps, KINDS_OF_SEQUENCES, (2, 3)).filter(_has_no_single_feature)


def _has_no_single_feature(plan: ModulePlan) -> bool:
    return all(1 not in p.shape for p in RandomModule(plan).parameters())


def is_quantized(program: torch.export.ExportedProgram) -> bool:
    """Returns whether a quantizer found anything to quantize."""
    return any("quantize" in str(node.target) for node in program.graph.nodes)


def assert_explained(
    plans: Sequence[ModulePlan],
    quantizer: str,
    dynamic: bool,
    batches: tuple[int, ...] = (2, 3),
    compiler: Any = compile_model,
) -> None:
    """Quantizes modules in one program, compiles it, and compares with PyTorch's run of it."""
    modules = [RandomModule(plan) for plan in plans]
    module = Side(modules) if len(modules) > 1 else modules[0]
    example = tuple(m.sample(batches[0], 0) for m in modules)
    try:
        make = torchao_program if quantizer in TORCHAO else quantized_program
        program = make(module, example, quantizer, dynamic=dynamic)
    except RejectedError:
        if len(plans) == 1:
            raise UnsatisfiedAssumption from None
        for plan in plans:  # one that the framework rejects takes no other with it
            with contextlib.suppress(UnsatisfiedAssumption):
                assert_explained([plan], quantizer, dynamic, batches, compiler)
        return
    if len(plans) == 1 and not is_quantized(program.plain):
        raise UnsatisfiedAssumption
    artifact = compiler(program.plain, list(example), threads=1, cache=False)
    opened = None
    for batch in batches if dynamic else batches[:1]:
        inputs = tuple(m.sample(batch, plan.seed + batch) for m, plan in zip(modules, plans, strict=True))
        actual, expected = as_tuple(artifact(*inputs)), as_tuple(program.plain.module()(*inputs))
        if within_float_sums(actual, expected):
            continue
        opened = opened or compile_model(program.open, list(example), threads=1, cache=False)
        found = as_tuple(opened(*inputs))
        for index, (fused, a) in enumerate(zip(actual, found, strict=False)):
            assert torch.equal(fused, a), f"output {index} differs where all is returned; {plans} {quantizer}"
        assert (wrong := unexplained(program, inputs, found)) is None, f"{wrong}; batch {batch}, {quantizer}: {plans}"


@pytest.mark.parametrize("quantizer", QUICK_NAMES)
def test_random_modules_are_torchs(quantizer):
    number = QUICK_NAMES.index(quantizer)
    plans = drawn(strategy(quantizer, 3), TOGETHER, number)
    check_together(plans, lambda some: assert_explained(some, quantizer, dynamic=number % 2 == 0))


@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
def test_many_random_modules_are_torchs(part):
    quantizer, dynamic = NAMES[part % len(NAMES)], part // len(NAMES) % 2 == 0
    plans = searched(strategy(quantizer, 8), part)
    check_together(plans, lambda some: assert_explained(some, quantizer, dynamic, compiler=quantvm.compile))
