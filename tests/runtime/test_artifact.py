"""Batches of any size and kind through one compiled network, threads, and what `compile` refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from tvm import relax

from quantvm.compiler import compile as compile_model
from quantvm.errors import CompileError, ConfigError, ModelImportError
from quantvm.frontend import from_torch
from quantvm.kernels.conv.dot import select_dot
from quantvm.kernels.isa import select_isa
from quantvm.lowering import LoweringOptions, lower
from quantvm.runtime import Artifact
from quantvm.runtime.target import cpu_features, parse_target
from quantvm.tvm_compat import build_executable, native_target
from quantvm.workload.runners import TorchRunner, TvmRunner
from tests.quantized_modules import Quantized, SmallNetwork, convolutions_here, image

Q = torch.ops.quantized
SHAPE = (3, 19, 17)


pytestmark = pytest.mark.usefixtures("one_torch_thread", "fbgemm")


@pytest.fixture(scope="module")
def network():
    torch.backends.quantized.engine = "fbgemm"
    return SmallNetwork()


@pytest.fixture(scope="module")
def artifact(network):
    return compile_model(network, image(1, *SHAPE), engine="fbgemm", threads=1)


@pytest.fixture(params=["torch", "tvm"])
def runner(request, network, artifact):
    return TorchRunner(network, threads=1) if request.param == "torch" else TvmRunner(artifact, threads=1)


# ------------------------------------------------------------------ runners


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_runner_contract(runner, batch):
    x = image(batch, *SHAPE, seed=batch).numpy()
    before = x.copy()
    y = runner.run(x)
    assert (y.shape, y.dtype) == ((batch, 10), np.float32)
    np.testing.assert_array_equal(x, before, err_msg="the input was written to")
    np.testing.assert_array_equal(runner.run(x), y)
    alone = np.concatenate([runner.run(x[i : i + 1]) for i in range(batch)])
    assert alone.shape == y.shape


def test_caller_owns_the_results(runner):
    first = runner.run(image(2, *SHAPE).numpy())
    second = runner.run(image(2, *SHAPE, seed=1).numpy())
    assert not np.shares_memory(first, second)
    kept = first.copy()
    second[:] = 0
    np.testing.assert_array_equal(first, kept)


def test_runners_have_names(network, artifact):
    assert (TorchRunner(network, threads=1).name, TvmRunner(artifact, threads=1).name) == ("torch", "tvm")


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 33])
def test_bits_of_every_batch(network, artifact, batch):
    x = image(batch, *SHAPE, seed=batch)
    expected = network(x)
    assert torch.equal(artifact(x), expected)
    assert expected.unique().numel() > 3, "the comparison would tell nothing"


def test_bits_with_two_threads_of_pytorch():
    """PyTorch gives each thread a piece of a large tensor, with a scalar tail of its own."""

    def body(x):  # powers of two, for ties
        return Q.add(F.relu(x), x, 2.0**-4, 101), Q.hardswish(x, 0.0417, 9)

    module = Quantized(body, 2.0**-5, 128)
    x = image(1, 3, 113, 107)  # 36,273 elements, more than 32,768
    one, two = (compile_model(module, x, threads=threads) for threads in (1, 2))
    assert (one.report.threads, two.report.threads) == (1, 2)
    for threads, artifact in ((1, one), (2, two)):
        torch.set_num_threads(threads)
        for batch in (1, 2):
            x = image(batch, 3, 113, 107, seed=batch)
            assert [torch.equal(a, e) for a, e in zip(artifact(x), module(x), strict=True)] == [True, True]
    assert not torch.equal(one(x)[0], two(x)[0]), "the threads make no difference here"


def test_threads_of_tvm_change_no_bits(artifact):
    x = image(5, *SHAPE).numpy()
    one = TvmRunner(artifact, threads=1).run(x)
    np.testing.assert_array_equal(TvmRunner(artifact, threads=2).run(x), one)


def test_two_artifacts_do_not_disturb_each_other(artifact):
    other = compile_model(Quantized(F.relu), image(1, 3, 4, 4), threads=1)
    x = image(2, *SHAPE)
    expected = artifact(x)
    other(image(7, 3, 4, 4))
    assert torch.equal(artifact(x), expected)


def test_calls_from_several_threads(network, artifact):
    xs = [image(1 + i % 3, *SHAPE, seed=i) for i in range(12)]
    expected = [network(x) for x in xs]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(artifact, xs))
    assert [torch.equal(a, e) for a, e in zip(results, expected, strict=True)] == [True] * len(xs)


# ------------------------------------------------------------------ inputs and outputs


@pytest.fixture(scope="module")
def pair():
    """Two inputs, three outputs."""
    torch.backends.quantized.engine = "fbgemm"
    module = Quantized(lambda a, b: (Q.add(a, b, 0.1, 3), (a, F.relu(b))))
    return module, compile_model(module, (image(1, 3, 4, 4), image(1, 3, 4, 4)), engine="fbgemm", threads=1)


def test_several_inputs_and_outputs(pair):
    module, artifact = pair
    assert artifact.input_shapes == ((None, 3, 4, 4), (None, 3, 4, 4))
    a, b = image(2, 3, 4, 4), image(2, 3, 4, 4, seed=1)
    first, (second, third) = module(a, b)
    results = artifact(a, b)
    assert isinstance(results, tuple)
    (one, (two, three)) = results  # nested as the model nests them
    assert [torch.equal(r, e) for r, e in zip((one, two, three), (first, second, third), strict=True)] == [True] * 3
    array, arrays = artifact(a.numpy(), b.numpy())
    assert [type(y) for y in (array, *arrays)] == [np.ndarray] * 3


def test_outputs_share_no_memory_with_inputs():
    artifact = compile_model(Quantized(lambda x: x), image(1, 3, 4, 4), threads=1)
    x = image(1, 3, 4, 4)
    y = artifact(x)
    kept = y.clone()
    x.zero_()
    assert torch.equal(y, kept)


def test_tensor_that_needs_a_gradient(artifact, network):
    x = image(1, *SHAPE).requires_grad_()
    y = artifact(x)
    assert not y.requires_grad
    assert torch.equal(y, network(x.detach()))


@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_any_alignment(artifact, offset):
    x = image(2, *SHAPE).numpy()
    memory = np.zeros(x.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    placed = memory[start : start + x.nbytes].view(np.float32).reshape(x.shape)
    placed[:] = x
    np.testing.assert_array_equal(artifact(placed), artifact(x))


@pytest.mark.parametrize("order", ["F", "reversed", "every other"])
def test_any_strides(artifact, order):
    x = image(2, *SHAPE).numpy()
    strided = {
        "F": np.asfortranarray(x),
        "reversed": np.ascontiguousarray(x[::-1])[::-1],
        "every other": np.repeat(x, 2, axis=3)[..., ::2],
    }[order]
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(artifact(strided), artifact(x))


def test_empty_call(artifact):
    with pytest.raises(ConfigError, match="takes 1 inputs, got 0"):
        artifact()


def test_all_wrong_inputs_are_named_at_once(pair):
    _, artifact = pair
    with pytest.raises(ConfigError) as caught:
        artifact(np.zeros((1, 3, 4, 5), np.float32), np.zeros((1, 3, 4, 4), np.uint8))
    message = str(caught.value)
    assert "input 0 is float32 (1, 3, 4, 5), expected float32 (n, 3, 4, 4)" in message
    assert "input 1 is uint8 (1, 3, 4, 4), expected float32 (n, 3, 4, 4)" in message


def test_batches_of_two_inputs_must_agree(pair):
    _, artifact = pair
    with pytest.raises(ConfigError, match="batch"):
        artifact(image(2, 3, 4, 4), image(3, 3, 4, 4))


@pytest.mark.parametrize(
    "wrong", ["image.jpg", [[1.0]], np.zeros((3, 19, 17), np.float32), np.zeros((1, 3, 19, 17), np.float16)]
)
def test_what_is_no_batch(artifact, wrong):
    with pytest.raises(ConfigError, match=r"expected float32 \(n, 3, 19, 17\)"):
        artifact(wrong)


def test_none_is_no_input(artifact):
    with pytest.raises(ConfigError, match="takes 1 inputs, got 0"):
        artifact(None)


# ------------------------------------------------------------------ targets, dot products and options


@pytest.mark.parametrize(
    ("mcpu", "needs", "dot", "chosen"),
    [
        ("haswell", {"avx2", "fma"}, None, "avx2"),
        ("skylake-avx512", {"avx512f", "avx512bw", "avx512vl"}, None, "avx512"),
        ("cascadelake", {"avx512_vnni"}, None, "vnni"),
        ("cascadelake", {"avx512_vnni"}, "avx512", "avx512"),
        ("cascadelake", {"avx512_vnni"}, "portable", "portable"),
    ],
)
def test_bits_of_other_targets_and_dot_products(network, mcpu, needs, dot, chosen):
    if not needs <= set(cpu_features()):
        pytest.skip(f"this CPU cannot run code for {mcpu}")
    target = parse_target(f"llvm -mcpu={mcpu}")
    module = from_torch(network, image(1, *SHAPE), engine="fbgemm")
    lowered, report = lower(module, LoweringOptions(target, threads=1, dot=dot))
    assert select_dot(target, dot).name == chosen
    assert convolutions_here(report.kernels, target, dot) > 0
    machine = relax.VirtualMachine(build_executable(lowered, target), tvm.cpu())
    for batch in (1, 3):
        x = image(batch, *SHAPE, seed=batch)
        result = machine["main"](tvm.runtime.tensor(x.numpy())).numpy()
        np.testing.assert_array_equal(result, network(x).numpy())


def test_dot_product_that_the_target_lacks(network):
    module = from_torch(network, image(1, *SHAPE))
    with pytest.raises(CompileError, match=r"dot product vnni requires .*avx512vnni.*lacks"):
        lower(module, LoweringOptions(parse_target("llvm -mcpu=haswell"), dot="vnni"))
    with pytest.raises(CompileError, match=r"unknown dot product 'gpu', expected one of .*'portable'"):
        lower(module, LoweringOptions(parse_target("native"), dot="gpu"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": "huge"}, ConfigError, "unknown batch 'huge', expected dynamic or static"),
        ({"engine": "mkldnn"}, ModelImportError, "unknown quantization engine 'mkldnn'"),
        ({"numerics": "exact"}, CompileError, "unknown numerics 'exact', expected torch, qdq, integer"),
        ({"target": "llvm -mcpu=z80"}, CompileError, "knows no CPU 'z80'"),
        ({"threads": 0}, ConfigError, "threads"),
        ({"threads": -2}, ConfigError, "threads"),
    ],
)
def test_options_that_compile_refuses(network, options, error, message):
    with pytest.raises(error, match=message):
        compile_model(network, image(1, *SHAPE), **options)


def test_report_names_the_work(artifact):
    report = artifact.report
    assert isinstance(artifact, Artifact)
    assert report.engine == "fbgemm"
    assert report.numerics == "torch"
    assert report.float_ops == ()
    assert report.output_scale == float(np.float32(0.8))
    fused = select_isa(native_target()).byte_tables  # a hardswish and a hardsigmoid
    assert sum(report.kernels.values()) == (14 if fused else 16)
    assert report.import_s > 0
