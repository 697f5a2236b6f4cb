"""``quantvm diff``: which layers differ, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantvm.cli.arguments import FLOW_HELP, QUANTIZATION, AsJson, errors_to_exit_codes, print_result, shape_of

_ZOO = "Models of the registry"


def diff(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A file (.pt, .pt2, .onnx, .tflite), a factory pkg.mod:name, or a name of: quantvm list models.",
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE",
            help="What is right: torch, torch:ENGINE, tvm, tvm:NUMERICS, qdq (the imported program in float), "
            "onnxruntime, fp32. Without it: torch; of an ONNX file onnxruntime where that is installed, else qdq.",
        ),
    ] = None,
    actual: Annotated[str, typer.Option(metavar="SIDE", help="What is compared with it: likewise.")] = "tvm",
    num_samples: Annotated[int, typer.Option(metavar="N", help="Images that are compared.")] = 4,
    input_shape: Annotated[
        str | None,
        typer.Option(metavar="N,C,H,W", help="Of a TorchScript file, which does not say it. Without it: 1,3,224,224."),
    ] = None,
    waterfall: Annotated[
        bool,
        typer.Option(
            "--waterfall",
            help="Also the accuracy and output error of fp32, floats between dequantize and quantize, PyTorch's int8 "
            "and TVM's, on the same images.",
            rich_help_panel=_ZOO,
        ),
    ] = False,
    weights: Annotated[
        str,
        typer.Option(metavar="auto|DIR|random|torchvision-quantized", help="As for run.", rich_help_panel=_ZOO),
    ] = "auto",
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Images. Without it: sample.", rich_help_panel=_ZOO),
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
            help="The PyTorch engine that the model is quantized for.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = "fbgemm",
    target: Annotated[
        str,
        typer.Option(metavar="TARGET", help="See: quantvm list targets.", rich_help_panel=QUANTIZATION),
    ] = "native",
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="T",
            help="Of both sides. Without it: TVM_NUM_THREADS, or else the physical cores.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder for diff.json and layers.csv. Without it: nothing is written."),
    ] = None,
    save_repro: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A pytest file, as test_layer.py, that shows the first layer's own difference alone, its "
            "inputs embedded: of a quantized module one or two operators on the smallest part of them. Without it: "
            "none is written.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare every quantized tensor of two runs of one model, and say which layers differ and why.

    A layer that differs is computed again from the reference's own inputs: its own differences are told from inherited
    ones, and rules (how ties are rounded, where the zero point is added, and so on) are tried until one explains every
    element. Where TVM is a side, its fused code must give the outputs of the code that gave the layers.

    Exit codes: 0 all layers are equal, 1 some differ or fusion changes an output, 2 wrong option or input, 4 results
    could not be written, 130 interrupted.
    """
    with errors_to_exit_codes(diff):
        from quantvm.jobs.layer_differences.diff import DiffConfig
        from quantvm.jobs.layer_differences.diff import diff as compare
        from quantvm.jobs.layer_differences.text import diff_lines
        from quantvm.progress import progress_for_stderr

        config = DiffConfig(
            model=model,
            reference=reference,
            actual=actual,
            **({"input_shape": shape_of(input_shape)} if input_shape else {}),
            num_samples=num_samples,
            waterfall=waterfall,
            weights=weights,
            data=data,
            calibration_data=calibration_data,
            calibration_samples=calibration_samples,
            seed=seed,
            scheme=scheme,
            flow=flow,
            engine=engine,
            target=target,
            threads=threads,
            out=out,
            save_repro=save_repro,
        )
        result = compare(config, progress=progress_for_stderr())
        print_result(result.row, diff_lines(result.row), as_json)
        raise typer.Exit(result.exit_code)
