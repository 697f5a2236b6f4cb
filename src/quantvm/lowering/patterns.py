"""What counts as a quantized operator: patterns over Relax in QDQ form, most specific first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from tvm.relax.dpl import is_const, is_op, is_tuple, wildcard

from .composite import constant_value

Pattern = Any
Check = Callable[[Any], bool]
MAX_CONCAT_INPUTS = 16


def _dequantize(x: Pattern | None = None) -> Pattern:
    return is_op("relax.dequantize")(x if x is not None else wildcard(), is_const(), is_const())


def _quantize(y: Pattern) -> Pattern:
    return is_op("relax.quantize")(y, is_const(), is_const())


def _relu(y: Pattern) -> Pattern:
    return is_op("relax.nn.relu")(y)


def _contractions() -> Iterator[tuple[str, Pattern]]:
    """conv2d and linear, with and without bias and ReLU."""
    for has_bias, has_relu in product((True, False), repeat=2):
        weight = _dequantize(is_const())
        for name, op, operand in (
            ("conv2d", "relax.nn.conv2d", weight),
            ("linear", "relax.matmul", is_op("relax.permute_dims")(weight)),
        ):
            y = is_op(op)(_dequantize(), operand)
            y = is_op("relax.add")(y, is_const()) if has_bias else y
            yield name, _quantize(_relu(y) if has_relu else y)


def _binary() -> Iterator[tuple[str, Pattern]]:
    for name, op in (("add", "relax.add"), ("mul", "relax.multiply")):
        for has_relu in (True, False):
            y = is_op(op)(_dequantize(), _dequantize())
            yield name, _quantize(_relu(y) if has_relu else y)


def _concat() -> Iterator[tuple[str, Pattern]]:
    for count in range(MAX_CONCAT_INPUTS, 0, -1):
        yield "concat", _quantize(is_op("relax.concat")(is_tuple([_dequantize() for _ in range(count)])))


def _unary() -> Iterator[tuple[str, Pattern]]:
    def gate(x: Pattern) -> Pattern:
        return is_op("relax.clip")(is_op("relax.add")(x, is_const()), wildcard(), wildcard())

    x = _dequantize()
    yield "hardswish", _quantize(is_op("relax.divide")(is_op("relax.multiply")(x, gate(x)), is_const()))
    yield "hardsigmoid", _quantize(is_op("relax.divide")(gate(_dequantize()), is_const()))
    yield "sigmoid", _quantize(is_op("relax.sigmoid")(_dequantize()))
    yield "leaky_relu", _quantize(is_op("relax.nn.leakyrelu")(_dequantize()))


def _same_params() -> Iterator[tuple[str, Pattern, Pattern]]:
    """Operators that PyTorch runs on the integers, keeping the parameters; with their inner dequantize."""
    for name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"):
        x = _dequantize()
        yield name, _quantize(is_op(f"relax.nn.{name}")(x)), x
    for name, op in (("mean", "relax.mean"), ("relu", "relax.nn.relu")):
        x = _dequantize()
        yield name, _quantize(is_op(op)(x)), x
    x = _dequantize()
    yield "clip", _quantize(is_op("relax.clip")(x, wildcard(), wildcard())), x


def _keeps_params(context: Any) -> bool:
    """Whether the island's dequantize and quantize have equal parameters."""
    ends = [context.annotated_expr[end] for end in ("quantize", "dequantize")]
    first, second = ([constant_value(argument).tolist() for argument in call.args[1:3]] for call in ends)
    return first == second


def _scalar_params(context: Any) -> bool:
    """Whether activations are quantized per tensor: only weights may be per channel."""
    return constant_value(context.matched_expr.args[1]).ndim == 0


def all_patterns() -> list[tuple]:
    """Returns (composite name, pattern, annotations, check) tuples for `relax.transform.FuseOpsByPattern`."""
    rows: list[tuple] = []
    for name, pattern in (*_contractions(), *_binary(), *_concat(), *_unary()):
        rows.append((f"quantvm.{name}", pattern, {}, lambda context: True))
    for name, pattern, dequantize in _same_params():
        rows.append((f"quantvm.{name}", pattern, {"quantize": pattern, "dequantize": dequantize}, _keeps_params))
    rows.append(("quantvm.quantize", _quantize(wildcard()), {}, _scalar_params))
    rows.append(("quantvm.dequantize", _dequantize(), {}, _scalar_params))
    return rows
