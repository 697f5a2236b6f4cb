"""The tensors of an ONNX file lie in its own folder, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from quantvm.errors import ModelImportError

onnx = pytest.importorskip("onnx")
from quantvm.frontend.onnx.model import load_onnx  # noqa: E402


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "models").mkdir()
    Path(tmp_path, "secret").write_bytes(bytes(range(16)))
    monkeypatch.chdir(tmp_path / "models")


def model(location: str, place: str = "initializer", **held: int) -> onnx.ModelProto:
    """Returns a model with a tensor of four floats in a file."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **held}.items():
        tensor.external_data.add(key=key, value=str(value))
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Add", ["x", "w"], ["y"])
    nodes = [node] if place == "initializer" else [helper.make_node("Constant", [], ["w"], value=tensor), node]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", float32, [4])], [value("y", float32, [4])])
    if place == "initializer":
        graph.initializer.append(tensor)
    if place == "sparse":
        del graph.node[0]
        graph.sparse_initializer.add(values=tensor, dims=[4])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def saved(*arguments: object, **held: int) -> Path:
    Path("m.onnx").write_bytes(model(*arguments, **held).SerializeToString())
    return Path("m.onnx")


@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_a_file_beside_the_model_is_read(place):
    np.arange(6, dtype=np.float32).tofile("w.bin")
    loaded = load_onnx(saved("w.bin", place, offset=4, length=16))
    held = loaded.graph.initializer or [loaded.graph.node[0].attribute[0].t]
    assert onnx.numpy_helper.to_array(held[0]).tolist() == [1, 2, 3, 4]
    described = model("w.bin", place, offset=4, length=16)
    before = described.SerializeToString()
    assert load_onnx(described).SerializeToString() == loaded.SerializeToString()
    assert described.SerializeToString() == before


@pytest.mark.parametrize("place", ["initializer", "constant", "sparse"])
@pytest.mark.parametrize(
    "location", ["../secret", "a/../../secret", "{absolute}", "link", "", "..\\secret", "C:\\x", "a\0b"]
)
def test_a_file_elsewhere_is_not_read(location, place, tmp_path):
    Path("a").mkdir()
    Path("link").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelImportError, match="the tensor 'w' lies in"):
        load_onnx(saved(location.format(absolute=tmp_path / "secret"), place))


def test_what_is_no_file_is_not_waited_for():
    Path("folder").mkdir()
    os.mkfifo("pipe")
    for location in ("folder", "pipe", "nowhere"):
        with pytest.raises(ModelImportError, match=location):
            load_onnx(saved(location))


def functions(count: int, last: str) -> onnx.ModelProto:
    """Returns a model of functions each of which calls the next one twice, the last one an operator."""
    helper, opsets = onnx.helper, [onnx.helper.make_opsetid("f", 1), onnx.helper.make_opsetid("", 17)]
    called = [(f"F{at + 1}", "f") for at in range(count - 1)] + [(last, "f" if last.startswith("F") else "")]
    held = [
        helper.make_function(
            "f", f"F{at}", ["a"], ["c"],
            [helper.make_node(op, *ends, domain=domain) for ends in ((["a"], ["b"]), (["b"], ["c"]))], opsets,
        )
        for at, (op, domain) in enumerate(called)
    ]  # fmt: skip
    value, float32 = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    node = helper.make_node("F0", ["x"], ["y"], domain="f")
    graph = helper.make_graph([node], "g", [value("x", float32, [4])], [value("y", float32, [4])])
    return helper.make_model(graph, opset_imports=opsets, functions=held)


def test_functions_that_call_functions():
    def read(model: onnx.ModelProto) -> onnx.ModelProto:
        Path("f.onnx").write_bytes(model.SerializeToString())
        return load_onnx(Path("f.onnx"))

    assert len(read(functions(8, "Identity")).functions) == 8
    with pytest.raises(ModelImportError, match=r"1,073,741,824 nodes"):
        read(functions(30, "Identity"))
    with pytest.raises(ModelImportError, match="calls itself"):
        read(functions(5, "F2"))


def test_names_that_are_no_text():
    data = functions(1, "Identity").SerializeToString().replace(b"Identity", b"Identi\xff\xfe")
    Path("f.onnx").write_bytes(data)
    with pytest.raises(ModelImportError, match=r"f\.onnx .*UTF-8"):
        load_onnx(Path("f.onnx"))


@pytest.mark.parametrize("name", [b"GRAPH", b"INPUT", b"BATCH", b"OUTPUT", b"CONSTANT", b"ALPHA", b"DOMAIN"])
def test_names_of_values_are_text(name: bytes):
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, float32, ["BATCH", 4]) for name in ("INPUT", "OUTPUT")]
    nodes = [helper.make_node("Add", ["INPUT", "CONSTANT"], ["OUTPUT"], ALPHA=1.0)]
    held = [onnx.numpy_helper.from_array(np.ones(4, np.float32), "CONSTANT")]
    graph = helper.make_graph(nodes, "GRAPH", values[:1], values[1:], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("DOMAIN", 1)])
    Path("f.onnx").write_bytes(made.SerializeToString().replace(name, name[:-2] + b"\xff\xfe"))
    with pytest.raises(ModelImportError, match=r"f\.onnx .*UTF-8"):
        load_onnx(Path("f.onnx"))


@pytest.mark.parametrize("held", [{"offset": -1}, {"offset": 99}, {"length": 99}, {"offset": 10**30}, {"length": "x"}])
def test_places_beyond_the_file(held):
    Path("w.bin").write_bytes(bytes(16))
    with pytest.raises(ModelImportError, match=r"w\.bin"):
        load_onnx(saved("w.bin", **held))
