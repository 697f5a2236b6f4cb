"""The options of one benchmark of latency: ``BenchConfig`` and its checks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from quantvm.choices import FLOWS, Engine, Scheme
from quantvm.jobs.latency.engine_kinds import ENGINES
from quantvm.options import checks, reading
from quantvm.options.groups import (
    QUANTIZATION,
    BatchOptions,
    CompilationOptions,
    DataOptions,
    FlowOptions,
    OutputOptions,
    OwnImageOptions,
    QuantizationOptions,
    WeightOptions,
    tuples,
)
from quantvm.options.option import documented, help_of, option, varied
from quantvm.workload.options import WorkloadOptions


@documented
@dataclass(frozen=True)
class BenchConfig(WeightOptions, DataOptions, FlowOptions, OutputOptions):
    """The options of one benchmark of latency; ``quantvm bench`` has one of the same name for each field.

    The engines of PyTorch that are measured are those of the flow. The peers quantize in their own way.
    """

    panels: ClassVar = {
        **dict.fromkeys(
            ("models", "input_shape", "weights", "Data", "data", "calibration_samples"), "Models and images"
        ),
        **dict.fromkeys(("scheme", "tvm_engine", "target"), QUANTIZATION),
    }

    models: tuple[str, ...] = varied(
        WorkloadOptions, "models", metavar="NAME|FACTORY",
        help="A model to measure; repeat it, or separate names by commas. A name of: quantvm list models; or a "
        "function that returns a float model of your own, as pkg.mod:name. Without it: every registered model "
        "whose weights can be had.",
    )  # fmt: skip
    input_shape: tuple[int, ...] | None = varied(
        OwnImageOptions, "input_shape",
        help="What the factories' models take, where they do not say it. Without it: 1,3,224,224.",
    )  # fmt: skip
    engines: tuple[str, ...] = option(
        (),
        "tvm, torch_fbgemm, torch_x86, torch_onednn (under the flow pt2e: torch_pt2e, torch_inductor), onnxruntime, "
        "openvino; repeat it, or separate names by commas. Without it: all that are installed. The last two need the "
        "extra `peers`.",
        metavar="NAME",
        reading=reading.NAMES,
    )
    batch_sizes: tuple[int, ...] = varied(
        BatchOptions, "batch_size", default=(1,), flags=("--batch-size",), reading=reading.NUMBERS,
        check=checks.each_at_least_1, help="Images in one call, as 1 or 1,8,32. Without it: 1.",
    )  # fmt: skip
    threads: tuple[int, ...] = varied(
        CompilationOptions, "threads", default=(), reading=reading.NUMBERS, check=checks.each_at_least_1,
        help="Threads of every engine, as 2 or 1,2. Without it: TVM_NUM_THREADS, or else the physical cores.",
    )  # fmt: skip
    rounds: int = option(5, "At least N rounds through all engines.", metavar="N", check=checks.at_least(1))
    seconds: float = option(
        2.0,
        "At least S seconds of calls of each engine.",
        metavar="S",
        check=lambda s: None if s > 0 and math.isfinite(s) else f"got {s}, expected more than 0",
    )
    weights: str = varied(
        WeightOptions, "weights", metavar="auto|DIR|random",
        help="Where float weights are from. auto: an installed package, a cache, or a download. DIR: a folder with the "
        "official files. random: seeded, the time hardly depends on them.",
    )  # fmt: skip
    data: str | None = varied(DataOptions, "data", help=f"Images for the input: {help_of(DataOptions, 'data')}")
    calibration_samples: int = varied(DataOptions, "calibration_samples", default=64)
    flow: str | None = varied(FlowOptions, "flow", check=checks.one_of(FLOWS))
    scheme: Scheme = varied(QuantizationOptions, "scheme", help="How PyTorch and TVM quantize weights.")
    tvm_engine: Engine = varied(
        QuantizationOptions, "engine",
        help="The PyTorch engine whose bits TVM must give, or it gets no time. Of no meaning to pt2e, whose programs "
        "are for none.",
    )  # fmt: skip
    target: str = varied(CompilationOptions, "target")
    profile: bool = option(
        False,
        "Also show where TVM's time goes, kernel by kernel, after everything is timed.",
        flags=("--profile",),
    )

    def __post_init__(self) -> None:
        """Accepts one value in place of a tuple, and a path in place of text, for callers in Python."""
        super().__post_init__()
        tuples(self, "models", "engines", "batch_sizes", "threads", once=True)

    @property
    def reference(self) -> str:
        """The engine whose outputs TVM must give."""
        return "torch_pt2e" if self.flow == "pt2e" else f"torch_{self.tvm_engine}"

    def engine_names(self) -> tuple[str, ...]:
        """Returns the engines to measure: those that are named, or all of the flow, installed or not."""
        flow = self.flow or "eager"
        return self.engines or tuple(name for name, kind in ENGINES.items() if flow in kind.flows)

    def workload(self) -> WorkloadOptions:
        """Returns the options for choosing models, weights and images."""
        max_batch = max(self.batch_sizes, default=1)
        return self.shared(
            WorkloadOptions,
            # The images are the input, and calibrate if no calibration data is given. A part of a large set is enough.
            num_samples=None if self.data is None else max(max_batch, self.calibration_samples),
            engine=self.tvm_engine,
            batch_size=max_batch,
            threads=max(self.threads, default=None),
        )

    def wrong_combinations(self) -> Iterator[str]:
        """Yields what is wrong with the engines, or with the options for them."""
        yield from super().wrong_combinations()
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown:
            yield f"engines: got '{', '.join(unknown)}', expected some of {', '.join(ENGINES)}"
        if self.profile and self.engines and "tvm" not in self.engines:
            yield f"profile: got '{', '.join(self.engines)}' as engines, expected tvm among them, the one profiled"
        flow = self.flow or "eager"
        others = [name for name in self.engines if name in ENGINES and flow not in ENGINES[name].flows]
        if flow in FLOWS and others:
            yield f"engines: got '{', '.join(others)}', which run no models that the flow {flow} quantizes"
        if flow == "pt2e" and self.scheme != "per-channel":
            yield f"scheme: got '{self.scheme}', expected per-channel, as the flow pt2e quantizes weights"
        if not self.batch_sizes:
            yield "batch_sizes: got none, expected at least one"
        if self.weights == "torchvision-quantized":
            yield (
                "weights: got 'torchvision-quantized', expected float weights: every engine quantizes the same "
                "float model"
            )
