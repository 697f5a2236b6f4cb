"""Where weights are looked for, what is checked, and what is said where they cannot be had."""

import dataclasses
import hashlib
import io
import time

import pytest
import torch

from quantvm.errors import ConfigError, WeightsError
from quantvm.models import get_model
from quantvm.models import weights as weights_module
from quantvm.models.quantization import Quantization
from quantvm.models.registry import QuantizedCheckpoint, WeightsFile
from quantvm.models.weights import (
    ResolvedWeights,
    WeightsUnavailableError,
    build_float_model,
    cached_path,
    resolve_weights,
    weights_at_hand,
)
from tests.models.conftest import noise_batches
from tests.storage.loopback import running_web, whole


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No cache holds anything and no host is known to be out of reach."""
    monkeypatch.setenv("QUANTVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights_module, "_unreachable_since_s", {})


@pytest.fixture
def web():
    with running_web() as server:
        yield server


@pytest.fixture
def content(tiny_model):
    file = io.BytesIO()
    torch.save(tiny_model.state_dict(), file)
    return file.getvalue()


def with_file(spec, content, *, url=None, package=None, digits=8):
    digest = hashlib.sha256(content).hexdigest()
    file = WeightsFile(f"tiny-{digest[:8]}.pth", url=url, sha256=digest[:digits], package=package)
    return dataclasses.replace(spec, weights=file)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_package_is_found_first_and_its_code_does_not_run(tiny_spec, content, tmp_path, monkeypatch):
    spec = with_file(tiny_spec, content, package="tiny-weights")
    folder = tmp_path / "site" / "tiny_weights"
    path = put(folder / "models" / spec.weights.file_name, content)
    (folder / "__init__.py").write_text("raise RuntimeError('ran')")
    put(tmp_path / "hub" / "checkpoints" / spec.weights.file_name, content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    resolved = resolve_weights(spec)
    assert (resolved.source, resolved.path, resolved.kind) == ("package tiny-weights", path, "float")
    assert resolved.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("place", "source"), [("hub", "torch.hub's cache"), ("own", "quantvm's cache")])
def test_caches_are_used_without_a_download(tiny_spec, content, tmp_path, place, source):
    spec = with_file(tiny_spec, content, url="http://127.0.0.1:9/x.pth")
    paths = {"hub": tmp_path / "hub" / "checkpoints" / spec.weights.file_name, "own": cached_path(spec.weights)}
    assert not weights_at_hand(spec)
    put(paths[place], content)
    assert weights_at_hand(spec)
    assert resolve_weights(spec).source == source


def test_damaged_cache_is_passed_over_and_told(tiny_spec, content, tmp_path, progress):
    spec = with_file(tiny_spec, content)
    damaged = put(tmp_path / "hub" / "checkpoints" / spec.weights.file_name, content[:-1])
    put(cached_path(spec.weights), content)
    assert resolve_weights(spec, progress=progress).source == "quantvm's cache"
    (note,) = progress.notes
    assert str(damaged) in note
    assert "not the published file" in note
    assert damaged.exists()


def test_download_is_checked_and_kept(tiny_spec, content, web):
    spec = with_file(tiny_spec, content, url=web.url)
    web.default = whole(content)
    resolved = resolve_weights(spec)
    assert resolved.source == f"downloaded {web.url}"
    assert resolved.path == cached_path(spec.weights)
    assert resolved.path.read_bytes() == content
    assert resolve_weights(spec).source == "quantvm's cache"
    assert len(web.requests) == 1


def test_download_of_another_content_is_refused(tiny_spec, content, web):
    spec = with_file(tiny_spec, content, url=web.url)
    web.default = whole(content + b"x")
    with pytest.raises(WeightsUnavailableError, match="got sha256"):
        resolve_weights(spec)
    assert not cached_path(spec.weights).exists()


def test_without_a_network_it_fails_in_seconds_and_says_what_to_do(tiny_spec):
    start_s = time.monotonic()
    with pytest.raises(WeightsUnavailableError) as error:
        resolve_weights(tiny_spec)
    assert time.monotonic() - start_s < 5
    assert error.value.reason.endswith("is not on this machine and cannot be downloaded: 127.0.0.1:9 cannot be reached")
    assert "quantvm fetch weights --model tiny" in error.value.remedy
    assert "--weights DIR" in error.value.remedy
    assert isinstance(error.value, WeightsError)


def test_unreachable_host_is_asked_once_for_all_models(tiny_spec, monkeypatch):
    calls = []
    real = weights_module.download
    monkeypatch.setattr(weights_module, "download", lambda *a, **k: (calls.append(a), real(*a, **k))[1])
    for _ in range(3):
        with pytest.raises(WeightsUnavailableError):
            resolve_weights(tiny_spec)
    assert len(calls) == 1


def test_missing_package_is_named_with_its_installation(tiny_spec, content):
    spec = with_file(tiny_spec, content, package="tiny-weights-that-nobody-has")
    with pytest.raises(WeightsUnavailableError, match="is not installed") as error:
        resolve_weights(spec)
    assert "pip install tiny-weights-that-nobody-has" in error.value.remedy


def test_damaged_package_is_to_be_installed_anew(tiny_spec, content, tmp_path, monkeypatch):
    spec = with_file(tiny_spec, content, package="tiny-weights")
    put(tmp_path / "site" / "tiny_weights" / "models" / spec.weights.file_name, content[:-1])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(WeightsUnavailableError, match="holds no intact tiny-") as error:
        resolve_weights(spec)
    assert "--force-reinstall tiny-weights" in error.value.remedy


@pytest.mark.parametrize("below", [".", "checkpoints", "hub/checkpoints"])
def test_folder_is_searched_for_the_official_name(tiny_spec, content, tmp_path, below):
    spec = with_file(tiny_spec, content)
    path = put(tmp_path / "mine" / below / spec.weights.file_name, content)
    assert weights_at_hand(spec, str(tmp_path / "mine"))
    resolved = resolve_weights(spec, str(tmp_path / "mine"))
    assert (resolved.path.resolve(), resolved.kind) == (path.resolve(), "float")
    assert "not the published" not in resolved.source


def test_folder_with_fine_tuned_weights_is_taken_and_told(tiny_spec, content, tmp_path, progress):
    spec = with_file(tiny_spec, content)
    put(tmp_path / "mine" / spec.weights.file_name, content + b"x")
    assert resolve_weights(spec, str(tmp_path / "mine"), progress).source.endswith("not the published one")
    assert "is not the published file" in progress.notes[0]


def test_folder_with_only_the_quantized_checkpoint(tiny_spec, content, tmp_path):
    spec = _with_quantized(tiny_spec)
    put(tmp_path / "mine" / "tiny_fbgemm.pth", content)
    assert resolve_weights(spec, str(tmp_path / "mine")).kind == "quantized"
    put(tmp_path / "mine" / spec.weights.file_name, content)
    assert resolve_weights(spec, str(tmp_path / "mine")).kind == "float"


def test_folder_without_the_file(tiny_spec, tmp_path):
    with pytest.raises(WeightsUnavailableError, match=r"holds no tiny-00000000\.pth"):
        resolve_weights(tiny_spec, str(tmp_path))
    assert not weights_at_hand(tiny_spec, str(tmp_path))


def test_misspelled_policy_is_an_error_of_its_own(tiny_spec):
    with pytest.raises(ConfigError, match=r"'ranodm' is neither .* Did you mean --weights random\?"):
        resolve_weights(tiny_spec, "ranodm")


def test_random_weights_are_always_at_hand(tiny_spec):
    assert resolve_weights(tiny_spec, "random") == ResolvedWeights("random", None, None, "random")
    assert weights_at_hand(tiny_spec, "random")


def test_torchvisions_quantized_checkpoint(tiny_spec, content, tmp_path):
    spec = _with_quantized(tiny_spec)
    put(tmp_path / "hub" / "checkpoints" / "tiny_fbgemm.pth", content)
    assert resolve_weights(spec, "torchvision-quantized").kind == "quantized"
    with pytest.raises(WeightsUnavailableError, match="publishes no quantized checkpoint"):
        resolve_weights(get_model("mobilenet_v3_small"), "torchvision-quantized")
    assert not weights_at_hand(get_model("mobilenet_v3_small"), "torchvision-quantized")


def test_float_model_has_the_files_weights(tiny_spec, tiny_model, content, tmp_path):
    path = put(tmp_path / "tiny.pth", content)
    model = build_float_model(tiny_spec, ResolvedWeights("test", path, None))
    x = torch.from_numpy(noise_batches()[0])
    assert torch.equal(model(x), tiny_model(x))
    assert not model.training


def test_keys_that_do_not_fit_are_named(tiny_spec, tiny_model, tmp_path):
    state_dict = tiny_model.state_dict()
    state_dict["stem.weight"] = state_dict.pop("conv.weight")
    with pytest.raises(WeightsError, match=r"does not fit tiny: 1 missing: conv\.weight; 1 unexpected: stem\.weight"):
        _load(tiny_spec, state_dict, tmp_path)


def test_shapes_that_do_not_fit_are_named_all_at_once(tiny_spec, tiny_model, tmp_path):
    state_dict = tiny_model.state_dict()
    state_dict["fc.weight"], state_dict["fc.bias"] = torch.zeros(7, 8), torch.zeros(7)
    message = r"2 of another shape: fc\.weight \(got \(7, 8\), expected \(5, 8\)\), fc\.bias"
    with pytest.raises(WeightsError, match=message):
        _load(tiny_spec, state_dict, tmp_path)


def test_batch_norm_counters_may_be_missing(tiny_spec, tiny_model, tmp_path):
    state_dict = dict(tiny_model.state_dict())
    del state_dict["norm.num_batches_tracked"]
    loaded = _load(tiny_spec, state_dict, tmp_path).state_dict()
    assert loaded["norm.num_batches_tracked"] == 0
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state_dict.items())


def test_damaged_file(tiny_spec, content, tmp_path):
    path = put(tmp_path / "tiny.pth", content[: len(content) // 2])
    with pytest.raises(WeightsError, match="not a readable state dict"):
        build_float_model(tiny_spec, ResolvedWeights("test", path, None))


class _Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_code_in_a_file_does_not_run(tiny_spec, tmp_path, capsys):
    with pytest.raises(WeightsError, match="not a readable state dict"):
        _load(tiny_spec, {"conv.weight": _Payload()}, tmp_path)
    assert capsys.readouterr().out == ""


def test_file_with_something_else(tiny_spec, tmp_path):
    with pytest.raises(WeightsError, match="got a list, expected a state dict"):
        _load(tiny_spec, [1, 2], tmp_path)


def test_quantized_checkpoint_is_no_float_model(tiny_spec, tmp_path):
    with pytest.raises(WeightsError, match="load_quantized_model"):
        build_float_model(tiny_spec, ResolvedWeights("test", tmp_path, None, "quantized"))


def _load(spec, value, tmp_path):
    path = tmp_path / "tiny.pth"
    torch.save(value, path)
    return build_float_model(spec, ResolvedWeights("test", path, None))


def _with_quantized(spec):
    checkpoint = QuantizedCheckpoint(WeightsFile("tiny_fbgemm.pth"), Quantization(), 0.0, 0.0)
    return dataclasses.replace(spec, quantized=checkpoint)
