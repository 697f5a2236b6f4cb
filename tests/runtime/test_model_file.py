"""Saved models: what comes back, without PyTorch, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

import quantvm
from quantvm.errors import CompileError, MachineError, ModelFileError, OutputError
from quantvm.frontend import from_torch
from quantvm.numerics.torch_engines import QuantParams
from quantvm.runtime import model_file, requirements
from quantvm.runtime.manifest import _digest, parse_manifest
from quantvm.runtime.requirements import Requirements, requirements_of
from quantvm.runtime.signature import TensorSpec, signature_of
from quantvm.runtime.target import parse_target
from tests.quantized_modules import Quantized, SmallNetwork, image

SHAPE = (3, 19, 17)


@pytest.fixture(scope="module")
def compiled():
    torch.backends.quantized.engine = "fbgemm"
    return quantvm.compile(SmallNetwork(), image(1, *SHAPE), engine="fbgemm", threads=1)


@pytest.fixture(scope="module")
def saved(compiled, tmp_path_factory):
    return compiled.save(tmp_path_factory.mktemp("saved") / "small.qvm")


@pytest.fixture
def rewritten(saved, tmp_path):
    """Returns a function that writes the saved model with other members; `change` edits the manifest."""

    def write(members=None, change=None, compression=zipfile.ZIP_STORED, signed=True):
        with zipfile.ZipFile(saved) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        held.update(members or {})
        manifest = json.loads(held["manifest.json"])
        if change is not None:
            library = held["model.so"]
            manifest["library"] = {"size_bytes": len(library), "sha256": hashlib.sha256(library).hexdigest()}
            change(manifest)
            if signed:
                manifest["sha256"] = _digest(manifest)
            held["manifest.json"] = json.dumps(manifest).encode()
        path = tmp_path / "rewritten.qvm"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in held.items():
                if content is not None:
                    archive.writestr(name, content)
        return path

    return write


# ------------------------------------------------------------------ what comes back


def test_a_loaded_model_gives_the_same_bits(compiled, saved):
    loaded = quantvm.load(saved)
    for batch in (1, 3):
        x = image(batch, *SHAPE, seed=batch)
        assert torch.equal(loaded(x), compiled(x))


def test_a_loaded_model_says_what_the_compiled_one_says(compiled, saved):
    loaded = quantvm.load(str(saved))
    assert loaded.signature == compiled.signature
    assert loaded.requirements == compiled.requirements
    assert loaded.report.load_s > 0
    assert (compiled.report.load_s, compiled.report.cached, loaded.report.cached) == (None, False, False)
    times = {"load_s": None, "import_s": None, "compile_s": None}
    assert dataclasses.replace(loaded.report, **times) == dataclasses.replace(compiled.report, **times)
    assert (loaded.report.import_s, loaded.report.compile_s) == (None, None)  # equal models are equal files


def test_signature(compiled):
    (given,), (returned,) = compiled.signature.inputs, compiled.signature.outputs
    assert given == TensorSpec("x", (None, *SHAPE), "float32", QuantParams(float(np.float32(0.0417)), 100, "uint8"))
    assert returned == TensorSpec("output", (None, 10), "float32", QuantParams(float(np.float32(0.8)), 128, "uint8"))
    assert given.shape_text == "(n, 3, 19, 17)"


@pytest.mark.parametrize(
    "other",
    [lambda x: torch.quantize_per_tensor(x, 0.2, 3, torch.quint8), lambda x: torch.softmax(x, 1)],
    ids=["two ways", "float as well"],
)  # fmt: skip
def test_an_input_that_is_not_only_quantized_in_one_way_has_no_steps(other):
    class Module(torch.nn.Module):
        def forward(self, x):
            both = torch.quantize_per_tensor(x, 0.1, 3, torch.quint8), other(x)
            return tuple(y.dequantize() if y.is_quantized else y for y in both)

    spec = signature_of(from_torch(Module().eval(), image(1, 3, 4, 4))).inputs[0]
    assert spec == TensorSpec("x", (None, 3, 4, 4))


def test_signature_of_several_inputs_and_outputs(tmp_path):
    module = Quantized(lambda a, b: (torch.ops.quantized.add(a, b, 0.1, 3), torch.nn.functional.relu(b)))
    x = image(2, 3, 4, 4)
    two = quantvm.compile(module, (x, x), engine="fbgemm", threads=1, batch="static")
    loaded = quantvm.load(two.save(tmp_path / "two.qvm"))
    assert [spec.name for spec in loaded.signature.inputs] == ["input_0", "input_1"]
    assert [spec.name for spec in loaded.signature.outputs] == ["output_0", "output_1"]
    assert {spec.shape for spec in loaded.signature.inputs + loaded.signature.outputs} == {(2, 3, 4, 4)}
    scales = [spec.quantization.scale for spec in loaded.signature.outputs]
    assert scales == [float(np.float32(s)) for s in (0.1, 0.0417)]
    assert [torch.equal(a, e) for a, e in zip(loaded(x, x), two(x, x), strict=True)] == [True, True]


def test_a_loaded_model_can_be_saved_again_even_when_its_file_is_gone(saved, tmp_path):
    first = tmp_path / "first.qvm"
    first.write_bytes(saved.read_bytes())
    loaded = quantvm.load(first)
    first.unlink()
    second = loaded.save(tmp_path / "second.qvm")
    assert second.read_bytes() == saved.read_bytes()


def test_what_is_saved_twice_has_the_same_manifest_but_for_nothing(compiled, saved, tmp_path):
    again = compiled.save(tmp_path / "again.qvm")
    assert model_file.read_manifest(again).signature == model_file.read_manifest(saved).signature


def test_a_model_that_has_run_is_saved_as_the_same_file_and_in_silence(tmp_path, capfd):
    module = Quantized(SmallNetwork().stem)
    model = quantvm.compile(module, image(1, *SHAPE), engine="fbgemm", threads=1, cache=False)
    before = model.save(tmp_path / "before.qvm")
    x = image(2, *SHAPE)
    assert torch.equal(model(x), module(x))
    after = model.save(tmp_path / "after.qvm")
    assert after.read_bytes() == before.read_bytes()
    assert torch.equal(quantvm.load(after)(x), module(x))
    assert capfd.readouterr().err == ""


def test_saving_replaces_a_file_at_once_and_leaves_nothing_behind(compiled, tmp_path):
    path = tmp_path / "model.qvm"
    path.write_text("old")
    compiled.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.qvm"]
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["manifest.json", "model.so"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_loading_leaves_no_file_behind(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quantvm.load(saved)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime_only", [False, True])
def test_a_saved_model_runs_without_pytorch(saved, compiled, tmp_path, runtime_only):
    x = image(2, *SHAPE)
    np.save(tmp_path / "x.npy", x.numpy())
    program = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # importing them fails
import numpy as np, quantvm
model = quantvm.load({str(saved)!r})
np.save({str(tmp_path / "y.npy")!r}, model(np.load({str(tmp_path / "x.npy")!r})))
loaded = [n for n in sys.modules if n.startswith(("quantvm.kernels", "quantvm.lowering", "quantvm.frontend"))]
assert not loaded, loaded
"""
    environment = {**os.environ, **({"TVM_USE_RUNTIME_LIB": "1"} if runtime_only else {})}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), compiled(x).numpy())


