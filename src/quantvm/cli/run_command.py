"""``quantvm run``: accuracy and parity."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from quantvm.cli.arguments import FLOW_HELP, QUANTIZATION, errors_to_exit_codes, names_of, reals_of, shape_of

_OWN = "Images of a model of your own (a file or a factory)"
_DATA = "Data"
_CHECKS = "Checks and output"
_CONVERTED = ("model", "flow", "numerics", "as_json", "out", "input_shape", "mean", "std")
"""Options that the configuration does not take as they are."""


def run(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME|FILE|FACTORY",
            help="A model to evaluate; repeat it, or separate names by commas. A name of: quantvm list models; a "
            "quantized model of your own as a file (.pt of TorchScript, .pt2, .onnx, .tflite); or a function that "
            "returns it, as pkg.mod:name. Without it: every registered model whose weights can be had.",
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W",
            help="What your model takes, where a file or factory does not say it. Without it: 1,3,224,224.",
            rich_help_panel=_OWN,
        ),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Of the shorter side, before the crop. Without it: 256/224 of the crop.",
            rich_help_panel=_OWN,
        ),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Of the square. Without it: what your model takes.", rich_help_panel=_OWN),
    ] = None,
    interpolation: Annotated[
        str, typer.Option(metavar="bilinear|bicubic", help="How images are scaled.", rich_help_panel=_OWN)
    ] = "bilinear",
    mean: Annotated[
        str,
        typer.Option(metavar="R,G,B", help="Subtracted from pixels, which are 0 to 1.", rich_help_panel=_OWN),
    ] = "0.485,0.456,0.406",
    std: Annotated[
        str, typer.Option(metavar="R,G,B", help="Divides them then.", rich_help_panel=_OWN)
    ] = "0.229,0.224,0.225",
    weights: Annotated[
        str,
        typer.Option(
            metavar="auto|DIR|random|torchvision-quantized",
            help="auto: an installed package, a cache, or a download. DIR: a folder with the official files. random: "
            "seeded weights; accuracy then means nothing, parity and latency do.",
        ),
    ] = "auto",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="sample, imagenet-1k, imagenet-samples, imagenetv2 or imagenette; or a folder with val/<wnid>/ or "
            "<wnid>/. Without it: sample.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(metavar="N", help="Evaluate N images, a seeded choice.", rich_help_panel=_DATA)
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Images to calibrate on. Without it: the data's train part, or else a part of the evaluated images.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(metavar="N", help="Calibrate on N images, or all there are.", rich_help_panel=_DATA)
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="S", help="Of every random choice.", rich_help_panel=_DATA)] = 0,
    class_map: Annotated[
        str,
        typer.Option(
            metavar="wnid|sorted",
            help="How folder names become classes: by ImageNet's table, or, for models of your own, by sorted order.",
            rich_help_panel=_DATA,
        ),
    ] = "wnid",
    on_bad_image: Annotated[
        str,
        typer.Option(
            metavar="stop|skip",
            help="Whether an unreadable image stops the run before it begins, or is left out and listed.",
            rich_help_panel=_DATA,
        ),
    ] = "stop",
    scheme: Annotated[
        str,
        typer.Option(metavar="per-channel|per-tensor", help="How weights are quantized.", rich_help_panel=QUANTIZATION),
    ] = "per-channel",
    engine: Annotated[
        str,
        typer.Option(
            metavar="fbgemm|x86|onednn|qnnpack",
            help="The PyTorch engine whose int8 arithmetic is the reference.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "fbgemm",
    flow: Annotated[
        str | None,
        typer.Option(
            metavar="eager|fx|pt2e",
            help=f"{FLOW_HELP} eager,fx,pt2e: each in a row of its own, and how their answers agree.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    numerics: Annotated[
        str,
        typer.Option(
            metavar="torch|integer",
            help="What TVM follows. torch: the same bits as the engine. integer: no float between quantize and "
            "dequantize; integer:to_even and integer:away round its ties otherwise than upward. torch,integer: "
            "both, each in a row of its own.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "torch",
    target: Annotated[
        str,
        typer.Option(metavar="TARGET", help="See: quantvm list targets.", rich_help_panel=QUANTIZATION),
    ] = "native",
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Images in one call of a network.", rich_help_panel=QUANTIZATION)
    ] = 8,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="T",
            help="Of both engines. Without it: TVM_NUM_THREADS, or else the physical cores.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    check_parity: Annotated[
        str | None,
        typer.Option(
            metavar="exact|lsb:N",
            help="Exit 1 if raw outputs differ at all, or by more than N steps of the output's quantization.",
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(metavar="X", help="Exit 1 if TVM's top-1 accuracy is below X percent.", rich_help_panel=_CHECKS),
    ] = None,
    min_int8_macs: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Exit 1 if less than this share, 0 to 1, of the multiply-adds run in int8 kernels.",
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder. Without it: runs/<time>-<id>.", rich_help_panel=_CHECKS),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print run.json instead of text.", rich_help_panel=_CHECKS)
    ] = False,
) -> None:
    """Quantize, compile, and compare accuracy and raw outputs of PyTorch and TVM on real images.

    Results go to stdout and, with one row for each image, into the run folder.

    Exit codes: 0 all well, 1 a check failed, 2 wrong option or input, 3 some models errored, 4 results could not be
    written, 130 interrupted.
    """
    options = {name: value for name, value in locals().items() if name not in _CONVERTED}
    with errors_to_exit_codes(run):
        from quantvm.jobs.evaluation.config import RunConfig
        from quantvm.jobs.evaluation.evaluate import SILENT_OBSERVER, evaluate
        from quantvm.progress import progress_for_stderr
        from quantvm.report.console import ConsolePrinter
        from quantvm.report.run_folder import default_run_folder, run_json

        config = RunConfig(
            models=names_of(model),
            flows=names_of([] if flow is None else [flow]),
            numerics=names_of([numerics]),
            out=out or default_run_folder(),
            input_shape=None if input_shape is None else shape_of(input_shape),
            mean=reals_of(mean, "--mean"),
            std=reals_of(std, "--std"),
            **options,
        )
        printer = ConsolePrinter()
        command = shlex.join(["quantvm", *sys.argv[1:]])
        observer = SILENT_OBSERVER if as_json else printer
        result = evaluate(config, progress=progress_for_stderr(), observer=observer, command=command)
        if as_json:
            typer.echo(run_json(result.run), nl=False)
        else:
            printer.on_end(result.run)
        typer.echo(f"Results are in {config.out}", err=True)
        raise typer.Exit(result.exit_code)
