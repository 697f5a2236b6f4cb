"""Every converter: the Relax that it emits, and the compiled result against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tvm

from quantvm.compiler import compile as compile_model
from quantvm.frontend import from_torch
from quantvm.frontend.registry import register_converter, supported_ops
from quantvm.frontend.torchscript.nodes import all_nodes
from tests.quantized_modules import Together, image, outputs_of

from .cases import CASES as QUANTIZED_CASES
from .cases import Case
from .float_cases import FLOAT_CASES

CASES = [*QUANTIZED_CASES, *FLOAT_CASES]

IMAGE = (2, 8, 6, 6)
BATCHES = (2, 3)


pytestmark = pytest.mark.usefixtures("one_torch_thread", "fbgemm")


@pytest.fixture(scope="module")
def compiled():
    """Maps the identity of a case to what runs it; cases that do not compile together are compiled alone, if asked."""
    together = [case for case in CASES if not case.scripted and case.shape == IMAGE]
    modules = [case.module() for case in together]
    try:
        artifact = compile_model(Together(modules), image(*IMAGE), engine="fbgemm", threads=1)
    except Exception:  # noqa: BLE001 - each case then fails or passes on its own
        return {}
    results = {batch: list(artifact(image(batch, *IMAGE[1:], seed=batch))) for batch in BATCHES}
    found: dict[int, dict[int, tuple[torch.Tensor, ...]]] = {}
    for case, module in zip(together, modules, strict=True):
        count = len(outputs_of(module(image(*IMAGE))))
        found[id(case)] = {batch: tuple(results[batch].pop(0) for _ in range(count)) for batch in BATCHES}
    return found


def test_no_converter_is_without_a_case():
    covered = {case.op for case in CASES}
    assert sorted(set(supported_ops()) - covered) == [], "converters without a case"
    assert sorted(covered - set(supported_ops())) == [], "cases of operators that have no converter"


def bindings(module: tvm.IRModule) -> list[Any]:
    return [binding for block in module["main"].body.blocks for binding in block.bindings]


def relax_ops(module: tvm.IRModule) -> list[str]:
    """Returns the operators of `main` in order, without the prefix."""
    values = [binding.value for binding in bindings(module)]
    names = [v.op.name.removeprefix("relax.") for v in values if hasattr(v, "op") and hasattr(v.op, "name")]
    return [name for name in names if name != "astype"]  # it marks what the program itself dequantized


@pytest.mark.parametrize("case", CASES, ids=str)
def test_converter_emits_qdq(case: Case):
    module, x = case.module(), image(*case.shape)
    script = module if case.scripted else torch.jit.trace(module, x, check_trace=False)
    assert case.op in {node.kind() for node in all_nodes(script.inlined_graph)}, "the case does not hold its operator"
    relax_module = from_torch(script, x)
    assert relax_ops(relax_module) == ["quantize", *case.relax.split()]
    expected = outputs_of(module(x))
    result = relax_module["main"].ret_ty
    for tensor, y in zip(result.fields if len(expected) > 1 else [result], expected, strict=True):
        assert tensor.dtype == "float32"
        for d, size in zip(tensor.shape, y.shape, strict=True):
            assert not hasattr(d, "value") or int(d) == size
    for binding in bindings(relax_module):
        if getattr(binding.var.ty, "dtype", "") in ("uint8", "int8"):
            assert binding.value.op.name.removeprefix("relax.") in MAKES_OR_MOVES_INTEGERS


MAKES_OR_MOVES_INTEGERS = {
    "quantize", "reshape", "permute_dims", "strided_slice", "squeeze", "expand_dims", "nn.pad", "broadcast_to",
    "take",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_result_is_torchs(case: Case, compiled):
    module = case.module()
    results = compiled.get(id(case))
    if results is None:
        artifact = compile_model(module, image(*case.shape), threads=1)
        results = {batch: outputs_of(artifact(image(batch, *case.shape[1:], seed=batch))) for batch in BATCHES}
    for batch in BATCHES:
        expected = outputs_of(module(image(batch, *case.shape[1:], seed=batch)))
        for actual, wanted in zip(results[batch], expected, strict=True):
            assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
            if case.exact:
                assert torch.equal(actual, wanted), f"batch {batch}: {(actual != wanted).sum()} elements differ"
            else:
                torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def test_names_are_qualified_and_unique():
    with pytest.raises(ValueError, match="namespace::op"):
        register_converter("linear")
    with pytest.raises(ValueError, match="has a converter already"):
        register_converter("quantized::linear")