def test_quantvm_itself_imports_no_pytorch_to_load(saved):
    program = f"""
import sys, builtins
real = builtins.__import__
def watched(name, globals=None, *rest, **more):
    if name.split(".")[0] in ("torch", "torchvision") and (globals or {{}}).get("__name__", "").startswith("quantvm"):
        raise AssertionError(f"{{globals['__name__']}} imports {{name}}")
    return real(name, globals, *rest, **more)
builtins.__import__ = watched
import quantvm
quantvm.load({str(saved)!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_loading_is_fast(saved):
    start_s = time.perf_counter()
    quantvm.load(saved)
    assert time.perf_counter() - start_s < 0.3


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all" * 100])
def test_foreign_files(tmp_path, content):
    path = tmp_path / "foreign.qvm"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"foreign\.qvm is no model file of quantvm"):
        quantvm.load(path)
    with pytest.raises(ModelFileError, match="it has no ZIP directory at its end"):
        quantvm.load(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        quantvm.load(tmp_path / "none.qvm")
    with pytest.raises(ModelFileError, match="is a folder, expected a file"):
        quantvm.load(tmp_path)


def test_a_torchscript_file_is_told_apart(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(path))
    with pytest.raises(ModelFileError, match=r"quantvm compile FILE\.pt"):
        quantvm.load(path)


@pytest.mark.parametrize("part", [0.001, 0.2, 0.5, 0.9, 0.999])
def test_truncated_files(saved, tmp_path, part):
    content = saved.read_bytes()
    path = tmp_path / "short.qvm"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ModelFileError):
        quantvm.load(path)


def test_no_changed_byte_reaches_the_loader(saved, tmp_path, monkeypatch):
    """A byte anywhere: the library is refused before it is loaded, and the rest is refused or says the same."""
    content = saved.read_bytes()
    expected = model_file.read_manifest(saved)
    with zipfile.ZipFile(saved) as archive:
        library = archive.read("model.so")
    began = content.index(library)
    loads = []
    monkeypatch.setattr("quantvm.tvm_compat.load_library", lambda path: loads.append(path.read_bytes()))
    monkeypatch.setattr("quantvm.tvm_compat.start_vm", lambda module: {"main": None})
    path = tmp_path / "changed.qvm"
    rng = np.random.default_rng(0)
    ended = began + len(library)
    places = [*range(0, began, 7), *rng.integers(began, ended, 40), *range(ended, len(content))]
    refused = 0
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            artifact = quantvm.load(path)
        except ModelFileError:
            refused += 1
        else:
            assert not began <= place < began + len(library)
            assert (artifact.signature, artifact.requirements) == (expected.signature, expected.requirements)
    assert all(loaded == library for loaded in loads)
    assert refused > 0.5 * len(places)


@pytest.mark.parametrize("name", ["../evil.so", "/tmp/evil.so", "model.so/..", "extra.txt", "MODEL.SO"])
def test_members_that_do_not_belong(rewritten, name):
    with pytest.raises(ModelFileError, match=r"expected manifest\.json and model\.so"):
        quantvm.load(rewritten({name: b"x"}))


def test_a_member_twice(saved, tmp_path):
    path = tmp_path / "twice.qvm"
    path.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("model.so", b"another")
    with pytest.raises(ModelFileError, match=r"expected manifest\.json and model\.so"):
        quantvm.load(path)


@pytest.mark.parametrize("name", ["manifest.json", "model.so"])
def test_a_member_that_is_missing(rewritten, name):
    with pytest.raises(ModelFileError, match=r"expected manifest\.json and model\.so"):
        quantvm.load(rewritten({name: None} if name == "model.so" else {"manifest.json": b"{}", "model.so": None}))


def test_compressed_members(rewritten):
    with pytest.raises(ModelFileError, match="compressed"):
        quantvm.load(rewritten(compression=zipfile.ZIP_DEFLATED))


def test_another_library_in_its_place(rewritten, saved):
    with zipfile.ZipFile(saved) as archive:
        library = bytearray(archive.read("model.so"))
    library[len(library) // 2] ^= 1
    with pytest.raises(ModelFileError, match="sha256"):
        quantvm.load(rewritten({"model.so": bytes(library)}))
    with pytest.raises(ModelFileError, match="has 3 bytes, expected"):
        quantvm.load(rewritten({"model.so": b"abc"}))


def test_a_library_that_is_none(rewritten):
    path = rewritten({"model.so": b"no machine code"}, change=lambda manifest: None)
    with pytest.raises(ModelFileError, match="the system cannot load its code"):
        quantvm.load(path)


def remove(*names):
    def change(manifest):
        for name in names[:-1]:
            manifest = manifest[name]
        del manifest[names[-1]]

    return change


def put(value, *names):
    def change(manifest):
        for name in names[:-1]:
            manifest = manifest[name]
        manifest[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("zip of something", "format"), "not that of a quantvm model"),
        (put(1, "schema_version"), "has schema version 1, and this quantvm reads 2 and 3"),
        (put("0.26.0", "versions", "tvm"), "compiled with TVM 0.26.0"),
        (remove("inputs"), "inputs is nothing"),
        (put([], "inputs"), r"inputs is \[\], expected at least one"),
        (put([None, -3], "inputs", 0, "shape"), r"inputs\[0\]\.shape is \[None, -3\], expected a shape"),
        (put([None, True], "inputs", 0, "shape"), r"inputs\[0\]\.shape"),
        (put(0.0, "outputs", 0, "quantization", "scale"), "scale must be positive|scale must be a positive"),
        (put("many", "outputs", 0, "quantization", "zero_point"), r"outputs\[0\]\.quantization\.zero_point is 'many'"),
        (put(1.5, "report", "int8_mac_share"), r"report\.int8_mac_share is 1\.5"),
        (put([1], "report", "float_ops"), r"report\.float_ops is \[1\], expected a list of str"),
        (put({"a": "b"}, "report", "kernels"), r"report\.kernels"),
        (remove("report", "output_scale"), r"report\.output_scale is nothing"),
        (remove("report", "verification"), r"report\.verification is nothing"),
        (put("right", "report", "verification", "verdict"), r"report\.verification\.verdict is 'right'"),
        (put(-1, "report", "verification", "n_different"), r"report\.verification\.n_different is -1"),
        (put("avx2", "requirements", "cpu_features"), r"requirements\.cpu_features is 'avx2'"),
        (put("ab", "library", "sha256"), r"library\.sha256 is 'ab'"),
        (put(10**400, "report", "int8_mac_share"), "damaged"),
        (put(["n"], "inputs", 0, "symbols"), r"inputs\[0\]\.symbols is \['n'\], expected names of dimensions"),
        (put([1, 2, 3, 4], "inputs", 0, "symbols"), r"inputs\[0\]\.symbols"),
        (put({"tensor": 1}, "structure"), "structure holds 'tensor', which makes no sense"),
        (put({"tuple": []}, "structure"), "structure has 0 tensors, expected 1"),
    ],
)  # fmt: skip
def test_manifests_that_make_no_sense(rewritten, change, message):
    with pytest.raises(ModelFileError, match=message):
        quantvm.load(rewritten(change=change))


def test_the_file_says_how_its_outputs_compare_with_the_reference_s(saved, rewritten):
    found = quantvm.load(saved).verification
    assert (found.verdict, found.batch_sizes, found.n_different) == ("exact", (1, 2), 0)
    assert found.reference == f"PyTorch (fbgemm) {torch.__version__}"
    assert f"verified: {found.text}>" in repr(quantvm.load(saved))

    def without(manifest):
        manifest["schema_version"] = 2
        del manifest["report"]["verification"]

    earlier = quantvm.load(rewritten(change=without))
    assert earlier.verification.text == "not run: the file was written by an earlier version of quantvm"


def test_files_of_schema_version_2_are_read(rewritten, compiled):
    def as_version_2(manifest):
        manifest["schema_version"] = 2
        del manifest["structure"], manifest["report"]["verification"]
        for spec in manifest["inputs"] + manifest["outputs"]:
            del spec["symbols"]

    assert quantvm.load(rewritten(change=as_version_2)).signature == compiled.signature


def leaves(value, path=()):
    """Yields the path of every field that holds no object and no list, and of every list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if not isinstance(inner, dict):
            yield (*path, key)
        yield from leaves(inner, (*path, key))


