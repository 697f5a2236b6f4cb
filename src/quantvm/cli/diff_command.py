"""``quantvm diff``: which layers differ, and why."""

from __future__ import annotations

import typer

from quantvm.cli.arguments import print_result
from quantvm.cli.options import with_options_of
from quantvm.jobs.layer_differences.config import DiffConfig


@with_options_of(DiffConfig)
def diff(config: DiffConfig, as_json: bool) -> None:
    """Compare every quantized tensor of two runs of one model, and say which layers differ and why.

    A layer that differs is computed again from the reference's own inputs: its own differences are told from inherited
    ones, and rules (how ties are rounded, where the zero point is added, and so on) are tried until one explains every
    element. Where TVM is a side, its fused code must give the outputs of the code that gave the layers.

    Exit codes: 0 all layers are equal, 1 some differ or fusion changes an output, 2 wrong option or input, 4 results
    could not be written, 130 interrupted.
    """
    from quantvm import api
    from quantvm.jobs.layer_differences.text import diff_lines
    from quantvm.progress import progress_for_stderr

    result = api.diff(config, progress=progress_for_stderr())
    print_result(result.row, diff_lines(result.row), as_json)
    raise typer.Exit(result.exit_code)
