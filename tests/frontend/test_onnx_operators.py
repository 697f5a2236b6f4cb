"""Every ONNX operator that is imported, as compiled code, against ONNX Runtime's kernels without fusions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from tvm_ffi import structural_equal

from quantvm.compiler import compile as compile_model
from quantvm.errors import QuantvmError, UnsupportedOpError
from quantvm.frontend import from_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from quantvm.frontend.onnx.operators import SWEPT, SWEPT_OF_MICROSOFT, version_of  # noqa: E402  (needs onnx)

from .onnx_case_table import TABLE, X4, X  # noqa: E402
from .onnx_cases import MICROSOFT, Case, Network, held, longs  # noqa: E402
from .onnx_graphs import onnx_runtime  # noqa: E402
from .operator_cases import floats  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
NEAR = 2e-6
"""Of the largest element, what sums and functions of floats may differ by."""


def first_cases() -> list[Case]:
    """Returns the first case of each operator, and those that stand for a fault."""
    found, known = [], set()
    for case, was in TABLE:
        if was or (case.op, case.domain) not in known:
            found.append(case)
        known.add((case.op, case.domain))
    return found


QUICK = first_cases()
REST = [case for case, _ in TABLE if not any(case is other for other in QUICK)]


def problem(found: Any, expected: np.ndarray) -> str:
    """Returns what is wrong, or nothing."""
    found = np.asarray(found)
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"{found.dtype}{list(found.shape)}, expected {expected.dtype}{list(expected.shape)}"
    if np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f"):
        return ""
    if expected.dtype.kind != "f" or not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return f"{found.ravel()[:8]}, expected {expected.ravel()[:8]}"
    finite = np.isfinite(expected)
    apart = np.abs(found[finite] - expected[finite]).max() / np.abs(expected[finite]).max()
    return "" if apart <= NEAR else f"apart by {apart:.1e} of the largest element"


def check(cases: Iterable[Case], batch: str | None = None) -> None:
    """Compiles the cases as one model for each operator set, and compares all outputs."""
    cases, wrong = list(cases), []
    for opset in sorted({case.opset for case in cases}):
        network = Network([case for case in cases if case.opset == opset], opset, batch)
        found = compile_model(network.model, cache=False)(*network.feeds)
        expected = onnx_runtime(network.model, *network.feeds)
        for case, a, b in zip(network.cases, found, expected, strict=True):
            what = problem(a, b)
            wrong += [f"{case}: {what}"] if what else []
    assert not wrong, "\n".join(wrong)


def test_first_case_of_every_operator():
    check(QUICK)


@pytest.mark.nightly
@pytest.mark.parametrize("opset", sorted({case.opset for case in REST}))
def test_all_cases(opset: int):
    check([case for case in REST if case.opset == opset])


@pytest.mark.nightly
@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 22])
def test_dynamic_batch(opset: int):
    """What is imported with a dynamic dimension is right; constants of the size of the batch are refused."""
    taken = []
    for case, _ in TABLE:
        if case.opset == opset:
            try:
                from_onnx(Network([case], opset, "N").model)
            except QuantvmError:
                continue
            taken.append(case)
    assert len(taken) > 10
    check(taken, "N")


def test_every_operator_is_in_the_table():
    """None that is imported goes without a case; a Constant is an input of nearly all."""
    swept = {(case.op, case.domain) for case, _ in TABLE} | {("Constant", "")}
    imported = {(op, "") for op in SWEPT} | {(op, MICROSOFT) for op in SWEPT_OF_MICROSOFT}
    assert imported == swept


def relax(case: Case, opset: int) -> Any:
    return from_onnx(
        Network([Case(case.op, opset, case.inputs, case.outputs, case.domain, case.attributes)], opset).model
    )


def is_valid(case: Case, opset: int) -> bool:
    """Whether the node of a case is one of another operator set, too."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 10, {"": opset}
    moved = Case(case.op, opset, case.inputs, case.outputs, case.domain, case.attributes)
    try:
        network = Network([moved], opset)
        onnx.checker.check_node(network.model.graph.node[-1], context)
        onnx.shape_inference.infer_shapes(network.model, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def test_versions_without_a_case_are_imported_as_one_with():
    """A definition that only takes more types than another: the imported program is the same."""
    missing = []
    for op, versions in SWEPT.items():
        cases = [case for case, _ in TABLE if case.op == op and not case.domain]
        own = {version_of(op, case.opset) for case in cases}
        for version in sorted(set(versions) - own):
            opset = max(version, 7)
            case = next((case for case in reversed(cases) if opset > 9 and is_valid(case, opset)), None)
            if (
                op != "Constant"
                and opset > 9
                and (case is None or not structural_equal(relax(case, opset), relax(case, case.opset)))
            ):
                missing.append(f"{op}-{version}")
    assert not missing


REFUSED = [
    Case("NonZero", 13, (X,)),
    Case("MaxPool", 12, (X4,), 2, attributes={"kernel_shape": [2, 2]}),
    Case("Dropout", 13, (X, held(0.5), held(True, bool))),
    Case("Cast", 19, (X,), attributes={"to": 17}),
    Case("RoiAlign", 16, (X4, held([[0, 0, 3, 2]]), longs(0)), attributes={"sampling_ratio": 2, "mode": "max"}),
    Case("LSTM", 14, (floats(3, 2, 4), held(floats(1, 20, 4)), held(floats(1, 20, 5))), attributes={"hidden_size": 5}),
    Case("Slice", 13, (X, longs(3), longs(1), longs(2))),
    Case("TopK", 11, (X, longs(2)), 2),
    Case("ReduceMean", 13, (X.astype(np.int32),)),
    Case("QuickGelu", 17, (X,), domain=MICROSOFT),
    Case("Range", 17, (np.int64(0), np.int64(3), np.int64(1)), domain=MICROSOFT),
    Case("Add", 17, (X, X), domain="some.other"),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case: Case):
    """The error names the operator and the node."""
    with pytest.raises(UnsupportedOpError, match=rf"{case.op}.*{case.op}_0"):
        from_onnx(Network([case], case.opset).model)


FUNCTIONS = [
    Case("Attention", 23, (floats(1, 3, 8), floats(1, 5, 8, seed=2), floats(1, 5, 8, seed=3)),
         attributes={"q_num_heads": 2, "kv_num_heads": 2}),
    Case("Swish", 24, (X,)),
    Case("Swish", 24, (X,), attributes={"alpha": 0.5}),
    Case("CenterCropPad", 18, (X, longs(2, 2, 6))),
    Case("SoftmaxCrossEntropyLoss", 13, (X, held([[0, 1, 2, 0], [0, 0, 1, 1]], np.int64))),
]  # fmt: skip


def test_computed_from_constants():
    """What is not imported is taken where constants alone decide it."""
    numbers = [held(value, np.int64) for value in (1, 9, 3)]
    check([Case("Range", 13, tuple(numbers)), Case("BlackmanWindow", 18, (held(5, np.int64),))])


def test_operators_that_onnx_defines_by_others_are_written_out():
    assert not {case.op for case in FUNCTIONS} & (set(SWEPT) - {"Attention"})
    check(FUNCTIONS)
