"""The physical layout of a value while a module is legalized, and the memory format that it would have in PyTorch.

PyTorch's formulas for cat, pools, means and scalar tails depend on the memory format, so it is propagated by PyTorch's
rules. The physical layout may differ: the quantized input is contiguous in PyTorch, but NHWC here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from tvm import relax, tirx

from quantvm.errors import CompileError
from quantvm.kernels import Kernel
from quantvm.qdq.attributes import KERNEL
from quantvm.qdq.expressions import shape_of, size_of
from quantvm.sizes import product

from . import strides as torch_strides
from .strides import Strides

Layout = Literal["NCHW", "NHWC", "flat"]


@dataclass(frozen=True)
class Tensor:
    """A value and its layout.

    Attributes:
        expr: the Relax expression, in the physical layout.
        shape: logical (PyTorch) shape; ints, and symbolic expressions where dynamic.
        layout: physical layout; flat for ranks other than 4.
        channels_last: whether PyTorch's `suggest_memory_format()` of it is channels-last.
        strides: PyTorch's strides; None if the tensor is dense in its suggested memory format.
        border: (top, left, bottom, right) padding that `shape` includes but `expr` does not; convolutions add it
            themselves.
        border_value: value of the border's elements.
    """

    expr: Any
    shape: tuple[Any, ...]
    layout: Layout
    channels_last: bool = False
    strides: Strides | None = None
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    border_value: int = 0

    @property
    def physical(self) -> tuple[Any, ...]:
        """The shape in the physical layout."""
        if self.layout != "NHWC":
            return self.shape
        n, c, h, w = self.shape
        return n, h, w, c

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Physical shape of one row; kernels take n rows, see `as_rows`."""
        return rows_and_item(shape_of(self.expr))[1]

    @property
    def batch_first(self) -> bool:
        """Whether all sizes but the first are known."""
        return all(isinstance(d, int) for d in self.shape[1:])

    @property
    def torch_strides(self) -> Strides:
        """PyTorch's strides, in elements."""
        if self.strides is not None:
            return self.strides
        made = torch_strides.channels_last if self.channels_last else torch_strides.contiguous
        return made(self.shape)

    @property
    def is_view(self) -> bool:
        """Whether PyTorch holds it with gaps or repetitions, or in another order than its suggested memory format."""
        return self.strides is not None

    @property
    def behaves_channels_last(self) -> bool:
        """Whether PyTorch's is_contiguous(channels_last) holds; it also does for single channels and single pixels."""
        if self.strides is not None:
            return torch_strides.is_channels_last(self.shape, self.strides)
        return len(self.shape) == 4 and (self.channels_last or self._has_one_order)

    @property
    def behaves_contiguous(self) -> bool:
        """Whether PyTorch's is_contiguous() holds."""
        if self.strides is not None:
            return torch_strides.is_contiguous(self.shape, self.strides)
        return not self.channels_last or self._has_one_order

    @property
    def _has_one_order(self) -> bool:
        _, c, *pixels = self.shape
        return c == 1 or all(isinstance(size, int) and size == 1 for size in pixels)


def with_strides(x: Tensor, strides: Strides) -> Tensor:
    """Returns x with the given PyTorch strides."""
    suggested = torch_strides.suggests_channels_last(x.shape, strides)
    dense = torch_strides.channels_last(x.shape) if suggested else torch_strides.contiguous(x.shape)
    is_dense = torch_strides.equal(dense, strides)
    return replace(x, channels_last=suggested, strides=None if is_dense else tuple(strides))


def of_one_image(x: Tensor) -> Tensor:
    """Returns x as PyTorch sees it in a batch of one image, where the stride between images is ignored."""
    if not isinstance(x, Tensor) or x.strides is None or isinstance(x.shape[0], int):
        return x
    is_dense = torch_strides.is_channels_last if x.channels_last else torch_strides.is_contiguous
    return replace(x, strides=None) if is_dense(x.shape, x.strides, 1) else x


def have_one_order(a: Tensor, b: Tensor) -> bool:
    """Returns whether PyTorch holds two tensors of one shape in the same memory order, without gaps."""
    contiguous = a.behaves_contiguous and b.behaves_contiguous
    return contiguous or (a.behaves_channels_last and b.behaves_channels_last)


def logical_tensor(expr: Any) -> Tensor:
    """Returns a value that is stored in logical order, as everything is that our kernels do not compute."""
    shape = tuple(shape_of(expr))
    return Tensor(expr, shape, "NCHW" if len(shape) == 4 else "flat")


def misread(builder: relax.BlockBuilder, x: Tensor, name: str) -> Tensor:
    """Returns the bytes of an NHWC tensor taken for a contiguous one, as some of PyTorch's kernels misread them."""
    assert x.layout == "NHWC"
    return Tensor(builder.emit(relax.op.reshape(x.expr, relax.ShapeExpr(list(x.shape))), name), x.shape, "NCHW")


