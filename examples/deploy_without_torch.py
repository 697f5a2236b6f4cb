"""Runs a compiled model where neither PyTorch nor TVM's compiler is: TVM's runtime and NumPy are enough.

    pip install apache-tvm numpy && pip install --no-deps quantvm
    python deploy_without_torch.py model.qvm

`quantvm compile` or `Artifact.save` wrote the file.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time

os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")  # TVM's runtime alone, before anything imports it

import numpy as np

import quantvm


def main(path: str) -> None:
    """Loads the model, says what it takes and returns, and times one call."""
    print("torch is", "installed" if importlib.util.find_spec("torch") else "not installed")
    model = quantvm.load(path)
    for spec in model.signature.inputs + model.signature.outputs:
        print(spec.name, spec.dtype, spec.shape_text, spec.quantization)

    x_f32 = [np.zeros([1 if d is None else d for d in spec.shape], np.float32) for spec in model.signature.inputs]
    model(*x_f32)
    start_s = time.perf_counter()
    y_f32 = model(*x_f32)
    outputs = y_f32 if isinstance(y_f32, tuple) else (y_f32,)
    print([y.shape for y in outputs], f"in {(time.perf_counter() - start_s) * 1e3:.2f} ms")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python deploy_without_torch.py model.qvm; quantvm compile MODEL -o model.qvm writes one")
    main(sys.argv[1])
