"""Operators of aten that move, take, reduce or make elements, with all their options."""

from __future__ import annotations

import torch

from .aten_inputs import (
    INF,
    Case,
    In,
    batch,
    below,
    huge,
    integers,
    is_high,
    is_positive,
    ix,
    iy,
    matrix,
    rows,
    scalar,
    sequence,
    special,
    u8,
    vector,
    volume,
    with_nan,
    x,
    y,
)  # fmt: skip

CASES: dict[str, list[Case]] = {}
TWO, FOUR = torch.tensor([2, 0]), torch.tensor([2, 0, -1, 1])
PLACES = torch.tensor([2, 0, 1, 1])
TABLE = torch.tensor([[0, 2], [1, -1]])
AT = torch.tensor([[0, 1], [3, 3], [1, 0]])
WEIGHT = torch.arange(30.0).reshape(6, 5) / 7
END = 9223372036854775807
square = matrix[:, :4]
thin = x[:, :1]
lowest, highest = (matrix.then(lambda v, end=end: v * 0 + end) for end in (-INF, INF))
truth = is_high[:, :, :2, :2]
positive = x.then(torch.relu)[:, :, :2, :2]


def _add(names: str, *cases: Case) -> None:
    """Adds cases to operators, which are named without their namespace."""
    for name in names.split():
        CASES.setdefault(f"aten::{name}", []).extend(cases)


def _at(index: In, *places: int) -> In:
    """Returns a part of indices."""
    return index[places]


# ------------------------------------------------------------------ reductions
_DIMS = (([-1], False), ([2, 3], True), ([1], False), ([-1, -3], False), ([], False), ([0], False), ([0, 2], True),
         (None, True))  # fmt: skip
_INT32, _FLOAT = {"dtype": torch.int32}, {"dtype": torch.float32}
_add("sum.dim_IntList mean.dim", *((x, *dims) for dims in _DIMS), (vector, [0]), (huge, [2]), (ix, [2], _FLOAT),
     (scalar, [0]))  # fmt: skip
_add("sum.dim_IntList", (ix, [2]), (is_high, [2], True), (u8, [2, 3]), (x, [2], _INT32), (ix, [2], _INT32))
_add("sum.default mean.default", (x,), (vector,), (scalar,), (ix, _FLOAT), (matrix.then(lambda v: v * INF),))
_add("sum.default", (ix,), (is_high,))
_add("prod.default", (vector,), (integers,), (vector, _INT32), (scalar,), (matrix.then(lambda v: v > -9),))
_add("prod.dim_int", (x, -1), (x, 2, True), (ix, 2))
_add("std.correction var.correction var_mean.correction", (x, [-1]), (x, [2, 3], {"keepdim": True}),
     (x, [1], {"correction": 0}), (x, [2], {"correction": 2}), (x, [-1], {"correction": 0.5}),
     (x, [-1, 1], {"correction": 1}), (x, [0]), (x,), (x, [0, 2], {"correction": 0}), (x, [2], {"correction": 5}),
     (vector,), (thin, [1]), (x.then(lambda v: v + 300), [-1]))  # fmt: skip
_add("std.dim var.dim", (x, [-1]), (x, [2, 3], False, True), (x, [2, 3], True))
_add("std.default var.default", (vector,), (vector, False))
_add("linalg_vector_norm.default", *((x, order, [-1]) for order in (0, 0.5, -1, 2.5, 1, 2, 3, INF, -INF)), (x,),
     (x, 2, [1, -1], True), (x, 2, None, True), (x, 2, [2], {"dtype": torch.float64}), (vector,))  # fmt: skip
_add("any.dim all.dim", (truth, 2), (truth, -1, True), (truth, 1), (positive, 2), (positive, -1), (ix, 2), (u8, 2))
_add("any.dims all.dims", (truth, [2]), (truth, [1, -1], True), (truth, None), (truth, []), (positive, [2, 3]))
_add("any.default all.default", (is_high,), (x,), (ix,), (special,))
_add("max.default min.default", (special,), (x,), (special[1:],), (ix,), (scalar,), (is_high,))
_add(
    "max.dim min.dim amax.default amin.default argmax.default argmin.default", (with_nan, 1), (lowest, 1), (highest, 1)
)
_add("max.dim min.dim", (x, -1), (x, 1, True), (ix, 2), (special, 0), (scalar, 0), (is_high, 2))
_add("amax.default amin.default", (x, [-1]), (x, [1, 2], True), (x,), (ix, [-1]), (x, [0]),
     (is_high, [2]))  # fmt: skip
