"""Top-k of raw class scores, with the same rule for every engine, and the accuracy computed from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantvm.score.schema import AccuracyRow


def top_k(scores_f32: npt.NDArray[np.float32], k: int = 5) -> npt.NDArray[np.int64]:
    """Returns the indices of the k best scores of each row, best first; of equal scores, the lower index comes first.

    Quantized networks often give equal scores (their outputs are a few dozen integers), so the order of equal scores
    decides top-1 on real images. It must be the same for both engines, or identical outputs could score differently.

    Args:
        scores_f32: (N, classes); NaN ranks below everything.
        k: how many; all of them if there are fewer classes.

    Returns:
        (N, min(k, classes)) class indices.
    """
    return np.argsort(-scores_f32, axis=1, kind="stable")[:, :k]


@dataclass
class AccuracyCount:
    """Counts the right answers of one engine, batch by batch."""

    n: int = 0
    n_top1: int = 0
    n_top5: int = 0

    def add(self, top5: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> None:
        """Counts one batch.

        Args:
            top5: (N, 5) class indices, best first.
            labels: (N,) true class indices.
        """
        hits = top5 == labels[:, None]
        self.n += len(labels)
        self.n_top1 += int(hits[:, 0].sum())
        self.n_top5 += int(hits.any(axis=1).sum())

    def row(self) -> AccuracyRow:
        """Returns the accuracy so far in percent; 0 without any images."""
        n = max(self.n, 1)
        return {"top1": 100 * self.n_top1 / n, "top5": 100 * self.n_top5 / n}
