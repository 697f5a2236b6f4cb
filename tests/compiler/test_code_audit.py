"""Counting dot-product instructions, on assembly as LLVM prints it and on compiled networks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import quantvm
from quantvm.compiler.code_audit import DOT_INSTRUCTIONS, dot_instructions
from quantvm.compiler.float_reasons import float_reasons
from quantvm.errors import ConfigError
from quantvm.frontend.exported.importer import register_operators
from quantvm.lowering import LoweringOptions, lower
from quantvm.tvm_compat import assembly, called_functions, native_target
from tests.lowering.test_patterns import IMAGE, LEFT, Qdq, float_conv, module_of
from tests.quantized_modules import Quantized, SmallNetwork, image

X86 = """
	.text
	.globl	__tvm_ffi_conv2d
	.type	__tvm_ffi_conv2d,@function
__tvm_ffi_conv2d:
.Lfunc_begin0:
	vpdpbusd	(%rax), %zmm1, %zmm2
	leaq	.L__tvm_parallel_lambda(%rip), %rdi
	callq	*(%rax)
.LBB0_1:
	{vex}	vpdpbusd	%ymm0, %ymm1, %ymm2
	retq
.Lfunc_end0:
	.size	__tvm_ffi_conv2d, .Lfunc_end0-__tvm_ffi_conv2d
	.type	.L__tvm_parallel_lambda,@function
.L__tvm_parallel_lambda:
	vpmaddwd	%ymm0, %ymm1, %ymm2
	jmp	.Linner
	.type	.Linner,@function
.Linner:
	vpmaddwd	%ymm0, %ymm1, %ymm2     # vpdpbusd in a comment
	vpdpwssd	%zmm0, %zmm1, %zmm2
	.type	__tvm_ffi_other,@function
__tvm_ffi_other:
	leaq	vpdpbusd(%rip), %rax
	callq	__tvm_ffi_conv2d
	retq
	.type	vpdpbusd,@object
vpdpbusd:
	.asciz	"vpdpbusd"
"""
ARM = """
	.type	__tvm_ffi_linear,@function
__tvm_ffi_linear:                       // @linear
	udot	v0.4s, v1.16b, v2.16b
	sdot	v0.4s, v1.16b, v2.4b[0]
	usmmla	v0.4s, v1.16b, v2.16b
	ret
