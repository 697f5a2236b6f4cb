"""Lowers under numerics=qdq: every region of float operators becomes one kernel; pools and movements take integers.

The torch lowering has a rule for each of PyTorch's quantized operators. This one knows only contractions, pools and
element-wise operators, because the QDQ form itself defines the result. Kernels take and return uint8: int8 values of
the program are stored with 128 added, and keep their real values. TVM's own operators return plain int8. So the dtype
of an expression says how a value is stored, and the dtype of the program's variable what it is. Readers ask for the
form that they need: kernels through `integers`, other operators through `read`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from quantvm.kernels import tflite
from quantvm.kernels.conv import conv2d, depthwise
from quantvm.kernels.conv.dot import PORTABLE
from quantvm.kernels.conv.split_weights import split_product
from quantvm.kernels.elementwise import concat, elementwise, quantize
from quantvm.kernels.float import region_kernel
from quantvm.kernels.pool import pool
from quantvm.lowering.float.float_ops import rows_of_one_image
from quantvm.lowering.qdq.regions import (
    MOVES,
    Contraction,
    Region,
    contraction_of,
    dequantized_params,
    find_regions,
    is_integer,
)
from quantvm.lowering.tensors import (
    Layout,
    Tensor,
    bordered,
    check_result,
    expect_batch_first,
    in_layout,
    logical_tensor,
    product,
    rows_and_item,
    without_border,
)
from quantvm.lowering.torch.contractions import conv_shape
from quantvm.lowering.torch.legalize import Legalization
from quantvm.lowering.torch.pools import pool_shape, reduced_axes
from quantvm.numerics import qdq as qdq_numerics
from quantvm.numerics.qdq import FloatProgram, Quantization
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.bindings import count_uses
from quantvm.qdq.expressions import constant_value, is_call, op_name, quant_params, shape_of
from quantvm.qdq.rewriting import Rewriter, with_arguments, with_operands

from . import pools as qdq_pools
from .axis_quantize import has_known_axis, quantized_along_axis
from .pools import is_average
from .region_reader import RegionReader, limits_of, unsigned


@dataclass(frozen=True)
class _WaitingPool:
    """An average that is not emitted yet: the next operator says whether to quantize it."""

    call: Any


@dataclass(frozen=True)
class Dequantized:
    """Real values that are stored as integers: `tensor` holds uint8 with the parameters `q`."""

    tensor: Tensor
    q: QuantParams


def legalize_qdq(module: tvm.IRModule, state: Legalization, *, divides: bool) -> tvm.IRModule:
    """Replaces regions, pools and movements of quantized values by calls of kernels.

    Args:
        module: Relax in QDQ form, after `hoist_quantize`.
        state: gives the target; receives the counts.
        divides: whether quantization divides by the scale, as ONNX does.
    """
    lowered = _Lowering(module, state, divides).go()
    return relax.transform.DeadCodeElimination()(lowered)  # removes weights that kernels have packed


class _Lowering(Rewriter):
    """One walk over `main`; `values` maps each variable to a Tensor, a Dequantized or another expression.

    The Tensor of an int8 variable is either uint8, with 128 added, or int8.
    """

    def __init__(self, module: tvm.IRModule, state: Legalization, divides: bool) -> None:
        super().__init__(module)
        self.state, self.divides = state, divides
        state.builder = self.builder
        self._reals: dict[Any, Tensor] = {}
        self._integers: dict[Any, Tensor] = {}
        self._uses = count_uses(self.main)
        self._is_tflite = state.pytorch.engine == "tflite"
        self._regions = find_regions(self.main, requantizes_apart=self._is_tflite)

    # ---- values

    def integers(self, expr: Any) -> Tensor:
        """Returns integers of the program as kernels take them: uint8; int8 values with 128 added."""
        x = self._lowered_value(expr) if isinstance(expr, relax.Var) else logical_tensor(expr)
        if str(x.expr.ty.dtype) == "uint8":
            return x
        if expr not in self._integers:
            self._integers[expr] = replace(x, expr=self._shifted(x.expr, 128, "uint8"))
        return self._integers[expr]

    def _shifted(self, expr: Any, by: int, dtype: str) -> Any:
        wide = relax.op.add(relax.op.astype(expr, "int16"), relax.const(by, "int16"))
        return self.builder.emit(relax.op.astype(wide, dtype))

    def of_parameter(self, old: relax.Var, new: relax.Var) -> Tensor:
        return logical_tensor(new)

    def read(self, expr: Any) -> Any:
        """Returns an operand in the program's own layout and dtype, for operators that are not our kernels."""
        if not isinstance(expr, relax.Var):
            return expr
        value = self._lowered_value(expr)
        if isinstance(value, relax.Tuple):
            return with_operands(value, self.read)
        if isinstance(value, Dequantized):
            if expr not in self._reals:
                self._reals[expr] = self.real(value, expr.name)
            value = self._reals[expr]
        if not isinstance(value, Tensor):
            return value
        plain = self.state.logical(value).expr
        if str(expr.ty.dtype) == "int8" and str(plain.ty.dtype) == "uint8":
            return self._shifted(plain, -128, "int8")
        return plain

    def _lowered_value(self, var: Any) -> Any:
        """Returns the lowered value of a variable; a waiting pool is emitted without quantization."""
        if isinstance(self.values[var], _WaitingPool):
            self.values[var] = _checked(var, self._pooled(self.values[var].call, None, var.name))
        return self.values[var]

    def real(self, value: Dequantized | Tensor, name: str) -> Tensor:
        """Returns float32 values, dequantizing if needed."""
        if isinstance(value, Tensor):
            return value
        x = in_layout(self.builder, value.tensor, value.tensor.layout)  # fills in its border
        program = FloatProgram((qdq_numerics.TensorLeaf(value.q),), (), None)
        kernel = region_kernel.region_kernel(x.item_shape, program, self.state.isa)
        self.state.op = "dequantize"
        return self.state.run(kernel, [x], x, "float32", name)

    # ---- bindings

    def bind(self, var: Any, value: Any) -> Any:
        """Lowers a binding; a region is emitted at its root."""
        return _checked(var, self._bound_to(var, value))

    def _bound_to(self, var: Any, value: Any) -> Any:
        region = self._regions.get(var)
        if region is not None:
            return self._region(region) if region.root == var else None
        name = op_name(value)
        if is_call(value, "relax.dequantize") and dequantized_params(var, self.bound) is not None:
            return Dequantized(self.integers(value.args[0]), unsigned(quant_params(value)))
        if name in MOVES and isinstance(self.values.get(value.args[0]), Dequantized):
            source = self.values[value.args[0]]
            return replace(source, tensor=self._moved(value, source.tensor, var.name))
        if name in MOVES and is_integer(var):
            return self._moved(value, self.integers(value.args[0]), var.name)
        if name == "relax.concat" and is_integer(var):
            return self._concatenated(value, [self.integers(p) for p in self._parts(value)], var.name)
        if name == "relax.concat" and (q := self._common_params(value)) is not None:
            tensors = [self.values[part].tensor for part in self._parts(value)]
            return Dequantized(self._concatenated(value, tensors, var.name), q)
        if name == "relax.nn.pad" and (padded := self._padded(value)) is not None:
            return padded
        if is_average(value) or (self._is_tflite and self._averages_integers(value)):
            return _WaitingPool(value)
        if is_call(value, "relax.quantize") and has_known_axis(value):
            x = self.read(value.args[0])
            return logical_tensor(quantized_along_axis(self.builder, x, value, divides=self.divides, name=var.name))
        if is_call(value, "relax.clip") and is_integer(var):
            return self._limited(value, var.name)
        if isinstance(value, relax.Var):
            return self.values[value]
        if isinstance(value, relax.Tuple):
            return value  # its fields are read where the tuple is used
        emitted = self.copied(var, value)
        return logical_tensor(emitted) if isinstance(emitted.ty, relax.TensorType) else emitted

    def _moved(self, call: Any, x: Tensor, name: str) -> Tensor:
        """Applies a movement or a max pool to integers."""
        if is_call(call, "relax.nn.max_pool2d"):
            expect_batch_first("max_pool2d", name, x)
            x = self.state.nhwc(x)
            shape = pool_shape(call, x)
            like = replace(x, expr=None, shape=(*x.shape[:2], shape.out_height, shape.out_width))
            self.state.op = "max_pool2d"
            return self.state.run(pool.max_pool2d(shape, "uint8"), [x], like, "uint8", name)
        expr = self.state.logical(x).expr
        moved = self.builder.emit(with_arguments(call, [expr, *call.args[1:]]), name)
        return logical_tensor(moved)

    def _parts(self, concat_call: Any) -> list[Any]:
        return list(self.bound.get(concat_call.args[0], concat_call.args[0]).fields)

    def _common_params(self, concat_call: Any) -> QuantParams | None:
        """Returns the parameters of the operands if all are dequantized integers with the same ones; else None."""
        values = [self.values.get(part) for part in self._parts(concat_call)]
        params = [value.q if isinstance(value, Dequantized) else None for value in values]
        return params[0] if len(set(params)) == 1 else None

    def _concatenated(self, call: Any, tensors: list[Tensor], name: str) -> Tensor:
        """Concatenates integers of the same parameters."""
        rank, axis = len(call.ty.shape), int(call.attrs.axis)
        axis = axis + rank if axis < 0 else axis
        is_nhwc = rank == 4 and all(t.layout == "NHWC" for t in tensors)
        if is_nhwc and axis == 1:
            tensors = [self.state.nhwc(t) for t in tensors]
            n, _, h, w = tensors[0].shape
            channels = [int(t.shape[1]) for t in tensors]
            same = [QuantParams(1.0, 0)] * len(tensors)
            kernel = concat.concat_nhwc((h, w), channels, same, same[0], self.state.isa)
            like = Tensor(None, (n, sum(channels), h, w), "NHWC")
            self.state.op = "concat"
            return self.state.run(kernel, tensors, like, "uint8", name)
        parts = [self.state.logical(t).expr for t in tensors]
        return logical_tensor(self.builder.emit(relax.op.concat(parts, axis), name))

    def _padded(self, call: Any) -> Dequantized | None:
        """Returns padded dequantized values; the border of real zeros is filled in later. None for other pads."""
        source = self.values.get(call.args[0])
        widths = [int(w) for w in call.attrs.pad_width]
        fits = (
            isinstance(source, Dequantized)
            and len(source.tensor.shape) == 4
            and not any(source.tensor.border)
            and not any(widths[:4])
            and min(widths) >= 0
            and str(call.attrs.pad_mode) == "constant"
            and float(call.attrs.pad_value) == 0.0
        )
        if not fits:
            return None
        assert isinstance(source, Dequantized)
        top, bottom, left, right = widths[4:]
        return replace(source, tensor=bordered(source.tensor, (top, left, bottom, right), source.q.zero_point))

    def _limited(self, call: Any, name: str) -> Tensor:
        x = self.integers(call.args[0])
        x = in_layout(self.builder, x, x.layout)
        low, high = limits_of(call)
        kernel = elementwise.clamp_integers(x.item_shape, low, high, "uint8", "clip")
        return self.state.run(kernel, [x], x, "uint8", name)

    def _pooled(self, call: Any, output: Quantization | None, name: str, dtype_in_file: str = "float32") -> Tensor:
        """Emits an average pool or a spatial mean of integers or of floats."""
        state, value = self.state, self._lowered_value(call.args[0])
        q, x = (value.q, value.tensor) if isinstance(value, Dequantized) else (None, value)
        if is_average(call):
            return qdq_pools.averaged(state, call, x, q, output, name, dtype_in_file)
        if output is None or q is None:
            return logical_tensor(state.builder.emit(with_operands(call, self.read), name))
        return qdq_pools.reduced_items(state, call, x, q, output, name, dtype_in_file)

    def _averages_integers(self, call: Any) -> bool:
        return reduced_axes(call) is not None and isinstance(self.values.get(call.args[0]), Dequantized)

    # ---- regions

    def _region(self, region: Region) -> Any:
        """Emits the kernel of a region and returns its result."""
        builder = RegionReader(region, self.bound, self.divides, self._is_tflite)
        root = self.bound[region.root]
        name = region.root.name
        if region.host is not None:
            contraction = contraction_of(self.bound[region.host], self.bound)
            assert contraction is not None
            return self._contracted(contraction, builder, name)
        return self._elementwise(region, builder, root, name)

    def _elementwise(self, region: Region, builder: RegionReader, root: Any, name: str) -> Tensor:
        program = builder.program({var: getattr(self.values[var], "q", None) for var in builder.operands})
        if program.output is not None and not program.steps:
            pool_call = self.values[builder.operands[0]]
            if isinstance(pool_call, _WaitingPool) and (self._is_tflite or self._uses[builder.operands[0]] == 1):
                return self._pooled(pool_call.call, program.output, name, str(root.ty.dtype))
        operands = {var: self._lowered_value(var) for var in builder.operands}
        tensors = [v.tensor if isinstance(v, Dequantized) else v for v in operands.values()]
        shape = shape_of(root)
        self.state.op = "elementwise"
        if program.output is not None and not program.steps and len(tensors) == 1 and tensors[0].layout == "NCHW":
            (x,) = tensors
            if isinstance(next(iter(operands.values())), Tensor) and x.batch_first:
                return self._quantized_image(x, program.output, name)
        layout: Layout = self._layout(region, tensors, len(shape))
        placed = [in_layout(self.builder, t, layout) for t in tensors]
        like = Tensor(None, tuple(shape), layout)
        item = rows_and_item(like.physical)[1]
        if self._is_tflite and program.output is not None and not program.steps and program.tensors[0].q is not None:
            kernel = tflite.tflite_requantize(item, program.tensors[0].q, program.output, self.state.pytorch)
        else:
            kernel = region_kernel.region_kernel(item, program, self.state.isa)
        return self.state.run(kernel, placed, like, program.out_dtype, name)

    def _quantized_image(self, x: Tensor, output: Quantization, name: str) -> Tensor:
        """Quantizes floats in PyTorch's order, like the network's input, to integers in NHWC."""
        n, c, h, w = x.shape
        kernel = quantize.quantize_nchw_to_nhwc(int(c), int(h), int(w), output.q, self.state.isa, under=output)
        self.state.op = "quantize"
        return self.state.run(kernel, [x], Tensor(None, (n, c, h, w), "NHWC"), output.q.dtype, name)

    def _layout(self, region: Region, tensors: list[Tensor], rank: int) -> Layout:
        if rank != 4:
            return "flat"
        if region.axis == "last":
            return "NCHW"
        if region.axis == "channels" or any(t.layout == "NHWC" for t in tensors):
            return "NHWC"
        return "NCHW"

    def _contracted(self, contraction: Contraction, builder: RegionReader, name: str) -> Tensor:
        value = self.values[contraction.x]
        assert isinstance(value, Dequantized)
        weight = _weight(contraction)
        channels = weight.integers.shape[0]
        operands = {var: self._lowered_value(var) for var in builder.operands}
        multiplier_f32 = qdq_numerics.multiplier(value.q, weight.scales, channels)
        program = builder.program({var: getattr(v, "q", None) for var, v in operands.items()}, multiplier_f32)
        tensors = [v.tensor if isinstance(v, Dequantized) else v for v in operands.values()]
        emit = self._convolved if contraction.kind == "conv2d" else self._multiplied
        return emit(contraction, value, weight, program, tensors, name)

    def _convolved(
        self, contraction: Contraction, value: Dequantized, weight: _Weight, program: FloatProgram,
        tensors: list[Tensor], name: str,
    ) -> Tensor:  # fmt: skip
        state, q = self.state, value.q
        x, border = value.tensor, (0, 0, 0, 0)
        expect_batch_first("conv2d", name, x)
        if any(x.border) and x.border_value == q.zero_point:
            border, x = x.border, without_border(x)
        x = state.nhwc(x)
        shape = conv_shape(contraction.call, x, weight.integers.shape, border)
        w_ohwi = np.ascontiguousarray(weight.integers.transpose(0, 2, 3, 1))
        if shape.groups == shape.in_channels and shape.groups > 1:
            zero_points = np.broadcast_to(weight.zero_points, (shape.out_channels,))
            kernel = depthwise.depthwise_conv2d(
                shape, w_ohwi, zero_points, q.zero_point, program, saturate_pairs=False, threads=state.pytorch.threads,
                isa=state.isa,
            )  # fmt: skip
        else:
            dot, w = weight.for_dot(state.dot, w_ohwi)
            kernel = conv2d.conv2d(
                shape, w, q.zero_point, program, dot, threads=state.pytorch.threads,
                schedule=state.schedule(shape, dot), isa=state.isa,
            )  # fmt: skip
        like = Tensor(None, (x.shape[0], shape.out_channels, shape.out_height, shape.out_width), "NHWC")
        return state.run(kernel, [x, *map(state.nhwc, tensors)], like, program.out_dtype, name, (name, "conv2d"))

    def _multiplied(
        self, contraction: Contraction, value: Dequantized, weight: _Weight, program: FloatProgram,
        tensors: list[Tensor], name: str,
    ) -> Tensor:  # fmt: skip
        state = self.state
        out_features, in_features = weight.integers.shape
        dot, w = weight.for_dot(state.dot, weight.integers)
        kernel = conv2d.linear(
            in_features, w, value.q.zero_point, program, dot, threads=state.pytorch.threads, isa=state.isa
        )
        shape = (*shape_of(contraction.call),)
        kernel = replace(kernel, macs=kernel.macs * rows_of_one_image(list(shape[:-1])))
        rows = product(shape[:-1])

        def as_rows(x: Tensor, features: int) -> Tensor:
            x = in_layout(state.builder, x, "NCHW" if x.layout != "flat" else "flat")
            if len(x.shape) == 2:
                return x
            flat = state.builder.emit(relax.op.reshape(x.expr, relax.ShapeExpr([rows, features])))
            return Tensor(flat, (rows, features), "flat")

        inputs = [as_rows(value.tensor, in_features), *(as_rows(t, out_features) for t in tensors)]
        like = Tensor(None, (rows, out_features), "flat")
        y = state.run(kernel, inputs, like, program.out_dtype, name, (name, "linear"))
        if len(shape) == 2:
            return y
        return logical_tensor(state.builder.emit(relax.op.reshape(y.expr, relax.ShapeExpr(list(shape))), name))


