"""The ONNX operators that are imported, each with the tested versions of its definition.

tests/frontend/test_onnx_operators.py compares each of them with ONNX Runtime, over a sweep of its attributes. Other
operators are refused, even if TVM's importer or our converters know them. A version is the operator set in which ONNX
changed the definition. If a newer ONNX changes it again, that version is refused until the sweep covers it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SWEPT: dict[str, tuple[int, ...]] = {
    # element by element
    "Abs": (6, 13), "Acos": (7, 22), "Acosh": (9, 22), "Add": (7, 13, 14), "And": (7,), "Asin": (7, 22),
    "Asinh": (9, 22), "Atan": (7, 22), "Atanh": (9, 22), "BitShift": (11, 28), "BitwiseAnd": (18,),
    "BitwiseNot": (18,), "BitwiseOr": (18,), "BitwiseXor": (18,), "Cast": (6, 9, 13, 19, 21, 23, 24, 25, 28),
    "CastLike": (15, 19, 21, 23, 24, 25), "Ceil": (6, 13), "Celu": (12, 28), "Clip": (6, 11, 12, 13), "Cos": (7, 22),
    "Cosh": (9, 22), "Div": (7, 13, 14), "Dropout": (7, 10, 12, 13, 22), "Elu": (6, 22), "Equal": (7, 11, 13, 19),
    "Erf": (9, 13), "Exp": (6, 13), "Floor": (6, 13), "Gelu": (20,), "Greater": (7, 9, 13),
    "GreaterOrEqual": (12, 16), "HardSigmoid": (6, 22), "HardSwish": (14, 22),
    "Identity": (1, 13, 14, 16, 19, 21, 23, 24, 25), "IsInf": (10, 20), "IsNaN": (9, 13, 20), "LeakyRelu": (6, 16),
    "Less": (7, 9, 13), "LessOrEqual": (12, 16), "Log": (6, 13), "Max": (6, 8, 12, 13), "Mean": (6, 8, 13),
    "Min": (6, 8, 12, 13), "Mish": (18, 22), "Mod": (10, 13, 28), "Mul": (7, 13, 14), "Neg": (6, 13), "Not": (1,),
    "Or": (7,), "PRelu": (7, 9, 16), "Pow": (7, 12, 13, 15), "Reciprocal": (6, 13), "Relu": (6, 13, 14),
    "Round": (11, 22), "Selu": (6, 22), "Shrink": (9,), "Sigmoid": (6, 13), "Sign": (9, 13), "Sin": (7, 22),
    "Sinh": (9, 22), "Softplus": (1, 22), "Softsign": (1, 22), "Sqrt": (6, 13), "Sub": (7, 13, 14),
    "Sum": (6, 8, 13), "Tan": (7, 22), "Tanh": (6, 13), "ThresholdedRelu": (10, 22), "Where": (9, 16), "Xor": (7,),
    # moving, picking and filling
    "AffineGrid": (20,), "Compress": (9, 11, 28), "Concat": (4, 11, 13),
    "Constant": (1, 9, 11, 12, 13, 19, 21, 23, 24, 25), "ConstantOfShape": (9, 20, 21, 23, 24, 25),
    "DepthToSpace": (1, 11, 13, 28), "Expand": (8, 13), "EyeLike": (9, 22),
    "Flatten": (1, 9, 11, 13, 21, 23, 24, 25), "Gather": (1, 11, 13), "GatherElements": (11, 13),
    "GatherND": (11, 12, 13), "GridSample": (16, 20, 22), "MaxUnpool": (9, 11, 22), "OneHot": (9, 11, 28),
    "Pad": (2, 11, 13, 18, 19, 21, 23, 24, 25), "Reshape": (5, 13, 14, 19, 21, 23, 24, 25),
    "Resize": (10, 11, 13, 18, 19), "Scatter": (9,), "ScatterElements": (11, 13, 16, 18),
    "ScatterND": (11, 13, 16, 18), "Shape": (1, 13, 15, 19, 21, 23, 24, 25), "Size": (1, 13, 19, 21, 23, 24, 25),
    "Slice": (1, 10, 11, 13), "SpaceToDepth": (1, 13, 28), "Split": (2, 11, 13, 18),
    "Squeeze": (1, 11, 13, 21, 23, 24, 25), "Tile": (6, 13), "Transpose": (1, 13, 21, 23, 24, 25), "Trilu": (14,),
    "Unsqueeze": (1, 11, 13, 21, 23, 24, 25), "Upsample": (7, 9),
    # layers and reductions
    "ArgMax": (1, 11, 12, 13), "ArgMin": (1, 11, 12, 13), "AveragePool": (7, 10, 11, 19, 22),
    "BatchNormalization": (7, 9, 14, 15), "Conv": (1, 11, 22), "ConvTranspose": (1, 11, 22), "CumSum": (11, 14),
    "DequantizeLinear": (10, 13, 19, 21, 23, 24, 25, 28), "Einsum": (12, 28), "Gemm": (7, 9, 11, 13),
    "GlobalAveragePool": (1, 22), "GlobalLpPool": (2, 22), "GlobalMaxPool": (1, 22), "GroupNormalization": (18, 21),
    "Hardmax": (1, 11, 13), "InstanceNormalization": (6, 22), "LRN": (1, 13), "LayerNormalization": (17,),
    "LogSoftmax": (1, 11, 13), "LpPool": (2, 11, 18, 22), "MatMul": (1, 9, 13), "MaxPool": (1, 8, 10, 11, 12, 22),
    "MaxRoiPool": (1, 22), "MeanVarianceNormalization": (9, 13), "QuantizeLinear": (10, 13, 19, 21, 23, 24, 25, 28),
    "RMSNormalization": (23,), "ReduceL1": (1, 11, 13, 18), "ReduceL2": (1, 11, 13, 18),
    "ReduceLogSum": (1, 11, 13, 18, 28), "ReduceLogSumExp": (1, 11, 13, 18, 28),
    "ReduceMax": (1, 11, 12, 13, 18, 20), "ReduceMean": (1, 11, 13, 18), "ReduceMin": (1, 11, 12, 13, 18, 20),
    "ReduceProd": (1, 11, 13, 18), "ReduceSum": (1, 11, 13), "ReduceSumSquare": (1, 11, 13, 18),
    "RoiAlign": (10, 16, 22), "Softmax": (1, 11, 13),
}  # fmt: skip
"""ONNX operator -> the operator sets that changed it, starting with the version valid in set 7."""

SWEPT_OF_MICROSOFT = frozenset((
    "Attention", "BiasGelu", "FastGelu", "Gelu", "GridSample", "Pad", "SkipLayerNormalization", "Trilu",
))  # fmt: skip
"""Operators of the domain `MICROSOFT`."""

_OF_BOTH = frozenset(("DequantizeLinear", "QuantizeLinear", "Range", "RotaryEmbedding", "Unique")) | SWEPT_OF_MICROSOFT
"""Operators that `MICROSOFT` defines even if ONNX has one of that name."""

NAMED = ("", "ai.onnx")
"""Names of ONNX's own domain."""

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def opset_of(model: Any) -> int:
    """Returns the ONNX operator set that a model imports; 1 if it names none."""
    return next((int(imported.version) for imported in model.opset_import if imported.domain in NAMED), 1)


