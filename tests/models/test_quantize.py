"""Eager static quantization: schemes, engines, calibration and what is refused."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from quantvm.choices import ENGINES, SCHEMES
from quantvm.errors import ConfigError, DataError, WeightsError
from quantvm.models.quantization import Quantization
from quantvm.models.quantize import load_quantized_model, quantize
from quantvm.models.registry import QuantizedCheckpoint, WeightsFile
from quantvm.models.weights import ResolvedWeights
from quantvm.torch_compat import quantization_engine, quiet, torch_engines
from tests.models.conftest import noise_batches

available_engines = [name for name in ENGINES if name in torch_engines()]


@pytest.mark.parametrize("engine", available_engines)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_and_engine_gives_a_model_near_the_float_one(tiny_model, scheme, engine):
    batches = noise_batches(4, 8)
    with warnings.catch_warnings():
        if engine != "onednn":  # where the CPU has no VNNI torch warns of onednn, rightly
            warnings.simplefilter("error")
        quantized = quantize(tiny_model, batches, scheme=scheme, engine=engine)
    x = torch.from_numpy(batches[0])
    expected, actual = tiny_model(x), quantized(x)
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()
    assert quantized.quantvm_engine == engine
    assert quantized.quantvm_scheme == scheme
    assert quantized.quantvm_n_calibration == 32
    weight = quantized.conv.weight()
    assert weight.qscheme() == (torch.per_channel_affine if scheme == "per-channel" else torch.per_tensor_affine)


def test_float_model_and_engine_are_left_as_they_were(tiny_model):
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    engine = torch.backends.quantized.engine
    quantize(tiny_model, noise_batches(), engine="qnnpack" if engine != "qnnpack" else "fbgemm")
    assert torch.backends.quantized.engine == engine
    assert type(tiny_model.conv) is nn.Conv2d
    assert not hasattr(tiny_model, "qconfig")
    after = tiny_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_same_batches_give_the_same_model(tiny_model):
    x = torch.from_numpy(noise_batches(seed=7)[0])
    first, second = (quantize(tiny_model, noise_batches()) for _ in range(2))
    assert torch.equal(first(x), second(x))
    assert first.conv.scale == second.conv.scale


@pytest.mark.parametrize(("scheme", "highest"), [("per-channel", 127), ("per-tensor", 255)])
def test_fbgemm_range_is_reduced_per_channel_only(tiny_model, scheme, highest):
    # One batch, so that a moving average is the maximum itself; the stub's scale then spans exactly the range.
    batch = np.linspace(-1, 1, 3 * 16 * 16, dtype=np.float32).reshape(1, 3, 16, 16)
    quantized = quantize(tiny_model, [batch], scheme=scheme, engine="fbgemm")
    assert float(quantized.quant.scale) == pytest.approx(2 / highest, rel=0.02)


def test_per_tensor_observes_a_moving_average(tiny_model):
    ones = np.ones((1, 3, 16, 16), np.float32)
    quantized = quantize(tiny_model, [ones, 2 * ones], scheme="per-tensor")
    assert float(quantized.quant.scale) * 255 == pytest.approx(1 + 0.01 * (2 - 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_per_channel_weights_have_a_scale_for_each_channel(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on its own reduce_range, and on onednn where the CPU has no VNNI
        qconfig = Quantization(engine=engine).qconfig()
        weight, activation = qconfig.weight(), qconfig.activation()
    assert weight.qscheme == torch.per_channel_symmetric
    assert activation.reduce_range is (engine in ("fbgemm", "x86"))


def test_every_batch_is_reported(tiny_model, progress):
    quantize(tiny_model, noise_batches(3), progress=progress)
    (task,) = progress.tasks
    assert (task["total"], task["done"]) == (3, 3)
    quantize(tiny_model, iter(noise_batches(3)), progress=progress)
    assert (progress.tasks[1]["total"], progress.tasks[1]["done"]) == (None, 3)


def test_quantized_model_traces_to_the_same_bits(tiny_model):
    quantized = quantize(tiny_model, noise_batches())
    x = torch.from_numpy(noise_batches(seed=3)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(quantized, x)
    assert torch.equal(traced(x), quantized(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "per-row"}, r"unknown quantization scheme 'per-row'; expected one of per-channel, per-tensor"),
        ({"engine": "tflite"}, r"unknown quantized engine 'tflite'; expected one of fbgemm, x86, onednn, qnnpack"),
    ],
)
def test_unknown_scheme_or_engine(tiny_model, options, message):
    with pytest.raises(ConfigError, match=message):
        quantize(tiny_model, noise_batches(), **options)


def test_engine_that_this_torch_lacks(tiny_model, monkeypatch):
    monkeypatch.setattr("quantvm.torch_compat.torch_engines", lambda: ("fbgemm",))
    with pytest.raises(ConfigError, match=r"'qnnpack' is not supported .* supported: fbgemm"):
        quantize(tiny_model, noise_batches(), engine="qnnpack")


def test_no_batches(tiny_model):
    with pytest.raises(ConfigError, match="no calibration images"):
        quantize(tiny_model, [])


def test_nan_in_a_batch_is_located(tiny_model):
    batches = noise_batches(3)
    batches[1][0, 0, 0, :2] = np.nan
    with pytest.raises(DataError, match="calibration batch 1: 2 of 1536 values are NaN"):
        quantize(tiny_model, batches)


def test_tensors_calibrate_as_arrays_do(tiny_model):
    batches = noise_batches()
    x = torch.from_numpy(batches[0])
    tensors = [torch.from_numpy(batch).requires_grad_() for batch in batches]
    assert torch.equal(quantize(tiny_model, tensors)(x), quantize(tiny_model, batches)(x))


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (np.zeros((3, 16, 16), np.float32), r"float32 cpu ndarray of shape \(3, 16, 16\)"),
        (np.zeros((1, 3, 16, 16)), "float64 cpu ndarray"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16), r"torch.bfloat16 cpu Tensor of shape \(1, 3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, device="meta"), "torch.float32 meta Tensor"),
        ([torch.zeros(1, 3, 16, 16)], "list"),
    ],
)
def test_batch_of_another_shape_or_dtype(tiny_model, batch, got):
    with pytest.raises(DataError, match=rf"got {got}.*; expected \(N, 3, H, W\), float32"):
        quantize(tiny_model, [batch])


def test_damaged_weights_are_noticed(tiny_model):
    tiny_model.fc.weight.data[0, 0] = torch.nan
    tiny_model.norm.running_var[0] = torch.inf
    message = r"2 tensors of TinyNet .*norm\.running_var, fc\.weight"
    with pytest.raises(WeightsError, match=message):
        quantize(tiny_model, noise_batches())


@pytest.mark.filterwarnings("ignore:torch.inf detected:UserWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_overflow_is_located(tiny_model, scheme):
    batches = noise_batches(2)
    batches[1] = np.float32(3e38) * np.sign(batches[1])
    with pytest.raises(DataError, match="calibration batch 1: the float model overflows"):
        quantize(tiny_model, batches, scheme=scheme)


def test_plain_module_is_refused():
    with pytest.raises(ConfigError, match="Sequential is not quantizable: it has no QuantStub"):
        quantize(nn.Sequential(nn.Conv2d(3, 4, 3)), noise_batches())


def test_quantized_module_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="quantized already"):
        quantize(quantize(tiny_model, noise_batches()), noise_batches())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("zip_format", [True, False])  # the oldest published checkpoints are not zip files
def test_quantized_checkpoint_loads_to_the_same_bits(tiny_model, tiny_spec, tmp_path, scheme, zip_format):
    quantized = quantize(tiny_model, noise_batches(), scheme=scheme)
    path = tmp_path / "tiny_fbgemm.pth"
    torch.save(quantized.state_dict(), path, _use_new_zipfile_serialization=zip_format)
    spec = _with_checkpoint(tiny_spec, scheme)
    loaded = load_quantized_model(spec, ResolvedWeights("test", path, None, "quantized"))
    x = torch.from_numpy(noise_batches(seed=5)[0])
    assert torch.equal(loaded(x), quantized(x))
    assert (loaded.quantvm_engine, loaded.quantvm_scheme, loaded.quantvm_n_calibration) == ("fbgemm", scheme, 0)


def test_quantized_checkpoint_packs_for_the_asked_engine(tiny_model, tiny_spec, tmp_path):
    path = tmp_path / "tiny_fbgemm.pth"
    torch.save(quantize(tiny_model, noise_batches()).state_dict(), path)
    weights = ResolvedWeights("test", path, None, "quantized")
    loaded = load_quantized_model(_with_checkpoint(tiny_spec, "per-channel"), weights, engine="qnnpack")
    assert loaded.quantvm_engine == "qnnpack"


def test_float_file_is_no_quantized_checkpoint(tiny_model, tiny_spec, tmp_path):
    path = tmp_path / "tiny_fbgemm.pth"
    torch.save(tiny_model.state_dict(), path)
    weights = ResolvedWeights("test", path, None, "quantized")
    with pytest.raises(WeightsError, match=r"does not fit the quantized tiny: .*missing.*conv\.scale"):
        load_quantized_model(_with_checkpoint(tiny_spec, "per-channel"), weights)


def test_quantized_checkpoint_is_asked_of_a_model_without_one(tiny_spec):
    with pytest.raises(WeightsError, match="expected a quantized checkpoint"):
        load_quantized_model(tiny_spec, ResolvedWeights("random", None, None, "random"))


def _with_checkpoint(spec, scheme):
    import dataclasses

    checkpoint = QuantizedCheckpoint(WeightsFile("tiny_fbgemm.pth"), Quantization(scheme), 0.0, 0.0)
    return dataclasses.replace(spec, quantized=checkpoint)


def test_relu6_is_not_scrambled_under_qnnpack(tiny_model):
    """torch's own quantized ReLU6 of a channels-last tensor is; the quantized model must stay near the float one."""
    batches = noise_batches(2, 4)
    quantized = quantize(tiny_model, batches, engine="qnnpack")
    seen = []
    relu6 = quantized.relu6
    relu6.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad(), quantization_engine("qnnpack"), quiet():
        actual = quantized(torch.from_numpy(batches[0]))
        expected = tiny_model(torch.from_numpy(batches[0]))
    ((x, y),) = seen
    assert torch.equal(y.dequantize(), x.dequantize().clamp(0, 6))
    assert x.stride() == y.stride()
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()
