"""Results as text: the original benchmark's lines for each model, its Markdown table, and the conditions under it.

Everything is made from run.json alone, so that a report can be made again from a run folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from quantvm.jobs.evaluation.schema import ModelRow, RunRow
from quantvm.score.schema import AccuracyRow, ParityRow

TABLE_HEAD = ("Model name | Torch-Top1 | Torch-Top5 | TVM-Top1 | TVM-Top5", "-- | -- | -- | -- | --")
DETAIL_HEAD = (
    "Model name | Status | fp32-Top1 | fp32-Top5 | Identical outputs | Identical images | Top-1 agreement | int8 MACs "
    "| Compile",
    "-- | -- | -- | -- | -- | -- | -- | -- | --",
)


def model_lines(model: ModelRow) -> list[str]:
    """Returns what is printed for one model: the original's lines on its first image, then what holds for all images.

    A model that was not measured has its status, reason and remedy instead.
    """
    scheme = model["scheme"].replace("-", " ")
    flow = "" if model["flow"] == "eager" else f", flow {model['flow']}"
    follows = "" if model["numerics"] == "torch" else f", numerics {model['numerics']}"
    lines = [f"Model name: {model['title']}, {scheme} quantization{flow}{follows}"]
    if model["torch"] is not None:
        lines += [f"{model['reference']} accuracy: {_accuracy(model['torch'])}"]
    if model["tvm"] is not None:
        lines += [f"TVM accuracy: {_accuracy(model['tvm'])}"]
    if model["parity"] is not None:
        lines += _first_image_lines(model["parity"], str(model["reference"]))
        lines += _all_images_lines(model, model["parity"])
    return [*lines, *_status_lines(model)]


def _name(model: ModelRow) -> str:
    """Returns a row's name: a model has one row for each flow and numerics."""
    flow = [] if model["flow"] == "eager" else [model["flow"]]
    usual = "qdq" if model["flow"] == "pt2e" else "torch"
    numerics = [] if model["numerics"] == usual else [model["numerics"]]
    known = ", ".join([*flow, *numerics])
    return f"{model['title']} ({known})" if known else model["title"]


def _accuracy(row: AccuracyRow) -> str:
    return f"Top1 = {row['top1']:.2f}, Top5 = {row['top5']:.2f}"


def _first_image_lines(parity: ParityRow, reference: str) -> list[str]:
    first = parity["first_image"]
    return [
        f"{reference} top5 label: {np.array(first['torch_top5_labels'])}",
        f"TVM top5 label: {np.array(first['tvm_top5_labels'])}",
        f"{reference} top5 raw output: {_raw(first['torch_top5_raw'])}",
        f"TVM top5 raw output: {_raw(first['tvm_top5_raw'])}",
        f"max abs diff: {_f32(first['max_abs_diff'])}",
        f"mean abs_diff: {_f32(first['mean_abs_diff'])}",
        f"{first['identical']} in {first['total']} raw outputs correct.",
    ]


def _raw(values: Sequence[float]) -> str:
    return np.array2string(np.array(values, dtype=np.float32), max_line_width=1000)


def _f32(value: float | None) -> str:
    return "not finite" if value is None else str(np.float32(value))


def _all_images_lines(model: ModelRow, parity: ParityRow) -> Iterator[str]:
    n = parity["images_total"]
    yield f"All {n} images: {parity['raw_outputs_identical']} of {parity['raw_outputs_total']} raw outputs identical"
    yield f"All {n} images: {parity['images_identical']} of {n} images identical"
    yield f"All {n} images: top-1 agreement {parity['top1_agreement']:.2f} %, greatest difference {_greatest(parity)}"
    if model["fp32"] is not None:
        yield f"fp32 accuracy: {_accuracy(model['fp32'])}"


def _greatest(parity: ParityRow) -> str:
    if parity["greatest_difference"] is None:
        return "0"
    n = parity["max_lsb"]
    steps = "" if n is None else f" ({n} step{'' if n == 1 else 's'} of the output's quantization)"
    return f"{_f32(parity['max_abs_diff'])}{steps}"