def tampered(value):
    """Returns another value of the same kind, which would make sense."""
    if isinstance(value, str):
        return value + "0" if not value or set(value) - set("0123456789abcdef") else value[::-1]
    if isinstance(value, list):
        return [*value, *value[:1]] or ["softmax"]
    return {bool: not value, int: lambda: value + 1, float: lambda: value * 1.5 + 0.25, type(None): lambda: 7}[
        type(value)
    ]()


def test_every_field_that_was_tampered_with_is_refused(saved, rewritten):
    with zipfile.ZipFile(saved) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    paths = list(leaves(manifest))
    assert {"versions", "requirements", "inputs", "outputs", "report", "library", "sha256"} <= {p[0] for p in paths}
    for path in paths:

        def change(manifest, path=path):
            for name in path[:-1]:
                manifest = manifest[name]
            manifest[path[-1]] = tampered(manifest[path[-1]])

        with pytest.raises(ModelFileError):
            quantvm.load(rewritten(change=change, signed=False))


def test_a_manifest_without_its_digest(rewritten):
    with pytest.raises(ModelFileError, match="the manifest's sha256 is nothing, expected str that makes sense"):
        quantvm.load(rewritten(change=remove("sha256"), signed=False))
    with pytest.raises(ModelFileError, match="damaged: its manifest was changed after it was written"):
        quantvm.load(rewritten(change=put(0.5, "report", "output_scale"), signed=False))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100000])
