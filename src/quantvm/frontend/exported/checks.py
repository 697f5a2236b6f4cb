"""Refuses operators that exported programs must not hold, with advice; one error lists all problems of a kind."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import torch

from quantvm.errors import ModelImportError, UnsupportedOpError, listed

from .constants import is_random
from .nodes import described, op_name, source
from .registry import exported_ops

FLOAT_MODEL = (
    "no quantize or dequantize operator found: this is a float model. Quantize it first: prepare_pt2e, calibrate, "
    "convert_pt2e of torchao.quantization.pt2e, then torch.export.export"
)

NOT_CONVERTED = (
    "it was prepared but not converted; call torchao.quantization.pt2e.quantize_pt2e.convert_pt2e(model) before "
    "torch.export"
)
_RANDOM = "Random numbers are drawn by PyTorch's own generator; pass them to the model as an input. "
_INTEGERS = (torch.int8, torch.uint8)
_QUANTIZED = ("quantized_decomposed::", "torchao::", "aten::_int_mm", "export::access_subclass_inner_tensor")


def check_program(nodes: Iterable[Any]) -> None:
    """Raises an error unless a program is a converted, statically quantized model."""
    calls = [node for node in nodes if node.op == "call_function"]
    names = {node: op_name(node) for node in calls}
    observed = [n for n in calls if "fake_quant" in names[n] or _in_observer(n)]
    if observed:
        raise ModelImportError(f"the program holds observers or fake quantization ({_some(observed)}): {NOT_CONVERTED}")
    has_quantization = any(name.startswith(_QUANTIZED) for name in names.values())
    reference = [n for n in calls if names[n] == "higher_order::out_dtype"]
    if not has_quantization:
        reference = reference or [n for n in calls if names[n] == "aten::to.dtype" and n.args[1] in _INTEGERS]
    if reference:
        raise ModelImportError(
            f"the program is in reference representation ({_some(reference)}); call convert_pt2e without "
            "use_reference_representation=True"
        )
    recurrent = [n for n in calls if names[n].split("::")[1].split(".")[0] in ("lstm", "gru", "quantized_lstm")]
    dynamic = [n for n in calls if names[n].startswith("quantized_decomposed::choose_qparams")]
    if dynamic:
        kind = " of a recurrent layer" if recurrent else ""
        raise ModelImportError(
            f"the program is dynamically quantized{kind} ({_some(dynamic)}): scales are computed at run time. Use a "
            "static quantizer (is_dynamic=False), or for linear layers torchao.quantization.quantize_ with "
            "Int8DynamicActivationInt8WeightConfig"
        )
    blocks = [n for n in calls if names[n].startswith("torchao::dequantize")]
    if blocks:
        raise ModelImportError(
            f"the program holds int4 or intx weights ({_some(blocks)}), which are not supported; use "
            "Int8DynamicActivationInt8WeightConfig, Int8StaticActivationInt8WeightConfig or Int8WeightOnlyConfig"
        )
    if not has_quantization:
        raise ModelImportError(FLOAT_MODEL)


def check_operators(unknown: Iterable[Any]) -> None:
    """Raises one error for all calls that cannot be imported.

    Args:
        unknown: the calls that cannot be imported.
    """
    missing: dict[str, list[Any]] = collections.defaultdict(list)
    unknown = list(unknown)
    for node in unknown:
        missing[op_name(node)].append(node)
    if missing:
        rows = [f"{name} x{len(found)} (first: {described(found[0])})" for name, found in sorted(missing.items())]
        raise UnsupportedOpError(
            f"{len(missing)} unsupported ops: {'; '.join(rows)}. They are not among the {len(exported_ops())} ops of "
            "exported programs that quantvm imports, and PyTorch has no decomposition of them into those. "
            f"{_RANDOM if any(map(is_random, unknown)) else ''}"
            "Write them in the model by operators of `quantvm list ops`, or compute them outside of it"
        )


def _in_observer(node: Any) -> bool:
    stack = (node.meta.get("nn_module_stack") or {}).values()
    kinds = [str(entry[1]) for entry in stack if isinstance(entry, (tuple, list)) and len(entry) > 1]
    return any("Observer" in kind or "FakeQuantize" in kind for kind in kinds)


def _some(nodes: list[Any]) -> str:
    """Returns the first few nodes and how many there are."""
    return listed([described(node) if source(node) else f"{op_name(node)} {node.name!r}" for node in nodes], 3)
