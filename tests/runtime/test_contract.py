"""What every runner and every artifact promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

import quantvm
from quantvm.errors import CompileError, ConfigError, ModelImportError
from quantvm.frontend import from_torch
from quantvm.lowering import LoweringOptions, lower
from quantvm.runtime.target import cpu_features, cpu_model, host_target, parse_target, physical_cores, target_text
from quantvm.tvm_compat import build_executable, native_target
from quantvm.workload.runners import TorchRunner, TvmRunner
from tests.quantized_modules import convolutions_here

from ..lowering.test_passes import Network


@pytest.fixture(scope="module")
def network():
    return Network().eval()


@pytest.fixture(scope="module")
def artifact(network):
    return quantvm.compile(network, np.zeros((1, 3, 9, 9), np.float32), engine="fbgemm", threads=1)


@pytest.fixture(params=["torch", "tvm"])
def runner(request, network, artifact):
    return TorchRunner(network, threads=1) if request.param == "torch" else TvmRunner(artifact, threads=1)


def images(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, 9, 9)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_runner_maps_a_batch_to_float32_outputs_and_repeats_itself(runner, batch):
    first, second = runner.run(images(batch)), runner.run(images(batch))
    assert first.shape == (batch, 5)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)


def test_the_caller_owns_the_result(runner):
    first = runner.run(images(2))
    kept = first.copy()
    runner.run(images(2, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_both_runners_give_the_same_bits(network, artifact):
    for batch in (1, 3):
        x = images(batch)
        np.testing.assert_array_equal(
            TvmRunner(artifact, threads=1).run(x), TorchRunner(network, threads=1).run(x)
        )  # fmt: skip


def test_numpy_in_numpy_out_torch_in_torch_out(artifact):
    x = images(2)
    y_numpy, y_torch = artifact(x), artifact(torch.from_numpy(x))
    assert isinstance(y_numpy, np.ndarray)
    assert isinstance(y_torch, torch.Tensor)
    np.testing.assert_array_equal(y_numpy, y_torch.numpy())


def test_any_memory_will_do(artifact):
    x = images(2)
    expected = artifact(x)
    read_only = x.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    strided = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for same in (read_only, unaligned, strided):
        np.testing.assert_array_equal(artifact(same), expected)
    channels_last = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(artifact(channels_last).numpy(), expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((images(1).astype(np.float64),), "float64"),
        ((images(1)[:, :, :8],), r"expected float32 \(n, 3, 9, 9\)"),
        ((images(1)[:0],), "no images"),
        ((images(1), images(1)), "takes 1 inputs, got 2"),
    ],
)
def test_wrong_inputs_say_what_was_expected(artifact, inputs, message):
    with pytest.raises(ConfigError, match=message):
        artifact(*inputs)


def test_the_report_says_what_was_made(artifact):
    report = artifact.report
    assert report.engine == "fbgemm"
    assert report.int8_mac_share == 1.0
    assert report.target == host_target()
    assert report.compile_s > 0
    assert report.output_scale == pytest.approx(0.1)


def test_a_static_batch_takes_that_batch_only(network):
    static = quantvm.compile(network, images(2), engine="fbgemm", threads=1, batch="static")
    assert static(images(2)).shape == (2, 5)
    with pytest.raises(ConfigError, match=r"\(2, 3, 9, 9\)"):
        static(images(1))


@pytest.mark.parametrize("mcpu", ["x86-64", "haswell", "cascadelake"])
def test_other_cpus_code_gives_the_same_bits(network, artifact, mcpu):
    needs = {"haswell": {"avx2"}, "cascadelake": {"avx512_vnni"}}.get(mcpu, set())
    if not needs <= set(cpu_features()):
        pytest.skip(f"this CPU cannot run code for {mcpu}")
    other = quantvm.compile(network, images(1), engine="fbgemm", threads=1, target=f"llvm -mcpu={mcpu}")
    np.testing.assert_array_equal(other(images(3)), artifact(images(3)))


def test_the_portable_dot_product_gives_the_same_bits(network, artifact):
    module = from_torch(network, images(1), engine="fbgemm")
    lowered, report = lower(module, LoweringOptions(native_target(), threads=1, dot="portable"))
    assert convolutions_here(report.kernels, native_target(), "portable") > 0
    machine = relax.VirtualMachine(build_executable(lowered, native_target()), tvm.cpu())
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(images(3))).numpy(), artifact(images(3)))


@pytest.mark.parametrize(
    ("text", "message"),
    [("cuda", "expected 'native'"), ("llvm -mcpu=i-have-none", "knows no CPU"), ("llvm -O9", "unknown options -O9")],
)
def test_targets_that_cannot_be_served(text, message):
    with pytest.raises(CompileError, match=message):
        parse_target(text)


def test_a_target_prints_as_it_is_written():
    text = "llvm -mcpu=cascadelake -mattr=+avx512vnni"
    assert target_text(parse_target(text)) == text


def test_the_processor_is_described():
    assert cpu_model()
    assert physical_cores() >= 1


def test_wrong_options_and_models(network):
    with pytest.raises(ConfigError, match="dynamic or static"):
        quantvm.compile(network, images(1), batch="both")
    with pytest.raises(ModelImportError, match="float model"):
        quantvm.compile(torch.nn.Conv2d(3, 4, 3).eval(), images(1))
