"""A model of the user's own, from a word to what is compiled, what is right, and how images become its input.

`load_model` is for whoever has a word; `load_user_spec` makes of it what the main job takes in a registered
model's place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quantvm.data.preprocess import ImageOptions
from quantvm.errors import ConfigError, ModelImportError, gist
from quantvm.models.quantize import FLOWS
from quantvm.models.registry import ModelSpec, WeightsFile
from quantvm.models.weights import ResolvedWeights
from quantvm.storage.download import sha256_of
from quantvm.workload.model_words import call_factory, kind_of
from quantvm.workload.user_runners import ChannelsLastRunner, FixedBatchRunner, OnnxRuntimeRunner

if TYPE_CHECKING:
    from torch import nn

    from quantvm.runtime import Artifact
    from quantvm.runtime.signature import Signature
    from quantvm.workload.runners import Runner

DEFAULT_SHAPE = (1, 3, 224, 224)
ITS_OWN = "its-own"
"""The scheme of a model that was quantized by its user."""

_ABOUT_SHAPES = re.compile(r"shape|size|dimension|channel|input|argument|positional|stride|view", re.IGNORECASE)
"""What PyTorch's messages of a wrong number, rank or size of inputs have in common."""

Shape = tuple[int, ...]
Kind = Literal["torchscript", "exported", "onnx", "tflite", "module"]


