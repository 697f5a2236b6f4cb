"""Compares two runs of one program: which layers differ, from which inputs, and by which rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from quantvm.choices import ENGINES
from quantvm.errors import ConfigError, RunError
from quantvm.jobs.layer_differences.causes import Explainer
from quantvm.jobs.layer_differences.config import DiffConfig
from quantvm.jobs.layer_differences.layer_parity import LayerCount
from quantvm.jobs.layer_differences.schema import FusionRow
from quantvm.layer_rules import Environment
from quantvm.progress import Progress
from quantvm.qdq.bindings import definitions
from quantvm.qdq.expressions import op_name
from quantvm.runtime.target import Machine
from quantvm.verification.ties import explain_ties, what_decides
from quantvm.verification.torch_state import TorchState

if TYPE_CHECKING:
    from quantvm.frontend import LayeredProgram
    from quantvm.frontend.layers import LayerAlone
    from quantvm.lowering.layer_operators import LayerOperator


class Comparison:
    """Two sides of one program.

    Args:
        config: names the sides.
        program: the program and its layers.
        float_model: what it was quantized from; None if that is not known.
        machine: what TVM's sides are compiled for; both sides use its number of threads.
        example_f32: an image.

    Attributes:
        reference, actual: the sides.
        machine: the argument.
        formats: of each layer, whether PyTorch holds it in channels-last order.
        counts: of each layer, how it differs.
    """

    def __init__(
        self,
        config: DiffConfig,
        program: LayeredProgram,
        float_model: Any,
        machine: Machine,
        example_f32: np.ndarray,
    ) -> None:
        self._program, self.machine = program, machine
        self._float_model = float_model
        self._runs: dict[str, Any] = {}
        self.reference, self.actual = config.reference or self.source_side or "qdq", config.actual
        self.formats = self._channels_last(example_f32)
        self._fused = {
            side: _FusionCount(side)
            for side in dict.fromkeys((self.reference, self.actual))
            if side.split(":")[0] == "tvm"
        }
        self.counts = [LayerCount(layer) for layer in program.layers]

    def _channels_last(self, example_f32: np.ndarray) -> tuple[bool, ...]:
        source = self._program.source
        if source is None:
            return (False,) * len(self._program.layers)
        return self.run(source.side).channels_last(example_f32)

    @cached_property
    def pytorch(self) -> TorchState:
        """PyTorch as a side, with the engine that the program was quantized for."""
        return TorchState(self._program.engine, self.machine.threads)

    @property
    def _is_for_pytorch(self) -> bool:
        """Whether the program is for one of PyTorch's engines."""
        return self.pytorch.engine in ENGINES

    def compile(self, progress: Progress) -> None:
        """Compiles TVM's sides now, so that its time is reported apart from that of the comparison.

        Raises:
            QuantvmError: a side cannot compute this program.
        """
        for side in (self.reference, self.actual):
            self.run(side)
        with progress.task("compiling", total=len(self._fused)) as task:
            for side in self._fused:
                self.run(side).compile()
                task.advance()

    def add(self, x_f32: np.ndarray) -> None:
        """Counts one image."""
        expected = self.run(self.reference).chained(x_f32)
        actual_run = self.run(self.actual)
        actual = actual_run.chained(x_f32)
        sides = (self.actual, self.reference)
        names = [f"layer {layer.name} ({layer.op})" for layer in self._program.layers]
        check_shapes(names, sides, actual, expected)
        for count, a, e in zip(self.counts, actual, expected, strict=True):
            count.add(a, e)
        for side, integers in ((self.reference, actual), (self.actual, expected)):
            if side == "fp32" and self.reference != self.actual:
                for count, real, layer in zip(self.counts, self.run(side).real(x_f32), integers, strict=True):
                    count.add_real(layer, real)
        if hasattr(actual_run, "isolated"):
            # if all layers are equal, each was already computed from the reference's integers
            are_equal = all(np.array_equal(a, e) for a, e in zip(actual, expected, strict=True))
            own = actual if are_equal else actual_run.isolated(x_f32, expected)
            for count, a, e in zip(self.counts, own, expected, strict=True):
                count.add_own(a, e)
        for side, fused in self._fused.items():
            outputs = self.run(side).fused_outputs(x_f32), self.run(side).outputs(x_f32)
            names = [f"output {i}" for i in range(len(outputs[1]))]
            check_shapes(names, (f"{side}, fused", f"{side}, every layer kept"), *outputs)
            fused.add(*outputs)

    def fusion_rows(self) -> list[FusionRow]:
        """Returns for each side of TVM whether fused code gives the same outputs."""
        return [fused.row() for fused in self._fused.values()]

    def explain(self, images: Sequence[np.ndarray], progress: Progress) -> None:
        """Finds the rules that explain differences of layers computed from equal inputs."""
        rules = (self.rule_of(self.reference), self.rule_of(self.actual))
        if "fp32" in rules:
            return
        if not self._is_for_pytorch:
            self._explain_ties(images, progress)
            if not any(rule.startswith("integer") for rule in rules):
                return
        explainer = Explainer(
            self.counts, self.operators, sides=(self.reference, self.actual), rules=rules,
            environment=self.environment, in_float=self._in_float,
        )  # fmt: skip
        explainer.explain(images, self.both, progress)
        if not self._is_for_pytorch:
            for count in self.counts:  # the reference's float sums follow no rule to the last element
                count.unchecked = "fixed point against float: no rule gives every integer of both"

    def _in_float(self, numbers: Sequence[int]) -> Any:
        """Returns a run by float operators: TVM's if the program is for one of PyTorch's engines, else side qdq."""
        return self._tvm(None) if self._is_for_pytorch else self.run("qdq")

    def _explain_ties(self, images: Sequence[np.ndarray], progress: Progress) -> None:
        from quantvm.verification.qdq_in_float import unknown_ops

        unknown = unknown_ops(self._program.chained)
        if not unknown:
            explain_ties(self.counts, self._steps, images, self.both, self._decides, progress)
            return
        for count in self.counts:
            count.unchecked = f"not checked for ties: no float form of {', '.join(unknown)} is known"

    def _decides(self, index: int) -> str | None:
        module = self._program.unrounded(self.formats, [index])
        names = {op_name(value) for value in definitions(module["main"]).values()} - {""}
        return what_decides(names, divides=self.pytorch.engine == "pt2e")

    def both(self, x_f32: np.ndarray) -> tuple[list[Any], list[Any]]:
        """Returns the reference's layers, and the other side's, each computed from the reference's."""
        expected = self.run(self.reference).chained(x_f32)
        return expected, self.run(self.actual).isolated(x_f32, expected)

    @property
    def source_side(self) -> str | None:
        """The framework that the program came from; None if it is not installed."""
        return None if self._program.source is None else self._program.source.side

    def alone(self, index: int, x_f32: np.ndarray) -> LayerAlone:
        """Returns one layer of an exported program or of an ONNX file as a program of its own, for such an image."""
        import torch

        return self._program.source.alone(self._program.layers, index, [torch.from_numpy(x_f32)])  # type: ignore[union-attr]

    @cached_property
    def operators(self) -> list[LayerOperator | None]:
        """What every layer computes."""
        from quantvm.lowering.layer_operators import layer_operators

        return layer_operators(self._program.isolated(self.formats))

    @cached_property
    def environment(self) -> Environment:
        """What PyTorch's formulas depend on besides the operator."""
        return Environment(self.pytorch, images=int(self._program.example_inputs[0].shape[0]))

    def rule_of(self, side: str) -> str:
        """Returns the preset that a side should follow."""
        kind, _, rest = side.partition(":")
        if kind in ("qdq", "fp32"):
            return kind
        if rest.startswith("integer"):
            return "integer" if rest == "integer:upward" else rest
        if rest == "qdq" or not self._is_for_pytorch:
            return "pt2e" if self.pytorch.engine == "pt2e" else "qdq"
        return self.pytorch.engine if rest in ("", "torch") else rest

    def run(self, side: str) -> Any:
        """Returns what computes a side."""
        if side not in self._runs:
            self._runs[side] = self._made(side)
        return self._runs[side]

    def _made(self, side: str) -> Any:
        from quantvm.verification.layer_runs import FloatLayerRun, QdqLayerRun, TorchLayerRun

        kind, _, rest = side.partition(":")
        if kind in ("torch", "onnxruntime"):
            self._check_source(kind)
            return TorchLayerRun(self._program, self.pytorch.under(rest) if rest else self.pytorch)
        if kind == "qdq":
            return QdqLayerRun(self._program, channels_last=self.formats, state=self.pytorch)
        if kind == "tvm":
            return self._tvm(rest or ("torch" if self._is_for_pytorch else "qdq"))
        if not self._is_for_pytorch:
            raise ConfigError(
                "fp32: a program of the flow pt2e has other layers than its float model; compare torch, qdq or tvm, "
                "or take --waterfall, which compares outputs"
            )
        if self._float_model is None:
            raise ConfigError(
                "fp32: these weights were published as integers, so there is no float model; choose other weights"
            )
        return FloatLayerRun(self._program, self._float_model, self.pytorch)

    def _check_source(self, kind: str) -> None:
        """Raises ConfigError if the side is not the framework that the program came from."""
        source = self._program.source
        if source is None or source.side != kind:
            others = [*([] if source is None else [source.side]), "qdq", "tvm"]
            missing = kind == "onnxruntime" and self.pytorch.engine == "onnx"
            why = "it is not installed, or the file is none of ONNX" if missing else "it cannot run this model"
            raise ConfigError(f"{kind}: {why}; compare {', '.join(others)}")

    def _steps(self, x_f32: np.ndarray, layers: Sequence[Any], wanted: Sequence[int]) -> list[np.ndarray]:
        """Returns the layers' values before rounding, in steps, computed in double precision from given integers."""
        from quantvm.verification.qdq_in_float import QdqInFloat

        compute = QdqInFloat(self._program.unrounded(self.formats, wanted), double=True)
        scales = [self._program.layers[i].q.scale for i in wanted]
        return [real / np.float64(scale) for real, scale in zip(compute(x_f32, *layers), scales, strict=True)]

    def _tvm(self, numerics: str | None) -> Any:
        from quantvm.verification.layer_runs import TvmLayerRun

        return TvmLayerRun(
            self._program, numerics=numerics, state=self.pytorch, channels_last=self.formats,
            target=self.machine.target,
        )  # fmt: skip


