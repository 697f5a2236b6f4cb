"""The strides of results that stay in float, or are views, are those that PyTorch gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tvm import relax

from quantvm.lowering.tensors import Tensor, logical_tensor, with_strides
from quantvm.lowering.torch.formats import formatted, permuted

op = relax.op
X = torch.zeros(2, 6, 4, 5)
LAST = X.contiguous(memory_format=torch.channels_last)
GATE = torch.zeros(2, 6, 1, 1)
ROW = torch.zeros(2, 1, 4, 5)
VIEW = LAST[:, :, 1:3].permute(0, 2, 1, 3)  # of neither format
WEIGHT = torch.zeros(3, 6, 2, 2)

Case = tuple[Callable[..., Any], Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]
ADD: tuple[Callable[..., Any], Callable[..., torch.Tensor]] = (op.add, torch.add)
CASES: dict[str, Case] = {
    "add, contiguous": (*ADD, (X, X)),
    "add, channels last": (*ADD, (LAST, LAST)),
    "add a gate": (*ADD, (LAST, GATE)),
    "add to a gate": (*ADD, (GATE, LAST)),
    "add a row": (*ADD, (LAST, ROW)),
    "add to a vector": (*ADD, (torch.zeros(5), LAST)),
    "negative of a view": (op.negative, torch.neg, (VIEW,)),
    "relu of a transposition": (op.nn.relu, torch.relu, (LAST.transpose(2, 3),)),
    "relu of expanded": (op.nn.relu, torch.relu, (GATE.expand(2, 6, 4, 5),)),
    "astype": (lambda x: op.astype(x, "int32"), lambda x: x.to(torch.int32), (LAST,)),
    "maximum pool": (lambda x: op.nn.max_pool2d(x, (2, 2)), lambda x: F.max_pool2d(x, 2, 1), (LAST,)),
    "maximum pool, contiguous": (lambda x: op.nn.max_pool2d(x, (2, 2)), lambda x: F.max_pool2d(x, 2, 1), (X,)),
    "convolution": (op.nn.conv2d, F.conv2d, (LAST, WEIGHT)),
    "softmax": (lambda x: op.nn.softmax(x, 1), lambda x: torch.softmax(x, 1).contiguous(), (LAST,)),
    "concat": (lambda *x: op.concat(x, 1), lambda *x: torch.cat(x, 1), (LAST, LAST)),
    "concat, contiguous": (lambda *x: op.concat(x, 1), lambda *x: torch.cat(x, 1), (X, X)),
    "reshape": (lambda x: op.reshape(x, (2, 6, 20)), lambda x: x.view(2, 6, 20), (LAST,)),
    "reshape to itself": (lambda x: op.reshape(x, (2, 6, 4, 5)), lambda x: x.contiguous(), (LAST,)),
    "reshape that copies": (lambda x: op.reshape(x, (2, 120)), lambda x: x.reshape(2, 120), (LAST,)),
    "permute": (lambda x: op.permute_dims(x, [0, -2, -1, 1]), lambda x: x.permute(0, 2, 3, 1), (LAST,)),
    "transpose all": (op.permute_dims, lambda x: x.permute(3, 2, 1, 0), (LAST,)),
    "slice": (lambda x: op.strided_slice(x, [2], [1], [4]), lambda x: x[:, :, 1:4], (LAST,)),
    "slice with steps": (
        lambda x: op.strided_slice(x, [-1, 1], [0, 0], [5, 6], [2, 3]), lambda x: x[:, ::3, :, ::2], (LAST,),
    ),
    "expand dims": (lambda x: op.expand_dims(x, [-1, 1]), lambda x: x.unsqueeze(1).unsqueeze(-1), (LAST,)),
    "expand dims behind": (lambda x: op.expand_dims(x, [4]), lambda x: x.unsqueeze(4), (X,)),
    "squeeze one": (lambda x: op.squeeze(x, [-3]), lambda x: x.squeeze(1), (LAST[:, 2:3],)),
    "squeeze all": (op.squeeze, torch.squeeze, (LAST[:1, 2:3],)),
    "broadcast": (lambda x: op.broadcast_to(x, (2, 6, 4, 5)), lambda x: x.expand(2, 6, 4, 5), (GATE,)),
}  # fmt: skip


def as_lowered(x: torch.Tensor, name: str) -> Tensor:
    var = relax.Var(name, relax.TensorType(list(x.shape), "float32"))
    return with_strides(logical_tensor(var), tuple(x.stride()))


@pytest.mark.parametrize("name", CASES)
def test_strides_of_results(name):
    relaxed, in_torch, inputs = CASES[name]
    lowered = [as_lowered(x, f"x{i}") for i, x in enumerate(inputs)]
    call = relax.BlockBuilder().normalize(relaxed(*(x.expr for x in lowered)))
    expected = in_torch(*inputs)
    result = Tensor(None, tuple(expected.shape), "NCHW" if expected.ndim == 4 else "flat")
    found = formatted(result, call, [x for x in lowered if name != "convolution" or x is lowered[0]])
    assert of_large(found.torch_strides, expected) == of_large(expected.stride(), expected)
    if name.startswith("expand dims"):  # the suggested memory format depends on strides of single elements, too
        assert found.torch_strides == expected.stride()


def of_large(strides: tuple[int, ...], x: torch.Tensor) -> list[int]:
    """Strides of the dimensions with more than one element; the others have no effect."""
    return [stride for stride, size in zip(strides, x.shape, strict=True) if size > 1]


def test_what_is_no_tensor_has_no_strides():
    call = relax.op.add(as_lowered(X, "x").expr, as_lowered(X, "y").expr)
    assert formatted("tuple", call, []) == "tuple"
    result = as_lowered(X, "z")
    assert formatted(result, call, ["no tensor"]) is result


def test_permutations_between_the_two_formats_are_views():
    x = Tensor(None, (2, 6, 4, 5), "NCHW")
    there = permuted(x, [0, 3, 1, 2])
    assert (there.shape, there.layout, there.channels_last) == ((2, 5, 6, 4), "NHWC", True)
    back = permuted(there, [0, 2, 3, 1])
    assert (back.shape, back.layout, back.channels_last) == ((2, 6, 4, 5), "NCHW", False)
    assert permuted(x, [0, 2, 3, 1]) is None
    assert permuted(there, [0, 3, 1, 2]) is None
    assert permuted(Tensor(None, (2, 6, 4, 5), "NHWC", channels_last=False), [0, 3, 1, 2]) is None
    assert permuted(Tensor(None, (2, 6, 4, 5), "NCHW", border=(0, 0, 0, 1)), [0, 3, 1, 2]) is None
    assert permuted(Tensor(None, (2, 6, 4, 5), "NCHW", strides=(240, 40, 10, 2)), [0, 3, 1, 2]) is None
    assert permuted(Tensor(None, (2, 6, 4), "flat"), [0, 2, 1]) is None
    assert permuted("no tensor", [0, 3, 1, 2]) is None
