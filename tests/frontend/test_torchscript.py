"""What can be imported, and what the user reads where something cannot."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
import tvm_ffi
from torch import nn

import quantvm
from quantvm.errors import ModelImportError, UnsupportedOpError
from quantvm.frontend import from_torch
from quantvm.torch_compat import quiet
from tests.quantized_modules import Quantized, SmallNetwork, conv2d, image

Q = torch.ops.quantized
IMAGE = (2, 8, 6, 6)


pytestmark = pytest.mark.usefixtures("fbgemm")


class Sequence(nn.Module):
    """Applies a function to the input and to registered modules."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def refused(body, *needles: str, error: type = ModelImportError, shape: tuple = IMAGE) -> str:
    """Imports a body and returns the message that it is refused with, which holds all of the needles."""
    with pytest.raises(error) as caught:
        from_torch(Quantized(body), image(*shape))
    message = str(caught.value)
    assert [needle for needle in needles if needle not in message] == [], message
    return message


# ------------------------------------------------------------------ forms of a program


@pytest.fixture(scope="module")
def small():
    torch.backends.quantized.engine = "fbgemm"
    return SmallNetwork()


def test_traced_frozen_and_saved_programs_are_the_same_module(small, tmp_path):
    x = image(2, 3, 16, 16)
    with quiet():
        traced = torch.jit.trace(small, x, check_trace=False)
        frozen = torch.jit.freeze(traced)
        for name, script in (("traced", traced), ("frozen", frozen)):
            script.save(tmp_path / f"{name}.pt")
    expected = from_torch(small, x)
    programs = [traced, frozen, tmp_path / "traced.pt", str(tmp_path / "frozen.pt")]
    for program in programs:
        assert tvm_ffi.structural_equal(from_torch(program, x), expected, map_free_vars=True), program


def test_inputs_may_be_numpy_arrays_and_sequences(small):
    x = image(2, 3, 16, 16)
    expected = from_torch(small, x)
    for inputs in (x.numpy(), [x], (x.numpy(),)):
        assert tvm_ffi.structural_equal(from_torch(small, inputs), expected, map_free_vars=True)


def test_batch_is_dynamic_by_default_and_can_be_fixed(small):
    x = image(2, 3, 16, 16)
    dynamic, static = (from_torch(small, x, batch=b)["main"] for b in ("dynamic", "static"))
    (n, *rest), fixed = dynamic.params[0].ty.shape, static.params[0].ty.shape
    assert not hasattr(n, "value")
    assert [int(d) for d in rest] == [3, 16, 16]
    assert [int(d) for d in fixed] == [2, 3, 16, 16]
    assert tvm_ffi.structural_equal(dynamic.ret_ty.shape[0], n)
    assert [int(d) for d in static.ret_ty.shape] == [2, 10]


def test_a_graph_without_scopes_names_weights_after_the_modules_that_hold_them(small, tmp_path):
    with quiet():
        torch.jit.trace(small, image(1, 3, 16, 16), check_trace=False).save(tmp_path / "small.pt")
    main = from_torch(tmp_path / "small.pt", image(1, 3, 16, 16))["main"]
    names = {binding.var.name for block in main.body.blocks for binding in block.bindings}
    assert {"stem_conv", "depthwise_conv", "head_linear"} <= names


def test_variables_are_named_after_modules(small):
    main = from_torch(small, image(1, 3, 16, 16))["main"]
    names = {binding.var.name for block in main.body.blocks for binding in block.bindings}
    assert {"quantize", "stem_conv", "depthwise_conv", "hardswish", "head_linear"} <= names


def test_several_inputs_and_outputs():
    module = Quantized(lambda a, b: (Q.add(a, b, 0.1, 3), (a, [b])))
    main = from_torch(module, (image(2, 8, 3, 3), image(2, 8, 3, 3)))["main"]
    assert [p.name for p in main.params] == ["input_0", "input_1"]
    assert len(main.ret_ty.fields) == 3
    assert [p.name for p in from_torch(Quantized(F.relu), image(2, 8, 3, 3))["main"].params] == ["input"]


def test_weights_are_the_stored_integers(small):
    main = from_torch(small, image(1, 3, 16, 16))["main"]
    weights = [
        binding.value.args
        for block in main.body.blocks
        for binding in block.bindings
        if binding.var.name.endswith("_weight")
    ]
    modules = [small.stem, small.depthwise, small.squeeze, small.excite, small.branch, small.head]  # as called
    assert len(weights) == len(modules)
    for (integers, scales, zero_points), module in zip(weights, modules, strict=True):
        weight = module.weight()
        assert (integers.value.numpy() == weight.int_repr().numpy()).all()
        assert (scales.value.numpy() == weight.q_per_channel_scales().numpy()).all()
        assert not zero_points.value.numpy().any()


