"""The text of a reproduction calls PyTorch's operator: its results are those of the layer's rule."""

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as functional

from quantvm.jobs.layer_differences import repro_text
from quantvm.layer_rules import Operator
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.torch_engines import QuantParams
from quantvm.numerics.unary_tables import unary_tables
from quantvm.torch_compat import quantization_engine

OPTIONS = {"leaky_relu": (0.2,), "elu": (1.0, 1.0, 1.0)}
IN, FREE = QuantParams(0.05, 120), QuantParams(float(np.float32(0.02)), 110)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    fixed = ACTIVATIONS[name].of_quantized
    out = FREE if fixed is None or fixed == "input" else fixed["uint8"]
    options = OPTIONS.get(name, ())
    init, forward, arrays = repro_text._layer(Operator(name, (IN,), out, options=options), 1)
    assert not arrays

    class Network:
        pass

    integers = torch.arange(256, dtype=torch.uint8)
    x0 = torch._make_per_tensor_quantized_tensor(integers, IN.scale, IN.zero_point)
    names = {"self": Network(), "x0": x0, "torch": torch, "nnq": nnq, "functional": functional}
    with quantization_engine("fbgemm"):
        exec("\n".join([*init, *forward]), names)
    y = names["y"]
    assert y.q_scale() == pytest.approx(out.scale, rel=1e-7)
    assert y.q_zero_point() == out.zero_point
    main, _ = unary_tables(name, IN, out, options)
    differ = y.int_repr().numpy() != main
    assert not differ.any() if ACTIVATIONS[name].is_exact else differ.mean() < 0.02
