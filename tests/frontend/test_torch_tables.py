"""What PyTorch itself says of a quantized sigmoid or tanh is what the compiled code holds."""

import numpy as np
import pytest
import torch

from quantvm import numerics
from quantvm.frontend import from_torch
from quantvm.frontend.torch_tables import TABLES_ATTR, torch_table, with_torch_tables
from quantvm.numerics import QuantParams
from quantvm.runtime import compile as compile_model
from quantvm.torch_compat import quantization_engine
from tests.quantized_modules import Quantized, image

IN, UNIT, AROUND_ZERO = QuantParams(0.03125, 100), QuantParams(1 / 256, 0), QuantParams(1 / 128, 128)


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize(
    ("name", "out"), [("sigmoid", UNIT), ("sigmoid", QuantParams(0.0041, 7)), ("tanh", AROUND_ZERO)]
)
def test_pytorchs_table_is_our_formula_but_for_a_last_bit(name, out, engine):
    found = torch_table(name, IN, out, engine=engine)
    if engine == "qnnpack" and out.scale == 0.0041:
        assert found is None
        return
    expected = np.stack(numerics.unary_tables(name, IN, out)).astype(int)
    assert found.dtype == np.uint8
    assert abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.02


def test_an_output_that_pytorch_does_not_have():
    assert torch_table("tanh", IN, UNIT, engine="fbgemm") is None


def test_compiled_code_holds_the_table_that_the_module_carries():
    network, x = Quantized(torch.sigmoid), image(2, 3, 9, 7)
    module = from_torch(network, x, engine="fbgemm")
    (key,) = module.attrs[TABLES_ATTR]
    assert str(key).startswith("sigmoid uint8(")
    with quantization_engine("fbgemm"):
        assert torch.equal(compile_model(network, x, engine="fbgemm", threads=1, cache=False)(x), network(x))


def test_a_module_without_such_operators_carries_none():
    module = from_torch(Quantized(torch.relu), image(2, 3, 9, 7), engine="fbgemm")
    assert TABLES_ATTR not in module.attrs
    assert with_torch_tables(module, "fbgemm").same_as(module)
