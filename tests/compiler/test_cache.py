"""Compiled models that are kept: what hits, what misses, what goes, and several processes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import grimp
import numpy as np
import pytest
import torch

import quantvm.compiler
from quantvm.compiler import cache_key as cache_key_module
from quantvm.compiler.cache import CompileCache, default_cache
from quantvm.compiler.cache_key import digest_of_module, key_parts
from quantvm.errors import ConfigError
from quantvm.frontend import from_torch
from quantvm.lowering import LoweringOptions
from quantvm.runtime.target import parse_target
from tests.quantized_modules import Quantized, SmallNetwork, conv2d, image, save_traced

SHAPE = (3, 19, 17)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache of the default size."""
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path))
    monkeypatch.delenv("QUANTVM_CACHE_BYTES")
    return tmp_path / "compiled"


class Notes:
    """Progress that keeps what it is told."""

    def __init__(self):
        self.notes = []
        self.note = self.notes.append
        from quantvm.progress import SILENT

        self.task = SILENT.task


def network():
    torch.backends.quantized.engine = "fbgemm"
    return SmallNetwork()


def small(seed=0, **options):
    return Quantized(conv2d(3, 8, seed=seed, **options))


def compiled(module=None, shape=(1, 3, 6, 6), **options):
    options = {"engine": "fbgemm", "threads": 1, "cache": True, **options}
    return quantvm.compiler.compile(module or small(), image(*shape), **options)


# ------------------------------------------------------------------ hits and misses


def test_the_second_compilation_is_a_hit_with_the_same_bits():
    x = image(3, *SHAPE, seed=1)
    first = compiled(network(), (1, *SHAPE))
    second = compiled(network(), (1, *SHAPE))
    assert (first.report.cached, second.report.cached) == (False, True)
    assert second.report.load_s < 0.5
    assert first.report.compile_s > 0
    assert second.report.compile_s is None
    assert second.report.import_s not in (None, first.report.import_s)
    assert torch.equal(first(x), second(x))
    assert torch.equal(second(x), network()(x))


def test_nothing_is_kept_unless_asked(folder):
    compiled(cache=False)
    assert not folder.exists()


