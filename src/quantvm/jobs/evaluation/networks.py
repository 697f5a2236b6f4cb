"""The networks of an evaluation: each is quantized and compiled once, and kept in the run folder.

A run that is taken up again evaluates the very same networks: PyTorch runs the kept program, TVM the kept code. What
cannot be kept (a module that PyTorch can neither trace nor export, or code without a linker) is made again.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.errors import CompileError, ConfigError, OutputError
from quantvm.jobs.evaluation.kept_programs import (
    NotKeptError,
    digest_of_file,
    digest_of_program,
    digest_of_weights,
    kept_program,
    program_of_row,
)
from quantvm.jobs.evaluation.network import (
    FACTS_FILE,
    SCHEMA_VERSION,
    Engines,
    Network,
    network_of,
    row_of,
)
from quantvm.jobs.evaluation.unit_messages import NetworkJob
from quantvm.jobs.evaluation.units import folder_name
from quantvm.models.quantization import Quantization
from quantvm.progress import Progress
from quantvm.report.run_folder import json_bytes
from quantvm.storage.output_files import make_folder, unfinished_name, write_file
from quantvm.workload.environment import software
from quantvm.workload.plan import Entry, Plan
from quantvm.workload.prepare import float_module_of, quantized
from quantvm.workload.program import Program
from quantvm.workload.runners import float_runner, may_be_optimized

if TYPE_CHECKING:
    from torch import nn

    from quantvm.runtime import Artifact, CompileReport


class Networks:
    """Makes networks, or finds them in a run folder.

    Args:
        folder: for the networks; None: nothing is kept.
        plan: of the evaluation.
        numerics: what TVM is asked to follow.
    """

    def __init__(self, folder: Path | None, plan: Plan, numerics: Sequence[str]) -> None:
        self._folder, self._plan, self._numerics = folder, plan, tuple(numerics)

    def get(self, entry: Entry, flow: str, progress: Progress, facts: dict[str, dict[str, Any]]) -> Network:
        """Returns a network, from the run folder if it is there.

        Args:
            entry: the model.
            flow: how PyTorch quantizes it.
            progress: where long work reports to.
            facts: for each numerics, the fields of ModelRow; they are filled as soon as they are known.

        Raises:
            QuantvmError: it cannot be quantized or compiled.
        """
        common = _common(entry)
        for known in facts.values():
            known |= common
        row = self._row(entry, flow)
        if row is None:
            network = self._made(entry, flow, common, progress, facts)
        else:
            self._compile_missing(row, entry, progress)
            network = self._opened(row, entry)
        for numerics, known in facts.items():
            known |= network.facts | network.by_numerics[numerics]["facts"]
        return network

    def note(self, network: Network) -> None:
        """Writes what is known about a network into the run folder, if there is one."""
        place = self._place(network.model, network.flow)
        if place is not None:
            make_folder(place)
            write_file(place / FACTS_FILE, json_bytes(row_of(network)))

    def job(self, network: Network, entry: Entry, float_folder: Path | None) -> NetworkJob | None:
        """Returns what a worker needs to open a network; None if the run folder does not keep it.

        Args:
            network: the network.
            entry: its model.
            float_folder: the float model is written there for the workers; None: it is not needed.

        Raises:
            ConfigError: the float model has other weights now.
            NotKeptError: PyTorch cannot trace the float model, or what is read back gives other outputs.
        """
        place, plan, codes = self._place(network.model, network.flow), self._plan, network.by_numerics
        if place is None or network.program is None:
            return None
        float_program = None
        if float_folder is not None:
            module, crop = self._float_module(entry, network.float_digest, place), entry.spec.preprocessing.crop
            program = Program(entry.spec.name, "module", module, ((1, 3, crop, crop),), True, None)
            row, _ = kept_program(program, float_folder)
            float_program = {**row, "is_optimized": may_be_optimized(module)}
        own = entry.program if network.program["file"] is None else None
        own_engine = None if entry.program is None else entry.program.engine
        return NetworkJob(
            key=sha256(f"{place} {network.reference} {float_folder}".encode()).hexdigest(),
            folder=place.absolute(),
            program=network.program,
            own=own,
            codes={each: (codes[each]["file"], codes[each]["digest"]) for each in self._numerics},
            float_folder=float_folder,
            float_program=float_program,
            machine=plan.machine,
            quantization=Quantization(plan.options.scheme, own_engine or plan.options.engine, network.flow),
            preprocessing=entry.spec.preprocessing,
            batch_size=plan.options.batch_size,
            images=plan.images,
            software=software(),
        )

    def _place(self, model: str, flow: str) -> Path | None:
        return None if self._folder is None else self._folder / folder_name(model, flow)

    def _made(
        self, entry: Entry, flow: str, common: dict[str, Any], progress: Progress, facts: dict[str, dict[str, Any]]
    ) -> Network:
        """Quantizes and compiles a network, and keeps it if that is possible."""
        plan, name = self._plan, entry.spec.name
        program = quantized(entry, plan, flow, progress)
        n = program.quantvm_n_calibration
        common |= {
            "engine": program.quantvm_engine,
            "scheme": program.quantvm_scheme,
            "calibration": {
                "n": n, "source": plan.calibration.source if n else "none, the weights bring their own ranges",
            },
            "reference": program.reference,
        }  # fmt: skip
        unfinished = self._unfinished(name, flow)
        try:
            kept, program = self._kept_program(program, unfinished, progress)
            artifacts: dict[str, Artifact] = {}
            by_numerics: dict[str, dict[str, Any]] = {}
            for numerics in self._numerics:
                facts[numerics] |= common
                artifact = program.compile(plan.machine, numerics=numerics, progress=progress)
                artifacts[numerics] = artifact
                by_numerics[numerics] = _facts_of_code(artifact.report)
                facts[numerics] |= by_numerics[numerics]["facts"]
            float_digest = None if program.float_module is None else digest_of_weights(program.float_module)
            made = Network(
                name, flow, common, by_numerics, None, float_digest, _opener_of(plan, program, artifacts), kept,
                _source_digest(entry),
            )  # fmt: skip
            if kept is None or not self._keep(made, artifacts, unfinished, progress):
                made.program, made.reference = None, digest_of_program(program) or secrets.token_hex(32)
                for numerics, code in by_numerics.items():
                    code["digest"] = artifacts[numerics].key or secrets.token_hex(32)
                self.note(made)
        finally:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
        return made

    def _unfinished(self, model: str, flow: str) -> Path | None:
        """Makes the folder of a network that is not whole yet; None if nothing is kept."""
        place = self._place(model, flow)
        if place is None:
            return None
        unfinished = unfinished_name(place)
        make_folder(unfinished)
        return unfinished

    def _kept_program(
        self, program: Program, unfinished: Path | None, progress: Progress
    ) -> tuple[dict[str, Any] | None, Program]:
        """Writes a quantized program; returns its row, or None if it cannot be kept, and the program as it was kept."""
        if unfinished is None:
            return None, program
        try:
            return kept_program(program, unfinished)
        except NotKeptError as error:
            progress.note(f"the network is not kept in the run folder, a resumed run makes it again: {error}")
            return None, program

    def _keep(
        self, made: Network, artifacts: Mapping[str, Artifact], unfinished: Path | None, progress: Progress
    ) -> bool:
        """Completes the folder of a network and puts it into its place; returns False if its code cannot be kept.

        Raises:
            OutputError: the folder cannot be written.
        """
        place = self._place(made.model, made.flow)
        assert place is not None
        assert unfinished is not None
        assert made.program is not None
        made.reference = made.program["sha256"]
        try:
            for numerics, artifact in artifacts.items():
                file = artifact.save(unfinished / _code_file(numerics))
                made.by_numerics[numerics] |= {"file": file.name, "digest": digest_of_file(file)}
            write_file(unfinished / FACTS_FILE, json_bytes(row_of(made)))
            shutil.rmtree(place, ignore_errors=True)
            unfinished.rename(place)
        except CompileError as error:
            progress.note(f"the network is not kept in the run folder, a resumed run makes it again: {error}")
            return False
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror or error}") from error
        return True

    def _compile_missing(self, row: dict[str, Any], entry: Entry, progress: Progress) -> None:
        """Compiles a kept network for those numerics that it was not compiled for before."""
        place = self._place(row["model"], row["flow"])
        assert place is not None
        missing = [numerics for numerics in self._numerics if numerics not in row["by_numerics"]]
        program = program_of_row(row["program"], place, entry.program) if missing else None
        for numerics in missing:
            assert program is not None
            artifact = program.compile(self._plan.machine, numerics=numerics, progress=progress)
            file = artifact.save(place / _code_file(numerics))
            kept = {"file": file.name, "digest": digest_of_file(file)}
            row["by_numerics"][numerics] = _facts_of_code(artifact.report) | kept
        if missing:
            write_file(place / FACTS_FILE, json_bytes(row))

    def check(self, turns: Sequence[tuple[Entry, str]]) -> None:
        """Makes sure that the networks of the run folder are those of this run, and whole.

        Args:
            turns: every model that has weights, and the flow by which it is quantized.

        Raises:
            ConfigError: they were made of other weights, or for images of another size, or a file is damaged; the
                message names all of it.
        """
        problems = [problem for entry, flow in turns for problem in self._problems(entry, flow)]
        if problems:
            assert self._folder is not None
            raise ConfigError(
                f"cannot go on in {self._folder.parent}: {'; '.join(problems)}; use another folder with --out"
            )

    def _problems(self, entry: Entry, flow: str) -> Iterator[str]:
        row = self._row(entry, flow)
        if row is None or entry.weights is None:
            return
        name, place, there = entry.spec.name, self._place(entry.spec.name, flow), row["facts"]
        assert place is not None
        now = json.loads(json.dumps(_common(entry)))
        for fact in ("weights", "preprocessing"):
            if there[fact] != now[fact]:
                yield f"{fact} of {name}: {there[fact]} there, {now[fact]} now"
        if entry.program is not None and there["reference"] != entry.program.reference:
            yield f"what {name} is compared with: {there['reference']} there, {entry.program.reference} now"
        program = row["program"]
        files = [] if program["file"] is None else [(program["file"], program["sha256"])]
        files += [(code["file"], code["digest"]) for code in row["by_numerics"].values()]
        for file, digest in files:
            if digest_of_file(place / file) != digest:
                yield f"{place / file} is missing or damaged (remove the folder {place} to make it again)"
        if row["source"] not in (None, _source_digest(entry)):
            yield f"the model {name} has changed"

    def _row(self, entry: Entry, flow: str) -> dict[str, Any] | None:
        """Returns what the run folder knows about a network; None if it is not kept there."""
        place = self._place(entry.spec.name, flow)
        if place is None:
            return None
        try:
            row = json.loads((place / FACTS_FILE).read_text())
        except (OSError, ValueError):
            return None
        is_kept = row.get("schema_version") == SCHEMA_VERSION and row["program"] is not None
        return row if is_kept else None

    def _opened(self, row: dict[str, Any], entry: Entry) -> Network:
        """Returns a network that lies in the run folder."""
        place, plan = self._place(row["model"], row["flow"]), self._plan
        assert place is not None

        def engines(with_float: bool) -> Engines:
            program = program_of_row(row["program"], place, entry.program)
            from quantvm.runtime import load

            tvm = {each: load(place / row["by_numerics"][each]["file"]) for each in self._numerics}
            found = _opener_of(plan, program, tvm)(False)
            if with_float:
                module = self._float_module(entry, row["float_digest"], place)
                found.fp32 = float_runner(module, threads=plan.machine.threads)
            return found

        return network_of(row, engines)

    def _float_module(self, entry: Entry, digest: str | None, place: Path) -> nn.Module:
        """Returns the float model.

        Raises:
            ConfigError: its weights are not those that the network of that place was made of.
        """
        module = float_module_of(entry, self._plan)
        if module is None or digest_of_weights(module) != digest:
            raise ConfigError(
                f"the float weights of {entry.spec.name} are not those that its run in {place.parent.parent} began "
                "with; use another folder with --out, or --fp32 none"
            )
        return module


def _opener_of(plan: Plan, program: Program, artifacts: Mapping[str, Artifact]) -> Callable[[bool], Engines]:
    """Returns a function that makes the engines of a program that is in memory."""

    def engines(with_float: bool) -> Engines:
        threads = plan.machine.threads
        has_float = with_float and program.float_module is not None
        fp32 = float_runner(program.float_module, threads=threads) if has_float else None
        tvm = {each: program.tvm_runner(artifact, plan.machine) for each, artifact in artifacts.items()}
        return Engines(fp32, program.runner(plan.machine), tvm)

    return engines


def _code_file(numerics: str) -> str:
    return f"{folder_name('tvm', numerics)}.qvm"


def _source_digest(entry: Entry) -> str | None:
    """Returns the SHA-256 of a model of the user's own; None for a registered one, or if it has no digest."""
    if entry.program is not None:
        return digest_of_program(entry.program)
    module = getattr(entry.spec, "float_module", None)
    return None if module is None else digest_of_weights(module)


def _common(entry: Entry) -> dict[str, Any]:
    """Returns the fields of ModelRow that are known before a model is quantized."""
    weights, preprocessing = entry.weights, entry.spec.preprocessing
    assert weights is not None
    return {
        "title": entry.spec.title,
        "weights": {"source": weights.source, "sha256": weights.sha256},
        "preprocessing": dataclasses.asdict(preprocessing) if dataclasses.is_dataclass(preprocessing) else None,
    }


def _facts_of_code(report: CompileReport) -> dict[str, Any]:
    """Returns what the compiler reports about an artifact; a user's own program decides its numerics."""
    return {
        "numerics": report.numerics,
        "output_scale": report.output_scale,
        "digest": None,
        "facts": {
            "numerics": report.numerics,
            "engine": report.engine,
            "int8_mac_share": report.int8_mac_share,
            "float_ops": list(report.float_ops),
            "target": report.target,
            "import_s": report.import_s,
            "compile_s": report.compile_s,
            "cached": report.cached,
            "load_s": report.load_s,
        },
    }
