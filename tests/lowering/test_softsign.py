"""A function that is declared in the tables alone is one int8 kernel in programs of every framework."""

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines the operators
import torch.nn.functional as F
import tvm
from torch import nn

from quantvm.compiler import compile as compile_model
from quantvm.frontend.exported.importer import from_exported_program
from quantvm.lowering.pipeline import LoweringOptions, lower
from tests.frontend.onnx_graphs import Graph, onnx_runtime
from tests.quantized_modules import image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
D = torch.ops.quantized_decomposed
IN, OUT = ((float(np.float32(scale)), zero) for scale, zero in ((0.031, 121), (0.0079, 127)))
VBMI = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "icelake-server"})


def fake(x, params):
    q = D.quantize_per_tensor(x, *params, 0, 255, torch.uint8)
    return D.dequantize_per_tensor(q, *params, 0, 255, torch.uint8)


class Softsign(nn.Module):
    def forward(self, x):
        return fake(F.softsign(F.max_pool2d(fake(x, IN), 2)), OUT)


def test_pt2e():
    x = image(2, 8, 9, 7)
    program = torch.export.export(Softsign().eval(), (x,))
    artifact = compile_model(program, x, threads=1, cache=False)
    assert artifact.report.float_ops == ()
    assert torch.equal(artifact(x), Softsign()(x))
    lowered, _ = lower(from_exported_program(program), LoweringOptions(VBMI))
    assert "table_u8" in {variable.name_hint for variable in lowered.get_global_vars()}


def test_onnx():
    graph = Graph(["N", 8, 9, 7])
    graph.output(graph.qdq(graph.op("Softsign", graph.qdq("x", *IN)), *OUT))
    model, x = graph.model(), image(2, 8, 9, 7).numpy()
    artifact = compile_model(model, cache=False)
    assert artifact.report.float_ops == ()
    np.testing.assert_array_equal(np.asarray(artifact(x)), onnx_runtime(model, x)[0])