def test_manifests_that_are_none(raw):
    with pytest.raises(ModelFileError):
        parse_manifest(raw, "here")


def test_a_processor_that_can_less(rewritten):
    path = rewritten(change=put(["avx2", "avx1024_vnni"], "requirements", "cpu_features"))
    with pytest.raises(MachineError, match=r"rewritten\.qvm: .* needs avx1024_vnni, which this CPU \(.+\) lacks"):
        quantvm.load(path)
    with pytest.raises(MachineError, match="needs a processor of kind riscv64"):
        quantvm.load(rewritten(change=put("riscv64", "requirements", "architecture")))


# ------------------------------------------------------------------ requirements


def test_requirements_of_targets(monkeypatch):
    monkeypatch.setattr(requirements, "host_target", lambda: "another")
    haswell, cascadelake = (requirements_of(parse_target(f"llvm -mcpu={cpu}")) for cpu in ("haswell", "cascadelake"))
    assert {"avx2", "fma", "bmi1", "abm", "sse4_2"} <= set(haswell.cpu_features)
    assert "avx512_vnni" not in haswell.cpu_features
    assert {"avx512_vnni", "avx512vl"} <= set(cascadelake.cpu_features)
    arm = requirements_of(parse_target("llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n1"))
    assert (arm.architecture, set(arm.cpu_features)) == ("aarch64", {"asimd", "asimddp", "asimdhp"})


