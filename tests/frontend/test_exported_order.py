"""Operators that order elements or run along them, and those that PyTorch rewrites at import, compiled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tvm import relax

import quantvm
from quantvm.compiler import compile as compile_model
from quantvm.errors import CompileError, UnsupportedOpError
from quantvm.lowering.float.float_ops import legalize_float_ops
from tests.quantized_modules import image

from .exported_cases import dequantized, quantized

pytestmark = pytest.mark.filterwarnings("ignore")
EXACT = {
    "max": lambda m, x: x.max(-1),
    "max, kept": lambda m, x: x.max(1, keepdim=True),
    "min": lambda m, x: x.min(2),
    "argmax": lambda m, x: (x.argmax(1), x.argmin(-1, keepdim=True), x.argmax()),
    "amax": lambda m, x: (x.amax((2, 3)), x.amin(1), x.amax()),
    "aminmax": lambda m, x: torch.aminmax(x, dim=1),
    "sort": lambda m, x: (x.flatten(1).sort(-1)[0], x.sort(1, descending=True)[0]),
    "sort, stable": lambda m, x: torch.sort(x.flatten(1), dim=-1, descending=True, stable=True),
    "argsort, stable": lambda m, x: torch.argsort(x, dim=1, stable=True),
    "topk": lambda m, x: (x.flatten(1).topk(40)[0], x.topk(3, 1, largest=False)[0]),
    "median": lambda m, x: (x.median(1)[0], x.median(-1, keepdim=True)[0]),
    "cumsum": lambda m, x: (x.cumsum(1), quantized(x).cumsum(-1)),
    "cumprod": lambda m, x: (x * 0.3).cumprod(2),
    "pixel_shuffle": lambda m, x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 3), F.channel_shuffle(x, 2)),
    "pixel_shuffle of integers": lambda m, x: quantized(F.pixel_shuffle(x, 2)),
}
CLOSE = {
    "lstm": lambda m, x: m.lstm(x.flatten(2))[0],
    "state of lstm": lambda m, x: m.lstm(x.flatten(2))[1],
    "gru": lambda m, x: m.gru(x.flatten(2)),
    "rnn": lambda m, x: m.rnn(x.flatten(2)),
    "glu": lambda m, x: F.glu(x, 1),
    "var": lambda m, x: (x.var(1), x.std((2, 3), unbiased=False)),
}


class Together(nn.Module):
    """Every case applied to a dequantized input, whose values often occur twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(36, 5, batch_first=True, bidirectional=True)
        self.gru, self.rnn = nn.GRU(36, 5, 2), nn.RNN(36, 4)

    def forward(self, x):
        x = dequantized(x, 0.5)
        return [case(self, x) for case in (*EXACT.values(), *CLOSE.values())]


def test_results_are_pytorchs():
    program = torch.export.export(Together().eval(), (image(2, 8, 6, 6),))
    compiled = compile_model(program, cache=False)
    x = image(2, 8, 6, 6, seed=5) / 2
    leaves = torch.utils._pytree.tree_leaves
    results = torch.utils._pytree.tree_unflatten(leaves(compiled(x)), program.call_spec.out_spec)
    for name, got, expected in zip((*EXACT, *CLOSE), results, program.module()(x), strict=True):
        assert any(len(wanted.unique()) > 1 for wanted in leaves(expected)), f"{name}: shows nothing"
        for y, wanted in zip(leaves(got), leaves(expected), strict=True):
            assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype), name
            assert len(wanted.unique()) > 1 or wanted.numel() == 1, f"{name}: shows nothing"
            if name in EXACT:
                assert torch.equal(y, wanted), name
            else:
                torch.testing.assert_close(y, wanted, rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.topk(3, 1)[1], r"reads the indices of topk .*sort with stable=True and take the first k"),
        (lambda x: x.gather(1, x.sort(1)[1]), r"aten::gather\.default .*test_exported_order\.py:\d+.*stable=True"),
        (lambda x: x.argsort(1), "reads the indices of argsort"),
        (lambda x: x.median(1)[1] + 1, "reads the indices of median"),
        (lambda x: x.topk(3, 1, sorted=False)[0], r"aten::topk\.default .*sorted=True"),
    ],
)
def test_indices_of_equal_values_are_not_invented(function, message):
    class Net(nn.Module):
        def forward(self, x):
            return function(dequantized(x))

    with pytest.raises(UnsupportedOpError, match=message):
        quantvm.compile(torch.export.export(Net(), (image(2, 8, 6, 6),)), cache=False)


def test_operators_without_code_are_named_before_code_is_generated():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([4, 9], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            pair = builder.emit(relax.op.topk(x, 3), "head_topk")
            values = builder.emit(relax.TupleGetItem(pair, 0))
            result = builder.emit_output(builder.emit(relax.op.add(values, values)))
        builder.emit_func_output(result)
    with pytest.raises(
        CompileError, match=r"no code for 1 operators: topk \(head_topk\).*outside of the compiled model"
    ):
        legalize_float_ops(builder.get())


def test_functions_that_are_not_there_are_named():
    builder = relax.BlockBuilder()
    for name in ("gone", "main"):
        x = relax.Var("x", relax.TensorType([4, 9], "float32"))
        with builder.function(name, [x]):
            with builder.dataflow():
                value = x if name == "gone" else builder.emit(relax.Call(builder.get().get_global_var("gone"), [x]))
                result = builder.emit_output(relax.op.add(value, value))
            builder.emit_func_output(result)
    module = builder.get()
    del module["gone"]
    with pytest.raises(CompileError, match=r"gone \(\w+\), a function that is not there"):
        legalize_float_ops(module)
