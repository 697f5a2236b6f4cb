"""``quantvm run``: the steps of an evaluation.

Each model is loaded, quantized and compiled. Then the float model, the quantized model and the compiled one run every
batch of images, as the very same array, and their outputs are compared.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quantvm.errors import ModelCodeError, QuantvmError, UnsupportedOpError
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.evaluation.measurement import Measurement
from quantvm.jobs.evaluation.samples import samples_bytes
from quantvm.jobs.evaluation.schema import ModelRow, RunResult, RunRow
from quantvm.jobs.evaluation.text import markdown_report
from quantvm.jobs.latency.rounds import alternate, time_calls
from quantvm.options.option import raise_problems
from quantvm.progress import SILENT, Progress, TitledProgress
from quantvm.report.run_folder import LoggedProgress, RunFolder, run_json
from quantvm.score.agreement import agreement_of_flows
from quantvm.score.parity import OutputShapeError, int8_share_problem, judge
from quantvm.score.schema import SampleRow
from quantvm.torch_compat import quantization_engine
from quantvm.workload.environment import use_threads
from quantvm.workload.head import head
from quantvm.workload.plan import Entry, Plan, plan_of
from quantvm.workload.prepare import quantized
from quantvm.workload.runners import Runner, TorchRunner

if TYPE_CHECKING:
    from quantvm.models import ModelSpec

_LATENCY_ROUNDS = 5
_LATENCY_S = 0.5


class Observer(Protocol):
    """Is called with what an evaluation finds, as soon as it finds it."""

    def on_start(self, run: RunRow) -> None:
        """Called once, before the first model: `run` is complete except for its models."""

    def on_model(self, model: ModelRow) -> None:
        """Called for each model when its row is final."""


class _SilentObserver:
    def on_start(self, run: RunRow) -> None:
        pass

    def on_model(self, model: ModelRow) -> None:
        pass


SILENT_OBSERVER: Observer = _SilentObserver()


def evaluate_models(
    config: RunConfig,
    *,
    progress: Progress = SILENT,
    observer: Observer = SILENT_OBSERVER,
    command: str = "quantvm.evaluate",
) -> RunResult:
    """Returns how the models' accuracy and raw outputs compare between PyTorch and TVM; see `quantvm.evaluate`."""
    started_s = time.monotonic()
    plan = _planned(config, progress)
    run: RunRow = {**head(plan, config, command), "models": [], "agreement": []}
    folder = RunFolder(config.out) if config.out is not None else None
    try:
        logged = progress if folder is None else LoggedProgress(progress, folder)
        return _Evaluation(plan, config, logged, observer, folder, run, started_s).go()
    finally:
        if folder is not None:
            folder.close()


def _planned(config: RunConfig, progress: Progress) -> Plan:
    """Returns the plan; if a factory raised, its stack goes to the log, if there is to be one."""
    try:
        plan = plan_of(config, progress)
    except ModelCodeError as error:
        if config.out is not None:
            folder = RunFolder(config.out)
            folder.log(f"{error}\n{error.stack()}")
            folder.close()
        raise
    raise_problems([*_unknown_labels(plan, config), *_missing_references(plan, config)])
    return plan


def _unknown_labels(plan: Plan, config: RunConfig) -> list[str]:
    """Returns a sentence for every model of the user's own that has no score for a class of the images."""
    last = max(sample.label for sample in plan.dataset.samples)
    known = [(entry.spec.name, getattr(entry.spec, "n_classes", None)) for entry in plan.entries]
    few = [(name, n) for name, n in known if n is not None and last >= n]
    if config.class_map == "sorted":
        return [
            f"data: {plan.dataset.name} has {last + 1} classes, {name} {n}; use data of {n} classes" for name, n in few
        ]
    return [
        f"data: {plan.dataset.name} has images of class {last} (counted from 0), and {name} has {n} classes; if the "
        "classes of this model are your folders in sorted order, say --class-map sorted, in a run without registered "
        "models"
        for name, n in few
    ]


def _missing_references(plan: Plan, config: RunConfig) -> list[str]:
    """Returns a sentence for every model whose parity is to be checked but that has no reference."""
    if config.check_parity is None:
        return []
    missing = [(entry.spec.name, entry.missing_reference) for entry in plan.entries]
    return [f"check_parity: {name}: {reason}" for name, reason in missing if reason is not None]