def check_shapes(
    names: Sequence[str], sides: tuple[str, str], actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> None:
    """Checks that two runs can be compared element by element.

    Raises:
        RunError: they return different numbers of tensors, or tensors of different shapes; names the first of these.
    """
    if len(actual) != len(expected):
        raise RunError(
            f"{sides[0]} gives {len(actual)} tensors, {sides[1]} {len(expected)}, expected {len(names)} of each. "
            "Please report it with the model"
        )
    for name, a, e in zip(names, actual, expected, strict=True):
        if a.shape != e.shape:
            raise RunError(
                f"{name} has shape {a.shape} by {sides[0]}, and {e.shape} by {sides[1]}: the two do not compute the "
                "same program, and nothing behind this can be compared. Please report it with the model"
            )


class _FusionCount:
    """Compares the raw outputs of fused code with those of code that returns every layer."""

    def __init__(self, side: str) -> None:
        self._side, self._n, self._equal, self._max = side, 0, 0, 0.0

    def add(self, fused: Sequence[np.ndarray], chained: Sequence[np.ndarray]) -> None:
        for f, c in zip(fused, chained, strict=True):
            is_float = f.dtype == c.dtype == np.float32
            same = f.view(np.int32) == c.view(np.int32) if is_float else np.asarray(f == c)
            self._n += same.size
            self._equal += int(same.sum())
            if not same.all():
                self._max = max(self._max, float(np.abs(f[~same].astype(np.float64) - c[~same]).max()))

    def row(self) -> FusionRow:
        return {"side": self._side, "n": self._n, "equal": self._equal, "max_abs_diff": self._max}
