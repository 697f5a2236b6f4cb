"""Loads a model of the user's own, named by a word (`model_words.py`).

`load_model` returns the model; `load_user_spec` returns it in the form of a registered model, for jobs on images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantvm.choices import FLOWS
from quantvm.errors import ConfigError, ModelImportError
from quantvm.models.registry import ModelSpec, WeightsFile
from quantvm.models.weights import ResolvedWeights
from quantvm.options.groups import QuantizationOptions
from quantvm.storage.digests import sha256_of
from quantvm.workload.model_words import call_factory, kind_of
from quantvm.workload.options import WorkloadOptions
from quantvm.workload.program import Program, Shape

if TYPE_CHECKING:
    from torch import nn

    from quantvm.runtime.signature import Signature

DEFAULT_SHAPE = (1, 3, 224, 224)


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
    """A model of the user's own in the form of a registered one.

    Attributes:
        program: the quantized program; None for a float module, which is quantized later.
        float_module: the float module; None for a quantized program.
        n_classes: how many scores it returns, if that is known before it runs.
    """

    program: Program | None = None
    float_module: nn.Module | None = field(default=None, repr=False)
    n_classes: int | None = None


def load_model(
    word: str, *, input_shapes: tuple[Shape, ...] | None = None, quantization: QuantizationOptions | None = None
) -> Program | FloatModel:
    """Returns the quantized program that a file or a factory holds, or the quantizable float module of a factory.

    Args:
        word: a file, or a factory as ``pkg.mod:name``.
        input_shapes: of the inputs, for programs that do not say them. None: 1,3,224,224.
        quantization: gives the PyTorch engine of a program that does not say its engine itself.

    Raises:
        ConfigError: the word names neither a file nor a factory, or the factory returns something else than a model.
        ModelCodeError: the factory raised.
        ModelImportError: the file is damaged.
    """
    try:
        return _loaded(word, input_shapes, quantization)
    except ModelImportError as error:
        if word in str(error):
            raise
        raise ModelImportError(f"{word}: {error}") from error


def _loaded(
    word: str, input_shapes: tuple[Shape, ...] | None, quantization: QuantizationOptions | None
) -> Program | FloatModel:
    engine = None if quantization is None else quantization.engine
    kind = kind_of(word)
    if kind == "registered":
        raise ConfigError(f"'{word}' is a registered model, expected a file or a factory as pkg.mod:name")
    if kind == "factory":
        found = _from_factory(word, input_shapes)
        if isinstance(found, Program) and found.kind == "module":
            return replace(found, engine=found.engine or engine)
        return found
    from quantvm.frontend.entry import format_of

    path = Path(word)
    held = format_of(path)
    if held == "torchscript":
        return Program(word, held, path, input_shapes or (DEFAULT_SHAPE,), True, engine)
    if held == "exported":
        from quantvm.frontend.exported.importer import load_program

        return Program.exported(word, load_program(path))
    signature = _signature_in_file(path)
    own = tuple(spec.shape for spec in signature.inputs)
    shapes, n_outputs = _with_sizes(own, input_shapes), signature.outputs[0].shape[-1]
    return Program(word, held, path, shapes, False, None, n_outputs, sizes_are_given=shapes != own)


def _from_factory(word: str, input_shapes: tuple[Shape, ...] | None) -> Program | FloatModel:
    import torch

    made = call_factory(word)
    examples: Any = None
    if isinstance(made, tuple) and len(made) == 2:
        made, examples = made
    if isinstance(made, torch.export.ExportedProgram):
        return Program.exported(word, made)
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
    return Program(word, "module", made, shapes, True, getattr(made, "quantvm_engine", None))


def _shape_of(word: str, example: Any) -> Shape:
    if not hasattr(example, "shape") or "float32" not in str(getattr(example, "dtype", "")):
        kind = f"{example.dtype} array" if hasattr(example, "dtype") else type(example).__name__
        raise ConfigError(f"{word}: an example input is a {kind}, expected float32 tensors or arrays")
    return tuple(int(d) for d in example.shape)


def is_float_and_quantizable(module: Any) -> bool:
    """Says whether a module is a float model that `quantvm.quantize` takes."""
    from torch.ao.nn.quantized import Quantize
    from torch.ao.quantization import QuantStub

    kinds = {type(inner) for inner in module.modules()} if hasattr(module, "modules") else set()
    return QuantStub in kinds and Quantize not in kinds and not any("FakeQuantize" in kind.__name__ for kind in kinds)


def _computes_in_float(module: Any, shapes: tuple[Shape, ...]) -> bool:
    """Says whether a module accepts such inputs and calls no operator of a quantized model."""
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


def _signature_in_file(path: Path) -> Signature:
    """Returns the inputs and outputs of an ONNX or TFLite file, as its importer understands them."""
    from quantvm.frontend import import_model
    from quantvm.runtime.signature import signature_of

    return signature_of(import_model(path))


def _with_sizes(
    shapes: tuple[tuple[int | None, ...], ...], given: tuple[Shape, ...] | None
) -> tuple[tuple[int | None, ...], ...]:
    """Returns shapes with open sizes, except the batch, replaced by given ones; unchanged if those do not fit."""
    if given is None or [len(shape) for shape in shapes] != [len(shape) for shape in given]:
        return shapes
    sizes = [
        (a, b) for shape, other in zip(shapes, given, strict=True) for a, b in zip(shape[1:], other[1:], strict=True)
    ]
    if any(a not in (None, b) for a, b in sizes):
        return shapes
    return tuple((shape[0], *other[1:]) for shape, other in zip(shapes, given, strict=True))


def load_user_spec(word: str, options: WorkloadOptions) -> tuple[UserSpec, ResolvedWeights]:
    """Returns a classifier of the user's own as a model that can be evaluated on images, and a note on its weights.

    Raises:
        QuantvmError: see `load_model`; or it does not map images to scores, or takes another size than asked for.
    """
    input_shapes = None if options.input_shape is None else (options.input_shape,)
    if input_shapes is None and options.crop is not None:
        input_shapes = ((1, 3, options.crop, options.crop),)
    found = load_model(word, input_shapes=input_shapes, quantization=options)
    if isinstance(found, Program):
        program, float_module, flows = found, None, FLOWS
    else:
        # it is tried in the same way as a program
        program, float_module = Program(word, "module", found.module, found.shapes, True, None), found.module
        flows = found.flows
    n_classes = program.check(as_classifier=True)
    size = program.image_size
    if options.crop not in (None, size):
        raise ConfigError(f"{word} takes images of {size} x {size}, got a crop of {options.crop}")
    spec = UserSpec(
        name=word, title=word, build=_rebuilt, weights=WeightsFile(Path(word).name),
        preprocessing=options.image_options().preprocessing(size), published_top1=None, published_top5=None,
        published_by="",
        program=program if float_module is None else None, float_module=float_module, n_classes=n_classes,
        flows=flows,
    )  # fmt: skip
    is_file = Path(word).is_file()
    source = f"{'file' if is_file else 'factory'} {word}"
    return spec, ResolvedWeights(source, Path(word) if is_file else None, sha256_of(Path(word)) if is_file else None)


def _rebuilt() -> nn.Module:
    raise ConfigError("a model of the user's own is loaded once and not built again")
