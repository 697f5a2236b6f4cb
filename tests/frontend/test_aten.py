"""Operators of aten in exported programs: each with all its options, compiled, against PyTorch's own run.

Nothing of a program is left to TVM's own importer of exported programs, of whose operators many ignore options. That
each operator that it has is compiled here, or refused, is a test, so that a newer TVM's are not forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from quantvm.compiler import compile as compile_model
from quantvm.errors import UnsupportedOpError
from quantvm.frontend import from_exported_program
from quantvm.frontend.exported.aten import SHARED
from quantvm.frontend.exported.importer import register_operators
from quantvm.frontend.exported.registry import exported_ops

from .aten_cases import CASES
from .aten_inputs import Case, exported, inputs
from .pt2e import evaluate

pytestmark = pytest.mark.filterwarnings("ignore")

BOUND = 2e-6
"""Of the largest element, for sums and functions of floats. What is no float is equal."""
OPTIONS_THAT_TVM_MISSES = (
    "celu", "elu", "selu", "clamp_max", "expm1", "log1p", "tanh", "atanh", "softplus", "round", "logical_not",
    "rsub", "remainder", "div", "floor_divide", "logaddexp", "pow", "isin", "where", "masked_fill", "matmul",
    "baddbmm", "addmm", "scaled_dot_product_attention", "conv1d", "conv3d", "conv_transpose2d", "max_pool1d",
    "avg_pool1d", "max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "instance_norm", "group_norm", "softmax",
    "sum", "prod", "std", "var", "linalg_vector_norm", "any", "max", "argmax", "amax", "median", "index", "gather",
    "scatter", "index_put", "slice_scatter", "diagonal", "as_strided", "stack", "cat", "pad", "meshgrid", "squeeze",
    "_to_copy", "full", "take", "roll",
)  # fmt: skip
"""Operators whose first case asks for what TVM's importer leaves out, computes otherwise or cannot import."""
_PART = 50


def _flat(names: Sequence[str]) -> list[tuple[str, Case]]:
    return [(name, case) for name in names for case in CASES[name]]


QUICK = [
    (name, cases[0]) for name, cases in CASES.items()
    if name.removeprefix("aten::").split(".")[0] in OPTIONS_THAT_TVM_MISSES
]  # fmt: skip
ALL = _flat(list(CASES))


def _differences(cases: Sequence[tuple[str, Case]], size: int) -> list[str]:
    """Returns the cases in which compiled code differs from PyTorch's run, at another batch than the traced one."""
    register_operators()
    program = exported(cases)
    tensors = inputs(size, 1)
    expected, _ = program.module()(*tensors)
    actual, _ = compile_model(program, cache=False)(*tensors)
    found = []
    for (name, case), results, wanted in zip(cases, actual, expected, strict=True):
        assert len(results) == len(wanted), name
        for a, e in zip(results, wanted, strict=True):
            if a.shape != e.shape or a.dtype != e.dtype or not _is_near(a, e):
                found.append(f"{name} {CASES[name].index(case)}")
    return found


def _is_near(a: torch.Tensor, e: torch.Tensor) -> bool:
    same = (a == e) | ((a != a) & (e != e))  # NaN is equal to NaN here
    if not e.dtype.is_floating_point or same.all():
        return bool(same.all())
    finite = e.isfinite()
    bound = BOUND * float(e[finite].abs().max()) if finite.any() else 0.0
    return bool((same | (a.isfinite() & finite & ((a - e).abs() <= bound))).all())


def test_options_that_tvm_misses():
    assert _differences(QUICK, 5) == []


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, len(ALL), _PART))
def test_every_option(first: int):
    assert _differences(ALL[first : first + _PART], 5) == []


RANDOM = {
    "bernoulli.p": lambda x: torch.ops.aten.bernoulli.p(x, 0.5),
    "exponential.default": lambda x: torch.ops.aten.exponential.default(x),
    "randn.default": lambda x: torch.ops.aten.randn.default([3]) + x,
    "randn_like.default": lambda x: torch.ops.aten.randn_like.default(x),
}
OTHERS = {
    "masked_select.default": lambda x: torch.ops.aten.masked_select.default(x, x > 0).sum(),
    "_upsample_bilinear2d_aa.default": lambda x: torch.ops.aten._upsample_bilinear2d_aa.default(
        x.reshape(1, 1, 4, 3), [2, 2], False
    ),
}
ELSEWHERE = frozenset(
    (
        *("_sparse_addmm.default", "_sparse_mm.default", "to_sparse.default"),  # no tensor of a program is sparse
        "_native_batch_norm_legit_functional.default",  # of training only
        *("lstm.input", "gru.input", "rnn_tanh.input"),  # PyTorch rewrites them: float recurrent layers
        *("item.default", "_local_scalar_dense.default"),  # below
        "_int_mm.default",  # test_torchao.py
        *("dropout.default", "dropout_.default", "feature_dropout.default", "detach.default", "detach_.default"),
        *("contiguous.default", "clone.default", "alias.default", "lift_fresh_copy.default"),  # these do nothing
        *("empty.memory_format", "empty_permuted.default", "empty_like.default", "new_empty.default"),  # anything
        "argsort.default",  # test_exported_order.py
        *("_assert_async.default", "_assert_async.msg", "_assert_scalar.default", "_assert_tensor_metadata.default"),
        *("sym_constrain_range_for_size.default", "sym_size.int"),
    )
)
"""Operators that other tests are about, or that compute nothing which can be compared."""


