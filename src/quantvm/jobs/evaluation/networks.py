"""The networks of an evaluation: each is quantized and compiled once, and kept in the run folder.

A run that is taken up again evaluates the very same networks: PyTorch runs the kept program, TVM the kept code. What
cannot be kept (a module that PyTorch can neither trace nor export, or code without a linker) is made again.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.errors import CompileError, ConfigError, OutputError
from quantvm.jobs.evaluation.units import Side, folder_name
from quantvm.progress import Progress
from quantvm.storage.output_files import make_folder, unfinished_name, write_file
from quantvm.torch_compat import quiet
from quantvm.workload.plan import Entry, Plan
from quantvm.workload.prepare import float_module_of, quantized
from quantvm.workload.program import Program
from quantvm.workload.runners import Runner, TorchRunner

if TYPE_CHECKING:
    from quantvm.runtime import Artifact, CompileReport

_SCHEMA_VERSION = 1
_FACTS_FILE = "network.json"


@dataclass
class Engines:
    """A network's engines, ready to run.

    Attributes:
        fp32: the float model; None if there is none, or if it is not needed.
        torch: the reference; None if there is none.
        tvm: the compiled code by the numerics that were asked for.
    """

    fp32: Runner | None
    torch: Runner | None
    tvm: dict[str, Runner]


@dataclass
class Network:
    """One model by one flow, compiled for each numerics.

    Attributes:
        model: its name.
        flow: how PyTorch quantized it.
        facts: the fields of ModelRow that hold for all numerics.
        by_numerics: for each numerics that was asked for, what is known about the code: `facts` (fields of ModelRow),
            `numerics` that the code has, `output_scale`, and `digest` of the code.
        reference: SHA-256 of the quantized program; None if it has no digest.
        float_digest: SHA-256 of the float model's weights; None if there is no float model.
        open: returns the engines; the argument says whether the float model is needed.
    """

    model: str
    flow: str
    facts: dict[str, Any]
    by_numerics: dict[str, dict[str, Any]]
    reference: str | None
    float_digest: str | None
    open: Callable[[bool], Engines] = field(repr=False)

    def sides(self, numerics: Sequence[str]) -> list[Side]:
        """Returns what gives answers: the float model if there is one, and a side for each numerics."""
        own = [Side(self.model, self.flow, each) for each in numerics]
        return [*([Side.of_float(self.model)] if self.float_digest else []), *own]

    def fingerprint(self, side: Side) -> str:
        """Returns a digest of what decides the answers of a side, as far as it is the network's."""
        if side.is_float:
            parts = [self.float_digest, self.facts["preprocessing"]]
        else:
            parts = [self.reference, self.facts["preprocessing"], self.by_numerics[side.numerics]["digest"]]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
        network = self._made(entry, flow, common, progress, facts) if row is None else self._opened(row, entry)
        for numerics, known in facts.items():
            known |= network.facts | network.by_numerics[numerics]["facts"]
        return network

    def note(self, network: Network) -> None:
        """Writes what is known about a network again, if it is kept."""
        place = self._place(network.model, network.flow)
        if place is not None and (place / _FACTS_FILE).exists():
            row = json.loads((place / _FACTS_FILE).read_text())
            write_file(place / _FACTS_FILE, _json({**row, "by_numerics": network.by_numerics}))

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
        artifacts: dict[str, Artifact] = {}
        by_numerics: dict[str, dict[str, Any]] = {}
        for numerics in self._numerics:
            facts[numerics] |= common
            artifact = program.compile(plan.machine, numerics=numerics, progress=progress)
            artifacts[numerics] = artifact
            by_numerics[numerics] = _facts_of_code(artifact.report)
            facts[numerics] |= by_numerics[numerics]["facts"]
        float_digest = None if program.float_module is None else digest_of_weights(program.float_module)
        made = Network(name, flow, common, by_numerics, None, float_digest, _opener_of(plan, program, artifacts))
        kept = None if self._folder is None else self._keep(made, program, artifacts, progress)
        if kept is None:
            made.reference = _digest_of_program(program)
            for numerics, known in by_numerics.items():
                known["digest"] = f"{artifacts[numerics].key or secrets.token_hex(32)}"
            return made
        return self._opened(kept, entry)

    def _keep(
        self, made: Network, program: Program, artifacts: Mapping[str, Artifact], progress: Progress
    ) -> dict[str, Any] | None:
        """Writes a network into the run folder, whole or not at all; returns its row, or None if it cannot be kept.

        Raises:
            OutputError: the folder cannot be written.
        """
        place = self._place(made.model, made.flow)
        assert place is not None
        unfinished = unfinished_name(place)
        make_folder(unfinished)
        try:
            row: dict[str, Any] = {
                "schema_version": _SCHEMA_VERSION,
                "model": made.model,
                "flow": made.flow,
                "facts": made.facts,
                "program": kept_program(program, unfinished),
                "float_digest": made.float_digest,
                "by_numerics": made.by_numerics,
            }
            for numerics, artifact in artifacts.items():
                file = artifact.save(unfinished / f"{folder_name('tvm', numerics)}.qvm")
                row["by_numerics"][numerics] |= {"file": file.name, "digest": digest_of_file(file)}
            write_file(unfinished / _FACTS_FILE, _json(row))
            shutil.rmtree(place, ignore_errors=True)
            unfinished.rename(place)
        except (CompileError, NotKeptError) as error:
            progress.note(f"the network is not kept in the run folder, a resumed run makes it again: {error}")
            return None
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return row

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
        own = entry.program if program["file"] is None else None
        if own is not None and _digest_of_program(own) != program["sha256"]:
            yield f"the file {own.word} has changed"

    def _row(self, entry: Entry, flow: str) -> dict[str, Any] | None:
        """Returns what the run folder knows about a network; None if it is not there or lacks some numerics."""
        place = self._place(entry.spec.name, flow)
        if place is None:
            return None
        try:
            row = json.loads((place / _FACTS_FILE).read_text())
        except (OSError, ValueError):
            return None
        is_whole = row.get("schema_version") == _SCHEMA_VERSION and set(self._numerics) <= set(row["by_numerics"])
        return row if is_whole else None

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
                module = float_module_of(entry, plan)
                if module is None or digest_of_weights(module) != row["float_digest"]:
                    raise ConfigError(
                        f"the float weights of {row['model']} are not those that its run in {place.parent.parent} "
                        "began with; use another folder with --out, or --fp32 none"
                    )
                found.fp32 = TorchRunner(module, threads=plan.machine.threads)
            return found

        return Network(
            row["model"], row["flow"], row["facts"], row["by_numerics"], row["program"]["sha256"],
            row["float_digest"], engines,
        )  # fmt: skip


