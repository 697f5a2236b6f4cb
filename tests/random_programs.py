"""Random float modules quantized by PT2E or torchao and exported; what tells a right result from a wrong one."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
from torch import nn

from quantvm.verification.ties import NEAR

from .torchao_patterns import keep_patterns

FLOAT_SUM = 2e-5
"""Share of the greatest value by which float outputs may differ: a few hundred roundings."""

INT8, UINT8 = (-128, 127, torch.int8), (0, 255, torch.uint8)


class RejectedError(Exception):
    """PyTorch or torchao cannot quantize or export the module: there is nothing to compare with."""


@dataclass(frozen=True)
class Program:
    """A quantized module, exported.

    Attributes:
        plain: inputs -> outputs.
        inputs: that it was exported with.
        dynamic: whether its batch is symbolic.
    """

    plain: Any
    inputs: tuple[torch.Tensor, ...]
    dynamic: bool

    @property
    def n_outputs(self) -> int:
        """Of the plain program."""
        return len(self.plain.graph_signature.user_outputs)

    @functools.cached_property
    def open(self) -> Any:
        """The program that returns (outputs, each quantized activation's real values)."""
        opened = self.plain.module()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            _open(opened)
            return _exported(opened, self.inputs, self.dynamic)


# ------------------------------------------------------------------ quantizers


def _x86() -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    made = x86.X86InductorQuantizer()
    return made.set_global(x86.get_default_x86_inductor_quantization_config())


def _xnnpack(*, per_channel: bool = True) -> Any:
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=per_channel)
    return xnnpack.XNNPACKQuantizer().set_global(config)


def _arm() -> Any:
    from torchao.quantization.pt2e.quantizer import arm_inductor_quantizer as arm

    return arm.ArmInductorQuantizer().set_global(arm.get_default_arm_inductor_quantization_config())


def _custom(limits: tuple[int, int, torch.dtype], *, per_channel: bool = False, symmetric: bool = False) -> Any:
    """Returns a quantizer of every convolution, matrix product, sum, product and concatenation, and their results."""
    from torchao.quantization.pt2e import observer
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    kind = "symmetric" if symmetric else "affine"
    activation = QuantizationSpec(
        dtype=limits[2], quant_min=limits[0], quant_max=limits[1], ch_axis=1 if per_channel else None,
        qscheme=getattr(torch, f"per_channel_{kind}" if per_channel else f"per_tensor_{kind}"),
        observer_or_fake_quant_ctr=observer.PerChannelMinMaxObserver if per_channel else observer.MinMaxObserver,
    )  # fmt: skip
    weight = QuantizationSpec(
        dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric, ch_axis=0,
        observer_or_fake_quant_ctr=observer.PerChannelMinMaxObserver,
    )  # fmt: skip
    joining = ("aten.add.", "aten.mul.", "aten.sub.", "aten.matmul.")

    class Everything(Quantizer):
        def annotate(self, model: Any) -> Any:
            for node in model.graph.nodes:
                name = str(node.target)
                has_weight = name.startswith(("aten.conv2d", "aten.linear"))
                if node.op != "call_function" or not (has_weight or name.startswith((*joining, "aten.cat."))):
                    continue
                if per_channel and not has_weight:
                    continue  # numbers of channels differ between what is joined
                inputs = node.args[0] if "cat" in name else [a for a in node.args[:2] if isinstance(a, torch.fx.Node)]
                specs = {n: weight if has_weight and n is not inputs[0] else activation for n in inputs}
                node.meta["quantization_annotation"] = QuantizationAnnotation(specs, activation, _annotated=True)
            return model

        def validate(self, model: Any) -> None:
            pass

    return Everything()


QUANTIZERS: dict[str, Any] = {
    "x86": _x86,
    "xnnpack": _xnnpack,
    "xnnpack per tensor": lambda: _xnnpack(per_channel=False),
    "arm": _arm,
    "uint8": lambda: _custom(UINT8),
    "int8": lambda: _custom(INT8),
    "int8 symmetric": lambda: _custom(INT8, symmetric=True),
    "channels": lambda: _custom(INT8, per_channel=True),
    "channels uint8": lambda: _custom(UINT8, per_channel=True),
    "channels symmetric": lambda: _custom(INT8, per_channel=True, symmetric=True),
}


