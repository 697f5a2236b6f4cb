"""The text of a pytest file that computes one layer of an exported program or of an ONNX file by both sides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantvm.jobs.layer_differences.repro_text import ARRAYS, INTEGERS, TEST, TITLE, encoded, indented, params
from quantvm.numerics.torch_engines import QuantParams
from quantvm.runtime.target import Machine


@dataclass(frozen=True)
class ProgramCase:
    """A layer as a program of its own, what it reads, and what computes it.

    Attributes:
        program: a `torch.fx.GraphModule` or an `onnx.ModelProto`, of real values that it quantizes first.
        inputs: integers of layers, or float32 of the model's inputs, in PyTorch's logical order.
        params: of each, its parameters; None for float32.
        channels_last: of each, whether PyTorch holds it in channels-last order.
        output: parameters of the layer.
        layer, model: where it comes from.
        reference, actual: sides, torch or onnxruntime, tvm or tvm:NUMERICS.
        machine: what TVM's side is compiled for.
    """

    program: Any
    inputs: Sequence[NDArray]
    params: Sequence[QuantParams | None]
    channels_last: Sequence[bool]
    output: QuantParams
    layer: str
    model: str
    reference: str
    actual: str
    machine: Machine


_REALS = '''

def reals():
    """The real values of the integers; quantizing them gives the integers again."""
    found = []
    for i, q in enumerate(INPUTS):
        x = torch.from_numpy(ARRAYS[f"x{{i}}"])
        if q is not None:
            scale, zero_point, _ = q
            x = (x.int() - zero_point).float() * np.float32(scale)
        found.append(x.contiguous(memory_format=torch.channels_last) if CHANNELS_LAST[i] else x)
    return found

'''

_EXPORTED = (
    TITLE
    + """
import base64
import io

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # knows the operators quantized_decomposed
{imports}
import quantvm
"""
    + ARRAYS
    + '''

class Layer(torch.nn.Module):
    """What the program computes between quantized tensors."""

    def __init__(self):
        super().__init__()
        for name in {constants}:
            self.register_buffer(name, torch.from_numpy(ARRAYS[name]))

{forward}
'''
    + _REALS
    + INTEGERS
    + '''
def on_torch():
    """What PyTorch computes."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(THREADS)
        with torch.inference_mode():
            return integers(Layer()(*reals()).numpy())
    finally:
        torch.set_num_threads(threads)


def on_tvm(numerics):
    """What TVM computes."""
    program = torch.export.export(Layer(), tuple(reals()))
    artifact = quantvm.compile(
        program, reals(), numerics=numerics, target={target!r}, threads=THREADS, batch="static", cache=False,
        verify=False,
    )
    return integers(artifact(*reals()).numpy())

'''
    + TEST
)

_ONNX = (
    TITLE
    + '''
import base64
import io

import numpy as np
import onnx
import onnxruntime
import torch

import quantvm

# the model in words; its bytes are in ARRAYS["model"]
TEXT = """
{text}
"""
'''
    + ARRAYS
    + _REALS
    + INTEGERS
    + '''
def on_onnxruntime():
    """What ONNX Runtime computes, operator by operator."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(ARRAYS["model"].tobytes(), options, providers=["CPUExecutionProvider"])
    (y_f32,) = session.run(None, {{f"x{{i}}": x.numpy() for i, x in enumerate(reals())}})
    return integers(y_f32)


def on_tvm(numerics):
    """What TVM computes."""
    model = onnx.load_from_string(ARRAYS["model"].tobytes())
    artifact = quantvm.compile(
        model, reals(), numerics=numerics, target={target!r}, threads=THREADS, batch="static", cache=False,
        verify=False,
    )
    return integers(artifact(*reals()).numpy())

'''
    + TEST
)


_IMPORTS = {
    r"\binf\b": "from math import inf",
    r"\bnan\b": "from math import nan",
    r"\bdevice\(": "from torch import device",
    r"torch\.ops\.torchao\.": "import torchao",
}
"""What the code of torch.fx takes for known."""


def program_text(case: ProgramCase) -> str:
    """Returns the file."""
    arrays: dict[str, NDArray] = {f"x{i}": x for i, x in enumerate(case.inputs)}
    if type(case.program).__name__ == "ModelProto":
        template, (constants, words) = _ONNX, _onnx_words(case.program)
    else:
        template, (constants, words) = _EXPORTED, _exported_words(case.program)
    return template.format(
        title=f"{case.layer} of {case.model}: {case.actual} against {case.reference}.",
        arrays=encoded({**arrays, **constants}),
        inputs=[None if q is None else params(q) for q in case.params],
        more=f"CHANNELS_LAST = {[bool(is_last) for is_last in case.channels_last]}  # how PyTorch holds them\n",
        output=params(case.output),
        threads=case.machine.threads,
        target=case.machine.target,
        reference=case.reference,
        actual=case.actual,
        expected=_call(case.reference),
        found=_call(case.actual),
        **words,
    )


def _call(side: str) -> str:
    kind, _, rest = side.partition(":")
    return f"on_tvm({rest or 'qdq'!r})" if kind == "tvm" else f"on_{kind}()"


def _exported_words(module: Any) -> tuple[dict[str, NDArray], dict[str, Any]]:
    constants = {node.target: getattr(module, node.target) for node in module.graph.find_nodes(op="get_attr")}
    code = module.graph.python_code("self").src
    lines = [re.sub(r";( +\w+ =)+ None$", "", line.split("  # ")[0].rstrip()) for line in code.splitlines()]
    imports = [line for word, line in _IMPORTS.items() if re.search(word, code)]
    words = {
        "constants": tuple(constants),
        "forward": indented([line for line in lines if line], 4),
        "imports": "".join(f"{line}\n" for line in imports),
    }
    return {name: tensor.detach().contiguous().numpy() for name, tensor in constants.items()}, words


def _onnx_words(model: Any) -> tuple[dict[str, NDArray], dict[str, Any]]:
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("initializer")
    text = onnx.printer.to_text(bare).strip()
    return {"model": np.frombuffer(model.SerializeToString(), np.uint8)}, {"text": text}
