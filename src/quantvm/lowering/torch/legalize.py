"""Replaces each composite by a call of one int8 kernel, and chooses memory layouts.

Quantized 4-d tensors are stored in NHWC. contractions.py, elementwise.py and their neighbours register a lowering for
each composite name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import tvm
from tvm import relax

from quantvm.choices import Numerics, Rounding
from quantvm.kernels import Kernel
from quantvm.kernels.conv.dot import PORTABLE_PAIRS, DotProduct
from quantvm.kernels.elementwise import quantize
from quantvm.kernels.isa import Isa
from quantvm.kernels.schedule.schedule import Conv2dShape, Schedule, Work
from quantvm.kernels.schedule.schedules import Schedules
from quantvm.lowering.calls import KernelCall
from quantvm.lowering.tensors import (
    Tensor,
    as_rows,
    bordered,
    call_kernel,
    check_result,
    expect_batch_first,
    in_layout,
    logical_tensor,
    of_one_image,
    rows_and_item,
)
from quantvm.numerics.pytorch import PyTorch
from quantvm.qdq.attributes import channels_last_inputs, composite_name
from quantvm.qdq.bindings import count_uses
from quantvm.qdq.composite import Composite
from quantvm.qdq.expressions import is_call
from quantvm.qdq.rewriting import Rewriter, with_arguments

from .deferred import Deferred, fuse
from .formats import formatted, permuted


@dataclass
class Legalization:
    """State of one legalization: the builder, set by the walk over `main`; whose bits to reproduce; and counts."""

    builder: relax.BlockBuilder = field(init=False)
    pytorch: PyTorch
    dot: DotProduct
    isa: Isa
    schedules: Schedules = field(default_factory=Schedules)
    numerics: Numerics = "torch"
    rounding: Rounding = "upward"
    pairs: DotProduct = PORTABLE_PAIRS
    torch_tables: Mapping[str, str] = field(default_factory=dict)
    kernels: Counter[str] = field(default_factory=Counter)
    int8_macs: int = 0
    calls: list[KernelCall] = field(default_factory=list)
    convolutions: dict[tuple[Conv2dShape, str], None] = field(default_factory=dict)
    op: str = ""

    def run(
        self, kernel: Kernel, inputs: list[Tensor], like: Tensor, dtype: str, name: str,
        of: tuple[str, str] | None = None,
    ) -> Tensor:  # fmt: skip
        """Emits `kernel`; the result has the layout, shape and memory format of `like`.

        The kernel takes and returns (n, *item); tensors with the batch elsewhere are viewed like that, see `as_rows`.

        Args:
            kernel: the kernel to call.
            inputs: its activations.
            like: a tensor with the layout, shape and memory format of the result.
            dtype: dtype of the result.
            name: name of the variable that holds the result.
            of: (layer, operator) for profiles; by default `name` and the current composite.
        """
        physical = list(like.physical)
        rows, item = rows_and_item(physical)
        arguments = [as_rows(self.builder, x.expr) for x in inputs]
        expr = call_kernel(self.builder, kernel, arguments, [rows, *item], dtype, name)
        if len(physical) != 1 + len(item) or tuple(physical[1:]) != item:
            expr = self.builder.emit(relax.op.reshape(expr, relax.ShapeExpr(physical)))
        self.kernels[kernel.name] += 1
        self.int8_macs += kernel.macs
        layer, op = of or (name, self.op)
        self.calls.append(KernelCall(layer, op, kernel.name, "", len(inputs), kernel.macs))
        return Tensor(expr, like.shape, like.layout, like.channels_last)

    def schedule(self, shape: Conv2dShape, dot: DotProduct) -> Schedule | None:
        """Returns the measured schedule of a convolution, or None; records the convolution for the report."""
        self.convolutions[shape.merged(), dot.name] = None
        return self.schedules.find(Work(shape, dot.name, self.pytorch.threads))

    def nhwc(self, x: Tensor) -> Tensor:
        """Returns x in NHWC."""
        return in_layout(self.builder, x, "NHWC")

    def rows(self, x: Tensor) -> Tensor:
        """Returns x in NHWC if its batch comes first; else in logical order, which gives the longest rows."""
        return self.nhwc(x) if x.batch_first else self.logical(x)

    def logical(self, x: Tensor) -> Tensor:
        """Returns x in PyTorch's logical order."""
        return in_layout(self.builder, x, "NCHW")

    def memory_order(self, x: Tensor) -> Tensor:
        """Returns x with its elements in the order in which PyTorch stores a dense tensor like it."""
        return self.nhwc(x) if x.channels_last or x.behaves_channels_last else self.logical(x)


