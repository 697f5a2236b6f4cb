"""Normal form: for each statement of `verify` one module that breaks it, and programs that hold all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax, tirx

from quantvm.errors import InternalError
from quantvm.frontend import from_torch
from quantvm.lowering import LoweringOptions, lower, pipeline
from quantvm.qdq import attributes
from quantvm.qdq.rewriting import built_main
from quantvm.qdq.verify import PHASES, VERIFY_VARIABLE, verify
from quantvm.tvm_compat import native_target

from ..quantized_modules import conv2d, image

F32 = relax.TensorType([2, 3], "float32")
N = tirx.Var("n", "int64")


def x_f32() -> relax.Var:
    return relax.Var("x", F32)


def module_of(emit, x=None) -> tvm.IRModule:
    """Returns a module whose `main` returns `emit(builder, x)`."""
    x = x_f32() if x is None else x
    return built_main([x], lambda builder: emit(builder, x))


def raw(params, bindings, result) -> tvm.IRModule:
    """Returns a module of these bindings, which no builder has looked at."""
    function = relax.Function(params, relax.SeqExpr([relax.DataflowBlock(bindings)], result), F32)
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def relu(x) -> relax.Expr:
    return relax.BlockBuilder().normalize(relax.op.nn.relu(x))


def problem(module: tvm.IRModule, phase: str) -> str:
    with pytest.raises(InternalError, match=f"after {phase} the module is not in normal form") as caught:
        verify(module, phase)
    return str(caught.value)


# ---------------------------------------------------------------------- every phase


def test_main_is_one_block():
    x, builder = x_f32(), relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.relu(x))
        builder.emit(relax.op.nn.relu(y), "outside")
        with builder.dataflow():
            z = builder.emit_output(relax.op.nn.relu(y))
        builder.emit_func_output(z)
    told = problem(builder.get(), "imported")
    assert "main has 3 blocks" in told
    assert "no dataflow block" in told


def test_a_variable_is_bound_before_it_is_read():
    x, y, z = x_f32(), relax.DataflowVar("y", F32), relax.Var("z", F32)
    bindings = [relax.VarBinding(z, relu(y)), relax.VarBinding(y, relu(x))]
    assert "z reads y, which is not bound yet" in problem(raw([x], bindings, z), "imported")


def test_a_variable_is_bound_once():
    x, y = x_f32(), relax.Var("y", F32)
    bindings = [relax.VarBinding(y, relu(x)), relax.VarBinding(y, relu(x))]
    assert "y is bound twice" in problem(raw([x], bindings, y), "imported")


def test_what_is_returned_is_bound():
    x, y = x_f32(), relax.Var("y", F32)
    assert "main returns y, which is not bound" in problem(
        raw([x], [relax.VarBinding(relax.DataflowVar("z", F32), relu(x))], y), "imported"
    )


def test_no_size_waits_for_the_run():
    x, y = x_f32(), relax.Var("y", F32)
    assert "y is a size that is looked at only at run time" in problem(
        raw([x], [relax.MatchCast(y, x, F32)], y), "imported"
    )


def test_there_is_no_control_flow():
    x, y = x_f32(), relax.Var("y", F32)
    branch = relax.If(relax.const(True), relax.SeqExpr([], x), relax.SeqExpr([], x))
    assert "y is bound to a If" in problem(raw([x], [relax.VarBinding(y, branch)], y), "imported")


def test_no_call_stands_inside_of_another():
    x, y = x_f32(), relax.Var("y", F32)
    assert "y has a Call inside of its operands" in problem(
        raw([x], [relax.VarBinding(y, relax.op.nn.relu(relu(x)))], y), "imported"
    )


@pytest.mark.parametrize(
    ("ty", "told"),
    [
        (relax.TensorType(dtype="float32", ndim=2), "y is a tensor of unknown rank or dtype"),
        (relax.TensorType([tirx.Var("m", "int64"), 3], "float32"), "y has sizes that are none of the inputs'"),
    ],
)
def test_every_size_is_known(ty, told):
    x, y = x_f32(), relax.Var("y", ty)
    assert told in problem(raw([x], [relax.VarBinding(y, relu(x))], y), "imported")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quantvm.typo", 1),
        (attributes.ENGINE, "fbgem"),
        (attributes.ONEDNN_AMX, 2),
        (attributes.VNNI, "yes"),
        (attributes.AVX512, 2),
        (attributes.CHANNELS_LAST, [1]),
        (attributes.TORCH_TABLES, {"sigmoid": "00"}),
        (attributes.INTERFACE, json.dumps({"inputs": ["x", "y"], "outputs": None})),
        (attributes.INTERFACE, "x"),
    ],
)
def test_attributes_are_known_and_of_their_types(name, value):
    module = module_of(lambda builder, x: builder.emit(relax.op.nn.relu(x)))
    right = {
        attributes.ENGINE: "onnx", attributes.ONEDNN_AMX: 0, attributes.VNNI: 1, attributes.CHANNELS_LAST: [0],
        attributes.TORCH_TABLES: {"sigmoid": "00" * 512},
        attributes.INTERFACE: json.dumps({"inputs": ["x"], "outputs": None}),
    }  # fmt: skip
    verify(module.with_attrs(right), "imported")
    assert name in problem(module.with_attrs({**right, name: value}), "imported")


# ---------------------------------------------------------------------- the QDQ form


def quantized(builder, x, scale=0.5, zero_point=3):
    scale = scale if isinstance(scale, relax.Var) else relax.const(np.float32(scale))
    return builder.emit(relax.op.quantize(x, scale, relax.const(np.uint8(zero_point)), axis=1, out_dtype="uint8"))


def test_the_qdq_form():
    def emit(builder, x):
        q = quantized(builder, x)
        r = quantized(builder, x, [0.5, 1, 2], [1, 2, 3])
        both = builder.emit(relax.op.concat([q, r]))
        return builder.emit(relax.op.dequantize(both, relax.const(0.5), relax.const(3, "uint8")))

    verify(module_of(emit), "imported")


@pytest.mark.parametrize(
    ("scale", "zero_point", "dtype", "told"),
    [
        (np.float16(1), np.uint8(3), "uint8", "has scales of float16 and zero points of uint8"),
        (np.float32(1), np.int8(3), "uint8", "has scales of float32 and zero points of int8"),
        (np.float32(1), np.int32(3), "int32", "has integers of int32, expected int8 or uint8"),
        (np.ones(3, "float32"), np.uint8(3), "uint8", "has scales of shape (3,), zero points of ()"),
    ],
)
def test_quantization_parameters(scale, zero_point, dtype, told):
    x, y = x_f32(), relax.Var("y", relax.TensorType([2, 3], dtype))
    call = relax.op.quantize(x, relax.const(scale), relax.const(zero_point), axis=1, out_dtype=dtype)
    assert told in problem(raw([x], [relax.VarBinding(y, call)], y), "imported")


def test_quantization_is_from_and_to_float32():
    x = relax.Var("x", relax.TensorType([2, 3], "float16"))
    assert "quantizes from or to float16" in problem(module_of(lambda b, x: quantized(b, x), x), "imported")


def test_quantization_parameters_are_not_computed():
    x, scale = x_f32(), relax.Var("scale", relax.TensorType([], "float32"))
    module = built_main([x, scale], lambda builder: quantized(builder, x, scale))
    assert "has quantization parameters that are computed at run time" in problem(module, "imported")


def with_function(name="Composite", value="quantvm.relu") -> tvm.IRModule:
    """Returns a module that calls a function of Relax with an attribute."""
    x, inner, builder = x_f32(), x_f32(), relax.BlockBuilder()
    with builder.function("inner", [inner], attrs={name: value}, private=True):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.relu(inner))
        target = builder.emit_func_output(y)
    return built_main([x], lambda b: b.emit(relax.Call(target, [x])), builder)


def test_functions_are_called_when_islands_are_composites_only():
    module = with_function()
    verify(module, "fuse_qdq")
    assert "calls the function inner" in problem(module, "imported")
    assert "calls inner, which is no composite" in problem(with_function("Other"), "fuse_qdq")


def test_no_quantization_of_one_scale_is_outside_of_a_composite():
    verify(module_of(lambda b, x: quantized(b, x, [0.5, 1, 2], [1, 2, 3])), "fuse_qdq")
    module = module_of(quantized)
    verify(module, "hoist_quantize")
    assert "outside of a composite and has one scale" in problem(module, "fuse_qdq")


# ---------------------------------------------------------------------- kernels


def calling(n_arguments: int) -> tvm.IRModule:
    """Returns a module that calls a function in TIR of one input and one output."""
    x, builder = x_f32(), relax.BlockBuilder()

    def body(b):
        return b.emit(relax.call_tir(b.add_func(_identity(), "kernel"), [x] * n_arguments, F32))

    return built_main([x], body, builder)


def _identity() -> tirx.PrimFunc:
    builder = relax.BlockBuilder()
    x = x_f32()
    with builder.function("main", [x]):
        y = builder.emit_te(tvm.topi.identity, x)
        builder.emit_func_output(y)
    return builder.get()["identity"]


def test_kernels():
    module = calling(1)
    for phase in ("legalize", "run_time_checks", "float_ops", "owned_outputs"):
        verify(module, phase)
    assert "gives 2 arguments to kernel, which has 2" in problem(calling(2), "legalize")
    assert "calls kernel, which is not there" in problem(tvm.IRModule({"main": module["main"]}), "legalize")


def test_no_function_of_relax_is_left():
    told = problem(with_function(), "legalize")
    assert "inner is a function of Relax" in told
    assert "calls the function inner itself" in told


def test_no_operator_is_left_that_has_no_code():
    module = module_of(lambda b, x: b.emit(relax.op.nn.relu(x)))
    verify(module, "run_time_checks")
    assert "relax.nn.relu, for which there is no code" in problem(module, "float_ops")


@pytest.mark.parametrize(
    ("emit", "told"),
    [
        (lambda b, x: x, "x"),
        (lambda b, x: b.emit(relax.op.reshape(x, [3, 2])), "x"),
        (lambda b, x: relax.const(np.ones(3, "float32")), "a constant"),
    ],
)
def test_outputs_share_no_memory(emit, told):
    module = module_of(emit)
    verify(module, "float_ops")
    assert f"an output shares memory with {told}" in problem(module, "owned_outputs")


# ---------------------------------------------------------------------- all of it


@pytest.mark.parametrize("numerics", ["torch", "qdq", "integer"])
def test_every_phase_is_verified_where_that_is_asked_for(numerics, monkeypatch):
    network = nn.Sequential(torch.ao.nn.quantized.Quantize(0.05, 100, torch.quint8), conv2d(3, 8), nn.MaxPool2d(2),
                            torch.ao.nn.quantized.DeQuantize(), nn.Softmax(1))  # fmt: skip
    module = from_torch(network.eval(), image(1, 3, 8, 8), engine="fbgemm")
    seen = []
    monkeypatch.setattr(pipeline, "verify", lambda *given: (seen.append(given[1]), verify(*given)))
    monkeypatch.delenv(VERIFY_VARIABLE, raising=False)
    lower(module, LoweringOptions(native_target(), numerics))
    assert not seen
    monkeypatch.setenv(VERIFY_VARIABLE, "1")
    lower(module, LoweringOptions(native_target(), numerics))
    assert seen == [phase for phase in PHASES if phase != ("fuse_qdq" if numerics == "qdq" else "hoist_quantize")]
