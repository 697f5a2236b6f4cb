"""``quantvm run``: the steps of an evaluation.

Each model is loaded, quantized and compiled. Then the float model, the quantized model and the compiled one run every
batch of images, as the very same array, and their outputs are compared. The work is cut into units (`units.py`), which
are kept (`store.py`): a run that was broken off goes on where it was.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.compiler.cache import chosen_cache
from quantvm.data import Batch
from quantvm.errors import (
    ConfigError,
    DataError,
    OutputError,
    QuantvmError,
    UnsupportedOpError,
    is_output_failure,
)
from quantvm.jobs.evaluation.compute import ShardWork
from quantvm.jobs.evaluation.config import RunConfig
from quantvm.jobs.evaluation.float_answers import FloatAnswers, float_answers_folder
from quantvm.jobs.evaluation.images import check_contents, done_with, prepared_images
from quantvm.jobs.evaluation.layout import MANIFEST, NETWORKS, REPORT, RUN_JSON, SAMPLES, UNITS
from quantvm.jobs.evaluation.manifest import (
    begin_manifest,
    check_manifest,
    conditions_of_float,
    manifest_of,
    read_manifest,
    resumed,
)
from quantvm.jobs.evaluation.network import Engines, Network
from quantvm.jobs.evaluation.networks import Networks
from quantvm.jobs.evaluation.observer import SILENT_OBSERVER, Observer
from quantvm.jobs.evaluation.outlook import Outlook
from quantvm.jobs.evaluation.planning import checked_models, checked_plan, run_head
from quantvm.jobs.evaluation.results import Results
from quantvm.jobs.evaluation.schema import ModelRow, RunResult, RunRow, model_row
from quantvm.jobs.evaluation.spread import LostShardsError
from quantvm.jobs.evaluation.store import PartStore
from quantvm.jobs.evaluation.text import markdown_report
from quantvm.jobs.evaluation.unit_messages import ShardTask
from quantvm.jobs.evaluation.units import Shard, Side, shards_of
from quantvm.jobs.evaluation.workers import Advance, Workers
from quantvm.jobs.latency.rounds import alternate, time_calls
from quantvm.options.option import raise_problems
from quantvm.progress import IMAGES, SILENT, Progress, TitledProgress
from quantvm.report.run_folder import LoggedProgress, RunFolder, run_json
from quantvm.score.parity import OutputShapeError, int8_share_problem, judge
from quantvm.storage.scratch import scratch_folder
from quantvm.torch_compat import quantization_engine
from quantvm.workload.environment import use_threads
from quantvm.workload.plan import Entry, Plan
from quantvm.workload.runners import Runner

if TYPE_CHECKING:
    from quantvm.models import ModelSpec

_WRITTEN_EACH_S = 60.0
_LATENCY_ROUNDS = 5
_LATENCY_S = 0.5


def evaluate_models(
    config: RunConfig,
    *,
    progress: Progress = SILENT,
    observer: Observer = SILENT_OBSERVER,
    command: str = "quantvm.evaluate",
) -> RunResult:
    """Returns how the models' accuracy and raw outputs compare between PyTorch and TVM; see `quantvm.evaluate`."""
    started_s = time.monotonic()
    if config.resume is not None:
        raise_problems(config.problems())
        config = resumed(config)
    entries = checked_models(config, progress)
    if config.out is None:
        with prepared_images(config, entries, None) as images, ExitStack() as stack:
            plan = checked_plan(config, entries, images, progress)
            place = stack.enter_context(scratch_folder("networks")) if config.has_workers else None
            run = run_head(plan, config, command)
            return _Evaluation(plan, config, progress, observer, None, place, run, started_s).go()
    folder = RunFolder(config.out, append=read_manifest(config.out) is not None)
    try:
        logged = LoggedProgress(progress, folder)
        with prepared_images(config, entries, folder) as images:
            is_new = begin_manifest(folder, config)
            try:
                plan = checked_plan(config, entries, images, logged)
                check_manifest(folder, manifest_of(plan, config))
                check_contents(folder, images)
            except (ConfigError, DataError):
                if is_new:
                    done_with(images, config)
                    folder.discard(MANIFEST)
                raise
            run = run_head(plan, config, command)
            place = folder.path / NETWORKS
            result = _Evaluation(plan, config, logged, observer, folder, place, run, started_s).go()
            if not result.run["interrupted"]:
                done_with(images, config)
            return result
    finally:
        folder.close()


