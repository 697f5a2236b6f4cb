"""Lists of what is available, and where it is: models, weights, data sets, operators, targets, kernels.

Nothing here imports torch or tvm, except `list_kernels`, which asks the compiler what a target can do.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from quantvm.data.forms import FORMS
from quantvm.data.sets import DATASETS, NamedSet
from quantvm.errors import QuantvmError
from quantvm.models import MODELS, get_model
from quantvm.models.weights import resolve_weights, weights_at_hand
from quantvm.progress import SILENT, Progress
from quantvm.runtime.target import cpu_features, cpu_model
from quantvm.storage.download import cache_dir

if TYPE_CHECKING:
    from quantvm.kernels.catalogue import Candidate


class ModelListing(TypedDict):
    """One registered model."""

    name: str
    title: str
    input_px: int
    published_top1: float | None  # percent, of the float weights on the 50,000 validation images
    published_top5: float | None
    weights: str
    at_hand: bool


class DataListing(TypedDict):
    """One named data set."""

    name: str
    n_images: int
    description: str
    at_hand: bool


class FormListing(TypedDict):
    """A form in which ImageNet lies on disks."""

    name: str
    recognized_by: str
    labels: str  # how the classes follow


class TargetListing(TypedDict):
    """One target to compile for; any other `llvm -mcpu=NAME [-mattr=+a,-b]` that LLVM knows also works."""

    name: str
    description: str
    runs_here: bool


class CandidateListing(TypedDict):
    """One implementation of a kernel."""

    name: str
    chosen: bool
    missing: list[str]  # features that it requires and the target lacks


class KernelListing(TypedDict):
    """One kernel and its implementations, the preferred one first; the first that lacks no feature is chosen."""

    name: str
    description: str
    applies_to: str  # which cases the choice is for, and what the other cases use
    candidates: list[CandidateListing]
    groups: list[CandidateListing]  # groups of special instructions that it can use; chosen: the target has it


class KernelsListing(TypedDict):
    """What a target gets for each kernel."""

    target: str
    kernels: list[KernelListing]


class FetchedWeights(TypedDict):
    """The result of fetching one model's weights: where they are, or the problem."""

    name: str
    source: str | None
    path: str | None
    sha256: str | None
    problem: str | None


def list_models() -> list[ModelListing]:
    """Returns the registered models in the order of the reports."""
    return [
        {
            "name": spec.name,
            "title": spec.title,
            "input_px": spec.preprocessing.crop,
            "published_top1": spec.published_top1,
            "published_top5": spec.published_top5,
            "weights": spec.weights.package or spec.weights.url or spec.weights.file_name,
            "at_hand": weights_at_hand(spec),
        }
        for spec in MODELS
    ]


def model_lines(rows: Sequence[ModelListing]) -> list[str]:
    """Returns the models as a table."""
    head = ("name", "input", "published top-1", "top-5", "weights")
    cells = [
        (
            row["name"],
            f"{row['input_px']} px",
            _percent(row["published_top1"]),
            _percent(row["published_top5"]),
            "on this machine" if row["at_hand"] else f"to be had from {row['weights']}",
        )
        for row in rows
    ]
    return columns([head, *cells])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def list_data() -> list[DataListing]:
    """Returns the named data sets."""
    return [
        {
            "name": named.name,
            "n_images": named.n_images,
            "description": named.description,
            "at_hand": _is_at_hand(named),
        }
        for named in DATASETS.values()
    ]


def _is_at_hand(named: NamedSet) -> bool:
    if named.package is not None:
        return importlib.util.find_spec(named.package) is not None
    return (cache_dir() / "data" / named.name).is_dir()


def list_forms() -> list[FormListing]:
    """Returns the forms in which ImageNet is read from a folder or an archive, in the order in which they are tried."""
    return [{"name": form.name, "recognized_by": form.recognized_by, "labels": form.labels} for form in FORMS.values()]


def form_lines(rows: Sequence[FormListing]) -> list[str]:
    """Returns a table as text."""
    return columns([[row["name"], f"{row['recognized_by']}. Class: {row['labels']}"] for row in rows])


def data_lines(rows: Sequence[DataListing]) -> list[str]:
    """Returns the data sets as a table."""
    head = ("name", "images", "where", "what")
    cells = [
        (
            row["name"],
            f"{row['n_images']:,}",
            "on this machine" if row["at_hand"] else "to download",
            row["description"],
        )
        for row in rows
    ]
    return columns([head, *cells])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines in which the columns are aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def list_ops() -> list[str]:
    """Returns the qualified names of the PyTorch operators that have a converter, sorted.

    They are read from the tables of operators and from the decorators in the frontend's source, because importing the
    converters would import tvm. A test compares the result with the registry.
    """
    from quantvm.numerics.activations import ACTIVATIONS
    from quantvm.numerics.float_operators import FLOAT_OPERATORS

    declared = {name for activation in ACTIVATIONS.values() for name in activation.torchscript}
    declared |= {operator.aten for operator in FLOAT_OPERATORS.values() if operator.aten}
    spec = importlib.util.find_spec("quantvm.frontend")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    sources = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    return sorted(declared.union(*(_registered_in(path.read_text(encoding="utf-8")) for path in sources)))


