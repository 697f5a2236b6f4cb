"""Inputs that the cases of aten operators read, and the module that makes one output of each case."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

decomposed = torch.ops.quantized_decomposed
INF, NAN = float("inf"), float("nan")
SPECIAL = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-38, 3e38, 7.3])
"""What floats can be, in order."""


@dataclass(frozen=True)
class In:
    """An argument of a case: what a function makes of the model's inputs, by name."""

    of: Callable[[dict[str, torch.Tensor]], Any]

    def __getitem__(self, key: Any) -> In:
        """Returns a part of it."""
        return self.then(lambda value: value[key])

    def then(self, function: Callable[[Any], Any]) -> In:
        """Returns what another function makes of it."""
        return In(lambda inputs: function(self.of(inputs)))


def _input(name: str) -> In:
    return In(lambda inputs: inputs[name])


x, y, rows, sequence, volume = (_input(name) for name in ("x", "y", "rows", "sequence", "volume"))
matrix, vector, special, with_nan = (_input(name) for name in ("matrix", "vector", "special", "with_nan"))
batch = x.then(lambda v: v.shape[0])
ix, lx = x.then(lambda v: (v * 4).to(torch.int32)), x.then(lambda v: (v * 4).to(torch.int64))
iy = y.then(lambda v: torch.where((v * 4).to(torch.int32) == 0, 1, (v * 4).to(torch.int32)).to(torch.int32))
u8 = x.then(lambda v: (v.abs() * 4).to(torch.uint8))
is_high, is_positive = x.then(lambda v: v > 0.2), y.then(lambda v: v > 0)
scalar, small, halves = vector[0], x.then(lambda v: v * 1e-4), x.then(lambda v: torch.round(v * 2) * 0.5)
integers = matrix.then(lambda v: (v * 3).to(torch.int32))
isequence = sequence.then(lambda v: (v * 3).to(torch.int32))
backwards = special.then(lambda v: v.flip(0))
column = special.then(lambda v: v.unsqueeze(1))
huge = x.then(lambda v: v * INF)


def below(count: int) -> In:
    """Returns int64 indices below a number, in the shape of x."""
    return lx.then(lambda v: v.abs() % count)


def inputs(size: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Returns the inputs of the model for a batch."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 2

    nans = normal(4, 6)
    nans[1, 2] = nans[1, 4] = nans[3, 0] = NAN
    nans[0, 3] = INF
    nans[2] = nans[2, 0]
    return (
        normal(size, 3, 5, 7), normal(size, 3, 5, 7), normal(size, 6), normal(size, 4, 9), normal(size, 2, 5, 6, 7),
        normal(4, 6), normal(7), SPECIAL.clone(), nans,
    )  # fmt: skip


_NAMES = ("x", "y", "rows", "sequence", "volume", "matrix", "vector", "special", "with_nan")
_DYNAMIC = 5
"""How many of the inputs have a batch."""
Case = tuple[Any, ...]
FIRST_RESULT_ONLY = frozenset(
    f"aten::{name}" for name in (
        "sort.default", "topk.default", "median.dim", "max_pool2d_with_indices.default", "native_group_norm.default",
        "max_pool3d_with_indices.default", "_native_batch_norm_legit_no_training.default",
        "_native_batch_norm_legit.no_stats", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default",
        "adaptive_max_pool1d.default",
    )
)  # fmt: skip
"""Operators whose other results may not be read."""


def operator(name: str) -> Any:
    """Returns an operator of torch by its qualified name with overload."""
    base, overload = name.removeprefix("aten::").split(".")
    return getattr(getattr(torch.ops.aten, base), overload)


def _resolved(argument: Any, given: dict[str, torch.Tensor]) -> Any:
    if isinstance(argument, In):
        return argument.of(given)
    return [_resolved(item, given) for item in argument] if isinstance(argument, list) else argument


class Cases(nn.Module):
    """Each case's results as a tuple; something is quantized, for a float model is refused."""

    def __init__(self, cases: Iterable[tuple[str, Case]]) -> None:
        super().__init__()
        self.cases = list(cases)

    def forward(self, *tensors: torch.Tensor) -> tuple[Any, torch.Tensor]:
        given = dict(zip(_NAMES, tensors, strict=True))
        results = []
        for name, case in self.cases:
            keywords = case[-1] if case and isinstance(case[-1], dict) else {}
            arguments = [_resolved(argument, given) for argument in case[: len(case) - bool(keywords)]]
            keywords = {key: _resolved(value, given) for key, value in keywords.items()}
            if name.split(".")[0].endswith("_") and not name.split(".")[0].endswith("__"):
                arguments[0] = arguments[0] + 1  # written to in place
            result = operator(name)(*arguments, **keywords)
            result = result if isinstance(result, (tuple, list)) else (result,)
            results.append(tuple(result[:1] if name in FIRST_RESULT_ONLY else result))
        params = (0.05, 128, 0, 255, torch.uint8)
        quantized = decomposed.quantize_per_tensor(given["matrix"], *params)
        return tuple(results), decomposed.dequantize_per_tensor(quantized, *params)


def exported(cases: Iterable[tuple[str, Case]]) -> Any:
    """Returns the program of cases, with a dynamic batch."""
    import torch.ao.quantization.fx._decomposed

    size = torch.export.Dim("batch", min=1, max=512)
    shapes = tuple({0: size} if at < _DYNAMIC else None for at in range(len(_NAMES)))
    return torch.export.export(Cases(cases), inputs(3, 0), dynamic_shapes=(shapes,))
