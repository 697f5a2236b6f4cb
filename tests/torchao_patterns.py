"""torchao exports the patterns that it searches for anew in every conversion; here they are kept."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch


@functools.cache
def keep_patterns() -> None:
    """Has torchao export each pattern once a process, and those of quantization-aware training only where needed.

    Each of these takes the square root of a variance. What `convert_pt2e` does where none matches is done here, too, so
    that programs become the same. (For a program with a batch normalization, a hundred patterns take forty seconds.)
    """
    from torchao.quantization.pt2e import qat_utils
    from torchao.quantization.pt2e import utils as pt2e_utils

    export, fold = qat_utils._get_aten_graph_module_for_pattern, qat_utils._fold_conv_bn_qat_helper
    kept: dict[Any, Any] = {}

    def exported(pattern: Any, example_inputs: tuple[Any, ...], is_cuda: bool = False, **kwargs: Any) -> Any:
        variables = tuple(cell.cell_contents for cell in pattern.fn.__closure__ or ())
        described = tuple(map(_described, example_inputs)), tuple((k, _described(v)) for k, v in kwargs.items())
        key = pattern.fn.__qualname__, variables, described, is_cuda
        if key not in kept:
            kept[key] = export(pattern, example_inputs, is_cuda, **kwargs)
        return copy.deepcopy(kept[key])

    def folded(m: Any, conv_fn: Any, example_inputs: tuple[Any, ...], is_cuda: bool) -> Any:
        if any(node.target is torch.ops.aten.sqrt.default for node in m.graph.nodes):
            return fold(m, conv_fn, example_inputs, is_cuda)
        m.graph.eliminate_dead_code()
        qat_utils._duplicate_dequantize_node(m)
        qat_utils._remove_extra_dequantize(m)
        m.graph.eliminate_dead_code()
        m.recompile()
        return m

    pt2e_utils._get_aten_graph_module_for_pattern = exported
    qat_utils._get_aten_graph_module_for_pattern = exported
    qat_utils._fold_conv_bn_qat_helper = folded


def _described(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value
