"""Pools, convolutions, normalizations, products and interpolation of aten with all their options."""

from __future__ import annotations

import math

import torch

from .aten_inputs import (
    INF,
    Case,
    In,
    below,
    integers,
    is_high,
    isequence,
    ix,
    matrix,
    rows,
    scalar,
    sequence,
    special,
    vector,
    volume,
    x,
    y,
)  # fmt: skip

CASES: dict[str, list[Case]] = {}
_generator = torch.Generator().manual_seed(7)


def _weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_generator)


B2, B3, B4, B5, B6, B7 = (_weight(size) for size in range(2, 8))
MEAN_OF, VAR_OF = (B3, B4, B6), (_weight(3).abs(), _weight(4).abs(), _weight(6).abs())


def _add(names: str, *cases: Case) -> None:
    """Adds cases to operators, which are named without their namespace."""
    for name in names.split():
        CASES.setdefault(f"aten::{name}", []).extend(cases)


def _turned(tensor: In) -> In:
    """Returns a tensor with its last two dimensions swapped."""
    return tensor.then(lambda v: v.transpose(-1, -2))


# ------------------------------------------------------------------ products
_add("matmul.default", (vector, vector), (x, vector), (vector, _turned(x)), (sequence, _weight(9, 5)), (x, _turned(y)),
     (x, _turned(x[:, :1])), (matrix, _turned(matrix)))  # fmt: skip
_add("mm.default", (integers, _turned(integers)), (rows, _weight(6, 5)), (_turned(matrix), matrix))
_add("bmm.default", (isequence, _turned(isequence)), (sequence, _turned(sequence)))
_add("mv.default", (matrix, rows[0]))
_add("dot.default", (vector, vector))
_squares = sequence[:, :, :4]
_add("baddbmm.default", (_squares, sequence, _turned(sequence), {"beta": 0.5, "alpha": 2}),
     (_squares, sequence, _turned(sequence)), (B4, sequence, _turned(sequence), {"beta": 2, "alpha": -1}),
     (_squares.then(lambda v: v * INF), sequence, _turned(sequence), {"beta": 0}))  # fmt: skip
_add("addmm.default", (B5, rows, _weight(6, 5), {"beta": 0.5, "alpha": 2}), (B5, rows, _weight(6, 5)),
     (rows[:, :5], rows, _weight(6, 5)), (rows[:, :1], rows, _weight(6, 5)), (torch.tensor(1.5), rows, _weight(6, 5)),
     (rows[:, :5].then(lambda v: v * INF), rows, _weight(6, 5), {"beta": 0}))  # fmt: skip
_add("outer.default", (vector, torch.tensor([1, 2, 3])), (vector, special[3:6]))
_add("linear.default", (vector, _weight(5, 7), B5), (sequence, _weight(5, 9), B5), (x, _weight(5, 7)))
_add("einsum.default", ("nij,nkj->nik", [sequence, sequence]), ("ij->ji", [matrix]), ("ij->", [matrix]),
     ("ij->j", [matrix]), ("nchw,nchw->nc", [x, y]), ("...ij,...kj->...ik", [x, y]), ("i,j->ij", [vector, vector]),
     ("ncij,j->nci", [x, vector]), ("ii->i", [matrix[:, :4]]), ("nchw->nwhc", [x]))  # fmt: skip
_mask, _triangle = is_high[..., :5], torch.ones(5, 5, dtype=torch.bool).tril(1)
_add("scaled_dot_product_attention.default", (x, y, x, {"scale": 0.3}), (x, y, x, _mask.then(lambda v: v | _triangle)),
     (x, y, x), (x, y, x, None, 0.0, True), (x, y, x, _weight(5, 5)), (x, y, x, _triangle), (x, y, x, y[..., :5]),
     (sequence, sequence, sequence), (matrix, matrix, matrix), (x[:, :, :3], y, x, None, 0.0, True),
     (x, y[:, :1], x[:, :1], {"enable_gqa": True}), (x, y, x[..., :3]))  # fmt: skip

# ------------------------------------------------------------------ convolutions
W1, W1G, W1T, W1TG = _weight(4, 4, 3), _weight(6, 2, 3), _weight(4, 3, 3), _weight(4, 2, 3)
W2, W2G, W2T, W2TG = _weight(6, 3, 3, 2), _weight(6, 1, 3, 2), _weight(3, 4, 3, 2), _weight(3, 2, 3, 2)
W3, W3G, W3T = _weight(4, 2, 3, 2, 2), _weight(4, 1, 2, 2, 2), _weight(2, 3, 2, 3, 2)
_add("conv1d.default", (sequence, W1G, B6, [2], [2], [1], 2), (sequence, W1), (sequence, W1, B4, [2], [1]),
     (sequence, W1, B4, [1], [2], [2]), (sequence[0], W1, B4), (sequence, W1, None, [3]))  # fmt: skip