def _status_lines(model: ModelRow) -> Iterator[str]:
    reason = f": {model['reason']}" if model["reason"] else ""
    yield f"Status: {model['status']}{reason}"
    if model["remedy"]:
        yield f"Remedy: {model['remedy']}"


def notices(run: RunRow) -> list[str]:
    """Returns what a reader must know before any number, the most important first."""
    found = []
    if run["config"]["weights"] == "random":
        found.append("RANDOM WEIGHTS: the accuracies below mean nothing; parity and latency do.")
    dataset = run["dataset"]
    if run["interrupted"]:
        found.append("INTERRUPTED: what follows is a part of the run.")
    if any(model["status"] == "unfinished" for model in run["models"]):
        found.append("UNFINISHED: what follows is a part of the run; the images that are done are a random sample.")
    if dataset["is_default"]:
        n = dataset["n_used"]
        found.append(
            f"DEFAULT DATA: no --data was given, so this is the embedded sample of {n} images, on which one image is "
            f"{100 / max(n, 1):.1f} points of accuracy. It shows parity; to measure accuracy, name a data set or a "
            "folder with --data."
        )
    if dataset["n_bad"]:
        found.append(f"BAD IMAGES: {dataset['n_bad']} were left out; they are listed under the table.")
    return found


def accuracy_table(run: RunRow) -> list[str]:
    """Returns the original's Markdown table; a model that was not measured has its status in place of numbers."""
    return [*TABLE_HEAD, *(_accuracy_row(model) for model in run["models"])]


def _accuracy_row(model: ModelRow) -> str:
    torch, tvm = model["torch"], model["tvm"]
    if tvm is not None and torch is None:
        return "|".join([_name(model), "none", "none", f"{tvm['top1']:.2f}", f"{tvm['top5']:.2f}"])
    if torch is None or tvm is None:
        return "|".join([_name(model), *[model["status"]] * 4])
    numbers = (torch["top1"], torch["top5"], tvm["top1"], tvm["top5"])
    return "|".join([_name(model), *(f"{number:.2f}" for number in numbers)])


def detail_table(run: RunRow) -> list[str]:
    """Returns the Markdown table of fp32 accuracy, parity and int8 share.

    With several numerics it has their times, too; with several kinds of CPU, whether their bits were the same.
    """
    models = run["models"]
    rows = [*DETAIL_HEAD, *(_detail_row(model) for model in models)]
    columns = {
        "TVM ms per image": ["" if (ms := model["latency_ms"]) is None else f"{ms:.2f}" for model in models],
        "Same bits on kinds of CPU": [same_bits_text(model) for model in models],
    }
    for title, cells in columns.items():
        if any(cells):
            separators = [" | ", " | ", *["|"] * len(cells)]
            rows = ["".join(parts) for parts in zip(rows, separators, [title, "--", *cells], strict=True)]
    return rows


def same_bits_text(model: ModelRow) -> str:
    """Returns on how many kinds of CPU each engine's raw outputs were the same, as a cell; empty if not compared."""
    same = model.get("same_bits")
    if same is None:
        return ""
    counts = {"TVM": same["tvm"], str(model["reference"]): same["torch"]}
    told = (f"{engine} {n} / {same['n_images']}" for engine, n in counts.items() if n is not None)
    return f"{len(same['cpus'])} kinds: {', '.join(told)}"


def _detail_row(model: ModelRow) -> str:
    fp32, parity = model["fp32"], model["parity"]
    share, compile_s = model["int8_mac_share"], model["compile_s"]
    cells = [_name(model), model["status"]]
    cells += ["", ""] if fp32 is None else [f"{fp32['top1']:.2f}", f"{fp32['top5']:.2f}"]
    if parity is None:
        cells += ["", "", ""]
    else:
        cells += [
            f"{parity['raw_outputs_identical']} / {parity['raw_outputs_total']}",
            f"{parity['images_identical']} / {parity['images_total']}",
            f"{parity['top1_agreement']:.2f} %",
        ]
    cells += ["" if share is None else f"{_share_pct(share)} %"]
    cells += ["cached" if model["cached"] else "" if compile_s is None else f"{compile_s:.1f} s"]
    return "|".join(cells)


