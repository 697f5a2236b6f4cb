"""Layouts, borders and rows of lowered values; what is emitted is computed at once, on constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tvm import relax, tirx
from tvm_ffi import structural_equal

from quantvm.errors import CompileError
from quantvm.frontend.folding import folded
from quantvm.lowering import tensors
from quantvm.lowering.tensors import Tensor
from quantvm.qdq.expressions import constant_value, op_name

N = tirx.Var("n", "int64")


class Computing:
    """A builder that computes what it is given, and keeps the operators' names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def emit(self, call: Any, name: str = "") -> Any:
        self.names.append(op_name(call).removeprefix("relax."))
        if self.names[-1] == "nn.pad":
            x, widths = constant_value(call.args[0]), [int(width) for width in call.attrs.pad_width]
            pairs = list(zip(widths[::2], widths[1::2], strict=True))
            return relax.const(np.pad(x, pairs, constant_values=int(call.attrs.pad_value)))
        if self.names[-1] == "broadcast_to":
            shape = [int(d) for d in call.args[1].values]
            return relax.const(np.ascontiguousarray(np.broadcast_to(constant_value(call.args[0]), shape)))
        return relax.const(np.ascontiguousarray(folded(call)))


def image(*shape: int, layout: str = "NCHW") -> tuple[np.ndarray, Tensor]:
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape).astype(np.uint8)
    stored = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    return x, Tensor(relax.const(stored), shape, layout)


def logical(x: Tensor) -> np.ndarray:
    stored = constant_value(x.expr)
    return stored.transpose(0, 3, 1, 2) if x.layout == "NHWC" else stored


@pytest.mark.parametrize(
    ("shape", "emitted"),
    [
        ((2, 3, 4, 5), "permute_dims"), ((2, 3, 1, 1), "reshape"), ((2, 1, 4, 5), "reshape"),
        ((2, 3, 1, 5), "permute_dims"), ((2, 3, 4, 1), "permute_dims"), ((2, 3, 2, 2), "permute_dims"),
        ((2, 2, 4, 5), "permute_dims"),
    ],
)  # fmt: skip
def test_a_layout_is_changed_by_moving_data_only_if_it_must(shape, emitted):
    for layout, other in (("NCHW", "NHWC"), ("NHWC", "NCHW")):
        builder, (x, lowered) = Computing(), image(*shape, layout=layout)
        assert tensors.in_layout(builder, lowered, layout) is lowered
        found = tensors.in_layout(builder, lowered, other)
        assert builder.names == [emitted]
        assert found.layout == other
        np.testing.assert_array_equal(logical(found), x)
    flat = Tensor(relax.const(np.zeros((2, 3), np.uint8)), (2, 3), "flat")
    assert tensors.in_layout(Computing(), flat, "NHWC") is flat


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_borders(layout):
    x, lowered = image(2, 3, 4, 5, layout=layout)
    padded = tensors.bordered(lowered, (1, 2, 3, 4), 7)
    assert padded.shape == (2, 3, 8, 11)
    assert tensors.without_border(padded) == tensors.replace(lowered, border_value=7)
    builder = Computing()
    filled = tensors.in_layout(builder, padded, layout)
    assert builder.names == ["nn.pad"]
    assert filled.border == (0, 0, 0, 0)
    np.testing.assert_array_equal(logical(filled), np.pad(x, [(0, 0), (0, 0), (1, 3), (2, 4)], constant_values=7))


def test_physical_and_item_shapes():
    _, lowered = image(2, 3, 4, 5, layout="NHWC")
    assert (lowered.physical, lowered.item_shape, lowered.batch_first) == ((2, 4, 5, 3), (4, 5, 3), True)
    assert Tensor(None, (2, 3), "flat").physical == (2, 3)
    assert not Tensor(None, (2, N, 4), "flat").batch_first


@pytest.mark.parametrize(
    ("dims", "rows", "item"),
    [
        ((2, 3, 4), 2, (3, 4)), ((N, 3, 4), N, (3, 4)), ((5, N, 4), N * 5, (4,)), ((5, 4, N), N * 20, (1,)),
        ((7,), 1, (7,)), ((), 1, (1,)), ((N,), N, (1,)),
    ],
)  # fmt: skip
def test_rows(dims, rows, item):
    found, found_item = tensors.rows_and_item(dims)
    assert found == rows if isinstance(rows, int) else structural_equal(found, rows)
    assert found_item == item


def test_views_as_rows():
    builder, x = Computing(), relax.const(np.arange(24).reshape(2, 3, 4))
    assert tensors.as_rows(builder, x) is x
    vector = relax.const(np.arange(7))
    assert constant_value(tensors.as_rows(builder, vector)).shape == (1, 7)
    assert builder.names == ["reshape"]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 3, 2), (3, 2, 0, 1)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_arranged_and_back(order, layout):
    builder, (x, lowered) = Computing(), image(2, 3, 4, 5, layout=layout)
    stored = tensors.arranged(builder, lowered, order)
    np.testing.assert_array_equal(constant_value(stored.expr), x.transpose(order))
    strides = torch.zeros(2, 3, 4, 5).stride()
    back = tensors.rearranged(builder, stored, order, strides)
    assert back.shape == x.shape
    np.testing.assert_array_equal(logical(back), x)


