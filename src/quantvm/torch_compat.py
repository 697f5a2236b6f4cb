"""The one file that knows what differs between builds and versions of torch and torchvision.

It imports torchvision beside a torch that it was not built for, lists the quantized engines of this torch, and hides
warnings that our users cannot act on. Functions import torch only when they are called, so that ``--help`` stays quick.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from quantvm.errors import ConfigError

# Registered by torchvision's C++ extension; torchvision/_meta_registrations.py refers to them even where the extension
# could not be loaded, and then its import ends in "operator torchvision::nms does not exist".
_TORCHVISION_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# Deprecation warnings of torch, and warnings about how its observers call each other: a user of quantvm cannot act on
# them. Matched from the start of the message.
_QUIET_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r"\s*torch\.ao\.quantization is deprecated", DeprecationWarning),
    (r".*torch\.jit.*is deprecated", DeprecationWarning),
    (r".*torch\.q(u?int8|int32).*deprecated", UserWarning),
    (r"Please use quant_min and quant_max to specify the range for observers", UserWarning),
    (r"TypedStorage is deprecated", UserWarning),
    (r"_aminmax is deprecated", UserWarning),
)

# Logged when torchao is imported: about its extensions for GPUs, and how it registers its enums with torch.
_QUIET_RECORDS = (
    ("torchao", r"Failed to load .*_C"),
    ("torch.utils._pytree", r".*is an Enum subclass and is now natively supported"),
)

_schemas_lock = threading.Lock()
_schemas: list[object] = []  # a torch.library.Library unregisters what it defined when it is collected


def import_torchvision() -> ModuleType:
    """Returns the torchvision module, also where its C++ extension does not fit the installed torch.

    The packaged torchvision is built against CUDA. Beside a CPU build of torch its extension does not load, and its
    import fails because two operator schemas are missing. Only then the schemas are defined first; models and
    transforms need no more.
    """
    loaded = sys.modules.get("torchvision")
    if loaded is not None and hasattr(loaded, "models"):
        return loaded
    with _schemas_lock:
        if not _torchvision_extension_loads():
            _define_missing_schemas()
        with quiet():
            import torchvision
    return torchvision


def _torchvision_extension_loads() -> bool:
    """Says whether torchvision's C++ extension fits this torch; loads it if so, as torchvision's import would."""
    import importlib.util

    import torch

    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in (*Path(folder).glob("_C.so"), *Path(folder).glob("_C*.so"), *Path(folder).glob("_C*.pyd")):
            try:
                torch.ops.load_library(str(library))
            except (ImportError, OSError):
                continue
            return True
    return False


def _define_missing_schemas() -> None:
    import torch

    missing = [
        name for name in _TORCHVISION_SCHEMAS if not torch._C._jit_get_schemas_for_operator(f"torchvision::{name}")
    ]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(_TORCHVISION_SCHEMAS[name])
        _schemas.append(library)


def torch_engines() -> tuple[str, ...]:
    """Returns the quantized engines that this build of torch supports on this machine, sorted by name."""
    import torch

    return tuple(sorted(name for name in torch.backends.quantized.supported_engines if name != "none"))


def operator_decompositions(operators: Sequence[object]) -> dict[object, Callable[..., object]]:
    """Returns PyTorch's decompositions of the given operators, for those that have one.

    There are more of them than in `torch.export.default_decompositions`, which keeps the operators of core ATen.
    """
    import torch

    return dict(torch._decomp.get_decompositions(operators))


def onednn_uses_amx() -> bool:
    """Says whether torch's oneDNN computes int8 convolutions with AMX: the CPU has it, and the user left it on."""
    import torch

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    allowed = limit.upper() in ("ALL", "DEFAULT") or "AMX" in limit.upper() or limit.upper().startswith("AVX10_2")
    return allowed and torch.cpu._is_amx_tile_supported()


def has_vnni() -> bool:
    """Says whether torch finds AVX512-VNNI: without it, engine x86 uses FBGEMM alone, and oneDNN other kernels."""
    import torch

    return torch.cpu._is_vnni_supported()


def has_avx512() -> bool:
    """Says whether torch uses its kernels for AVX512 here, which `ATEN_CPU_CAPABILITY` can forbid."""
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@contextmanager
def quantization_engine(name: str) -> Iterator[None]:
    """Makes `name` torch's quantized engine inside the block and restores the one from before.

    The engine decides how weights are packed, and for some operators which kernel runs.

    Raises:
        ConfigError: This torch build does not support the engine.
    """
    import torch

    engines = torch_engines()
    if name not in engines:
        raise ConfigError(
            f"the quantized engine {name!r} is not supported by torch {torch.__version__} on this machine; "
            f"supported: {', '.join(engines) or 'none'}. Choose one of these with --engine"
        )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextmanager
def quiet() -> Iterator[None]:
    """Hides torch's known deprecation warnings inside the block; every other warning passes."""
    with warnings.catch_warnings():
        for message, category in _QUIET_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


@contextmanager
def quiet_torchao() -> Iterator[None]:
    """Hides log records about torchao's internals when torchao is imported in the block; every other record passes."""
    filters = [(logging.getLogger(name), _does_not_match(pattern)) for name, pattern in _QUIET_RECORDS]
    for logger, keep in filters:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger, keep in filters:
            logger.removeFilter(keep)


def _does_not_match(pattern: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: re.match(pattern, record.getMessage()) is None


@cache
def trigger_quantized_warnings() -> None:
    """Makes torch give its once-per-process warnings about quantized tensors now, so that `quiet` can hide them.

    Otherwise the loader of TorchScript would print them on stderr, past Python's filters.
    """
    import torch

    with quiet():
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