def _share_pct(share: float) -> str:
    # 99.97 % must not read as 100 %: a share is rounded towards what is still missing.
    return "100" if share == 1 else f"{int(1000 * share) / 10:.1f}"


def agreement_tables(run: RunRow) -> list[str]:
    """Returns for each model of several flows a Markdown table: accuracy, and agreement of every two sides."""
    lines: list[str] = []
    for row in run["agreement"]:
        head = f"{row['model']}: same top-1 in % of the images"
        lines += [" | ".join([head, "Top-1", *row["sides"]]), " | ".join(["--"] * (2 + len(row["sides"])))]
        for side, top1, same in zip(row["sides"], row["top1"], row["same_top1"], strict=True):
            lines += ["|".join([side, f"{top1:.2f}", *(f"{share:.2f}" for share in same)])]
        lines += [""]
    return lines


def remarks(run: RunRow) -> list[str]:
    """Returns a Markdown list of why models have no numbers, are not to be trusted, or run partly in float."""
    lines = []
    for model in run["models"]:
        if model["reason"]:
            remedy = f" {model['remedy']}" if model["remedy"] else ""
            reason = " ".join(model["reason"].split())
            lines.append(f"- {_name(model)}, {model['status']}: {reason}.{remedy}".replace("..", "."))
        if model["reference"] not in (None, "PyTorch"):
            lines.append(f"- {_name(model)}: what is called Torch is {model['reference']}.")
        if model["float_ops"]:
            lines.append(f"- {_name(model)} computes in float: {_grouped(model['float_ops'])}.")
        lines += [f"- {_name(model)}: {sentence}" for sentence in _by_cpu(model)]
    lines += [f"- Bad image: {bad['path']}: {bad['reason']}" for bad in run["dataset"]["bad"]]
    return lines


def _by_cpu(model: ModelRow) -> Iterator[str]:
    """Yields which raw outputs depend on the kind of CPU, or that this is not known."""
    same, cpus = model.get("same_bits"), model.get("cpus", [])
    if same is None:
        if len(cpus) > 1:
            yield f"computed on {len(cpus)} kinds of CPU, whose raw outputs were not compared."
        return
    n = same["n_images"]
    if same["tvm"] < n:
        yield f"TVM's raw outputs of {n - same['tvm']} of {n} images differ between kinds of CPU, WHICH MUST NOT BE."
    if same["torch"] is not None and same["torch"] < n:
        yield (
            f"{model['reference']}'s raw outputs of {n - same['torch']} of {n} images differ between kinds of CPU: "
            "it chooses other kernels there."
        )


def _grouped(float_ops: Sequence[str]) -> str:
    """Returns operators given as `name (variable)`; if a name occurs again, how often each does, and the first one."""
    count = Counter(op.split(" ")[0] for op in float_ops)
    if len(count) == len(float_ops):
        return ", ".join(float_ops)
    counted = ", ".join(name if n == 1 else f"{name} ×{n}" for name, n in count.items())
    return f"{counted} (first: {float_ops[0]}; run.json lists all {len(float_ops)})"


def conditions(run: RunRow) -> list[str]:
    """Returns a Markdown list of the conditions that the numbers hold under."""
    config, dataset, environment = run["config"], run["dataset"], run["environment"]
    asked = "" if dataset["n_requested"] is None else f" ({dataset['n_requested']} asked for, seed {run['seed']})"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    cpu = environment["cpu"]
    lines = [
        f"- Data: {dataset['name']}, n = {dataset['n_used']} images{asked}, id list sha256 {dataset['sha256'][:12]}",
        f"- Labels: {dataset['labels']} (form {dataset['form']}; {dataset['summary']})",
        *_by_title("Calibration", _calibrations(run)),
        *(f"- Note: {note}" for note in dataset["notes"]),
        *_by_title("Quantization", _quantizations(run)),
        f"- Target: {_targets(run)}",
        f"- Threads {environment['threads']}, batch size {config['batch_size']}",
        f"- Versions: {versions}",
        f"- CPU: {cpu['model']}, {cpu['physical_cores']} cores; {' '.join(cpu['features']) or 'no int8 extensions'}",
    ]
    cpus = sorted({name for model in run["models"] for name in model.get("cpus", ())})
    if cpus not in ([], [cpu["model"]]):
        lines.append(f"- Computed on {len(cpus)} kind{'s' if len(cpus) > 1 else ''} of CPU: {'; '.join(cpus)}")
    return [*lines, *_weights(run)]