class NotKeptError(Exception):
    """The quantized program cannot be written into a file that gives the same outputs."""


def kept_program(program: Program, folder: Path) -> dict[str, Any]:
    """Writes a quantized program into a folder and returns what `program_of_row` needs.

    A program that is a file of the user's own stays where it is: its digest is kept.

    Raises:
        NotKeptError: PyTorch can neither trace nor export it, or what is read back gives other outputs.
    """
    import torch

    if isinstance(program.value, (str, Path)):
        return {"file": None, "kind": program.kind, "sha256": _digest_of_program(program)}
    images_f32 = np.random.default_rng(0).standard_normal((2, *_image_shape(program)), dtype=np.float32)
    with quiet(), torch.no_grad():
        # PyTorch's own quantized modules convert their scale to a number; recording it as a constant is intended
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        try:
            if program.kind == "exported":
                file = folder / "reference.pt2"
                torch.export.save(program.value, file)
            else:
                file = folder / "reference.pt"
                example = torch.from_numpy(images_f32[:1].copy())
                torch.jit.trace(program.value, example, check_trace=False).save(str(file))
            row = _row_of_program(program, file)
            back = program_of_row(row, folder, None)
            before, after = (each.on_images(TorchRunner(each.callable_module(), threads=torch.get_num_threads()))
                             for each in (program, back))  # fmt: skip
            same = np.array_equal(before.run(images_f32).view(np.uint32), after.run(images_f32).view(np.uint32))
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
        except Exception as error:  # the model's own code is traced, and PyTorch raises many types
            raise NotKeptError(str(error).partition("\n")[0]) from error
    if not same:
        raise NotKeptError("PyTorch's saved program gives other outputs than the module")
    return row


def program_of_row(row: Mapping[str, Any], folder: Path, own: Program | None) -> Program:
    """Returns the program that `kept_program` wrote.

    Args:
        row: what it returned.
        folder: where it wrote.
        own: the user's own program, for one that is a file of the user's.
    """
    if row["file"] is None:
        assert own is not None
        return own
    path: Any = folder / row["file"]
    if row["kind"] == "exported":
        import torch

        path = torch.export.load(path)
    shapes = tuple(tuple(shape) for shape in row["shapes"])
    return Program(row["word"], row["kind"], path, shapes, row["shapes_are_given"], row["engine"])


def _row_of_program(program: Program, file: Path) -> dict[str, Any]:
    return {
        "file": file.name,
        "sha256": digest_of_file(file),
        "kind": "exported" if program.kind == "exported" else "torchscript",
        "word": program.word,
        "shapes": program.shapes,
        "shapes_are_given": program.shapes_are_given,
        "engine": program.engine,
    }


def _opener_of(plan: Plan, program: Program, artifacts: Mapping[str, Artifact]) -> Callable[[bool], Engines]:
    """Returns a function that makes the engines of a program that is in memory."""

    def engines(with_float: bool) -> Engines:
        threads = plan.machine.threads
        has_float = with_float and program.float_module is not None
        fp32 = TorchRunner(program.float_module, threads=threads) if has_float else None
        tvm = {each: program.tvm_runner(artifact, plan.machine) for each, artifact in artifacts.items()}
        return Engines(fp32, program.runner(plan.machine), tvm)

    return engines


def _common(entry: Entry) -> dict[str, Any]:
    """Returns the fields of ModelRow that are known before a model is quantized."""
    weights, preprocessing = entry.weights, entry.spec.preprocessing
    assert weights is not None
    return {
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


def _image_shape(program: Program) -> tuple[int, int, int]:
    size = program.image_size
    return 3, size, size


def digest_of_file(path: Path) -> str | None:
    """Returns the SHA-256 of a file; None if it cannot be read."""
    digest = sha256()
    with suppress(OSError), path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()
    return None


def digest_of_weights(module: Any) -> str:
    """Returns the SHA-256 of all tensors of a module's state, with their names."""
    digest = sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _digest_of_program(program: Program) -> str | None:
    """Returns a digest of a quantized program with its weights; None if there is none."""
    if isinstance(program.value, (str, Path)):
        return digest_of_file(Path(program.value))
    from quantvm.verification.kept import digest_of_model

    return digest_of_model(program.value, program.example_inputs, program.engine or "")


def _json(row: Any) -> bytes:
    return (json.dumps(row, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
