"""Which layer and kernel each call of the compiled code is."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from tvm import relax

from quantvm.frontend import from_torch
from quantvm.lowering import LoweringOptions, lower
from quantvm.torch_compat import quiet
from quantvm.tvm_compat import build_executable, native_target

from ..quantized_modules import SmallNetwork, conv2d, functional, image
from .test_passes import Network, X


def lowered(module):
    return lower(module, LoweringOptions(native_target()))


def test_calls_are_named_after_modules_and_their_multiply_adds_add_up():
    _, report = lowered(from_torch(SmallNetwork(), image(1, 3, 17, 19), engine="fbgemm"))
    found = [(call.layer, call.op) for call in report.calls]
    # what follows a contraction may be fused behind it
    assert found[:3] == [("quantize", "quantize"), ("stem", "conv2d"), ("depthwise", "conv2d")]
    assert found[-2:] == [("head", "linear"), ("dequantize", "dequantize")]
    assert sum(call.macs for call in report.calls) == report.int8_macs
    stem = report.calls[1]
    assert stem.macs == 9 * 10 * 16 * 27
    assert stem.kernel.startswith("conv2d_u8i8acc32_")
    assert [call.n_inputs for call in report.calls if call.op in ("mul", "concat")] == [2, 2]


def test_a_residual_is_an_input_of_the_convolution_that_adds_it():
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantize = torch.ao.nn.quantized.Quantize(0.05, 120, torch.quint8)
            self.first, self.conv, self.ff = conv2d(16, 16), conv2d(16, 16, padding=1), functional()

        def forward(self, x):
            x = self.first(self.quantize(x))
            return self.ff.add(self.conv(x), x).dequantize()

    _, report = lowered(from_torch(Residual().eval(), image(1, 16, 8, 8), engine="fbgemm"))
    _, call = [call for call in report.calls if call.macs]
    assert (call.layer, call.op, call.n_inputs) == ("conv", "conv2d", 2)
    assert call.kernel.endswith("_add")


def test_a_file_has_the_layers_names_too(tmp_path):
    path = tmp_path / "small.pt"
    with quiet():
        torch.jit.trace(SmallNetwork(), image(1, 3, 17, 19), check_trace=False).save(path)
    _, report = lowered(from_torch(path, image(1, 3, 17, 19), engine="fbgemm"))
    layers = [call.layer for call in report.calls if call.macs]
    assert layers == ["stem", "depthwise", "squeeze", "excite", "branch", "head"]


def test_the_vm_makes_these_calls_in_this_order():
    for network, x in ((SmallNetwork(), image(2, 3, 17, 19)), (Network(float_island=True).eval(), X)):
        module, report = lowered(from_torch(network, x, engine="fbgemm"))
        machine = tvm.relax.VirtualMachine(build_executable(module, native_target()), tvm.cpu())
        called = []

        def hook(function, name, before, result, *arguments, called=called):
            if before:
                called.append(name)

        machine.set_instrument(hook)
        machine["main"](tvm.runtime.tensor(x.numpy()))
        expected = [call.function for call in report.calls]
        assert [name for name in called if name in expected] == expected


def test_what_stays_float_has_no_kernel():
    _, report = lowered(from_torch(Network(float_island=True).eval(), X, engine="fbgemm"))
    left = [call for call in report.calls if not call.kernel]
    assert any(call.op.startswith("softmax") for call in left)
    assert {call.macs for call in left} == {0}


def test_constants_of_a_float_operator_are_no_inputs():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 6, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            weight = relax.const(np.ones((8, 4, 3, 3), "float32"))
            y = builder.emit_output(builder.emit(relax.op.nn.conv2d(x, weight)))
        builder.emit_func_output(y)
    _, report = lowered(builder.get())
    (call,) = report.calls
    assert (call.op, call.kernel, call.n_inputs) == ("conv2d", "", 1)
