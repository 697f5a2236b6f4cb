"""Finds which float operators become one kernel under numerics=qdq: element-wise ones and at most one contraction.

A region ends in its root: a quantization, or an operator whose float result is used outside. Its members are the
operators of the root's shape whose results only the region uses. If a contraction of integers is among them, it is the
host; the other members become its epilogue.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any, Literal

from tvm import relax

from quantvm.numerics.float_operators import FUSED
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.bindings import definitions, variables
from quantvm.qdq.expressions import (
    constant_value,
    is_call,
    is_constant,
    is_per_tensor,
    op_name,
    quant_params,
    same_shape,
    shape_of,
)

UNARY = {name: row.name for name, row in FUSED.items() if row.arity == 1}
BINARY = {name: row.name for name, row in FUSED.items() if row.arity == 2}
_MOST_MEMBERS = 256
"""Maximum number of operators in a kernel: passes of TVM and LLVM recurse into an expression once per operator."""
Axis = Literal["channels", "last"]
"""The logical dimension of per-channel constants: dimension 1 of 4-d tensors, or the last one."""
MOVES = frozenset(
    f"relax.{name}"
    for name in ("reshape", "permute_dims", "flatten", "squeeze", "expand_dims", "strided_slice", "nn.max_pool2d")
)
"""Operators that can be applied to the integers instead of the dequantized values."""


@dataclass(eq=False)
class Region:
    """One kernel.

    Attributes:
        root: variable that holds the result.
        members: variables that the kernel computes, including the root.
        host: the contraction among them, if there is one.
        axis: axis of the per-channel constants; None if there are none.
        tensors: variables from outside that the kernel reads.
        has_gate: whether one of `tensors` has one value per channel, shared by all pixels.
    """

    root: Any
    members: set[Any] = field(default_factory=set)
    host: Any = None
    axis: Axis | None = None
    tensors: set[Any] = field(default_factory=set)
    has_gate: bool = False


@dataclass(frozen=True)
class Contraction:
    """A convolution or matrix product of a quantized activation and a constant weight.

    Attributes:
        kind: conv2d or linear.
        call: call of the operator.
        x: variable of the dequantized activation.
        weight: the call that dequantizes the weight.
        transposed: whether the weight is stored as (O, K) and transposed by permute_dims.
    """

    kind: Literal["conv2d", "linear"]
    call: Any
    x: Any
    weight: Any
    transposed: bool = True


def find_regions(main: Any, *, requantizes_apart: bool = False) -> dict[Any, Region]:
    """Returns the region of every variable that belongs to one.

    Args:
        main: the function.
        requantizes_apart: whether a quantize directly after a dequantize is a region of its own.
    """
    return _Finder(main, requantizes_apart).find()


class _Finder:
    def __init__(self, main: Any, requantizes_apart: bool) -> None:
        self._requantizes_apart = requantizes_apart
        self._definitions = definitions(main)
        self._consumers: dict[Any, list[Any]] = collections.defaultdict(list)
        for var, value in self._definitions.items():
            for used in dict.fromkeys(variables(value)):
                self._consumers[used].append(var)
        for used in variables(main.body.body):
            self._consumers[used].append(None)
        self._kinds = {var: self._kind(value) for var, value in self._definitions.items()}

    def find(self) -> dict[Any, Region]:
        regions: dict[Any, Region] = {}
        for var in reversed(list(self._definitions)):
            kind = self._kinds[var]
            if kind is None:
                continue
            region = self._region_to_join(var, kind, regions)
            if region is None and kind == "requantize":
                self._kinds[var] = None  # its integers are stored
                continue
            region = region or Region(var)
            region.members.add(var)
            region.axis = region.axis or self._axis(var)
            regions[var] = region
        for region in list(dict.fromkeys(regions.values())):
            self._choose_host(region, regions)
        return regions

    def _kind(self, value: Any) -> str | None:
        """Returns the role that an operator can have in a region, or None."""
        name = op_name(value)
        if name == "relax.quantize":
            per_tensor = is_integer(value) and is_per_tensor(value)
            return "quantize" if per_tensor and _is_float(value.args[0]) else None
        if name == "relax.clip" and is_integer(value):
            source: Any = self._definitions.get(value.args[0])
            alone = len(self._consumers[value.args[0]]) == 1
            return "limit" if is_call(source, "relax.quantize") and alone and self._kind(source) else None
        if contraction_of(value, self._definitions) is not None:
            return "contraction"
        if not _is_float(value):
            return None
        if name in UNARY:
            return "elementwise"
        if name in BINARY and self._operands_fit(value):
            return "elementwise"
        if name == "relax.dequantize" and self._only_rounds(value):
            return "requantize"
        return None

    def _only_rounds(self, dequantize: Any) -> bool:
        """Whether a dequantize is the only user of a quantize with the same parameters."""
        source: Any = self._definitions.get(dequantize.args[0])
        if is_call(source, "relax.clip"):
            source = self._definitions.get(source.args[0])
        if not is_call(source, "relax.quantize") or self._kind(source) != "quantize":
            return False
        if not is_per_tensor(dequantize) or quant_params(source) != quant_params(dequantize):
            return False
        return len(self._consumers[dequantize.args[0]]) == 1

    def _operands_fit(self, call: Any) -> bool:
        """Whether every operand has the result's shape, or is a per-channel constant, a scalar or a gate."""
        shape = shape_of(call)
        if not shape:
            return False
        for operand in call.args:
            if is_constant(operand):
                if _axis_of(constant_value(operand).shape, shape) == "no":
                    return False
            elif not same_shape(shape_of(operand), shape) and not _is_gate(shape_of(operand), shape):
                return False
        return any(not is_constant(operand) for operand in call.args)

    def _axis(self, var: Any) -> Axis | None:
        call = self._definitions[var]
        shape = shape_of(call)
        if self._kinds[var] == "contraction":
            return "channels" if len(shape) == 4 and is_call(call, "relax.nn.conv2d") else "last"
        if self._kinds[var] != "elementwise" or op_name(call) not in BINARY:
            return None
        for operand in call.args:
            if is_constant(operand):
                axis = _axis_of(constant_value(operand).shape, shape)
                if axis in ("channels", "last"):
                    return axis  # type: ignore[return-value]
            elif _is_gate(shape_of(operand), shape):
                return "channels"
        return None

    def _region_to_join(self, var: Any, kind: str, regions: dict[Any, Region]) -> Region | None:
        """Returns the region to which all consumers of a variable belong, if the variable can be a member there."""
        consumers = self._consumers[var]
        found = {id(regions.get(c)): regions.get(c) for c in consumers}
        if len(found) != 1:
            return None
        (region,) = found.values()
        if region is None or None in consumers or len(region.members) >= _MOST_MEMBERS:
            return None
        if kind == "requantize" and self._requantizes_apart and any(self._kinds[c] == "quantize" for c in consumers):
            return None
        shape = shape_of(self._definitions[var])
        if any(not same_shape(shape_of(self._definitions[c]), shape) for c in consumers):
            return None  # a gate is computed once, not for every pixel
        if any(self._kinds[c] == "contraction" for c in consumers):
            return None
        if kind in ("quantize", "limit") and any(self._kinds[c] not in ("limit", "requantize") for c in consumers):
            return None
        mine = self._axis(var)
        if mine is not None and region.axis is not None and mine != region.axis:
            return None
        return region

    def _choose_host(self, region: Region, regions: dict[Any, Region]) -> None:
        """Makes the last contraction the region's host if it can compute the other members; cuts off all others."""
        self._survey(region)
        order = [var for var in self._definitions if var in region.members]
        contractions = [var for var in order if self._kinds[var] == "contraction"]
        for var in contractions[:-1]:
            self._split_off(var, region, regions)
        if contractions:
            region.host = contractions[-1]
            self._survey(region)
            if (region.tensors and not self._takes_tensors(region.host)) or region.has_gate:
                region.host = None
                self._split_off(contractions[-1], region, regions)

    def _survey(self, region: Region) -> None:
        region.tensors, region.has_gate = set(), False
        for var in region.members:
            if self._kinds[var] == "contraction":
                continue
            outside = [x for x in variables(self._definitions[var]) if x not in region.members]
            region.tensors.update(outside)
            shape = shape_of(self._definitions[var])
            region.has_gate |= any(not same_shape(shape_of(x), shape) for x in outside)

    def _takes_tensors(self, host: Any) -> bool:
        contraction = contraction_of(self._definitions[host], self._definitions)
        assert contraction is not None
        channels = shape_of(contraction.call)[1 if contraction.kind == "conv2d" else -1]
        return channels % 16 == 0 and (contraction.kind == "linear" or int(contraction.call.attrs.groups) == 1)

    def _split_off(self, contraction: Any, region: Region, regions: dict[Any, Region]) -> None:
        """Makes a contraction, and the members that depend on it alone, a region of its own."""
        own = [contraction]
        for var in self._definitions:
            read = variables(self._definitions[var])
            if var in region.members and var != contraction and read and set(read) <= set(own):
                own.append(var)
        while any(set(self._consumers[var]) - set(own) for var in own[:-1]) or (
            self._kinds[own[-1]] in ("quantize", "limit")  # the operators after it need floats
        ):
            own.pop()
        part = Region(own[-1], set(own), contraction, self._axis(contraction))
        for var in own:
            regions[var] = part
        region.members -= part.members


