"""Random modules quantized by FX graph mode have the same bits in PyTorch and compiled."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis.errors import UnsatisfiedAssumption
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import quantvm
from quantvm.compiler import compile as compile_model
from quantvm.numerics.torch_engines import ENGINES
from quantvm.torch_compat import quantization_engine

from .drawn_plans import PARTS, check_together, drawn, searched
from .random_module_plans import KINDS, module_plans
from .random_modules import ModulePlan, RandomModule
from .random_programs import RejectedError, Side, as_tuple
from .test_fuzz import _torch_state  # noqa: F401  (fixtures)

pytestmark = pytest.mark.filterwarnings("ignore")

IN_FLOAT = {"matmul", "attention", "softmax", "sub"}
"""Operators that FX leaves in float, whose sums and exponentials are not PyTorch's to the last bit."""
FX_KINDS = tuple(kind for kind in KINDS if kind not in IN_FLOAT)
ACTIVATIONS_IN_FLOAT = {"gelu", "gelu_tanh", "silu"}
"""Likewise."""
TOGETHER = 10
"""Modules in one artifact of the quick test."""


def is_quantized(plan: ModulePlan) -> bool:
    """Returns whether FX leaves nothing of a plan in float, where bits would not be equal, nor in what is refused."""
    if any(step.options.get("transposed") for step in plan.steps):
        return False
    names = {step.options.get(key) for step in plan.steps for key in ("name", "activation")}
    return not names & ACTIVATIONS_IN_FLOAT


def quantized(module: nn.Module, example: tuple[torch.Tensor, ...], engine: str) -> nn.Module:
    """Returns a module quantized by FX under an engine, calibrated on its example.

    Raises:
        RejectedError: PyTorch cannot.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            prepared = prepare_fx(copy.deepcopy(module), get_default_qconfig_mapping(engine), example)
            prepared(*example)
            converted = convert_fx(prepared)
            converted(*example)
            return converted
    except Exception as error:
        raise RejectedError(f"{type(error).__name__}: {str(error)[:200]}") from error


def assert_same_bits(
    plans: Sequence[ModulePlan], engine: Any, batches: tuple[int, ...] = (2, 3), compiler: Any = compile_model
) -> None:
    """Quantizes modules, compiles them as one, and compares with PyTorch."""
    modules = [RandomModule(plan) for plan in plans]
    example = tuple(m.sample(batches[0], 0) for m in modules)
    with quantization_engine(engine):
        found = []
        for plan, module, x in zip(plans, modules, example, strict=True):
            with contextlib.suppress(RejectedError):
                found.append((plan, module, x, quantized(module, (x,), engine)))
        if not found:
            raise UnsatisfiedAssumption
        network = Side([q for _, _, _, q in found])
        if len(found) == 1 and not any(hasattr(m, "zero_point") for m in network.modules()):
            raise UnsatisfiedAssumption  # FX found nothing to quantize
        artifact = compiler(network, [x for _, _, x, _ in found], engine=engine, threads=1, cache=False)
        for batch in batches:
            inputs = tuple(m.sample(batch, plan.seed + batch) for plan, m, _, _ in found)
            actual = list(as_tuple(artifact(*inputs)))
            for (plan, _, _, q), x in zip(found, inputs, strict=True):
                for index, expected in enumerate(as_tuple(q(x))):
                    a = actual.pop(0)
                    expected = expected.dequantize() if expected.is_quantized else expected
                    assert (a.shape, a.dtype) == (expected.shape, expected.dtype), f"{engine} output {index} of {plan}"
                    wrong = a != expected
                    assert not wrong.any(), (
                        f"batch {batch}, {engine}: output {index}: {int(wrong.sum())} of {wrong.numel()} differ, by "
                        f"{float((a - expected).abs().max()):.4g}; {plan}"
                    )


@pytest.mark.parametrize("engine", ENGINES)
def test_random_modules_have_torchs_bits(engine):
    plans = [plan for plan in drawn(module_plans(3, FX_KINDS), TOGETHER, ENGINES.index(engine)) if is_quantized(plan)]
    check_together(plans, lambda some: assert_same_bits(some, engine))


@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
def test_many_random_modules_have_torchs_bits(part):
    engine = ENGINES[part % len(ENGINES)]
    plans = searched(module_plans(8, FX_KINDS).filter(is_quantized), part)
    check_together(plans, lambda some: assert_same_bits(some, engine, compiler=quantvm.compile))
