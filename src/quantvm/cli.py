"""The command line: arguments only. Every command calls the function that a user of the library would call.

Results go to stdout, progress and messages to stderr. Exit codes: 0 all well, 1 a check failed, 2 wrong usage or input,
3 finished but some models errored, 130 interrupted with what was done until then saved.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from quantvm.errors import QuantvmError
from quantvm.report.schema import EXIT_CHECK_FAILED, EXIT_INTERRUPTED, EXIT_USAGE

app = typer.Typer(
    name="quantvm",
    help=(
        "Quantized PyTorch models on Apache TVM: the same bits, real int8 code, measured on real images.\n\n"
        "`quantvm run` is the main job: it quantizes models in PyTorch, compiles them with TVM, runs both on labelled "
        "images, and prints accuracy and raw-output parity."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
list_app = typer.Typer(help="What there is: models, data, ops, targets.", no_args_is_help=True)
fetch_app = typer.Typer(help="Download weights or data sets, to work without a network later.", no_args_is_help=True)
app.add_typer(list_app, name="list")
app.add_typer(fetch_app, name="fetch")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def main() -> None:
    """Runs the command line of this process."""
    app()


@contextmanager
def _errors_to_exit_codes() -> Iterator[None]:
    try:
        yield
    except QuantvmError as error:
        typer.echo(f"quantvm: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    except KeyboardInterrupt as interrupt:
        typer.echo("quantvm: interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from interrupt


def _print_version(asked: bool) -> None:
    if asked:
        from quantvm import __version__

        typer.echo(f"quantvm {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_RUN_DATA = "Data"
_RUN_QUANTIZATION = "Quantization and compilation"
_RUN_CHECKS = "Checks and output"


@app.command()
def run(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="A model to evaluate; repeat it, or separate names by commas. Without it: every model whose weights "
            "can be had. See: quantvm list models.",
        ),
    ] = None,
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
            rich_help_panel=_RUN_DATA,
        ),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(metavar="N", help="Evaluate N images, a seeded choice.", rich_help_panel=_RUN_DATA)
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Images to calibrate on. Without it: the data's train part, or else a part of the evaluated images.",
            rich_help_panel=_RUN_DATA,
        ),
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(metavar="N", help="Calibrate on N images, or all there are.", rich_help_panel=_RUN_DATA)
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="S", help="Of every random choice.", rich_help_panel=_RUN_DATA)] = 0,
    class_map: Annotated[
        str,
        typer.Option(
            metavar="wnid|sorted",
            help="How folder names become classes: by ImageNet's table, or by their sorted order.",
            rich_help_panel=_RUN_DATA,
        ),
    ] = "wnid",
    on_bad_image: Annotated[
        str,
        typer.Option(
            metavar="stop|skip",
            help="Whether an unreadable image stops the run before it begins, or is left out and listed.",
            rich_help_panel=_RUN_DATA,
        ),
    ] = "stop",
    scheme: Annotated[
        str,
        typer.Option(
            metavar="per-channel|per-tensor", help="How weights are quantized.", rich_help_panel=_RUN_QUANTIZATION
        ),
    ] = "per-channel",
    engine: Annotated[
        str,
        typer.Option(
            metavar="fbgemm|x86|onednn|qnnpack",
            help="The PyTorch engine whose int8 arithmetic is the reference.",
            rich_help_panel=_RUN_QUANTIZATION,
        ),
    ] = "fbgemm",
    numerics: Annotated[
        str,
        typer.Option(metavar="torch", help="torch: the same bits as the engine.", rich_help_panel=_RUN_QUANTIZATION),
    ] = "torch",
    target: Annotated[
        str,
        typer.Option(metavar="TARGET", help="See: quantvm list targets.", rich_help_panel=_RUN_QUANTIZATION),
    ] = "native",
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Images in one call of a network.", rich_help_panel=_RUN_QUANTIZATION)
    ] = 8,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="T",
            help="Of both engines. Without it: TVM_NUM_THREADS, or else the physical cores.",
            rich_help_panel=_RUN_QUANTIZATION,
        ),
    ] = None,
    check_parity: Annotated[
        str | None,
        typer.Option(
            metavar="exact|lsb:N",
            help="Exit 1 if raw outputs differ at all, or by more than N steps of the output's quantization.",
            rich_help_panel=_RUN_CHECKS,
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Exit 1 if TVM's top-1 accuracy is below X percent.", rich_help_panel=_RUN_CHECKS
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder. Without it: runs/<time>-<id>.", rich_help_panel=_RUN_CHECKS),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print run.json instead of text.", rich_help_panel=_RUN_CHECKS)
    ] = False,
) -> None:
    """Quantize, compile, and compare accuracy and raw outputs of PyTorch and TVM on real images.

    Results go to stdout and, with one row for each image, into the run folder.

    Exit codes: 0 all well, 1 a check failed, 2 wrong option or input, 3 some models errored, 130 interrupted.
    """
    options = {name: value for name, value in locals().items() if name not in ("model", "as_json", "out")}
    with _errors_to_exit_codes():
        from quantvm.evaluate.benchmark import SILENT_OBSERVER, evaluate
        from quantvm.evaluate.config import RunConfig
        from quantvm.progress import progress_for_stderr
        from quantvm.report.console import ConsolePrinter
        from quantvm.report.run_folder import default_run_folder, run_json

        config = RunConfig(models=_names(model), out=out or default_run_folder(), **options)
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


_BENCH_MODELS = "Models and images"


@app.command()
def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="A model to measure; repeat it, or separate names by commas. Without it: every model whose weights "
            "can be had.",
            rich_help_panel=_BENCH_MODELS,
        ),
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="tvm, torch_fbgemm, torch_x86, torch_onednn, onnxruntime, openvino; repeat it, or separate names by "
            "commas. Without it: all that are installed. The last two need the extra `peers`.",
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
            rich_help_panel=_BENCH_MODELS,
        ),
    ] = "auto",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR", help="Images for the input. Without it: sample.", rich_help_panel=_BENCH_MODELS
        ),
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Images to calibrate on. Without it: the data's train part, or else the data's own.",
            rich_help_panel=_BENCH_MODELS,
        ),
    ] = None,
    calibration_samples: Annotated[
        int,
        typer.Option(metavar="N", help="Calibrate on N images, or all there are.", rich_help_panel=_BENCH_MODELS),
    ] = 64,
    seed: Annotated[int, typer.Option(metavar="S", help="Of every random choice.", rich_help_panel=_BENCH_MODELS)] = 0,
    scheme: Annotated[
        str,
        typer.Option(
            metavar="per-channel|per-tensor",
            help="How PyTorch and TVM quantize weights.",
            rich_help_panel=_RUN_QUANTIZATION,
        ),
    ] = "per-channel",
    tvm_engine: Annotated[
        str,
        typer.Option(
            metavar="fbgemm|x86|onednn|qnnpack",
            help="The PyTorch engine whose bits TVM must give, or it gets no time.",
            rich_help_panel=_RUN_QUANTIZATION,
        ),
    ] = "fbgemm",
    target: Annotated[
        str,
        typer.Option(metavar="TARGET", help="See: quantvm list targets.", rich_help_panel=_RUN_QUANTIZATION),
    ] = "native",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder. Without it: runs/<time>-<id>.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print bench.json instead of text.")] = False,
) -> None:
    """Measure the latency and throughput of int8 engines side by side, each in a process of its own.

    TVM's outputs are compared with PyTorch's, bit for bit, before anything is timed.

    Exit codes: 0 all well, 1 TVM gave wrong bits, 2 wrong option or input, 3 an engine errored or a named one is
    missing, 130 interrupted.
    """
    differing = ("model", "engines", "batch_size", "threads", "as_json", "out")
    options = {name: value for name, value in locals().items() if name not in (*differing, "differing")}
    with _errors_to_exit_codes():
        from quantvm.evaluate.bench import bench as measure
        from quantvm.evaluate.bench_config import BenchConfig
        from quantvm.progress import progress_for_stderr
        from quantvm.report.bench_text import bench_lines
        from quantvm.report.run_folder import default_run_folder, run_json

        config = BenchConfig(
            models=_names(model),
            engines=_names(engines),
            batch_sizes=_numbers(batch_size, "--batch-size") or (1,),
            threads=_numbers(threads, "--threads"),
            out=out or default_run_folder(),
            **options,
        )
        result = measure(config, progress=progress_for_stderr(), command=shlex.join(["quantvm", *sys.argv[1:]]))
        typer.echo(run_json(result.bench) if as_json else "\n".join(bench_lines(result.bench)), nl=not as_json)
        typer.echo(f"Results are in {config.out}", err=True)
        raise typer.Exit(result.exit_code)


@list_app.command("models")
def list_models(as_json: AsJson = False) -> None:
    """List the models, and whether their weights are on this machine."""
    from quantvm import inventory

    rows = inventory.list_models()
    _print(rows, inventory.model_lines(rows), as_json)


@list_app.command("data")
def list_data(as_json: AsJson = False) -> None:
    """List the named data sets, and whether they are on this machine."""
    from quantvm import inventory

    rows = inventory.list_data()
    _print(rows, inventory.data_lines(rows), as_json)


@list_app.command("ops")
def list_ops(as_json: AsJson = False) -> None:
    """List the PyTorch operators that can be imported."""
    from quantvm import inventory

    names = inventory.list_ops()
    _print(names, names, as_json)


@list_app.command("targets")
def list_targets(as_json: AsJson = False) -> None:
    """List what can be compiled for."""
    from quantvm import inventory

    rows = inventory.list_targets()
    _print(rows, inventory.target_lines(rows), as_json)


@fetch_app.command("weights")
def fetch_weights(
    model: Annotated[list[str] | None, typer.Option("--model", metavar="NAME", help="Without it: every model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Get the models' weights onto this machine; what is there already is only checked."""
    with _errors_to_exit_codes():
        from quantvm.inventory import fetch_all_weights, fetch_lines
        from quantvm.progress import progress_for_stderr

        rows = fetch_all_weights(_names(model), progress_for_stderr())
        _print(rows, fetch_lines(rows), as_json)
        if any(row["problem"] for row in rows):
            raise typer.Exit(EXIT_USAGE)


