"""The passes as before and after: which islands become composites, what is left, where layouts change."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from tvm import relax

from quantvm.errors import CompileError
from quantvm.frontend import from_torch
from quantvm.lowering import LoweringOptions, lower
from quantvm.lowering.fuse_qdq import fuse_qdq
from quantvm.lowering.patterns import all_patterns
from quantvm.lowering.torch.legalize import legalized_names
from quantvm.tvm_compat import native_target
from tests.quantized_modules import convolutions_here


class Network(torch.nn.Module):
    """Two convolutions with a residual addition, a pad, a pool and a linear layer; optionally a float island."""

    def __init__(self, *, float_island: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        torch.backends.quantized.engine = "fbgemm"
        self.float_island = float_island
        self.quant = nnq.Quantize(torch.tensor([0.05]), torch.tensor([120]), torch.quint8)
        self.conv1, self.conv2 = nnq.Conv2d(3, 8, 3, stride=2), nnq.Conv2d(8, 8, 3, padding=1)
        self.linear = nnq.Linear(8, 5)
        for layer in (self.conv1, self.conv2, self.linear):
            shape = layer.weight().shape
            weight = torch.quantize_per_tensor(torch.randn(shape), 0.02, 0, torch.qint8)
            layer.set_weight_bias(weight, torch.randn(shape[0]))
            layer.scale, layer.zero_point = 0.1, 60
        self.ff = nnq.QFunctional()
        self.ff.scale, self.ff.zero_point = 0.2, 70

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(self.quant(x), [0, 1, 0, 1], "constant", 0.0)
        x = self.conv1(x)
        y = self.ff.add(self.conv2(x), x)
        if self.float_island:
            y = torch.quantize_per_tensor(torch.softmax(y.dequantize(), 1), 1 / 256, 0, torch.quint8)
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)).dequantize()


X = torch.randn(2, 3, 9, 9)


def options(**changes):
    return LoweringOptions(native_target(), **{"threads": 1, **changes})


def operators(module) -> Counter:
    """Counts the operators of main."""
    calls = [b.value for block in module["main"].body.blocks for b in block.bindings]
    return Counter(c.op.name for c in calls if hasattr(getattr(c, "op", None), "name"))


def test_fuse_qdq_turns_every_island_into_a_composite():
    before = from_torch(Network().eval(), X)
    assert operators(before)["relax.quantize"] == 6
    after = fuse_qdq(before)
    names = Counter(f.attrs["Composite"] for f in after.functions.values() if f.attrs and "Composite" in f.attrs)
    assert names == {
        "quantvm.quantize": 1, "quantvm.conv2d": 2, "quantvm.add": 1, "quantvm.adaptive_avg_pool2d": 1,
        "quantvm.linear": 1, "quantvm.dequantize": 1,
    }  # fmt: skip
    left = operators(after)
    assert not {"relax.quantize", "relax.dequantize", "relax.nn.conv2d", "relax.matmul"} & set(left)


def test_every_pattern_has_a_rule_and_every_rule_a_pattern():
    assert {row[0].removeprefix("quantvm.") for row in all_patterns()} == legalized_names()


def test_lowered_main_calls_kernels_only_and_moves_no_data_between_convolutions(tmp_path):
    lowered, report = lower(from_torch(Network().eval(), X), options(dump_dir=tmp_path))
    assert set(operators(lowered)) <= {"relax.call_tir", "relax.reshape"}
    assert report.int8_mac_share == 1.0
    assert report.float_ops == ()
    assert convolutions_here(report.kernels, native_target()) == 2
    assert report.output_scale == pytest.approx(0.1)
    assert [p.stem.split("_", 1)[1] for p in sorted(tmp_path.iterdir())] == [
        "imported", "channel_affine", "fuse_qdq", "legalize", "run_time_checks", "float_ops", "owned_outputs",
    ]  # fmt: skip


def test_a_border_folds_into_the_convolution_that_follows():
    module = from_torch(Network().eval(), X)
    assert operators(module)["relax.nn.pad"] == 1
    lowered, _ = lower(module, options())
    assert not any("pad" in str(name) for name in lowered.get_global_vars())


def test_a_float_island_stays_float_and_is_reported():
    _, report = lower(from_torch(Network(float_island=True).eval(), X), options())
    assert any("softmax" in op for op in report.float_ops)
    assert report.int8_mac_share == 1.0  # softmax multiplies nothing
    assert report.kernels["quantize_nchw_to_nhwc_u8"] == 2


def test_multiply_adds_left_in_float_lower_the_int8_share():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 6, 6), "float32"))
    weight = relax.const(np.ones((8, 4, 3, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(builder.emit(relax.op.nn.conv2d(x, weight)))
        builder.emit_func_output(y)
    _, report = lower(builder.get(), options())
    assert report.float_macs == 4 * 4 * 8 * 4 * 9
    assert report.int8_mac_share == 0.0


@pytest.mark.parametrize("wrong", [{"numerics": "fast"}, {"dot": "amx"}])
def test_unknown_options_name_the_known_ones(wrong):
    with pytest.raises(CompileError, match="expected"):
        lower(from_torch(Network().eval(), X), options(**wrong))
