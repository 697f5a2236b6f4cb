"""Tensors of other libraries, in and out: whose memory is whose, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm

from quantvm.compiler import compile as compile_model
from quantvm.errors import ConfigError
from quantvm.runtime.interchange import aligned_empty, given, returned, shared
from tests.quantized_modules import Quantized, image

SHAPE = (2, 3, 4, 4)


@pytest.fixture(scope="module")
def artifact():
    torch.backends.quantized.engine = "fbgemm"
    return compile_model(Quantized(F.relu), image(1, *SHAPE[1:]), engine="fbgemm", threads=1, cache=False)


@pytest.fixture
def seen(artifact, monkeypatch):
    """Returns the addresses of what TVM got and of what it made, call by call."""
    artifact.prepare()
    main, found = artifact._main, []

    def watched(*tensors):
        result = main(*tensors)
        found.append((*(address(t) for t in tensors), address(result)))
        return result

    monkeypatch.setattr(artifact, "_main", watched)
    return found


def address(tensor):
    if isinstance(tensor, torch.Tensor):
        return tensor.data_ptr()
    array = tensor if isinstance(tensor, np.ndarray) else np.from_dlpack(tensor)
    return array.__array_interface__["data"][0]


class Foreign:
    """A tensor of a library that nobody here knows."""

    def __init__(self, tensor, device=None):
        self._tensor, self._device = tensor, device

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._device or self._tensor.__dlpack_device__()


@pytest.mark.parametrize("kind", ["torch", "numpy", "tvm", "foreign"])
def test_no_copy_on_either_side(artifact, seen, kind):
    values = image(*SHAPE)
    x = {
        "torch": lambda: values.clone(),
        "numpy": lambda: aligned(values.numpy()),
        "tvm": lambda: tvm.runtime.tensor(values.numpy()),
        "foreign": lambda: Foreign(values.clone()),
    }[kind]()
    y = artifact(x)
    taken, made = seen[0]
    assert taken == address(x._tensor if kind == "foreign" else x)
    assert made == address(y)
    expected_kind = {"torch": torch.Tensor, "tvm": tvm.runtime.Tensor}.get(kind, np.ndarray)
    assert isinstance(y, expected_kind)
    expected = artifact(values.numpy())
    np.testing.assert_array_equal(np.from_dlpack(y), expected)


def aligned(x):
    placed = aligned_empty(x.shape)
    placed[:] = x
    return placed


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7)])
def test_aligned_arrays(shape):
    x = aligned_empty(shape)
    assert (x.shape, x.dtype, x.ctypes.data % 64) == (shape, np.float32, 0)
    assert x.flags.c_contiguous
    assert x.flags.writeable


def copies():
    x = image(*SHAPE)
    memory = torch.zeros(x.numel() + 1)
    memory[1:] = x.flatten()
    read_only = aligned(x.numpy())
    read_only.flags.writeable = False
    return {
        "unaligned torch": memory[1:].view(SHAPE),
        "unaligned numpy": memory.numpy()[1:].reshape(SHAPE),
        "read-only": read_only,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": x[:1].expand(SHAPE),
        "broadcast": np.broadcast_to(x.numpy()[:1], SHAPE),
        "negated": torch._neg_view(-x),
    }


@pytest.mark.parametrize("name", list(copies()))
def test_a_copy_where_it_must_be_and_the_same_result(artifact, seen, name):
    x = copies()[name]
    before = values_of(x).copy()
    y = artifact(x)
    assert seen[0][0] != address(x)
    assert isinstance(y, type(x))
    np.testing.assert_array_equal(values_of(y), artifact(before))
    np.testing.assert_array_equal(values_of(x), before)


def values_of(x):
    return x.resolve_neg().numpy() if isinstance(x, torch.Tensor) else x


def test_a_tensor_that_needs_a_gradient_is_not_copied(artifact, seen):
    x = image(*SHAPE).clone().requires_grad_()  # a clone is aligned
    y = artifact(x)
    assert seen[0] == (x.data_ptr(), y.data_ptr())
    assert not y.requires_grad


@pytest.mark.parametrize("of", ["torch", "numpy"])
def test_outputs_are_writable_and_live_on(artifact, of):
    x = image(*SHAPE) if of == "torch" else image(*SHAPE).numpy()
    first = artifact(x)
    kept = values_of(first).copy()
    for seed in range(3):
        later = artifact(image(*SHAPE, seed=seed) if of == "torch" else image(*SHAPE, seed=seed).numpy())
        later[:] = 0
    del later
    np.testing.assert_array_equal(values_of(first), kept)
    first[:] = 1
    assert (values_of(first) == 1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(SHAPE, dtype=torch.bfloat16), r"is bfloat16 \(2, 3, 4, 4\), expected float32 \(n, 3, 4, 4\)"),
        (torch.zeros(SHAPE, dtype=torch.float64), "input 0 is float64"),
        (torch.zeros(SHAPE, dtype=torch.float16), "input 0 is float16"),
        (np.zeros(SHAPE), "input 0 is float64"),
        (np.zeros(SHAPE, ml_dtypes.bfloat16), "input 0 is bfloat16"),
        (np.zeros(SHAPE, ">f4"), "input 0 is >f4"),
        (torch.quantize_per_tensor(torch.zeros(SHAPE), 0.1, 3, torch.quint8), "input 0 is quint8"),
        (torch.zeros(SHAPE, device="meta"), r"input 0 is on meta, expected the CPU; call \.cpu\(\) first"),
        (torch.zeros(SHAPE).to_sparse(), r"input 0 is a tensor of layout torch\.sparse_coo, expected a dense one"),
        (Foreign(torch.zeros(SHAPE), (2, 0)), r"input 0 is on DLPack's device \(2, 0\), expected the CPU"),
        (Foreign(torch.zeros(SHAPE, dtype=torch.bfloat16)), "input 0 is a Foreign that NumPy cannot take by DLPack"),
        (Foreign(torch.zeros(SHAPE, dtype=torch.float64)), "input 0 is float64"),
        ([[1.0, 2.0]], r"input 0 is float64 \(1, 2\)"),
    ],
)  # fmt: skip
def test_what_is_refused(artifact, wrong, message):
    with pytest.raises(ConfigError, match=message):
        artifact(wrong)


def test_a_refused_input_says_what_all_the_others_are(artifact):
    with pytest.raises(ConfigError, match="takes 1 inputs, got 2"):
        artifact(image(*SHAPE), image(*SHAPE))


def test_memory_is_given_back():
    """Neither side keeps the other's memory alive longer than needed, nor lets go of it too early."""
    x = given(aligned(image(*SHAPE).numpy()))
    tensor = shared(x, tvm)
    back = returned(tensor, "numpy")
    expected = back.copy()
    del x, tensor
    np.testing.assert_array_equal(back, expected)