def _torchao(**options: Any) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig(**options)


def _per_tensor() -> Any:
    from torchao.quantization.granularity import PerTensor

    return _torchao(granularity=PerTensor())


def _asymmetric() -> Any:
    from torchao.quantization.quant_primitives import MappingType

    return _torchao(act_mapping_type=MappingType.ASYMMETRIC)


TORCHAO: dict[str, Any] = {"rows": _torchao, "tensor": _per_tensor, "asymmetric": _asymmetric}
"""Linear layers whose activations are quantized by parameters that are found while the model runs."""


def quantized_program(module: nn.Module, inputs: tuple[torch.Tensor, ...], quantizer: str, *, dynamic: bool) -> Program:
    """Returns a module quantized by PT2E, calibrated on its inputs, with a symbolic batch if so asked.

    Raises:
        RejectedError: torch or torchao cannot.
    """
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    keep_patterns()
    with _rejected(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(_exported(module, inputs, dynamic).module(), QUANTIZERS[quantizer]())
        prepared(*inputs)
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
        return Program(_exported(converted, inputs, dynamic), inputs, dynamic)


class Side(nn.Module):
    """Several modules, each with an input of its own: compiled and quantized at once, which takes less time."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(y for part, x in zip(self.parts, inputs, strict=True) for y in as_tuple(part(x)))


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Returns one output or several as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@contextlib.contextmanager
def _rejected() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RejectedError(f"{type(error).__name__}: {str(error)[:200]}") from error


def torchao_program(module: nn.Module, inputs: tuple[torch.Tensor, ...], config: str, *, dynamic: bool) -> Program:
    """Returns a module whose linear layers torchao's `quantize_` quantized, exported, its batch symbolic if so asked.

    Raises:
        RejectedError: torch or torchao cannot.
    """
    from torchao.quantization import quantize_

    with _rejected(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        quantized = copy.deepcopy(module)
        quantize_(quantized, TORCHAO[config]())
        return Program(_exported(quantized, inputs, dynamic), inputs, dynamic)


def _exported(module: nn.Module, inputs: tuple[torch.Tensor, ...], dynamic: bool) -> Any:
    """Returns the exported program, whose batch is symbolic if so asked."""
    if not dynamic:
        return torch.export.export(module, inputs)
    batch = torch.export.Dim("n")
    shapes = tuple({0: batch} for _ in inputs)
    # what a module of our own takes as any number of inputs is one argument, a tuple
    return torch.export.export(module, inputs, dynamic_shapes=(shapes,) if isinstance(module, Side) else shapes)


def _open(program: torch.fx.GraphModule) -> None:
    """Makes a program return each activation that it quantizes behind its outputs.

    Those of PT2E as real values, those of torchao as integers, in float32.
    """
    graph = program.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    found: dict[Any, Any] = {}
    for node in graph.nodes:
        if _is(node, _DEQUANTIZE) and _is(node.args[0], _QUANTIZE):
            found.setdefault(node.args[0], node)
    for node in list(graph.nodes):
        if _is(node, _AFFINE):
            with graph.inserting_after(node):
                found[node] = graph.call_function(torch.ops.aten.to.dtype, (node, torch.float32))
    results = (*output.args[0], *found.values())
    output.args = (results,)
    info = graph._codegen.pytree_info
    spec = torch.utils._pytree.tree_structure(tuple(range(len(results))))
    graph._codegen.pytree_info = info._replace(out_spec=spec)
    program.recompile()


_QUANTIZE, _DEQUANTIZE = "quantized_decomposed.quantize_per_", "quantized_decomposed.dequantize_per_"
_AFFINE = "torchao.quantize_affine"


def _is(node: Any, name: str) -> bool:
    return getattr(node, "op", "") == "call_function" and str(node.target).startswith(name)


# ------------------------------------------------------------------ what is right


class _FromGiven(torch.fx.Interpreter):
    """PyTorch's run of an open program, in which what reads quantized activations reads given ones.

    Attributes:
        distance: of each node that quantizes an activation, how far the given integers are from PyTorch's values before
            these are rounded, in steps.
    """

    def __init__(self, module: Any, given: dict[str, torch.Tensor]) -> None:
        super().__init__(module)
        self._given = given
        self.distance: dict[str, torch.Tensor] = {}

    def run_node(self, n: Any) -> Any:
        if _is(n, _DEQUANTIZE) and _is(n.args[0], _QUANTIZE):
            return self._given[n.args[0].name]
        if n.name in self._given:
            x, *rest = self.fetch_args_kwargs_from_env(n)[0]
            integers = self._given[n.name]
            if _is(n, _AFFINE):
                _, scale, zero_point, dtype, low, high = (*rest, None)[:6]
                exact = x.double() / scale.double() + (0 if zero_point is None else zero_point.double())
                self.distance[n.name] = (integers.double() - exact.clamp(low, high)).abs()
                return integers.to(dtype)
            scale, zero_point, *rest = (
                torch.as_tensor(v, dtype=torch.float64) if i < 2 else v for i, v in enumerate(rest)
            )
            if "per_channel" in str(n.target):
                shape = [-1 if d == rest[0] else 1 for d in range(x.dim())]
                scale, zero_point, rest = scale.reshape(shape), zero_point.reshape(shape), rest[1:]
            exact = (x.double() / scale + zero_point).clamp(rest[0], rest[1])
            self.distance[n.name] = (integers.double() / scale + zero_point - exact).abs()
        return super().run_node(n)


def within_float_sums(actual: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Returns whether outputs are the framework's, but for `FLOAT_SUM`: then no integer before them differs."""
    for a, e in zip(map(np.asarray, actual), map(np.asarray, expected), strict=True):
        if (a.shape, a.dtype) != (e.shape, e.dtype):
            return False
        value, wanted = torch.as_tensor(a), torch.as_tensor(e)
        if not _apart(value, wanted) <= FLOAT_SUM * _greatest(wanted):
            return False
    return True


def _apart(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Returns the greatest difference; infinite values are equal to themselves."""
    return float((value - wanted).abs().masked_fill(value == wanted, 0).max()) if wanted.numel() else 0.0


def _greatest(value: torch.Tensor) -> float:
    """Returns the greatest finite magnitude."""
    return float(value.abs().masked_fill(~value.isfinite(), 0).max()) if value.numel() else 0.0


def unexplained(program: Program, inputs: tuple[torch.Tensor, ...], actual: Sequence[Any]) -> str | None:
    """Returns what of a run of the open program is wrong, or None.

    Each quantized activation must be PyTorch's float value, computed from the other activations of this very run,
    rounded to one of the nearest integers: half a step away, and `NEAR` more, for the order of a float sum is nobody's.
    Outputs in float must be PyTorch's likewise, but for `FLOAT_SUM`.
    """
    module = program.open.module()
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    nodes = [node.args[0] for node in output.args[0][program.n_outputs :]]
    values = [torch.as_tensor(np.asarray(value)) for value in actual]
    run = _FromGiven(module, {n.name: v for n, v in zip(nodes, values[program.n_outputs :], strict=True)})
    with torch.no_grad():
        expected = as_tuple(run.run(*inputs))
    for node in nodes:
        distance = run.distance[node.name]
        if distance.numel() and not float(distance.max()) <= 0.5 + NEAR:
            wrong = int((distance > 0.5 + NEAR).sum())
            return (
                f"{node.name} of {node.args[0].name}: {wrong} of {distance.numel()} integers are no rounding of "
                f"PyTorch's value, the farthest is {float(distance.max()):.4g} steps away"
            )
    for index, (value, wanted) in enumerate(zip(values, expected[: program.n_outputs], strict=False)):
        if (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
            return f"output {index}: {value.dtype}{tuple(value.shape)}, expected {wanted.dtype}{tuple(wanted.shape)}"
        apart, bound = _apart(value, wanted), FLOAT_SUM * max(_greatest(wanted), 1e-3)
        if not apart <= bound:
            wrong = int(((value - wanted).abs() > bound).sum())
            return f"output {index}: {wrong} of {wanted.numel()} floats differ, by {apart:.4g}"
    return None