_add("argmax.default argmin.default", (x,), (x, -1), (x, 1, True), (ix, 2), (ix,), (special,),
     (x, None, True), (u8, 3), (scalar,), (scalar, 0), (x, 0))  # fmt: skip
_add("median.default", (special,), (vector,), (matrix,), (integers,))
_add("median.dim", (x, -1), (sequence, 1, True), (ix, -1))
_add("cumsum.default", (x, -1), (ix, 1), (x, 0), (is_high, 2), (ix, 1, _FLOAT))
_add("cumprod.default", (x, -1), (ix, 1))
_add("sort.default", (x,), (x, 1, True))
_add("sort.stable", (ix, {"stable": True, "dim": -1}), (ix, {"stable": True, "dim": 1, "descending": True}))
_add("argsort.stable", (ix, {"stable": True, "dim": 1}))
_add("topk.default", (x, 3), (x, 2, 1, False))
_add("norm.ScalarOpt_dim", (x, 2, [1], True))
_add("logsumexp.default", (x, [1]), (x, [1, 2], True))

# ------------------------------------------------------------------ views and joins
_add("diagonal.default", (x, 0, 2, 3), (x, 2, 2, 3), (x, -1, -2, -1), (x, 0, 3, 2), (x, 1, 1, 3), (x, 9, 2, 3),
     (matrix,), (matrix, -2), (square,))  # fmt: skip
_add("unbind.int", (x, 1), (x, -1), (matrix,), (ix[:, :1], 1))
_add("expand.default broadcast_to.default", (thin, [-1, 3, 5, 7]), (vector, [2, 3, 7]), (vector, [2, -1]),
     (scalar, [3, 2]), (vector, [batch, 7]), (is_high[:, :1], [-1, 3, -1, -1]))  # fmt: skip
_add("expand_as.default", (vector, x), (thin, y))
_add("cat.default concat.default", ([ix, y], 2), ([x, y], 1), ([x, y], -1), ([ix, iy], 2), ([x, y],),
     ([is_high, is_positive], 1), ([vector, vector[:0], special], -1))  # fmt: skip
_add("stack.default", ([ix, y], 1), ([x, y],), ([x, y], -1), ([x, y], 2), ([scalar, scalar], 0),
     ([is_high, is_positive], -2))  # fmt: skip
_add("copy.default", (ix, y), (x, y), (x, vector), (x, iy))
_add("copy_.default", (x, vector), (ix, y))
_add("flip.default", (x, [1, 2]), (x, [-1]), (x, [0]), (x, []), (ix, [2]), (is_high, [2]))
_add("roll.default", (x, [-2, 9], [2, 3]), (x, [1], [-1]), (matrix, [5]), (x, [0], [1]))
_add("squeeze.default", (thin,), (vector,), (matrix[:1, :1],))
_add("squeeze.dim", (x, 1), (thin, -3), (scalar, 0), (ix[:, :1], 1))
_add("squeeze.dims", (x, [1, 2]), (thin, [1, 2]), (x[:, :1, :1], [-2, 1]), (thin, []))
_add("unsqueeze.default", (x, -1), (x, 0), (is_high, -3), (scalar, 0))
_add("unflatten.int", (rows, 1, [2, 3]), (rows, -1, [2, -1]), (sequence, 1, [2, 2]))
_add("reshape_as.default view_as.default", (x, x.then(lambda v: v.flatten(1))))
_add("reshape_as.default", (x.then(lambda v: v.permute(0, 2, 3, 1)), x))
_add("reshape.default", (x, [-1, 7]), (x.then(lambda v: v.permute(0, 2, 3, 1)), [batch, -1]), (scalar, [1, 1]),
     (is_high, [-1, 15, 7]))  # fmt: skip
_add("view.default _unsafe_view.default", (x, [batch, -1]))
_add("flatten.using_ints", (scalar,), (x, 1, 2), (x, -2), (x,), (ix, 2, 2))
_add("as_strided.default", (matrix, [2, 2], [1, 2], 3), (matrix, [6, 4], [1, 6]), (matrix, [2, 2], [2, 1]),
     (matrix.then(torch.t), [4, 6], [6, 1]), (matrix, [6, 4], [4, 1]), (matrix, [3, 2], [6, 1]))  # fmt: skip
_add("slice.Tensor", (x, 2, 1, 4), (x, 3, -3, -1), (x, 2, 0, 99), (x, 3, 1, 6, 2), (x, 2, 3, 1), (x, 1),
     (x, 2, -99, 2),
     (ix, 2, 1, 3), (is_high, 2, 1, 3))  # fmt: skip
