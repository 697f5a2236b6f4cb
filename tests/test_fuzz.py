"""Random quantized networks give the same bits in PyTorch and compiled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantvm.choices import ENGINES
from quantvm.compiler import compile as compile_model
from quantvm.torch_compat import quantization_engine

from .drawn_plans import PARTS, searched
from .random_network import Plan, RandomNetwork
from .random_plans import plans

QUICK = settings(
    max_examples=25,  # of each of the four engines
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def assert_same_bits(plan: Plan, threads: int = 1, batches: tuple[int, ...] = (1, 3)) -> None:
    """Compiles the plan's network and compares it with PyTorch on batches of both sizes."""
    network = RandomNetwork(plan)
    with quantization_engine(plan.engine):
        artifact = compile_model(network, network.sample(1, 0), engine=plan.engine, threads=threads)
    for batch in batches:
        x = network.sample(batch, plan.seed + batch)
        with quantization_engine(plan.engine):
            expected = network(x)
        actual = artifact(x)
        if not plan.returns_all:
            actual, expected = (actual,), (expected,)
        if all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True)):
            continue
        if plan.returns_all:
            pytest.fail(first_difference(plan, actual, expected, batch))
        assert_same_bits(replace(plan, returns_all=True), threads, (batch,))
        pytest.fail(f"batch {batch}: the output differs, but no intermediate where all are returned; {plan}")


def first_difference(plan: Plan, actual: tuple, expected: tuple, batch: int) -> str:
    """Returns which intermediate differs first, and how."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if a.shape != e.shape:
            return f"value {index}: shape {tuple(a.shape)}, expected {tuple(e.shape)}; {plan}"
        if not torch.equal(a, e):
            step = "the quantized input" if index == 0 else plan.steps[index - 1]
            wrong = (a != e).nonzero()
            at = tuple(wrong[0].tolist())
            return (
                f"batch {batch}: value {index} ({step}) of shape {tuple(e.shape)} differs first: {len(wrong)} of "
                f"{e.numel()} elements, at {at} got {a[at].item()!r}, expected {e[at].item()!r}; {plan}"
            )
    raise AssertionError("nothing differs")


@pytest.mark.parametrize("engine", ENGINES)
@QUICK
@given(data=st.data())
def test_random_networks_have_torchs_bits(engine, data):
    assert_same_bits(data.draw(plans(max_steps=5, engines=(engine,))))


@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_many_random_networks_have_torchs_bits(engine, part):
    for plan in searched(plans(max_steps=12, engines=(engine,)), part):
        assert_same_bits(plan)