_add("conv1d.padding", (sequence, W1, B4, [1], "same"), (sequence, W1, B4, [2], "valid"))
_add("conv2d.default", (x[0], W2, B6), (x, W2, B6, [2, 1], [1, 2], [1, 2]), (x, W2G, None, [1, 1], [1, 1], [1, 1], 3))
_add("conv2d.padding", (x, W2, B6, [1, 1], "same", [1, 2]), (x, W2, B6, [2, 1], "valid"))
_add("conv3d.default", (volume, W3, B4, [2, 1, 2], [1, 0, 2], [1, 2, 1]), (volume, W3),
     (volume, W3G, B4, [1, 1, 1], [1, 1, 1], [1, 1, 1], 2), (volume, W3, B4, [2, 2, 2]),
     (volume[0], W3, B4))  # fmt: skip
_add("conv3d.padding", (volume, W3, B4, [1, 1, 1], "same"))
_add("conv_transpose1d.default", (sequence, W1TG, B4, [2], [0], [1], 2, [2]), (sequence, W1T),
     (sequence, W1T, B3, [2], [1], [1]), (sequence, W1T, B3, [1], [1], [0], 1, [2]), (sequence[0], W1T))  # fmt: skip
_add("conv_transpose2d.input", (x, W2TG, B6, [2, 1], [0, 1], [1, 0], 3, [1, 2]), (x, W2T),
     (x, W2T, B4, [2, 2], [1, 1], [1, 1]), (x, W2T, B4, [2, 3], [1, 0], [1, 2], 1, [2, 1]),
     (x, W2TG, B6, [2, 2], [1, 1], [0, 0], 3), (x[0], W2T))  # fmt: skip
_add("conv_transpose3d.input", (volume, W3T, B3, [2, 2, 2], [1, 1, 1], [1, 1, 1]), (volume, W3T))
_add("convolution.default", (volume, W3T, B3, [2, 1, 1], [1, 0, 0], [1, 1, 1], True, [1, 0, 0], 1),
     (x, W2, B6, [2, 1], [1, 2], [1, 2], False, [0, 0], 1), (x, W2G, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 3),
     (sequence, W1, B4, [2], [1], [2], False, [0], 1),
     (volume, W3, B4, [1, 2, 1], [1, 1, 0], [1, 1, 1], False, [0, 0, 0], 1),
     (x, W2T, B4, [2, 3], [1, 0], [2, 1], True, [1, 2], 1), (sequence, W1T, B3, [2], [1], [1], True, [1], 1),
     (x, W2TG, B6, [2, 2], [1, 1], [1, 1], True, [0, 0], 3))  # fmt: skip

# ------------------------------------------------------------------ pools


def _negative_infinities(value: torch.Tensor) -> torch.Tensor:
    return value.masked_fill(value < 0.6, -math.inf)


for _rank, _value in enumerate((sequence, x, volume), 1):
    one, two, three = ([n] * _rank for n in (1, 2, 3))
    _add(f"max_pool{_rank}d.default", (_value, two, three, one, two, True), (_value, two), (_value, three, two, one),
         (_value, three, one, one, two), (_value, two, two, [0] * _rank, one, True),
         (_value, three, two, one, one, True),
         (_value, three, three, one, one, True), (_value[0], two, one, one),
         (_value[..., :1], two, one, one, two), (_value.then(_negative_infinities), two, one, one))  # fmt: skip
    _add(f"avg_pool{_rank}d.default", (_value, two, three, one, True, True), (_value, three, two, one, True, False),
         (_value, two), (_value, three, two, one), (_value, three, two, one, True),
         (_value, three, two, one, False, False),
         (_value, three, three, one, True, True), (_value[0], two, one, one))  # fmt: skip
    _add(f"adaptive_avg_pool{_rank}d.default", *((_value, [n] * _rank) for n in (4, 1, 2, 3, 7, 10)),
         (_value[0], three))  # fmt: skip
    if _rank > 1:
        _add(
            f"avg_pool{_rank}d.default",
            (_value, three, two, one, True, False, 5),
            (_value, three, two, one, True, True, 1),
        )
        _add(f"max_pool{_rank}d_with_indices.default", (_value, three, two, one, one, True), (_value, two))
        _add(f"_adaptive_avg_pool{_rank}d.default", (_value, [3, 4, 2][:_rank]))

