"""The result of comparing a compiled model with its reference: one of a fixed set of verdicts, and its figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Verdict = Literal["exact", "ties", "bound", "degenerate", "lowering only", "not run"]
VERDICTS: tuple[str, ...] = get_args(Verdict)

MEANING: dict[str, str] = {
    "exact": "every output has the reference's bits",
    "ties": "every difference lies at a rounding tie, where the order of the reference's float sum decides",
    "bound": "compiling moved the outputs by less than quantizing had",
    "degenerate": "the outputs have too few distinct values to prove anything",
    "lowering only": "there was no reference; compared with the imported program, which cannot show a wrong import",
    "not run": "nothing was compared",
}


@dataclass(frozen=True)
class Verification:
    """How a compiled model compares with its reference.

    Attributes:
        verdict: a key of `MEANING`.
        reason: what the verdict rests on, or why there is none.
        reference: the framework that computed the reference, with its version; None if nothing was compared.
        batch_sizes: of the runs that were compared.
        n_compared: output values of all runs.
        n_different: how many of those have other bits than the reference's.
        max_difference: the greatest difference from the reference's.
    """

    verdict: Verdict
    reason: str
    reference: str | None = None
    batch_sizes: tuple[int, ...] = ()
    n_compared: int = 0
    n_different: int = 0
    max_difference: float = 0.0

    def row(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        return {**asdict(self), "batch_sizes": list(self.batch_sizes), "text": self.text}

    @property
    def text(self) -> str:
        """One sentence for people."""
        if self.verdict == "not run":
            return f"not run: {self.reason}"
        sizes = " and ".join(map(str, self.batch_sizes))
        against = f"{self.n_compared:,} values at batch {sizes} against {self.reference}"
        if self.n_different:
            against += f", {self.n_different:,} differ, by up to {self.max_difference:.6g}"
        return f"{self.verdict}: {against}; {self.reason}"


NOT_ASKED = Verification("not run", "it was not asked for")
"""The verdict on code that was built and not compared."""
