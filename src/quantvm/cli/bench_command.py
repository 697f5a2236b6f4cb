"""``quantvm bench``: latency and throughput."""

from __future__ import annotations

import dataclasses
import shlex
import sys

import typer

from quantvm.cli.options import with_options_of
from quantvm.jobs.latency.config import BenchConfig


@with_options_of(BenchConfig, json="bench.json")
def bench(config: BenchConfig, as_json: bool) -> None:
    """Measure the latency and throughput of int8 engines side by side, each in a process of its own.

    TVM's outputs are compared with PyTorch's, bit for bit, before anything is timed.

    Exit codes: 0 all well, 1 TVM gave wrong bits, 2 wrong option or input, 3 an engine errored or a named one is
    missing, 4 results or temporary files could not be written, 130 interrupted.
    """
    from quantvm import api
    from quantvm.jobs.latency.text import bench_lines
    from quantvm.progress import progress_for_stderr
    from quantvm.report.run_folder import default_run_folder, run_json

    config = dataclasses.replace(config, out=config.out or default_run_folder())
    result = api.bench(config, progress=progress_for_stderr(), command=shlex.join(["quantvm", *sys.argv[1:]]))
    typer.echo(run_json(result.bench) if as_json else "\n".join(bench_lines(result.bench)), nl=not as_json)
    typer.echo(f"Results are in {config.out}", err=True)
    raise typer.Exit(result.exit_code)
