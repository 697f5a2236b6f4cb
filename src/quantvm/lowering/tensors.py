"""Where a value lives while a module is legalized: its physical layout, and the memory format PyTorch would hold it in.

PyTorch's formulas for cat, pools, means and scalar tails depend on the memory format, so it is propagated by PyTorch's
rules. The physical layout may differ: the quantized input is contiguous in PyTorch, and NHWC here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from tvm import relax, tirx

from quantvm.errors import CompileError
from quantvm.kernels import Kernel

Layout = Literal["NCHW", "NHWC", "flat"]


@dataclass(frozen=True)
class Tensor:
    """A value and where it lives.

    Attributes:
        expr: the Relax expression, in the physical layout.
        shape: logical (PyTorch) shape; ints, and symbolic expressions where dynamic.
        layout: physical; flat for ranks other than 4.
        channels_last: whether PyTorch would hold it in channels-last order.
        border: (top, left, bottom, right) that `shape` has and `expr` lacks; a convolution pads on its own.
        border_value: what the border holds.
    """

    expr: Any
    shape: tuple[Any, ...]
    layout: Layout
    channels_last: bool = False
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
        """Physical shape of one row: what a kernel takes n of, see `as_rows`."""
        return rows_and_item(static_dims(self.expr))[1]

    @property
    def batch_first(self) -> bool:
        """Whether all sizes but the first are known."""
        return all(isinstance(d, int) for d in self.shape[1:])

    @property
    def behaves_channels_last(self) -> bool:
        """Whether PyTorch's is_contiguous(channels_last) holds: also for single channels and single pixels."""
        if len(self.shape) != 4:
            return False
        return self.channels_last or self._has_one_order

    @property
    def behaves_contiguous(self) -> bool:
        """Whether PyTorch's is_contiguous() holds."""
        return not self.channels_last or self._has_one_order

    @property
    def _has_one_order(self) -> bool:
        _, c, h, w = self.shape
        return c == 1 or (h == 1 and w == 1)


def have_one_order(a: Tensor, b: Tensor) -> bool:
    """Returns whether PyTorch holds two tensors in one memory order; of others it vectorises no loop."""
    contiguous = a.behaves_contiguous and b.behaves_contiguous
    return contiguous or (a.behaves_channels_last and b.behaves_channels_last)


def static_dims(expr: Any) -> list[Any]:
    """Returns a value's physical shape."""
    return [int(d) if hasattr(d, "value") else d for d in expr.ty.shape]


def expect_batch_first(op: str, where: str, *tensors: Tensor) -> None:
    """Raises CompileError where an operator of images takes tensors of which more than the first size is dynamic."""
    for x in tensors:
        if not x.batch_first:
            raise CompileError(
                f"{op} at {where} takes a tensor of shape ({', '.join(map(str, x.shape))}), expected known sizes "
                "but for the first: use batch='static' (--batch static), which compiles for the example's sizes"
            )


def product(dims: Sequence[Any]) -> Any:
    """Returns the product of sizes: an int, or a symbolic expression."""
    known = math.prod(d for d in dims if isinstance(d, int))
    for dim in dims:
        known = known if isinstance(dim, int) else dim * known
    return known


def rows_and_item(dims: Sequence[Any]) -> tuple[Any, tuple[int, ...]]:
    """Returns how many rows a dense tensor is cut into, and the shape of a row, whose sizes are all known.

    The first dimension counts rows, and so do all up to the last one that is dynamic, wherever the batch lies. A tensor
    of one known dimension, or of none, is one row.
    """
    last = max((i for i, d in enumerate(dims) if not isinstance(d, int)), default=0 if len(dims) > 1 else -1)
    return product(dims[: last + 1]), tuple(dims[last + 1 :]) or (1,)


