"""Checks a TorchScript file before PyTorch opens it.

`torch.jit.load` runs code of the file's classes when it restores them, and trusts the sizes in its pickles. So the code
is searched for anything but computation, and each pickle is first read with classes that do nothing.
"""

from __future__ import annotations

import ast
import io
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from typing import IO, Any

import torch

from quantvm.errors import ModelImportError
from quantvm.frontend.archive_checks import OUTSIDE
from quantvm.frontend.registry import supported_ops

_MOST_TIMES_PACKED, _ALWAYS_UNPACKED_BYTES = 200, 256 << 20
_CHUNK_BYTES = 1 << 20

_TOKEN = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"|#[^\n]*|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<other>[^\s])')
_REFUSED_WORDS = OUTSIDE | {"setattr", "aoti", "_nnapi", "dist_rpc", "dist_c10d", "c10d", "symm_mem",
                            "inductor", "_c10d_functional", "_c10d_functional_autograd"}  # fmt: skip
_LIBRARIES = frozenset(("prim", "aten", "quantized", "_quantized", "quantized_decomposed", "torchvision", "torchao"))
_CLASSES = frozenset(("quantized", "xnnpack", "sparse", "rnn"))
_MOST_NESTED = 200
_MANY_SIGNS = re.compile(r"(?:(?:-|~|\*\*|\bnot\b|\bif\b[^\n]{0,40}\belse\b)\s*\(?\s*){200}")


def check_script_file(file: IO[bytes]) -> None:
    """Raises an error if opening a TorchScript file would do more than build a program.

    Args:
        file: opened, at its beginning; its position afterwards is undefined.

    Raises:
        ModelImportError: damaged, of another kind, or with code that reads or writes files, classes other than its own
            and those of quantized weights, or tensors larger than their data.
        Exception: any error of PyTorch or zipfile on damaged files.
    """
    _check_damage(file)
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)  # the reader that also loads it, so that both see the same contents
    names = reader.get_all_records()
    twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
    if twice:
        raise ModelImportError(f"it holds {twice[0]} twice")
    missing = [name for name in ("data.pkl", "constants.pkl", "version") if name not in names]
    if missing or "model.json" in names:
        raise ModelImportError(
            f"it lacks {missing[0]}" if missing else "it was written by PyTorch 1.0; save it again with a newer version"
        )
    for name in names:
        if name.startswith("code/") and name.endswith(".py"):
            check_code(bytes(reader.get_record(name)).decode("utf-8"), name)
        elif name in ("data.pkl", "constants.pkl") or name.endswith(".debug_pkl"):
            _check_pickle(bytes(reader.get_record(name)), name, reader.get_record_size, set(names))


