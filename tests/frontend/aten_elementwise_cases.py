"""Elementwise operators of aten with all their options: arguments by operator, keywords last."""

from __future__ import annotations

import torch

from .aten_inputs import (
    INF,
    Case,
    backwards,
    column,
    halves,
    is_high,
    is_positive,
    ix,
    iy,
    lx,
    matrix,
    rows,
    scalar,
    small,
    special,
    u8,
    vector,
    volume,
    x,
    y,
)  # fmt: skip

CASES: dict[str, list[Case]] = {}
THREE, TWO_AND_A_HALF = torch.tensor(3), torch.tensor(2.5)
BOUNDARIES = torch.tensor([-2.0, -0.5, 0.0, 0.5, 0.5, 3.0])
SLOPES = torch.tensor([0.25, -0.5, 1.5, 0.1, 0.0, 2.0])


def _add(names: str, *cases: Case) -> None:
    """Adds cases to operators, which are named without their namespace."""
    for name in names.split():
        CASES.setdefault(f"aten::{name}", []).extend(cases)


_add("abs.default ceil.default floor.default neg.default sign.default trunc.default square.default round.default",
     (x,), (special,), (x.then(lambda v: v.permute(0, 2, 3, 1)),), (scalar,), (ix,), (lx,))  # fmt: skip
_add("acos.default acosh.default asin.default asinh.default atan.default atanh.default cos.default cosh.default "
     "erf.default exp.default expm1.default log.default log2.default log10.default log1p.default rsqrt.default "
     "sigmoid.default sin.default sinh.default sqrt.default tan.default tanh.default reciprocal.default",
     (small,), (x,), (special[1:],), (ix,), (is_high,), (scalar,))  # fmt: skip
_add("selu.default silu.default softplus.default gelu.default elu.default celu.default leaky_relu.default "
     "softshrink.default hardsigmoid.default hardswish.default",
     (small,), (x,), (special[3:],), (scalar,))  # fmt: skip
_add("relu.default relu6.default", (special[1:],), (x,), (scalar,))
_add("relu_.default relu6_.default hardtanh_.default hardswish_.default hardsigmoid_.default sigmoid_.default", (x,))
_add("add_.Tensor sub_.Tensor mul_.Tensor div_.Tensor", (x, y))
_add("silu_.default leaky_relu_.default celu_.default elu_.default selu_.default tanh_.default", (x,))
_add("leaky_relu.default", (x, 0.3), (x, -0.3), (x, 1.5), (x, 0))
_add("elu.default", (x, 0.7), (x, 0.7, 1.3, 0.5), (x, -0.7), (x, 2))
_add("celu.default", (x, 0.7), (x, -0.7), (x, 2))
_add("rrelu.default", (x,), (x, 0.1, 0.5))
_add("gelu.default", (x, {"approximate": "tanh"}), (special[3:], {"approximate": "tanh"}))
_add("softplus.default", (x, 2.0, 1.0), (x, 0.5, 3), (x, 2))
_add("softshrink.default", (x, 1.2), (x, 0))
_add("isfinite.default isinf.default isnan.default", (special,), (x,), (ix,), (is_high,))
_add("bitwise_not.default", (ix,), (is_high,), (u8,))
_add("logical_not.default", (special,), (x,), (ix,), (is_high,))
_add("logical_and.default logical_or.default logical_xor.default", (special, backwards), (is_high, is_positive),
     (ix, is_positive), (ix, x), (ix, vector))  # fmt: skip
_add("round.decimals", (x, {"decimals": 2}), (x.then(lambda v: v * 100), {"decimals": -1}), (x, {"decimals": 0}),
     (halves.then(lambda v: v * 0.1), {"decimals": 1}))  # fmt: skip
_add("prelu.default", (x, SLOPES[:3]), (x, SLOPES[:1]), (vector, SLOPES[:1]), (special, SLOPES[:1]), (rows, SLOPES),
     (scalar, SLOPES[:1]), (volume, SLOPES[:2]))  # fmt: skip

# ------------------------------------------------------------------ limits
_add("clamp_min.default clamp_max.default", (x, 0.3), (special[1:], 0.3), (ix, 1), (ix, 1.5), (lx, 2))
_add("clamp_min_.default clamp_max_.default clamp_.default", (x, 0.3))
_add("clamp.default", (x, None, 0.5), (x, 0.5), (x, 1.0, -1.0), (special[1:], -0.3, 0.7), (ix, -2, 3), (ix, -1.5, 2.5))
_add("hardtanh.default", (x, -0.5, 2.0), (special[1:],), (ix, -2, 3))
_add("clamp.Tensor", (x, y, y.then(lambda v: v + 1)), (x, vector), (x, None, vector),
     (x, vector, vector.then(lambda v: v - 1)), (vector, x), (ix, vector))  # fmt: skip