# ------------------------------------------------------------------ engines


def test_engine_is_the_callers_then_the_models_then_pytorchs(small):
    x = image(1, 3, 16, 16)
    assert from_torch(small, x).attrs["quantvm.engine"] == "fbgemm"
    marked = copy.deepcopy(small)
    marked.quantvm_engine = "onednn"
    assert from_torch(marked, x).attrs["quantvm.engine"] == "onednn"
    assert from_torch(marked, x, engine="x86").attrs["quantvm.engine"] == "x86"
    with pytest.raises(ModelImportError, match="unknown quantization engine 'gemmlowp', expected one of fbgemm, x86"):
        from_torch(small, x, engine="gemmlowp")


# ------------------------------------------------------------------ what is refused


def test_all_unsupported_operators_are_named_at_once():
    def body(module, x):
        y = torch.celu(module.first(x).dequantize())
        y = torch.quantize_per_tensor(torch.celu(y), 0.1, 3, torch.quint8)
        return Q.celu(y, 0.1, 0, 1.0)

    message = refused(
        Sequence(body, first=conv2d(8, 8, 1)),
        "2 unsupported ops", "aten::celu x2 (first: body, test_torchscript.py(", "quantized::celu x1",
        "quantvm list ops", error=UnsupportedOpError,
    )  # fmt: skip
    assert "quantized::conv2d" not in message


def test_unsupported_operator_is_a_not_implemented_error():
    refused(lambda x: torch.celu(x.dequantize()), "aten::celu x1", error=NotImplementedError)


def test_float_model():
    module = nn.Sequential(nn.Flatten(), nn.ReLU()).eval()
    with pytest.raises(ModelImportError, match="float model; quantize it first"):
        from_torch(module, image(*IMAGE))


def test_quantization_aware_training_that_was_not_converted():
    with quiet():
        module = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(8, 8, 1)).train()
        module.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        prepared = torch.ao.quantization.prepare_qat(module).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        with pytest.raises(ModelImportError, match=r"fake_quant.*not converted.*convert\(model.eval\(\)\)"):
            from_torch(prepared, image(*IMAGE))


def test_training_mode():
    module = Quantized(F.relu)
    module.train()
    with pytest.raises(ModelImportError, match=r"training mode; call model.eval\(\)"):
        from_torch(module, image(*IMAGE))


def test_dropout_that_was_traced_in_training_mode():
    refused(
        lambda x: F.dropout(x.dequantize(), 0.5, training=True),
        "dropout at dropout is in training mode",
        "model.eval()",
    )


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf"), -1.0, 1e-50])
def test_scale_of_an_activation_that_makes_no_sense(scale):
    def traced_by_hand(bad_scale: float) -> torch.jit.ScriptModule:
        class Bad(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.quantize_per_tensor(x, 0.1, 3, torch.quint8).dequantize()

        script = torch.jit.script(Bad())
        constants = [n for n in script.graph.nodes() if n.kind() == "prim::Constant"]
        (node,) = (n for n in constants if n.outputsAt(0).type().kind() == "FloatType")
        node.f_("value", bad_scale)
        return script

    with pytest.raises(ModelImportError, match=r"bad quantization parameters at .*scale must be"):
        from_torch(traced_by_hand(scale), image(*IMAGE))


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_scale_of_a_weight_that_makes_no_sense(scale):
    weight = torch._make_per_tensor_quantized_tensor(torch.ones((8, 8, 1, 1), dtype=torch.int8), scale, 0)
    conv = conv2d(8, 8, 1)
    conv.set_weight_bias(weight, None)
    refused(conv, "weight at body has a scale")


def test_float_operand_of_a_quantized_operator():
    class Bad(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = torch.quantize_per_tensor(x, 0.1, 3, torch.quint8)
            return Q.add(q, x, 0.1, 3).dequantize()

    with pytest.raises(ModelImportError, match="input 1 is a float tensor, expected a quantized one; is a QuantStub"):
        from_torch(torch.jit.script(Bad()), image(*IMAGE))


def test_float_operator_on_a_quantized_tensor():
    class Bad(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.quantize_per_tensor(x, 0.1, 3, torch.quint8) + x).dequantize()

    with pytest.raises(ModelImportError, match=r"aten::add at .*on a quantized tensor.*FloatFunctional"):
        from_torch(torch.jit.script(Bad()), image(*IMAGE))


def test_quantization_to_another_dtype():
    refused(
        lambda x: torch.quantize_per_tensor(x.dequantize(), 0.1, 3, torch.qint32), "dtype number 14", "quint8 or qint8"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: F.pad(x.dequantize(), [1, 1, 1, 1], mode="reflect"), "mode 'reflect' is not supported"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override=3 is not supported"),
        (lambda x: x[:1], "cuts the dynamic dimension 0"),
        (lambda x: x.chunk(2, 0), "chunk at chunk cuts the dynamic dimension 0; batch='static' can"),
        (lambda x: Q.mul(x, x[:, 0], 0.5, 3), "a dynamic batch cannot be broadcast"),
    ],
)
def test_options_that_are_not_supported(body, message):
    refused(body, message, shape=(8, 8, 8, 8))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: (F.relu_(x[:, :2]), x)[1],
        lambda x: (x.view(x.size(0), -1), F.relu_(x))[0],
        lambda x: (F.relu_(x.chunk(2, 1)[0]), x)[1],
        lambda x: (lambda again, first: (F.relu_(first), again)[1])(x.chunk(2, 1)[0], x.chunk(2, 1)[0]),
        lambda x: (lambda third, half: (F.relu_(half), third)[1])(x.chunk(3, 1)[0], x.chunk(2, 1)[0]),
    ],
)
def test_write_to_a_tensor_that_is_read_under_another_name(body):
    refused(body, "aten::relu_ at graph", "writes in place", "aten::dequantize", "use aten::relu,")


