"""What one evaluation is asked to do: ``RunConfig``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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
    paths_for_texts,
    texts_for_paths,
    tuples,
)
from quantvm.options.option import documented, help_of, option, varied
from quantvm.workload.options import WorkloadOptions


def _fp32(text: str) -> str | None:
    """Checks the value of `fp32`."""
    is_count = text.isascii() and text.isdecimal() and int(text) > 0
    return None if text in ("all", "none") or is_count else f"got {text!r}, expected all, none, or a number of images"


def _image_cache(text: str) -> str | None:
    """Checks the value of `image_cache`."""
    return None if text in ("auto", "none") else checks.folder_to_write(text)


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
    panels: ClassVar = {
        "out": CheckOptions.panel,
        "resume": CheckOptions.panel,
        "image_cache": "Data",
        "workers": "Workers",
        "cluster": "Workers",
        "flows": QUANTIZATION,
        "numerics": QUANTIZATION,
    }

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
    fp32: str = option(
        "all",
        "How many images the float model is run on, too, for its accuracy: all, none, or the first N of them in the "
        "order of evaluation. It takes most of a run's time.",
        metavar="all|N|none",
        check=_fp32,
    )
    shard_size: int = option(
        512,
        "Images in a unit of work, rounded up to whole batches. What is finished of a unit is written each minute.",
        metavar="N",
        check=checks.at_least(1),
    )
    image_cache: str = option(
        "auto",
        "Where decoded, scaled and cut images are kept, so that each is decoded once for all models. auto: in the run "
        "folder until the run is complete, if its disk has room. none: each model decodes them again. DIR: a folder "
        "that is kept, also for other runs.",
        metavar="auto|none|DIR",
        check=_image_cache,
    )
    workers: int | None = option(
        None,
        "Compute in N processes, or with --cluster in N actors. Each opens the network itself (about 1 GB of memory) "
        "and computes with --threads threads, on which bits depend: on two cores, --workers 2 --threads 1. Without it: "
        "in this process, or in as many actors as the cluster has room for.",
        metavar="N",
        check=checks.at_least(1),
    )
    cluster: str | None = option(
        None,
        "Compute on a Ray cluster that is running: auto, or its address. All its machines must see the images under "
        "the same paths. Needs: pip install 'quantvm[cluster]'.",
        metavar="auto|ADDRESS",
    )
    resume: Path | None = option(
        None,
        "Take up the run in this folder again, with its options: what is there is not computed again. Options that "
        "are given, too, replace its own: more models, more images, other checks. The same --out does it as well.",
        metavar="DIR",
    )
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
        paths_for_texts(self, "resume")
        texts_for_paths(self, "image_cache")
        if isinstance(self.fp32, int):
            object.__setattr__(self, "fp32", str(self.fp32))

    @property
    def has_workers(self) -> bool:
        """Whether units are computed in other processes than this one."""
        return self.workers is not None or self.cluster is not None

    def fp32_images(self, n_images: int) -> int:
        """Returns on how many of the images the float model is run."""
        if self.fp32.isdecimal():
            return min(int(self.fp32), n_images)
        return n_images if self.fp32 == "all" else 0

    def wrong_combinations(self) -> Iterator[str]:
        """Yields one sentence for every combination of options that is not allowed."""
        yield from super().wrong_combinations()
        if self.resume is not None and self.out is not None and self.out != self.resume:
            yield "resume: the run goes on in its own folder; leave out --out"
        if self.cluster is not None:
            from quantvm.jobs.evaluation.cluster import missing_ray

            yield from missing_ray()
        if self.min_top1 is not None and self.weights == "random":
            yield "min_top1: with random weights accuracy means nothing; leave one of the two out"
