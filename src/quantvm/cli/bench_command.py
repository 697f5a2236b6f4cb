"""``quantvm bench``: latency and throughput."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from quantvm.cli.arguments import FLOW_HELP, QUANTIZATION, errors_to_exit_codes, names_of, numbers_of, shape_of

_MODELS = "Models and images"


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME|FACTORY",
            help="A model to measure; repeat it, or separate names by commas. A name of: quantvm list models; or a "
            "function that returns a float model of your own, as pkg.mod:name. Without it: every registered model "
            "whose weights can be had.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W",
            help="What the factories' models take, where they do not say it. Without it: 1,3,224,224.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="tvm, torch_fbgemm, torch_x86, torch_onednn (under the flow pt2e: torch_pt2e, torch_inductor), "
            "onnxruntime, openvino; repeat it, or separate names by commas. Without it: all that are installed. The "
            "last two need the extra `peers`.",
        ),
    ] = None,
    batch_size: Annotated[
        list[str] | None, typer.Option(metavar="N", help="Images in one call, as 1 or 1,8,32. Without it: 1.")
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T",
            help="Of every engine, as 2 or 1,2. Without it: TVM_NUM_THREADS, or else the physical cores.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="At least N rounds through all engines.")] = 5,
    seconds: Annotated[float, typer.Option(metavar="S", help="At least S seconds of calls of each engine.")] = 2.0,
    weights: Annotated[
        str,
        typer.Option(
            metavar="auto|DIR|random",
            help="Where float weights are from, as for run; random: seeded, the time hardly depends on them.",
            rich_help_panel=_MODELS,
        ),
    ] = "auto",
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Images for the input. Without it: sample.", rich_help_panel=_MODELS),
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Images to calibrate on. Without it: the data's train part, or else the data's own.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    calibration_samples: Annotated[
        int,
        typer.Option(metavar="N", help="Calibrate on N images, or all there are.", rich_help_panel=_MODELS),
    ] = 64,
    seed: Annotated[int, typer.Option(metavar="S", help="Of every random choice.", rich_help_panel=_MODELS)] = 0,
    scheme: Annotated[
        str,
        typer.Option(
            metavar="per-channel|per-tensor",
            help="How PyTorch and TVM quantize weights.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "per-channel",
    flow: Annotated[
        str | None,
        typer.Option(metavar="eager|fx|pt2e", help=FLOW_HELP, rich_help_panel=QUANTIZATION),
    ] = None,
    tvm_engine: Annotated[
        str,
        typer.Option(
            metavar="fbgemm|x86|onednn|qnnpack",
            help="The PyTorch engine whose bits TVM must give, or it gets no time.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "fbgemm",
    target: Annotated[
        str,
        typer.Option(metavar="TARGET", help="See: quantvm list targets.", rich_help_panel=QUANTIZATION),
    ] = "native",
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Also show where TVM's time goes, kernel by kernel, after everything is timed."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder. Without it: runs/<time>-<id>.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print bench.json instead of text.")] = False,
) -> None:
    """Measure the latency and throughput of int8 engines side by side, each in a process of its own.

    TVM's outputs are compared with PyTorch's, bit for bit, before anything is timed.

    Exit codes: 0 all well, 1 TVM gave wrong bits, 2 wrong option or input, 3 an engine errored or a named one is
    missing, 4 results could not be written, 130 interrupted.
    """
    with errors_to_exit_codes(bench):
        from quantvm.jobs.latency.bench import bench as measure
        from quantvm.jobs.latency.config import BenchConfig
        from quantvm.jobs.latency.text import bench_lines
        from quantvm.progress import progress_for_stderr
        from quantvm.report.run_folder import default_run_folder, run_json

        config = BenchConfig(
            models=names_of(model),
            input_shape=None if input_shape is None else shape_of(input_shape),
            engines=names_of(engines),
            batch_sizes=numbers_of(batch_size, "--batch-size") or (1,),
            threads=numbers_of(threads, "--threads"),
            rounds=rounds,
            seconds=seconds,
            weights=weights,
            data=data,
            calibration_data=calibration_data,
            calibration_samples=calibration_samples,
            seed=seed,
            scheme=scheme,  # type: ignore[arg-type]  # the configuration checks it
            flow=flow,
            tvm_engine=tvm_engine,  # type: ignore[arg-type]  # likewise
            target=target,
            profile=profile,
            out=out or default_run_folder(),
        )
        result = measure(config, progress=progress_for_stderr(), command=shlex.join(["quantvm", *sys.argv[1:]]))
        typer.echo(run_json(result.bench) if as_json else "\n".join(bench_lines(result.bench)), nl=not as_json)
        typer.echo(f"Results are in {config.out}", err=True)
        raise typer.Exit(result.exit_code)
