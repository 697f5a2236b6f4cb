"""Random ONNX graphs in QDQ form compute what ONNX Runtime says when compiled, but for ties of rounding."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

import quantvm
from quantvm.compiler import compile as compile_model

from .drawn_plans import PARTS, check_together, drawn, searched
from .random_onnx_plans import LEFT_OUT, OPSETS, onnx_plans
from .random_programs import RejectedError, as_tuple, within_float_sums

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from .onnx_reference import FromGiven, opened, quantized_tensors, runtime  # noqa: E402
from .random_onnx import Graph, OnnxPlan, add_plan  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

STATIC = 2
TOGETHER = 9
"""Graphs in one model of the quick tests."""


def made(plans: Sequence[OnnxPlan], opset: int, batch: int | str) -> Any:
    """Returns all plans as one model.

    Raises:
        RejectedError: ONNX Runtime does not take it.
    """
    graph = Graph(opset, batch)
    try:
        for plan in plans:
            add_plan(graph, plan)
        model = graph.model()
        runtime(model)
    except Exception as error:
        raise RejectedError(str(error)[:200]) from error
    return model


def feeds(plans: Sequence[OnnxPlan], batch: int) -> dict[str, np.ndarray]:
    return {
        f"x{i}": np.random.default_rng(plan.seed + batch).standard_normal((batch, *plan.input_shape)).astype(np.float32)
        for i, plan in enumerate(plans)
    }


def assert_explained(model: Any, inputs: Sequence[dict[str, np.ndarray]], what: Any, compiler: Any) -> None:
    """Compiles a model and compares with ONNX Runtime's run of it, unfused."""
    session = runtime(model)
    artifact = compiler(model, list(inputs[0].values()), threads=1, cache=False)
    whole = None
    for x in inputs:
        actual = [np.asarray(y) for y in as_tuple(artifact(*x.values()))]
        try:
            expected = session.run(None, x)
        except Exception as error:
            raise RejectedError(str(error)[:200]) from error
        if within_float_sums(actual, expected):
            continue
        if whole is None:
            everything = opened(model)
            names = [output.name for output in everything.graph.output]
            whole = compile_model(everything, list(inputs[0].values()), threads=1, cache=False)
        found = [np.asarray(y) for y in as_tuple(whole(*x.values()))]
        for index, (fused, a) in enumerate(zip(actual, found, strict=False)):
            assert np.array_equal(fused, a, equal_nan=True), f"output {index} differs where all is returned; {what}"
        wrong = FromGiven(model).unexplained(x, found, names)
        assert wrong is None, f"{wrong}; {what}"


def _is_finite(values: Sequence[np.ndarray]) -> bool:
    """Whether nothing is quantized, or returned, that is no number: runtimes differ in what becomes of that."""
    return all(np.isfinite(value).all() for value in values if value.dtype.kind == "f")


def check_plans(plans: Sequence[OnnxPlan], opset: int, dynamic: bool, compiler: Any = compile_model) -> None:
    """Compiles plans as one model; those that ONNX Runtime does not take are left out."""
    batch: int | str = "N" if dynamic else STATIC
    batches = (STATIC, 3) if dynamic else (STATIC,)
    taken = []
    for plan in plans:
        try:
            model = made([plan], opset, batch)
            session = runtime(opened(model))
            is_finite = all(_is_finite(session.run(None, feeds([plan], b))) for b in batches)
        except Exception:  # noqa: BLE001 - whatever ONNX Runtime raises
            continue
        if quantized_tensors(model) and is_finite:
            taken.append(plan)
    if not taken:
        raise UnsatisfiedAssumption
    what = f"opset {opset}, {'dynamic' if dynamic else 'static'}: {taken}"
    assert_explained(made(taken, opset, batch), [feeds(taken, b) for b in batches], what, compiler)