_OF_IMAGES = frozenset(
    {"conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "mean_of_axes", "bilinear", "prelu"}
    | {"quantize_affine"}
)

Lowering = Callable[[Legalization, Composite, list[Tensor], str], "Tensor | Deferred"]
_LOWERINGS: dict[tuple[str, str], Lowering] = {}


def legalizes(*names: str, numerics: str = "torch") -> Callable[[Lowering], Lowering]:
    """Returns a decorator that registers the lowering of composites with these names under `numerics`.

    Numerics without a lowering of their own use that of torch.
    """

    def register(lowering: Lowering) -> Lowering:
        for name in names:
            if (numerics, name) in _LOWERINGS:
                raise ValueError(f"composite {name} has a lowering already, under numerics {numerics}")
            _LOWERINGS[numerics, name] = lowering
        return lowering

    return register


def lowerings() -> dict[tuple[str, str], Lowering]:
    """Returns the lowering of every (numerics, composite name)."""
    return dict(_LOWERINGS)


def legalized_names() -> frozenset[str]:
    """Returns the composite names that have a lowering."""
    return frozenset(name for _, name in _LOWERINGS)


def legalize(module: tvm.IRModule, state: Legalization) -> tvm.IRModule:
    """Returns the module with every composite of `main` replaced by a kernel call.

    Args:
        module: output of `fuse_qdq`.
        state: gives numerics and target; receives the counts.
    """
    return _Lowering(module, state).go()


class _Lowering(Rewriter):
    """One walk over `main`; `values` maps each variable to a Tensor, a Deferred or another expression."""

    def __init__(self, module: tvm.IRModule, state: Legalization) -> None:
        super().__init__(module)
        self._state, self._uses = state, count_uses(self.main)
        state.builder = self.builder

    def keeps(self, function: Any) -> bool:
        return composite_name(function) is None  # composites are not called any more

    def parameters(self) -> list[relax.Var]:
        params = super().parameters()
        channels_last = channels_last_inputs(self.module)
        self._inputs = {
            new: replace(logical_tensor(new), channels_last=i in channels_last) for i, new in enumerate(params)
        }
        return params

    def of_parameter(self, old: relax.Var, new: relax.Var) -> Tensor:
        return self._inputs[new]

    def where(self, var: relax.Var, value: Any) -> str:
        """Returns the layer and operator of a binding."""
        callee = getattr(value, "op", None)
        if not isinstance(callee, tvm.ir.GlobalVar) or composite_name(self.module[callee]) is None:
            return super().where(var, value)
        composite = Composite(self.module[callee])
        return f"{composite.layer or var.name} ({composite.name})"

    def bind(self, var: relax.Var, value: Any) -> Any:
        made = _binding(self.module, self._state, var, value, self.values, self._uses)
        _check_made(made, var)
        return made

    def read(self, expr: Any) -> Any:
        return _plain(self._state, expr, self.values)


def _check_made(value: Any, var: Any) -> None:
    """Checks that the lowered value of a variable has the shape that Relax inferred."""
    if isinstance(value, Deferred):
        check_result(replace(value.like, expr=None), var.ty, value.layer or var.name)
    elif isinstance(value, Tensor):
        check_result(value, var.ty, var.name)


def _binding(
    module: tvm.IRModule, state: Legalization, var: Any, value: Any, values: dict[Any, Any], uses: Counter[Any]
) -> Any:
    function = module[value.op] if isinstance(getattr(value, "op", None), tvm.ir.GlobalVar) else None
    if composite_name(function) is not None:
        composite = Composite(function)
        # composites with derived dynamic sizes, like 8*n, also take shapes; their kernels do not
        arguments = [argument for argument in value.args if not isinstance(argument, relax.ShapeExpr)]
        name = composite.layer or composite.name
        single_use = [uses[argument] == 1 for argument in arguments]
        fused = fuse(state, composite, [values[argument] for argument in arguments], single_use, name)
        if fused is not None:
            return fused
        inputs = [_emitted(state, values[argument]) for argument in arguments]
        if not inputs:  # it quantizes or dequantizes nothing but a parameter of the model, like a class token
            inputs = [logical_tensor(composite.call(f"relax.{composite.name}").args[0])]
        state.op = composite.name
        if composite.name in _OF_IMAGES:
            expect_batch_first(composite.name, name, *inputs)
        lowering = _LOWERINGS.get((state.numerics, composite.name)) or _LOWERINGS["torch", composite.name]
        result = _by_batch(state, lowering, composite, inputs, name)
        return replace(result, layer=name, op=composite.name) if isinstance(result, Deferred) else result
    if isinstance(value, relax.Var):
        return values[value]
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_plain(state, f, values) for f in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return _wrap(state.builder.emit(relax.TupleGetItem(_plain(state, value.tuple_value, values), value.index)))
    if not hasattr(value, "args"):
        return value
    if is_call(value, "relax.nn.pad"):
        padded = _padded(_emitted(state, values.get(value.args[0])), value)
        if padded is not None:
            return padded
    if is_call(value, "relax.astype") and value.ty.dtype == value.args[0].ty.dtype and value.args[0] in values:
        same = _emitted(state, values[value.args[0]])
        # for integers this stands for PyTorch's contiguous() in the suggested memory format
        return replace(same, strides=None) if value.ty.dtype in ("uint8", "int8") else same
    if is_call(value, "relax.permute_dims"):
        turned = permuted(_emitted(state, values.get(value.args[0])), [int(axis) for axis in value.attrs.axes or ()])
        if turned is not None:
            return turned
    arguments = [_plain(state, argument, values) for argument in value.args]
    call = with_arguments(value, arguments)
    operands = [_emitted(state, values[argument]) for argument in _operands(value) if argument in values]
    return formatted(_wrap(state.builder.emit(call, var.name)), value, operands)


_FOLLOW_FORMAT = ("concat", "avg_pool2d", "adaptive_avg_pool2d", "mean", "mean_of_axes", "bilinear")
"""Composites for which PyTorch has one formula for contiguous tensors and another for channels-last ones."""


def _by_batch(
    state: Legalization, lowering: Lowering, composite: Composite, inputs: list[Tensor], name: str
) -> Tensor | Deferred:
    """Applies a lowering; twice if PyTorch takes one image of a view for dense, but not several images."""
    result = lowering(state, composite, inputs, name)
    if state.numerics != "torch" or composite.name not in _FOLLOW_FORMAT:
        return result
    alone = [of_one_image(x) for x in inputs]
    if all(a is x for a, x in zip(alone, inputs, strict=True)) or isinstance(result, Deferred):
        return result
    single = lowering(state, composite, alone, name)
    assert isinstance(single, Tensor)
    several = state.logical(result)
    kernel = quantize.chosen_by_batch(several.item_shape, composite.output.dtype)
    chosen = state.run(kernel, [state.logical(single), several], several, composite.output.dtype, name)
    return replace(chosen, strides=several.strides)


def _operands(call: Any) -> list[Any]:
    """Returns the arguments of a call, with tuples flattened."""
    return [x for argument in call.args for x in (getattr(argument, "fields", None) or [argument])]


def _padded(x: Any, call: Any) -> Tensor | None:
    """Returns integers padded in height and width by a constant; the border is filled in later. Else None."""
    widths = [int(w) for w in call.attrs.pad_width]
    if not isinstance(x, Tensor) or len(x.shape) != 4 or any(x.border) or any(widths[:4]):
        return None
    if call.ty.dtype not in ("uint8", "int8") or min(widths) < 0 or call.attrs.pad_mode != "constant":
        return None
    top, bottom, left, right = widths[4:]
    return bordered(x, (top, left, bottom, right), int(call.attrs.pad_value))


def _emitted(state: Legalization, value: Any) -> Any:
    """Returns a value, emitting it if it is deferred."""
    return value.emit(state) if isinstance(value, Deferred) else value


def _wrap(var: Any) -> Any:
    return logical_tensor(var) if isinstance(var.ty, relax.TensorType) else var


def _plain(state: Legalization, expr: Any, values: dict[Any, Any]) -> Any:
    """Returns an argument in logical order, for operators that know no layouts."""
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([_plain(state, f, values) for f in expr.fields])
    value = _emitted(state, values.get(expr, expr)) if isinstance(expr, relax.Var) else expr
    return state.logical(value).expr if isinstance(value, Tensor) else value
