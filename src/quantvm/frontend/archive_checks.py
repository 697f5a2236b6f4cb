"""Checks the strings of a `.pt2` file before PyTorch sees them.

PyTorch's reader passes expressions to SymPy, which evaluates them; it writes names into Python source and executes it;
and it looks up operators as attributes of its modules. So a string in such a place is refused here unless it is an
expression of sizes, an identifier, or an operator.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import keyword
import re
from collections.abc import Iterator
from typing import Any

from torch._export.serde.union import _Union

from quantvm.errors import ModelImportError, UnsupportedOpError, listed
from quantvm.frontend.exported.registry import find_exported

_LIBRARIES = frozenset(
    ("aten", "prim", "prims", "quantized", "quantized_decomposed", "torchao", "export", "higher_order", "torchvision")
)
"""PyTorch's own libraries of operators on tensors."""
OUTSIDE = frozenset(("from_file", "save", "PythonOp", "IgnoredPythonOp", "rpc_async", "rpc_remote", "rpc_sync"))
"""Operators that do more than compute: they read and write files, or call Python and other machines."""

_OPERATOR = re.compile(r"torch\.ops\.(?P<library>\w+)\.(?P<name>\w+)(\.(?P<overload>\w+))?", re.ASCII)
_PYTHON_OPERATORS = frozenset(
    "_operator." + name for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "pow", "getitem", "abs", "ge", "le", "gt",
        "lt", "eq", "ne", "and_", "or_", "xor", "not_", "invert", "lshift", "rshift", "index", "is_", "is_not",
    )
)  # fmt: skip
_ON_SIZES = re.compile(r"torch\._?sym_[a-z_0-9]+|math\.[a-z][a-z_0-9]*", re.ASCII)
_DUNDER = re.compile(r"__i?(and|or|xor|lshift|rshift)__")

_EXPRESSION = re.compile(r"[A-Za-z0-9_ +\-*/%().,<>=!&|~']*", re.ASCII)
_FUNCTIONS = frozenset((
    # of SymPy, as its srepr writes them
    "Integer", "Rational", "Float", "Symbol", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor", "ceiling",
    "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Eq", "Ne", "Lt", "Le",
    "Gt", "Ge", "And", "Or", "Not", "Xor", "Piecewise", "ExprCondPair", "Tuple",
    # of PyTorch
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift",
    "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator",
    "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
))  # fmt: skip
_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift", "RShift"))
_NODES = (ast.Expression, ast.Load, ast.Name, ast.Constant, ast.Call, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Tuple,
          ast.keyword, ast.operator, ast.unaryop, ast.cmpop)  # fmt: skip
_MOST_CHARACTERS, _MOST_PARTS, _GREATEST_POWER, _MOST_UNBACKED = 20_000, 2_000, 64, 100_000

_IDENTIFIERS = frozenset((
    "TensorArgument.name", "TokenArgument.name", "GraphArgument.name", "Node.name", "NamedArgument.name",
    "SymIntArgument.as_name", "SymFloatArgument.as_name", "SymBoolArgument.as_name", "InputToConstantInputSpec.name",
    "ModuleCallSignature.forward_arg_names", "UserInputMutationSpec.user_input_name",
    "GradientToUserInputSpec.user_input_name", "Device.type",
))  # fmt: skip
"""Fields that become names in Python source."""
_PATHS = frozenset((
    "InputToParameterSpec.parameter_name", "InputToBufferSpec.buffer_name", "BufferMutationSpec.buffer_name",
    "InputToTensorConstantSpec.tensor_constant_name", "ParameterMutationSpec.parameter_name",
    "GradientToParameterSpec.parameter_name", "ModuleCallEntry.fqn",
))  # fmt: skip
"""Fields that become text in quotes in Python source."""
_TEXTS = frozenset(
    ("Argument.as_string", "Argument.as_strings", "ConstantValue.as_string", "ExportedProgram.torch_version",
     "ExportedProgram.verifiers", "ExportedProgram.guards_code", "NamedTupleDef.field_names")
)  # fmt: skip
"""Fields that are never evaluated."""
_FACTORIES = frozenset(("list", "dict", "set", "tuple", "int", "float", "str", "bool"))
_KEPT_METADATA = ("stack_trace", "nn_module_stack")


def check_untrusted(program: Any) -> None:
    """Raises one error for everything in a program's description that PyTorch must not evaluate or execute.

    Removes records of how the program was made, and guards that are not plain comparisons of sizes.

    Args:
        program: `torch._export.serde.schema.ExportedProgram`, not deserialized yet.

    Raises:
        ModelImportError: names, expressions or specifications that PyTorch does not write.
        UnsupportedOpError: all functions that are not in PyTorch's libraries of operators.
    """
    program.guards_code = [text for text in program.guards_code if _is_guard(text)]
    problems, operators = [], []
    for where, text in _strings(program):
        if where in ("Node.target", "Argument.as_operator"):
            if not _is_operator(text):
                operators.append(text)
        elif (problem := _problem(where, text)) is not None:
            problems.append(f"{where} is {_short(text)}, {problem}")
    if problems:
        raise ModelImportError(
            f"it is not opened, because torch.export.save does not write such content: {listed(problems, 5)}"
        )
    if operators:
        names = ", ".join(_short(text) for text in list(dict.fromkeys(operators))[:10])
        raise UnsupportedOpError(
            f"it calls {names}, and only PyTorch's own libraries of operators are taken from a file "
            f"({', '.join(sorted(_LIBRARIES))}); write the model without, or import the ExportedProgram itself"
        )


