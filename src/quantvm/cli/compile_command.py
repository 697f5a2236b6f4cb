"""``quantvm compile``: a model into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantvm.cli.arguments import (
    FLOW_HELP,
    MODEL_HELP,
    QUANTIZATION,
    AsJson,
    errors_to_exit_codes,
    print_result,
    shape_of,
)

_ZOO = "Models that are quantized first: of the registry, or float ones of a factory"
_CHECKS = "Checks and output"


def compile(  # noqa: A001 - the command's name
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=MODEL_HELP),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The model file, as resnet18.qvm. Without it: nothing is written."
        ),
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,C,H,W",
            help="Of a model that does not say it, as a TorchScript file; repeat it for each input. Without it: "
            "1,3,224,224. The code takes any number of images.",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(metavar="auto|DIR|random|torchvision-quantized", help="As for run.", rich_help_panel=_ZOO),
    ] = "auto",
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="As for run. Without it: sample.", rich_help_panel=_ZOO),
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Images to calibrate on. Without it: the data's train part, or else the data's own.",
            rich_help_panel=_ZOO,
        ),
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(metavar="N", help="Calibrate on N images, or all there are.", rich_help_panel=_ZOO)
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="S", help="Of every random choice.", rich_help_panel=_ZOO)] = 0,
    scheme: Annotated[
        str,
        typer.Option(metavar="per-channel|per-tensor", help="How weights are quantized.", rich_help_panel=_ZOO),
    ] = "per-channel",
    flow: Annotated[
        str | None,
        typer.Option(metavar="eager|fx|pt2e", help=FLOW_HELP, rich_help_panel=_ZOO),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="fbgemm|x86|onednn|qnnpack",
            help="The PyTorch engine whose bits the code gives: of a file, the one that it was quantized for.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "fbgemm",
    numerics: Annotated[
        str,
        typer.Option(
            metavar="torch|integer",
            help="What TVM follows. torch: the same bits as the engine. integer: no float between quantize and "
            "dequantize; integer:to_even and integer:away round its ties otherwise than upward.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "torch",
    target: Annotated[
        str,
        typer.Option(metavar="TARGET", help="See: quantvm list targets.", rich_help_panel=QUANTIZATION),
    ] = "native",
    batch: Annotated[
        str,
        typer.Option(
            metavar="dynamic|static",
            help="Of a program of your own: code for any number of images, or for that of --input-shape only.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "dynamic",
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="T",
            help="PyTorch's thread count that is reproduced. Without it: TVM_NUM_THREADS, or else the physical cores.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Count the dot-product instructions in the machine code of every kernel.",
            rich_help_panel=_CHECKS,
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the compiled code's outputs with those of the model's own framework, at two batch sizes.",
            rich_help_panel=_CHECKS,
        ),
    ] = True,
    min_int8_macs: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Exit 1 if less than this share, 0 to 1, of the multiply-adds run in int8 kernels.",
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compile a quantized model into one file, which quantvm.load runs without PyTorch.

    Exit codes: 0 all well, 1 a check failed, 2 wrong option or input, or a model that cannot be compiled, 4 the file
    could not be written, 130 interrupted.
    """
    with errors_to_exit_codes(compile):
        from quantvm.jobs.compilation.compile_to_file import compile_to_file
        from quantvm.jobs.compilation.config import CompileConfig
        from quantvm.jobs.compilation.text import compile_lines
        from quantvm.progress import progress_for_stderr

        shapes = tuple(shape_of(text) for text in input_shape or ())
        config = CompileConfig(
            model=model,
            out=out,
            input_shapes=shapes or None,
            weights=weights,
            data=data,
            calibration_data=calibration_data,
            calibration_samples=calibration_samples,
            seed=seed,
            scheme=scheme,  # type: ignore[arg-type]  # the configuration checks it
            flow=flow,
            engine=engine,  # type: ignore[arg-type]  # likewise
            numerics=numerics,
            target=target,
            batch=batch,
            threads=threads,
            audit=audit,
            verify=verify,
            min_int8_macs=min_int8_macs,
        )
        result = compile_to_file(config, progress=progress_for_stderr())
        print_result(result.row, compile_lines(result.row), as_json)
        if result.row["problem"]:
            typer.echo(f"quantvm: {result.row['problem']}", err=True)
        raise typer.Exit(result.exit_code)
