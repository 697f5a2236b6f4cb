"""TFLite files -> Relax in QDQ form, through TVM's own importer; knows no torch.

The form is dequantize, operate in float, quantize. With the engine `tflite`, averages, means and changes of parameters
round like TFLite's kernels. TFLite's other kernels requantize in fixed point, so single integers may differ by one from
its interpreter's (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import tvm

from quantvm.errors import ModelImportError, QuantvmError, UnsupportedOpError, last_line
from quantvm.frontend.program_inputs import bind_batch, importing
from quantvm.frontend.qdq_form import in_qdq_form
from quantvm.qdq import attributes
from quantvm.qdq.bindings import definitions
from quantvm.qdq.expressions import is_call
from quantvm.storage.regular_files import open_regular
from quantvm.tvm_compat import closed_on_error

from .channels_first import channels_first

ENGINE = "tflite"
_MAGIC = b"TFL3"


def from_tflite(
    model_or_path: Any, *, example_inputs: Sequence[Any] | None = None, batch: str = "dynamic"
) -> tvm.IRModule:
    """Returns the model in Relax QDQ form; images are (N, H, W, C) at its inputs and outputs, as in the file.

    Args:
        model_or_path: the path of a `.tflite` file, or its bytes.
        example_inputs: their shapes are checked against the model's.
        batch: static and dynamic are the same: the file gives the batch size, mostly 1.

    Raises:
        UnsupportedOpError: operators that TVM's importer lacks, all in one message.
        ModelImportError: no such file, not a TFLite file, not quantized, or inputs that are not float32.
    """
    with importing("the model" if isinstance(model_or_path, bytes) else model_or_path, batch):
        return _imported(_read(model_or_path), model_or_path, example_inputs, batch)


def _imported(data: bytes, model_or_path: Any, example_inputs: Sequence[Any] | None, batch: str) -> tvm.IRModule:
    module, names = _with_tvm(data, "the model" if isinstance(model_or_path, bytes) else str(model_or_path))
    main = module["main"]
    values = definitions(main).values()
    if not any(is_call(value, "relax.quantize") or is_call(value, "relax.dequantize") for value in values):
        raise ModelImportError("no quantized tensor found: this is a float model; convert it with representative data")
    quantized = [p.name for p in main.params if str(p.ty.dtype) in ("int8", "uint8")]
    if quantized:
        raise ModelImportError(
            f"the inputs {', '.join(quantized)} are quantized already; convert the model with "
            "inference_input_type=tf.float32 and inference_output_type=tf.float32"
        )
    module = bind_batch(in_qdq_form(channels_first(module), names), example_inputs, batch)
    return module.with_attr(attributes.ENGINE, ENGINE)


def _read(model_or_path: Any) -> bytes:
    if isinstance(model_or_path, bytes):
        data, name = model_or_path, "the model"
    else:
        with open_regular(model_or_path, ModelImportError) as file:
            data, name = file.read(), model_or_path
    if data[4:8] != _MAGIC:
        raise ModelImportError(f"{name} is no TFLite file: it does not have the identifier TFL3")
    return data


def _with_tvm(data: bytes, name: str) -> tuple[tvm.IRModule, list[str]]:
    try:
        import tflite
    except ImportError as error:
        raise ModelImportError("TFLite models need the package tflite: pip install 'quantvm[tflite]'") from error
    from tvm.relax.frontend.tflite import from_tflite as tvm_from_tflite

    from .converters import Converter

    try:
        model = tflite.Model.GetRootAsModel(data, 0)
        with ExitStack() as stack:

            def converter(*arguments: Any) -> Converter:
                made = Converter(*arguments)
                stack.enter_context(closed_on_error(made.bb))
                return made

            return tvm_from_tflite(model, op_converter=converter), _contraction_names(model)
    except QuantvmError:
        raise
    except tvm.error.OpNotImplemented as error:
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise UnsupportedOpError(f"TVM's TFLite importer cannot import {name}: {text}") from error
    except Exception as error:  # a damaged flatbuffer can raise any kind of error
        reason = last_line(error)
        raise ModelImportError(f"{name} is damaged, or TVM's TFLite importer cannot read it: {reason}") from error


def operators_of(model: Any) -> Iterator[tuple[int, Any]]:
    """Yields each operator of a `tflite.Model`'s main graph with its code, a `tflite.BuiltinOperator`."""
    graph = model.Subgraphs(0)
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        yield max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), operator


def _contraction_names(model: Any) -> list[str]:
    """Returns the names of the results of convolutions and matrix products, in order."""
    import tflite

    operators = tflite.BuiltinOperator
    kinds = (operators.CONV_2D, operators.DEPTHWISE_CONV_2D, operators.TRANSPOSE_CONV, operators.FULLY_CONNECTED,
             operators.BATCH_MATMUL)  # fmt: skip
    graph = model.Subgraphs(0)
    return [
        graph.Tensors(operator.Outputs(0)).Name().decode("utf-8", "replace")
        for code, operator in operators_of(model)
        if code in kinds
    ]
