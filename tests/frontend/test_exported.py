"""Exported programs: every converter, every quantizer, and the form that the lowering relies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from quantvm.errors import ModelImportError
from quantvm.frontend import from_exported_program, import_model
from quantvm.frontend.exported.aten import SHARED
from quantvm.frontend.exported.nodes import op_name
from quantvm.frontend.exported.registry import exported_ops, register_exported
from tests.quantized_modules import image

from . import aten_cases
from .exported_cases import CASES, FLOAT, Together
from .pt2e import DYNAMIC, Plain, Residual, SqueezeExcite, calls, evaluate, quantize

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def together():
    """The program of all cases, and the ops in it."""
    module = Together([*CASES.values(), *FLOAT.values()]).eval()
    return torch.export.export(module, (image(2, 8, 6, 6),), dynamic_shapes=DYNAMIC)


def test_every_converter_has_a_case(together):
    covered = {op_name(node) for node in together.graph.nodes if node.op == "call_function"}
    registered = {*exported_ops(), *SHARED}
    elsewhere = {name for name in registered if name.startswith("torchao::")} | {
        "aten::_int_mm.default",
        "aten::argsort.default",
        "aten::new_empty.default",
        *(f"aten::{name}" for name in ("item.default", "_local_scalar_dense.default")),
        *(f"aten::{name}" for name in ("empty.memory_format", "empty_permuted.default", "empty_like.default")),
    }
    assert sorted(registered - covered - elsewhere - set(aten_cases.CASES)) == [], "converters without a case"


def test_every_case_is_torchs(together):
    x = image(3, 8, 6, 6, seed=5)
    expected = together.module()(x)
    actual = evaluate(from_exported_program(together), x)
    assert len(actual) == len(CASES) + len(FLOAT)
    for name, y, wanted in zip([*CASES, *FLOAT], actual, expected, strict=True):
        wanted = wanted.detach().numpy()
        assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype), name
        np.testing.assert_allclose(y, wanted, rtol=2e-6, atol=1e-6 * max(1.0, np.abs(wanted).max()), err_msg=name)


_SLOW = pytest.mark.nightly  # torchao matches patterns for twenty seconds


@pytest.mark.parametrize(
    ("name", "qat"),
    [
        ("x86", False),
        ("arm", False),
        ("xnnpack", False),
        pytest.param("x86", True, marks=_SLOW),
        pytest.param("arm", True, marks=_SLOW),
        pytest.param("xnnpack", True, marks=_SLOW),
    ],
)
def test_quantizers(name: str, qat: bool):
    torch.manual_seed(1)
    model, x = (Plain if qat else Residual)(), image(2, 3, 12, 12)
    program = quantize(model, x, name, qat=qat)
    module = from_exported_program(program)
    batch = image(3, 3, 12, 12, seed=7)
    (actual,) = evaluate(module, batch)
    expected = program.module()(batch).detach().numpy()
    # a value on a tie may be rounded to either side, for TVM sums in another order than PyTorch
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()
    assert (np.abs(actual - expected) < 1e-5).mean() > 0.5
    _check_form(module, "int8" if name != "x86" else "uint8")


def test_gates_and_linear_layers():
    torch.manual_seed(1)
    program = quantize(SqueezeExcite(), image(2, 3, 12, 12), "x86")
    module = from_exported_program(program)
    batch = image(3, 3, 12, 12, seed=7)
    (actual,) = evaluate(module, batch)
    expected = program.module()(batch).detach().numpy()
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()
    _check_form(module, "uint8")


def _check_form(module: tvm.IRModule, activation: str) -> None:
    """The contract between importers and the lowering."""
    assert module.attrs["quantvm.engine"] == "pt2e"
    bound = {b.var: b.value for block in module["main"].body.blocks for b in block.bindings}
    uses: dict = {}
    for value in bound.values():
        for argument in getattr(value, "args", ()):
            uses[argument] = uses.get(argument, 0) + 1
    for variable, value in bound.items():
        name = getattr(getattr(value, "op", None), "name", "")
        if name == "relax.dequantize":
            assert uses.get(variable, 1) == 1, f"{variable.name} is read twice"
            scale, zero_point = (argument.value.numpy() for argument in value.args[1:3])
            assert scale.dtype == np.float32
            assert zero_point.dtype == str(value.args[0].ty.dtype)
            assert scale.ndim == 0 or int(value.attrs.axis) == 0
        if name == "relax.quantize":
            assert value.attrs.out_dtype == activation
        if name == "relax.nn.conv2d":
            assert bound[value.args[1]].op.name == "relax.dequantize", "weights stay integers"
        if name == "relax.matmul":
            assert bound[value.args[1]].op.name == "relax.permute_dims"
            assert bound[bound[value.args[1]].args[0]].op.name == "relax.dequantize"
    assert all(not isinstance(d, int) for d in [module["main"].params[0].ty.shape[0]])


def test_ranges_of_quantizers_are_kept():
    class Narrow(nn.Module):
        def forward(self, x):
            q = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, 0.125, 0, 0, 127, torch.uint8)
            return torch.ops.quantized_decomposed.dequantize_per_tensor.default(q, 0.125, 0, 0, 127, torch.uint8)

    x = image(2, 3, 4, 4) * 100
    program = torch.export.export(Narrow(), (x,))
    module = from_exported_program(program)
    assert [call.op.name for call in calls(module)] == ["relax.quantize", "relax.clip", "relax.dequantize"]
    np.testing.assert_array_equal(evaluate(module, x)[0], program.module()(x).numpy())


def test_quantize_of_what_was_dequantized_is_dropped():
    class Twice(nn.Module):
        def forward(self, x):
            ops, out = torch.ops.quantized_decomposed, []
            for scale in (0.125, 0.25):
                q = ops.quantize_per_tensor.default(x, 0.125, 3, -128, 127, torch.int8)
                y = ops.dequantize_per_tensor.default(q, 0.125, 3, -128, 127, torch.int8)
                q = ops.quantize_per_tensor.default(y, scale, 3, -128, 127, torch.int8)
                out.append(ops.dequantize_per_tensor.default(q, scale, 3, -128, 127, torch.int8))
            return out

    x = image(1, 2, 3, 3)
    module = from_exported_program(torch.export.export(Twice(), (x,)))
    names = [call.op.name.removeprefix("relax.") for call in calls(module)]
    assert names.count("quantize") == 3, "equal parameters: dropped; others: kept"


def test_writes_in_place_are_seen_by_other_names():
    class Alias(nn.Module):
        def forward(self, x):
            ops = torch.ops.quantized_decomposed
            q = ops.quantize_per_tensor.default(x, 0.125, 3, -128, 127, torch.int8)
            y = ops.dequantize_per_tensor.default(q, 0.125, 3, -128, 127, torch.int8)
            view = y.view(-1, 4)
            torch.relu_(y)
            return view + 1, y

    x = image(2, 3, 4, 4)
    program = torch.export.export(Alias(), (x,))
    for actual, expected in zip(evaluate(from_exported_program(program), x), program.module()(x), strict=True):
        np.testing.assert_array_equal(actual, expected.numpy())


def test_layers_are_named_after_modules():
    torch.manual_seed(1)
    module = from_exported_program(quantize(SqueezeExcite(), image(2, 3, 12, 12), "x86"))
    names = {b.var.name: b.value for block in module["main"].body.blocks for b in block.bindings}
    assert {"stem_0_dq", "stem_0_weight", "stem_0_conv", "down_conv", "down_relu", "classifier_2_linear"} <= set(names)


def test_files_and_static_batches(tmp_path):
    torch.manual_seed(1)
    x = image(2, 3, 12, 12)
    program = quantize(Residual(), x, "x86")
    path = tmp_path / "model"  # what it holds decides, not its name
    with path.open("wb") as file:
        torch.export.save(program, file)
    module = import_model(path)
    tvm.ir.assert_structural_equal(module, from_exported_program(program))
    assert [int(d) for d in import_model(path, batch="static")["main"].params[0].ty.shape] == [2, 3, 12, 12]
    with pytest.raises(
        ModelImportError, match=r"input 0 has shape \(2, 3, 16, 16\), the program takes \(n, 3, 12, 12\)"
    ):
        import_model(path, image(2, 3, 16, 16))


def test_live_modules_of_pt2e_are_exported():
    torch.manual_seed(1)
    x = image(2, 3, 12, 12)
    program = quantize(Residual(), x, "x86")
    module = import_model(program.module(), x)
    assert [c.op.name for c in calls(module)] == [c.op.name for c in calls(from_exported_program(program))]


def test_decomposed_reference_of_fx_quantizes_weights_as_torch_does():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import _convert_to_reference_decomposed_fx, prepare_fx

    torch.manual_seed(1)
    x = image(2, 3, 12, 12)
    prepared = prepare_fx(Residual().eval(), get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    program = torch.export.export(_convert_to_reference_decomposed_fx(prepared), (x,), dynamic_shapes=DYNAMIC)
    module = from_exported_program(program)
    _check_form(module, "uint8")
    expected = program.module()(x).detach().numpy()
    assert np.abs(evaluate(module, x)[0] - expected).max() < 0.02 * np.abs(expected).max()


def test_names_are_qualified_and_unique():
    with pytest.raises(ValueError, match=r"namespace::op\.overload"):
        register_exported("aten::relu")
    with pytest.raises(ValueError, match="has a converter already"):
        register_exported("aten::linear.default")
