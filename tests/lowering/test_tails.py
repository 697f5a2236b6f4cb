"""What is fused behind a convolution has PyTorch's scalar tails: only where the shape has none, whatever the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quantvm.compiler import compile as compile_model
from quantvm.lowering.tensors import Tensor
from quantvm.lowering.torch.deferred import _tail_free
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.tensor_iterator import VEC_BLOCK, vectorised_cut
from quantvm.torch_compat import quantization_engine
from tests.quantized_modules import Body, Quantized, Together, conv2d, image

Q = torch.ops.quantized
SCALE = 2.0**-4


def _add(x: torch.Tensor, a: Any) -> torch.Tensor:
    y = a(x)
    return Q.add(y, x, y.q_scale(), 51)


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tail_free_is_what_the_vectorised_loops_leave(batch, threads):
    from tvm import tirx

    found, pytorch = set(), PyTorch("fbgemm", threads)
    for count in (64, 128, 192, 32 * VEC_BLOCK, 6 * 512 * VEC_BLOCK, 513 * VEC_BLOCK, 100, 16 * 35):
        like = Tensor(None, (tirx.Var("n", "int64") if batch is None else batch, count), "flat")
        batches = range(1, 13) if batch is None else (batch,)
        has_none = all(vectorised_cut(n * count, pytorch).all() for n in batches)
        if _tail_free(like, pytorch):
            assert has_none
        elif batch is not None:
            assert not has_none
        found.add(_tail_free(like, pytorch))
    assert found == {True, False}


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(("size", "threads"), [((5, 7), 1), ((8, 8), 1), ((45, 47), 2)], ids=str)
def test_additions_and_tables_behind_a_convolution_keep_their_tails(size, threads):
    """Sizes with tails, without any, and with one in the thread's piece."""
    torch.set_num_threads(threads)
    layer = conv2d(16, 16, 1, seed=3, scale=SCALE, zero_point=77)
    bodies = [Body(_add, layer), Body(lambda x, a: Q.hardswish(a(x), SCALE / 2, 5), layer)]
    modules = [Quantized(body, SCALE, zero_point=101) for body in bodies]
    with quantization_engine("fbgemm"):
        artifact = compile_model(Together(modules), image(1, 16, *size), threads=threads, cache=False)
        for batch in (1, 3):
            x = image(batch, 16, *size, seed=batch)
            for actual, module in zip(artifact(x), modules, strict=True):
                assert torch.equal(actual, module(x))