@dataclass
class _Evaluation:
    """One plan under way."""

    plan: Plan
    config: RunConfig
    progress: Progress
    observer: Observer
    folder: RunFolder | None
    run: RunRow
    started_s: float
    samples: list[SampleRow] = field(default_factory=list)

    def go(self) -> RunResult:
        self.observer.on_start(self.run)
        try:
            use_threads(self.plan.machine.threads)
            for entry, flow in self._turns():
                self._evaluate(entry, flow)
            self.run["agreement"] = agreement_of_flows(self.samples) if len(self.config.flows) > 1 else []
        except KeyboardInterrupt:
            self.run["interrupted"] = True
            for entry, flow in self._turns()[len(self.run["models"]) // len(self.config.numerics) :]:
                self._skip(entry, flow, "the run was interrupted before its turn")
        return self._save()

    def _turns(self) -> list[tuple[Entry, str]]:
        """Returns every pair of a model and a flow to evaluate; a model that its user quantized is in one pair."""
        turns = []
        for entry in self.plan.entries:
            flows = self.config.flows or entry.spec.flows[:1]
            turns += [(entry, flow) for flow in (flows[:1] if entry.is_quantized else flows)]
        return turns

    def _evaluate(self, entry: Entry, flow: str) -> None:
        """Adds the rows of one model by one flow, whatever happens; only an interruption leaves this method."""
        if entry.weights is None:
            self._skip(entry, flow, entry.reason, entry.remedy)
            return
        if flow not in entry.spec.flows:
            instead = " or ".join(f"--flow {other}" for other in entry.spec.flows)
            self._skip(entry, flow, f"PyTorch cannot quantize it by the flow {flow}", instead)
            return
        found = [Measurement(numerics, flow) for numerics in self.config.numerics]
        started_s = time.monotonic()
        verdicts: list[dict[str, Any]] = [{"status": "error"}] * len(found)
        try:
            own_engine = None if entry.program is None else entry.program.engine
            with quantization_engine(own_engine or self.config.engine):
                measure(entry, flow, self.plan, TitledProgress(self.progress, entry.spec.title), found)
            verdicts = [self._judge(each, entry.missing_reference) for each in found]
        except KeyboardInterrupt:
            n_images = len(self.plan.dataset.samples)
            verdicts = [
                {"reason": f"interrupted after {each.tvm.n} of {n_images} images", "status": "error"} | each.results()
                for each in found
            ]
            raise
        except OutputShapeError as error:
            verdicts = [{"status": "failed", "reason": str(error)}] * len(found)
        except Exception as error:  # noqa: BLE001 - whatever one model does, the others go on
            verdicts = [self._explain(entry.spec, error)] * len(found)
        finally:
            for each, verdict in zip(found, verdicts, strict=True):
                if "n_images" in verdict:
                    self.samples += each.samples
                facts = each.facts | verdict | {"duration_s": time.monotonic() - started_s}
                self._add(_row(self.config, entry.spec, flow, each.numerics, facts))

    def _skip(self, entry: Entry, flow: str, reason: str | None, remedy: str | None = None) -> None:
        for numerics in self.config.numerics:
            self._add(_row(self.config, entry.spec, flow, numerics, {"reason": reason, "remedy": remedy}))

    def _judge(self, found: Measurement, missing_reference: str | None) -> dict[str, Any]:
        results, config = found.results(), self.config
        share = int8_share_problem(found.facts["int8_mac_share"], config.min_int8_macs)
        status, reason = judge(
            results["parity"],
            found.parity.mistrust(),
            results["tvm"]["top1"],
            config.check_parity,
            config.min_top1,
            [share] if share else [],
            numerics=found.numerics,
            reference=found.facts["reference"] or "PyTorch",
        )
        return {**results, "status": status, "reason": reason or missing_reference}

    def _explain(self, spec: ModelSpec, error: Exception) -> dict[str, Any]:
        """Returns the verdict on a model that raised, and puts the stack into the log."""
        remedy = None
        if self.folder is not None:
            self.folder.log(f"{spec.name} failed\n{''.join(traceback.format_exception(error))}")
            remedy = f"the stack is in {self.folder.path / 'log.txt'}"
        if isinstance(error, UnsupportedOpError):
            return {"status": "unsupported", "reason": str(error), "remedy": remedy}
        # The message of a foreign exception means little without its type ("KeyError: 'fc'"); ours are sentences.
        reason = str(error) if isinstance(error, QuantvmError) else f"{type(error).__name__}: {error}"
        return {"status": "error", "reason": reason, "remedy": remedy}

    def _add(self, model: ModelRow) -> None:
        self.run["models"].append(model)
        self.observer.on_model(model)
        self._save()

    def _save(self) -> RunResult:
        self.run["duration_s"] = time.monotonic() - self.started_s
        result = RunResult(self.run, self.samples)
        if self.folder is not None:
            save(self.folder, result)
        return result


def save(folder: RunFolder, result: RunResult) -> None:
    """Writes samples.parquet, report.md and run.json; what was there before is replaced, file by file."""
    folder.write("samples.parquet", samples_bytes(result.samples))
    folder.write("report.md", markdown_report(result.run).encode())
    folder.write("run.json", run_json(result.run).encode())


def measure(entry: Entry, flow: str, plan: Plan, progress: Progress, found: Sequence[Measurement]) -> None:
    """Takes one model through all stages and adds its outputs on every image to `found`, one for each numerics.

    The engines run the very same array of each batch, one after the other, with equal threads.

    Raises:
        OutputShapeError: an engine's output is missing or has another shape than the other's.
    """
    spec, weights = entry.spec, entry.weights
    assert weights is not None
    for each in found:
        each.facts["weights"] = {"source": weights.source, "sha256": weights.sha256}
        if dataclasses.is_dataclass(spec.preprocessing):
            each.facts["preprocessing"] = dataclasses.asdict(spec.preprocessing)
    program = quantized(entry, plan, flow, progress)
    runners = []
    for each in found:
        each.take_quantized(program, plan.calibration)
        artifact = program.compile(plan.machine, numerics=each.numerics, progress=progress)
        each.take_report(artifact.report)
        runners.append(program.tvm_runner(artifact, plan.machine))
    fp32 = None if program.float_module is None else TorchRunner(program.float_module, threads=plan.machine.threads)
    torch = program.runner(plan.machine)
    with progress.task("evaluate", total=len(plan.dataset.samples)) as task:
        for batch in plan.batches(spec):
            fp32_f32 = None if fp32 is None else fp32.run(batch.x_f32)
            torch_f32 = None if torch is None else torch.run(batch.x_f32)
            for each, runner in zip(found, runners, strict=True):
                each.add(spec.name, batch, fp32_f32, torch_f32, runner.run(batch.x_f32))
            task.advance(len(batch.ids))
    if len(found) > 1:
        first = next(plan.batches(spec, plan.dataset.samples[:1]))
        for each, latency_ms in zip(found, latencies_ms(runners, first.x_f32), strict=True):
            each.facts["latency_ms"] = latency_ms


def latencies_ms(runners: Sequence[Runner], x_f32: np.ndarray) -> list[float]:
    """Returns each engine's median time of a call, in alternating rounds."""
    names = {str(i): runner for i, runner in enumerate(runners)}
    rounds_ms = alternate(
        list(names),
        lambda name, seconds: time_calls(lambda: names[name].run(x_f32), min_calls=3, min_seconds=seconds),
        min_rounds=_LATENCY_ROUNDS,
        min_seconds=_LATENCY_S,
    )
    return [float(np.median(np.concatenate(rounds_ms[name]))) for name in names]


def _row(config: RunConfig, spec: ModelSpec, flow: str, numerics: str, known: dict[str, Any]) -> ModelRow:
    """Returns a model's row with the fields `known`; other fields are unknown, and the status is `skipped`."""
    row: ModelRow = {
        "name": spec.name,
        "title": spec.title,
        "status": "skipped",
        "reason": None,
        "remedy": None,
        "scheme": config.scheme,
        "engine": config.engine,
        "flow": flow,
        "reference": "PyTorch",
        "preprocessing": None,
        "numerics": numerics,
        "weights": None,
        "calibration": None,
        "n_images": 0,
        "fp32": None,
        "torch": None,
        "tvm": None,
        "parity": None,
        "int8_mac_share": None,
        "float_ops": [],
        "target": None,
        "import_s": None,
        "compile_s": None,
        "cached": None,
        "load_s": None,
        "latency_ms": None,
        "duration_s": 0.0,
    }
    return {**row, **known}  # type: ignore[typeddict-item]