_add("select.int", (x, 1, -1), (x, -1, 3), (ix, 2, 0))
_add("narrow.default", (x, -1, -3, 2), (x, 1, 1, 2), (x, 2, 0, 0), (ix, 2, 3, 2))
_add("permute.default", (x, [0, -1, 1, 2]), (is_high, [0, 2, 1, 3]), (scalar, []))
_add("transpose.int", (x, -1, 1), (ix, 0, 2))
_add("t.default", (matrix,), (vector,))
_add("split.Tensor", (x, 2, -1), (x, 4, 2), (ix, 2, 1), (x, 9, 1))
_add("split_with_sizes.default", (x, [1, 2], 1), (x, [3, 0, 4], -1))
_add("chunk.default", (x, 3, -1), (x, 4, 2), (x, 9, 1), (ix, 2, 3))
_add("repeat.default", (x, [1, 2, 1, 3]), (x, [2, 1, 1, 1]), (vector, [2, 3]), (scalar, [3]), (vector, [0]),
     (is_high, [1, 2, 1, 1]))  # fmt: skip
_add("tile.default", (x, [2]), (x, [1, 2, 1, 3]), (vector, [2, 3]))
_add("meshgrid.default", ([vector, special[:3]],))
_add("meshgrid.indexing", ([vector, special[:3]], {"indexing": "xy"}), ([vector, special[:3]], {"indexing": "ij"}),
     ([vector, special[:3], vector[:2]], {"indexing": "xy"}))  # fmt: skip
_add("tril.default triu.default", (x,), (x, 2), (x, -1), (ix, -9), (is_high,), (huge, 1))
_add("pixel_shuffle.default", (sequence.then(lambda v: v.reshape(-1, 4, 3, 3)), 2))
_add("repeat_interleave.self_int", (x, 2, 1))

# ------------------------------------------------------------------ borders
_OWN_BORDERS = [(x, pad, mode) for mode in ("reflect", "replicate", "circular") for pad in ([3, 4, 2, 1], [1, 0, 2, 1])]
_add("pad.default", *_OWN_BORDERS, (x, [1, 2]), (x, [-1, 2], "constant", 1.5),
     (x, [1, 1, 0, 0, 1, 0], "constant", -INF),
     (sequence, [2, 1], "reflect"),
     (volume, [1, 1, 1, 0, 0, 1], "replicate"), (ix, [1, 1], "constant", 3), (is_high, [1, 1], "constant", True),
     (x, [0, 0, 0, 0, 0, 0, 1, 1]))  # fmt: skip
_add("constant_pad_nd.default", (x, [-1, 2, 1, -2], 0.5), (x, [1, 2]), (ix, [1, 1], 3))
_add("reflection_pad1d.default replication_pad1d.default", (sequence, [1, 2]))
_add("reflection_pad2d.default replication_pad2d.default", (x, [1, 2, 2, 1]))
_add("reflection_pad3d.default replication_pad3d.default", (volume, [1, 2, 2, 1, 0, 1]))
_add("slice_scatter.default", (x, y[:, :, :3], 2, 0, 9, 2), (x, y[:, :, 1:3], 2, 1, 3), (x, y[:, :1], 1, -1),
     (x, y[..., 2:4], -1, 2, -3), (x, y, 0), (x, y[:, :, :0], 2, 3, 1), (x, y[:, :, 1:], 2, 1, END))  # fmt: skip
_add("select_scatter.default", (x, y[:, 0], 1, -1))

# ------------------------------------------------------------------ indices
_runtime, _pair = _at(below(4), 0, 0, 0), _at(below(6), 0, 0, 0)
_add("index.Tensor", (x, [None, PLACES, None, PLACES]), (x, [None, None, FOUR, FOUR]), (x, [None, PLACES]),
     (x, [None, FOUR[:2]]), (x, [None, None, TABLE]), (matrix, [PLACES, PLACES]), (matrix, [FOUR, FOUR]),
     (matrix, [PLACES]),
     (matrix, [TABLE, TABLE[:1]]), (x, [None, None, torch.tensor([True, False, True, True, False])]),
     (x, [torch.tensor([0, 1])]), (matrix, [_runtime]), (matrix, [_runtime, _pair]), (x, [None, PLACES, PLACES]),
     (integers, [FOUR]), (matrix, [_runtime.then(lambda v: v - 4)]))  # fmt: skip
_add("index_select.default", (x, 1, PLACES), (x, -1, torch.tensor([6, 0])), (x, 2, _at(below(5), 0, 0, 0)),
     (vector, 0, torch.tensor(2)), (ix, 1, PLACES))  # fmt: skip
