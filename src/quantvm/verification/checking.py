"""Checks that a compiled model computes what its reference does, as its numerics promise (docs/numerics.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantvm.compiler.cache import CompileCache
from quantvm.errors import MachineError, QuantvmError, VerificationError, last_line
from quantvm.frontend.source import Source
from quantvm.progress import Progress
from quantvm.runtime import Artifact, CompileReport
from quantvm.runtime.target import Machine
from quantvm.runtime.verdict import Verdict, Verification
from quantvm.structure import renesting, take_apart
from quantvm.verification.qdq_definition import ExactQdq, Unrounded
from quantvm.verification.qdq_in_float import QdqInFloat, unknown_ops

from .inputs import Run, runs_for
from .kept import find, keep, verdict_key
from .layers import LayerDifference, ReferenceLayers, first_difference, layered_program
from .outputs import Difference, are_close, moved
from .references import Arrays, NoReferenceError, Reference, reference_name, reference_of
from .ties import NEAR
from .torch_state import TorchState

FLOAT_ROUNDING = 1e-5
"""Two orders of the same float sums differ by at most this share of an output's greatest value."""

_NEAR_IN_FLOAT = 0.05
"""So many steps from a tie, float functions (exp, erf, norms) of two frameworks may round either way."""

GREATEST_LOSS = {"torch": 1.0, "qdq": 1.0, "tflite": 4.0, "integer": 16.0}
"""The greatest distance of outputs from the reference's, as a multiple of what rounding to steps moved the latter
(verdict bound).

Numerics integer rounds twice where PyTorch rounds once: in additions, concatenations and products. Some of TFLite's
operators round otherwise than LiteRT's in many places (docs/numerics.md).
"""


@dataclass
class Subject:
    """What is verified.

    Attributes:
        artifact: the compiled model.
        model: what it was compiled from.
        example_inputs: as the user gave them.
        target: as the user gave it.
    """

    artifact: Artifact
    model: Any
    example_inputs: Any
    target: str

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return str(self.model) if isinstance(self.model, (str, Path)) else f"the {type(self.model).__name__}"

    @cached_property
    def flat_examples(self) -> list[np.ndarray] | None:
        """The example's arrays in the order of the signature; None without an example."""
        return None if self._renesting is None else [np.asarray(x) for x in self._renesting[0]]

    @cached_property
    def _renesting(self) -> tuple[list[Any], Callable[[Sequence[Any]], Any]] | None:
        if self.example_inputs is None:
            return None
        return renesting(self.example_inputs, [spec.name for spec in self.artifact.signature.inputs])

    def nested(self, inputs: Sequence[Any]) -> Any:
        """Returns arrays nested like the example; without an example, unchanged."""
        return list(inputs) if self._renesting is None else self._renesting[1](inputs)

    def compiled(self, inputs: Run) -> Arrays:
        """Returns the outputs of the compiled code, nested ones flattened."""
        return take_apart(self.artifact(*inputs), lambda y: isinstance(y, np.ndarray))[1]

    def imported(self, inputs: Run) -> Any:
        """Returns the program in Relax QDQ form, for a batch of that size."""
        from quantvm.frontend import import_model

        engine = self.artifact.report.engine
        return import_model(self.model, self.nested(inputs), engine=engine, batch="static")


def verify(subject: Subject, *, store: CompileCache | None, progress: Progress) -> Verification:
    """Returns how the compiled model compares with its reference.

    Args:
        subject: what is compared.
        store: where verdicts are kept; None to use and keep none.
        progress: where it reports to.

    Raises:
        VerificationError: the code does not compute what its numerics promise.
    """
    artifact = subject.artifact
    try:
        artifact.prepare()
    except MachineError as error:
        return Verification("not run", str(error))
    runs, sizes = runs_for(artifact.signature, subject.flat_examples)
    key = None
    if store is not None:
        name = " ".join(reference_name(subject.model, _state(artifact.report)))
        nested = None if subject.example_inputs is None else subject.nested([torch.from_numpy(x) for x in runs[0]])
        key = verdict_key(artifact.key, Source(subject.model, nested, artifact.report.engine), name, runs)
    found = find(store, key) if store is not None and key is not None else None
    if found is None:
        found = _compared(subject, runs, sizes, progress)
        if store is not None and key is not None:
            keep(store, key, found)
    return found


