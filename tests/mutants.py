"""Changes the code in one place at a time and counts the changes that tests notice; see CONTRIBUTING.md.

`python -m tests.mutants cover PATH ...` runs tests, and keeps which lines of `TARGETS` each of them reaches.
`python -m tests.mutants run` draws changes ("mutants"), and for each runs the fastest tests that reach its line.

A mutant lives in memory alone, in a fork of a process that has imported everything already: no file is changed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import json
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("src/quantvm/numerics", "src/quantvm/lowering")
COVERAGE, OUTCOMES = Path(".mutants_coverage.json"), Path(".mutants_outcomes.jsonl")
QUIET = ["-q", "-n0", "-p", "no:cacheprovider"]

OPERATORS = (
    *(f"ReplaceBinaryOperator_{names}" for names in (
        "Add_Sub", "Sub_Add", "Mul_FloorDiv", "Mul_Add", "Div_Mul", "FloorDiv_Mul", "FloorDiv_Mod", "Mod_FloorDiv",
        "Pow_Mul", "RShift_LShift", "LShift_RShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd")),
    *(f"ReplaceComparisonOperator_{names}" for names in (
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
        "Is_IsNot", "IsNot_Is")),
    "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "NumberReplacer",
)  # fmt: skip
"""Cosmic Ray's operators on arithmetic, comparisons, conditions and constants."""

TEXTS = {"raise_stmt", "fstring", "import_from", "import_name", "tfpdef"}
"""Syntax in which a change is one of a text or of a type."""


@dataclass(frozen=True)
class Mutant:
    """One change: an operator of Cosmic Ray at its nth place in a file."""

    path: str
    line: int
    operator: str
    occurrence: int

    def code(self) -> tuple[CodeType, CodeType]:
        """Returns the file as it is and as it is changed, compiled."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        path = ROOT / self.path
        changed = mutate_code(path.read_text(), get_operator(f"core/{self.operator}")(), self.occurrence)
        return tuple(compile(text, str(path), "exec", dont_inherit=True) for text in (path.read_text(), changed))


def mutants_of(path: str) -> Iterator[Mutant]:
    """Each change that `OPERATORS` can make in a file, but for those of texts and types."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    nodes = list(ast_nodes(get_ast((ROOT / path).read_text())))
    for name in OPERATORS:
        operator, occurrence = get_operator(f"core/{name}")(), 0
        for node in nodes:
            for (line, _), _ in operator.mutation_positions(node):
                if not _is_text(node):
                    yield Mutant(path, line, name, occurrence)
                occurrence += 1


def _is_text(node: Any) -> bool:
    inner, outer = node, node.parent
    while outer is not None:
        is_annotation = outer.type == "annassign" and inner is outer.children[1]
        is_returned_type = outer.type == "funcdef" and inner is outer.annotation
        is_star = inner is node and outer.type == "parameters"
        if outer.type in TEXTS or is_annotation or is_returned_type or is_star:
            return True
        inner, outer = outer, outer.parent
    return False


# ------------------------------------------------------------------ which tests reach which line


class _Watch:
    """Notes which test runs, how long it takes, and which one failed."""

    def __init__(self, coverage: Any = None):
        self.coverage, self.seconds, self.failed = coverage, {}, ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start = time.process_time()
        if self.coverage:
            self.coverage.switch_context(item.nodeid)
        result = yield
        if self.coverage:
            self.coverage.switch_context("")
        self.seconds[item.nodeid] = round(time.process_time() - start, 3)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid


def cover(paths: list[str], out: Path) -> None:
    """Runs tests, and writes how long each takes and which of them reach a line; "" stands for imports."""
    from coverage import Coverage

    coverage = Coverage(data_file=None, config_file=False, include=[f"{ROOT / target}/*" for target in TARGETS])
    watch = _Watch(coverage)
    coverage.start()
    code = pytest.main([*QUIET, *paths], plugins=[watch])
    coverage.stop()
    if code:
        raise SystemExit("tests fail before anything is changed")
    data = coverage.get_data()
    lines = {str(Path(path).relative_to(ROOT)): data.contexts_by_lineno(path) for path in data.measured_files()}
    out.write_text(json.dumps({"seconds": watch.seconds, "lines": lines}))