def of_single_pixels(builder: relax.BlockBuilder, x: Tensor, y: Tensor, name: str) -> Tensor:
    """Returns the NHWC result y of a pool or an interpolation of x, as PyTorch's kernels leave it in memory.

    They write y as channels-last if x is contiguous as channels-last, which single pixels always are. But they allocate
    y in the suggested memory format of x.
    """
    is_misread = x.shape[2:] == (1, 1) and y.shape[2:] != (1, 1) and x.behaves_channels_last and not x.channels_last
    return misread(builder, y, name) if is_misread else y


def expect_batch_first(op: str, where: str, *tensors: Tensor) -> None:
    """Raises CompileError if more than the first size of an image operator's tensor is dynamic."""
    for x in tensors:
        if not x.batch_first:
            raise CompileError(
                f"{op} at {where} takes a tensor of shape ({', '.join(map(str, x.shape))}), expected known sizes "
                "except for the first: use batch='static' and example inputs (--batch static --input-shape)"
            )


def rows_and_item(dims: Sequence[Any]) -> tuple[Any, tuple[int, ...]]:
    """Returns into how many rows a dense tensor is cut, and the shape of a row, whose sizes are all known.

    The first dimension counts rows, and so do all dimensions up to the last dynamic one, wherever the batch lies. A
    tensor of one known dimension, or of none, is one row.
    """
    last = max((i for i, d in enumerate(dims) if not isinstance(d, int)), default=0 if len(dims) > 1 else -1)
    return product(dims[: last + 1]), tuple(dims[last + 1 :]) or (1,)


def as_rows(builder: relax.BlockBuilder, expr: Any) -> Any:
    """Returns a view of a dense tensor as (n, *item), which is what kernels take."""
    dims = shape_of(expr)
    rows, item = rows_and_item(dims)
    if len(dims) == 1 + len(item) and tuple(dims[1:]) == item:
        return expr
    return builder.emit(relax.op.reshape(expr, relax.ShapeExpr([rows, *item])))


def in_layout(builder: relax.BlockBuilder, x: Tensor, layout: Layout) -> Tensor:
    """Returns `x` in a physical layout, with its border filled in; moves data only if it must."""
    if any(x.border):
        x = _with_border(builder, x)
    if x.layout == layout or x.layout == "flat":
        return x
    n, c, h, w = x.shape
    if (h == 1 and w == 1) or c == 1:
        dims = [n, c, h, w] if layout == "NCHW" else [n, h, w, c]
        expr = relax.op.reshape(x.expr, relax.ShapeExpr(dims))
    else:
        expr = relax.op.permute_dims(x.expr, [0, 3, 1, 2] if layout == "NCHW" else [0, 2, 3, 1])
    return replace(x, expr=builder.emit(expr), layout=layout)


def check_result(x: Tensor, ty: Any, layer: str) -> None:
    """Checks that a lowered value has the shape that Relax inferred.

    Args:
        x: the lowered value; without an expression if that is not emitted yet.
        ty: type of the variable in the program; its dtype is not compared, as int8 may be stored as uint8.
        layer: the layer that the error names.

    Raises:
        CompileError: a static dimension differs, which is a bug of quantvm.
    """
    _check("the result", layer, ty, list(x.shape), None)
    if x.expr is None:
        return
    dims = list(without_border(x).shape) if any(x.border) else list(x.shape)
    dims = [dims[0], *dims[2:], dims[1]] if x.layout == "NHWC" else dims
    _check(f"what is stored ({x.layout})", layer, x.expr.ty, dims, None)


def _check(what: str, layer: str, ty: Any, shape: list[Any], dtype: str | None) -> None:
    expected = [size_of(d) for d in ty.shape]
    found = [size_of(d) for d in shape]
    same = len(expected) == len(found) and all(
        a == b for a, b in zip(expected, found, strict=True) if isinstance(a, int) and isinstance(b, int)
    )
    if not same or (dtype is not None and dtype != str(ty.dtype)):
        raise CompileError(
            f"internal error in layer {layer}: {what} is {dtype or ''}{tuple(found)}, expected "
            f"{ty.dtype if dtype else ''}{tuple(expected)}; please report this model. It was not compiled"
        )


