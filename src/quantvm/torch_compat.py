"""The one file that knows what differs between builds and versions of torch and torchvision.

Here: importing torchvision beside a torch that it was not built for, the quantized engines of this torch, and silence
for warnings that our users cannot act on. Everything imports torch lazily, so that ``--help`` stays quick.
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

# What torch says of its own future, or of how its observers call each other: nothing that a user of quantvm could act
# on. Matched from the start of the message.
_QUIET_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r"\s*torch\.ao\.quantization is deprecated", DeprecationWarning),
    (r".*torch\.jit.*is deprecated", DeprecationWarning),
    (r".*torch\.q(u?int8|int32).*deprecated", UserWarning),
    (r"Please use quant_min and quant_max to specify the range for observers", UserWarning),
    (r"TypedStorage is deprecated", UserWarning),
    (r"_aminmax is deprecated", UserWarning),
)

# Logged where torchao is imported: of its extensions for GPUs, and of how it registers its enums with torch.
_QUIET_RECORDS = (
    ("torchao", r"Failed to load .*_C"),
    ("torch.utils._pytree", r".*is an Enum subclass and is now natively supported"),
)

_schemas_lock = threading.Lock()
_schemas: list[object] = []  # a torch.library.Library unregisters what it defined when it is collected


def import_torchvision() -> ModuleType:
    """Returns the torchvision module, also where its C++ extension does not fit the installed torch.

    The packaged torchvision is built against CUDA; beside a CPU build of torch its extension does not load and its
    import fails for want of two operator schemas. Only in that case the schemas are defined first: models and
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
    """Returns PyTorch's rules that write operators in terms of others, of those that it has any for.

    These are more than `torch.export.default_decompositions`, which keeps what the core of ATen has.
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
    """Says whether torch finds AVX512-VNNI here: without it x86 is FBGEMM alone, and oneDNN has other kernels."""
    import torch

    return torch.cpu._is_vnni_supported()


def has_avx512() -> bool:
    """Says whether torch takes its kernels for AVX512 here, which `ATEN_CPU_CAPABILITY` can forbid."""
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
    """Hides what importing torchao logs of its own interior inside the block; every other record passes."""
    filters = [(logging.getLogger(name), _unless(pattern)) for name, pattern in _QUIET_RECORDS]
    for logger, keep in filters:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger, keep in filters:
            logger.removeFilter(keep)


def _unless(pattern: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: re.match(pattern, record.getMessage()) is None


@cache
def hear_native_warnings() -> None:
    """Has torch say of quantized tensors what it says once a process, where Python's filters hear and hide it.

    The loader of TorchScript would otherwise print it on stderr, past Python.
    """
    import torch

    with quiet():
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
