"""``quantvm cache``: compiled models that are kept for the next time."""

from __future__ import annotations

import typer

from quantvm.cli.arguments import AsJson, errors_to_exit_codes, print_result

cache_app = typer.Typer(help="Compiled models that are kept for the next time: list, clear.", no_args_is_help=True)


@cache_app.command("list")
def list_cache(as_json: AsJson = False) -> None:
    """List the compiled models that are kept, the last used first."""
    with errors_to_exit_codes():
        from quantvm.jobs.compilation.compiled_cache import describe_cache
        from quantvm.jobs.compilation.text import cache_lines

        cache = describe_cache()
        print_result(cache, cache_lines(cache), as_json)


@cache_app.command("clear")
def clear_cache(as_json: AsJson = False) -> None:
    """Remove all compiled models that are kept; downloads stay."""
    with errors_to_exit_codes():
        from quantvm.compiler.cache import default_cache
        from quantvm.report.table import bytes_text

        cache = default_cache()
        count, size_bytes = cache.clear()
        line = f"removed {count} compiled model{'' if count == 1 else 's'}, {bytes_text(size_bytes)}"
        result = {"folder": str(cache.folder), "removed": count, "removed_bytes": size_bytes}
        print_result(result, [f"{line}, from {cache.folder}"], as_json)