def as_rows(builder: relax.BlockBuilder, expr: Any) -> Any:
    """Returns a dense tensor as (n, *item), the view of it that kernels take."""
    dims = static_dims(expr)
    rows, item = rows_and_item(dims)
    if len(dims) == 1 + len(item) and tuple(dims[1:]) == item:
        return expr
    return builder.emit(relax.op.reshape(expr, relax.ShapeExpr([rows, *item])))


def in_layout(builder: relax.BlockBuilder, x: Tensor, layout: Layout) -> Tensor:
    """Returns `x` in the physical layout asked for, its border filled in, moving data only where it must."""
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
    """Checks what a value became against what Relax deduced of it: no layer may compute another shape.

    Args:
        x: what the lowering made; without an expression where that is not emitted yet.
        ty: type of the variable in the program; its dtype is not compared, for int8 may be stored as uint8.
        layer: that the error names.

    Raises:
        CompileError: a static dimension differs; a fault of ours.
    """
    _check("the result", layer, ty, list(x.shape), None)
    if x.expr is None:
        return
    dims = list(without_border(x).shape) if any(x.border) else list(x.shape)
    dims = [dims[0], *dims[2:], dims[1]] if x.layout == "NHWC" else dims
    _check(f"what is stored ({x.layout})", layer, x.expr.ty, dims, None)


def _check(what: str, layer: str, ty: Any, shape: list[Any], dtype: str | None) -> None:
    expected = [_static(d) for d in ty.shape]
    found = [_static(d) for d in shape]
    same = len(expected) == len(found) and all(
        a == b for a, b in zip(expected, found, strict=True) if isinstance(a, int) and isinstance(b, int)
    )
    if not same or (dtype is not None and dtype != str(ty.dtype)):
        raise CompileError(
            f"internal error in layer {layer}: {what} is {dtype or ''}{tuple(found)}, expected "
            f"{ty.dtype if dtype else ''}{tuple(expected)}; please report this model. As it is, no code is made of it"
        )


def _static(dim: Any) -> Any:
    return int(dim) if isinstance(dim, int) or hasattr(dim, "value") else dim


def repeated(builder: relax.BlockBuilder, x: Tensor, like: Tensor) -> Tensor:
    """Returns x for as many images as `like` has."""
    if x.shape[0] != 1 or like.shape[0] == 1:
        return x
    dims = [like.expr.ty.shape[0], *static_dims(x.expr)[1:]]
    expr = builder.emit(relax.op.broadcast_to(x.expr, relax.ShapeExpr(dims)))
    return replace(x, expr=expr, shape=(like.shape[0], *x.shape[1:]))


def bordered(x: Tensor, border: tuple[int, int, int, int], value: int) -> Tensor:
    """Returns x with a border that is not filled in yet."""
    n, c, h, w = x.shape
    top, left, bottom, right = border
    return replace(x, shape=(n, c, h + top + bottom, w + left + right), border=border, border_value=value)


def without_border(x: Tensor) -> Tensor:
    """Returns what lies inside of the border."""
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
        CompileError: the kernel takes or makes tensors of other shapes or dtypes; a fault of ours.
    """
    buffers = list(kernel.func.params)
    types = [*(x.ty for x in inputs), *(None for _ in kernel.constants), relax.TensorType(shape, dtype)]
    for what, (buffer, ty) in enumerate(zip(buffers, types, strict=True)):
        if ty is not None:
            place = "result" if what == len(types) - 1 else f"input {what}"
            _check(f"the {place} of kernel {kernel.name}", name, ty, [*buffer.shape], str(buffer.dtype))
    function = kernel.func.with_attr("global_symbol", kernel.name).with_attr("quantvm.kernel", kernel.name)
    function = function.with_attr("op_pattern", tirx.const(8, "int32"))  # opaque: TVM must not fuse into it
    constants = [relax.const(np.ascontiguousarray(c), str(c.dtype)) for c in kernel.constants]
    target = builder.add_func(function, kernel.name)
    call = relax.call_tir(target, [*inputs, *constants], relax.TensorType(shape, dtype))
    return builder.emit(call, name)