def arranged(builder: relax.BlockBuilder, x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Returns x with its dimensions stored in a given order, the outermost first; `rearranged` undoes it.

    An order that is neither logical nor channels-last gives a flat tensor of permuted shape.
    """
    if order == tuple(range(len(order))):
        return in_layout(builder, x, "NCHW")
    if order == _PIXELS_OUTSIDE:
        return in_layout(builder, x, "NHWC")
    logical = in_layout(builder, x, "NCHW")
    expr = builder.emit(relax.op.permute_dims(logical.expr, list(order)))
    return Tensor(expr, tuple(x.shape[dim] for dim in order), "flat")


_PIXELS_OUTSIDE = (0, 2, 3, 1)


def rearranged(builder: relax.BlockBuilder, y: Tensor, order: tuple[int, ...], strides: Strides) -> Tensor:
    """Returns a result of `arranged` operands in logical shape, with the given PyTorch strides."""
    if order not in (tuple(range(len(order))), _PIXELS_OUTSIDE):
        back = [order.index(dim) for dim in range(len(order))]
        expr = builder.emit(relax.op.permute_dims(y.expr, back))
        y = Tensor(expr, tuple(y.shape[axis] for axis in back), "NCHW" if len(order) == 4 else "flat")
    return with_strides(y, strides)


def broadcast_shape(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the shape to which two shapes are broadcast."""
    rank = max(len(a), len(b))
    first, second = ((1,) * (rank - len(shape)) + tuple(shape) for shape in (a, b))
    return tuple(y if isinstance(x, int) and x == 1 else x for x, y in zip(first, second, strict=True))


def have_one_shape(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Returns whether two shapes are equal for every batch."""
    return len(a) == len(b) and torch_strides.equal(a, b)


def is_gate(gate: Tensor, x: Tensor) -> bool:
    """Returns whether `gate` is (n, C, 1, 1) for an image x, as in squeeze-and-excite."""
    same = len(x.shape) == 4 and have_one_shape(gate.shape, (*x.shape[:2], 1, 1))
    return same and not have_one_shape(gate.shape, x.shape)


def broadcast(builder: relax.BlockBuilder, x: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """Returns x broadcast to a shape, with PyTorch's strides; in logical order if anything is repeated."""
    if have_one_shape(x.shape, shape):
        return x
    strides = torch_strides.expanded(x.shape, x.torch_strides, shape)
    expr = builder.emit(relax.op.broadcast_to(in_layout(builder, x, "NCHW").expr, relax.ShapeExpr(list(shape))))
    return with_strides(Tensor(expr, tuple(shape), "NCHW" if len(shape) == 4 else "flat"), strides)


def bordered(x: Tensor, border: tuple[int, int, int, int], value: int) -> Tensor:
    """Returns x with a border that is not filled in yet."""
    n, c, h, w = x.shape
    top, left, bottom, right = border
    shape = (n, c, h + top + bottom, w + left + right)
    return replace(x, shape=shape, border=border, border_value=value, strides=None)


def without_border(x: Tensor) -> Tensor:
    """Returns x without its border."""
    n, c, h, w = x.shape
    top, left, bottom, right = x.border
    return replace(x, shape=(n, c, h - top - bottom, w - left - right), border=(0, 0, 0, 0))


def _with_border(builder: relax.BlockBuilder, x: Tensor) -> Tensor:
    top, left, bottom, right = x.border
    spatial = [top, bottom, left, right]
    widths = [0, 0, *spatial, 0, 0] if x.layout == "NHWC" else [0, 0, 0, 0, *spatial]
    expr = builder.emit(relax.op.nn.pad(x.expr, widths, pad_value=x.border_value))
    return replace(x, expr=expr, border=(0, 0, 0, 0))


def call_kernel(
    builder: relax.BlockBuilder, kernel: Kernel, inputs: list[Any], shape: list[Any], dtype: str, name: str
) -> Any:
    """Emits the call of a kernel's PrimFunc and returns the variable that holds its result.

    Raises:
        CompileError: the kernel takes or returns tensors of other shapes or dtypes, which is a bug of quantvm.
    """
    buffers = list(kernel.func.params)
    types = [*(x.ty for x in inputs), *(None for _ in kernel.constants), relax.TensorType(shape, dtype)]
    for what, (buffer, ty) in enumerate(zip(buffers, types, strict=True)):
        if ty is not None:
            place = "result" if what == len(types) - 1 else f"input {what}"
            _check(f"the {place} of kernel {kernel.name}", name, ty, [*buffer.shape], str(buffer.dtype))
    function = kernel.func.with_attr("global_symbol", kernel.name).with_attr(KERNEL, kernel.name)
    function = function.with_attr("op_pattern", tirx.const(8, "int32"))  # opaque: TVM must not fuse into it
    constants = [relax.const(np.ascontiguousarray(c), str(c.dtype)) for c in kernel.constants]
    target = builder.add_func(function, kernel.name)
    call = relax.call_tir(target, [*inputs, *constants], relax.TensorType(shape, dtype))
    return builder.emit(call, name)
