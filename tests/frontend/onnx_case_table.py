"""The table of single ONNX operators: all that are imported, over their attributes and the versions that changed them.

The first case of an operator is its most telling one: with those that stand for a fault that was, it is compiled in
every run of the tests, all others in the nightly run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .onnx_cases import MICROSOFT, Case, held, longs
from .operator_cases import floats

X, X4 = floats(2, 3, 4), floats(2, 3, 4, 5)
POSITIVE = np.abs(X) + np.float32(0.1)
UNIT = np.random.default_rng(5).uniform(-0.99, 0.99, (2, 3, 4)).astype(np.float32)
LIMITS = np.array([0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -1.5, -2.5, np.inf, -np.inf, 1e-40, 3e38, -3e38, 88.8, -88.8,
                   104, -104, 0.49999997], np.float32)  # fmt: skip
LONGS = np.random.default_rng(0).integers(-9, 9, (2, 3, 4)).astype(np.int64)
INTS = LONGS.astype(np.int32)
DIVISORS = (np.abs(LONGS) % 4 + 1) * np.where(LONGS % 2, 1, -1)
POWERS = np.abs(LONGS) % 4
TRUTHS = X > 0
TIED = np.float32([[1, 3, 3, 2], [2, 2, 1, 0], [0, 1, -1, 1]])
EMPTY = longs()
ELEMENTWISE = (
    "Exp", "Asinh", "Atan", "Cos", "Cosh", "Sin", "Sinh", "Tan", "Tanh", "Neg", "Abs", "Reciprocal", "Floor", "Ceil",
    "Round", "Relu", "Sign", "Softplus", "Softsign", "Erf", "Sigmoid", "Identity",
)  # fmt: skip

Row = tuple[Case, bool]


def rows(op: str, *inputs: Any, opsets: tuple[int, ...] = (17,), was: bool = False, **options: Any) -> Iterator[Row]:
    """Yields a case for each operator set, and whether it is the last one for a fault that was."""
    outputs, domain = options.pop("outputs", 1), options.pop("domain", "")
    for opset in opsets:
        yield Case(op, opset, inputs, outputs, domain, options), was and opset == opsets[-1]


def elementwise() -> Iterator[Row]:
    """Operators on each element."""
    for op in ELEMENTWISE:
        opsets = (22,) if op in ("Asinh", "Atan", "Cos", "Cosh", "Sin", "Sinh", "Tan", "Round") else (13,)
        yield from rows(op, X, opsets=opsets)
        yield from rows(op, LIMITS[:12] if op in ("Tan", "Cos", "Sin") else LIMITS, opsets=opsets)
    for op, x in (("Log", POSITIVE), ("Sqrt", POSITIVE), ("Acos", UNIT), ("Asin", UNIT), ("Atanh", UNIT),
                  ("Acosh", POSITIVE + 1)):  # fmt: skip
        yield from rows(op, x)
    for op, options in (
        ("LeakyRelu", {"alpha": 0.3}), ("Elu", {"alpha": 0.7}), ("Selu", {"alpha": 1.2, "gamma": 0.9}),
        ("ThresholdedRelu", {"alpha": 0.4}), ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("HardSwish", {}),
        ("Shrink", {"lambd": 0.7, "bias": 0.2}), ("Celu", {"alpha": 0.6}),
    ):  # fmt: skip
        yield from rows(op, X, **options)
        yield from rows(op, X)
    yield from rows("Mish", X, opsets=(18, 22))
    for options in ({"approximate": "tanh"}, {}):
        yield from rows("Gelu", X, opsets=(20,), was=True, **options)
    for options in ({"detect_negative": 0}, {"detect_positive": 0}, {}):
        yield from rows("IsInf", LIMITS, was=True, opsets=(10, 20), **options)
    yield from rows("IsInf", LIMITS, detect_negative=0, detect_positive=0)
    yield from rows("IsNaN", np.array([1, np.nan, np.inf], np.float32))
    for op in ("Neg", "Abs", "Sign"):
        yield from rows(op, LONGS)
        yield from rows(op, INTS)
    for op in ("Add", "Sub", "Mul", "Div"):
        yield from rows(op, X, floats(3, 4, seed=7))
        yield from rows(op, INTS, DIVISORS.astype(np.int32), was=op == "Div")
        yield from rows(op, X, held(floats(3, 1, seed=8)))
        yield from rows(op, held(floats(4, seed=9)), X)
        yield from rows(op, LONGS, DIVISORS)
    yield from rows("Pow", X, held(3, np.int64), was=True)
    for base, exponent in ((LONGS, held(2)), (LONGS, POWERS), (INTS, held(2, np.int32))):
        yield from rows("Pow", base, exponent, was=True)
    for base, exponent in (
        (POSITIVE, X),
        (X, POWERS),
        (X, held(2)),
        (LIMITS, held(3)),
        (LONGS, held(POWERS, np.int64)),
    ):
        yield from rows("Pow", base, exponent)
    yield from rows("Mod", LONGS, DIVISORS)
    yield from rows("Mod", LONGS, DIVISORS, fmod=1)
    yield from rows("Mod", X, floats(2, 3, 4, seed=4), fmod=1)
    yield from rows("Mod", INTS, held(3, np.int32))
    for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"):
        yield from rows(op, TIED, held(1))
        yield from rows(op, X, floats(3, 4, seed=7))
        yield from rows(op, LONGS, DIVISORS)
    yield from rows("Equal", TRUTHS, held(True, bool), was=True)
    for op in ("And", "Or", "Xor"):
        yield from rows(op, TRUTHS, floats(3, 1, seed=11) > 0)
        yield from rows(op, TRUTHS, held([True, False, True, False], bool))
    yield from rows("Not", TRUTHS)
    for op in ("Min", "Max", "Sum", "Mean"):
        yield from rows(op, X, floats(3, 1, seed=2), held(floats(4, seed=3)))
        yield from rows(op, X)
        yield from rows(op, *(floats(2, 3, 4, seed=seed) for seed in range(4)))
    for op in ("Min", "Max"):
        yield from rows(op, LONGS, DIVISORS)
        yield from rows(op, INTS, held(2, np.int32), DIVISORS.astype(np.int32))
    for direction, dtype in (("LEFT", np.uint32), ("RIGHT", np.uint8)):
        yield from rows("BitShift", np.abs(LONGS).astype(dtype), held(2, dtype), direction=direction)
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield from rows(op, LONGS, DIVISORS, opsets=(18,))
        yield from rows(op, INTS, held(6, np.int32), opsets=(18,))
    yield from rows("BitwiseNot", LONGS, opsets=(18,))
    yield from rows("Where", TRUTHS, X, floats(3, 4, seed=5))
    yield from rows("Where", floats(3, 1) > 0, X, held(0))
    yield from rows("Where", TRUTHS, LONGS, DIVISORS)
    inside = np.clip(LIMITS, -100, 100)
    for kind in (7, 2, 3, 5, 6, 9, 10, 11, 12):
        yield from rows("Cast", np.abs(inside) if kind in (2, 12) else inside, to=kind)
    for kind in (2, 3, 5, 1, 10, 11):  # integers keep their low bits
        yield from rows("Cast", np.int64([0, 1, -1, 127, 128, 255, 256, 300, -129, 40000]), to=kind)
    yield from rows("Cast", TRUTHS, to=1)
    yield from rows("CastLike", X, LONGS)
    yield from rows("CastLike", LONGS, X)
    yield from rows("PRelu", X, held(floats(3, 1, seed=4)))
    for x, slope in (
        (X, held(floats(4, seed=4))),
        (X, held([0.3])),
        (X, floats(2, 3, 4, seed=4)),
        (X4, held(floats(3, 1, 1))),
    ):
        yield from rows("PRelu", x, slope)
    yield from rows("Clip", X, held(-1), held(1))
    yield from rows("Clip", X, held(-1))
    yield from rows("Clip", LONGS, held(-2, np.int64), held(3, np.int64))
    yield from rows("Clip", X, floats(seed=1), floats(seed=2))
    yield from rows("Clip", X, opsets=(7,), min=-0.5, max=0.75)
    yield from rows("Dropout", X, held(0.5), held(False, bool), opsets=(13,), outputs=2)
    yield from rows("Dropout", X, opsets=(7, 10, 12, 22))
    for op in ("Gelu", "FastGelu"):
        yield from rows(op, X, domain=MICROSOFT)
    yield from rows("BiasGelu", X, held(floats(4)), domain=MICROSOFT)


def moves() -> Iterator[Row]:
    """Operators that move, pick and fill."""
    new, old, sets = (13, 21, 23), (9, 11), (9, 13, 21)
    column, thin = floats(3, 1), floats(1, 3, 1, 4)
    yield from rows("Squeeze", thin, longs(-2), opsets=new)
    yield from rows("Squeeze", thin, opsets=(9, 21))
    yield from rows("Squeeze", thin, opsets=old, axes=[0])
    yield from rows("Unsqueeze", X, held(1, np.int64), opsets=new, was=True)
    yield from rows("Unsqueeze", X, longs(3, 0), opsets=new)
    yield from rows("Unsqueeze", X, opsets=old, axes=[0, 2])
    yield from rows("Split", floats(7, 4), opsets=(18,), outputs=3, num_outputs=3)
    yield from rows("Split", floats(6, 4), longs(1, 3), opsets=(13, 18), outputs=2, axis=-1)
    yield from rows("Split", floats(6, 4), opsets=(9, 11, 13), outputs=3)
    yield from rows("Split", floats(6, 4), opsets=old, outputs=2, split=[2, 4])
    yield from rows("Transpose", X4, opsets=sets, perm=[0, 3, 1, 2])
    yield from rows("Transpose", X4, opsets=sets)
    yield from rows("Transpose", floats(seed=3))
    yield from rows("Flatten", X4, axis=-1, opsets=(11, 21))
    for axis in (0, 1, 2, 4):
        yield from rows("Flatten", X4, axis=axis, opsets=sets)
    yield from rows("Concat", X, floats(2, 3, 2), axis=-1)
    yield from rows("Concat", X, held(floats(2, 1, 4)), X, axis=1, opsets=(9, 13))
    yield from rows("Concat", LONGS, LONGS, axis=-2)
    for target in ((0, -1, 5), (2, -1), (0, 0, 20), (-1,)):
        yield from rows("Reshape", X4, longs(*target), opsets=sets)
    yield from rows("Reshape", floats(1), EMPTY)
    yield from rows("Slice", X4, opsets=(9,), was=True, starts=[1, -2], ends=[2, 100])
    yield from rows("Slice", X4, opsets=(9,), starts=[-3], ends=[-1], axes=[3])
    bounds: tuple[tuple[Any, ...], ...] = (
        ((3, 100), (0, -100), (2, 3), (-1, -2)), ((0, 1), (1, 3), (0, 2)), ((1, -2), (2, 100)),
        ((-3,), (-1,), (3,), (1,)), ((-1,), (-100,), (3,), (-1,)), ((0,), (100,), (3,), (2,)),
        ((1,), (2**63 - 1,), (2,), (3,)), ((-1,), (-(2**63),), (-1,), (-3,)), ((-100,), (2,), (1,)),
    )  # fmt: skip
    for bound in bounds:
        yield from rows("Slice", X4, *(longs(*part) for part in bound), opsets=(10, 13))
    yield from rows("Slice", X4, held([1], np.int32), held([3], np.int32), held([3], np.int32))
    for places, axis in ((([0, 1], [-1, 1]), 1), (-1, 1), ((0, 2), -1), (1, 0)):
        yield from rows("Gather", floats(3, 3, 4), held(places, np.int64), axis=axis, opsets=(11, 13))
    yield from rows("Gather", held(floats(7, 3)), np.int64([[0, -2], [6, 3]]))
    yield from rows("Gather", X4, np.int32([[0, -2]]), axis=-1)
    spread = np.random.default_rng(0)
    yield from rows("GatherElements", X, held(spread.integers(-3, 3, (2, 2, 4)), np.int64), axis=1, opsets=(11, 17))
    yield from rows("GatherElements", X, np.int64([[[1, 0, 2, -1]] * 3] * 2), axis=2)
    yield from rows("GatherND", X, longs(((1,), (0,)), ((2,), (-1,))), batch_dims=1)
    for places in ([[0, 1], [1, -1]], [[[0, 1, 2]], [[1, 2, -3]]], [[0], [-1]]):
        yield from rows("GatherND", X, held(places, np.int64), opsets=(11, 17))
    across, update = held([[[-1, 0, 1, 2]] * 3] * 2, np.int64), floats(2, 3, 4, seed=2)
    yield from rows("ScatterElements", X, across, update, axis=-1, opsets=(11, 17))
    yield from rows("Scatter", X, across, update, axis=-1, opsets=(9,))
    yield from rows("Scatter", X, held([[[2, -2]], [[0, 1]]], np.int64), floats(2, 1, 2), axis=1, opsets=(9,))
    yield from rows("ScatterND", X, longs((0, 1), (1, -1)), floats(2, 4, seed=2), opsets=(11, 17))
    yield from rows("ScatterND", X, longs((0, 1, 2), (1, 0, 3)), floats(2, seed=2))
    for opset, reductions in ((16, ("add", "mul")), (18, ("add", "mul", "min", "max"))):
        for reduction in reductions:
            twice = held([[[1, 1, 2, 2]] * 3] * 2, np.int64)
            yield from rows("ScatterElements", X, twice, update, axis=2, opsets=(opset,), reduction=reduction)
            yield from rows("ScatterND", X, longs((0, 1), (0, 1), (1, 2)), floats(3, 4, seed=2), opsets=(opset,),
                            reduction=reduction)  # fmt: skip
    values, places = held([0.5, 2]), np.int64([[0, 2], [1, -1]])
    yield from rows("OneHot", places, longs(3), values, axis=0, opsets=(9, 11), was=True)
    yield from rows("OneHot", np.int64([[0, 2], [1, 7]]), held(3, np.int64), values, opsets=(11,), was=True)
    yield from rows("OneHot", places, held(3, np.int64), held([-1, 5], np.int64), axis=1, opsets=(11,))
    for axis, condition in ((1, [True, False, True]), (-1, [False, True])):
        yield from rows("Compress", X, held(condition, bool), axis=axis, opsets=(11,), was=True)
    yield from rows("Compress", X, held([False, True, True, False, True], bool), opsets=(9,))
    for upper in (0, 1):
        for k in (-1, 0, 2):
            yield from rows("Trilu", X, held(k, np.int64), upper=upper)
    yield from rows("Trilu", X, held(1, np.int64), upper=0, domain=MICROSOFT)
    yield from rows("EyeLike", floats(3, 3), k=1, dtype=1, opsets=(9, 22))
    yield from rows("EyeLike", floats(3, 4), opsets=(9,))
    yield from rows("Expand", column, longs(2, 1, 4))
    yield from rows("Expand", column, longs(1))
    yield from rows("Tile", X, longs(1, 2, 3))
    yield from rows("Shape", X4, opsets=(15, 21), start=-2, end=100)
    yield from rows("Shape", X4, opsets=(9,), was=True)
    yield from rows("Size", X4, opsets=(9, 21), was=True)
    for options in ({"mode": "CRD"}, {"mode": "DCR"}, {}):
        yield from rows("DepthToSpace", floats(2, 8, 3, 4), blocksize=2, opsets=(11, 13), **options)
    yield from rows("SpaceToDepth", floats(2, 3, 4, 6), blocksize=2, opsets=(9, 13))
    for mode in ("reflect", "constant", "edge"):
        for pads in ((0, 0, -1, 2, 0, 0, 1, -2), (0, 1, 0, 2, 0, 0, 1, 0)):
            yield from rows("Pad", X4, longs(*pads), mode=mode, opsets=(11, 13, 21))
        yield from rows("Pad", X4, pads=[0, 1, 0, 2, 0, 0, 1, 0], mode=mode, opsets=(9,))
        yield from rows("Pad", X4, longs(1, 2, 1, 0), held(2.5), longs(-2, 1), mode=mode, opsets=(18,))
    yield from rows("Pad", X4, longs(0, 0, 0, 7, 0, 0, 0, 6), mode="wrap", opsets=(19,))
    yield from rows("Pad", LONGS, longs(0, 1, 0, 0, 0, 1), held(7, np.int64))
    yield from rows("Pad", X, longs(0, 0, 1, 0, 2, 0), held(0.5), mode="constant", domain=MICROSOFT)
    for mode in ("nearest", "linear"):
        yield from rows("Upsample", X4, scales=[1.0, 1.0, 1.5, 1.2], mode=mode, opsets=(7,), was=True)
        for scales in ((1, 1, 2, 3), (1, 1, 1.5, 1.2)):
            yield from rows("Upsample", X4, held(scales), mode=mode, opsets=(9,))
        yield from rows("Resize", X4, held([1, 1, 2, 1.5]), mode=mode, opsets=(10,))
    nothing, region = held(np.zeros(0)), held([0, 0, 0.1, 0.2, 1, 1, 0.9, 0.8])
    for mode in ("linear", "nearest", "cubic"):
        for way in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
            options = {"mode": mode, "coordinate_transformation_mode": way}
            yield from rows("Resize", X4, nothing, held([1, 1, 1.7, 0.6]), opsets=(11, 18), **options)
            yield from rows("Resize", X4, None, None, longs(2, 3, 7, 3), opsets=(13, 19), **options)
        cropped = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize"}
        yield from rows("Resize", X4, region, nothing, longs(2, 3, 7, 3), opsets=(11,), was=mode == "linear", **cropped)
        yield from rows("Resize", X4, region, held([1, 1, 1.7, 0.6]), opsets=(13, 19), **cropped)
    for policy in ("not_larger", "not_smaller"):
        yield from rows("Resize", X4, None, None, longs(7, 9), axes=[2, 3], mode="linear", opsets=(18,),
                        keep_aspect_ratio_policy=policy)  # fmt: skip
    grid = np.random.default_rng(3).uniform(-1.4, 1.4, (2, 3, 2, 2)).astype(np.float32)
    for opset, modes in ((16, ("bilinear", "nearest", "bicubic")), (20, ("linear", "nearest", "cubic"))):
        for mode in modes:
            for padding in ("zeros", "border", "reflection"):
                yield from rows("GridSample", X4, held(grid), mode=mode, padding_mode=padding, opsets=(opset,),
                                align_corners=int(padding == "border"))  # fmt: skip
    yield from rows("GridSample", X4, held(grid), mode="bicubic", padding_mode="border", domain=MICROSOFT)
    for corners in (0, 1):
        yield from rows("AffineGrid", floats(2, 2, 3), longs(2, 3, 4, 5), align_corners=corners, opsets=(20,))
    yield from rows("MaxUnpool", floats(1, 1, 2, 2), held([[[[5, 7], [13, 15]]]], np.int64), opsets=(11,),
                    kernel_shape=[2, 2], strides=[2, 2])  # fmt: skip


def layers() -> Iterator[Row]:
    """Layers, normalizations and reductions."""
    positive = [held(np.abs(floats(n, seed=n)) + 0.2) for n in range(9)]
    centre, bias = held(floats(3, seed=3)), held(floats(3, seed=2))
    for training in (1, 0):
        yield from rows("BatchNormalization", X4, positive[3], bias, centre, positive[3], epsilon=0.1, opsets=(15,),
                        was=True, training_mode=training, outputs=3 if training else 1)  # fmt: skip
    for x in (X4, X, floats(2, 3), floats(2, 3, 2, 2, 2)):
        yield from rows("BatchNormalization", x, positive[3], bias, centre, positive[3], opsets=(9, 14, 15))
    scale5, bias5 = positive[5], held(floats(5, seed=2))
    yield from rows("LayerNormalization", X4, scale5, bias5, outputs=3, was=True)
    yield from rows("LayerNormalization", X4, held(floats(1, 5)), axis=2, was=True)
    yield from rows("LayerNormalization", X4, scale5, bias5)
    yield from rows("LayerNormalization", X4, held(floats(4, 5)), held(floats(4, 5, seed=2)), axis=2, epsilon=0.1)
    yield from rows("LayerNormalization", X4, held(floats(3, 4, 5)), axis=-3)
    yield from rows("SkipLayerNormalization", X, floats(2, 3, 4, seed=2), positive[4], held(floats(4)), held(floats(4)),
                    domain=MICROSOFT)  # fmt: skip
    yield from rows("Attention", X, held(floats(4, 12)), held(floats(12)), num_heads=2, domain=MICROSOFT)
    for x in (X4, X, floats(2, 3, 2, 2, 2)):
        yield from rows("InstanceNormalization", x, positive[3], bias, epsilon=0.1, opsets=(9, 22))
    yield from rows("GroupNormalization", floats(2, 4, 3, 3), positive[4], held(floats(4)), num_groups=2, opsets=(21,))
    yield from rows("GroupNormalization", floats(2, 4, 3, 3), positive[2], held(floats(2)), num_groups=2, opsets=(18,),
                    was=True)  # fmt: skip
    yield from rows("MeanVarianceNormalization", X4, axes=[1, 2], opsets=(13,))
    yield from rows("MeanVarianceNormalization", X4, opsets=(9,))
    yield from rows("RMSNormalization", X4, held(floats(4, 5)), axis=2, epsilon=0.1, opsets=(23,))
    yield from rows("LRN", floats(2, 7, 4, 5), size=3, alpha=0.02, beta=0.6, bias=1.5, opsets=(9, 13))
    yield from rows("LRN", floats(2, 7, 4, 5), size=5, alpha=1.0)
    image = floats(2, 3, 7, 6)
    for op in ("AveragePool", "MaxPool"):
        average = op == "AveragePool"
        more = {"count_include_pad": 1} if average else {}
        window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 2, 1]}
        yield from rows(op, image, opsets=(7, 11, 22), **window, **more)
        yield from rows(op, image, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, opsets=(10, 22),
                        **more)  # fmt: skip
        yield from rows(op, image, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1, opsets=(10, 22))
        yield from rows(op, image, opsets=(7, 22), **window)
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            yield from rows(op, image, kernel_shape=[3, 2], strides=[2, 2], auto_pad=mode, opsets=(7, 22))
        yield from rows(op, floats(2, 3, 9, 9), kernel_shape=[3, 2], dilations=[2, 2], strides=[2, 3], ceil_mode=1,
                        opsets=(19, 22) if average else (11, 22))  # fmt: skip
        yield from dropped_windows(op)
        yield from rows(op, floats(2, 3, 9), kernel_shape=[3], strides=[2], pads=[1, 1], opsets=(11, 22))
        yield from rows(op, floats(2, 3, 4, 5, 6), kernel_shape=[2, 3, 2], pads=[1, 0, 1, 0, 1, 1], opsets=(11, 22))
    yield from rows("LpPool", image, kernel_shape=[2, 2], strides=[2, 4], ceil_mode=1, opsets=(18, 22), was=True)
    for p in (1, 2, 3):
        yield from rows(
            "LpPool", image, kernel_shape=[3, 2], p=p, strides=[2, 1], pads=[1, 0, 1, 1], opsets=(7, 11, 22)
        )
    for op in ("GlobalMaxPool", "GlobalAveragePool"):
        for x in (X4, X, floats(2, 3, 2, 3, 4)):
            yield from rows(op, x, opsets=(7, 22))
    yield from rows("GlobalLpPool", X4, p=3)
    yield from rows("MaxRoiPool", X4, held([[0, 0, 0, 3, 2], [1, 1, 1, 4, 3]]), pooled_shape=[2, 2])
    regions, images = held([[0, 0, 3, 2], [1, 1, 4, 3], [0.5, 0.7, 2.2, 3.1]]), longs(0, 1, 1)
    size = {"output_height": 2, "output_width": 3, "sampling_ratio": 2}
    yield from rows("RoiAlign", X4, regions, images, opsets=(10, 16), **size)
    regions = held([[1, 2, 30, 22], [0, 0, 19, 12], [3, 3, 3, 3], [5, 5, 2, 2], [2, 3, 17.5, 4], [-3, -2, 30, 14]])
    images, image = longs(0, 1, 1, 0, 1, 0), floats(2, 3, 13, 20)
    for ratio in (2, 0):
        for scale in (0.5, 1.0):
            size = {"output_height": 3, "output_width": 2, "sampling_ratio": ratio, "spatial_scale": scale}
            yield from rows("RoiAlign", image, regions, images, opsets=(10, 16), was=scale == 0.5, **size)
            yield from rows("RoiAlign", image, regions, images, coordinate_transformation_mode="output_half_pixel",
                            opsets=(16,), **size)  # fmt: skip
    yield from contractions()
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for axis in (1, 2, 3):
            yield from rows(op, X4, axis=axis, opsets=(9, 11, 13))
        yield from rows(op, X4, opsets=(9, 11, 13))
        yield from rows(op, TIED * 100, axis=-1, opsets=(11, 13))
    yield from reductions()


def dropped_windows(op: str) -> Iterator[Row]:
    """Pools in ceil_mode, whose last window is none where it begins behind the input."""
    options = {"ceil_mode": 1}
    average = op == "AveragePool"
    for include in ({}, {"count_include_pad": 1}) if average else ({},):
        for kernel, strides, pads, was in (
            ([1, 1], [2, 2], [0, 0, 0, 0], True), ([1, 2], [2, 3], [0, 0, 0, 0], False),
            ([2, 3], [4, 2], [0, 1, 0, 1], True), ([2, 2], [2, 2], [1, 0, 1, 1], False),
            ([1, 3], [4, 3], [0, 2, 0, 0], False), ([3, 1], [2, 3], [2, 0, 2, 0], False),
        ):  # fmt: skip
            window = {"kernel_shape": kernel, "strides": strides, "pads": pads, **options, **include}
            yield from rows(op, floats(2, 3, 6, 8), opsets=(22, 11), was=was, **window)
        for dilations in ([2, 1], [1, 2]):
            yield from rows(op, floats(2, 3, 6, 8), kernel_shape=[2, 2], strides=[4, 4], pads=[0, 1, 1, 1], **options,
                            dilations=dilations, opsets=(19, 22) if average else (11, 22), **include)  # fmt: skip
        for mode in ("SAME_UPPER", "VALID"):
            yield from rows(op, floats(2, 3, 6, 8), kernel_shape=[2, 3], strides=[2, 3], auto_pad=mode, **options,
                            opsets=(11, 22), **include)  # fmt: skip
        yield from rows(op, floats(2, 3, 8), kernel_shape=[1], strides=[3], opsets=(11, 22), **options, **include)
        yield from rows(op, floats(2, 3, 4, 5, 8), kernel_shape=[1, 2, 2], strides=[2, 2, 4], opsets=(11, 22),
                        **options, **include)  # fmt: skip


def contractions() -> Iterator[Row]:
    """Convolutions and matrix products."""
    x, kinds = floats(2, 4, 7, 6), (11, 22)

    def weight(*shape: int) -> Any:
        return held(floats(*shape, seed=3, scale=0.4))

    bias = held(floats(6))
    yield from rows("Conv", x, weight(6, 2, 3, 2), bias, group=2, dilations=[2, 1], pads=[1, 0, 2, 1], opsets=kinds)
    yield from rows("Conv", x, weight(8, 1, 3, 3), group=4, strides=[2, 3])
    yield from rows("Conv", x, floats(6, 4, 3, 2, seed=5))
    yield from rows("Conv", floats(2, 4, 9), weight(6, 2, 3), group=2, dilations=[2], opsets=kinds)
    yield from rows("Conv", floats(2, 4, 5, 4, 6), weight(6, 2, 1, 2, 3), group=2, pads=[1, 0, 1, 0, 1, 0])
    yield from rows("ConvTranspose", x, weight(4, 3, 3, 2), bias, group=2, strides=[2, 3], pads=[1, 0, 1, 1],
                    output_padding=[1, 2], opsets=kinds)  # fmt: skip
    yield from rows("ConvTranspose", x, weight(4, 6, 3, 2), dilations=[2, 1])
    yield from rows(
        "ConvTranspose", x, weight(4, 6, 3, 3), strides=[2, 3], output_shape=[15, 17], auto_pad="SAME_UPPER"
    )
    yield from rows("ConvTranspose", x, weight(4, 6, 3, 3), strides=[2, 3], output_shape=[14, 18])
    yield from rows("ConvTranspose", floats(2, 4, 9), weight(4, 6, 3), bias, strides=[2], output_padding=[1])
    yield from rows("ConvTranspose", floats(2, 4, 5, 4, 6), weight(4, 3, 3, 2, 3), bias, group=2, strides=[2, 2, 1])
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield from rows("Conv", x, weight(6, 4, 4, 3), auto_pad=mode, strides=[2, 1])
        yield from rows("Conv", floats(2, 4, 9), weight(6, 4, 3), auto_pad=mode, strides=[2])
        yield from rows("ConvTranspose", x, weight(4, 6, 3, 4), auto_pad=mode, strides=[2, 3])
    yield from rows("Gemm", floats(4, 3), floats(5, 4, seed=2), held(floats(3, 5)), transA=1, transB=1, alpha=0.5,
                    beta=0.3, opsets=(7, 9, 11, 13))  # fmt: skip
    for c in (held(floats(1, 5)), held(floats(3, 1)), held(0.7), floats(5, seed=8), held(floats(1))):
        yield from rows("Gemm", floats(3, 4), held(floats(4, 5, seed=2)), c, beta=2.0)
    yield from rows("Gemm", floats(3, 4), floats(4, 5, seed=2))
    for a, b in (
        ((2, 1, 3, 4), (3, 4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 3, 4), (4,)),
        ((4,), (2, 4, 5)),
    ):
        yield from rows("MatMul", floats(*a), floats(*b, seed=2))
    for equation, shapes in (
        ("...ij,...jk->...ik", ((2, 3, 4), (2, 4, 5))), ("ii->i", ((3, 3),)), ("ij->", ((3, 4),)),
        ("ij, jk -> k i", ((3, 4), (4, 5))), ("abc,cd,de->abe", ((2, 3, 4), (4, 5), (5, 2))), ("ba", ((3, 4),)),
    ):  # fmt: skip
        yield from rows("Einsum", *(floats(*shape, seed=i) for i, shape in enumerate(shapes)), equation=equation)
    for exclusive in (1, 0):
        for reverse in (1, 0):
            yield from rows("CumSum", X4, held(-3, np.int32), exclusive=exclusive, reverse=reverse, opsets=(11, 14))


def reductions() -> Iterator[Row]:
    """Reductions and the places of extremes."""
    alone = {"noop_with_empty_axes": 1}
    for name in ("Max", "Min", "Sum", "Mean", "Prod", "LogSumExp", "LogSum", "SumSquare", "L1", "L2"):
        op, x = f"Reduce{name}", np.abs(X4) + np.float32(0.1) if name == "LogSum" else X4
        by_input = (13, 18) if name == "Sum" else (18, 20) if name in ("Max", "Min") else (18,)
        by_attribute = (9, 11) if name == "Sum" else (9, 11, 13)
        yield from rows(op, x, longs(-1, 0), opsets=by_input[-1:], keepdims=0)
        yield from rows(op, x, opsets=by_input[-1:], was=name in ("LogSum", "SumSquare", "L1", "L2"), **alone)
        yield from rows(op, x, EMPTY, opsets=by_input, **alone)
        yield from rows(op, x, EMPTY, opsets=by_input)
        yield from rows(op, x, longs(2), opsets=by_input, **alone)
        yield from rows(op, x, opsets=by_attribute, axes=[1, 3], keepdims=0)
        yield from rows(op, x, opsets=by_attribute)
    for op in ("ReduceMax", "ReduceMin"):
        yield from rows(op, TRUTHS, longs(1), opsets=(20,), was=True)
        yield from rows(op, INTS, axes=[1])
    yield from rows("ReduceSum", INTS, longs(1))
    yield from rows("ReduceLogSumExp", floats(3, 5, scale=60), axes=[1])
    for op in ("ArgMax", "ArgMin"):
        yield from rows(op, TIED, axis=-1, select_last_index=1, keepdims=0)
        yield from rows(op, TIED, axis=1, opsets=(9, 11, 13))
        yield from rows(op, TIED, opsets=(9, 13))
    for opset, dtype in ((10, np.int8), (13, np.uint8), (21, np.int8)):
        yield from rows("QuantizeLinear", X4, held(0.1), held(3, dtype), opsets=(opset,))
    yield from rows("QuantizeLinear", X4, held([0.1, 0.2, 0.3]), held([1, 2, 3], np.uint8), axis=1)
    yield from rows("QuantizeLinear", X4, held(0.1), opsets=(21,), output_dtype=3)
    yield from rows("DequantizeLinear", np.abs(LONGS).astype(np.uint8), held(0.1), held(3, np.uint8))
    yield from rows("ConstantOfShape", longs(2, 3), opsets=(9,))


TABLE: tuple[Row, ...] = (*elementwise(), *moves(), *layers())