def _check_damage(file: IO[bytes]) -> None:
    """Raises ModelImportError if a member's checksum is wrong: PyTorch does not check these."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        unpacked_bytes = sum(info.file_size for info in infos)
        size_bytes = file.seek(0, io.SEEK_END)
        if unpacked_bytes > max(_ALWAYS_UNPACKED_BYTES, _MOST_TIMES_PACKED * size_bytes):
            raise ModelImportError(
                f"it unpacks to {unpacked_bytes:,} bytes, {unpacked_bytes // size_bytes:,} times its size"
            )
        for info in infos:
            with archive.open(info) as member:
                while member.read(_CHUNK_BYTES):
                    pass


def check_code(text: str, name: str) -> None:
    """Raises ModelImportError if TorchScript code does more than compute, or is nested too deeply.

    Args:
        text: the code, as `torch.jit.save` writes it.
        name: the name of the member.
    """
    depth, before, path = 0, "", ""
    has_names_in_text = "getattr" in text
    for token in _TOKEN.finditer(text):
        if token[0][0] == "#":
            continue
        word, other = token["word"], token["other"]
        if token[0][0] == before[:1] == '"':  # adjacent strings, which TorchScript would join
            raise _refused(text, token.start(), name, "is not as torch.jit.save writes it")
        if has_names_in_text and token[0][0] == '"' and _literal(token[0]) in _REFUSED_WORDS:
            raise _refused(text, token.start(), name, f"uses {token[0]}")
        if word is not None:
            if word in _REFUSED_WORDS:
                raise _refused(text, token.start(), name, f"uses {word}")
            if before == "." and path == "ops" and word not in _LIBRARIES and not _has_converters(word):
                raise _refused(text, token.start(), name, f"uses the library of operators {word}")
            if before == "." and path.endswith("torch.classes") and word not in _CLASSES:
                raise _refused(text, token.start(), name, f"uses the class {word}")
            path = f"{path}.{word}" if before == "." else word
        elif other is not None and other != ".":
            if path == "ops":
                raise _refused(text, token.start(), name, "passes operators on")
            depth += (other in "([{") - (other in ")]}")
            if depth > _MOST_NESTED or other in "\"'`":
                raise _refused(text, token.start(), name, "is not as torch.jit.save writes it")
            path = ""
        before = token[0]
    deepest = max((len(line) - len(line.lstrip()) for line in text.splitlines()), default=0)
    if deepest > 2 * _MOST_NESTED or _MANY_SIGNS.search(text):
        raise ModelImportError(f"its code in {name} is not as torch.jit.save writes it")


def _literal(quoted: str) -> str:
    try:
        return str(ast.literal_eval(quoted))
    except (SyntaxError, ValueError):  # an escape that Python does not know stays as it is
        return quoted[1:-1]


def _has_converters(library: str) -> bool:
    return any(op.startswith(f"{library}::") for op in supported_ops())


def _refused(text: str, at: int, name: str, what: str) -> ModelImportError:
    line = text.count("\n", 0, at) + 1
    return ModelImportError(
        f"its code {what} ({name}, line {line}), and such a file is not opened: PyTorch runs code of a file when it "
        "restores its modules. Write the model without it, or load it yourself and pass the module"
    )


# ------------------------------------------------------------------ pickles


def _check_pickle(data: bytes, name: str, size_of: Callable[[str], int], names: set[str]) -> None:
    """Raises ModelImportError if a pickle is damaged, names other classes, or has tensors larger than their data."""
    folder = name.removesuffix(".pkl")
    try:
        _DryUnpickler(data, lambda key: size_of(f"{folder}/{key}") if f"{folder}/{key}" in names else -1).load()
    except (ModelImportError, MemoryError):
        raise
    except Exception as error:  # damaged pickles can raise any kind of error
        raise ModelImportError(f"{name} is damaged: {error}") from error


class _Inert:
    """A stand-in for instances of the file's classes; it does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> _Inert:
        return _Inert()


class _Storage:
    """The number of elements in a member."""

    def __init__(self, count: int) -> None:
        self.count = count


class _DryUnpickler(pickle.Unpickler):
    """Reads a pickle of TorchScript without creating its objects."""

    def __init__(self, data: bytes, size_of: Callable[[str], int]) -> None:
        super().__init__(io.BytesIO(data))
        self._size_of = size_of

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a class or function of the file."""
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return dict
        if full.startswith("__torch__."):
            found = re.match(r"__torch__\.torch\.classes\.(\w+)", full)
            if found and found[1] not in _CLASSES:
                raise ModelImportError(f"it holds an object of the class {full}, which is not opened")
            return _Inert
        if full in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_qtensor"):
            return _tensor
        if full == "torch._utils._rebuild_parameter":
            return lambda value, *_: value
        if module == "torch.jit._pickle":
            return lambda value=None, *_: value
        if module == "torch" and name.endswith("Storage"):
            return name
        if module == "torch" and name in ("per_tensor_affine", "per_channel_affine", "device"):
            return _Inert() if name != "device" else _Inert
        raise ModelImportError(f"it holds an object of the class {full}, which is not opened")

    def persistent_load(self, key: Any) -> Any:
        """Returns the stand-in for a member with a tensor's data."""
        kind, dtype, member, _, count = key
        n_bytes = _BYTES.get(str(dtype).removesuffix("Storage"))
        if kind != "storage" or n_bytes is None or type(count) is not int or count < 0:
            raise ModelImportError(f"it holds {dtype!r} of {count!r} elements, which is not a tensor")
        held = self._size_of(str(member))
        if count * n_bytes > max(held, 0):
            raise ModelImportError(
                f"the tensor {member} has {held:,} bytes, expected {count * n_bytes:,}: it is damaged"
            )
        return _Storage(count)


_BYTES = {"Bool": 1, "Byte": 1, "Char": 1, "QInt8": 1, "QUInt8": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4,
          "QInt32": 4, "Float": 4, "Long": 8, "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16}  # fmt: skip


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Inert:
    """Checks that a tensor lies within its storage, which PyTorch does not check."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or not all(
        type(number) is int and 0 <= number < 2**48 for number in numbers
    ):  # fmt: skip
        raise ModelImportError(f"it holds a tensor of shape {size} and strides {stride} at {offset}: it is damaged")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.count:
        raise ModelImportError(
            f"it holds a tensor of shape {size} and strides {stride} at {offset} in {storage.count:,} elements: it is "
            "damaged"
        )
    return _Inert()