def test_a_bound_of_zero_switches_the_cache_off(folder, monkeypatch):
    monkeypatch.setenv("QUANTVM_CACHE_BYTES", "0")
    assert not compiled().report.cached
    assert not compiled().report.cached
    assert not folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"module": lambda: small(seed=1)},
        {"module": lambda: small(scale=0.32)},
        {"module": lambda: small(zero_point=78)},
        {"module": lambda: small(padding=1)},
        {"shape": (1, 3, 6, 7)},
        {"batch": "static"},
        {"threads": 2},
        {"engine": "qnnpack"},
        {"target": "llvm -mcpu=haswell"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_code_misses(change, folder):
    compiled()
    change = {name: value() if callable(value) else value for name, value in change.items()}
    assert not compiled(**change).report.cached
    assert len(list(folder.iterdir())) == 2


def test_one_bit_of_one_weight_changes_the_key():
    module = small()
    x = image(1, 3, 6, 6)
    before = digest_of_module(from_torch(module, x, engine="fbgemm"))
    assert digest_of_module(from_torch(module, x, engine="fbgemm")) == before
    weight = module.body.weight()
    weights = weight.int_repr()
    weights[7, 2, 2, 2] ^= 1
    changed = torch._make_per_channel_quantized_tensor(
        weights, weight.q_per_channel_scales(), weight.q_per_channel_zero_points(), 0
    )
    module.body.set_weight_bias(changed, module.body.bias())
    assert digest_of_module(from_torch(module, x, engine="fbgemm")) != before


def test_an_edit_of_a_kernel_makes_all_entries_stale(monkeypatch):
    compiled()
    assert compiled().report.cached
    monkeypatch.setattr(cache_key_module, "digest_of_sources", lambda: "edited")
    assert not compiled().report.cached


def test_the_sources_are_all_that_compiling_imports():
    graph = grimp.build_graph("quantvm")
    compiling = {module for top in ("kernels", "lowering") for module in graph.find_descendants(f"quantvm.{top}")}
    imported = set().union(*(graph.find_upstream_modules(module) for module in compiling)) - compiling
    known = {source.removesuffix(".py") for source in cache_key_module._SOURCES}
    tops = {module.split(".")[1] for module in imported if module != "quantvm"}
    change_no_code = {"errors", "layer_rules", "storage"}
    assert tops - known == change_no_code, "list it in _SOURCES, or here if it changes no code"


def test_the_digest_of_the_sources_sees_every_file_that_compiles(tmp_path, monkeypatch):
    package = tmp_path / "quantvm"
    sources = cache_key_module._SOURCES
    assert {"kernels", "lowering", "qdq", "numerics", "compiler", "runtime", "tvm_compat.py"} <= set(sources)
    modules = [source for source in sources if source.endswith(".py")]
    inside = ("kernels/conv/conv2d.py", "lowering/pipeline.py", "qdq/composite.py", "numerics/torch_engines.py")
    inside += ("compiler/cache_key.py", "runtime/target.py")
    for name in (*inside, *modules):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("first")
    monkeypatch.setattr(cache_key_module, "__file__", str(package / "compiler" / "cache_key.py"))
    digest = cache_key_module.digest_of_sources.__wrapped__
    seen = {digest()}
    for path in package.rglob("*.py"):
        path.write_text("second")
        seen.add(digest())
    (package / "kernels" / "new.py").write_text("")
    seen.add(digest())
    assert len(seen) == 8 + len(modules)


def test_two_processes_agree_on_the_key(tmp_path):
    path = tmp_path / "model.pt"
    x = image(1, *SHAPE)
    save_traced(network(), x, path)
    program = f"""
import json, numpy as np
from quantvm.frontend import from_torch
from quantvm.compiler.cache_key import key_parts
from quantvm.lowering import LoweringOptions
from quantvm.runtime.target import parse_target
module = from_torch({str(path)!r}, np.zeros({(1, *SHAPE)!r}, np.float32), engine="fbgemm")
print(json.dumps(key_parts(module, LoweringOptions(parse_target("native"), "torch", threads=2))))
"""
    module = from_torch(str(path), x, engine="fbgemm")
    here = key_parts(module, LoweringOptions(parse_target("native"), "torch", threads=2))
    another = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONHASHSEED": another},
    )  # fmt: skip
    assert json.loads(done.stdout) == here


# ------------------------------------------------------------------ what can go wrong


@pytest.mark.parametrize("damage", ["empty", "truncated", "a changed byte", "foreign"])
def test_a_damaged_entry_is_removed_and_made_again(folder, damage):
    compiled()
    (path,) = folder.iterdir()
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "truncated": content[:half],
            "a changed byte": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
            "foreign": b"PK\x03\x04 something else",
        }[damage]
    )
    again = compiled()
    assert not again.report.cached
    x = image(2, 3, 6, 6)
    assert torch.equal(again(x), small()(x))
    assert compiled().report.cached