@st.composite
def quantize_options(draw: Any) -> dict[str, Any]:
    """Draws the options of `onnxruntime.quantization.quantize_static`."""
    from onnxruntime.quantization import CalibrationMethod, QuantType

    activation = draw(st.sampled_from([QuantType.QUInt8, QuantType.QInt8]))
    extra = {
        name: draw(st.booleans())
        for name in ("ActivationSymmetric", "WeightSymmetric", "AddQDQPairToWeight", "DedicatedQDQPair", "QuantizeBias",
                     "MatMulConstBOnly", "ForceQuantizeNoInputCheck")
    }  # fmt: skip
    # quantized in the graph, weights are not imported right yet
    extra["AddQDQPairToWeight"] &= "float int8" not in LEFT_OUT
    return {
        "activation_type": activation, "per_channel": draw(st.booleans()), "reduce_range": draw(st.booleans()),
        "weight_type": draw(st.sampled_from([QuantType.QInt8, QuantType.QInt8, activation])), "extra_options": extra,
        "calibrate_method": draw(st.sampled_from([CalibrationMethod.MinMax, CalibrationMethod.Percentile])),
    }  # fmt: skip


def quantized(plans: Sequence[OnnxPlan], opset: int, options: dict[str, Any]) -> Any:
    """Returns all plans as one model, quantized by ONNX Runtime.

    Raises:
        RejectedError: ONNX Runtime does not take it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [feeds(plans, STATIC)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    graph = Graph(opset, STATIC)
    for plan in plans:
        add_plan(graph, plan, in_float=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quantized.onnx"
            onnx.save(graph.model(), str(path.with_name("float.onnx")))
            quantize_static(
                str(path.with_name("float.onnx")), str(path), Reader(), quant_format=QuantFormat.QDQ, **options
            )
            model = onnx.load(str(path))
        runtime(model).run(None, feeds(plans, STATIC))
    except Exception as error:
        raise RejectedError(str(error)[:200]) from error
    return model


def check_quantized(
    plans: Sequence[OnnxPlan], opset: int, options: dict[str, Any], compiler: Any = compile_model
) -> None:
    """Has ONNX Runtime quantize plans, compiles them as one model, and compares."""
    taken = []
    for plan in plans:
        try:
            model = quantized([plan], opset, options)
            is_finite = _is_finite(runtime(opened(model)).run(None, feeds([plan], STATIC)))
            if quantized_tensors(model) and is_finite:
                taken.append(plan)
        except RejectedError:
            continue
    if not taken:
        raise UnsatisfiedAssumption
    model = quantized(taken, opset, options)
    assert_explained(model, [feeds(taken, STATIC)], f"opset {opset}, {options}: {taken}", compiler)


@pytest.mark.parametrize("opset", OPSETS)
def test_random_graphs_are_onnx_runtimes(opset):
    plans, dynamic = drawn(onnx_plans(opset, 3), TOGETHER, opset), opset != OPSETS[1]
    check_together(plans, lambda some: check_plans(some, opset, dynamic))


@pytest.mark.parametrize("opset", OPSETS[::2])
def test_random_graphs_quantized_by_onnx_runtime(opset):
    plans, (options,) = drawn(onnx_plans(opset, 3), TOGETHER, opset), drawn(quantize_options(), 1, opset)
    check_together(plans, lambda some: check_quantized(some, opset, options))


@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
def test_many_random_graphs_are_onnx_runtimes(part):
    opset, dynamic = OPSETS[part % len(OPSETS)], part // len(OPSETS) % 2 == 0
    plans = searched(onnx_plans(opset, 8), part)
    check_together(plans, lambda some: check_plans(some, opset, dynamic, quantvm.compile))


@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
def test_many_random_graphs_quantized_by_onnx_runtime(part):
    opset = OPSETS[part % len(OPSETS)]
    plans, (options,) = searched(onnx_plans(opset, 6), part), searched(quantize_options(), part)[:1]
    check_together(plans, lambda some: check_quantized(some, opset, options, quantvm.compile))
