"""Every preset, operator by operator: PyTorch's engines against PyTorch, TVM's numerics against compiled code."""

from __future__ import annotations

import numpy as np
import pytest

from quantvm.layer_rules import PRESETS, preset_of
from quantvm.layer_rules.facts import FACTS
from quantvm.layer_rules.family import family_of
from quantvm.verification.layer_runs import QdqLayerRun, TorchLayerRun, TvmLayerRun
from quantvm.verification.torch_state import TorchState

from .conftest import ENVIRONMENT

CONTRACTIONS = ("conv2d", "linear")


def check(subject, preset, expected, kinds=None):
    for index, layer in enumerate(subject.program.layers):
        operator = subject.operator(index)
        if kinds is None or kinds(operator.kind):
            found = subject.by_preset(index, preset)
            np.testing.assert_array_equal(found, expected[index], f"{layer.name} ({operator.kind}) under {preset}")


def test_every_kind_of_operator_is_there(subject_of):
    kinds = {operator.operator.kind for operator in subject_of("fbgemm").operators}
    assert kinds == {
        "quantize", "conv2d", "linear", "add", "mul", "concat", "hardswish", "hardsigmoid", "sigmoid", "leaky_relu",
        "softsign", "relu", "clip", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean",
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_pytorch(engine, subject_of):
    subject = subject_of(engine)
    check(subject, engine, subject.layers)


def test_pytorch_computes_layers_from_given_ones(subject_of):
    subject = subject_of("fbgemm")
    run = TorchLayerRun(subject.program, TorchState("fbgemm", 1))
    for found, expected in zip(run.isolated(subject.x_f32, subject.layers), subject.layers, strict=True):
        np.testing.assert_array_equal(found, expected)
    other = [255 - layer for layer in subject.layers]
    moved = run.isolated(subject.x_f32, other)
    assert np.array_equal(moved[0], subject.layers[0]), "no layer comes before it"
    assert all(not np.array_equal(a, b) for a, b in zip(moved[1:], subject.layers[1:], strict=True))


@pytest.mark.parametrize(
    ("numerics", "preset"),
    [
        ("torch", "onednn"),
        ("integer", "integer"),
        pytest.param("integer:to_even", "integer:to_even", marks=pytest.mark.nightly),
        pytest.param("qdq", "pt2e", marks=pytest.mark.nightly),
    ],
)
def test_compiled_code(numerics, preset, subject_of):
    subject = subject_of("fbgemm")
    engine = preset if numerics == "torch" else "fbgemm"
    run = TvmLayerRun(
        subject.program,
        numerics=numerics,
        state=TorchState(engine, 1),
        channels_last=subject.formats,
        target="native",
    )
    check(subject, preset, run.isolated(subject.x_f32, subject.layers), _exact_under(numerics))


def _exact_under(numerics):
    if numerics != "qdq":
        return None
    # a mean of reals has no order that numerics=qdq prescribes
    return lambda kind: kind not in ("mean", "adaptive_avg_pool2d", "avg_pool2d")


def test_floats_between_dequantize_and_quantize(subject_of):
    """Sums of floats have an order of their own; all else is exact, and sums are off at ties by one step."""
    subject = subject_of("fbgemm")
    found = QdqLayerRun(subject.program, channels_last=subject.formats, state=TorchState("fbgemm", 1)).isolated(
        subject.x_f32, subject.layers
    )
    sums = (*CONTRACTIONS, "mean", "avg_pool2d", "adaptive_avg_pool2d")
    check(subject, "qdq", found, lambda kind: kind not in sums)
    for index in range(len(subject.layers)):
        steps = np.abs(found[index].astype(int) - subject.by_preset(index, "qdq"))
        assert steps.max() <= 1
        if subject.operator(index).kind in CONTRACTIONS:  # averages of few integers are often at ties
            assert np.count_nonzero(steps) <= 0.01 * steps.size


def test_what_differs_from_a_preset_says_so(subject_of):
    """Facts whose every value gives the same integers would be no facts."""
    subject = subject_of("fbgemm")
    seen, differing = set(), set()
    for index in range(len(subject.layers)):
        operator = subject.operator(index)
        family = family_of(operator.kind)
        for base in ("fbgemm", "onednn", "qnnpack", "integer"):
            facts = preset_of(operator, base, ENVIRONMENT).facts
            expected = subject.evaluated(index, facts)
            for fact, values in family.options.items():
                for value in values:
                    switched = {**facts, fact: value}
                    seen.add((fact, value))
                    if value != facts[fact] and family.is_valid(operator, switched):
                        found = subject.evaluated(index, switched)
                        if not np.array_equal(found, expected):
                            differing |= {(fact, value), (fact, facts[fact])}
    assert seen == {(fact, value) for fact, (_, values) in FACTS.items() for value in values}
    # what is within one rounding of each other shows only next to ties, of which a small module has few
    next_to_ties = {"multiplier", "divisor", "dequantize", "limits", "clip", "sum"}
    of_pairs = {("padding", "skipped")} if ENVIRONMENT.pytorch.cpu.vnni else set()  # no preset has sums of pairs there
    same = seen - differing - of_pairs
    assert {fact for fact, _ in same} <= next_to_ties, same


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_made_of_facts_that_there_are(preset, subject_of):
    subject = subject_of("fbgemm")
    for index in range(len(subject.layers)):
        operator = subject.operator(index)
        family, facts = family_of(operator.kind), preset_of(operator, preset, ENVIRONMENT).facts
        assert set(facts) == set(family.options)
        assert all(value in family.options[fact] for fact, value in facts.items()), facts
        if preset != "qnnpack":  # whose additions take only scales of a limited ratio
            assert family.is_valid(operator, facts)


def test_selected_elements_are_those_of_all(subject_of):
    subject = subject_of("fbgemm")
    for index in range(len(subject.layers)):
        operator = subject.operator(index)
        for preset in ("fbgemm", "onednn", "integer"):
            facts = preset_of(operator, preset, ENVIRONMENT).facts
            whole = subject.evaluated(index, facts)
            select = np.arange(0, whole.size, 3)
            np.testing.assert_array_equal(
                subject.evaluated(index, facts, select), np.ascontiguousarray(whole).reshape(-1)[select]
            )