def read_coverage(paths: list[Path]) -> dict[str, Any]:
    """Returns the union of what `cover` wrote."""
    seconds: dict[str, float] = {}
    found: dict[str, dict[str, set[str]]] = {}
    for part in map(json.loads, map(Path.read_text, paths)):
        seconds |= part["seconds"]
        for path, lines in part["lines"].items():
            for line, tests in lines.items():
                found.setdefault(path, {}).setdefault(line, set()).update(tests)
    return {"seconds": seconds, "lines": found}


def reached(mutant: Mutant, covered: dict[str, Any]) -> set[str]:
    """The tests that reach the statement of a mutant, or the head of it; "" if it runs on import."""
    starts = ((mutant.line, mutant.line),)
    for node in ast.walk(ast.parse((ROOT / mutant.path).read_text())):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            if node.lineno <= mutant.line <= max(last, node.lineno):
                starts = (*starts, (node.lineno, last))
    lines = covered["lines"].get(mutant.path, {})
    first, last = starts[-1]
    return set().union(*(lines.get(str(line), ()) for line in range(first, last + 1)))


def covering_tests(mutant: Mutant, covered: dict[str, Any], budget_s: float) -> list[str]:
    """The fastest tests that reach a mutant, as many as fit into the time.

    Where it runs on import, those that reach any line of the file.
    """
    tests, seconds = reached(mutant, covered), covered["seconds"]
    if "" in tests:
        tests = set().union(*covered["lines"][mutant.path].values())
    tests = tests - {""}
    chosen, total_s = [], 0.0
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        total_s += seconds[test]
        if chosen and total_s > budget_s:
            break
        chosen.append(test)
    return chosen


# ------------------------------------------------------------------ one mutant


