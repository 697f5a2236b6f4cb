"""What `diff` takes for oneDNN's arithmetic on a CPU with AMX is what the lowering chooses there."""

from __future__ import annotations

import numpy as np
import pytest

from quantvm.kernels.reference import accumulators_ref
from quantvm.kernels.schedule.schedule import Conv2dShape
from quantvm.layer_rules import Environment, Operator, Window, preset_of
from quantvm.layer_rules.family import family_of
from quantvm.numerics.onednn_amx import ConvGeometry, conv_separate_up_to, linear_separate_up_to
from quantvm.numerics.pytorch import Cpu, PyTorch
from quantvm.numerics.requantization import requantization, requantize
from quantvm.numerics.torch_engines import QuantParams, f32

WITH_AMX = Cpu(onednn_amx=True)
INPUT, OUTPUT = QuantParams(float(f32(0.0417)), 100), QuantParams(float(f32(0.31)), 77)


def _layer(rng: np.random.Generator, outputs: int, shape: tuple[int, ...]) -> dict:
    return {
        "inputs": (INPUT,),
        "output": OUTPUT,
        "weight": rng.integers(-128, 128, (outputs, *shape)).astype(np.int8),
        "weight_scales": (0.31 / 0.0417 / rng.integers(500, 3000, outputs)).astype(f32).astype(np.float64),  # ties
        "weight_zero_points": np.zeros(outputs, np.int64),
        "bias_f32": None if rng.random() < 0.7 else rng.normal(0, 2, outputs).astype(f32),
    }


def _expected(kind: str, operator: Operator, acc: np.ndarray, separate_up_to: int) -> np.ndarray:
    r = requantization(
        "onednn", kind, input_q=INPUT, weight_scales=operator.weight_scales, bias_f32=operator.bias_f32,
        output_q=OUTPUT, relu=False, channels=acc.shape[-1], separate_up_to=separate_up_to,
    )  # fmt: skip
    return requantize(acc, r)


def _found(operator: Operator, x: np.ndarray, environment: Environment) -> np.ndarray:
    facts = preset_of(operator, "onednn", environment).facts
    return family_of(operator.kind).evaluate(operator, [x], facts, environment, {}, None)


@pytest.mark.parametrize("threads", [1, 2])
def test_convolutions_follow_the_rule_of_the_lowering(threads):
    rng, chosen = np.random.default_rng(threads), set()
    for _ in range(40):
        groups = int(rng.choice([1, 1, 2]))
        channels, outputs = groups * int(rng.choice([4, 6, 16, 32])), groups * int(rng.choice([8, 24]))
        size, kernel, padding = int(rng.choice([1, 2, 7])), int(rng.choice([1, 3])), int(rng.integers(2))
        images = int(rng.choice([1, 2, 9]))
        if size + 2 * padding < kernel:
            continue
        window = Window((kernel, kernel), (1, 1), (padding,) * 4, (1, 1), groups)
        parts = _layer(rng, outputs, (channels // groups, kernel, kernel))
        operator = Operator("conv2d", window=window, in_size=(size, size), **parts)
        out = size + 2 * padding - kernel + 1
        geometry = ConvGeometry(
            (size, size), (out, out), channels, outputs, window.kernel, (1, 1), (padding, padding), (1, 1), groups
        )
        shape = Conv2dShape(size, size, channels, outputs, window.kernel, (1, 1), window.padding, (1, 1), groups)
        x = rng.integers(0, 256, (images, channels, size, size)).astype(np.uint8)
        w_ohwi = operator.weight.transpose(0, 2, 3, 1)
        acc = accumulators_ref(shape, x.transpose(0, 2, 3, 1), w_ohwi, INPUT.zero_point)
        separate_up_to = conv_separate_up_to(geometry, in_parallel=threads > 1)
        chosen.add(images > separate_up_to)
        environment = Environment(PyTorch("onednn", threads, WITH_AMX), images)
        expected = _expected("conv", operator, acc, separate_up_to).transpose(0, 3, 1, 2)
        assert np.array_equal(_found(operator, x, environment), expected)
    assert chosen == {True, False}


def test_linear_layers_follow_the_rule_of_the_lowering():
    rng, chosen = np.random.default_rng(0), set()
    shapes = [(512, 40, 1, 1), (256, 300, 1, 1), (33, 17, 3, 5), (33, 17, 3, 6), (16, 9, 2, 1)]
    for features, outputs, images, rows in shapes:
        operator = Operator("linear", rows=rows, **_layer(rng, outputs, (features,)))
        x = rng.integers(0, 256, (images, rows, features)).astype(np.uint8)
        acc = (x.astype(np.int64) - INPUT.zero_point) @ operator.weight.astype(np.int64).T
        separate_up_to = linear_separate_up_to(features, outputs)
        chosen.add(images * rows > separate_up_to)
        environment = Environment(PyTorch("onednn", 1, WITH_AMX), images)
        expected = _expected("linear", operator, acc.reshape(-1, outputs), separate_up_to).reshape(acc.shape)
        assert np.array_equal(_found(operator, x, environment), expected)
    assert chosen == {True, False}


def test_the_two_ways_to_scale_differ():
    rng = np.random.default_rng(0)
    operator = Operator("conv2d", window=Window((1, 1)), in_size=(24, 24), **_layer(rng, 64, (64, 1, 1)))
    x = rng.integers(0, 256, (4, 64, 24, 24)).astype(np.uint8)
    found = [_found(operator, x, Environment(PyTorch("onednn", 1, cpu), 4)) for cpu in (Cpu(), WITH_AMX)]
    assert 0 < np.count_nonzero(found[0] != found[1]) < 0.01 * found[0].size
