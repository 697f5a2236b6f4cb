"""A `.pt2` file that wants to run something is refused, and nothing of it runs."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantvm.errors import ModelImportError, UnsupportedOpError
from quantvm.frontend.archive_checks import _is_guard, is_expression
from quantvm.frontend.exported import archive as pt2_archive
from quantvm.frontend.exported.importer import load_program
from tests.storage.hostile_archives import MARK, Payload, in_json, members, pickled, write

MODEL, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("offset", torch.ones(2))

    def forward(
        self, x: torch.Tensor, *, scale: dict[str, torch.Tensor], spare: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {"y": torch.relu(self.linear(x)) + self.offset * scale["by 2"], "z": x[:, :2] * x.shape[0]}


def arguments() -> tuple[Any, Any]:
    return (torch.randn(3, 4),), {"scale": {"by 2": torch.tensor(2.0)}, "spare": torch.zeros(1)}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    args, kwargs = arguments()
    shapes = {"x": {0: torch.export.Dim("n", min=2, max=64)}, "scale": {"by 2": {}}, "spare": {}}
    path = tmp_path_factory.mktemp("pt2") / "good.pt2"
    torch.export.save(torch.export.export(Small().eval(), args, kwargs, dynamic_shapes=shapes), path)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evil_module.py").write_text(f"open({MARK!r}, 'w')\nclass Kind:\n    pass\n")
    yield
    sys.modules.pop("evil_module", None)


def test_what_torch_writes_is_read_as_torch_reads_it(good):
    ours, theirs = load_program(good), torch.export.load(good)
    args, kwargs = arguments()
    assert str(ours.graph) == str(theirs.graph)
    assert str(ours.range_constraints) == str(theirs.range_constraints)
    assert ours._guards_code == theirs._guards_code
    for name, tensor in theirs.state_dict.items():
        assert torch.equal(ours.state_dict[name], tensor)
    torch.testing.assert_close(ours.module()(*args, **kwargs), theirs.module()(*args, **kwargs), rtol=0, atol=0)
    assert torch.utils._pytree.tree_structure(ours.example_inputs) == torch.utils._pytree.tree_structure((args, kwargs))
    paths = [[node.meta.get(key) for key in ("nn_module_stack", "stack_trace")] for node in ours.graph.nodes]
    assert paths == [[node.meta.get(key) for key in ("nn_module_stack", "stack_trace")] for node in theirs.graph.nodes]


def test_files_without_example_inputs_are_read(good):
    held = members(good)
    assert load_program(write(Path("a.pt2"), {**held, INPUTS: b""})).example_inputs is None


def expression(text: Any) -> Callable[[dict[str, bytes]], None]:
    """Puts a text in the place of each expression of sizes."""

    def change(content: Any) -> None:
        for meta in content["graph_module"]["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"] = {"expr_str": text, "hint": {"as_int": 3}}

    return model(change)


def model(change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def of(held: dict[str, bytes]) -> None:
        held[MODEL] = in_json(change)(held[MODEL])

    return of


def renamed(old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    """Gives a value of the graph another name, wherever it is named."""

    def of(held: dict[str, bytes]) -> None:
        held[MODEL] = held[MODEL].replace(json.dumps(old).encode(), json.dumps(new).encode())

    return of


def spec(change: Callable[[Any], None], field: str = "in_spec") -> Callable[[dict[str, bytes]], None]:
    def of(content: Any) -> None:
        signature = content["graph_module"]["module_call_graph"][0]["signature"]
        read = json.loads(signature[field])
        change(read[1])
        signature[field] = json.dumps(read)
        signature["forward_arg_names"] = None

    return model(of)


def target(name: str) -> Callable[[dict[str, bytes]], None]:
    return model(lambda content: content["graph_module"]["graph"]["nodes"][0].update(target=name))


def member(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda held: held.update({name: data})


def object_constant(kind: str) -> Callable[[dict[str, bytes]], None]:
    def of(held: dict[str, bytes]) -> None:
        meta = {"path_name": f"{kind}_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        held[CONSTANTS] = json.dumps({"config": {"thing": meta}}).encode()
        held[f"data/constants/{kind}_0"] = pickle.dumps(Payload())

    return of


def pickled_weight(held: dict[str, bytes]) -> None:
    content = json.loads(held[WEIGHTS])
    first = content["config"]["linear.weight"]
    first["use_pickle"] = True
    held[WEIGHTS] = json.dumps(content).encode()
    held[f"data/weights/{first['path_name']}"] = pickled(Payload())


def with_enumeration(root: Any) -> None:
    enumeration = {"__enum__": True, "fqn": "evil_module:Kind", "name": "A"}
    root["children_spec"][1]["children_spec"][0]["context"] = json.dumps([enumeration])


def with_default(root: Any) -> None:
    inner = root["children_spec"][1]["children_spec"][0]
    names = {"default_factory_module": "evil_module", "default_factory_name": "Kind", "dict_context": ["by 2"]}
    inner.update(type="collections.defaultdict", context=names)


RUNS_IN_TORCH = {
    "example inputs": member(INPUTS, pickled((Payload(),))),
    "pickled weight": pickled_weight,
    "opaque object": object_constant("opaque_obj"),
    "weights of an older version": member("data/weights/model.pt", pickled({"linear.weight": Payload()})),
    "constants of an older version": member("data/constants/model.pt", pickled({"a": Payload()})),
    "expression": expression(f"open('{MARK}', 'w')"),
    "expression by attributes": expression(f"Symbol('s').__class__.mro() and open('{MARK}', 'w')"),
    "argument": renamed("spare", f"spare=open('{MARK}','w')"),
    "key of an enumeration": spec(with_enumeration),
    "default of a dict": spec(with_default),
}
"""Changes of a file that make PyTorch's own reader run something."""
REFUSED = {
    "custom object": object_constant("custom_obj"),
    "list of expressions": expression([f"open('{MARK}', 'w')"]),
    "function of torch": target("torch.load"),
    "function of a module of torch": target("torch.serialization.os.system"),
    "file": target("torch.ops.aten.from_file.default"),
    "getter": target("_operator.attrgetter"),
    "module of math": target("math.__loader__.load_module"),
    "class": target("torch.ops.aten.__class__.mro"),
    "extension": target("#evil:thing"),
    "library of another": target("torch.ops.evil.thing.default"),
    "name of a result": renamed("relu", f"relu; open('{MARK}','w')"),
    "name of an argument of an operator": renamed("self", f"self=open('{MARK}','w'), x"),
    "name by keyword": spec(lambda root: root["children_spec"][1].update(context=json.dumps([f"a=open('{MARK}')"]))),
    "key with a quote": spec(
        lambda root: root["children_spec"][1]["children_spec"][0].update(context=json.dumps(['a" or open("x") or "'])),
    ),
    "argument names": model(
        lambda content: content["graph_module"]["module_call_graph"][0]["signature"].update(
            forward_arg_names=[f"x=open('{MARK}','w')", "scale"]
        ),
    ),
    "name of a buffer": renamed("offset", f'a") or open("{MARK}", "w'),
    "huge power": expression("Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
    "huge counter": model(lambda held: held["range_constraints"].update(u99999999999={"min_val": 0, "max_val": 9})),
    "compiled code": member("data/aotinductor/model/wrapper.so", b"\x7fELF"),
    "other version": member("archive_version", b"1"),
    "no program": lambda held: held.pop(MODEL),
    "no weights": lambda held: held.pop(WEIGHTS),
    "text for a number": model(lambda content: content["schema_version"].update(major="8")),
    "tensor beyond its bytes": lambda held: held.update(
        {WEIGHTS: in_json(lambda c: c["config"]["linear.weight"]["tensor_meta"].update(
            sizes=[{"as_int": 1 << 20}, {"as_int": 1 << 20}]))(held[WEIGHTS])}
    ),
    "tensor before its bytes": lambda held: held.update(
        {WEIGHTS: in_json(lambda c: c["config"]["linear.weight"]["tensor_meta"].update(
            storage_offset={"as_int": -1}))(held[WEIGHTS])}
    ),
}  # fmt: skip
"""Changes of a file that PyTorch refuses later, runs later, or computes nonsense of."""


@pytest.mark.parametrize("name", RUNS_IN_TORCH)
def test_what_torch_runs_is_refused_and_not_run(good, name):
    held = members(good)
    RUNS_IN_TORCH[name](held)
    path = write(Path("hostile.pt2"), held)
    with pytest.raises((ModelImportError, UnsupportedOpError), match=r"hostile\.pt2"):
        load_program(path)
    assert not Path(MARK).exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert Path(MARK).exists(), "the attack is none: PyTorch does not run it either"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_program_of_torch_is_refused(good, name):
    held = members(good)
    REFUSED[name](held)
    assert held != members(good)
    with pytest.raises((ModelImportError, UnsupportedOpError), match=r"hostile\.pt2"):
        load_program(write(Path("hostile.pt2"), held))
    assert not Path(MARK).exists()


def test_guards_that_are_no_comparison_of_sizes_are_left_out(good):
    held = members(good)
    evil = [f"open('{MARK}', 'w')", "L['x'].__class__", "L['x'].size()[0] == 3 or open('x')", 3]
    held[MODEL] = in_json(lambda content: content["guards_code"].extend(evil))(held[MODEL])
    program = load_program(write(Path("guards.pt2"), held))
    args, kwargs = arguments()
    program.module()(*args, **kwargs)
    assert program._guards_code == torch.export.load(good)._guards_code
    assert not Path(MARK).exists()


def test_an_archive_that_unpacks_to_much_more_is_refused(good, monkeypatch):
    monkeypatch.setattr(pt2_archive, "_ALWAYS_UNPACKED_BYTES", 1 << 20)
    held = {**members(good), "extra/zeros": bytes(8 << 20)}
    with pytest.raises(ModelImportError, match="unpacks to"):
        load_program(write(Path("bomb.pt2"), held, zipfile.ZIP_DEFLATED))


def test_a_member_that_is_there_twice_is_refused(good):
    shutil.copy(good, "twice.pt2")
    with zipfile.ZipFile("twice.pt2", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(next(name for name in archive.namelist() if name.endswith(INPUTS)), pickled((Payload(),)))
    with pytest.raises(ModelImportError, match="twice"):
        load_program(Path("twice.pt2"))


@pytest.mark.parametrize("text", [
    "L['a'].size()[3] >= 3", "((-2) + L['a'].size()[3]) != 1", "L['d']['k x'].size()[0] == L['a'].size()[0]",
    "(((-8) + 4*L['a'].size()[2]) % (((-8) + 4*L['a'].size()[2])*((-2) + L['a'].size()[3]))) != 0",
    "L['x'][0].size()[1] < 9", "Eq(Mod(L['a'].size()[0], 2), 0)",
    "not (L['a'].size()[0] == 1 and L['a'].stride()[0] > 2)",
])  # fmt: skip
def test_guards_that_torch_writes_are_kept(text):
    assert _is_guard(text)


@pytest.mark.parametrize("text", [
    "s0", "s0 + 1", "2*s0", "s0 // 2", "(s0 - 1) % 4", "s0**2", "Max(1, s0 - 2)", "Eq(s0, 3)", "s0 < 5",
    "Symbol('s77', positive=True, integer=True)", "Float('0.5', precision=53)",
    "Pow(Symbol('s0', integer=True), Integer(2))",
    "FloorDiv(Add(Symbol('s41', positive=True, integer=True), Integer(-2)), Integer(2))", "u0",
    "Piecewise(ExprCondPair(Integer(1), StrictLessThan(Symbol('u0', integer=True), Integer(2))))",
])  # fmt: skip
def test_expressions_that_torch_writes_are_taken(text):
    assert is_expression(text)


@pytest.mark.parametrize("text", [
    "__import__('os')", "open('x')", "eval('1')", "s0.__class__", "[s0 for s0 in (1,)]", "lambda: 1", "s0[0]", "'a'",
    "Symbol('s0').x", "Symbol(s0, cls='x')", "f'{s0}'", "s0 if s0 else 1", "Symbol('a b')", "Integer('1')", "9**9**9",
    "2**99999", "Pow(2, s0)", "(s0 := 1)", "print(s0)", "Symbol(*a)", "LShift(Integer(1), Integer(9999999999))",
    "1\n__import__('os')", "s0 # x", "\uff33ymbol('x')", "Symbol('s0', **{})", "s" * 30_000, "",
    "(" * 500 + "1" + ")" * 500, "+".join(["s0"] * 3000),
])  # fmt: skip
def test_other_text_is_no_expression(text):
    assert not is_expression(text)