def _checked(var: Any, value: Any) -> Any:
    """Returns the lowered value of a variable, after checking it against the shape that Relax inferred."""
    tensor = value.tensor if isinstance(value, Dequantized) else value
    if isinstance(tensor, Tensor):
        check_result(tensor, var.ty, var.name)
    return value


@dataclass(frozen=True)
class _Weight:
    """Stored int8, output channels first, with scales and zero points."""

    integers: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray

    def for_dot(self, dot: Any, integers: np.ndarray) -> tuple[Any, np.ndarray]:
        """Returns a dot product that is exact for this weight, and the weight in the form that it needs."""
        if not self.zero_points.any():
            return split_product(dot, integers), integers
        shift = self.zero_points.reshape(-1, *(1,) * (integers.ndim - 1)).astype(np.int16)
        return PORTABLE, integers.astype(np.int16) - shift  # w - zero_point needs nine bits


def _weight(contraction: Contraction) -> _Weight:
    integers, scales, zero_points = (constant_value(argument) for argument in contraction.weight.args[:3])
    integers, zero_points = integers.astype(np.int16), np.atleast_1d(zero_points).astype(np.int64)
    if contraction.weight.args[0].ty.dtype == "uint8":
        integers, zero_points = integers - 128, zero_points - 128
    if not contraction.transposed:
        integers = integers.T
    scales = np.atleast_1d(scales).astype(np.float64)
    return _Weight(np.ascontiguousarray(integers.astype(np.int8)), scales, zero_points)
