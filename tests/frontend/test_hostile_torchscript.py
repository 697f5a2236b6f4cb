"""A TorchScript file that wants to do more than to be a program is refused before PyTorch opens it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from quantvm.errors import ModelImportError
from quantvm.frontend.torchscript import archive as torchscript_archive
from quantvm.frontend.torchscript.archive import check_code
from quantvm.frontend.torchscript.loading import load_script
from tests.storage.hostile_archives import MARK, Payload, members, write


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Maps(nn.Module):
    """Writes bytes of its choice to a file as soon as it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.ones(4, dtype=torch.uint8)

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        self.w = torch.from_file("PWNED", shared=True, size=4, dtype=torch.uint8).fill_(65)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w


class Saves(Maps):
    """Likewise, by torch.save."""

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.w, self.training = state
        torch.save(self.w, "PWNED")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 2:
            raise ValueError("do not save(this) 'here': getattr is no word of it")
        return self.linear(x) + self.table[0]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "good.pt"
    torch.jit.save(torch.jit.script(Plain()), str(path))
    return path


@pytest.mark.parametrize("kind", [Maps, Saves])
def test_code_that_writes_files_while_it_is_loaded(kind):
    torch.jit.save(torch.jit.script(kind()), "hostile.pt")
    with pytest.raises(ModelImportError, match=r"hostile\.pt .*(from_file|save)"):
        load_script(Path("hostile.pt"))
    assert not Path(MARK).exists()
    torch.jit.load("hostile.pt")
    assert Path(MARK).exists(), "the attack is none: PyTorch does not run it either"


def test_a_file_of_torch_is_loaded(good):
    x = torch.randn(3, 4)
    assert torch.equal(load_script(good)(x), torch.jit.load(str(good))(x))


def test_every_field_of_a_pickle_that_is_believed(good):
    """Storages and tensors are as large as the pickle says, which PyTorch does not compare with what there is."""
    held = members(good)
    data = held["data.pkl"]
    changes = {
        "storage": {"data/0": held["data/0"][:-4]},
        "count": {"data.pkl": data.replace(b"K\x0c", b"K\x0d", 1)},  # 12 elements
        "member": {"data.pkl": data.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007", 1)},
        "class": {"data.pkl": pickle.dumps(Payload(), protocol=2)},
        "torchbind": {"data.pkl": data.replace(b"c__torch__.", b"c__torch__.torch.classes.aoti.", 1)},
        "cut": {"data.pkl": data[: len(data) // 2]},
        "no constants": {"constants.pkl": b""},
        "first version": {"model.json": b"{}"},
    }
    for name, change in changes.items():
        assert all(held.get(key) != value for key, value in change.items()), name
        with pytest.raises(ModelImportError, match=r"changed\.pt"):
            load_script(write(Path("changed.pt"), {**held, **change}))
        assert not Path(MARK).exists()


def test_a_flipped_bit_of_a_weight_is_seen(good):
    held = members(good)
    raw = bytearray(write(Path("flipped.pt"), held).read_bytes())
    raw[raw.index(held["data/0"][:16])] ^= 1
    Path("flipped.pt").write_bytes(raw)
    with pytest.raises(ModelImportError, match="Bad CRC-32"):
        load_script(Path("flipped.pt"))


def test_an_archive_that_unpacks_to_much_more_is_refused(good, monkeypatch):
    monkeypatch.setattr(torchscript_archive, "_ALWAYS_UNPACKED_BYTES", 1 << 20)
    held = {**members(good), "extra/zeros": bytes(8 << 20)}
    with pytest.raises(ModelImportError, match="unpacks to"):
        load_script(write(Path("bomb.pt"), held, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("line", [
    'torch.save(x, "a")', 'ops.aten.save(x, "a")', '(torch). # "\n  from_file("a")', '_0 = ops\n  _0.c10d.allreduce(x)',
    'getattr(torch, "save")(x, "a")', 'getattr(torch, "\\x73ave")(x, "a")', 'getattr(torch, "sa" "ve")',
    "ops.symm_mem.thing(x)", "ops.evil.thing(x)", '__torch__.torch.classes.dist_rpc.WorkerInfo("a", 1)', "f(ops)",
    "__torch__.torch.classes.other.Thing()", "x = " + "(" * 300 + "1" + ")" * 300, "x = " + "-" * 300 + "1",
    "x = 'a'", 'x = """a"""', "x = " + "not " * 300 + "True", " " * 500 + "x = 1",
])  # fmt: skip
def test_code_that_is_not_taken(line):
    with pytest.raises(ModelImportError, match=r"a\.py"):
        check_code(f"def f(self, x: Tensor) -> Tensor:\n  {line}\n  return x\n", "a.py")


@pytest.mark.parametrize("line", [
    'x = getattr(self, "0")', 'y = "torch.save(x)"', "ops.prim.RaiseException(_0, \"it's \\n\")", "y = self.saved",
    "y = ops.quantized.conv2d(x, a, 1., 0)", "y = __torch__.torchvision.ops.misc.f(x)", "# torch.save(x)",
    "a = __torch__.torch.classes.quantized.Conv2dPackedParamsBase", "y = torch.add(torch.mul(x, [1, 2]), {1: 2})",
])  # fmt: skip
def test_code_that_is_taken(line):
    check_code(f"def f(self, x: Tensor) -> Tensor:\n  {line}\n  return x\n", "a.py")