def _compared(subject: Subject, runs: list[Run], sizes: tuple[int, ...], progress: Progress) -> Verification:
    with progress.task("verifying", total=2 * len(runs)) as task:
        expected: list[Arrays] = []
        reference, note = _reference(subject)
        if reference is not None:
            for inputs in runs:
                try:
                    expected.append(reference.run(inputs))
                except Exception as error:  # noqa: BLE001 - the framework's own, of whatever it cannot do
                    reason = last_line(error)
                    note = f"{reference.name} cannot run a batch of {sizes[len(expected)]}: {reason}"
                    break
                task.advance()
        if not expected:
            return _Check(subject, None, runs, [], sizes, note or "").lowering_only()
        runs, sizes = runs[: len(expected)], sizes[: len(expected)]
        assert reference is not None
        return _Check(subject, reference, runs, expected, sizes, note).verdict()


def _reference(subject: Subject) -> tuple[Reference | None, str | None]:
    report = subject.artifact.report
    try:
        nested = None if subject.example_inputs is None else subject.nested
        found = reference_of(subject.model, nested, _state(report))
    except (NoReferenceError, QuantvmError) as error:
        return None, str(error)
    return found, None


class _Check:
    """One comparison.

    Args:
        subject: what is compared.
        reference: what it is compared with; None for the imported program.
        runs: the inputs of each run.
        expected: the reference's outputs of each run.
        sizes: the batch size of each run.
        note: a remark for the verdict.
    """

    def __init__(
        self, subject: Subject, reference: Reference | None, runs: list[Run], expected: list[Arrays],
        sizes: tuple[int, ...], note: str | None,
    ) -> None:  # fmt: skip
        self._subject, self._reference, self._runs, self._expected = subject, reference, runs, expected
        self._sizes, self._note = sizes, note
        report = subject.artifact.report
        self._numerics = report.numerics.split(":")[0]
        self._has_float = bool(report.float_ops) or report.int8_mac_share < 1
        self._actual = [self._run(inputs, size) for inputs, size in zip(runs, sizes, strict=False)]
        self._difference = Difference()
        for actual, right, size in zip(self._actual, expected, sizes, strict=False):
            self._difference.add(actual, right, size)

    def _run(self, inputs: Run, size: int) -> Arrays:
        try:
            return self._subject.compiled(inputs)
        except Exception as error:
            reason = last_line(error)
            raise VerificationError(
                f"{self._subject.name}: the compiled code cannot run a batch of {size}: {reason}; batch='static' "
                "compiles it for the example's batch alone"
            ) from error

    @property
    def _differing(self) -> list[int]:
        """Numbers of the runs whose outputs differ."""
        found = []
        for i, (actual, right) in enumerate(zip(self._actual, self._expected, strict=True)):
            count = Difference()
            count.add(actual, right, 0)
            if count.different:
                found.append(i)
        return found

    # ------------------------------------------------------------------ verdicts

    def verdict(self) -> Verification:
        """Returns the verdict on code that has a reference."""
        if not self._difference.different:
            return self._equal()
        if not np.isfinite(self._difference.greatest):
            raise self._mismatch(None)
        if self._numerics == "torch" and not self._has_float:
            raise self._mismatch(None)
        if self._numerics == "qdq":
            found = self._by_definition()
            if found is not None:
                return found
        return self._bound()

    def lowering_only(self) -> Verification:
        """Returns the verdict on code whose only reference is the imported program."""
        module = self._subject.imported(self._runs[0])
        unknown = unknown_ops(module)
        if unknown:
            return Verification("not run", f"{self._note}; and no float form of {', '.join(unknown)} is known")
        name = "the imported program"
        exact, inexact = [], False
        for inputs in self._runs:
            definition = ExactQdq(self._subject.imported(inputs), divides=self._divides)
            exact.append(definition(*inputs))
            inexact |= bool(definition.inexact)
        self._reference = Reference(name, "in float", lambda inputs: [])
        self._expected = exact
        for actual, right, size in zip(self._actual, exact, self._sizes, strict=True):
            self._difference.add(actual, right, size)
        reason = f"{self._note}, so that a wrong import would not be seen"
        if self._difference.different:
            if not inexact and not self._has_float:
                raise self._mismatch(None)
            self._bound()
        return self._verdict("lowering only", reason)

    def _equal(self) -> Verification:
        degenerate = self._difference.degenerate
        if degenerate is not None:
            return self._verdict("degenerate", degenerate)
        return self._verdict("exact", "equal bits")

    def _by_definition(self) -> Verification | None:
        """Returns the verdict if the definition of numerics=qdq can be computed exactly, else None."""
        for i in self._differing:
            module = self._subject.imported(self._runs[i])
            if unknown_ops(module):
                return None
            definition = ExactQdq(module, divides=self._divides)
            exact = definition(*self._runs[i])
            if definition.inexact or self._has_float:
                return None
            count = Difference()
            count.add(self._actual[i], exact, self._sizes[i])
            if count.different:
                raise self._mismatch(
                    None, f"its own definition, computed by other code, gives other values: {count.first}"
                )
        rest = self._layers(self._differing)
        if rest is None:
            return None
        are_quantized = all(spec.quantization is not None for spec in self._subject.artifact.signature.outputs)
        if are_quantized:
            return self._verdict("ties", "every integer of every layer is right or lies at a rounding tie")
        return self._verdict("bound", "every integer of every layer is right or lies at a tie; outputs are float sums")

    def _layers(self, numbers: Sequence[int], near: float = NEAR) -> bool | None:
        """Returns True if the definition explains every layer of these runs; None if layers are not available.

        Raises:
            VerificationError: a layer is not explained.
        """
        for i in numbers:
            layers = self._reference_layers(i)
            if layers is None:
                return None
            try:
                strayed = layers.unexplained(near)
                outputs = layers.outputs() if strayed is None else []
            except (NotImplementedError, KeyError):
                return None
            if strayed is not None:
                raise self._mismatch(strayed)
            if near == NEAR and not are_close(outputs, self._expected[i], 10 * FLOAT_ROUNDING):
                raise self._mismatch(None, "the outputs are not what the imported program makes of the last layers")
        return True

    def _reference_layers(self, run: int) -> ReferenceLayers | None:
        report, inputs = self._subject.artifact.report, self._runs[run]
        try:
            program = layered_program(self._subject.model, self._subject.nested, inputs, _state(report))
            if program.source is None or not program.layers:
                return None
            return ReferenceLayers(program, inputs, _state(report))
        except (QuantvmError, RuntimeError, LookupError, TypeError, ValueError):
            return None

    def _bound(self) -> Verification:
        """Returns the verdict on float parts; raises if compiling moved the outputs further than the limit."""
        if self._numerics != "integer" and all(
            are_close(a, e, FLOAT_ROUNDING) for a, e in zip(self._actual, self._expected, strict=True)
        ):
            return self._verdict("bound", "the last bits of float sums")
        if self._expected_of_framework:
            self._layers(self._differing, near=_NEAR_IN_FLOAT)
        module = self._subject.imported(self._runs[0])
        unknown = unknown_ops(module)
        loss, limit = 0.0, GREATEST_LOSS["tflite" if self._is_tflite and self._numerics == "qdq" else self._numerics]
        for i in self._differing:
            inputs, actual, expected = self._runs[i], self._actual[i], self._expected[i]
            own = moved(actual, expected)
            if unknown:
                by = 0.1 * float(np.sqrt(sum(np.square(e.astype(np.float64)).sum() for e in expected)))
            else:
                # `expected` is not used: after a wrong import it is far from both, and would give a great distance
                module = self._subject.imported(inputs)
                by = moved(Unrounded(module)(*inputs), QdqInFloat(module)(*inputs))
            by = max(by, self._one_step(expected))
            loss = max(loss, own / by if by > 0 else np.inf)
        if loss > limit:
            raise self._mismatch(
                None, f"they moved {loss:.3g} times as far as quantizing moved them, at most {limit:g} is right"
            )
        what = "a tenth of the outputs" if unknown else "what rounding to steps moved them by"
        return self._verdict("bound", f"moved by {loss:.2g} of {what}")

    def _one_step(self, expected: Arrays) -> float:
        """Returns the distance of outputs that differ by one step in 1 % of the places, but in at least one."""
        total = 0.0
        for spec, e in zip(self._subject.artifact.signature.outputs, expected, strict=True):
            step = 0.0 if spec.quantization is None else spec.quantization.scale
            total += step**2 * max(1.0, e.size / 100)
        return float(np.sqrt(total))

    # ------------------------------------------------------------------ words

    @property
    def _expected_of_framework(self) -> bool:
        """Whether the layers of the reference follow the definition of numerics=qdq."""
        return self._numerics == "qdq" and self._reference is not None and bool(self._differing)

    @property
    def _divides(self) -> bool:
        return self._subject.artifact.report.engine in ("onnx", "tflite")

    @property
    def _is_tflite(self) -> bool:
        """Whether the model is one of TFLite, whose multipliers are fixed point, not float."""
        return self._subject.artifact.report.engine == "tflite"

    def _verdict(self, verdict: Verdict, reason: str) -> Verification:
        assert self._reference is not None
        note = f"; {self._note}" if self._note and verdict != "lowering only" else ""
        found = self._difference
        return Verification(
            verdict, reason + note, self._reference.text, self._sizes, found.n, found.different, found.greatest
        )

    def _mismatch(self, layer: LayerDifference | None, more: str | None = None) -> VerificationError:
        found, subject = self._difference, self._subject
        assert self._reference is not None
        told = [
            f"{subject.name}: the compiled code is not what {self._reference.text} computes: {found.different:,} of "
            f"{found.n:,} output values differ, by up to {found.greatest:.6g} ({found.first})"
        ]
        if more:
            told.append(more[0].upper() + more[1:])
        layer = layer or self._first_layer()
        if layer is not None:
            told.append(layer.text)
        told.append(f"To see every layer: {diff_command(subject)}")
        told.append("This is a fault of quantvm; please report it. verify=False (--no-verify) compiles all the same")
        return VerificationError(". ".join(told))

    def _first_layer(self) -> LayerDifference | None:
        report = self._subject.artifact.report
        for i in self._differing or [0]:
            layers = self._reference_layers(i)
            if layers is None:
                return None
            try:
                return first_difference(
                    layers, numerics=report.numerics, machine=Machine(self._subject.target, report.threads),
                    inputs=self._runs[i],
                )  # fmt: skip
            except Exception:  # noqa: BLE001 - the fault itself may show here; the outputs are named without it
                return None
        return None