@pytest.mark.parametrize(
    "body",
    [
        lambda x: (F.relu_(x), x)[1],
        lambda x: F.relu_(x.flatten(1)),
        lambda x: F.hardtanh_(F.relu_(x)),
        lambda x: (lambda first, second: Q.cat([F.relu_(first), second], 1, 0.1, 3))(*x.chunk(2, 1)),
    ],
)
def test_write_that_nobody_else_sees(body):
    module, x = Quantized(body), image(*IMAGE)
    compiled = quantvm.compile(module, x, cache=False)
    assert torch.equal(compiled(x), module(x))


def test_number_and_dtype_of_the_inputs(small):
    with quiet():
        script = torch.jit.trace(small, image(1, 3, 16, 16), check_trace=False)
    with pytest.raises(ModelImportError, match="takes 1 inputs, got 2 example inputs"):
        from_torch(script, (image(*IMAGE), image(*IMAGE)))
    with pytest.raises(ModelImportError, match=r"input 0 has dtype torch.float64, expected float32"):
        from_torch(script, image(1, 3, 16, 16).double())


def test_what_is_no_model():
    with pytest.raises(ModelImportError, match=r"expected an nn\.Module, a traced module or a path, got dict"):
        from_torch({}, image(*IMAGE))


def test_missing_file(tmp_path):
    with pytest.raises(ModelImportError, match=r"no such file: .*nowhere\.pt"):
        from_torch(tmp_path / "nowhere.pt", image(*IMAGE))
    with pytest.raises(ModelImportError, match="is a folder, expected a file"):
        from_torch(str(tmp_path), image(*IMAGE))


@pytest.mark.parametrize("content", [b"", b"not a zip archive", b"PK\x03\x04 broken"])
def test_file_that_is_no_torchscript(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelImportError, match=r"model\.pt is not a TorchScript file"):
        from_torch(path, image(*IMAGE))


def test_state_dict_is_no_torchscript(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ModelImportError, match="is not a TorchScript file"):
        from_torch(path, image(*IMAGE))


def test_import_warns_of_nothing_that_the_user_could_act_on(small, recwarn):
    warnings.simplefilter("always")
    from_torch(small, image(1, 3, 16, 16))
    assert [str(w.message) for w in recwarn] == []


def test_an_error_is_all_that_is_said(capfd):
    class Wrong(torch.nn.Module):
        def forward(self, x):
            return torch.quantize_per_tensor(x, float("nan"), 3, torch.quint8).dequantize()

    with pytest.raises(ModelImportError, match="scale must be a positive, finite float32, got nan"):
        from_torch(Wrong().eval(), image(*IMAGE))
    gc.collect()
    assert "BlockBuilder" not in capfd.readouterr().err