@dataclass(frozen=True)
class UserProgram:
    """A quantized program as the user gave it, in place of a module that quantvm quantized.

    Attributes:
        word: what the user wrote.
        kind: what that holds, or returns.
        value: what `quantvm.compile` takes: a module, an exported program or a path.
        shapes: of the inputs; None where a dimension may be any.
        shapes_are_given: whether they are the user's word or a guess, and not the program's own.
        engine: PyTorch engine that a TorchScript program or module is for.
        n_outputs: size of the output's last dimension, where the file says it.
        sizes_are_given: whether `shapes` has sizes that the user gave for dimensions which a file leaves open.
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

    @classmethod
    def exported_by_us(cls, name: str, program: Any) -> UserProgram:
        """Returns the program that `quantvm.quantize` made by the flow pt2e."""
        scheme, n = program.quantvm_scheme, program.quantvm_n_calibration
        return replace(_exported(name, program), quantvm_scheme=scheme, quantvm_n_calibration=n)

    @property
    def quantvm_engine(self) -> str:
        """The engine, as modules that quantvm quantized have it."""
        return {"exported": "pt2e", "onnx": "onnx", "tflite": "tflite"}.get(self.kind, self.engine or "fbgemm")

    @property
    def example_inputs(self) -> list[np.ndarray] | None:
        """Zeros of the inputs' shapes, or None for a program that says them itself."""
        return self._zeros(1) if self.shapes_are_given or self.sizes_are_given else None

    @property
    def fixed_batch(self) -> int | None:
        """How many images a call takes; None for any number."""
        return None if self.shapes_are_given else self.shapes[0][0]

    def _static_inputs(self) -> list[np.ndarray]:
        """Returns inputs of which every size is known: those that a program was exported with, or zeros."""
        if self.kind != "exported" or not any(None in shape for shape in self.shapes):
            return self._zeros(1)
        from torch.utils._pytree import tree_leaves

        return [x.detach().numpy() for x in tree_leaves(self.value.example_inputs or ())] or self._zeros(1)

    def _zeros(self, batch: int) -> list[np.ndarray]:
        return [np.zeros([batch if d is None else d for d in shape], np.float32) for shape in self.shapes]

    @property
    def reference(self) -> str | None:
        """Who computes what is right: PyTorch, ONNX Runtime, or None where nobody here can."""
        if self.kind == "onnx":
            from quantvm.frontend.onnx import layers as onnx_layers

            return "ONNX Runtime" if onnx_layers.has_onnxruntime() else None
        return None if self.kind == "tflite" else "PyTorch"

    @property
    def missing_reference(self) -> str | None:
        """Why there is nobody who computes what is right, or None if there is."""
        if self.reference is not None:
            return None
        if self.kind == "onnx":
            return "ONNX Runtime is not installed (pip install onnxruntime), so only TVM's accuracy is measured"
        return "quantvm has no reference for TFLite files, so only TVM's accuracy is measured"

    def runner(self, threads: int) -> Runner | None:
        """Returns the model itself in its own runtime; None where there is none."""
        from quantvm.workload.runners import TorchRunner

        if self.reference is None:
            return None
        if self.kind == "onnx":
            return self.on_images(OnnxRuntimeRunner(Path(self.word), threads=threads))
        return self.on_images(TorchRunner(self.callable_module(), threads=threads))

    def on_images(self, runner: Runner) -> Runner:
        """Returns what runs the program on any number of images (N, 3, H, W), from what runs it on its own inputs."""
        runner = ChannelsLastRunner(runner) if self.is_channels_last else runner
        return runner if self.fixed_batch is None else FixedBatchRunner(runner, self.fixed_batch)

    def compile(
        self, *, numerics: str | None, engine: str | None, batch: str = "dynamic", verify: bool = False, **options: Any
    ) -> Artifact:
        """Returns the program compiled by TVM, for the batch sizes that it takes itself.

        Args:
            numerics: None: as its own runtime computes.
            engine: PyTorch engine that it is for, where it does not say that itself.
            batch: static: for the number of images in its shapes only, or for one.
            verify: whether its outputs are compared with its own runtime's; who compares them anyway need not.
            **options: as for `quantvm.compile`.
        """
        from quantvm import verification

        is_fixed = self.fixed_batch is not None and not any(None in shape for shape in self.shapes)
        examples = self._static_inputs() if batch == "static" and not is_fixed else self.example_inputs
        return verification.compile(
            self.value, examples, verify=verify, numerics=numerics, engine=self.engine or engine,
            batch="static" if is_fixed else batch, **options,
        )  # fmt: skip

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
        """Runs the program once, in PyTorch where it is a program of PyTorch; returns the number of classes if known.

        Args:
            as_classifier: whether one batch of images in, and one score for each class out, is what must be.

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
        except Exception as error:  # PyTorch's, of whatever kind of mismatch, and what the model's own code raises
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
        """The inputs' shapes, as messages say them."""
        shapes = (", ".join("N" if size is None else str(size) for size in shape) for shape in self.shapes)
        return " and ".join(f"({shape})" for shape in shapes)

    @property
    def is_channels_last(self) -> bool:
        """Whether it takes images as (N, H, W, 3), as TFLite files do."""
        return self.kind == "tflite" and [len(shape) for shape in self.shapes] == [4] and self.shapes[0][3] == 3

    @property
    def image_shape(self) -> tuple[int | None, int | None, int | None] | None:
        """(3, H, W) of what it takes, if that is one batch of colour images in whatever order."""
        if [len(shape) for shape in self.shapes] != [4]:
            return None
        _, *sizes = self.shapes[0]
        channels, height, width = (sizes[2], sizes[0], sizes[1]) if self.is_channels_last else sizes
        return (channels, height, width) if channels == 3 else None

    @property
    def image_size(self) -> int:
        """Side of the squares that it takes."""
        assert self.image_shape is not None
        size = self.image_shape[1]
        assert size is not None  # _check_image_input saw it
        return size


@dataclass(frozen=True)
class FloatModel:
    """A float module that a factory returned.

    Attributes:
        module: in evaluation mode.
        shapes: of its inputs.
        flows: the ways in which PyTorch can quantize it; eager mode needs a `QuantStub`.
    """

    module: nn.Module
    shapes: tuple[Shape, ...]
    flows: tuple[str, ...]


