import io

import numpy as np
import pytest
import torch
from torch import nn

from quantvm.models import get_model
from quantvm.models.random_weights import build_random_model
from quantvm.workload.runners import OptimizedFloatRunner, TorchRunner, float_runner


@pytest.fixture(scope="module")
def network():
    images_f32 = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    return build_random_model(get_model("mobilenet_v3_small"), [images_f32])


def test_an_optimized_float_network_has_the_same_answers(network):
    runner, plain = float_runner(network, threads=1), TorchRunner(network, threads=1)
    assert isinstance(runner, OptimizedFloatRunner)
    for n in (2, 3, 2):
        x_f32 = np.random.default_rng(n).standard_normal((n, 3, 32, 32), dtype=np.float32)
        first = runner.run(x_f32)
        np.testing.assert_allclose(first, plain.run(x_f32), rtol=0, atol=1e-4 * np.abs(first).max())
        for _ in range(3):  # PyTorch optimizes again after some calls
            np.testing.assert_array_equal(runner.run(x_f32), first)
    assert runner._optimized is not None
    kept = io.BytesIO()  # as workers get it
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 32, 32), check_trace=False), kept)
    kept.seek(0)
    worker = float_runner(torch.jit.load(kept), threads=1, optimized=True)
    np.testing.assert_array_equal(worker.run(x_f32), first)
    assert worker._optimized is not None


class _Decides(nn.Module):
    """What it does depends on the image's values."""

    def forward(self, x):
        return x.flatten(1) if float(x.mean()) > 0 else -x.flatten(1)


def test_a_model_of_the_users_own_runs_as_it_is():
    runner = float_runner(_Decides(), threads=1)
    x_f32 = np.ones((1, 1, 2, 2), np.float32)
    assert runner.run(x_f32).tolist() == runner.run(-x_f32).tolist() == [[1.0] * 4]


def test_what_cannot_be_traced_or_gives_other_answers_runs_as_it_is():
    x_f32 = np.ones((1, 1, 2, 2), np.float32)
    for module in (_Decides(), nn.Sequential(nn.Flatten(), nn.Dropout(1.0))):
        runner = OptimizedFloatRunner(module, TorchRunner(module.eval(), threads=1), threads=1)
        runner._optimize = lambda x_f32: TorchRunner(lambda x: torch.zeros(1, 4), threads=1)
        assert runner.run(x_f32).tolist() == [[1.0] * 4]
    runner = OptimizedFloatRunner(len, TorchRunner(lambda x: x.flatten(1), threads=1), threads=1)
    assert runner.run(x_f32).tolist() == [[1.0] * 4]