def contraction_of(value: Any, bound: dict[Any, Any]) -> Contraction | None:
    """Reads a conv2d or matmul of a quantized activation and a constant weight; None for other calls."""
    kind = {"relax.nn.conv2d": "conv2d", "relax.matmul": "linear"}.get(op_name(value))
    if kind is None or dequantized_params(value.args[0], bound) is None:
        return None
    weight: Any = bound.get(value.args[1], value.args[1])
    transposed = kind == "conv2d"
    if kind == "linear" and is_call(weight, "relax.permute_dims"):
        axes = weight.attrs.axes
        if len(weight.ty.shape) != 2 or (axes is not None and [int(a) for a in axes] != [1, 0]):
            return None
        weight, transposed = bound.get(weight.args[0], weight.args[0]), True
    if not is_call(weight, "relax.dequantize") or not all(is_constant(part) for part in weight.args):
        return None
    if not is_integer(weight.args[0]):
        return None
    if kind == "conv2d" and str(value.attrs.data_layout) != "NCHW":
        return None
    rank = len(weight.args[0].ty.shape)
    axis = int(weight.attrs.axis) % rank
    per_channel = constant_value(weight.args[1]).size > 1
    if rank != (4 if kind == "conv2d" else 2) or (per_channel and axis != (0 if transposed else 1)):
        return None
    return Contraction(kind, value, value.args[0], weight, transposed)  # type: ignore[arg-type]