@dataclass(frozen=True)
class UserSpec(ModelSpec):
    """A model of the user's own in the place of a registered one.

    Attributes:
        program: the quantized program; None for a float module that is yet to be quantized.
        float_module: that module; None for a quantized program.
        n_classes: how many scores it gives, if that is known before it runs.
    """

    program: UserProgram | None = None
    float_module: nn.Module | None = field(default=None, repr=False)
    n_classes: int | None = None


def load_model(
    word: str, *, input_shapes: tuple[Shape, ...] | None = None, engine: str | None = None
) -> UserProgram | FloatModel:
    """Returns the quantized program that a file or a factory holds, or the quantizable float module of a factory.

    Args:
        word: a file, or a factory as ``pkg.mod:name``.
        input_shapes: of the inputs, for programs that do not say them. None: 1,3,224,224.
        engine: PyTorch engine that the program is for, where it does not say that itself.

    Raises:
        ConfigError: the word names nothing of the kind, or what the factory returns is no model.
        ModelCodeError: the factory raised.
        ModelImportError: the file is damaged.
    """
    try:
        return _loaded(word, input_shapes, engine)
    except ModelImportError as error:
        if word in str(error):
            raise
        raise ModelImportError(f"{word}: {error}") from error


def _loaded(word: str, input_shapes: tuple[Shape, ...] | None, engine: str | None) -> UserProgram | FloatModel:
    kind = kind_of(word)
    if kind == "registered":
        raise ConfigError(f"'{word}' is a registered model, expected a file or a factory as pkg.mod:name")
    if kind == "factory":
        return _from_factory(word, input_shapes, engine)
    from quantvm.frontend.entry import format_of

    path = Path(word)
    held = format_of(path)
    if held == "torchscript":
        return UserProgram(word, held, path, input_shapes or (DEFAULT_SHAPE,), True, engine)
    if held == "exported":
        from quantvm.frontend.exported.importer import load_program

        return _exported(word, load_program(path))
    signature = _signature_in_file(path)
    own = tuple(spec.shape for spec in signature.inputs)
    shapes, n_outputs = _with_sizes(own, input_shapes), signature.outputs[0].shape[-1]
    return UserProgram(word, held, path, shapes, False, None, n_outputs, sizes_are_given=shapes != own)


def _from_factory(word: str, input_shapes: tuple[Shape, ...] | None, engine: str | None) -> UserProgram | FloatModel:
    import torch

    made = call_factory(word)
    examples: Any = None
    if isinstance(made, tuple) and len(made) == 2:
        made, examples = made
    if isinstance(made, torch.export.ExportedProgram):
        return _exported(word, made)
    if not isinstance(made, torch.nn.Module):
        raise ConfigError(
            f"{word} returned a {type(made).__name__}, expected an nn.Module, a traced module or an exported program, "
            "alone or as (model, example_inputs)"
        )
    made.eval()
    if examples is not None:
        input_shapes = tuple(
            _shape_of(word, x) for x in (examples if isinstance(examples, (tuple, list)) else [examples])
        )
    shapes = input_shapes or (DEFAULT_SHAPE,)
    if is_float_and_quantizable(made):
        return FloatModel(made, shapes, FLOWS)
    if _computes_in_float(made, shapes):
        return FloatModel(made, shapes, tuple(flow for flow in FLOWS if flow != "eager"))
    return UserProgram(word, "module", made, shapes, True, getattr(made, "quantvm_engine", None) or engine)


def _shape_of(word: str, example: Any) -> Shape:
    if not hasattr(example, "shape") or "float32" not in str(getattr(example, "dtype", "")):
        kind = f"{example.dtype} array" if hasattr(example, "dtype") else type(example).__name__
        raise ConfigError(f"{word}: an example input is a {kind}, expected float32 tensors or arrays")
    return tuple(int(d) for d in example.shape)


