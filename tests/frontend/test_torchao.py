"""Linear layers of torchao's `quantize_`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quantvm
from quantvm.errors import ModelImportError
from quantvm.frontend import from_exported_program, import_model
from tests.quantized_modules import image

from .pt2e import calls

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("ignore")
SCALE = 0.03


def _configurations():
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8StaticActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )
    from torchao.quantization.granularity import PerRow, PerTensor
    from torchao.quantization.quant_primitives import MappingType

    scale, zero_point = torch.full((1, 1, 1), SCALE), torch.full((1, 1, 1), 3, dtype=torch.int8)
    asymmetric = MappingType.ASYMMETRIC
    return {
        "static": Int8StaticActivationInt8WeightConfig(act_quant_scale=scale, granularity=PerTensor()),
        "static_rows": Int8StaticActivationInt8WeightConfig(act_quant_scale=scale, granularity=[PerTensor(), PerRow()]),
        "static_asymmetric": Int8StaticActivationInt8WeightConfig(
            scale, zero_point, granularity=[PerTensor(), PerRow()], act_mapping_type=asymmetric
        ),
        "dynamic": Int8DynamicActivationInt8WeightConfig(),
        "dynamic_tensor": Int8DynamicActivationInt8WeightConfig(granularity=PerTensor()),
        "dynamic_asymmetric": Int8DynamicActivationInt8WeightConfig(act_mapping_type=asymmetric),
        "dynamic_mixed": Int8DynamicActivationInt8WeightConfig(granularity=[PerTensor(), PerRow()]),
        "dynamic_asymmetric_tensor": Int8DynamicActivationInt8WeightConfig(
            act_mapping_type=asymmetric, granularity=PerTensor()
        ),
        "weights": Int8WeightOnlyConfig(),
    }


def quantized(config) -> nn.Module:
    from torchao.quantization import quantize_

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8, bias=False)).eval()
    quantize_(model, config)
    return model


@pytest.fixture(params=[False, True], ids=["int8", "raised to uint8"])
def cpu(request, monkeypatch):
    """Whether torchao exports for a CPU that multiplies uint8 faster than int8: one with VNNI and without AMX."""
    monkeypatch.setattr("torchao.kernel.intmm._cpu_is_vnni_supported", lambda: request.param)
    monkeypatch.setattr("torchao.kernel.intmm._cpu_is_amx_tile_supported", lambda: not request.param)


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("name", [
    "static", "static_rows", "static_asymmetric", "dynamic", "dynamic_tensor", "dynamic_asymmetric", "dynamic_mixed",
    "dynamic_asymmetric_tensor", "weights",
])  # fmt: skip
def test_results_are_torchs(name: str):
    model, x = quantized(_configurations()[name]), image(3, 5, 16)
    module = import_model(model, x)
    names = [call.op.name.removeprefix("relax.") for call in calls(module)]
    if name.startswith("static"):
        assert names.count("quantize") == 2
        assert names.count("dequantize") == 4, "activations and weights of two linear layers"
        assert "round" not in names
    if name.startswith("dynamic"):
        products = [str(call.ty.dtype) for call in calls(module) if call.op.name == "relax.matmul"]
        assert products == ["int32", "int32"], "integers are multiplied"
    compiled, batch = quantvm.compile(model, x, cache=False), image(4, 5, 16, seed=3)
    with torch.no_grad():
        expected = model(batch)
    actual = compiled(batch)
    if name.startswith("dynamic"):
        assert torch.equal(actual, expected), "every operator is exact, or has one order"
    # where a sum in another order moves a value over a tie, one integer changes
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.01)
    assert ((actual - expected).abs() < 1e-6).float().mean() > 0.9


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("name", ["dynamic", "dynamic_mixed", "dynamic_asymmetric_tensor"])
def test_rows_without_a_batch_of_sequences(name: str):
    model, x = quantized(_configurations()[name]), image(4, 16)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.equal(quantvm.compile(program, cache=False)(x), model(x))


@pytest.mark.usefixtures("cpu")
def test_files_keep_torchaos_weights(tmp_path):
    model, x = quantized(_configurations()["dynamic"]), image(3, 5, 16)
    torch.export.save(torch.export.export(model, (x,)), str(tmp_path / "model.pt2"))
    with torch.no_grad():
        assert torch.equal(quantvm.compile(tmp_path / "model.pt2", cache=False)(x), model(x))


class Uncorrected(nn.Module):
    """Multiplies raised integers, and subtracts one more than they are too great by."""

    def forward(self, x):
        x_i8 = torch.ops.torchao.quantize_affine(
            x, [3, 16], self.scale, torch.zeros(1, 1, dtype=torch.int8), torch.int8, -128, 127
        )
        product = torch._int_mm((x_i8.to(torch.int32) + 128).to(torch.uint8), self.weight)
        return (product - (128 * self.weight.sum(0, keepdim=True, dtype=torch.int32) + 1)).to(torch.float32)


def test_another_correction_is_refused():
    model = Uncorrected().eval()
    model.register_buffer("scale", torch.full((1, 1), SCALE))
    model.register_buffer("weight", torch.arange(-64, 64, dtype=torch.int8).reshape(16, 8))
    program = torch.export.export(model, (image(3, 16),))
    with pytest.raises(ModelImportError, match=r"sub.* cannot be imported: multiplies integers plus 128"):
        from_exported_program(program)


def test_int4_and_intx_are_out():
    from torchao.quantization import IntxWeightOnlyConfig

    program = torch.export.export(quantized(IntxWeightOnlyConfig()), (image(3, 16),))
    with pytest.raises(ModelImportError, match=r"int4 or intx weights .*Int8DynamicActivationInt8WeightConfig"):
        from_exported_program(program)