def dequantized_params(expr: Any, bound: dict[Any, Any]) -> QuantParams | None:
    """Returns the parameters of dequantized integers, perhaps moved or concatenated with their like; else None."""
    value: Any = bound.get(expr)
    if is_call(value, "relax.dequantize"):
        per_tensor = is_integer(value.args[0]) and is_per_tensor(value)
        return quant_params(value) if per_tensor and not is_constant(value.args[0]) else None
    if is_call(value, "relax.concat"):
        parts = getattr(bound.get(value.args[0], value.args[0]), "fields", ())
        params = {dequantized_params(part, bound) for part in parts}
        return params.pop() if len(params) == 1 else None
    if op_name(value) in MOVES:
        return dequantized_params(value.args[0], bound)
    return None


def is_integer(expr: Any) -> bool:
    """Whether a value is a tensor of int8 or uint8."""
    return isinstance(expr.ty, relax.TensorType) and str(expr.ty.dtype) in ("uint8", "int8")


def _is_float(expr: Any) -> bool:
    return isinstance(expr.ty, relax.TensorType) and str(expr.ty.dtype) == "float32"


def _is_gate(shape: list[Any], of: list[Any]) -> bool:
    if len(of) != 4 or not all(isinstance(d, int) for d in of[1:]):
        return False
    return same_shape(shape, [*of[:2], 1, 1]) and not same_shape(shape, of)


def _axis_of(constant: tuple[int, ...], shape: list[Any]) -> str | None:
    """Returns the axis along which a constant varies: channels, last, None for a scalar; `no` if it fits none."""
    sizes = [d for d in constant if d != 1]
    if not sizes:
        return None
    if len(sizes) != 1:
        return "no"
    place = len(shape) - len(constant) + next(i for i, d in enumerate(constant) if d != 1)
    if place < 0 or shape[place] != sizes[0]:
        return "no"
    if len(shape) == 4 and place == 1:
        return "channels"
    return "last" if place == len(shape) - 1 else "no"