class Called(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d, params = torch.ops.quantized_decomposed, (0.02, 100, 0, 255, torch.uint8)
        return self.call(d.dequantize_per_tensor(d.quantize_per_tensor(x, *params), *params))


@pytest.mark.parametrize("name", [*RANDOM, *OTHERS])
def test_what_cannot_be_computed_is_refused(name: str):
    register_operators()
    program = torch.export.export(Called({**RANDOM, **OTHERS}[name]), (torch.randn(4, 3),))
    with pytest.raises(UnsupportedOpError, match="Random numbers" if name in RANDOM else "unsupported ops") as caught:
        from_exported_program(program)
    assert "test_aten.py:" in str(caught.value)


def test_every_operator_of_tvms_importer_is_compiled_or_refused():
    theirs = set()
    for name in ExportedProgramImporter().convert_map:
        base, _, overload = name.partition(".")
        if overload and hasattr(getattr(torch.ops.aten, base, None), overload):
            theirs.add(f"aten::{name}")
    checked = {*CASES, *(f"aten::{name}" for name in (*RANDOM, *OTHERS, *ELSEWHERE))}
    assert sorted(theirs - checked) == [], "operators that TVM's importer has and that nothing here compiles"


def test_every_converter_is_compiled():
    ours = {name for name in (*exported_ops(), *SHARED) if name.startswith("aten::")}
    checked = {*CASES, *(f"aten::{name}" for name in ELSEWHERE)}
    assert sorted(ours - checked) == []


def test_item_is_a_number_that_tensors_are_multiplied_by():
    register_operators()
    program = torch.export.export(Called(lambda x: x * x[0, 0].item()), (torch.ones(4, 3),))
    x = torch.randn(4, 3)
    (actual,) = evaluate(from_exported_program(program), x)
    torch.testing.assert_close(torch.from_numpy(actual), program.module()(x), rtol=0, atol=0)


A = torch.ops.aten
QUANTIZED_POOLS = {
    "max_pool1d": lambda s, v: A.max_pool1d.default(s, [3], [2], [1]),
    "avg_pool1d": lambda s, v: A.avg_pool1d.default(s, [3], [2], [1], True, False),
    "adaptive_avg_pool1d": lambda s, v: A.adaptive_avg_pool1d.default(s, [4]),
    "mean": lambda s, v: A.mean.dim(s, [2]),
    "max_pool3d": lambda s, v: A.max_pool3d.default(v, [3, 2, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1], True),
    "avg_pool3d": lambda s, v: A.avg_pool3d.default(v, [3, 2, 3], [2, 2, 2], [1, 1, 1], True, True),
    "avg_pool3d_divisor": lambda s, v: A.avg_pool3d.default(v, [2, 2, 2], [2, 2, 2], [0, 0, 0], False, True, 3),
    "adaptive_avg_pool3d": lambda s, v: A.adaptive_avg_pool3d.default(v, [2, 3, 3]),
    "clamp_max": lambda s, v: A.clamp_max.default(s, 0.5),
    "celu": lambda s, v: A.celu.default(s, 0.7),
    "rsub": lambda s, v: A.rsub.Scalar(s, 1.5, 2),
    "roll": lambda s, v: A.roll.default(s, [2], [2]),
    "group_norm": lambda s, v: A.group_norm.default(s, 2),
}


class Quantized(nn.Module):
    """Each operator between a dequantize and a quantize, of one dimension and of three."""

    def forward(self, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s, v = _rounded(s, 0.05, 120), _rounded(v, 0.05, 120)
        return tuple(_rounded(call(s, v), 0.031, 90) for call in QUANTIZED_POOLS.values())


def _rounded(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    d, params = torch.ops.quantized_decomposed, (scale, zero_point, 0, 255, torch.uint8)
    return d.dequantize_per_tensor(d.quantize_per_tensor(x, *params), *params)


def test_quantized_pools_of_one_and_three_dimensions():
    register_operators()

    def images(size: int, seed: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(size, *shape, generator=generator) * 2 for shape in ((4, 9), (2, 5, 6, 7)))

    shapes = ({0: torch.export.Dim("n", min=1, max=64)},) * 2
    program = torch.export.export(Quantized(), images(3, 0), dynamic_shapes=shapes)
    artifact = compile_model(program, cache=False)
    assert [name for name in artifact.report.float_ops if "pool" in name] == []
    for seed in range(3):
        tensors = images(5 + seed, seed)
        for name, a, e in zip(QUANTIZED_POOLS, artifact(*tensors), program.module()(*tensors), strict=True):
            assert torch.equal(a, e), name
