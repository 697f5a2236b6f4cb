"""Differences at rounding ties, for programs whose reference sums floats in an unspecified order.

The rounding error of a float sum depends on its order. If it carries a value over the middle between two steps, two
right computations differ by one step; they differ nowhere else. Ties are found in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from quantvm.progress import Progress
from quantvm.verification.qdq_definition import ROUNDED_ALONE

NEAR = 1e-3
"""So many steps from the middle between two integers, float32 sums may be rounded either way."""


@dataclass(frozen=True)
class TieCause:
    """Where a layer's own differences lie.

    Attributes:
        n: elements that differ.
        farthest: greatest distance of one of them from a tie, in steps.
        max_steps: greatest difference.
        decides: what may carry a value over the tie, as text.
    """

    n: int
    farthest: float
    max_steps: int
    decides: str = "the order of a float sum"

    @property
    def are_ties(self) -> bool:
        """Whether all differ by one step, at ties."""
        return self.max_steps <= 1 and self.farthest < NEAR

    @property
    def text(self) -> str:
        """What the report says."""
        what = "1 element" if self.n == 1 else f"{self.n} elements"
        return f"{what} within {self.farthest:.1g} steps of a tie, where {self.decides} decides"


class Counted(Protocol):
    """A layer's differences, as in `jobs.layer_differences.layer_parity.LayerCount`."""

    ties: TieCause | None

    @property
    def has_own(self) -> bool:
        """Whether there are differences from equal inputs."""
        ...


def explain_ties(
    counts: Sequence[Counted],
    steps_of: Callable[[np.ndarray, Sequence[Any], Sequence[int]], Sequence[np.ndarray]],
    images: Sequence[np.ndarray],
    runs: Callable[[np.ndarray], tuple[list[Any], list[Any]]],
    decides: Callable[[int], str | None],
    progress: Progress,
) -> None:
    """Sets `ties` of every layer whose own differences are all at ties, if something can carry values over a tie.

    Args:
        counts: every layer's differences.
        steps_of: (image, every layer's integers, numbers of layers) -> float64 values in steps, before rounding.
        images: the images that were compared.
        runs: an image -> the reference's layers, and the other side's, each computed from the reference's.
        decides: number of a layer -> what can carry its values over a tie; None if nothing can.
        progress: advanced for every image.
    """
    wanted = [i for i, count in enumerate(counts) if count.has_own]
    if not wanted:
        return
    found = [TieCause(0, 0.0, 0)] * len(wanted)
    with progress.task("looking for ties", total=len(images)) as task:
        for x_f32 in images:
            expected, own = runs(x_f32)
            for place, (index, steps) in enumerate(zip(wanted, steps_of(x_f32, expected, wanted), strict=True)):
                apart = np.abs(own[index].astype(np.int32) - expected[index].astype(np.int32))
                distance = np.abs(steps - np.floor(steps) - 0.5)[apart > 0]
                before = found[place]
                found[place] = TieCause(
                    before.n + distance.size,
                    max(before.farthest, float(distance.max(initial=0))),
                    max(before.max_steps, int(apart.max(initial=0))),
                )
            task.advance()
    for index, cause in zip(wanted, found, strict=True):
        reason = decides(index) if cause.are_ties else None
        counts[index].ties = None if reason is None else replace(cause, decides=reason)


_SUMS = frozenset(
    f"relax.{name}"
    for name in (
        "nn.conv2d", "nn.conv1d", "nn.conv3d", "nn.conv2d_transpose", "matmul", "nn.avg_pool2d", "mean", "sum",
        "nn.adaptive_avg_pool2d", "nn.layer_norm", "nn.softmax", "nn.attention",
    )
)  # fmt: skip


def what_decides(operators: Collection[str], *, divides: bool) -> str | None:
    """Returns what can carry a layer's values over a tie, as text for a report; None if both sides must be equal.

    Args:
        operators: Relax names of all operators of the layer.
        divides: whether one side's quantize divides where the other multiplies by a reciprocal, as those of pt2e do;
            the two differ in the last bit.
    """
    if not _SUMS.isdisjoint(operators):
        return "the order of a float sum"
    if not ROUNDED_ALONE.issuperset(operators):
        return "the last bit of a function"
    return "the last bit of a quotient" if divides else None