def _by_title(what: str, found: dict[str, list[str]]) -> Iterator[str]:
    """Yields a line for each text; it names the models that the text is true of, unless it is true of all."""
    for text, titles in found.items():
        of = "" if len(found) == 1 else f" of {', '.join(dict.fromkeys(titles))}"
        yield f"- {what}{of}: {text}"


def _calibrations(run: RunRow) -> dict[str, list[str]]:
    titles_of: dict[str, list[str]] = {}
    for model in run["models"]:
        if model["calibration"] is not None:
            titles_of.setdefault(model["calibration"]["source"], []).append(model["title"])
    return titles_of or {"none": []}


def _quantizations(run: RunRow) -> dict[str, list[str]]:
    """Returns how models were quantized and what TVM followed; for each such text, the models that it is true of."""
    numerics_of: dict[tuple[str, str], list[str]] = {}
    measured = [model for model in run["models"] if model["target"] is not None]
    for model in measured or run["models"]:
        title = model["title"] if model["flow"] == "eager" else f"{model['title']} ({model['flow']})"
        numerics = numerics_of.setdefault((_quantization(model), title), [])
        numerics += [model["numerics"]] if model["numerics"] not in numerics else []
    titles_of: dict[str, list[str]] = {}
    for (quantization, title), numerics in numerics_of.items():
        titles_of.setdefault(f"{quantization}; numerics {', '.join(numerics)}", []).append(title)
    return titles_of


def _quantization(model: ModelRow) -> str:
    scheme = "the model's own" if model["scheme"] == "its-own" else model["scheme"]
    return scheme if model["engine"] in ("onnx", "pt2e", "tflite") else f"{scheme}, engine {model['engine']}"


def _targets(run: RunRow) -> str:
    found = {model["target"] for model in run["models"] if model["target"]}
    return "; ".join(sorted(found)) or run["config"]["target"]


def _weights(run: RunRow) -> Iterator[str]:
    titles_of: dict[str, list[str]] = {}
    for model in run["models"]:
        weights = model["weights"]
        if weights is not None:
            digest = f", sha256 {weights['sha256'][:12]}" if weights["sha256"] else ""
            titles_of.setdefault(f"{weights['source']}{digest}", []).append(model["title"])
    for source, titles in titles_of.items():
        yield f"- Weights of {', '.join(dict.fromkeys(titles))}: {source}"


def summary_lines(run: RunRow) -> list[str]:
    """Returns what is printed at the end of a run: both tables, the remarks and the conditions."""
    remarked = remarks(run)
    return [
        *accuracy_table(run),
        "",
        *detail_table(run),
        "",
        *agreement_tables(run),
        *([*remarked, ""] if remarked else []),
        *conditions(run),
        f"- Duration: {run['duration_s']:.1f} s",
    ]


def markdown_report(run: RunRow) -> str:
    """Returns report.md: notices, tables, conditions, and the original's lines for every model."""
    lines = []
    for notice in notices(run):
        lines += [f"**{notice}**", ""]
    lines += ["# Quantized model accuracy: PyTorch vs TVM", "", f"`{run['command']}`, {run['started_at']}", ""]
    lines += [*summary_lines(run), "", "## Models"]
    for model in run["models"]:
        lines += ["", "```text", *model_lines(model), "```"]
    return "\n".join(lines) + "\n"
