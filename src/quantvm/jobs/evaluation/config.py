"""What one evaluation is asked to do: ``RunConfig``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from quantvm.choices import FLOWS, NUMERICS
from quantvm.errors import ConfigError
from quantvm.options import checks, reading
from quantvm.options.groups import (
    QUANTIZATION,
    CheckOptions,
    FlowOptions,
    NumericsOptions,
    OutputOptions,
    tuples,
)
from quantvm.options.option import documented, help_of, option, varied
from quantvm.workload.options import WorkloadOptions


def _tolerance(text: str) -> str | None:
    """Checks the value of `check_parity`."""
    from quantvm.score.parity import Tolerance

    try:
        Tolerance.parse(text)
    except ConfigError as error:
        return str(error).removeprefix("check_parity: ")
    return None


@documented
@dataclass(frozen=True)
class RunConfig(WorkloadOptions, CheckOptions, OutputOptions):
    """The options of one evaluation; ``quantvm run`` has one of the same name for each field.

    Only models under numerics torch have to meet `check_parity`; other numerics are not meant to give PyTorch's bits.
    """

    panel = CheckOptions.panel
    panels: ClassVar = {"out": CheckOptions.panel, "flows": QUANTIZATION, "numerics": QUANTIZATION}

    flows: tuple[str, ...] = varied(
        FlowOptions, "flow", default=(),
        called="flow", flags=("--flow",), reading=reading.LISTED_NAMES, check=checks.some_of(FLOWS),
        help=f"{help_of(FlowOptions, 'flow')} eager,fx,pt2e: each in a row of its own, and how their answers agree.",
    )  # fmt: skip
    numerics: tuple[str, ...] = varied(
        NumericsOptions, "numerics", default=("torch",), reading=reading.LISTED_NAMES,
        check=checks.some_of(NUMERICS, at_least_one=True),
        help=f"{help_of(NumericsOptions, 'numerics')} torch,integer: both, each in a row of its own.",
    )  # fmt: skip
    check_parity: str | None = option(
        None,
        "Exit 1 if raw outputs differ at all, or by more than N steps of the output's quantization.",
        metavar="exact|lsb:N",
        check=_tolerance,
    )
    min_top1: float | None = option(
        None,
        "Exit 1 if TVM's top-1 accuracy is below X percent.",
        metavar="X",
        check=checks.within(0, 100, "a percentage from 0 to 100"),
    )

    def __post_init__(self) -> None:
        """Accepts one name or a list of names, and a path in place of text, for callers in Python."""
        super().__post_init__()
        tuples(self, "flows", "numerics", once=True)

    def wrong_combinations(self) -> Iterator[str]:
        """Yields one sentence for every combination of options that is not allowed."""
        yield from super().wrong_combinations()
        if self.min_top1 is not None and self.weights == "random":
            yield "min_top1: with random weights accuracy means nothing; leave one of the two out"
