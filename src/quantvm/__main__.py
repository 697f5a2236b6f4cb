"""``python -m quantvm`` is the command ``quantvm``."""

import sys

from quantvm.errors import MissingPackageError, missing_package_named
from quantvm.process import run_command


def main() -> None:
    """Runs the command line of this process, or says which package it misses."""
    run_command(_command_line)


def _command_line() -> None:
    try:
        with missing_package_named():
            from quantvm.cli import main as command_line

            command_line()
    except MissingPackageError as error:
        print(f"quantvm: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
