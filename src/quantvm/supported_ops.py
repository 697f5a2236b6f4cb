"""The operators that quantvm imports and those that it has int8 kernels for, as a Markdown page made of the registries.

`quantvm list ops --markdown > docs/supported_ops.md` writes the page anew; a test fails while it is stale.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

_OPENING = """\
# Supported operators

Made of the registries by `quantvm list ops --markdown > docs/supported_ops.md`; a test keeps it fresh. To add an
operator: [Contributing](../CONTRIBUTING.md).

An operator that can be imported and has no int8 kernel runs in float; `quantvm compile` and run.json list what does,
and the share of multiply-adds in int8."""


def supported_ops_markdown() -> str:
    """Returns the page."""
    from quantvm import lowering
    from quantvm.frontend import registry
    from quantvm.frontend.exported import importer as exported
    from quantvm.frontend.exported.registry import exported_ops, find_exported
    from quantvm.frontend.onnx import operators as onnx_operators
    from quantvm.frontend.torchscript import importer as torchscript
    from quantvm.lowering.qdq import regions
    from quantvm.lowering.torch.legalize import lowerings

    assert exported
    assert lowering
    assert torchscript  # importing these registers converters and lowerings
    imported = _ours((name, registry.find_converter(name)) for name in registry.supported_ops())
    own = _ours((name, find_exported(name)) for name in exported_ops())
    kernels = [(composite, numerics, lowering) for (numerics, composite), lowering in lowerings().items()]
    fused = sorted({*regions.UNARY.values(), *regions.BINARY.values()})
    lines = [
        _OPENING,
        "",
        "## Int8 kernels of `numerics=torch` and `numerics=integer`",
        "",
        "| quantized operator | numerics | |",
        "| --- | --- | --- |",
        *(f"| {name} | {numerics} | {_summary(lowering)} |" for name, numerics, lowering in sorted(kernels, key=str)),
        "",
        "## Int8 code of `numerics=qdq`",
        "",
        "Convolutions and matrix products of quantized activations with constant quantized weights, with what follows",
        f"them in one kernel: {', '.join(fused)}, quantize and dequantize.",
        "Average pools and means over height and width, max pools, concatenations of equal parameters, moves.",
        "",
        f"## TorchScript: eager and FX models ({len(imported)} operators)",
        "",
        "| operator | what it becomes |",
        "| --- | --- |",
        *(f"| `{name}` | {_summary(converter)} |" for name, converter in imported),
        "",
        f"## Exported programs: PT2E and torchao ({len(own)} operators of ours)",
        "",
        "All others are rewritten by PyTorch itself into these, or refused.",
        "",
        "| operator | what it becomes |",
        "| --- | --- |",
        *(f"| `{name}` | {_summary(converter)} |" for name, converter in own),
        "",
        "## ONNX and TFLite",
        "",
        "Files in QDQ form: QuantizeLinear and DequantizeLinear around Conv, Gemm, MatMul and others. The QOperator",
        "format (QLinearConv and its like) and int4 are refused.",
        "Of ONNX, constants are folded first, weights that the graph quantizes become integers, and sizes that it",
        "computes are written out; `If` is imported where its condition is constant. Sizes that are dynamic in other",
        "dimensions than 0 are those of `example_inputs`; without these they stay dynamic.",
        "",
        f"The operators of ONNX ({len(onnx_operators.SWEPT)}), with the operator sets whose definition is compared",
        "with ONNX Runtime. What ONNX itself defines by these is written out.",
        "",
        *_listed(f"{op} ({', '.join(map(str, versions))})" for op, versions in onnx_operators.SWEPT.items()),
        "",
        f"Of com.microsoft: {', '.join(sorted(onnx_operators.SWEPT_OF_MICROSOFT))}.",
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _listed(entries: Iterable[str]) -> list[str]:
    """Returns the lines of a paragraph of entries in alphabetical order."""
    return textwrap.wrap(", ".join(sorted(entries)) + ".", 118)


def _summary(function: object) -> str:
    """Returns the first line of a docstring, without what would end a cell."""
    text = inspect.getdoc(function) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|").rstrip(".")


def _ours(converters: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Returns the converters that come with quantvm; others may have registered theirs."""
    return [(name, converter) for name, converter in converters if converter.__module__.startswith("quantvm.")]
