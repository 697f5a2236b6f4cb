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
from quantvm.choices import ENGINES
from quantvm.compiler import compile as compile_model
from quantvm.errors import ModelImportError
from quantvm.frontend import import_model
from quantvm.torch_compat import quantization_engine

from .drawn_plans import PARTS, check_together, drawn, searched
from .random_module_plans import KINDS, module_plans
from .random_modules import ModulePlan, RandomModule
from .random_network import Step
from .random_programs import RejectedError, Side, as_tuple

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

IN_FLOAT = {"matmul", "attention", "softmax", "sub"}
"""Operators that FX leaves in float, whose sums and exponentials are not PyTorch's to the last bit."""
FX_KINDS = tuple(kind for kind in KINDS if kind not in IN_FLOAT)
ACTIVATIONS_IN_FLOAT = {"gelu", "gelu_tanh", "silu"}
"""Likewise."""
VIEWS = {"transpose", "flatten", "unsqueeze", "squeeze", "contiguous"}
"""Operators whose result may share memory with their input. FX dequantizes the inputs of all others: a copy."""
TOGETHER = 10
"""Modules in one artifact of the quick test."""


def is_quantized(plan: ModulePlan) -> bool:
    """Returns whether FX leaves nothing of a plan in float, where bits would not be equal, nor in what is refused.

    Nor is there what PyTorch returns in scrambled order and quantvm does not (docs/numerics.md).
    """
    if any(step.options.get("transposed") for step in plan.steps):
        return False
    names = {step.options.get(key) for step in plan.steps for key in ("name", "activation")}
    return not (names & ACTIVATIONS_IN_FLOAT or reads_overwritten_memory(plan) or enlarges_single_pixels(plan))


def reads_overwritten_memory(plan: ModulePlan) -> bool:
    """Returns whether a tensor is written to in place, and a view of it, or what it is a view of, is read later.

    By operators: outputs were dequantized before.
    """
    memory, tensor = [0], [0]  # of each value: the first value in that memory, and the first that is this very tensor
    in_place = [step.options.get("name") == "relu_" for step in plan.steps]
    for step, writes in zip(plan.steps, in_place, strict=True):
        is_same = writes or step.op == "dropout"
        memory.append(memory[step.inputs[0]] if is_same or step.op in VIEWS else len(memory))
        tensor.append(tensor[step.inputs[0]] if is_same else len(tensor))
    for at, (step, writes) in enumerate(zip(plan.steps, in_place, strict=True)):
        written = step.inputs[0]
        older = {i for i in range(at + 1) if memory[i] == memory[written] and tensor[i] != tensor[written]}
        if writes and older & {i for later in plan.steps[at + 1 :] for i in later.inputs}:
            return True
    return False


def enlarges_single_pixels(plan: ModulePlan) -> bool:
    """Returns whether nearest interpolation makes several pixels of one, of several channels."""
    at = [i for i, step in enumerate(plan.steps) if step.options.get("mode") == "nearest"]
    shapes = RandomModule(plan).shapes if at else []
    return any(shapes[plan.steps[i].inputs[0]][1:] == (1, 1) != shapes[i + 1][1:] and shapes[i + 1][0] > 1 for i in at)


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


CONV = Step("conv2d", (0,), {
    "channels": 4, "kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "bias": True,
    "norm": False, "transposed": False, "activation": "none",
})  # fmt: skip
VIEW = Step("transpose", (1,), {"dim0": 1, "dim1": 2})
DROPOUT = Step("dropout", (1,))
CHUNK = Step("chunk", (1,), {"parts": 2, "dim": 1, "index": 0})


def add(of: int) -> Step:
    return Step("add", (of, of))


def relu_(of: int) -> Step:
    return Step("activation", (of,), {"name": "relu_"})


@pytest.mark.parametrize(
    ("steps", "outputs", "is_left_out"),
    [
        ((CONV, VIEW, relu_(2), add(1)), (3, 4), True),
        ((CONV, VIEW, relu_(1), add(2)), (3, 4), True),
        ((CONV, VIEW, relu_(2)), (3, 1), False),
        ((CONV, VIEW, add(1), relu_(2)), (4, 3), False),
        ((CONV, CHUNK, relu_(2), add(1)), (3, 4), False),
        ((CONV, DROPOUT, relu_(2), add(1)), (3, 4), False),
        ((CONV, relu_(1), relu_(2), add(1)), (3, 4), False),
    ],
)
def test_reads_of_overwritten_memory_are_left_out(steps, outputs, is_left_out):
    """quantvm refuses them, and no other write in place."""
    plan = ModulePlan((3, 4, 4), steps, outputs, 0)
    assert is_quantized(plan) != is_left_out
    with contextlib.nullcontext() if not is_left_out else pytest.raises(ModelImportError, match="in place"):
        imported(plan)


def imported(plan: ModulePlan) -> Any:
    module = RandomModule(plan)
    x = module.sample(2, 0)
    with quantization_engine("fbgemm"):
        return import_model(quantized(module, (x,), "fbgemm"), x, engine="fbgemm")


@pytest.mark.parametrize(
    ("shape", "options", "is_left_out"),
    [
        ((3, 1, 1), {"mode": "nearest", "size": (4, 7)}, True),
        ((3, 1, 1), {"mode": "nearest", "scale_factor": 2}, True),
        ((3, 1, 1), {"mode": "nearest", "scale_factor": 1.5}, False),
        ((3, 1, 1), {"mode": "bilinear", "size": (4, 7), "align_corners": False}, False),
        ((3, 2, 1), {"mode": "nearest", "size": (4, 7)}, False),
        ((1, 1, 1), {"mode": "nearest", "size": (4, 7)}, False),
    ],
)
def test_enlarged_single_pixels_are_left_out(shape, options, is_left_out):
    assert is_quantized(ModulePlan(shape, (Step("interpolate", (0,), options),), (1,), 0)) != is_left_out


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
