"""What holds for the repository as a whole: links, imports, names, quick starts."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quantvm

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(quantvm.__path__, "quantvm.", onerror=lambda name: None)
    if module.name != "quantvm.__main__"
)
# Seconds each: what merely tells, or lists, must not import them.
HEAVY = ("torch", "torchvision", "tvm", "pyarrow", "scipy")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    targets = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert missing == []


def test_the_readme_opens_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("make bench") < text.index("make test") < text.index("\n## ")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_and_is_documented(module):
    assert inspect.getdoc(importlib.import_module(module))


def test_every_public_name_is_there_and_documented():
    for name in quantvm.__all__:
        value = getattr(quantvm, name)
        assert isinstance(value, str) or inspect.getdoc(value), name


def test_public_names_are_declared_once_for_the_type_checker_and_once_for_the_import():
    source = (ROOT / "src" / "quantvm" / "__init__.py").read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:")[1].split("__all__")[0]
    imports = re.findall(r"import ([\w, ]+)", block)
    declared = {name.strip() for names in imports for name in names.split(",")}
    assert declared | {"__version__"} == set(quantvm.__all__)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'lower'; it has .*evaluate"):
        quantvm.lower  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("run", "--help"),
        ("bench", "--help"),
        ("list", "models"),
        ("list", "data"),
        ("list", "ops"),
        ("list", "targets"),
        ("fetch", "--help"),
        ("compile", "--help"),
        ("cache", "list"),
        ("doctor", "--help"),
    ],
    ids=" ".join,
)
def test_telling_and_listing_import_nothing_heavy(arguments):
    program = (
        "import sys\n"
        f"sys.argv = ['quantvm', *{arguments!r}]\n"
        "from quantvm.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_does_not_wait_for_numpy():
    program = "import sys\nfrom quantvm.cli import main\nsys.argv[1:] = ['--help']\n"
    program += "try:\n    main()\nexcept SystemExit:\n    print('NUMPY', 'numpy' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "NUMPY False", done.stderr


def test_every_command_and_option_has_help():
    import typer.main

    from quantvm.cli import app

    def check(command, path):
        assert command.help, path
        for parameter in command.params:
            assert getattr(parameter, "help", None), (path, parameter.name)
        for name, inner in getattr(command, "commands", {}).items():
            check(inner, f"{path} {name}")

    check(typer.main.get_command(app), "quantvm")


@pytest.mark.parametrize("command", ["run", "bench", "compile"])
def test_the_readme_names_every_option(command):
    import typer.main

    from quantvm.cli import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    options = [option for p in typer.main.get_command(app).commands[command].params for option in p.opts]
    assert [option for option in options if option.startswith("--") and f"`{option}" not in text] == []


READS_PICKLES = ROOT / "src/quantvm/frontend/torchscript/archive.py"
PICKLING = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_nothing_is_pickled_or_unpickled():
    """Neither by Python's means, nor by a loader of NumPy or PyTorch that would run what a file tells it to.

    `frontend/torchscript/archive.py` reads pickles with classes that do nothing, to see whether PyTorch may read them.
    """
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.name}:{getattr(node, 'lineno', 0)}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [name for name in names if (path, name) != (READS_PICKLES, "pickle")]
            found += [f"{place} {name}" for name in names if name.split(".")[0] in PICKLING]
            if not isinstance(node, ast.Call):
                continue
            told = [each for each in node.keywords if each.arg in ("weights_only", "allow_pickle")]
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in told}
            called = ast.unparse(node.func) if getattr(node.func, "attr", "") == "load" else ""
            if called == "torch.load" and options.get("weights_only") != "True":
                found.append(f"{place} torch.load")
            if called == "torch.export.load":
                found.append(f"{place} torch.export.load")
            if options.get("allow_pickle", "False") != "False":
                found.append(f"{place} allow_pickle")
    assert found == []


def test_package_data_is_where_the_code_looks_for_it():
    from importlib.resources import files

    assert files("quantvm").joinpath("data", "imagenet_classes.tsv").is_file()
    assert files("quantvm").joinpath("py.typed").is_file()


def test_constraints_fit_the_dependencies():
    """A pin that pyproject.toml forbids would make every installation fail."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(_normal(pin.name), []).append(pin)
    for requirement in map(Requirement, wanted):
        if _normal(requirement.name) == "quantvm":  # an extra that takes in others
            continue
        for pin in pins[_normal(requirement.name)]:
            (version,) = (Version(specifier.version) for specifier in pin.specifier)
            assert version in requirement.specifier, f"{pin} against {requirement}"
    for python in ("3.10", "3.11", "3.13"):
        for name, found in pins.items():
            fitting = [p for p in found if p.marker is None or p.marker.evaluate({"python_version": python})]
            assert len(fitting) <= 1, f"{name} is pinned twice for Python {python}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_page_of_supported_operators_is_fresh():
    from quantvm.supported_ops import supported_ops_markdown

    page = (ROOT / "docs" / "supported_ops.md").read_text(encoding="utf-8")
    assert page == supported_ops_markdown(), "quantvm list ops --markdown > docs/supported_ops.md"