def test_this_machine_meets_its_own_requirements():
    assert requirements_of(parse_target("native")).unmet() is None


def test_a_system_that_tells_nothing_is_trusted(monkeypatch):
    monkeypatch.setattr(requirements, "cpu_flags", frozenset)
    assert Requirements(requirements.this_architecture(), ("avx1024",)).unmet() is None


def test_code_for_another_processor_compiles_and_saves_but_does_not_run(monkeypatch, tmp_path):
    module, x = Quantized(torch.nn.functional.relu), image(1, 3, 4, 4)
    monkeypatch.setattr(requirements, "cpu_flags", lambda: frozenset({"avx"}))
    monkeypatch.setattr(requirements, "host_target", lambda: "another")
    artifact = quantvm.compile(module, x, threads=1, target="llvm -mcpu=haswell")
    path = artifact.save(tmp_path / "haswell.qvm")
    for run in (lambda: artifact(x), lambda: quantvm.load(path)):
        with pytest.raises(MachineError, match=r"needs .*avx2.*compile the model on this machine"):
            run()


# ------------------------------------------------------------------ saving


def test_no_linker(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr("tvm.support.cc.get_cc", lambda: None)
    with pytest.raises(CompileError, match=r"C\+\+ linker, and none was found; install g\+\+"):
        compiled.save(tmp_path / "model.qvm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("linker", ["/no/such/linker", "false"])
def test_a_linker_that_fails(compiled, tmp_path, monkeypatch, linker):
    monkeypatch.setenv("CXX", linker)
    with pytest.raises(CompileError, match=f"the linker {linker} failed"):
        compiled.save(tmp_path / "model.qvm")


def test_a_folder_that_is_missing(compiled, tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*the folder .*none does not exist"):
        compiled.save(tmp_path / "none" / "model.qvm")