def test_broadcasting():
    assert tensors.broadcast_shape((3, 1), (4, 1, 5)) == (4, 3, 5)
    assert tensors.broadcast_shape((N, 3, 1, 1), (N, 3, 4, 5)) == (N, 3, 4, 5)
    x, lowered = image(2, 3, 1, 1, layout="NHWC")
    assert tensors.broadcast(Computing(), lowered, (2, 3, 1, 1)) is lowered
    found = tensors.broadcast(Computing(), lowered, (2, 3, 4, 5))
    np.testing.assert_array_equal(logical(found), np.broadcast_to(x, (2, 3, 4, 5)))
    assert found.torch_strides == torch.zeros(2, 3, 1, 1).expand(2, 3, 4, 5).stride()


def test_gates():
    def is_gate(gate: tuple[Any, ...], shape: tuple[Any, ...]) -> bool:
        return tensors.is_gate(Tensor(None, gate, "flat"), Tensor(None, shape, "flat"))

    assert is_gate((N, 3, 1, 1), (N, 3, 4, 5))
    assert is_gate((2, 3, 1, 1), (2, 3, 1, 5))
    assert not is_gate((2, 3, 1, 1), (2, 3, 1, 1))
    assert not is_gate((2, 1, 1, 1), (2, 3, 4, 5))
    assert not is_gate((2, 3, 1, 5), (2, 3, 4, 5))
    assert not is_gate((2, 3, 1, 1), (2, 3, 4))
    assert not is_gate((1, 3, 1, 1), (2, 3, 4, 5))


def test_results_of_single_pixels_are_misread_where_pytorch_does():
    pixel = Tensor(None, (2, 3, 1, 1), "NHWC")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    y = Tensor(relax.const(pixels), (2, 3, 2, 2), "NHWC")
    found = tensors.of_single_pixels(Computing(), pixel, y, "y")
    assert found.layout == "NCHW"
    np.testing.assert_array_equal(constant_value(found.expr), pixels.reshape(2, 3, 2, 2))
    for x in (
        Tensor(None, (2, 3, 1, 1), "NHWC", channels_last=True), Tensor(None, (2, 3, 1, 2), "NHWC"),
        Tensor(None, (2, 3, 2, 1), "NHWC"),
    ):  # fmt: skip
        assert tensors.of_single_pixels(Computing(), x, y, "y") is y
    one = Tensor(relax.const(pixels[:, :1, :1]), (2, 3, 1, 1), "NHWC")
    assert tensors.of_single_pixels(Computing(), pixel, one, "y") is one


def test_formats_of_single_channels_and_pixels():
    def formats(*shape: Any, **more: Any) -> tuple[bool, bool]:
        x = Tensor(None, shape, "NCHW", **more)
        return x.behaves_contiguous, x.behaves_channels_last

    assert formats(2, 3, 4, 5) == (True, False)
    assert formats(2, 3, 4, 5, channels_last=True) == (False, True)
    assert formats(2, 1, 4, 5) == formats(2, 3, 1, 1) == formats(2, 3, 1, 1, channels_last=True) == (True, True)
    assert formats(2, 3, 1, 5) == formats(2, 3, 4, 1) == (True, False)
    assert formats(2, 3, 4) == (True, False)
    assert formats(2, 3, 4, 5, strides=(60, 1, 15, 3)) == (False, True)
    a, b = Tensor(None, (2, 3, 4, 5), "NCHW"), Tensor(None, (2, 3, 4, 5), "NHWC", channels_last=True)
    single = Tensor(None, (2, 1, 4, 5), "NCHW")
    assert [tensors.have_one_order(*pair) for pair in ((a, a), (b, b), (a, b), (single, b))] == [
        True,
        True,
        False,
        True,
    ]


def test_a_batch_of_one_image_ignores_the_stride_between_images():
    chunk = Tensor(None, (N, 3, 4, 5), "NCHW", strides=(120, 20, 5, 1))
    assert tensors.of_one_image(chunk).strides is None
    columns = Tensor(None, (N, 3, 4, 5), "NCHW", strides=(120, 40, 10, 1))
    assert tensors.of_one_image(columns) is columns
    static = Tensor(None, (2, 3, 4, 5), "NCHW", strides=(120, 20, 5, 1))
    assert tensors.of_one_image(static) is static
    last = Tensor(None, (N, 3, 4, 5), "NHWC", channels_last=True, strides=(120, 1, 15, 3))
    assert tensors.of_one_image(last).strides is None


def test_what_kernels_cannot_take_names_the_layer():
    with pytest.raises(CompileError, match=r"resize2d at head .*\(2, n, 4, 5\)"):
        tensors.expect_batch_first("resize2d", "head", Tensor(None, (2, N, 4, 5), "NCHW"))
    tensors.expect_batch_first("resize2d", "head", Tensor(None, (N, 3, 4, 5), "NCHW"))
    _, lowered = image(2, 3, 4, 5, layout="NHWC")
    tensors.check_result(lowered, relax.TensorType([2, 3, 4, 5], "int8"), "head")
    tensors.check_result(tensors.bordered(lowered, (1, 0, 0, 2), 0), relax.TensorType([2, 3, 5, 7], "int8"), "head")
    with pytest.raises(CompileError, match="head"):
        tensors.check_result(lowered, relax.TensorType([2, 3, 5, 4], "int8"), "head")
    with pytest.raises(CompileError, match="head"):
        tensors.check_result(tensors.replace(lowered, layout="NCHW"), relax.TensorType([2, 3, 4, 5], "int8"), "head")
