"""What one search for schedules is asked to do: ``TuneConfig``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantvm.options import checks, reading
from quantvm.options.groups import CompilationOptions, OutputOptions, OwnImageOptions, paths_for_texts, tuples
from quantvm.options.option import Options, documented, varied
from quantvm.workload.model_words import problem_of_word
from quantvm.workload.options import WorkloadOptions


@documented
@dataclass(frozen=True)
class TuneConfig(Options):
    """The options of one search; ``quantvm tune`` has one of the same name for each field but the first."""

    panels: ClassVar = {"target": CompilationOptions.panel}

    models: tuple[str, ...] = varied(
        WorkloadOptions, "models", metavar="[MODEL]...",
        called="model", flags=(), is_argument=True, reading=reading.WORDS,
        check=lambda words: next(filter(None, map(problem_of_word, words)), None),
        help="Files (.pt, .pt2, .onnx, .tflite), factories pkg.mod:name, or names of: quantvm list models. Without "
        "it: every registered model.",
    )  # fmt: skip
    threads: tuple[int, ...] = varied(
        CompilationOptions, "threads", default=(), reading=reading.NUMBERS, check=checks.each_at_least_1,
        help="Thread counts to search for, as 2 or 1,2. Without it: TVM_NUM_THREADS, or else the physical cores.",
    )  # fmt: skip
    input_shapes: tuple[tuple[int, ...], ...] = varied(
        OwnImageOptions, "input_shape", default=((1, 3, 224, 224),),
        called="input_shape", flags=("--input-shape",), reading=reading.SHAPES,
        check=checks.shapes,
        help="Input of a .pt or a factory that does not say it; repeat it for each input. Without it: 1,3,224,224.",
    )  # fmt: skip
    target: str = varied(
        CompilationOptions, "target", help="A target that this machine can run, see: quantvm list targets."
    )
    out: Path | None = varied(
        OutputOptions, "out", metavar="FILE", flags=("--output", "-o"), check=checks.file_to_write,
        help="Where records are kept, over those in it. Without it: the user's own, which every compilation reads.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Accepts one value in place of a tuple, and a path in place of text, for callers in Python."""
        super().__post_init__()
        tuples(self, "models", "threads")
        paths_for_texts(self, "out")
