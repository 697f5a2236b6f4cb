"""Checks that a module is in the normal form of a phase; a failure is a bug in quantvm's own passes.

Users' programs are checked elsewhere: `lowering.validate` always checks the geometry and the parameters of every
program, and its errors are for users. Nothing here depends on what a model computes. These checks run after each phase
in tests, and whenever the environment variable QUANTVM_VERIFY is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import tvm
from tvm import relax, tirx

from quantvm.errors import InternalError

from . import attributes
from .bindings import bindings_of, definitions, results_of
from .expressions import Expr, constant_value, is_call, is_constant, op_name, size_of, stored_dtype

VERIFY_VARIABLE = "QUANTVM_VERIFY"
PHASES = (
    "imported", "channel_affine", "hoist_quantize", "fuse_qdq", "legalize", "run_time_checks", "float_ops",
    "owned_outputs",
)  # fmt: skip
"""In the order of the lowering; numerics qdq has no fuse_qdq, the others have no hoist_quantize."""
ENGINES = ("fbgemm", "x86", "onednn", "qnnpack", "pt2e", "onnx", "tflite")
INTEGERS = ("int8", "uint8")

Problems = Iterator[str]
_Statement = Callable[[tvm.IRModule], Problems]
_STATEMENTS: list[tuple[_Statement, int, int]] = []


def is_asked_for() -> bool:
    """Returns whether the environment asks to verify every phase."""
    return bool(os.environ.get(VERIFY_VARIABLE))


def verify(module: tvm.IRModule, phase: str = "imported") -> None:
    """Raises an InternalError that lists every way in which a module violates the normal form of a phase.

    In every phase `main` is one dataflow block. Each variable is bound once, before it is read. An operand is a
    variable, a constant, a shape, a number or a tuple of these, so calls are never nested. Every tensor has a known
    rank, dtype and sizes; a dynamic size is an expression of the sizes of the inputs. The module has no attributes
    but those of `qdq.attributes`, with the types given there.

    - Until fuse_qdq: operators are Relax's, or TIR functions that an importer added. A quantize reads float32, a
      dequantize returns it; integers are int8 or uint8; scales are float32 and zero points have the integers' dtype.
      Scales and zero points are constants of the same length, scalars if they hold for the whole tensor.
    - In fuse_qdq: every function that is called is a composite, none is called twice, and no per-tensor quantize or
      dequantize is left outside of a composite.
    - From legalize on: no composite is left; every function that is called exists, is in TIR, and gets as many
      arguments as it has parameters.
    - From float_ops on: only TIR functions and reshapes are called.
    - In owned_outputs: no output is an input, a constant, or a view of one.

    Args:
        module: the result of the phase.
        phase: one of `PHASES`.
    """
    at = PHASES.index(phase)
    problems = [problem for check, first, last in _STATEMENTS if first <= at <= last for problem in check(module)]
    if problems:
        raise InternalError(f"after {phase} the module is not in normal form: {'; '.join(problems)}")


def _in_phases(first: str = PHASES[0], last: str = PHASES[-1]) -> Callable[[_Statement], _Statement]:
    def register(check: _Statement) -> _Statement:
        _STATEMENTS.append((check, PHASES.index(first), PHASES.index(last)))
        return check

    return register


# ---------------------------------------------------------------------- every phase


@_in_phases()
def _one_dataflow_block(module: tvm.IRModule) -> Problems:
    blocks = module["main"].body.blocks
    if len(blocks) > 1:
        yield f"main has {len(blocks)} blocks, expected one"
    if any(not isinstance(block, relax.DataflowBlock) for block in blocks):
        yield "main has a block that is no dataflow block"


@_in_phases()
def _bound_once_and_before(module: tvm.IRModule) -> Problems:
    main = module["main"]
    known = set(main.params)
    for binding in bindings_of(main):
        yield from (f"{binding.var.name} reads {v.name}, which is not bound yet" for v in _unknown(binding, known))
        if binding.var in known:
            yield f"{binding.var.name} is bound twice"
        known.add(binding.var)
    yield from (f"main returns {v.name}, which is not bound" for v in results_of(main) if _is_unknown(v, known))


@_in_phases()
def _plain_values(module: tvm.IRModule) -> Problems:
    for binding in bindings_of(module["main"]):
        if isinstance(binding, relax.MatchCast):
            yield f"{binding.var.name} is a size that is looked at only at run time (MatchCast)"
        elif not isinstance(binding.value, (tvm.ir.Call, relax.Tuple, relax.TupleGetItem)) and not _is_leaf(
            binding.value
        ):
            yield f"{binding.var.name} is bound to a {type(binding.value).__name__}"
        for operand in _operands(binding.value):
            if not _is_leaf(operand):
                yield f"{binding.var.name} has a {type(operand).__name__} inside of its operands"


@_in_phases()
def _known_types(module: tvm.IRModule) -> Problems:
    main = module["main"]
    symbols = {variable for param in main.params for variable in _symbols(param.ty)}
    for var in [*main.params, *(binding.var for binding in bindings_of(main))]:
        for ty in _tensor_types(var.ty):
            if getattr(ty, "shape", None) is None or not str(ty.dtype or ""):
                yield f"{var.name} is a tensor of unknown rank or dtype"
            elif not _symbols(ty) <= symbols:
                yield f"{var.name} has sizes that are none of the inputs'"


@_in_phases()
def _known_attributes(module: tvm.IRModule) -> Problems:
    for name, value in (module.attrs or {}).items():
        if name not in _ATTRIBUTES:
            yield f"the module has an unknown attribute {name}"
            continue
        try:
            is_right = _ATTRIBUTES[name](value, len(module["main"].params))
        except (TypeError, ValueError, KeyError, AttributeError):
            is_right = False
        if not is_right:
            yield f"the attribute {name} is {str(value)[:40]}"


def _is_flag(value: Any, n_inputs: int) -> bool:
    return int(value) in (0, 1)


def _is_interface(value: Any, n_inputs: int) -> bool:
    found = json.loads(str(value))
    return set(found) == {"inputs", "outputs"} and len(found["inputs"]) <= n_inputs


_ATTRIBUTES: dict[str, Callable[[Any, int], bool]] = {
    attributes.ENGINE: lambda value, n_inputs: str(value) in ENGINES,
    attributes.ONEDNN_AMX: _is_flag,
    attributes.VNNI: _is_flag,
    attributes.AVX512: _is_flag,
    attributes.CHANNELS_LAST: lambda value, n_inputs: all(0 <= int(number) < n_inputs for number in value),
    attributes.TORCH_TABLES: lambda value, n_inputs: all(len(bytes.fromhex(str(v))) == 512 for v in value.values()),
    attributes.INTERFACE: _is_interface,
}
"""(value, number of inputs) -> whether the value is valid. A layer alone may have unnamed inputs after the named."""


# ---------------------------------------------------------------------- the QDQ form


@_in_phases(last="fuse_qdq")
def _quantization(module: tvm.IRModule) -> Problems:
    for function in module.functions.values():
        if isinstance(function, relax.Function):
            for binding in bindings_of(function):
                if op_name(binding.value) in ("relax.quantize", "relax.dequantize"):
                    problem = _quantization_problem(binding.value)
                    if problem is not None:
                        yield f"{binding.var.name} {problem}"


def _quantization_problem(call: Expr) -> str | None:
    real = call.args[0].ty if is_call(call, "relax.quantize") else call.ty
    if str(real.dtype) != "float32":
        return f"quantizes from or to {real.dtype}, expected float32"
    if stored_dtype(call) not in INTEGERS:
        return f"has integers of {stored_dtype(call)}, expected int8 or uint8"
    scale, zero_point = call.args[1:3]
    if not (is_constant(scale) and is_constant(zero_point)):
        return "has quantization parameters that are computed at run time"
    if (str(scale.ty.dtype), str(zero_point.ty.dtype)) != ("float32", stored_dtype(call)):
        return f"has scales of {scale.ty.dtype} and zero points of {zero_point.ty.dtype}"
    if constant_value(scale).shape != constant_value(zero_point).shape or constant_value(scale).ndim > 1:
        return f"has scales of shape {constant_value(scale).shape}, zero points of {constant_value(zero_point).shape}"
    return None


@_in_phases(last="hoist_quantize")
def _operators_alone(module: tvm.IRModule) -> Problems:
    yield from (
        f"{binding.var.name} calls the function {_callee(binding.value)}"
        for binding in bindings_of(module["main"])
        if _callee(binding.value) is not None
    )


@_in_phases("fuse_qdq", "fuse_qdq")
def _composites(module: tvm.IRModule) -> Problems:
    for binding in bindings_of(module["main"]):
        call, callee = binding.value, _callee(binding.value)
        if callee is not None and attributes.composite_name(_function(module, callee)) is None:
            yield f"{binding.var.name} calls {callee}, which is no composite"
        if op_name(call) in ("relax.quantize", "relax.dequantize") and not constant_value(call.args[1]).ndim:
            yield f"{binding.var.name} is outside of a composite and has one scale"


# ---------------------------------------------------------------------- kernels


@_in_phases("legalize")
def _functions_in_tir(module: tvm.IRModule) -> Problems:
    for variable, function in module.functions.items():
        if variable.name_hint != "main" and not isinstance(function, tirx.PrimFunc):
            yield f"{variable.name_hint} is a function of Relax"
    for binding in bindings_of(module["main"]):
        if _callee(binding.value) is not None:
            yield f"{binding.var.name} calls the function {_callee(binding.value)} itself, not by call_tir"
        if not is_call(binding.value, "relax.call_tir"):
            continue
        name, given = binding.value.args[0].name_hint, list(binding.value.args[1].fields)
        function = _function(module, name)
        if function is None:
            yield f"{binding.var.name} calls {name}, which is not there"
        elif len(binding.value.args) == 2 and len(function.params) != len(given) + len(_tensor_types(binding.var.ty)):
            yield f"{binding.var.name} gives {len(given)} arguments to {name}, which has {len(function.params)}"


@_in_phases("float_ops")
def _no_operators_left(module: tvm.IRModule) -> Problems:
    for binding in bindings_of(module["main"]):
        name = op_name(binding.value)
        if isinstance(binding.value, tvm.ir.Call) and name not in _OF_THE_VM:
            yield f"{binding.var.name} is {name or 'a call'}, for which there is no code"


_OF_THE_VM = frozenset(
    f"relax.{name}"
    for name in ("call_tir", "reshape", "shape_of", "tensor_to_shape", "call_dps_packed", "call_pure_packed")
)
"""Operators that the virtual machine runs directly."""


@_in_phases("owned_outputs")
def _outputs_are_the_callers(module: tvm.IRModule) -> Problems:
    main = module["main"]
    bound = definitions(main)
    for output in results_of(main):
        source = _viewed(output, bound)
        if is_constant(source) or source in set(main.params):
            yield f"an output shares memory with {'a constant' if is_constant(source) else source.name}"


def _viewed(expr: Expr, bound: dict[Any, Expr]) -> Expr:
    """Returns what an output is a view of, or the output itself."""
    while expr in bound:
        value = bound[expr]
        if is_call(value, "relax.reshape"):
            value = value.args[0]
        elif not isinstance(value, relax.Var) and not is_constant(value):
            break
        expr = value
    return expr


# ---------------------------------------------------------------------- readers of modules that may be malformed


def _operands(value: Expr) -> list[Expr]:
    """Returns the operands of a value, with tuples flattened."""
    operands = [*getattr(value, "args", ()), *getattr(value, "fields", ())]
    if isinstance(value, relax.TupleGetItem):
        operands.append(value.tuple_value)
    return [x for operand in operands for x in (_operands(operand) if isinstance(operand, relax.Tuple) else [operand])]


def _is_leaf(expr: Expr) -> bool:
    if isinstance(expr, (relax.Function, relax.If, relax.SeqExpr, relax.Tuple, relax.TupleGetItem)):
        return False
    return not op_name(expr).startswith("relax.") and _callee(expr) is None  # sizes may hold calls of TIR


def _unknown(binding: Any, known: set[Any]) -> list[Any]:
    read = [binding.value] if isinstance(binding.value, relax.Var) else _operands(binding.value)
    return [operand for operand in read if _is_unknown(operand, known)]


def _is_unknown(expr: Expr, known: set[Any]) -> bool:
    return (
        isinstance(expr, relax.Var) and isinstance(expr.ty, (relax.TensorType, relax.TupleType)) and expr not in known
    )


def _callee(value: Expr) -> str | None:
    """Returns the name of the module's function that a call calls directly, not by call_tir."""
    called = getattr(value, "op", None)
    return str(called.name_hint) if isinstance(called, tvm.ir.GlobalVar) else None


def _function(module: tvm.IRModule, name: str) -> Any:
    return next((f for variable, f in module.functions.items() if variable.name_hint == name), None)


def _tensor_types(ty: Any) -> list[Any]:
    if isinstance(ty, relax.TensorType):
        return [ty]
    return [inner for field in getattr(ty, "fields", ()) for inner in _tensor_types(field)]


def _symbols(ty: Any) -> set[Any]:
    """Returns the variables in the sizes of a tensor."""
    sizes = [size_of(dimension) for dimension in getattr(ty, "shape", None) or ()]
    return {v for size in sizes if not isinstance(size, int) for v in tirx.analysis.undefined_vars(size)}