def diff_command(subject: Subject) -> str:
    """Returns the command that compares all layers of the model, and how to save a live one for it."""
    report = subject.artifact.report
    shapes = " ".join(
        "--input-shape " + ",".join("1" if size is None else str(size) for size in spec.shape)
        for spec in subject.artifact.signature.inputs
    )
    options = f" --threads {report.threads}"
    if report.numerics.startswith("integer"):
        options += f" --actual tvm:{report.numerics}"
    if isinstance(subject.model, (str, Path)):
        is_script = report.engine not in ("pt2e", "onnx", "tflite")
        return f"quantvm diff {subject.model}" + (f" {shapes} --engine {report.engine}" if is_script else "") + options
    if isinstance(subject.model, torch.export.ExportedProgram) or report.engine == "pt2e":
        return f'torch.export.save(program, "model.pt2"), then quantvm diff model.pt2{options}'
    if report.engine == "onnx":
        return f'onnx.save(model, "model.onnx"), then quantvm diff model.onnx{options}'
    return (
        f'torch.jit.trace(model, inputs).save("model.pt"), then quantvm diff model.pt {shapes} --engine {report.engine}'
        f"{options}"
    )


def _state(report: CompileReport) -> TorchState:
    """Returns how PyTorch computes what a model was compiled to follow."""
    return TorchState(report.engine, report.threads)
