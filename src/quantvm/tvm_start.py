"""Makes TVM's import cheaper, for processes that will import torch, too; imports neither."""

from __future__ import annotations

import ctypes
import importlib.util
from contextlib import suppress
from pathlib import Path


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


def raise_first_error() -> bool:
    """Has TVM's C++ side raise its first error now; returns whether it did. To be called before torch is imported.

    With its first error, TVM reads the symbols of all libraries of the process, for stacks of C++. Its import raises
    one: it looks up a type that is not there. That costs 1.4 s if torch is loaded, and 0.4 s before.
    """
    spec = importlib.util.find_spec("tvm_ffi")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    for library in (Path(folder) / "lib" / "libtvm_ffi.so" for folder in folders):
        with suppress(OSError, AttributeError):
            name = b"no type of this name"
            key, index = _Bytes(name, len(name)), ctypes.c_int32()
            return bool(ctypes.CDLL(str(library)).TVMFFITypeKeyToIndex(ctypes.byref(key), ctypes.byref(index)) != 0)
    return False
