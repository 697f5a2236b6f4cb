"""The attributes of modules in QDQ form, and of functions that the lowering makes: the only place with their names.

An importer writes them once, the lowering reads them, and every pass keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantvm.numerics.pytorch import Cpu, PyTorch

if TYPE_CHECKING:
    import tvm

ENGINE = "quantvm.engine"
"""Of a module: the engine whose arithmetic the quantized operators have; one of PyTorch's, pt2e, onnx or tflite."""
ONEDNN_AMX = "quantvm.numerics.onednn_amx"
"""Of a module: 1 if this PyTorch's oneDNN computes with AMX here, which decides a few last bits."""
VNNI = "quantvm.vnni"
"""Of a module: 1 if this PyTorch finds AVX512-VNNI here; decides x86's convolution library and saturation."""
AVX512 = "quantvm.avx512"
"""Of a module: 1 if this PyTorch has its kernels for AVX512, which decides where the tails of average pools begin."""
CHANNELS_LAST = "quantvm.channels_last"
"""Of a module: the inputs, by number, that PyTorch holds in channels-last order; they are passed as NCHW."""
TORCH_TABLES = "quantvm.torch_tables"
"""Of a module: `unary_tables.table_key` -> 512 bytes in hexadecimal, as `torch_table` has them."""
INTERFACE = "quantvm.interface"
"""Of a module: JSON with the names of the inputs, and the structure of the outputs where it needs describing."""
KERNEL = "quantvm.kernel"
"""Of a PrimFunc: the name of its kernel."""
COMPOSITE = "Composite"
"""Of a Relax function: which quantized operator it is, with `COMPOSITE_PREFIX`; the attribute is TVM's."""
COMPOSITE_PREFIX = "quantvm."


def engine_of(module: tvm.IRModule, default: str = "fbgemm") -> str:
    """Returns the engine whose arithmetic a module has; `default` if it does not say."""
    return str(_read(module, ENGINE, default))


def pytorch_of(module: tvm.IRModule, *, avx512: bool) -> PyTorch:
    """Returns the PyTorch that a module reproduces, with one thread; a module is for any number of them.

    Args:
        module: an imported module.
        avx512: whether PyTorch has its kernels for AVX512, if the module does not say.
    """
    cpu = Cpu(
        avx512=bool(_read(module, AVX512, avx512)), vnni=bool(_read(module, VNNI, 1)),
        onednn_amx=bool(_read(module, ONEDNN_AMX, 0)),
    )  # fmt: skip
    return PyTorch(engine_of(module), cpu=cpu)


def of_pytorch(pytorch: PyTorch) -> dict[str, Any]:
    """Returns the attributes of a module that reproduces a PyTorch."""
    cpu = pytorch.cpu
    return {
        ENGINE: pytorch.engine, ONEDNN_AMX: int(cpu.onednn_amx), VNNI: int(cpu.vnni), AVX512: int(cpu.avx512),
    }  # fmt: skip


def channels_last_inputs(module: tvm.IRModule) -> frozenset[int]:
    """Returns the numbers of the inputs that PyTorch would hold in channels-last order."""
    return frozenset(int(number) for number in _read(module, CHANNELS_LAST, ()))


def torch_tables(module: tvm.IRModule) -> dict[str, str]:
    """Returns the tables of unary operators that PyTorch itself computed."""
    return {str(key): str(digits) for key, digits in _read(module, TORCH_TABLES, {}).items()}


def interface_of(module: tvm.IRModule) -> dict[str, Any]:
    """Returns the names of the inputs, `inputs`, and the structure of the outputs, `outputs`; empty if not known."""
    return json.loads(str(_read(module, INTERFACE, "{}")))


def with_attributes_of(module: tvm.IRModule, source: tvm.IRModule) -> tvm.IRModule:
    """Returns the module with the attributes of `source`, from which it was made."""
    return module.with_attrs(dict(source.attrs)) if source.attrs else module


def composite_name(function: Any) -> str | None:
    """Returns the quantized operator of a composite function, without prefix; None for any other function."""
    attrs: Mapping[str, Any] = getattr(function, "attrs", None) or {}
    return str(attrs[COMPOSITE]).removeprefix(COMPOSITE_PREFIX) if COMPOSITE in attrs else None


def kernel_name(function: Any) -> str | None:
    """Returns the name of a function's kernel; None if it is not a kernel."""
    attrs: Mapping[str, Any] = getattr(function, "attrs", None) or {}
    return str(attrs[KERNEL]) if KERNEL in attrs else None


def _read(module: tvm.IRModule, name: str, default: Any) -> Any:
    return module.attrs[name] if module.attrs and name in module.attrs else default
