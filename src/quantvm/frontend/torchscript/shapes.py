"""Views, slices and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm_ffi import structural_equal

from quantvm.errors import ModelImportError
from quantvm.frontend.builder import Expr, QdqBuilder, QTensor, shape_of
from quantvm.frontend.registry import register_converter
from quantvm.numerics.torch_engines import quantize_val
from quantvm.sizes import product, quotient

_INT_MAX = 9223372036854775807


def axis_of(dim: int, rank: int) -> int:
    """Returns a dimension as a non-negative number."""
    return dim + rank if dim < 0 else dim


def _reshaped(b: QdqBuilder, x: Any, shape: Sequence[Any]) -> QTensor | Expr:
    """Returns x in another shape; x itself, with its memory order, if it has that shape already."""
    if _is_own(x, shape):
        return x
    return b.moved(x, lambda e: relax.op.reshape(e, relax.ShapeExpr(list(shape))))


def _is_own(x: Any, shape: Sequence[Any]) -> bool:
    own = shape_of(x)
    return len(own) == len(shape) and all(
        a == b if isinstance(a, int) and isinstance(b, int) else not isinstance(a, int) and not isinstance(b, int)
        and structural_equal(a, b)
        for a, b in zip(own, shape, strict=True)
    )  # fmt: skip


@register_converter("aten::flatten")
def flatten(b: QdqBuilder, x: Any, start_dim: int = 0, end_dim: int = -1) -> QTensor | Expr:
    """Returns x with dimensions start_dim..end_dim merged."""
    shape = shape_of(x)
    start, end = axis_of(start_dim, len(shape)), axis_of(end_dim, len(shape))
    return _reshaped(b, x, [*shape[:start], product(shape[start : end + 1]), *shape[end + 1 :]])


@register_converter("aten::view", "aten::reshape")
def reshape(b: QdqBuilder, x: Any, shape: Sequence[Any]) -> QTensor | Expr:
    """Returns x in another shape; one size may be -1."""
    dims, old = list(shape), shape_of(x)
    unknown = [at for at, d in enumerate(dims) if isinstance(d, int) and d == -1]
    if len(unknown) > 1:
        raise ModelImportError(f"reshape at {b.where} to {list(shape)}: more than one size is -1")
    if unknown:
        size = quotient(old, [d for at, d in enumerate(dims) if at != unknown[0]])
        if size is None:
            raise ModelImportError(
                f"reshape at {b.where} from {old} to {list(shape)}: the size of -1 does not follow from the dynamic "
                "sizes (with batch='static' it does)"
            )
        dims[unknown[0]] = size
    return _reshaped(b, x, dims)


@register_converter("aten::transpose")
def transpose(b: QdqBuilder, x: Any, dim0: int, dim1: int) -> QTensor | Expr:
    """Returns x with two dimensions swapped."""
    rank = len(shape_of(x))
    axes = list(range(rank))
    first, second = axis_of(dim0, rank), axis_of(dim1, rank)
    axes[first], axes[second] = axes[second], axes[first]
    return b.moved(x, lambda e: relax.op.permute_dims(e, axes))


@register_converter("aten::permute")
def permute(b: QdqBuilder, x: Any, dims: Sequence[int]) -> QTensor | Expr:
    """Returns x with its dimensions reordered."""
    return b.moved(x, lambda e: relax.op.permute_dims(e, [axis_of(d, len(dims)) for d in dims]))


@register_converter("aten::unsqueeze", "aten::unsqueeze_")
def unsqueeze(b: QdqBuilder, x: Any, dim: int) -> QTensor | Expr:
    """Returns x with a dimension of size 1 inserted."""
    return b.moved(x, lambda e: relax.op.expand_dims(e, axis_of(dim, len(shape_of(x)) + 1)))


@register_converter("aten::squeeze", "aten::squeeze_")
def squeeze(b: QdqBuilder, x: Any, dim: int | None = None) -> QTensor | Expr:
    """Returns x without dimensions of size 1, or only without `dim` if given."""
    shape = shape_of(x)
    axes = [i for i, d in enumerate(shape) if isinstance(d, int) and d == 1]
    if dim is not None:
        axes = [a for a in axes if a == axis_of(dim, len(shape))]
    return b.moved(x, lambda e: relax.op.squeeze(e, axes)) if axes else x


@register_converter("aten::slice")
def slice_(b: QdqBuilder, x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    """Returns x[..., start:end:step, ...]; a whole dimension is x itself."""
    shape = shape_of(x)
    dim = axis_of(dim, len(shape))
    size = shape[dim]
    start, end = start or 0, _INT_MAX if end is None else end
    if start == 0 and end == _INT_MAX and step == 1:
        return x
    if not isinstance(size, int):
        raise ModelImportError(f"slice at {b.where} cuts the dynamic dimension {dim}; batch='static' can")
    bounds = [min(max(v + size if v < 0 else v, 0), size) for v in (start, end)]
    return b.moved(x, lambda e: relax.op.strided_slice(e, [dim], [bounds[0]], [bounds[1]], [step]))


@register_converter("aten::select")
def select(b: QdqBuilder, x: Any, dim: int, index: int) -> QTensor | Expr:
    """Returns x[..., index, ...] without that dimension."""
    shape = shape_of(x)
    axis = axis_of(dim, len(shape))
    at = index + shape[axis] if index < 0 else index
    return b.moved(x, lambda e: relax.op.squeeze(relax.op.strided_slice(e, [axis], [at], [at + 1]), [axis]))


@register_converter("aten::pad", "aten::constant_pad_nd")
def pad(b: QdqBuilder, x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = 0.0) -> QTensor | Expr:
    """Returns x padded with a constant; PyTorch pads a quantized tensor with the quantized value."""
    if not isinstance(mode, str):  # aten::constant_pad_nd(x, pad, value)
        mode, value = "constant", mode
    if mode != "constant":
        raise ModelImportError(f"pad at {b.where} with mode {mode!r} is not supported, expected 'constant'")
    rank = len(shape_of(x))
    before_after = [0] * (2 * rank - len(pad))
    for at in range(len(pad) - 2, -1, -2):  # torch counts from the last dimension
        before_after += [int(pad[at]), int(pad[at + 1])]
    fill = float(value or 0.0)
    if isinstance(x, QTensor):
        fill = int(quantize_val(np.float32(fill), x.q))
    return b.moved(x, lambda e: relax.op.nn.pad(e, before_after, pad_value=fill))


@register_converter("aten::chunk")
def chunk(b: QdqBuilder, x: Any, chunks: int, dim: int = 0) -> list[Any]:
    """Returns a list of `chunks` slices along `dim`; the last one may be smaller."""
    size = shape_of(x)[dim]
    if not isinstance(size, int):
        raise ModelImportError(f"chunk at {b.where} cuts the dynamic dimension {dim}; batch='static' can")
    step = -(-size // chunks)
    return [slice_(b, x, dim, at, min(at + step, size)) for at in range(0, size, step)]


_CONTIGUOUS_FORMAT, _CHANNELS_LAST = 0, 2  # torch.contiguous_format, torch.channels_last as TorchScript numbers them


@register_converter("aten::contiguous")
def contiguous(b: QdqBuilder, x: Any, memory_format: int = _CONTIGUOUS_FORMAT) -> Any:
    """Returns x in a memory order, on which some of PyTorch's formulas depend.

    The default order is expressed as a reshape to x's own shape; channels-last as a permutation to NHWC and back.
    """
    if memory_format == _CONTIGUOUS_FORMAT:
        return in_default_order(b, x)
    if memory_format != _CHANNELS_LAST:
        return x
    turned = in_default_order(b, b.moved(x, lambda e: relax.op.permute_dims(e, [0, 2, 3, 1])))
    return b.moved(turned, lambda e: relax.op.permute_dims(e, [0, 3, 1, 2]))


def in_default_order(b: QdqBuilder, x: Any) -> Any:
    """Returns x as PyTorch's `contiguous()` holds it: a reshape to its own shape."""
    return b.moved(x, lambda e: relax.op.reshape(e, relax.ShapeExpr(shape_of(x))))


@register_converter("aten::clone")
def clone(b: QdqBuilder, x: Any, memory_format: int | None = None) -> Any:
    """Returns x: nothing is written to in place. PyTorch makes the clone of a quantized tensor contiguous."""
    if memory_format in (_CONTIGUOUS_FORMAT, _CHANNELS_LAST):
        return contiguous(b, x, memory_format)
    return in_default_order(b, x) if isinstance(x, QTensor) else x


@register_converter("aten::detach")
def detach(b: QdqBuilder, x: Any) -> Any:
    """Returns x: nothing is written to in place."""
    return x


@register_converter("aten::dropout", "aten::dropout_", "aten::feature_dropout")
def dropout(b: QdqBuilder, x: Any, p: float, train: bool) -> Any:
    """Returns x: dropout does nothing in inference.

    Raises:
        ModelImportError: the model was traced in training mode.
    """
    if train:
        raise ModelImportError(f"dropout at {b.where} is in training mode; call model.eval() before tracing")
    return x
