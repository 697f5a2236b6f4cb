"""``quantvm cache``: compiled models, and answers of float models, that are kept for the next time."""

from __future__ import annotations

import typer

from quantvm.cli.arguments import AsJson, errors_to_exit_codes, print_result

cache_app = typer.Typer(
    help="What is kept for the next time, compiled models and answers of float models: list, clear.",
    no_args_is_help=True,
)


@cache_app.command("list")
def list_cache(as_json: AsJson = False) -> None:
    """List the compiled models that are kept, the last used first, and the size of float models' answers."""
    with errors_to_exit_codes():
        from quantvm.jobs.compilation.compiled_cache import describe_cache
        from quantvm.jobs.compilation.text import cache_lines
        from quantvm.jobs.evaluation.float_answers import float_answers_folder, kept_float_answers
        from quantvm.report.table import bytes_text

        cache = describe_cache()
        sizes = [path.stat().st_size for path in kept_float_answers()]
        answers = {"folder": str(float_answers_folder()), "files": len(sizes), "total_bytes": sum(sizes)}
        lines = cache_lines(cache)
        if sizes:
            size = bytes_text(sum(sizes))
            lines.append(f"answers of float models: {len(sizes)} shards, {size}, in {answers['folder']}")
        print_result({**cache, "float_answers": answers}, lines, as_json)


@cache_app.command("clear")
def clear_cache(as_json: AsJson = False) -> None:
    """Remove all compiled models and answers of float models that are kept; downloads stay."""
    with errors_to_exit_codes():
        from quantvm.compiler.cache import default_cache
        from quantvm.jobs.evaluation.float_answers import clear_float_answers
        from quantvm.report.table import bytes_text

        cache = default_cache()
        count, size_bytes = cache.clear()
        n_answers, answers_bytes = clear_float_answers()
        lines = [
            f"removed {count} compiled model{'' if count == 1 else 's'}, {bytes_text(size_bytes)}, from {cache.folder}"
        ]
        if n_answers:
            lines.append(f"removed answers of float models: {n_answers} shards, {bytes_text(answers_bytes)}")
        result = {"folder": str(cache.folder), "removed": count, "removed_bytes": size_bytes}
        print_result({**result, "removed_float_answers_bytes": answers_bytes}, lines, as_json)