def test_without_a_linker_the_model_is_compiled_and_one_notice_says_so(folder, monkeypatch):
    monkeypatch.setattr("tvm.support.cc.get_cc", lambda: None)
    progress = Notes()
    artifact = compiled(progress=progress)
    x = image(2, 3, 6, 6)
    assert torch.equal(artifact(x), small()(x))
    assert len(progress.notes) == 1
    assert "not kept for the next time" in progress.notes[0]
    assert "C++ linker" in progress.notes[0]
    assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_error(folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the folder should be")
    progress = Notes()
    assert not compiled(progress=progress).report.cached
    assert "cannot write to" in progress.notes[0]


def test_a_bound_that_is_no_number(monkeypatch):
    monkeypatch.setenv("QUANTVM_CACHE_BYTES", "2 GiB")
    with pytest.raises(ConfigError, match="QUANTVM_CACHE_BYTES='2 GiB', expected a whole number of bytes"):
        compiled()


def test_an_entry_for_another_processor_is_a_hit_that_can_be_saved(tmp_path, monkeypatch):
    from quantvm.runtime import requirements

    monkeypatch.setattr(requirements, "cpu_flags", lambda: frozenset({"avx"}))
    monkeypatch.setattr(requirements, "host_target", lambda: "another")
    compiled(target="llvm -mcpu=haswell")
    second = compiled(target="llvm -mcpu=haswell")
    assert second.report.cached
    assert second.save(tmp_path / "haswell.qvm").stat().st_size > 1000


# ------------------------------------------------------------------ the bound


def stored(folder):
    return {path.stem for path in folder.glob("*.qvm")}


def test_the_least_recently_used_go_first(folder):
    artifact = compiled(cache=False)
    size_bytes = artifact.save(folder.parent / "one.qvm").stat().st_size
    cache = CompileCache(folder, int(3.5 * size_bytes))
    for age_s, key in ((30, "a"), (20, "b"), (10, "c")):
        cache.store(key, artifact)
        os.utime(folder / f"{key}.qvm", (time.time() - age_s,) * 2)
    assert cache.find("a") is not None  # the oldest, but now used again
    cache.store("d", artifact)
    assert stored(folder) == {"a", "c", "d"}
    assert [entry.key for entry in cache.entries()] == ["d", "a", "c"]
    assert {entry.size_bytes for entry in cache.entries()} == {size_bytes}


def test_an_entry_greater_than_the_bound_is_not_kept(folder):
    artifact = compiled(cache=False)
    cache = CompileCache(folder, 1000)
    cache.store("a", artifact)
    assert stored(folder) == set()


def test_an_artifact_outlives_its_entry(folder):
    artifact = compiled()
    x = image(2, 3, 6, 6)
    assert default_cache().clear()[0] == 1
    assert torch.equal(artifact(x), small()(x))
    artifact.save(folder.parent / "still.qvm")


def test_abandoned_files_go_after_a_while(folder):
    folder.mkdir(parents=True)
    old, new = folder / "a.qvm.tmp1-x", folder / "b.qvm.tmp2-y"
    for path in (old, new):
        path.write_text("")
    os.utime(old, (0, 0))
    compiled()
    assert not old.exists()
    assert new.exists()
    default_cache().clear()
    assert list(folder.iterdir()) == []


def test_entries_say_what_they_are_and_damaged_ones_are_listed(folder):
    compiled()
    (folder / "broken.qvm").write_text("nothing")
    entries = {entry.key: entry for entry in default_cache().entries()}
    assert entries.pop("broken").manifest is None
    (entry,) = entries.values()
    assert entry.manifest.report.engine == "fbgemm"
    assert entry.manifest.signature.inputs[0].shape == (None, 3, 6, 6)
    assert time.time() - entry.used_s < 60


# ------------------------------------------------------------------ several processes

_PROGRAM = """
import json, sys, time
import numpy as np, torch
import quantvm.compiler
from tests.quantized_modules import Quantized, conv2d, image
torch.backends.quantized.engine = "fbgemm"
while time.time() < float(sys.argv[1]):
    time.sleep(0.001)
found = []
for seed in (0, 1, 0, 1):
    module = Quantized(conv2d(3, 8, seed=seed))
    artifact = quantvm.compiler.compile(module, image(1, 3, 6, 6), engine="fbgemm", threads=1, cache=True)
    x = image(2, 3, 6, 6, seed=seed)
    assert torch.equal(artifact(x), module(x))
    found.append(artifact.report.cached)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("room_for", [pytest.param("all", marks=pytest.mark.nightly), "one"])
def test_several_processes_at_once(folder, room_for, pytestconfig):
    """With room for one, they remove each other's entries: at the end, one is left at most (see the sum of sizes)."""
    size_bytes = compiled(cache=False).save(folder.parent / "one.qvm").stat().st_size
    limit_bytes = {"all": "", "one": str(int(1.5 * size_bytes))}[room_for]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(pytestconfig.rootpath)])}
    environment["QUANTVM_CACHE_BYTES"] = limit_bytes
    begin_s = time.time() + 6
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(begin_s)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    if room_for == "all":
        assert len(stored(folder)) == 2
        assert all(json.loads(output)[2:] == [True, True] for output in outputs)
    assert [path.name for path in folder.iterdir() if ".tmp" in path.name] == []
    sizes = np.array([path.stat().st_size for path in folder.glob("*.qvm")])
    assert sizes.sum() <= int(limit_bytes or 2 << 30)