# ------------------------------------------------------------------ two tensors, or a tensor and a number
_FLOATS = ((x, y), (x, vector), (vector, x), (x, scalar), (scalar, x))
_INTEGERS = ((ix, iy), (ix, y), (x, iy), (ix, iy.then(lambda v: v.long())), (x, THREE), (ix, TWO_AND_A_HALF))
_BOOLEANS = ((is_high, is_positive), (is_high, y), (is_high, iy))
_SPECIAL = ((special, backwards), (column, special))
_NUMBERS = ((x, 1.7), (x, -3), (ix, 3), (ix, -2), (ix, 1.5), (scalar, 2.5), (u8, 3))
_COMPARED = "eq.{0} ne.{0} lt.{0} le.{0} gt.{0} ge.{0}"
_add(_COMPARED.format("Tensor") + " add.Tensor mul.Tensor div.Tensor", *_SPECIAL, *_FLOATS, *_INTEGERS, *_BOOLEANS)
_add("sub.Tensor rsub.Tensor fmod.Tensor remainder.Tensor floor_divide.default atan2.default",
     *_SPECIAL, *_FLOATS, *_INTEGERS)  # fmt: skip
_add("maximum.default minimum.default max.other min.other", *_FLOATS, *_INTEGERS, *_BOOLEANS)
_add("logaddexp.default", *_SPECIAL, *_FLOATS)
_add("add.Tensor sub.Tensor rsub.Tensor", (x, y, {"alpha": 2.5}), (ix, iy, {"alpha": 3}), (x, iy, {"alpha": 2.5}))
_add("add.Scalar sub.Scalar rsub.Scalar", (x, 1.7, 2), (ix, 3, 2), (x, 2), (ix, 1.5), (ix, 7))
_add(_COMPARED.format("Scalar") + " mul.Scalar", *_NUMBERS, (special, 1.0), (is_high, 1), (ix, INF))
_add("div.Scalar remainder.Scalar fmod.Scalar", *_NUMBERS, (special, 1.0))
_add("remainder.Scalar_Tensor", (7, y), (7, iy))
_add("floor_divide.Scalar", (ix, -3), (x, 0.3))
for _mode in (None, "floor", "trunc"):
    _rounded = {"rounding_mode": _mode}
    _add("div.Tensor_mode", (x.then(lambda v: v * 10), torch.tensor(0.1), _rounded), (special, backwards, _rounded),
         (x, y, _rounded), (x, vector, _rounded), (ix, iy, _rounded), (ix, y, _rounded),
         (lx, iy, _rounded))  # fmt: skip
    _add("div.Scalar_mode", (x, 0.3, _rounded), (ix, 3, _rounded), (ix, -1.5, _rounded))
_add("bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor",
     (ix, iy), (is_high, is_positive), (is_high, iy), (u8, u8.then(lambda v: v.flip(3))))  # fmt: skip
_add("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar __and__.Scalar __or__.Scalar __xor__.Scalar",
     (ix, 6), (is_high, True), (is_high, 2))  # fmt: skip
_add("bitwise_or_.Tensor bitwise_and_.Tensor bitwise_xor_.Tensor", (ix, iy))
_add("bitwise_or_.Scalar bitwise_and_.Scalar bitwise_xor_.Scalar", (ix, 5))
_add("pow.Tensor_Scalar", (x, 2), (x, 3), (x, 0), (x, 1), (x, -1), (x, -2), (x, 0.5), (x, -0.5), (x, 2.0), (x, 1.7),
     (ix, 0), (ix, 2), (ix, 3), (ix, 5), (ix, 0.5), (ix, 2.0), (special, 2), (special, 0.5), (special, 3.0), (u8, 3),
     (x.then(torch.abs), 1.7))  # fmt: skip
_add("pow.Scalar", (2, x), (2.5, x), (2.5, ix), (2, ix.then(torch.abs)), (-2, ix), (1, x))
_add("pow.Tensor_Tensor", (x.then(torch.abs), y), (x, y), (x, iy), (ix, iy), (column, special))

# ------------------------------------------------------------------ choices
_add("where.self", (is_high, x, y), (is_high, x, vector), (is_high, ix, y), (is_high, scalar, x),
     (vector.then(lambda v: v > 0), x, torch.tensor(2.0)), (is_high, ix, iy), (is_high, is_positive, is_high),
     (is_high, ix, torch.tensor(1.5)), (special.then(lambda v: v > 0), special, backwards))  # fmt: skip
_add("where.ScalarOther", (is_high, x, 1.5), (is_high, ix, 2), (is_high, ix, 1.5))
_add("where.ScalarSelf", (is_high, 1.5, x))
_add("where.Scalar", (is_high, 1.5, 2.0), (is_high, 1, 2))
_add("masked_fill.Scalar", (x, is_high, 1.5), (x, is_high, -INF), (x, vector.then(lambda v: v > 0), 2),
     (ix, is_high, 7), (is_high, is_positive, True), (special, special.then(lambda v: v > 0), 0))  # fmt: skip
_add("masked_fill_.Scalar", (x, is_high, 1.5))
_add("masked_fill.Tensor masked_fill_.Tensor", (x, is_high, torch.tensor(1.5)), (x, is_high, scalar))
_add("isin.Tensor_Tensor", (x, vector), (ix, torch.tensor([1, 3, -2], dtype=torch.int32)), (ix, iy),
     (ix, torch.tensor([1, 3, -2]), {"invert": True}))  # fmt: skip
_add("bucketize.Tensor", (x, BOUNDARIES), (x, BOUNDARIES, {"out_int32": True}), (halves, BOUNDARIES),
     (halves, BOUNDARIES, {"right": True}), (ix, torch.tensor([-3, 0, 2])), (special, BOUNDARIES),
     (matrix, BOUNDARIES, {"right": True}))  # fmt: skip
