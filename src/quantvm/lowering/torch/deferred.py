"""Contractions whose emission is deferred, so that element-wise operators on their result can be fused into them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.kernels import Kernel
from quantvm.kernels.builder import LANES
from quantvm.kernels.conv.epilogue import NO_POST_OPS, PostOps, ResidualAdd
from quantvm.lowering.strides import equal
from quantvm.lowering.tensors import Tensor, have_one_order
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.dispatch import takes_qnnpack
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.tensor_iterator import has_no_tails, no_multiple_has_tails
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import quant_params

from .activation import clamp_limits, unary_tables

if TYPE_CHECKING:
    from .legalize import Legalization


@dataclass
class Deferred:
    """A contraction that is not emitted yet.

    Attributes:
        build: makes its kernel, including fused operators.
        x: its input.
        like: shape and layout of its result.
        output: parameters of its own result, before fused operators.
        name: name of the variable that will hold the result.
        takes_residual: whether the kernel can add a second tensor.
        post: operators fused so far.
        residual: the tensor that `post.residual` adds.
        tensor: the result, once it is emitted.
        layer: name of the contraction's layer, for profiles.
        op: name of the contraction's operator, for profiles.
    """

    build: Callable[[PostOps], Kernel]
    x: Tensor
    like: Tensor
    output: QuantParams
    name: str
    takes_residual: bool = False
    post: PostOps = NO_POST_OPS
    residual: Tensor | None = None
    tensor: Tensor | None = None
    layer: str = ""
    op: str = ""

    @property
    def stored(self) -> QuantParams:
        """Parameters of the result, including the operators fused so far."""
        return self.post.output(self.output)

    def emit(self, state: Legalization) -> Tensor:
        """Returns the result, emitting the kernel on the first call."""
        if self.tensor is None:
            inputs = [self.x] if self.residual is None else [self.x, self.residual]
            kernel, of = self.build(self.post), (self.layer, self.op)
            self.tensor = state.run(kernel, inputs, self.like, self.stored.dtype, self.name, of)
        return self.tensor


Fusion = Callable[["Legalization", Composite, Deferred, list[Any], str], "Deferred | None"]


def fuse(
    state: Legalization, composite: Composite, inputs: list[Any], single_use: list[bool], name: str
) -> Deferred | None:
    """Fuses a composite into a deferred contraction and returns that; None if it cannot be fused.

    Args:
        state: the numerics to follow.
        composite: the operator to fuse.
        inputs: its inputs: tensors and deferred contractions.
        single_use: for each input, whether nothing else uses it.
        name: name of the variable that holds the composite's result.
    """
    fusion = _FUSIONS.get(composite.name)
    if fusion is None or (state.numerics != "torch" and composite.name != "relu"):
        return None  # fused operators have PyTorch's arithmetic only
    for value, only in zip(inputs, single_use, strict=True):
        if isinstance(value, Deferred) and value.tensor is None and only and value.post.table is None:
            fused = fusion(state, composite, value, inputs, name)
            if fused is not None:
                return fused
    return None


def _fuse_add(
    state: Legalization, composite: Composite, host: Deferred, inputs: list[Any], name: str
) -> Deferred | None:
    params = dict(composite.inputs(composite.call("relax.add")))
    if (
        not host.takes_residual
        or takes_qnnpack(state.pytorch, composite.output.dtype)
        or host.residual is not None
        or host.post.limits is not None
        or len(params) != 2
    ):
        return None
    mine = next(i for i, value in enumerate(inputs) if value is host)
    add = ResidualAdd(params[1 - mine], composite.output, composite.has("relax.nn.relu"))
    dtypes = {q.dtype for q in (*params.values(), composite.output)}
    fits = len(host.like.shape) == 4 and host.like.shape[1] % LANES == 0
    if not fits or dtypes != {"uint8"} or not add.fits_int32(host.stored) or not _tail_free(host.like, state.pytorch):
        return None
    other = inputs[1 - mine]
    other = other.emit(state) if isinstance(other, Deferred) else other
    if len(other.shape) != 4 or not equal(host.like.shape, other.shape) or not have_one_order(host.like, other):
        return None
    return replace(host, post=replace(host.post, residual=add), residual=state.nhwc(other), name=name)


def misreads_clip(state: Legalization, composite: Composite, x: Tensor) -> bool:
    """Returns whether PyTorch's clamp (and relu6) misreads the bytes of a tensor as those of a contiguous one.

    With QNNPACK it does so for channels-last uint8, because it allocates the result without a memory format.
    """
    is_clip = state.numerics == "torch" and composite.name == "clip"
    return is_clip and takes_qnnpack(state.pytorch, composite.output.dtype) and x.channels_last and len(x.shape) == 4


def _fuse_clamp(
    state: Legalization, composite: Composite, host: Deferred, inputs: list[Any], name: str
) -> Deferred | None:
    if misreads_clip(state, composite, host.like):
        return None
    low, high = clamp_limits(composite)
    if host.post.limits is not None:
        low, high = (min(max(limit, low), high) for limit in host.post.limits)
    return replace(host, post=replace(host.post, limits=(low, high)), name=name)


def _fuse_table(
    state: Legalization, composite: Composite, host: Deferred, inputs: list[Any], name: str
) -> Deferred | None:
    q = quant_params(composite.call("relax.dequantize"))
    if not state.isa.byte_tables or q.dtype != "uint8" or composite.output.dtype != "uint8":
        return None
    main, tail = unary_tables(state.pytorch, composite, state.torch_tables)
    if not (np.array_equal(main, tail) or _tail_free(host.like, state.pytorch)):
        return None
    post = replace(host.post, table=np.ascontiguousarray(main), table_output=composite.output)
    return replace(host, post=post, name=name)


def _tail_free(like: Tensor, pytorch: PyTorch) -> bool:
    """Whether PyTorch vectorises every element for every batch: no thread's piece has a scalar tail."""
    batch, *rest = like.shape
    count = math.prod(int(d) for d in rest)
    if isinstance(batch, int):
        return has_no_tails(batch * count, pytorch)
    return no_multiple_has_tails(count, pytorch)


_FUSIONS: dict[str, Fusion] = {
    "add": _fuse_add,
    "relu": _fuse_clamp,
    "clip": _fuse_clamp,
    **{row.name: _fuse_table for row in ACTIVATIONS.values() if row.keeps_order},
}