_add("take.default", (matrix, torch.tensor([5, 0, -1])), (matrix, below(24)[0]), (matrix, torch.tensor(3)))
_add("embedding.default", (WEIGHT, below(6)), (WEIGHT, _at(below(6), slice(None), 0, 0, 0), 2),
     (WEIGHT, _at(below(6), 0, 0, 0, 0)))  # fmt: skip
_add("gather.default", (x, -2, below(5)[:, :2, :, :3]), (x, 3, below(7)), (x, 1, below(3)[:, :2]),
     (vector, 0, torch.tensor([3, 0, 6])), (ix, 1, below(3)), (x, 2, below(5)[:, :, :1, :4]))  # fmt: skip
_add("scatter.src", (matrix, 1, torch.tensor([[0, 1], [3, 2], [1, 0]]), matrix), (x, 1, below(3)[:, :1], y),
     (matrix, 0, torch.tensor([[0, 1, 2, 0, 1, 2], [3, 3, 0, 1, 0, 0]]), matrix))  # fmt: skip
_add("scatter.value", (x, 1, below(3)[:, :1], 1.5), (matrix, 1, AT, -2), (integers, 1, AT, 7))
_add("scatter_add.default", (matrix, 1, AT, matrix))
_add("index_put.default", (x, [None, torch.tensor([1, 2]), None, torch.tensor([1, 4])], torch.tensor(0.0)),
     (matrix, [TWO], torch.tensor(5.0)), (matrix, [PLACES], matrix, True), (x, [None, TWO], y[:, :2]),
     (matrix, [torch.tensor([2, -1]), torch.tensor([1, 5])], torch.tensor([1.0, 2.0])),
     (x, [is_high], torch.tensor(0.0)),
     (x, [None, None, torch.tensor([1, 4])], torch.tensor(0.0)))  # fmt: skip
_add("index_put_.default", (matrix, [TWO], torch.tensor(5.0)))
_add("one_hot.default", (below(5), 5), (below(5), 8))

# ------------------------------------------------------------------ dtypes and creation
_DTYPES = (torch.bool, torch.int32, torch.int64, torch.float64, torch.int8, torch.float32, torch.float16)
_add("_to_copy.default to.dtype_layout", *((x, {"dtype": dtype}) for dtype in _DTYPES), (x,), (ix, _FLOAT),
     (is_high, _FLOAT), (special, {"dtype": torch.bool}))  # fmt: skip
_add("to.dtype", *((x, dtype) for dtype in _DTYPES), (ix, torch.float32), (u8, torch.int32))
_add("type_as.default", (x, is_high), (x, ix), (ix, x))
_add("zeros_like.default ones_like.default", (x,), (x, {"dtype": torch.int64}), (ix,), (is_high,))
_add("full_like.default", (x, 2.5), (x, 3, _INT32), (ix, 3), (x, True, {"dtype": torch.bool}))
_add("new_zeros.default new_ones.default", (x, [2, 3]), (ix, [batch, 3]), (x, [batch, 3], {"dtype": torch.int64}))
_add("new_full.default", (x, [batch, 3], 1.5), (ix, [batch, 3], 2))
_add("zeros.default ones.default", ([batch, 3],), ([batch, 3], {"dtype": torch.int64}))
_add("full.default", ([batch, 3], 2.5), ([batch, 3], 2), ([batch], True), ([batch, 3], 2, _FLOAT))
_add("fill.Scalar", (x, 2.5), (ix, 3), (is_high, True))
_add("fill.Tensor fill_.Tensor", (x, scalar))
_add("fill_.Scalar", (x, 2.5))
_add("zero_.default zero.default", (x,))
_add("arange.default", (batch,), (batch, _FLOAT))
_add("arange.start", (1, batch.then(lambda n: n + 3)))
_add("arange.start_step", (1, batch.then(lambda n: n + 8), 3), (9, batch.then(lambda n: -n), -2))
_add("eye.default", (batch,))
_add("eye.m", (batch, 3), (2, batch, {"dtype": torch.int64}))
_add("scalar_tensor.default", (batch,), (batch, {"dtype": torch.int64}))
_add("native_dropout.default", (x, 0.5, False))
_add("hamming_window.default", (7,))
_add("hamming_window.periodic", (7, False))
_add("hamming_window.periodic_alpha", (7, True, 0.5))
_add("hamming_window.periodic_alpha_beta", (7, True, 0.5, 0.4))
_add("linspace.default", (0, 1, 5))