# ------------------------------------------------------------------ normalizations
_STATISTICS = [(v, mean, var) for v, mean, var in zip((x, sequence, rows), MEAN_OF, VAR_OF, strict=True)]
_add("batch_norm.default", (*_STATISTICS[0][:1], B3, B3, *_STATISTICS[0][1:], False, 0.1, 1e-3, False),
     (sequence, None, None, *_STATISTICS[1][1:], False, 0.1, 1e-5, False),
     (rows, B6, None, *_STATISTICS[2][1:], False, 0.1, 1e-5, False))  # fmt: skip
_add("_native_batch_norm_legit_no_training.default", (x, B3, B3, B3, VAR_OF[0], 0.1, 1e-3),
     (x, None, None, B3, VAR_OF[0], 0.1, 1e-3))  # fmt: skip
_add("_native_batch_norm_legit.no_stats", (x, B3, B3, True, 0.1, 1e-3), (x, None, None, True, 0.1, 1e-3))
_add("instance_norm.default", (x, B3, B3, B3, VAR_OF[0], False, 0.1, 1e-5, False),
     (x, B3, B3, None, None, True, 0.1, 1e-3, False),
     (sequence, None, None, None, None, True, 0.1, 1e-5, False))  # fmt: skip
_add("group_norm.default", (sequence, 2), (sequence, 2, B4, B4, 1e-3, False), (sequence, 4, B4, None), (x, 3, B3, B3),
     (rows, 3, B6, B6), (volume, 1, B2, B2))  # fmt: skip
_add("native_group_norm.default", (sequence, B4, B4, sequence.then(lambda v: v.shape[0]), 4, 9, 2, 1e-3))
_add("layer_norm.default", (x, [7], B7, None, 1e-2), (x, [7], B7, B7), (x, [5, 7]), (vector, [7]))
_add("native_layer_norm.default", (x, [7], B7, None, 1e-3), (x, [5, 7], None, None, 1e-3), (x, [7], B7, B7, 1e-3))
_add("rms_norm.default", (x, [7], B7, 1e-3), (x, [7]))
_add("softmax.int log_softmax.int", (ix, -1, torch.float32), (scalar, 0), (x, -1), (x, 1), (x, -3), (vector, 0), (x, 0),
     (x.then(lambda v: v * 50), -1))  # fmt: skip
_add("_softmax.default _log_softmax.default", (x, -1, False), (x, -3, False), (vector, 0, False))

# ------------------------------------------------------------------ interpolation, sampling, losses
_add("upsample_nearest2d.vec", (x, None, [1.7, 2.0]), (x, [8, 3], None))
_add("upsample_nearest1d.vec", (sequence, None, [1.7]), (sequence, [5], None))
_add("upsample_nearest3d.vec", (volume, None, [1.7, 1.3, 2.0]))
_add("_upsample_nearest_exact2d.vec", (x, None, [1.7, 2.0]))
_add("upsample_linear1d.vec", (sequence, None, False, [1.7]), (sequence, [5], True, None))
_add("upsample_trilinear3d.vec", (volume, [3, 8, 9], False, None))
_add("upsample_bilinear2d.vec upsample_bicubic2d.vec", (x, [8, 9], True, None), (x, None, False, [1.7, 0.6]))
_grid = y[:, :2, :, :4].then(lambda v: (v * 0.6).permute(0, 2, 3, 1))
_add("grid_sampler_2d.default", *((x, _grid, mode, border, aligned) for mode in (0, 1) for border in (0, 1, 2)
                                  for aligned in (False, True)), (x, _grid, 2, 0, False))  # fmt: skip
_add("affine_grid_generator.default", *((rows.then(lambda v: v.reshape(-1, 2, 3)), [x.then(lambda v: v.shape[0]),
     3, 4, 5],
                                         aligned) for aligned in (False, True)))  # fmt: skip
_labels = below(6)[:, 0, 0, 0]
_add("cross_entropy_loss.default", (rows, _labels), (rows, _labels, None, 0), (rows, _labels, B6.abs()),
     (rows, _labels, None, 1, 2), (rows, _labels, None, 1, -100, 0.1))  # fmt: skip
_add("mish.default log_sigmoid.default hardshrink.default frac.default", (x,))
_add("glu.default", (sequence, 1))
_add("threshold.default", (x, 0.5, 2.0))
_add("im2col.default", (x, [2, 2], [1, 1], [0, 0], [2, 1]))
_add("unfold.default", (sequence, 2, 3, 2))