class _Evaluation:
    """One plan under way."""

    def __init__(
        self, plan: Plan, config: RunConfig, progress: Progress, observer: Observer, folder: RunFolder | None,
        place_of_networks: Path | None, run: RunRow, started_s: float,
    ) -> None:  # fmt: skip
        self.plan, self.config, self.progress, self.observer = plan, config, progress, observer
        self.folder, self.run, self.started_s = folder, run, started_s
        self.shards = shards_of(
            plan.dataset, seed=config.seed, batch_size=config.batch_size, shard_size=config.shard_size
        )
        self.store = PartStore(None if folder is None else folder.path / UNITS)
        self.networks = Networks(place_of_networks, plan, config.numerics)
        self.results = Results(self.store, self.shards)
        n_models = sum(entry.weights is not None and flow in entry.spec.flows for entry, flow in self._turns())
        self.outlook = Outlook(n_models, len(plan.dataset.samples))
        self.workers: Workers | None = None
        conditions = conditions_of_float(plan, run["environment"]["cpu"])
        kept = None if chosen_cache(True) is None else float_answers_folder()
        self.float_answers = FloatAnswers(kept, conditions, plan.images.facts)

    def go(self) -> RunResult:
        """Evaluates all models; workers, if there are any, have ended then."""
        self.networks.check(self._turns())
        if not self.config.has_workers:
            return self._go()
        self.workers = Workers(self.config, self.plan.machine, self.networks, self.store, self.progress)
        try:
            return self._go()
        finally:
            self.workers.close()

    def _go(self) -> RunResult:
        self._save()
        self.observer.on_start(self.run)
        try:
            use_threads(self.plan.machine)
            for entry, flow in self._turns():
                self._evaluate(entry, flow)
            self.run["agreement"] = self.results.agreement() if len(self.config.flows) > 1 else []
        except KeyboardInterrupt:
            self.run["interrupted"] = True
            for entry, flow in self._turns()[len(self.run["models"]) // len(self.config.numerics) :]:
                self._skip(entry, flow, "the run was interrupted before its turn")
        if self.folder is not None:
            self.results.write_samples(self.folder.path / SAMPLES)
        self._save()
        return RunResult(self.run, self.results.samples)

    def _turns(self) -> list[tuple[Entry, str]]:
        """Returns every pair of a model and a flow to evaluate; a model that its user quantized is in one pair."""
        turns = []
        for entry in self.plan.entries:
            flows = self.config.flows or entry.spec.flows[:1]
            turns += [(entry, flow) for flow in (flows[:1] if entry.is_quantized else flows)]
        return turns

    def _evaluate(self, entry: Entry, flow: str) -> None:
        """Adds the rows of one model by one flow, whatever happens.

        Only an interruption, or a failure to write what was found, leaves this method.
        """
        if entry.weights is None:
            self._skip(entry, flow, entry.reason, entry.remedy)
            return
        if flow not in entry.spec.flows:
            instead = " or ".join(f"--flow {other}" for other in entry.spec.flows)
            self._skip(entry, flow, f"PyTorch cannot quantize it by the flow {flow}", instead)
            return
        facts: dict[str, dict[str, Any]] = {numerics: {} for numerics in self.config.numerics}
        started_s = time.monotonic()
        verdicts: dict[str, dict[str, Any]] = {numerics: {"status": "error"} for numerics in facts}
        network = None
        try:
            own_engine = None if entry.program is None else entry.program.engine
            with quantization_engine(own_engine or self.config.engine):
                progress = TitledProgress(self.progress, entry.spec.title)
                network = self.networks.get(entry, flow, progress, facts)
                self._measure(network, entry, progress, facts)
            for numerics in facts:
                verdicts[numerics] = self._judge(network, numerics, facts[numerics], entry.missing_reference)
        except KeyboardInterrupt:
            n_images = len(self.plan.dataset.samples)
            for numerics in facts:
                results = {} if network is None else self.results.of(network, numerics)
                reason = f"interrupted after {results.get('n_images', 0)} of {n_images} images"
                verdicts[numerics] = {"reason": reason, "status": "error"} | results
            raise
        except LostShardsError as error:
            lost = {"status": "error", "reason": str(error), "remedy": "all else is computed; --resume tries it again"}
            verdicts = {each: lost | ({} if network is None else self.results.of(network, each)) for each in facts}
        except OutputShapeError as error:
            verdicts = {numerics: {"status": "failed", "reason": str(error)} for numerics in facts}
        except OutputError as error:
            verdicts = {numerics: {"status": "error", "reason": str(error)} for numerics in facts}
            raise
        except Exception as error:
            if is_output_failure(error):
                raise
            verdict = self._explain(entry.spec, error)
            verdicts = dict.fromkeys(facts, verdict)
        finally:
            for numerics, verdict in verdicts.items():
                if network is not None and "n_images" in verdict:
                    self.results.add(network, numerics)
                known = facts[numerics] | verdict | {"duration_s": time.monotonic() - started_s}
                self._add(self._row(entry, flow, numerics, known))

    def _measure(self, network: Network, entry: Entry, progress: Progress, facts: dict[str, dict[str, Any]]) -> None:
        """Computes what is missing of a network's units; what is computed is kept, whatever happens.

        Raises:
            OutputShapeError: an engine's output is missing or has another shape than the other's.
            LostShardsError: workers ended again and again on some shards.
            OutputError: the run folder cannot be written.
        """
        spec, engines = entry.spec, None
        self._take_float_answers(network)
        tasks = self._missing(network)
        self.plan.images.prepare([sample.source for each in tasks for sample in each.samples], progress=progress)
        n_missing = sum(len(each.samples) for each in tasks)
        self.outlook.begin(n_missing)
        with progress.task("evaluate", total=n_missing, unit=IMAGES) as task:

            def counted(amount: float) -> None:
                self.outlook.advance(amount)
                task.tell(self.outlook.text())
                task.advance(amount)

            advance: Advance = counted
            if self.workers is not None and self.workers.compute(network, entry, tasks, advance):
                tasks, advance = self._missing(network), _counted_already
            with closing(self.plan.batches(spec, *([each.samples for each in tasks] or [()]))) as batches:
                for each in tasks:
                    with_float = any(side.is_float for side in each.wanted)
                    if engines is None or (with_float and engines.fp32 is None):
                        engines = network.open(with_float)
                    self._compute(each, engines, batches, advance)
        self._keep_float_answers(network)
        latencies = [network.by_numerics[numerics].get("latency_ms") for numerics in facts]
        if len(facts) > 1 and None in latencies:
            engines = engines or network.open(False)
            first_batch = next(self.plan.batches(spec, self.plan.dataset.samples[:1]))
            runners = [engines.tvm[numerics] for numerics in facts]
            for numerics, found_ms in zip(facts, latencies_ms(runners, first_batch.x_f32), strict=True):
                network.by_numerics[numerics]["latency_ms"] = found_ms
            self.networks.note(network)
        for numerics, known in facts.items():
            known["latency_ms"] = network.by_numerics[numerics].get("latency_ms") if len(facts) > 1 else None

    def _float_wanted(self, shard: Shard) -> int:
        """Returns on how many images of a shard the float model runs."""
        batch_size = self.config.batch_size
        n_fp32 = -(-self.config.fp32_images(len(self.plan.dataset.samples)) // batch_size) * batch_size
        return min(max(n_fp32 - shard.start, 0), len(shard))

    def _take_float_answers(self, network: Network) -> None:
        """Takes what an earlier run computed with the same float model on the same images."""
        side = Side.of_float(network.model)
        if network.float_digest is None or self.config.fp32 == "none":
            return
        fingerprint = network.fingerprint(side)
        for shard in self.shards:
            is_wanted = self._float_wanted(shard) == len(shard)
            if is_wanted and len(self.store.find(side, shard, fingerprint)) < len(shard):
                part = self.float_answers.find(shard, fingerprint)
                if len(part):
                    self.store.add(side, shard, part)

    def _keep_float_answers(self, network: Network) -> None:
        """Keeps for later runs what was computed on this machine's kind of CPU: on others, answers may differ."""
        side, cpus = Side.of_float(network.model), [self.run["environment"]["cpu"]["model"]]
        if network.float_digest is not None and self.config.cluster is None:
            fingerprint = network.fingerprint(side)
            for shard in self.shards:
                part = self.store.find(side, shard, fingerprint)
                if part.facts.get("cpus") == cpus:
                    self.float_answers.add(shard, fingerprint, part)

    def _missing(self, network: Network) -> list[ShardTask]:
        """Returns what is missing of the network's units, by shard."""
        fingerprints = {side: network.fingerprint(side) for side in network.sides(self.config.numerics)}
        tasks = []
        for shard in self.shards:
            done, wanted = {}, {}
            for side, fingerprint in fingerprints.items():
                n_wanted = self._float_wanted(shard) if side.is_float else len(shard)
                part = self.store.find(side, shard, fingerprint)
                if len(part) < n_wanted:
                    done[side], wanted[side] = part, n_wanted
            if wanted:
                tasks.append(ShardTask(shard, done, wanted, {side: fingerprints[side] for side in wanted}))
        return tasks

    def _compute(self, missing: ShardTask, engines: Engines, batches: Iterator[Batch], advance: Advance) -> None:
        """Computes one shard's units, and writes them each minute and at the end."""
        work = ShardWork(missing, self.run["environment"]["cpu"]["model"])

        def keep() -> None:
            for side, part in work.parts().items():
                self.store.add(side, missing.shard, part)

        written_s = time.monotonic()
        try:
            for n in work.run(engines, batches):
                advance(n)
                if time.monotonic() - written_s > _WRITTEN_EACH_S:
                    keep()
                    written_s = time.monotonic()
        finally:
            keep()

    def _skip(self, entry: Entry, flow: str, reason: str | None, remedy: str | None = None) -> None:
        for numerics in self.config.numerics:
            self._add(self._row(entry, flow, numerics, {"reason": reason, "remedy": remedy}))

    def _judge(
        self, network: Network, numerics: str, facts: dict[str, Any], missing_reference: str | None
    ) -> dict[str, Any]:
        results, config = self.results.of(network, numerics), self.config
        share = int8_share_problem(facts["int8_mac_share"], config.min_int8_macs)
        status, reason = judge(
            results["parity"],
            self.results.mistrust(network, numerics),
            results["tvm"]["top1"],
            config.check_parity,
            config.min_top1,
            [share] if share else [],
            numerics=network.by_numerics[numerics]["numerics"],
            reference=facts["reference"] or "PyTorch",
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

    def _row(self, entry: Entry, flow: str, numerics: str, known: dict[str, Any]) -> ModelRow:
        """Returns a model's row with the fields `known`; unless these say otherwise, it was skipped."""
        options = {"scheme": self.config.scheme, "engine": self.config.engine, "numerics": numerics}
        return model_row(entry.spec.name, flow, {"title": entry.spec.title} | options | known)

    def _add(self, model: ModelRow) -> None:
        self.run["models"].append(model)
        self.observer.on_model(model)
        self._save()

    def _save(self) -> None:
        self.run["duration_s"] = time.monotonic() - self.started_s
        if self.folder is not None:
            save(self.folder, self.run)


def _counted_already(amount: float) -> None:
    """Counts no image a second time."""


def save(folder: RunFolder, run: RunRow) -> None:
    """Writes report.md and run.json; what was there before is replaced, file by file."""
    folder.write(REPORT, markdown_report(run).encode())
    folder.write(RUN_JSON, run_json(run).encode())


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