def _short(text: Any) -> str:
    found = repr(text)
    return found if len(found) <= 80 else f"{found[:80]} ..."


def _problem(where: str, text: Any) -> str | None:
    """Returns what is wrong with a string of the file."""
    if not isinstance(text, str):
        return "expected text"
    if where == "SymExpr.expr_str":
        return None if is_expression(text) else "expected an expression of sizes"
    if where in _IDENTIFIERS:
        return None if not text or is_name(text) else "expected a name"
    if where in _PATHS:
        return None if is_quotable(text) else "expected a path of names"
    if where in ("ModuleCallSignature.in_spec", "ModuleCallSignature.out_spec"):
        return _spec_problem(text, are_arguments=where.endswith("in_spec"))
    if where == "ExportedProgram.range_constraints key":
        return None if is_expression(text) and _has_small_number(text) else "expected a symbol"
    if where in _TEXTS or where.endswith((".metadata", ".metadata key", ".opset_version key", "fields key")):
        return None
    if where in ("Graph.tensor_values key", "Graph.sym_int_values key", "Graph.sym_bool_values key",
                 "Graph.sym_float_values key", "Argument.as_string_to_argument key"):  # fmt: skip
        return None if is_name(text) else "expected a name"
    return "which is of an unsupported kind (such as custom objects)"


