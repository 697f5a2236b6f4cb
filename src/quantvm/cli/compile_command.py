"""``quantvm compile``: a model into one file."""

from __future__ import annotations

import typer

from quantvm.cli.arguments import print_result
from quantvm.cli.options import with_options_of
from quantvm.jobs.compilation.config import CompileConfig


@with_options_of(CompileConfig)
def compile(config: CompileConfig, as_json: bool) -> None:  # noqa: A001 - the command's name
    """Compile a quantized model into one file, which quantvm.load runs without PyTorch.

    Exit codes: 0 all well, 1 a check failed, 2 wrong option or input, or a model that cannot be compiled, 4 the file
    could not be written, 130 interrupted.
    """
    from quantvm.jobs.compilation.compile_to_file import compile_to_file
    from quantvm.jobs.compilation.text import compile_lines
    from quantvm.progress import progress_for_stderr

    result = compile_to_file(config, progress=progress_for_stderr())
    print_result(result.row, compile_lines(result.row), as_json)
    if result.row["problem"]:
        typer.echo(f"quantvm: {result.row['problem']}", err=True)
    raise typer.Exit(result.exit_code)