def _registered_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        for decorator in getattr(node, "decorator_list", ()):
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == "register_converter":
                yield from (str(name.value) for name in decorator.args if isinstance(name, ast.Constant))


# Names, what they stand for, and the extensions that a processor must have to run what is compiled for them.
_TARGETS = (
    ("llvm -mcpu=sapphirerapids", "x86-64 with AVX-512 VNNI and AMX", {"avx512_vnni", "avx512vl", "amx_int8"}),
    ("llvm -mcpu=cascadelake", "x86-64 with AVX-512 VNNI", {"avx512_vnni", "avx512vl"}),
    ("llvm -mcpu=alderlake", "x86-64 with AVX-VNNI, without AVX-512", {"avx_vnni", "avx2", "fma"}),
    ("llvm -mcpu=skylake-avx512", "x86-64 with AVX-512, without VNNI", {"avx512bw", "avx512vl"}),
    ("llvm -mcpu=haswell", "x86-64 with AVX2", {"avx2", "fma"}),
)


def list_targets() -> list[TargetListing]:
    """Returns this machine as a target, and common other ones."""
    features = set(cpu_features())
    here: TargetListing = {"name": "native", "description": f"this machine: {cpu_model()}", "runs_here": True}
    others: list[TargetListing] = [
        {"name": name, "description": description, "runs_here": needed <= features}
        for name, description, needed in _TARGETS
    ]
    return [here, *others]


def target_lines(rows: Sequence[TargetListing]) -> list[str]:
    """Returns the targets as a table."""
    cells = [(row["name"], "yes" if row["runs_here"] else "no", row["description"]) for row in rows]
    return columns([("target", "runs here", "what"), *cells])


def list_kernels(target: str = "native") -> KernelsListing:
    """Returns which implementation of each kernel `target` gets, from the code that selects them.

    Raises:
        CompileError: no code can be generated for the target.
    """
    from quantvm.kernels.catalogue import kernel_choices
    from quantvm.runtime.target import parse_target, target_text

    parsed = parse_target(target)
    kernels: list[KernelListing] = [
        {
            "name": choice.name,
            "description": choice.summary,
            "applies_to": choice.applies_to,
            "candidates": [_candidate(each) for each in choice.candidates],
            "groups": [_candidate(each) for each in choice.groups],
        }
        for choice in kernel_choices(parsed)
    ]
    return {"target": target_text(parsed), "kernels": kernels}


def _candidate(candidate: Candidate) -> CandidateListing:
    return {"name": candidate.name, "chosen": candidate.chosen, "missing": list(candidate.missing)}


def kernel_lines(listing: KernelsListing) -> list[str]:
    """Returns the kernels with several implementations, with the reason for each, and then those with only one."""
    lines = [f"Target: {listing['target']}", ""]
    alike: dict[str, list[KernelListing]] = {}
    for kernel in listing["kernels"]:
        alike.setdefault(str(kernel["candidates"]), []).append(kernel)
    for kernels in sorted(alike.values(), key=lambda group: -len(group[0]["candidates"])):
        candidates = kernels[0]["candidates"]
        if len(candidates) == 1:
            lines += _group_lines(listing)
            lines += ["One implementation for every CPU, but for these groups:"]
            rows = [(k["name"], k["description"].partition(": ")[0]) for k in kernels]
            lines += [f"  {line}" for line in columns(rows)]
            continue
        lines.append(f"{', '.join(kernel['name'] for kernel in kernels)} ({kernels[0]['applies_to']}):")
        lines += [*(f"  {line}" for line in columns([(c["name"], _reason(c)) for c in candidates])), ""]
    return lines


def _group_lines(listing: KernelsListing) -> list[str]:
    """Returns the special instructions that kernels can use, and which kernels these are."""
    using = [kernel for kernel in listing["kernels"] if kernel["groups"]]
    if not using:
        return []
    head = f"Groups of instructions used by {', '.join(kernel['name'] for kernel in using)}:"
    rows = [(g["name"], f"lacks {', '.join(g['missing'])}" if g["missing"] else "used") for g in using[0]["groups"]]
    return [head, *(f"  {line}" for line in columns(rows)), ""]


def _reason(candidate: CandidateListing) -> str:
    if candidate["missing"]:
        return f"lacks {', '.join(candidate['missing'])}"
    return "chosen: the first that lacks nothing" if candidate["chosen"] else "would run, but comes after"


def fetch_all_weights(names: Sequence[str], progress: Progress = SILENT) -> list[FetchedWeights]:
    """Returns where the weights of the named models (or of all) are now, downloading what is missing.

    Raises:
        UnknownNameError: there is no model of a name.
    """
    specs = [get_model(name) for name in names] or MODELS
    rows: list[FetchedWeights] = []
    for spec in specs:
        row: FetchedWeights = {"name": spec.name, "source": None, "path": None, "sha256": None, "problem": None}
        try:
            found = resolve_weights(spec, "auto", progress)
        except QuantvmError as error:
            row["problem"] = str(error)
        else:
            row["source"], row["path"], row["sha256"] = found.source, str(found.path), found.sha256
        rows.append(row)
    return rows


def fetch_lines(rows: Sequence[FetchedWeights]) -> list[str]:
    """Returns one line for each model."""
    return [f"{row['name']}: {row['problem'] or row['path']}" for row in rows]