def _strings(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every string and every dict key of the description, with the class and the field that hold it."""
    pending: list[tuple[str, Any]] = [(where, value)]
    while pending:
        where, value = pending.pop()
        if dataclasses.is_dataclass(value):
            described: Any = value
            name = type(described).__name__
            if name == "Node":
                described.metadata = {
                    key: described.metadata[key] for key in _KEPT_METADATA if key in described.metadata
                }
            if name == "GraphModule":
                described.metadata = {}
            if isinstance(value, _Union):
                pending.append((f"{name}.{value.type}", value.value))
            else:
                pending += [(f"{name}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
        elif isinstance(value, dict):
            for key, held in value.items():
                yield f"{where} key", key
                pending.append((where, held))
        elif isinstance(value, (list, tuple)):
            pending += [(where, held) for held in value]
        elif isinstance(value, str):
            yield where, value


def is_name(text: str) -> bool:
    """Returns whether a text is safe as the name of a variable in Python source."""
    return text.isidentifier() and text.isascii() and not keyword.iskeyword(text)


def is_quotable(text: str) -> bool:
    """Returns whether a text is safe in quotes in Python source, without escaping."""
    return text.isprintable() and not set(text) & set("\"'\\")


def _is_operator(text: Any) -> bool:
    if not isinstance(text, str):
        return False
    if text in _PYTHON_OPERATORS or _ON_SIZES.fullmatch(text):
        return True
    match = _OPERATOR.fullmatch(text)
    if match is None or match["name"] in OUTSIDE:
        return False
    if any(part.startswith("_") for part in (match["library"], match["overload"] or "")):
        return False
    if match["name"].startswith("__") and not _DUNDER.fullmatch(match["name"]):
        return False
    qualified = f"{match['library']}::{match['name']}.{match['overload']}"
    return match["library"] in _LIBRARIES or find_exported(qualified) is not None


def _has_small_number(text: str) -> bool:
    """Returns whether the number of a symbol is small enough for PyTorch, which counts up to it."""
    match = re.fullmatch(r"(u|zuf)(\d+)", text)
    return match is None or (len(match[2]) < 10 and int(match[2]) < _MOST_UNBACKED)


def is_expression(text: str) -> bool:
    """Returns whether a text is an expression of sizes, written by SymPy's `srepr` or `str`, and quick to evaluate.

    It consists of integers, floats, symbols, + - * / // % **, comparisons, and the functions listed in this module.
    """
    if not _EXPRESSION.fullmatch(text) or len(text) > _MOST_CHARACTERS:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
        parts = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    held = {id(argument) for part in parts if isinstance(part, ast.Call) for argument in part.args}
    n_powers = sum(_is_power(part) for part in parts)
    return len(parts) <= _MOST_PARTS and n_powers <= 8 and all(_is_part(part, held) for part in parts)


def _is_power(part: ast.AST) -> bool:
    if isinstance(part, ast.Call):
        return isinstance(part.func, ast.Name) and part.func.id in _POWERS
    return isinstance(part, ast.BinOp) and isinstance(part.op, (ast.Pow, ast.LShift, ast.RShift))


def _is_part(part: ast.AST, arguments: set[int]) -> bool:
    """Returns whether a part of an expression is allowed in its place."""
    if isinstance(part, ast.Name):
        return not part.id.startswith("_")
    if isinstance(part, ast.Constant):
        if isinstance(part.value, str):  # the name of a symbol, the digits of a float
            return id(part) in arguments and len(part.value) <= 100 and part.value.isascii() and (
                bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*|-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,3})?", part.value))
            )  # fmt: skip
        return isinstance(part.value, (int, float)) and abs(part.value) < 2**80
    if isinstance(part, ast.Call):
        return _is_call(part)
    if isinstance(part, ast.BinOp):
        small = part.right if isinstance(part.op, (ast.Pow, ast.LShift, ast.RShift)) else None
        return isinstance(part.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd,
                                    ast.BitOr)) and (small is None or _is_small(small))  # fmt: skip
    return isinstance(part, _NODES)


def _is_call(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Name) or call.func.id not in _FUNCTIONS:
        return False
    has_text = any(isinstance(a, ast.Constant) and isinstance(a.value, str) for a in call.args)
    if has_text and (call.func.id not in ("Symbol", "Float") or len(call.args) != 1):
        return False
    if call.func.id in _POWERS and (len(call.args) != 2 or not _is_small(call.args[1])):
        return False
    for given in call.keywords:
        is_fact = call.func.id == "Symbol" and isinstance(given.value, ast.Constant) and type(given.value.value) is bool
        is_precision = call.func.id == "Float" and given.arg == "precision" and _is_small(given.value)
        if given.arg is None or not (is_fact or is_precision):
            return False
    return True


def _is_small(part: ast.AST) -> bool:
    """Returns whether an expression is a small integer; exponents must be."""
    if isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub):
        part = part.operand
    if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "Integer" and part.args:
        return len(part.args) == 1 and _is_small(part.args[0])
    return isinstance(part, ast.Constant) and type(part.value) is int and part.value <= _GREATEST_POWER


def _is_guard(text: Any) -> bool:
    """Returns whether a guard is a plain comparison of sizes; PyTorch executes guards when the program runs."""
    if not isinstance(text, str) or len(text) > _MOST_CHARACTERS or not text.isprintable() or set(text) & set('"\\'):
        return False
    try:
        parts = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(part.func) for part in parts if isinstance(part, ast.Call)}
    keys = {id(part.slice) for part in parts if isinstance(part, ast.Subscript)}
    return all(_is_part_of_guard(part, called, keys) for part in parts)


def _is_part_of_guard(part: ast.AST, called: set[int], keys: set[int]) -> bool:
    if isinstance(part, ast.Name):
        return part.id == "L" or (id(part) in called and part.id in _FUNCTIONS)
    if isinstance(part, ast.Attribute):
        return id(part) in called and part.attr in ("size", "stride", "storage_offset")
    if isinstance(part, ast.Call):
        is_method = isinstance(part.func, ast.Attribute)
        return not part.keywords and (not part.args if is_method else isinstance(part.func, ast.Name))
    if isinstance(part, ast.Constant):
        if isinstance(part.value, str):
            return id(part) in keys and is_quotable(part.value)
        return isinstance(part.value, (int, float)) and abs(part.value) < 2**80
    if isinstance(part, ast.BinOp):
        return isinstance(part.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)) or (
            isinstance(part.op, ast.Pow) and _is_small(part.right)
        )
    return isinstance(part, (*_NODES, ast.Subscript, ast.BoolOp, ast.boolop))


def _spec_problem(text: str, *, are_arguments: bool) -> str | None:
    """Returns what is wrong with a description of nested arguments or results; PyTorch imports modules it names."""
    try:
        read = json.loads(text)
        root = read[1] if isinstance(read, list) and len(read) == 2 else None
        if not isinstance(root, dict):
            return "expected a description of nested values"
        if are_arguments and len(root["children_spec"]) == 2:  # the second has the arguments that are passed by name
            names = [name for name in _context_values(root["children_spec"][1]["context"]) if name is not None]
            if not all(isinstance(name, str) and is_name(name) for name in names):
                return "which has arguments without a name"
        return _nesting_problem(root)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        return f"expected a description of nested values ({type(error).__name__})"


def _nesting_problem(root: dict[str, Any]) -> str | None:
    pending = [root]
    while pending:
        spec = pending.pop()
        pending += spec["children_spec"]
        context = spec["context"]
        if spec["type"] == "collections.defaultdict":
            context = json.loads(context) if isinstance(context, str) else context
            if (context["default_factory_module"], context["default_factory_name"] in _FACTORIES) != ("builtins", True):
                return "which has a default that is not a Python type"
        for held in _context_values(context):
            if isinstance(held, str) and not is_quotable(held):
                return "which has keys that are not plain text"
            if held == "__enum__":
                return "which has enumeration members as keys; use text"
    return None


def _context_values(context: Any) -> Iterator[Any]:
    """Yields every value in a context, including those in nested JSON strings."""
    pending = [context]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str):
            try:
                inner = json.loads(value)
            except ValueError:
                inner = None
            if isinstance(inner, (dict, list)):
                pending.append(inner)
            else:
                yield inner if isinstance(inner, str) else value
        else:
            yield value