"""


def test_x86_assembly():
    assert dot_instructions(X86) == {
        "conv2d": Counter(vpdpbusd=2, vpmaddwd=2, vpdpwssd=1),
        "other": Counter(),
    }


def test_arm_assembly():
    assert dot_instructions(ARM) == {"linear": Counter(udot=1, sdot=1, usmmla=1)}


def test_no_assembly():
    assert dot_instructions("") == {}


@pytest.fixture(scope="module")
def artifact():
    torch.backends.quantized.engine = "fbgemm"
    return quantvm.compile(SmallNetwork(), image(1, 3, 19, 17), engine="fbgemm", threads=1)


def test_every_kernel_of_a_network_is_a_row(artifact):
    rows = quantvm.audit(artifact)
    calls = Counter()
    for row in rows:
        calls[row.kernel] += row.calls
    assert calls == artifact.report.kernels
    convolutions = [row for row in rows if row.kernel.startswith("conv2d_u8i8acc32_")]
    assert convolutions
    for row in convolutions:
        instruction = "vpdpbusd" if "vnni" in row.kernel else "vpmaddwd"
        assert row.dot_instructions.get(instruction, 0) > 0, row


def test_no_instruction_is_lost_or_counted_twice(artifact):
    lines = [line.split() for line in assembly(artifact.library.executable).splitlines()]
    expected = Counter(words[0] for words in lines if words and words[0] in DOT_INSTRUCTIONS)
    found = sum((Counter(row.dot_instructions) for row in quantvm.audit(artifact)), Counter())
    assert found == expected
    assert called_functions(artifact.library.executable)["vm.builtin.alloc_storage"] > 0


def test_functions_of_tvm_are_rows_without_a_kernel():
    module = Quantized(lambda x: torch.quantize_per_tensor(torch.softmax(x.dequantize(), 1), 0.1, 3, torch.quint8))
    left = quantvm.compile(module, image(1, 3, 4, 4), engine="fbgemm", threads=1)
    assert left.report.float_ops
    assert left.report.float_reasons == ("there is no int8 kernel for it",) * len(left.report.float_ops)
    assert [row.function for row in quantvm.audit(left) if row.kernel is None] == ["softmax", "transpose"]


def test_a_loaded_artifact_has_no_assembly(artifact, tmp_path):
    with pytest.raises(ConfigError, match="cache=False"):
        quantvm.audit(quantvm.load(artifact.save(tmp_path / "model.qvm")))


# ------------------------------------------------------------------ why operators stay float


def reasons_of(module):
    _, report = lower(module, LoweringOptions(native_target()))
    return float_reasons(module, report.float_ops)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("softmax", ["there is no int8 kernel for it"]),
        ("mean over images", ["its shapes, options or quantization parameters fit no kernel"]),
        ("relu to other parameters", ["its shapes, options or quantization parameters fit no kernel"]),
        (
            "another gate",
            [
                "its result is not just quantized",
                "its input is not just dequantized",
                "its input is not just dequantized",
            ],
        ),
    ],
)
def test_reasons(name, expected):
    body, shapes, _ = LEFT[name]
    assert list(reasons_of(module_of(body, *shapes))) == expected


def test_reasons_of_weights():
    from tvm.relax import op

    def variable(q: Qdq, x, w):
        return q.quantized(q.emit(op.nn.conv2d(q.dequantized(x), q.dequantized(w))))

    assert reasons_of(module_of(variable, IMAGE, (5, 8, 3, 3))) == ("its weight is no constant",)
    assert reasons_of(module_of(lambda q, x: float_conv(q, x), IMAGE)) == ("its weight is not quantized",)


def test_reason_of_an_activation_per_channel():
    import numpy as np

    def body(q: Qdq, x):
        return q.dequantized(x, np.full(8, 0.1, "float32"), np.zeros(8, "uint8"), axis=1)

    assert reasons_of(module_of(body, IMAGE)) == ("only weights may be quantized per channel",)


@pytest.mark.parametrize("numerics", ["torch", "integer"])
def test_reasons_go_on_behind_an_operator_that_is_not_found(numerics):
    body, shapes, _ = LEFT["softmax"]
    module = module_of(body, *shapes)
    ops = ("power (nowhere)", "nn.softmax (of_another_name)", "power (nowhere)")
    assert float_reasons(module, ops, numerics) == (
        "no kernel takes it", "there is no int8 kernel for it", "no kernel takes it",
    )  # fmt: skip


def test_reasons_under_qdq():
    """Each operator is found by its variable, whatever the lowering left out or wrote out in between."""
    register_operators()
    d = torch.ops.quantized_decomposed
    scales, zeros = torch.tensor([0.02, 0.03, 0.025]), torch.tensor([0, 3, 7])
    weight = torch.randn(4, 3, 3, 3)

    class Mixed(torch.nn.Module):
        def forward(self, x):
            q = d.quantize_per_channel(x, scales, zeros, 1, -128, 127, torch.int8)
            x = d.dequantize_per_channel(q, scales, zeros, 1, -128, 127, torch.int8)
            y = torch.softmax(torch.nn.functional.conv2d(x, weight), 1)
            return torch.erf(y) + y

    program = torch.export.export(Mixed(), (image(2, 3, 8, 8),))
    report = quantvm.compile(program, cache=False).report
    reasons = dict(zip((op.split(" ")[0] for op in report.float_ops), report.float_reasons, strict=True))
    assert reasons == {
        "multiply": "only weights may be quantized per channel",
        "round": "only weights may be quantized per channel",
        "add": "only weights may be quantized per channel",
        "clip": "only weights may be quantized per channel",
        "dequantize": "only weights may be quantized per channel",
        "nn.conv2d": "its weight is not quantized",
        "nn.softmax": "there is no int8 kernel for it",
        "erf": "there is no int8 kernel for it",
    }
