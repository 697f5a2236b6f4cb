"""Defines the quantized operators as patterns over Relax in QDQ form, most specific first."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from itertools import product
from typing import Any

from tvm.relax.dpl import is_const, is_op, is_tuple, wildcard

from quantvm.kernels.elementwise.normalization import MAX_NORMALIZED
from quantvm.numerics.activations import ACTIVATIONS, Activation
from quantvm.numerics.torch_engines import add_scalar, mul_scalar
from quantvm.qdq.activations import find, pattern_of
from quantvm.qdq.attributes import COMPOSITE_PREFIX
from quantvm.qdq.expressions import constant_value, quant_params, same_shape, shape_of

Pattern = Any
Check = Callable[[Any], bool]
USUAL_CONCATS = tuple(range(1, 17))


def _dequantize(x: Pattern | None = None) -> Pattern:
    return is_op("relax.dequantize")(x if x is not None else wildcard(), is_const(), is_const())


def _quantize(y: Pattern) -> Pattern:
    return is_op("relax.quantize")(y, is_const(), is_const())


def _relu(y: Pattern) -> Pattern:
    return is_op("relax.nn.relu")(y)


def _contractions() -> Iterator[tuple[str, Pattern]]:
    """Yields conv2d and linear, with and without bias and ReLU."""
    for has_bias, has_relu in product((True, False), repeat=2):
        weight = _dequantize(is_const())
        for name, op, operand in (
            ("conv2d", "relax.nn.conv2d", weight),
            ("linear", "relax.matmul", is_op("relax.permute_dims")(weight)),
        ):
            y = is_op(op)(_dequantize(), operand)
            y = is_op("relax.add")(y, is_const()) if has_bias else y
            yield name, _quantize(_relu(y) if has_relu else y)


def _binary() -> Iterator[tuple[str, Pattern, dict[str, Pattern], Check]]:
    for name, op in (("add", "relax.add"), ("mul", "relax.multiply")):
        for has_relu in (True, False):
            a, b = _dequantize(), _dequantize()
            y = is_op(op)(a, b)
            yield name, _quantize(_relu(y) if has_relu else y), {"a": a, "b": b}, _can_be_broadcast


def _concat(counts: Collection[int]) -> Iterator[tuple[str, Pattern]]:
    for count in sorted(counts, reverse=True):
        yield "concat", _quantize(is_op("relax.concat")(is_tuple([_dequantize() for _ in range(count)])))


def _activations() -> Iterator[tuple[str, Pattern, dict[str, Pattern], Check]]:
    """Yields functions of quantized tensors; where PyTorch has only float ones, the model itself must dequantize."""
    for activation in ACTIVATIONS.values():
        if activation.kernel is not None or activation.of_quantized is not None:
            yield activation.name, _quantize(pattern_of(activation, _dequantize())), {}, _computes(activation)
        if activation.kernel is None:
            yield activation.name, _quantize(pattern_of(activation, _as_float())), {}, _computes(activation)


def _computes(activation: Activation) -> Check:
    """Returns a check that the matched constants are those of the activation."""

    def check(context: Any) -> bool:
        bindings = context.matched_bindings
        return find(activation, context.matched_expr.args[0], lambda expr: bindings.get(expr, expr)) is not None

    return check


def _as_float() -> Pattern:
    """Returns the pattern of a tensor that the model itself dequantizes, to compute in float."""
    return is_op("relax.astype")(_dequantize())


def _same_params() -> Iterator[tuple[str, Pattern, Pattern]]:
    """Yields operators that PyTorch runs on integers, keeping the parameters; with their inner dequantize."""
    for name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"):
        x = _dequantize()
        yield name, _quantize(is_op(f"relax.nn.{name}")(x)), x
    x = _dequantize()
    yield "relu", _quantize(is_op("relax.nn.relu")(x)), x
    x = _dequantize()
    yield "clip", _quantize(is_op("relax.clip")(x, wildcard(), wildcard())), x


def _keeps_params(context: Any) -> bool:
    """Whether dequantize and quantize have equal parameters."""
    quantize, dequantize = (context.annotated_expr[end] for end in ("quantize", "dequantize"))
    first, second = ([constant_value(v).tolist() for v in call.args[1:3]] for call in (quantize, dequantize))
    return first == second and quantize.ty.dtype == dequantize.args[0].ty.dtype


def _quantize_affine() -> tuple[str, Pattern, dict[str, Pattern], Check]:
    """Returns the pattern of a scale and shift of each channel before quantization."""
    x, factors, terms = wildcard(), is_const(), is_const()
    pattern = _quantize(is_op("relax.add")(is_op("relax.multiply")(x, factors), terms))
    return "quantize_affine", pattern, {"x": x, "factors": factors, "terms": terms}, _is_channel_affine


def _is_channel_affine(context: Any) -> bool:
    found = context.annotated_expr
    shape = shape_of(found["x"])
    expected = (1, shape[1], 1, 1) if len(shape) == 4 else None
    constants = [constant_value(found[name]) for name in ("factors", "terms")]
    return all(c.shape == expected and c.dtype == "float32" for c in constants) and _is_per_tensor(context)


def _means() -> Iterator[tuple[str, Pattern, dict[str, Pattern], Check]]:
    for name, check in (("mean", _is_spatial_mean), ("mean_of_axes", _is_mean_of_an_image)):
        x = _dequantize()
        mean = is_op("relax.mean")(x)
        pattern = _quantize(mean)
        yield name, pattern, {"quantize": pattern, "dequantize": x, "mean": mean}, check


def _is_spatial_mean(context: Any) -> bool:
    shape, axes = _averaged(context)
    return len(shape) == 4 and axes == [2, 3] and _keeps_params(context)


def _is_mean_of_an_image(context: Any) -> bool:
    """Whether a mean is over dimensions of known sizes, without the first one."""
    shape, axes = _averaged(context)
    return 0 not in axes and all(isinstance(size, int) for size in shape[1:]) and _keeps_params(context)


def _averaged(context: Any) -> tuple[list[Any], list[int]]:
    call = context.annotated_expr["mean"]
    shape = shape_of(call.args[0])
    given = range(len(shape)) if call.attrs.axis is None else call.attrs.axis
    return shape, sorted(int(axis) % len(shape) for axis in given)


def _prelu() -> tuple[str, Pattern]:
    return "prelu", _quantize(is_op("relax.nn.prelu")(_dequantize(), _dequantize(is_const())))


def _bilinear() -> tuple[str, Pattern, dict[str, Pattern], Check]:
    x = _dequantize()
    pattern = _quantize(is_op("relax.image.resize2d")(x, wildcard()))
    return "bilinear", pattern, {"quantize": pattern, "dequantize": x}, _keeps_params


def _with_numbers() -> Iterator[tuple[str, Pattern, dict[str, Pattern], Check]]:
    """Yields operators of a tensor and a number, with the parameters that PyTorch derives for the result."""
    for name, op in (("add_scalar", "relax.add"), ("mul_scalar", "relax.multiply")):
        x, number = _dequantize(), is_const()
        pattern = _quantize(is_op(op)(x, number))
        yield name, pattern, {"quantize": pattern, "dequantize": x, "number": number}, _derives_params(name)


def _derives_params(name: str) -> Check:
    def check(context: Any) -> bool:
        number = constant_value(context.annotated_expr["number"])
        if number.ndim or not _is_per_tensor(context):
            return False
        before, after = (quant_params(context.annotated_expr[end]) for end in ("dequantize", "quantize"))
        derived = add_scalar(before, float(number))[0] if name == "add_scalar" else mul_scalar(before, float(number))
        same = (derived.zero_point, derived.dtype) == (after.zero_point, after.dtype)
        # PyTorch derives scales in double precision; the program holds them rounded to float32
        same &= math.isclose(derived.scale, after.scale, rel_tol=2**-21)
        return same and (name == "add_scalar" or float(number) < 0)

    return check


def _batch_norms() -> Iterator[tuple[str, Pattern, dict[str, Pattern], Check]]:
    for has_relu in (True, False):
        x, factors, terms = _dequantize(), is_const(), is_const()
        y = is_op("relax.add")(is_op("relax.multiply")(x, factors), terms)
        pattern = _quantize(_relu(y) if has_relu else y)
        yield "batch_norm2d", pattern, {"x": x, "factors": factors, "terms": terms}, _is_channel_affine


def _layer_norm() -> tuple[str, Pattern, dict[str, Pattern], Check]:
    x, gamma = _dequantize(), is_const()
    norm = is_op("relax.nn.layer_norm")(x, gamma, is_const())
    return "layer_norm", _quantize(norm), {"x": x, "gamma": gamma, "norm": norm}, _is_over_last_dimensions


def _is_over_last_dimensions(context: Any) -> bool:
    """Whether a row is short enough for sums in int32, and does not span the whole batch."""
    found = context.annotated_expr
    gamma, rank = constant_value(found["gamma"]), len(found["x"].ty.shape)
    axes = sorted(int(axis) % rank for axis in found["norm"].attrs.axes)
    is_last = axes == list(range(rank - gamma.ndim, rank)) and gamma.ndim < rank
    return is_last and gamma.dtype == "float32" and gamma.size <= MAX_NORMALIZED and _is_per_tensor(context)


def _operand_shapes(context: Any) -> list[list[Any]]:
    return [shape_of(context.annotated_expr[name]) for name in ("a", "b")]


def _can_be_broadcast(context: Any) -> bool:
    """Whether the shapes are equal in all dimensions where neither is 1."""
    a, b = _operand_shapes(context)
    pairs = zip(a[::-1], b[::-1], strict=False)
    return all(_is_one(x) or _is_one(y) or same_shape([x], [y]) for x, y in pairs) and len(a) > 0 < len(b)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _is_per_tensor(context: Any) -> bool:
    """Whether an activation with a batch is quantized per tensor; only weights may be per channel."""
    call = context.matched_expr
    is_known = hasattr(call.args[0], "value")
    return constant_value(call.args[1]).ndim == 0 and not (is_known and len(call.ty.shape) == 0)


def all_patterns(concats: Collection[int] = USUAL_CONCATS) -> list[tuple]:
    """Returns (composite name, pattern, annotations, check) tuples for `relax.transform.FuseOpsByPattern`.

    Args:
        concats: numbers of inputs that concatenations have; each number needs a pattern of its own.
    """

    def anything(context: Any) -> bool:
        return True

    plain: list[tuple] = [
        (name, pattern, {}, anything) for name, pattern in (*_contractions(), *_concat(concats), _prelu())
    ]
    kept = [
        (name, pattern, {"quantize": pattern, "dequantize": dequantize}, _keeps_params)
        for name, pattern, dequantize in _same_params()
    ]
    rows: list[tuple] = [
        (f"{COMPOSITE_PREFIX}{name}", *rest)
        for name, *rest in (
            *plain,
            *_binary(),
            *_activations(),
            *kept,
            *_means(),
            _bilinear(),
            *_with_numbers(),
            *_batch_norms(),
            _layer_norm(),
            _quantize_affine(),
        )
    ]
    rows.append((f"{COMPOSITE_PREFIX}quantize", _quantize(wildcard()), {}, _is_per_tensor))
    rows.append((f"{COMPOSITE_PREFIX}dequantize", _dequantize(), {}, _is_per_tensor))
    return rows
