"""The tables of float operators and of activations: their formulas are PyTorch's, and programs are read by them."""

from operator import attrgetter

import numpy as np
import pytest
import torch
from tvm import relax

from quantvm.frontend.builder import QdqBuilder
from quantvm.frontend.formulas import emitted
from quantvm.numerics.activations import ACTIVATIONS, LIMITS
from quantvm.numerics.float_operators import FLOAT_OPERATORS, FUSED, RELAX_OPERATORS, numpy_arithmetic, steps_of
from quantvm.qdq.activations import find
from quantvm.qdq.bindings import definitions
from quantvm.torch_compat import quiet

OPTIONS = {"clip": (-0.7, 1.9), "leaky_relu": (0.3,), "elu": (1.3, 0.9, 0.7)}
X_F32 = np.random.default_rng(0).normal(0, 3, 4096).astype(np.float32)
POSITIVE = ("sqrt", "rsqrt", "log", "power")


def check(found: np.ndarray, expected: np.ndarray, *, exact: bool) -> None:
    assert found.dtype == np.float32
    if exact:
        np.testing.assert_array_equal(found, expected)
    else:  # PyTorch's vectorised functions differ in last bits, and gelu's cancel out
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", [row.name for row in RELAX_OPERATORS.values()])
def test_float_operators_are_pytorchs(name):
    operator = FLOAT_OPERATORS[name]
    x = np.abs(X_F32) if name in POSITIVE else X_F32
    operands = [x, x[::-1].copy()][: operator.arity]
    function = attrgetter(operator.torch or name)(torch)
    expected = function(*map(torch.from_numpy, operands), *OPTIONS.get(name, ()), **operator.torch_options).numpy()
    found = getattr(numpy_arithmetic(np.float32), name)(*operands, *OPTIONS.get(name, ()))
    check(found, expected, exact=operator.is_exact)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_pytorchs(name):
    activation, options = ACTIVATIONS[name], OPTIONS.get(name, ())
    torchs = options if name != "elu" else ()
    function = attrgetter(activation.torch)(torch)
    expected = function(torch.from_numpy(X_F32), *torchs, **activation.torch_options).numpy()
    options = options if torchs or not options else (1.0, 1.0, 1.0)
    for found in (activation.rounded_alone(X_F32, options), activation.rounded_once(X_F32, options)):
        check(found, expected, exact=activation.is_exact)


def test_which_are_exact():
    assert {name for name, row in ACTIVATIONS.items() if row.is_exact} >= {"hardswish", "hardsigmoid", "leaky_relu"}
    assert not any(ACTIVATIONS[name].is_exact for name in ("sigmoid", "tanh", "elu", "silu", "gelu", "gelu_tanh"))


def test_kernels_can_compute_all_that_is_fused():
    def has_code(operator):
        if operator.formula is None:
            return operator.tir is not None
        return all(has_code(step) for step, _ in steps_of(operator.formula))

    assert [name for name, row in FUSED.items() if not has_code(row)] == []


def test_names_are_pytorchs():
    names = [*LIMITS, *(name for row in ACTIVATIONS.values() for name in row.aten)]
    assert [name for name in names if not hasattr(torch.ops.aten, name.removeprefix("aten::"))] == []
    with quiet():
        kernels = [row.kernel for row in ACTIVATIONS.values() if row.kernel is not None]
        assert [k.operator for k in kernels if k.operator and not hasattr(torch.ops.quantized, k.operator)] == []
        assert [k.module for k in kernels if k.module and not hasattr(torch.ao.nn.quantized, k.module)] == []


def function_of(formula, options: tuple[float, ...] = ()):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(emitted(QdqBuilder(builder), formula, lambda: x, options, "y"))
        builder.emit_func_output(result)
    return builder.get()["main"]


def found_in(main, name: str):
    bound = definitions(main)

    def value_of(expr):
        return value_of(bound[expr]) if expr in bound else expr

    return find(ACTIVATIONS[name], main.body.body, value_of)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_emitted_is_found_with_its_options(name):
    options = tuple(float(np.float32(option)) for option in OPTIONS.get(name, ()))
    main = function_of(ACTIVATIONS[name].formula, options)
    found = found_in(main, name)
    assert found is not None
    assert found.x.same_as(main.params[0])
    np.testing.assert_allclose(found.options, options, rtol=1e-6)
    assert [other for other in ACTIVATIONS if other != name and found_in(main, other) is not None] == []


def test_another_constant_is_another_function():
    assert found_in(function_of(lambda o, x: o.divide(x, o.add(o.exp(o.negative(x)), 2.0))), "silu") is None
