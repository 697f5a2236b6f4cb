"""The main job, and the only place where all stages meet.

For each model: weights, float model, quantized model, TVM artifact; then every batch of images goes through the float
model, the quantized model and the artifact, as the very same array, and what they answer is compared.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from quantvm.errors import ConfigError, ModelCodeError, QuantvmError, UnsupportedOpError, missing_package_named
from quantvm.jobs.evaluation.config import RunConfig, raise_problems, with_engine
from quantvm.jobs.evaluation.measurement import Measurement
from quantvm.jobs.evaluation.plan import Entry, Plan, prepare, unknown_labels
from quantvm.jobs.evaluation.stages import Stages
from quantvm.progress import SILENT, Progress, TitledProgress
from quantvm.report.run_folder import LoggedProgress, RunFolder
from quantvm.report.schema import SCHEMA_VERSION, HeadRow, ModelRow, RunResult, RunRow, SampleRow
from quantvm.score.agreement import agreement_of_flows
from quantvm.score.parity import OutputShapeError, int8_share_problem, judge
from quantvm.workload.user_models import UserProgram

if TYPE_CHECKING:
    from quantvm.models import ModelSpec
    from quantvm.models.weights import ResolvedWeights


class Observer(Protocol):
    """Told what an evaluation finds, as it finds it."""

    def on_start(self, run: RunRow) -> None:
        """Called once, before the first model: `run` is complete but for its models."""

    def on_model(self, model: ModelRow) -> None:
        """Called for each model when its row is final."""


class _SilentObserver:
    def on_start(self, run: RunRow) -> None:
        pass

    def on_model(self, model: ModelRow) -> None:
        pass


SILENT_OBSERVER: Observer = _SilentObserver()


@missing_package_named()
def evaluate(
    config: RunConfig | None = None,
    *,
    progress: Progress = SILENT,
    observer: Observer = SILENT_OBSERVER,
    command: str = "quantvm.evaluate",
    stages: Stages | None = None,
    **options: Any,
) -> RunResult:
    """Returns how the models' accuracy and raw outputs compare between PyTorch and TVM; ``quantvm run`` calls this.

    A model that fails has a row that says so and the others go on. After an interruption by Ctrl-C the result holds
    what was done until then. If ``config.out`` is set, the run folder is written after each model.

    Args:
        config: The options; or leave it out and give them by name, as in ``evaluate(models=("resnet18",), seed=1)``.
        progress: Where long work reports to.
        observer: Told about each model as it is done.
        command: What run.json names as the command.
        stages: The calls that the evaluation is made of.
        **options: The fields of RunConfig, in place of `config`.

    Raises:
        QuantvmError: before any model is evaluated, if an option, a name, an image or the weights of a model that was
            named is wrong, or if no model at all can be evaluated.
    """
    if config is not None and options:
        raise ConfigError(f"evaluate: got a config and also {', '.join(sorted(options))}; give one or the other")
    config = config or RunConfig(**options)
    stages = stages or Stages()
    started_s = time.monotonic()
    plan = _prepared(config, stages, progress)
    run: RunRow = {**head(plan, stages, command), "models": [], "agreement": []}
    folder = RunFolder(config.out) if config.out is not None else None
    try:
        logged = progress if folder is None else LoggedProgress(progress, folder)
        return _Evaluation(plan, stages, logged, observer, folder, run, started_s).go()
    finally:
        if folder is not None:
            folder.close()


def _prepared(config: RunConfig, stages: Stages, progress: Progress) -> Plan:
    """Returns the plan; the stack of a factory that raised goes to the log, if there is to be one."""
    try:
        plan = prepare(config, stages, progress)
    except ModelCodeError as error:
        if config.out is not None:
            folder = RunFolder(config.out)
            folder.log(f"{error}\n{error.stack()}")
            folder.close()
        raise
    raise_problems(unknown_labels(plan))
    return plan


def head(plan: Plan, stages: Stages, command: str) -> HeadRow:
    """Returns what run.json and bench.json begin with."""
    dataset, calibration = plan.dataset, plan.calibration
    bad = [{"path": str(bad.path), "reason": bad.reason} for bad in (*dataset.bad, *calibration.bad)]
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "duration_s": 0.0,
        "interrupted": False,
        "config": {**plan.config.as_json(), "threads": plan.threads},
        "environment": stages.describe_environment(plan.threads),
        "seed": plan.config.seed,
        "dataset": {
            "name": dataset.name,
            "root": str(dataset.root),
            "is_default": dataset.is_default,
            "n_requested": dataset.n_requested,
            "n_used": len(dataset.samples),
            "n_bad": len(bad),
            "bad": bad,
            "sha256": dataset.sha256,
            "notes": [*dataset.notes, *calibration.notes],
        },
    }


@dataclass
class _Evaluation:
    """One plan under way."""

    plan: Plan
    stages: Stages
    progress: Progress
    observer: Observer
    folder: RunFolder | None
    run: RunRow
    started_s: float
    samples: list[SampleRow] = field(default_factory=list)

    def go(self) -> RunResult:
        self.observer.on_start(self.run)
        try:
            self.stages.use_threads(self.plan.threads)
            for entry, flow in self._turns():
                self._evaluate(entry, flow)
            self.run["agreement"] = agreement_of_flows(self.samples) if len(self.plan.config.flows) > 1 else []
        except KeyboardInterrupt:
            self.run["interrupted"] = True
            for entry, flow in self._turns()[len(self.run["models"]) // len(self.plan.config.numerics) :]:
                self._skip(entry, flow, "the run was interrupted before its turn")
        return self._save()

    def _turns(self) -> list[tuple[Entry, str]]:
        """Returns every model with every flow that is its turn; a model that its user quantized has one turn."""
        turns = []
        for entry in self.plan.entries:
            flows = self.plan.config.flows or entry.spec.flows[:1]
            turns += [(entry, flow) for flow in (flows[:1] if entry.is_quantized else flows)]
        return turns

    def _evaluate(self, entry: Entry, flow: str) -> None:
        """Adds the rows of one model by one flow, whatever happens; only an interruption goes on from here."""
        if entry.weights is None:
            self._skip(entry, flow, entry.reason, entry.remedy)
            return
        if flow not in entry.spec.flows:
            instead = " or ".join(f"--flow {other}" for other in entry.spec.flows)
            self._skip(entry, flow, f"PyTorch cannot quantize it by the flow {flow}", instead)
            return
        plan = dataclasses.replace(self.plan, config=dataclasses.replace(self.plan.config, flows=(flow,)))
        found = [Measurement(numerics, flow) for numerics in self.plan.config.numerics]
        started_s = time.monotonic()
        verdicts: list[dict[str, Any]] = [{"status": "error"}] * len(found)
        try:
            own_engine = None if entry.program is None else entry.program.engine
            with self.stages.torch_engine(with_engine(self.plan.config, own_engine)):
                titled = TitledProgress(self.progress, entry.spec.title)
                measure(entry.spec, entry.weights, plan, self.stages, titled, found)
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
                self._add(_row(self.plan, entry.spec, flow, each.numerics, facts))

    def _skip(self, entry: Entry, flow: str, reason: str | None, remedy: str | None = None) -> None:
        for numerics in self.plan.config.numerics:
            self._add(_row(self.plan, entry.spec, flow, numerics, {"reason": reason, "remedy": remedy}))

    def _judge(self, found: Measurement, missing_reference: str | None) -> dict[str, Any]:
        results, config = found.results(), self.plan.config
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
        # A bug's message means little without its kind ("KeyError: 'fc'"); ours are sentences.
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
            self.folder.save(result)
        return result


def measure(
    spec: ModelSpec, weights: ResolvedWeights, plan: Plan, stages: Stages, progress: Progress,
    found: Sequence[Measurement],
) -> None:  # fmt: skip
    """Takes one model through all stages and counts its outputs on every image into `found`, one for each numerics.

    The engines get the very same array of each batch, one after the other, with equal threads.

    Raises:
        OutputShapeError: if an engine's output is missing or of another shape than the other's.
    """
    config = plan.config
    inputs = stages.calibration_inputs(spec, plan.calibration)
    for each in found:
        each.facts["weights"] = {"source": weights.source, "sha256": weights.sha256}
        if dataclasses.is_dataclass(spec.preprocessing):
            each.facts["preprocessing"] = dataclasses.asdict(spec.preprocessing)
    float_model = stages.build_float_model(spec, weights, inputs, config)
    quantized = stages.quantize(spec, weights, float_model, inputs, config, progress)
    runners = []
    for each in found:
        each.take_quantized(quantized, plan.calibration)
        artifact = stages.compile(quantized, spec, config, plan.threads, progress, numerics=each.numerics)
        each.take_report(artifact.report)
        runner = stages.tvm_runner(artifact, plan.threads)
        runners.append(quantized.on_images(runner) if isinstance(quantized, UserProgram) else runner)
    fp32 = None if float_model is None else stages.torch_runner(float_model, plan.threads)
    torch = stages.torch_runner(quantized, plan.threads)
    samples = plan.dataset.samples
    with progress.task("evaluate", total=len(samples)) as task:
        for batch in stages.batches(samples, spec, config):
            fp32_f32 = None if fp32 is None else fp32.run(batch.x_f32)
            torch_f32 = None if torch is None else torch.run(batch.x_f32)
            for each, runner in zip(found, runners, strict=True):
                each.add(spec.name, batch, fp32_f32, torch_f32, runner.run(batch.x_f32))
            task.advance(len(batch.ids))
    if len(found) > 1:
        first = next(iter(stages.batches(samples[:1], spec, config)))
        for each, latency_ms in zip(found, stages.latencies_ms(runners, first.x_f32), strict=True):
            each.facts["latency_ms"] = latency_ms


def _row(plan: Plan, spec: ModelSpec, flow: str, numerics: str, known: dict[str, Any]) -> ModelRow:
    """Returns a model's row with `known` in place of what is otherwise unknown; its status is then `skipped`."""
    config = plan.config
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
