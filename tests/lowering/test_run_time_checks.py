"""Places and sizes that only a call knows: what fits is ONNX Runtime's, and what does not is a RunError."""

from __future__ import annotations

import numpy as np
import pytest

import quantvm
from quantvm.errors import RunError
from tests.frontend.onnx_graphs import Graph, onnx_runtime

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto  # noqa: E402  (needs onnx)

ROWS = np.arange(20, dtype=np.float32).reshape(5, 4) * 0.0625
"""What is taken from."""


@pytest.fixture(scope="module")
def computed_places():
    """A model whose inputs are places along a dimension of five: as they are, in two dimensions, and to write to."""
    graph = Graph(["N", 4], opset=18)
    places = graph.op("Cast", "x", to=TensorProto.INT64)
    rows = graph.constant(ROWS)
    graph.output(graph.qdq(graph.op("Gather", rows, places)))
    graph.output(graph.op("GatherElements", rows, places))
    pairs = graph.op("Reshape", places, graph.constant([0, 2, 2], np.int64))
    graph.output(graph.op("GatherND", graph.constant(ROWS.repeat(2, 1)[:, :5]), pairs))
    model = graph.model()
    return model, quantvm.compile(model, verify=False)


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_places_that_exist(computed_places, batch: int):
    model, artifact = computed_places
    places = np.random.default_rng(batch).integers(-5, 5, (batch, 4)).astype(np.float32)
    for index, (a, b) in enumerate(zip(artifact(places), onnx_runtime(model, places), strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=str(index))


@pytest.mark.parametrize("place", [5, -6, 1 << 40, -(1 << 40)])
def test_places_that_do_not_exist(computed_places, place: int):
    _, artifact = computed_places
    places = np.zeros((3, 4), np.float32)
    places[2, 3] = place
    with pytest.raises(RunError, match=r"the inputs do not fit the model: .*it takes a place outside of \(5"):
        artifact(places)
    assert artifact(np.zeros((3, 4), np.float32))[0].shape == (3, 4, 4)  # and goes on working


def test_sizes_that_have_to_fit():
    graph = Graph(["N", "M"])
    square = graph.op("MatMul", "x", graph.qdq("x"))
    graph.output(square)
    model = graph.model()
    artifact = quantvm.compile(model, [np.ones((3, 3), np.float32)], verify=False)
    x = np.random.default_rng(0).random((4, 4), np.float32)
    if artifact.signature.inputs[0].shape == (3, 3):
        pytest.fail("the sizes are not dynamic: this proves nothing")
    np.testing.assert_allclose(artifact(x), onnx_runtime(model, x)[0], rtol=1e-6)
    with pytest.raises(RunError, match=r"the inputs do not fit the model: gv1 .*matmul.: .n, n_1. times .n, n_1."):
        artifact(np.ones((3, 4), np.float32))
