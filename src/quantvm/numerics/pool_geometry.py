"""Which elements the windows of a pool read. Kernels, NumPy rules and the lowering all ask here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Index = Any
"""A Python integer, or an expression of TVM: the formulas hold for both."""


class Taps(NamedTuple):
    """`count` elements along one axis: first, first + step, ..."""

    first: Index
    count: Index
    step: int = 1


@dataclass(frozen=True)
class PoolAxis:
    """One axis of a pool.

    Attributes:
        size: elements of the input.
        kernel, stride, dilation: geometry of the window.
        before, after: padding on either side.
        ceil_mode: whether a window may end beyond the padding, provided that it begins in the input or before it.
    """

    size: int
    kernel: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    ceil_mode: bool = False

    @property
    def span(self) -> int:
        """Distance from the first element of a window to one past its last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def out_size(self) -> int:
        """Number of windows, counted as PyTorch, ONNX Runtime and Relax do."""
        reach = self.size + self.before + self.after - self.span
        count = (-(-reach // self.stride) if self.ceil_mode else reach // self.stride) + 1
        if self.ceil_mode and (count - 1) * self.stride >= self.size + self.before:
            count -= 1
        return count

    def start(self, out: Index) -> Index:
        """Returns the index at which a window begins; negative in the padding."""
        return out * self.stride - self.before

    def inside(self, out: Index, minimum: Callable[..., Any] = min, maximum: Callable[..., Any] = max) -> Taps:
        """Returns the elements of the input that a window reads; none if it lies in the padding entirely.

        Args:
            out: number of the window.
            minimum: the minimum of two indices: Python's `min`, or TVM's for expressions.
            maximum: the maximum, likewise.
        """
        start = self.start(out)
        if self.dilation == 1:
            first = maximum(start, 0)
            return Taps(first, maximum(minimum(start + self.kernel, self.size) - first, 0))
        skipped = maximum(-(start // self.dilation), 0)
        end = minimum(-((start - self.size) // self.dilation), self.kernel)
        return Taps(start + skipped * self.dilation, maximum(end - skipped, 0), self.dilation)

    def counted(self, out: Index, minimum: Callable[..., Any] = min) -> Index:
        """Returns how many elements of a window lie in the input or its padding, not beyond.

        Args:
            out: number of the window.
            minimum: see `inside`.
        """
        stop = self.size + self.after - self.start(out)
        return minimum(stop if self.dilation == 1 else -(-stop // self.dilation), self.kernel)


def adaptive_taps(out: int, size: int, out_size: int) -> Taps:
    """Returns which of `size` elements the window `out` of `out_size` reads in an adaptive pool."""
    first = out * size // out_size
    return Taps(first, -(-(out + 1) * size // out_size) - first)
