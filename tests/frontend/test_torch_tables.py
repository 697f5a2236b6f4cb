"""What PyTorch itself says of a quantized sigmoid or tanh is what the compiled code holds."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantvm.compiler import compile as compile_model
from quantvm.frontend import from_torch
from quantvm.frontend.torchscript.torch_tables import torch_table, with_torch_tables
from quantvm.numerics.torch_engines import QuantParams
from quantvm.numerics.unary_tables import unary_tables
from quantvm.qdq.attributes import TORCH_TABLES
from quantvm.torch_compat import has_vnni, quantization_engine
from tests.quantized_modules import Quantized, conv2d, image

IN, UNIT, AROUND_ZERO = QuantParams(0.03125, 100), QuantParams(1 / 256, 0), QuantParams(1 / 128, 128)


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize(
    ("name", "out"), [("sigmoid", UNIT), ("sigmoid", QuantParams(0.0041, 7)), ("tanh", AROUND_ZERO)]
)
def test_pytorchs_table_is_our_formula_but_for_a_last_bit(name, out, engine):
    with quantization_engine(engine):
        found = torch_table(name, IN, out)
    if engine == "qnnpack" and out.scale == 0.0041:
        assert found is None
        return
    expected = np.stack(unary_tables(name, IN, out)).astype(int)
    assert found.dtype == np.uint8
    assert abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.02


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_tables_of_float_operators(name):
    found = torch_table(name, IN, AROUND_ZERO)
    expected = np.stack(unary_tables(name, IN, AROUND_ZERO)).astype(int)
    assert abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.02


class Island(torch.nn.Module):
    """What FX leaves of a float operator between quantized ones."""

    def __init__(self, function):
        super().__init__()
        self.function, self.conv = function, conv2d(8, 24, 3, scale=0.05, zero_point=100)

    def forward(self, x):
        return torch.quantize_per_tensor(self.function(self.conv(x).dequantize()), 0.03, 20, torch.quint8)


@pytest.mark.parametrize("numerics_name", ["torch", "integer"])
@pytest.mark.parametrize(
    "function",
    [F.silu, F.gelu, partial(F.gelu, approximate="tanh"), F.softsign],
    ids=["silu", "gelu", "gelu_tanh", "softsign"],
)
def test_a_float_operator_between_quantized_tensors_is_a_table(function, numerics_name):
    network, x = Quantized(Island(function)), image(2, 8, 9, 7)
    artifact = compile_model(network, x, engine="fbgemm", threads=1, numerics=numerics_name)
    assert artifact.report.float_ops == ()
    if numerics_name == "torch":
        assert torch.equal(artifact(x), network(x))
    elif has_vnni():  # without, PyTorch's sums saturate, and only PyTorch's
        x = x * 1.001  # off the ties, which fixed point rounds the other way
        assert (artifact(x) - network(x)).abs().max() < 0.2


def test_an_output_that_pytorch_does_not_have():
    with quantization_engine("fbgemm"):
        assert torch_table("tanh", IN, UNIT) is None


def test_compiled_code_holds_the_table_that_the_module_carries():
    network, x = Quantized(torch.sigmoid), image(2, 3, 9, 7)
    module = from_torch(network, x, engine="fbgemm")
    (key,) = module.attrs[TORCH_TABLES]
    assert str(key).startswith("sigmoid uint8(")
    with quantization_engine("fbgemm"):
        assert torch.equal(compile_model(network, x, engine="fbgemm", threads=1, cache=False)(x), network(x))


def test_a_module_without_such_operators_carries_none():
    module = from_torch(Quantized(torch.relu), image(2, 3, 9, 7), engine="fbgemm")
    assert TORCH_TABLES not in module.attrs
    assert with_torch_tables(module).same_as(module)
