"""Calls of an exported program whose results do not depend on its inputs; PyTorch computes them at import."""

from __future__ import annotations

import operator
from typing import Any

import torch

from quantvm.errors import ModelImportError

from .nodes import op_name, writes_in_place

SIZES = frozenset(
    getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "getitem")
)
"""Python operators on sizes and lists."""
CHECKS = frozenset(
    ("aten::_assert_tensor_metadata.default", "aten::_assert_scalar.default", "aten::sym_constrain_range.default",
     "aten::sym_constrain_range_for_size.default", "aten::_assert_async.default", "aten::_assert_async.msg")
)  # fmt: skip
"""Calls that compute nothing."""
_FILLS = frozenset(
    f"aten::{name}.default" for name in ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
)
"""Calls that read only the dtype and the shape of their first argument."""


def _has_static_shape(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape)


def is_random(node: Any) -> bool:
    """Returns whether a call may draw random numbers; dropout does so only in training."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def constant_calls(program: Any) -> set[Any]:
    """Returns the calls that depend on no input, or only on the static shapes of inputs.

    Dequantized constants are not among them: they stay integers.
    """
    user_inputs = set(program.graph_signature.user_inputs)
    known = {n for n in program.graph.nodes if n.op == "placeholder" and n.name not in user_inputs}
    constants: set[Any] = set()
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target in SIZES:
            continue
        if isinstance(node.target, torch._ops.HigherOrderOperator):  # it need not be a computation
            continue
        name = op_name(node)
        if name in CHECKS or "::dequantize" in name or is_random(node):
            continue
        is_fill = name in _FILLS and _has_static_shape(node)
        if all(source in known for source in node.all_input_nodes[1 if is_fill else 0 :]):
            known.add(node)
            constants.add(node)
    return constants


def constant_result(node: Any, values: dict[Any, Any]) -> Any:
    """Returns PyTorch's result of one of the `constant_calls`.

    Raises:
        ModelImportError: the call writes to a parameter or a buffer.
    """
    if writes_in_place(node) and node.all_input_nodes[0].op == "placeholder":
        raise ModelImportError("writes to a parameter or buffer, which is a constant here")

    def value(argument: Any) -> Any:
        if isinstance(values.get(argument), torch.Tensor) or not isinstance(argument.meta.get("val"), torch.Tensor):
            return values[argument]
        like = argument.meta["val"]  # the call reads its dtype and shape only
        return torch.empty([int(size) if isinstance(size, int) else 1 for size in like.shape], dtype=like.dtype)

    arguments, keywords = (torch.fx.node.map_arg(part, value) for part in (node.args, node.kwargs))
    with torch.no_grad():
        return node.target(*arguments, **keywords)
