"""A quantized model as all jobs use it: what is compiled, what its reference is, and how it runs on images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quantvm import verification
from quantvm.data import Preprocessing
from quantvm.errors import ConfigError, gist
from quantvm.progress import SILENT, Progress
from quantvm.runtime.target import Machine
from quantvm.workload.runners import (
    ChannelsLastRunner,
    FixedBatchRunner,
    OnnxRuntimeRunner,
    Runner,
    TorchRunner,
    TvmRunner,
)

if TYPE_CHECKING:
    from torch import nn

    from quantvm.runtime import Artifact

ITS_OWN = "its-own"
"""The scheme of a model that was quantized by its user."""

_ABOUT_SHAPES = re.compile(r"shape|size|dimension|channel|input|argument|positional|stride|view", re.IGNORECASE)
"""Matches PyTorch's messages about a wrong number, rank or size of inputs."""

Shape = tuple[int, ...]
Kind = Literal["torchscript", "exported", "onnx", "tflite", "module"]


@dataclass(frozen=True)
class Program:
    """A quantized model: the user's own, or one that quantvm quantized.

    Attributes:
        word: what the user wrote, or the model's name.
        kind: the kind of model that the word names or returns.
        value: the argument for `quantvm.compile`: a module, an exported program or a path.
        shapes: of the inputs; None where a dimension may have any size.
        shapes_are_given: whether they are the user's, or a guess, and not from the program.
        engine: PyTorch engine that a TorchScript program or module is for.
        n_outputs: size of the output's last dimension, if the file says it.
        sizes_are_given: whether `shapes` has sizes that the user gave for dimensions which a file leaves open.
        float_module: what quantvm quantized it from; None if the user quantized it, or if integers were published.
        title, preprocessing: for a model that quantvm quantized, its name in reports, and how images become its input.
        quantvm_scheme, quantvm_n_calibration: how it was quantized; modules that quantvm quantized have the same
            attributes.
    """

    word: str
    kind: Kind
    value: Any = field(repr=False)
    shapes: tuple[tuple[int | None, ...], ...]
    shapes_are_given: bool
    engine: str | None
    n_outputs: int | None = None
    quantvm_scheme: str = ITS_OWN
    quantvm_n_calibration: int = 0
    sizes_are_given: bool = False
    float_module: Any = field(default=None, repr=False)
    title: str | None = None
    preprocessing: Preprocessing | None = None

    @classmethod
    def quantized_here(cls, name: str, quantized: Any, shape: Shape, float_module: nn.Module | None) -> Program:
        """Returns a program from the result of `quantvm.quantize`, or from a published quantized checkpoint."""
        known = {
            "float_module": float_module,
            "quantvm_scheme": quantized.quantvm_scheme,
            "quantvm_n_calibration": quantized.quantvm_n_calibration,
        }
        if quantized.quantvm_engine == "pt2e":
            return replace(cls.exported(name, quantized), **known)
        return cls(name, "module", quantized, (shape,), True, quantized.quantvm_engine, **known)

    @classmethod
    def exported(cls, word: str, program: Any) -> Program:
        """Returns an exported program, which says the shapes of its inputs."""
        import torch

        names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
        shapes = tuple(
            tuple(None if isinstance(d, torch.SymInt) else int(d) for d in node.meta["val"].shape)
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in names and hasattr(node.meta["val"], "shape")
        )
        return cls(word, "exported", program, shapes, False, None)

    @property
    def is_own(self) -> bool:
        """Whether the user quantized it."""
        return self.quantvm_scheme == ITS_OWN

    @property
    def quantvm_engine(self) -> str:
        """The engine; modules that quantvm quantized have the same attribute."""
        return {"exported": "pt2e", "onnx": "onnx", "tflite": "tflite"}.get(self.kind, self.engine or "fbgemm")

    @property
    def example_inputs(self) -> list[np.ndarray] | None:
        """Zeros in the inputs' shapes, or None for a program that says its shapes itself."""
        return self._zeros(1) if self.shapes_are_given or self.sizes_are_given else None

    @property
    def fixed_batch(self) -> int | None:
        """How many images one call takes; None for any number."""
        return None if self.shapes_are_given else self.shapes[0][0]

    def _static_inputs(self) -> list[np.ndarray]:
        """Returns inputs whose sizes are all known: those that a program was exported with, or zeros."""
        if self.kind != "exported" or not any(None in shape for shape in self.shapes):
            return self._zeros(1)
        from torch.utils._pytree import tree_leaves

        return [x.detach().numpy() for x in tree_leaves(self.value.example_inputs or ())] or self._zeros(1)

    def _zeros(self, batch: int) -> list[np.ndarray]:
        return [np.zeros([batch if d is None else d for d in shape], np.float32) for shape in self.shapes]

    @property
    def reference(self) -> str | None:
        """What computes the reference: PyTorch, ONNX Runtime, or None if there is none here."""
        if self.kind == "onnx":
            from quantvm.frontend.onnx import layers as onnx_layers

            return "ONNX Runtime" if onnx_layers.has_onnxruntime() else None
        return None if self.kind == "tflite" else "PyTorch"

    @property
    def missing_reference(self) -> str | None:
        """Why there is no reference, or None if there is one."""
        if self.reference is not None:
            return None
        if self.kind == "onnx":
            return "ONNX Runtime is not installed (pip install onnxruntime), so only TVM's accuracy is measured"
        return "quantvm has no reference for TFLite files, so only TVM's accuracy is measured"

    def runner(self, machine: Machine) -> Runner | None:
        """Returns the model in its own runtime; None if there is none."""
        if self.reference is None:
            return None
        if self.kind == "onnx":
            return self.on_images(OnnxRuntimeRunner(Path(self.word), threads=machine.threads))
        return self.on_images(TorchRunner(self.callable_module(), threads=machine.threads))

    def on_images(self, runner: Runner) -> Runner:
        """Wraps a runner of the program's own inputs so that it takes any number of images (N, 3, H, W)."""
        runner = ChannelsLastRunner(runner) if self.is_channels_last else runner
        return runner if self.fixed_batch is None else FixedBatchRunner(runner, self.fixed_batch)

    def compile(
        self,
        machine: Machine,
        *,
        numerics: str = "torch",
        batch: str = "dynamic",
        verify: bool = False,
        cache: bool = True,
        progress: Progress = SILENT,
    ) -> Artifact:
        """Returns the program compiled by TVM, or found in the cache, for the batch sizes that the program takes.

        Args:
            machine: what it is compiled for.
            numerics: torch: the bits of its engine, or the results of its own runtime if it is for no engine.
            batch: static: only for the number of images in its shapes, or for one.
            verify: whether its outputs are compared with those of its own runtime; not needed if the caller does so.
            cache: whether to use code of earlier runs, and to keep code for later ones.
            progress: where a long compilation reports to.
        """
        is_fixed = self.fixed_batch is not None and not any(None in shape for shape in self.shapes)
        examples = self._static_inputs() if batch == "static" and not is_fixed else self.example_inputs
        return verification.compile(
            self.value, examples, verify=verify, numerics=None if numerics == "torch" else numerics, engine=self.engine,
            batch="static" if is_fixed else batch, target=machine.target, threads=machine.threads, cache=cache,
            progress=progress,
        )  # fmt: skip

    def tvm_runner(self, artifact: Artifact, machine: Machine) -> Runner:
        """Returns a runner of the compiled program that maps any number of images to raw outputs."""
        return self.on_images(TvmRunner(artifact, threads=machine.threads))

    def callable_module(self) -> Any:
        """Returns the program as a function of torch tensors."""
        import torch

        if self.kind == "torchscript":
            from quantvm.frontend.torchscript.loading import load_script

            return load_script(Path(self.value))
        if isinstance(self.value, torch.export.ExportedProgram):
            return self.value.module()
        return self.value

    def check(self, *, as_classifier: bool) -> int | None:
        """Runs the program once, if it is one of PyTorch; returns the number of classes if known.

        Args:
            as_classifier: whether it must take one batch of images and return one score for each class.

        Raises:
            ConfigError: it cannot take inputs of these shapes, or is no classifier.
        """
        if as_classifier:
            self._check_image_input()
        if self.kind in ("onnx", "tflite"):
            return self.n_outputs
        import torch

        shapes = " ".join(",".join("1" if d is None else str(d) for d in shape) for shape in self.shapes)
        module = self.callable_module()
        has_open_sizes = any(None in shape[1:] for shape in self.shapes)
        try:
            with torch.inference_mode():
                y = module(*map(torch.from_numpy, self._static_inputs() if has_open_sizes else self._zeros(1)))
        except MemoryError:
            raise
        except Exception as error:  # PyTorch raises many types for mismatches, and the model's own code may raise any
            reason = gist(error)
            if not _ABOUT_SHAPES.search(reason):
                raise ConfigError(f"{self.word} cannot be run: {reason}") from error
            hint = "; name the right ones with --input-shape" if self.shapes_are_given else ""
            raise ConfigError(f"{self.word} cannot take an input {shapes}: {reason}{hint}") from error
        if not as_classifier:
            return None
        got = f"{str(y.dtype).removeprefix('torch.')} {tuple(y.shape)}" if hasattr(y, "shape") else type(y).__name__
        if not hasattr(y, "shape") or y.ndim != 2 or y.dtype != torch.float32:
            raise ConfigError(f"{self.word} returns {got} for an input {shapes}, expected float32 scores (N, classes)")
        return int(y.shape[1])

    def _check_image_input(self) -> None:
        if self.image_shape is None:
            expected = "(N, H, W, 3)" if self.kind == "tflite" else "(N, 3, H, W)"
            raise ConfigError(f"{self.word} takes {self.shapes_text}, expected one input of images, {expected}")
        _, height, width = self.image_shape
        if height != width or height is None:
            raise ConfigError(f"{self.word} takes images of {height} x {width}, expected squares, which a crop gives")

    @property
    def shapes_text(self) -> str:
        """The inputs' shapes as text for messages."""
        shapes = (", ".join("N" if size is None else str(size) for size in shape) for shape in self.shapes)
        return " and ".join(f"({shape})" for shape in shapes)

    @property
    def is_channels_last(self) -> bool:
        """Whether it takes images as (N, H, W, 3), as TFLite files do."""
        return self.kind == "tflite" and [len(shape) for shape in self.shapes] == [4] and self.shapes[0][3] == 3

    @property
    def image_shape(self) -> tuple[int | None, int | None, int | None] | None:
        """(3, H, W) of its input, if that is one batch of colour images in either memory order."""
        if [len(shape) for shape in self.shapes] != [4]:
            return None
        _, *sizes = self.shapes[0]
        channels, height, width = (sizes[2], sizes[0], sizes[1]) if self.is_channels_last else sizes
        return (channels, height, width) if channels == 3 else None

    @property
    def image_size(self) -> int:
        """Side of its square input images."""
        assert self.image_shape is not None
        size = self.image_shape[1]
        assert size is not None  # _check_image_input made sure
        return size