def outcome_of(test: Callable[[], str], limit_s: int) -> str:
    """Returns what `test` returns in a child process, or `timed out` if that takes too much processor time."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.close(read_end)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + limit_s,) * 2)
        signal.alarm(10 * limit_s)  # a deadlock takes no processor time
        quiet = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        text = "killed by an error"
        with contextlib.suppress(BaseException):
            text = test()
        os.write(write_end, text.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return text or "timed out"


def tested_on_import(mutant: Mutant, tests: list[str]) -> str:
    """Imports quantvm with the change, and runs tests until one fails."""
    path, (_, changed), original = str(ROOT / mutant.path), mutant.code(), SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
        return changed if loader.path == path else original(loader, name)

    SourceFileLoader.get_code = get_code
    watch = _Watch()
    code = pytest.main([*QUIET, "-x", *tests], plugins=[watch])
    return "survived" if code == 0 else f"killed by {watch.failed or 'an error on import'}"


def tested_when_imported(mutant: Mutant, functions: list[FunctionType], items: list[pytest.Item], watch: _Watch) -> str:
    """Puts the change into the functions that were imported, and runs tests until one fails."""
    new = dict(zip(*map(_with_inner, mutant.code()), strict=True))
    for function in functions:
        function.__code__ = new.get(function.__code__, function.__code__)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if watch.failed:
            return f"killed by {watch.failed}"
    return "survived"


def _with_inner(code: CodeType) -> list[CodeType]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return [code, *(each for const in inner for each in _with_inner(const))]


def in_processes(jobs: int, work: list[Any], function: Callable[..., None]) -> None:
    """Calls a function for each piece of work, in several forks of this process."""
    children = []
    for job in range(jobs):
        children.append(os.fork())
        if not children[-1]:
            os.setsid()  # the system shares processors between sessions
            for arguments in work[job::jobs]:
                function(*arguments)
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)


class _Loop:
    """Runs after the tests are collected, in place of running them."""

    def __init__(self, jobs: int, work: list[tuple[Mutant, list[str]]], try_one: Callable[..., None]):
        self.jobs, self.work, self.try_one, self.watch = jobs, work, try_one, _Watch()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.config.pluginmanager.register(self.watch)
        items = {item.nodeid: item for item in session.items}
        functions = [each for each in gc.get_objects() if type(each) is FunctionType]
        gc.freeze()  # so that children copy less

        def try_one(mutant: Mutant, tests: list[str]) -> None:
            chosen = [items[test] for test in tests]
            self.try_one(mutant, partial(tested_when_imported, mutant, functions, chosen, self.watch))

        in_processes(self.jobs, self.work, try_one)
        return True


def run(
    seed: int, first: int, count: int, coverage: list[Path], out: Path, limit_s: int, budget_s: float, jobs: int
) -> None:
    """Tries mutants `first` to `first + count` of a shuffled list of all, and appends each outcome to a file.

    Those whose outcome the file has already are left out.
    """
    import onnxruntime  # noqa: F401
    import torch._dynamo  # noqa: F401
    import tvm  # noqa: F401

    covered = read_coverage(coverage)
    files = sorted(str(path.relative_to(ROOT)) for target in TARGETS for path in (ROOT / target).rglob("*.py"))
    mutants = [mutant for path in files for mutant in mutants_of(path)]
    print(f"{len(mutants)} mutants in {len(files)} files")
    random.Random(seed).shuffle(mutants)
    drawn = mutants[first : first + count]

    def report(mutant: Mutant, outcome: str) -> None:
        row = {"number": mutants.index(mutant), **asdict(mutant), "outcome": outcome}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def try_one(mutant: Mutant, test: Callable[[], str]) -> None:
        report(mutant, outcome_of(test, limit_s))

    done = {json.loads(row)["number"] for row in out.read_text().splitlines()} if out.exists() else set()
    in_functions, on_import = [], []
    for mutant in (mutant for number, mutant in enumerate(drawn, first) if number not in done):
        tests = covering_tests(mutant, covered, budget_s)
        if not tests:
            report(mutant, "no test")
        else:
            (on_import if "" in reached(mutant, covered) else in_functions).append((mutant, tests))
    files_of_tests = sorted({test.partition("::")[0] for _, tests in in_functions for test in tests})
    child = os.fork()  # this process must not import quantvm
    if not child:
        pytest.main([*QUIET, *files_of_tests], plugins=[_Loop(jobs, in_functions, try_one)])
        os._exit(0)
    os.waitpid(child, 0)
    in_processes(jobs, on_import, lambda mutant, tests: try_one(mutant, partial(tested_on_import, mutant, tests)))
    outcomes = [json.loads(row)["outcome"] for row in out.read_text().splitlines()]
    print(dict(Counter(outcome.partition(" by ")[0] for outcome in outcomes)))


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    covering = commands.add_parser("cover")
    covering.add_argument("paths", nargs="+")
    covering.add_argument("--out", type=Path, default=COVERAGE)
    running = commands.add_parser("run")
    running.add_argument("--seed", type=int, default=15)
    running.add_argument("--first", type=int, default=0)
    running.add_argument("--count", type=int, default=500)
    running.add_argument("--coverage", type=Path, nargs="+", default=[COVERAGE])
    running.add_argument("--limit-s", type=int, default=40, help="processor time of one mutant")
    running.add_argument("--budget-s", type=float, default=4, help="processor time of its tests, without the change")
    running.add_argument("--jobs", type=int, default=2)
    running.add_argument("--out", type=Path, default=OUTCOMES)
    options = vars(parser.parse_args())
    {"cover": cover, "run": run}[options.pop("command")](**options)


if __name__ == "__main__":
    main()