@fetch_app.command("data")
def fetch_data(
    name: Annotated[list[str], typer.Argument(metavar="NAME...", help="Named data sets, as --data of run takes them.")],
    as_json: AsJson = False,
) -> None:
    """Get named data sets onto this machine."""
    with _errors_to_exit_codes():
        from quantvm.data import fetch_data as fetch
        from quantvm.progress import progress_for_stderr

        folders = {each: str(fetch(each, progress_for_stderr())) for each in name}
        _print(folders, [f"{each}: {folder}" for each, folder in folders.items()], as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, processor, threads, and what can run without a network; exit 1 if something is in the way."""
    with _errors_to_exit_codes():
        from quantvm.evaluate.doctor import doctor_lines, examine

        report = examine()
        _print(report, doctor_lines(report), as_json)
        if report["problems"]:
            raise typer.Exit(EXIT_CHECK_FAILED)


def _names(given: list[str] | None) -> tuple[str, ...]:
    """Returns the names of a repeated option, each of which may hold several separated by commas."""
    return tuple(name.strip() for names in given or () for name in names.split(",") if name.strip())


def _numbers(given: list[str] | None, option: str) -> tuple[int, ...]:
    """Returns the whole numbers of a repeated option, each of which may hold several separated by commas."""
    wrong = [name for name in _names(given) if not name.isdecimal()]
    if wrong:
        raise typer.BadParameter(f"got '{', '.join(wrong)}', expected whole numbers", param_hint=option)
    return tuple(int(name) for name in _names(given))


def _print(value: object, lines: Iterable[str], as_json: bool) -> None:
    """Prints the value as JSON, or the lines."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))
