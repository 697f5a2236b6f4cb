"""``quantvm tune``: the fastest schedules of this CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantvm.cli.arguments import QUANTIZATION, AsJson, errors_to_exit_codes, numbers_of, print_result, shape_of


def tune(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Files (.pt, .pt2, .onnx, .tflite), factories pkg.mod:name, or names of: quantvm list models. Without "
            "it: every registered model.",
        ),
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T",
            help="That the work is cut for, as 2 or 1,2. Without it: TVM_NUM_THREADS, or else the physical cores.",
        ),
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,C,H,W",
            help="Of a .pt or a factory that does not say it; repeat it for each input. Without it: 1,3,224,224.",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="That this machine can run, see: quantvm list targets.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "native",
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where records are kept, over those in it. Without it: the user's own, which every compilation reads.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search for the fastest schedule of every convolution on this CPU, by measuring.

    The outputs do not depend on it, only the time. Leave the machine alone meanwhile; it takes about two seconds for
    each convolution.

    Exit codes: 0 all well, 2 wrong option or input, 4 the file could not be written, 130 interrupted, with what was
    found until then written.
    """
    with errors_to_exit_codes(tune):
        from quantvm.jobs.tuning.text import tune_lines
        from quantvm.jobs.tuning.tune import TuneConfig, tune_schedules
        from quantvm.progress import progress_for_stderr

        shapes = tuple(shape_of(text) for text in input_shape or ())
        config = TuneConfig(
            models=tuple(model or ()),
            **({"input_shapes": shapes} if shapes else {}),
            threads=numbers_of(threads, "--threads"),
            target=target,
            out=out,
        )
        result = tune_schedules(config, progress=progress_for_stderr())
        print_result(result.row, tune_lines(result.row), as_json)
        raise typer.Exit(result.exit_code)
