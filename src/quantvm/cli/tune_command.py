"""``quantvm tune``: the fastest schedules of this CPU."""

from __future__ import annotations

import typer

from quantvm.cli.arguments import print_result
from quantvm.cli.options import with_options_of
from quantvm.jobs.tuning.config import TuneConfig


@with_options_of(TuneConfig)
def tune(config: TuneConfig, as_json: bool) -> None:
    """Search for the fastest schedule of every convolution on this CPU, by measuring.

    The outputs do not depend on it, only the time. Leave the machine alone meanwhile; it takes about two seconds for
    each convolution.

    Exit codes: 0 all well, 2 wrong option or input, 4 the file could not be written, 130 interrupted, with what was
    found until then written.
    """
    from quantvm import api
    from quantvm.jobs.tuning.text import tune_lines
    from quantvm.progress import progress_for_stderr

    result = api.tune(config, progress=progress_for_stderr())
    print_result(result.row, tune_lines(result.row), as_json)
    raise typer.Exit(result.exit_code)