def is_float_and_quantizable(module: Any) -> bool:
    """Says whether a module is the float model that `quantvm.quantize` takes."""
    from torch.ao.nn.quantized import Quantize
    from torch.ao.quantization import QuantStub

    kinds = {type(inner) for inner in module.modules()} if hasattr(module, "modules") else set()
    return QuantStub in kinds and Quantize not in kinds and not any("FakeQuantize" in kind.__name__ for kind in kinds)


def _computes_in_float(module: Any, shapes: tuple[Shape, ...]) -> bool:
    """Says whether a module takes such inputs and calls no operator of a quantized model on the way."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    called: set[str] = set()

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(str(func))
            return func(*args, **(kwargs or {}))

    if isinstance(module, torch.jit.ScriptModule):
        return False
    try:
        with torch.no_grad(), Listening():
            module(*(torch.zeros([d or 1 for d in shape]) for shape in shapes))
    except Exception:  # noqa: BLE001 - whatever it raises is told where it is run as a program
        return False
    is_torchao = any(type(parameter).__module__.startswith("torchao.") for parameter in module.parameters())
    return not is_torchao and not any("quant" in name for name in called)


def _exported(word: str, program: Any) -> UserProgram:
    import torch

    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    shapes = tuple(
        tuple(None if isinstance(d, torch.SymInt) else int(d) for d in node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names and hasattr(node.meta["val"], "shape")
    )
    return UserProgram(word, "exported", program, shapes, False, None)


def _signature_in_file(path: Path) -> Signature:
    """Returns what an ONNX or TFLite file takes and returns, as its importer understands it."""
    from quantvm.frontend import import_model
    from quantvm.runtime.signature import signature_of

    return signature_of(import_model(path))


def _with_sizes(
    shapes: tuple[tuple[int | None, ...], ...], given: tuple[Shape, ...] | None
) -> tuple[tuple[int | None, ...], ...]:
    """Returns shapes with given sizes where they are open, but for the batch; as they are where these do not fit."""
    if given is None or [len(shape) for shape in shapes] != [len(shape) for shape in given]:
        return shapes
    sizes = [
        (a, b) for shape, other in zip(shapes, given, strict=True) for a, b in zip(shape[1:], other[1:], strict=True)
    ]
    if any(a not in (None, b) for a, b in sizes):
        return shapes
    return tuple((shape[0], *other[1:]) for shape, other in zip(shapes, given, strict=True))


def load_user_spec(
    word: str, options: ImageOptions, *, input_shapes: tuple[Shape, ...] | None = None, engine: str | None = None
) -> tuple[UserSpec, ResolvedWeights]:
    """Returns a classifier of the user's own as a model that can be evaluated on images, and what its weights are.

    Raises:
        QuantvmError: see `load_model`; or it does not map images to scores, or not of the size that was asked for.
    """
    if input_shapes is None and options.crop is not None:
        input_shapes = ((1, 3, options.crop, options.crop),)
    found = load_model(word, input_shapes=input_shapes, engine=engine)
    if isinstance(found, UserProgram):
        program, float_module, flows = found, None, FLOWS
    else:
        # it is probed as a program would be
        program, float_module = UserProgram(word, "module", found.module, found.shapes, True, None), found.module
        flows = found.flows
    n_classes = program.check(as_classifier=True)
    size = program.image_size
    if options.crop not in (None, size):
        raise ConfigError(f"{word} takes images of {size} x {size}, got a crop of {options.crop}")
    spec = UserSpec(
        name=word, title=word, build=_rebuilt, weights=WeightsFile(Path(word).name),
        preprocessing=options.preprocessing(size), published_top1=None, published_top5=None, published_by="",
        program=program if float_module is None else None, float_module=float_module, n_classes=n_classes,
        flows=flows,
    )  # fmt: skip
    is_file = Path(word).is_file()
    source = f"{'file' if is_file else 'factory'} {word}"
    return spec, ResolvedWeights(source, Path(word) if is_file else None, sha256_of(Path(word)) if is_file else None)


def _rebuilt() -> nn.Module:
    raise ConfigError("a model of the user's own is loaded once and not built again")