def refused_operators(nodes: Iterable[Any], opset: int) -> list[str]:
    """Returns a clause for each refused operator: its name, count, first node, and the reason."""
    rows: dict[tuple[str, str], list[Any]] = {}
    for node in nodes:
        rows.setdefault((node.domain, node.op_type), []).append(node)
    found = []
    for (domain, op), alike in sorted(rows.items()):
        reason = _reason(domain, op, opset)
        if reason is not None:
            name = op if domain in NAMED else f"{domain}.{op}"
            found.append(f"{name} x{len(alike)} (first: {alike[0].name}){reason}")
    return found


def _reason(domain: str, op: str, opset: int) -> str | None:
    """Returns why an operator is refused ("" without further explanation), or None if it is imported."""
    if domain not in NAMED:
        return None if domain == MICROSOFT and op in SWEPT_OF_MICROSOFT else ""
    if op == "If":
        return None
    if op not in SWEPT:
        return ""
    version = version_of(op, opset)
    if version is None or version in SWEPT[op]:
        return None
    return (f": its definition of operator set {version} is not supported; convert the model to operator set "
            f"{_nearest(op, version)} by onnx.version_converter")  # fmt: skip


def may_be_of_microsoft(domain: str, op: str) -> bool:
    """Returns whether ONNX Runtime may define an operator in its own domain; imported or not (`refused_operators`)."""
    from onnx import defs

    return domain == MICROSOFT and (op in _OF_BOTH or not defs.has(op))


def version_of(op: str, opset: int) -> int | None:
    """Returns the operator set that introduced the definition valid in `opset`, or None if there is none."""
    from onnx import defs

    try:
        return int(defs.get_schema(op, opset, "").since_version)
    except defs.SchemaError:
        return None


def _nearest(op: str, version: int) -> int:
    """Returns the operator set with a supported definition that is nearest to `version`."""
    newest = max(SWEPT[op])
    return version - 1 if version > newest else max(7, min(SWEPT[op]))


__all__ = [
    "MICROSOFT",
    "NAMED",
    "SWEPT",
    "SWEPT_OF_MICROSOFT",
    "may_be_of_microsoft",
    "opset_of",
    "refused_operators",
    "version_of",
]
