"""A child process that reads one damaged file after another and says how each ended.

A line on stdin is a JSON object with a kind, a path, and whether to compile; the answer is one on stdout.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = (2, 3, 8, 8)
_MORE_BYTES = 4 << 30
"""Address space that a file may need beyond what is taken by what was imported."""


def _module_digest(module: Any) -> str:
    from quantvm.compiler.cache_key import digest_of_module

    return digest_of_module(module)


def _example() -> list[Any]:
    import numpy as np

    return [np.zeros(SHAPE, np.float32)]


def _script(path: str) -> str:
    from quantvm.frontend import from_torch

    return _module_digest(from_torch(path, _example(), engine="fbgemm", batch="static"))


def _program(path: str) -> str:
    from quantvm.frontend import from_exported_program

    return _module_digest(from_exported_program(path))


def _onnx(path: str) -> str:
    from quantvm.frontend import from_onnx

    return _module_digest(from_onnx(path))


def _tflite(path: str) -> str:
    from quantvm.frontend import from_tflite

    return _module_digest(from_tflite(path))


def _manifest(path: str) -> str:
    from quantvm.runtime.model_file import open_model_file

    return repr(open_model_file(Path(path)).signature)


def _image(path: str) -> str:
    from quantvm.data.preprocess import load_rgb

    return hashlib.sha256(load_rgb(Path(path)).tobytes()).hexdigest()


def _schedules(path: str) -> str:
    from quantvm.kernels.schedule.schedules import Schedules, read_schedules

    return Schedules(read_schedules(Path(path)).records).digest()


READ: dict[str, Callable[[str], str]] = {
    "pt": _script, "pt2": _program, "onnx": _onnx, "tflite": _tflite, "qvm": _manifest, "json": _schedules,
    "png": _image, "jpg": _image, "tiff": _image, "webp": _image, "bmp": _image, "gif": _image,
}  # fmt: skip


def _compiled(path: str, kind: str) -> str:
    """Compiles a model, or loads a compiled one, and runs it on zeros."""
    import numpy as np

    import quantvm
    from quantvm.compiler import compile as build

    if kind == "qvm":
        artifact = quantvm.load(path)
    else:
        static = {"batch": "static", "engine": "fbgemm"} if kind == "pt" else {}
        artifact = build(path, _example() if kind == "pt" else None, target="llvm", threads=1, cache=False, **static)
    shapes = [[2 if d is None else d for d in spec.shape] for spec in artifact.signature.inputs]
    if sum(int(np.prod(shape, dtype=object)) for shape in shapes) > 1 << 24:
        return "too large to run"
    found = artifact(*(np.zeros(shape, np.float32) for shape in shapes))
    digest = hashlib.sha256()
    for y in found if isinstance(found, (list, tuple)) else [found]:
        digest.update(np.asarray(y).tobytes())
    return digest.hexdigest()


def verdict(kind: str, path: str, *, compiles: bool) -> dict[str, str]:
    """Returns how reading a file ended: `error` is a clear one, `read` has what came of it, `fault` is a finding."""
    from quantvm.errors import QuantvmError

    try:
        return {"verdict": "read", "told": _compiled(path, kind) if compiles else READ[kind](path)}
    except QuantvmError as error:
        if error.is_unexpected:
            return {"verdict": "fault", "told": f"unexpected: {error}", "stack": _stack(error.__cause__ or error)}
        return {"verdict": "error", "told": str(error)}
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        return {"verdict": "fault", "told": f"{type(error).__name__}: {error}", "stack": _stack(error)}


def _stack(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-3000:]


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    import torch  # noqa: F401

    import quantvm.frontend.entry
    import quantvm.runtime  # noqa: F401

    print(json.dumps({"verdict": "ready"}), file=answers, flush=True)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + _MORE_BYTES, taken + _MORE_BYTES))
    for line in sys.stdin:
        asked = json.loads(line)
        found = verdict(asked["kind"], asked["path"], compiles=asked["compiles"])
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
