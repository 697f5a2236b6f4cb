"""TVM's TFLite importer, with our own converters where it supports an operator only in part or differs from LiteRT.

The import fails unless each result has the shape and the type given in the file; errors name the operator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tflite
from tvm import relax
from tvm.relax.frontend.tflite.tflite_frontend import OperatorConverter, get_tensor_name

from quantvm.errors import ModelImportError, QuantvmError, UnsupportedOpError, gist
from quantvm.frontend.builder import constant, shape_of
from quantvm.numerics import tflite as tflite_numerics
from quantvm.numerics.fixed_point import round_away
from quantvm.numerics.torch_engines import QuantParams
from quantvm.qdq.expressions import constant_value

REFUSED = frozenset(("MATRIX_DIAG", "MATRIX_SET_DIAG", "SPARSE_TO_DENSE"))
"""Operators that TVM's importer accepts, but that cannot be compiled."""

MOVES = frozenset((
    "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "MIRROR_PAD", "PACK", "PAD", "PADV2", "RESIZE_NEAREST_NEIGHBOR",
    "REVERSE_V2", "SLICE", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE",
    "UNPACK", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND",
))  # fmt: skip
"""Operators that move quantized integers unchanged; the result has the input's scale and zero point."""

_ACTIVATION = tflite.ActivationFunctionType
_OPTIONS = {value: name for name, value in vars(tflite.BuiltinOptions).items() if isinstance(value, int)}
"""Number of an options type in the file -> the class that reads it."""


class Converter(OperatorConverter):
    """Converters by name: TVM's, some replaced by ours."""

    _SUPPORTED_QUANTIZED_OPS = OperatorConverter._SUPPORTED_QUANTIZED_OPS | MOVES | {"ARG_MAX", "ARG_MIN"}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        own = {
            "BATCH_MATMUL": self._batch_matmul, "BATCH_TO_SPACE_ND": self._batch_to_space,
            "CUMSUM": self._cumsum, "DIV": self._div, "EXPAND_DIMS": self._expand_dims,
            "FULLY_CONNECTED": self._fully_connected,
            "GATHER": self._gather, "GATHER_ND": self._gather_nd, "GELU": self._gelu, "MIRROR_PAD": self._mirror_pad,
            "RESIZE_BILINEAR": self._resize_bilinear, "RESIZE_NEAREST_NEIGHBOR": self._resize_nearest,
            "SCATTER_ND": self._scatter_nd, "SOFTMAX": self._softmax, "SPACE_TO_BATCH_ND": self._space_to_batch,
            "SQUEEZE": self._squeeze, "TRANSPOSE_CONV": self._transpose_conv,
        }  # fmt: skip
        self.convert_map: dict[str, Any] = {**vars(self)["convert_map"], **own}

    def convert_op_to_relax(self) -> None:
        """Converts all operators.

        Raises:
            UnsupportedOpError: an operator cannot be converted; names it and its first output.
            ModelImportError: a result does not have the shape and type given in the file.
        """
        for index in range(self.subgraph.OperatorsLength()):
            self._convert(self.subgraph.Operators(index))

    def _convert(self, op: Any) -> None:
        outputs = self.get_output_tensors(op)
        name = self.get_op_code_str(op)
        where = f"{name} at {get_tensor_name(self.subgraph, outputs[0].tensor_idx)}" if outputs else name
        try:
            self._check_options(op, name)
            made = self.convert_map[name](op=op)
            made = None if made is None else self.bb.normalize(made)
        except UnsupportedOpError as error:
            raise UnsupportedOpError(f"{where}: {error}") from error
        except QuantvmError:
            raise
        except Exception as error:  # TVM's converters raise any kind of error
            raise UnsupportedOpError(f"{where}: TVM's TFLite importer cannot convert it: {gist(error)}") from error
        if made is None:  # a constant
            return
        results = [made] if len(outputs) == 1 else [self.bb.normalize(made[at]) for at in range(len(outputs))]
        for output, result in zip(outputs, results, strict=True):
            checked = self._as_declared(output, result, where)
            self.exp_tab.set_expr(get_tensor_name(self.subgraph, output.tensor_idx), checked)

    def _as_declared(self, output: Any, result: Any, where: str) -> Any:
        """Returns a result in the file's type, after checking that it has the file's shape.

        Sizes, or whole shapes, that the file leaves to run time are not checked.
        """
        tensor = output.tensor
        shape = [int(size) for size in tensor.ShapeAsNumpy()] if tensor.ShapeLength() else []
        signature = [int(size) for size in tensor.ShapeSignatureAsNumpy()] if tensor.ShapeSignatureLength() else shape
        found = shape_of(result)
        if shape and -1 not in signature and found != shape:
            raise ModelImportError(f"{where}: its result would have the shape {found}, the file says {shape}")
        dtype = self.get_tensor_type_str(output.tensor.Type())
        made = str(result.ty.dtype)
        if made == dtype:
            return result
        if {made, dtype} == {"int32", "int64"}:  # indices of extremes
            return self.bb.normalize(relax.op.astype(result, dtype))
        raise ModelImportError(f"{where}: its result would be {made}, the file says {dtype}")

    def _check_options(self, op: Any, name: str) -> None:
        """Raises UnsupportedOpError for options that TVM's converters ignore or compute differently from LiteRT."""
        if name in REFUSED:
            raise UnsupportedOpError("it is not supported; express it with other operators")
        inputs, outputs = self.get_input_tensors(op), self.get_output_tensors(op)
        options = _options(op)
        activation = getattr(options, "FusedActivationFunction", None)
        if activation is not None and activation() in (_ACTIVATION.TANH, _ACTIVATION.SIGN_BIT):
            raise UnsupportedOpError("a fused TANH or SIGN_BIT, which LiteRT does not compute; write it as an operator")
        if name == "ATAN2" and len({tuple(tensor.tensor.ShapeAsNumpy()) for tensor in inputs}) > 1:
            raise UnsupportedOpError("LiteRT does not broadcast its operands; give it operands of one shape")
        given = inputs[1 if name == "SPLIT" else 0] if inputs else None
        if name == "REDUCE_PROD" and given is not None and given.qnn_params:
            raise UnsupportedOpError("it is not supported on quantized tensors: LiteRT rounds every product")
        if name == "NEG" and given is not None and given.qnn_params and (
            constant_value(given.qnn_params["zero_point"]).any() or not self.has_same_qnn_params(given, outputs[0])
        ):  # fmt: skip
            raise UnsupportedOpError("LiteRT negates the integers, which needs zero points of 0 and equal "
                                     "scales")  # fmt: skip
        if name == "SUM" and given is not None and given.qnn_params:
            self._check_sum(given, outputs[0])
        is_move = name in MOVES and given is not None and given.qnn_params
        if is_move and not all(self.has_same_qnn_params(given, other) for other in outputs):
            raise UnsupportedOpError("it moves quantized integers, but its result has other quantization parameters")

    def _check_sum(self, given: Any, made: Any) -> None:
        """Raises UnsupportedOpError if LiteRT's product of a sum and its factor can overflow 32 bits."""
        count = math.prod(map(int, given.tensor.ShapeAsNumpy())) // math.prod(map(int, made.tensor.ShapeAsNumpy()))
        q, out_q = self._parameters(given), self._parameters(made)
        if 255 * count << max(tflite_numerics.scale_factor(q, out_q).shift, 0) >= 1 << 31:
            raise UnsupportedOpError(f"a sum of {count} integers of scale {q.scale:g}, in steps of {out_q.scale:g}, is "
                                     "beyond LiteRT's 32 bits; use a greater scale for the result")  # fmt: skip

    # ------------------------------------------------------------------ converters

    def _input(self, op: Any, index: int = 0) -> Any:
        return self.get_tensor_expr(self.get_input_tensors(op)[index])

    def _values(self, op: Any, index: int) -> np.ndarray:
        return np.asarray(self.get_tensor_value(self.get_input_tensors(op)[index]))

    def _squeeze(self, op: Any) -> Any:
        x = self._input(op)
        options = _options(op)
        given = options.SqueezeDimsAsNumpy() if options is not None and options.SqueezeDimsLength() else None
        return relax.op.squeeze(x, None if given is None else [int(axis) for axis in given])

    def _expand_dims(self, op: Any) -> Any:
        return relax.op.expand_dims(self._input(op), [int(axis) for axis in self._values(op, 1).ravel()])

    def _checked_indices(self, op: Any, index: int, sizes: Sequence[Any]) -> Any:
        """Returns the indices in an input, as int64; constant ones are checked as LiteRT checks them.

        Args:
            op: the operator.
            index: the number of the input.
            sizes: the sizes that the indices must be below; several if the last dimension holds coordinates.
        """
        given = self.get_input_tensors(op)[index]
        if self.has_expr(given.tensor_idx):
            x = self.get_tensor_expr(given)
            return x if str(x.ty.dtype) == "int64" else self.bb.normalize(relax.op.astype(x, "int64"))
        places = self._values(op, index).astype(np.int64)
        wrong = (places < 0) | (places >= np.asarray(sizes, np.int64))
        if wrong.any():
            raise UnsupportedOpError(f"takes place {places[wrong][0]} of {' x '.join(map(str, sizes))}, which LiteRT "
                                     "refuses, too")  # fmt: skip
        return constant(places, "int64")

    def _gather(self, op: Any) -> Any:
        """Takes slices along an axis; with batch_dims, each element of the batch has its own indices."""
        x, options = self._input(op), _options(op)
        shape = shape_of(x)
        axis = options.Axis() % len(shape)
        places = self._checked_indices(op, 1, [shape[axis]])
        count, batch = len(shape_of(places)), options.BatchDims()
        batch += count if batch < 0 else 0
        if not batch:
            return relax.op.take(x, places, axis=axis, mode="fast")
        front = self.bb.normalize(relax.op.permute_dims(
            x, [*range(batch), axis, *range(batch, axis), *range(axis + 1, len(shape))]
        ))  # fmt: skip
        each = self.bb.normalize(relax.op.expand_dims(places, -1))
        taken = self.bb.normalize(relax.op.gather_nd(front, each, batch_dims=batch))
        skipped, rank = axis - batch, len(shape) + count - batch - 1
        return relax.op.permute_dims(
            taken, [*range(batch), *range(count, count + skipped), *range(batch, count), *range(count + skipped, rank)]
        )

    def _gather_nd(self, op: Any) -> Any:
        x, index = self._input(op), self.get_input_tensors(op)[1]
        depth = int(index.tensor.ShapeAsNumpy()[-1])
        return relax.op.gather_nd(x, self._checked_indices(op, 1, shape_of(x)[:depth]))

    def _scatter_nd(self, op: Any) -> Any:
        """Adds the values that have the same index, as LiteRT does."""
        shape = [int(size) for size in self._values(op, 2).ravel()]
        updates = self._input(op, 1)
        depth = int(self.get_input_tensors(op)[0].tensor.ShapeAsNumpy()[-1])
        zeros = self.bb.normalize(relax.op.zeros(shape, str(updates.ty.dtype)))
        return relax.op.scatter_nd(zeros, self._checked_indices(op, 0, shape[:depth]), updates, "add")

    def _cumsum(self, op: Any) -> Any:
        """Computes running sums from the first slice, or from the last one."""
        x, axis, options = self._input(op), int(self._values(op, 1).ravel()[0]), _options(op)
        x = self.bb.normalize(relax.op.flip(x, axis)) if options.Reverse() else x
        sums = self.bb.normalize(relax.op.cumsum(x, axis, str(x.ty.dtype), options.Exclusive()))
        return relax.op.flip(sums, axis) if options.Reverse() else sums

    def _mirror_pad(self, op: Any) -> Any:
        """Pads by mirroring; only mode SYMMETRIC repeats the outermost elements themselves."""
        if _options(op).Mode() == tflite.MirrorPadMode.REFLECT:
            return super().convert_mirror_pad(op)
        x = self._input(op)
        for axis, (before, after) in enumerate(self._values(op, 1).tolist()):
            size = shape_of(x)[axis]
            if max(before, after) > size:
                raise UnsupportedOpError(f"a border of {max(before, after)} elements around {size}")
            if before or after:
                places = np.pad(np.arange(size), (before, after), mode="symmetric")
                x = self.bb.normalize(relax.op.take(x, constant(places, "int64"), axis=axis, mode="clip"))
        return x

    def _transpose_conv(self, op: Any) -> Any:
        """Returns the transposed convolution, cropped to the size given in the file.

        With padding SAME half of the cropped elements are at the front.
        """
        _, weight, given, *bias = self.get_input_tensors(op)
        (made,), options = self.get_output_tensors(op), _options(op)
        sizes, strides = self._values(op, 0)[1:3].tolist(), (options.StrideH(), options.StrideW())
        if self.has_expr(weight.tensor_idx):
            raise UnsupportedOpError("a weight that is computed at run time, expected a constant")
        ohwi = np.asarray(self.get_tensor_value(weight))
        x, kernel = self.get_tensor_expr(given), constant(ohwi.transpose(3, 0, 1, 2), str(ohwi.dtype))
        if given.qnn_params:
            x = self.bb.normalize(self.dequantize(x, given))
            parameters = (weight.qnn_params[name] for name in ("scale", "zero_point"))
            kernel = self.bb.normalize(relax.op.dequantize(kernel, *parameters, axis=1))
        cuts, missing = [], []
        for size, before, step, reach in zip(sizes, shape_of(x)[1:3], strides, ohwi.shape[1:3], strict=True):
            whole = (before - 1) * step + reach
            front = max(whole - size, 0) // 2 if options.Padding() == tflite.Padding.SAME else 0
            cuts.append((front, max(whole - size - front, 0)))
            missing.append(max(size + front - whole, 0))
        (top, bottom), (left, right) = cuts
        y = self.bb.normalize(relax.op.nn.conv2d_transpose(
            x, kernel, strides=strides, padding=(top, left, bottom, right), data_layout="NHWC", kernel_layout="IOHW",
            out_dtype="float32",
        ))  # fmt: skip
        if any(missing):  # elements of the output that no element of the input reaches
            y = self.bb.normalize(relax.op.nn.pad(y, [0, 0, 0, missing[0], 0, missing[1], 0, 0]))
        for term in bias:
            addend = self.get_tensor_expr(term)
            if term.qnn_params:
                addend = self.dequantize(addend, term)
            elif given.qnn_params:
                step = relax.op.multiply(given.qnn_params["scale"], weight.qnn_params["scale"])
                addend = relax.op.dequantize(addend, step, relax.const(0, "int32"), axis=0)
            y = self.bb.normalize(relax.op.add(y, self.bb.normalize(addend)))
        y = self.convert_fused_activation_function(y, options.FusedActivationFunction())
        return self.quantize(self.bb.normalize(y), made) if made.qnn_params else y

    def _div(self, op: Any) -> Any:
        """Looks up quotients of integers in a table of all pairs, computed in fixed point as TFLite does."""
        if not self.is_quantized(op):
            return self._convert_elemwise(op, relax.op.divide)
        given, (made,) = self.get_input_tensors(op), self.get_output_tensors(op)
        q, divisor_q, out_q = (self._parameters(tensor) for tensor in (*given, made))
        if not self.has_expr(given[1].tensor_idx) and (self._values(op, 1) == divisor_q.zero_point).any():
            raise UnsupportedOpError("divides by a constant 0, which LiteRT refuses, too")
        low, high = _limits(_options(op).FusedActivationFunction(), out_q)
        table = tflite_numerics.quotients(q, divisor_q, out_q, low, high)[0]
        dividend, divisor = (
            self.bb.normalize(relax.op.astype(self.get_tensor_expr(tensor), "int32")) for tensor in given
        )
        row = self.bb.normalize(relax.op.multiply(dividend, relax.const(256, "int32")))
        place = self.bb.normalize(relax.op.add(row, divisor))
        place = self.bb.normalize(relax.op.add(place, relax.const(-257 * q.quant_min, "int32")))
        return relax.op.take(constant(table.ravel(), out_q.dtype), place, axis=0, mode="clip")

    def _parameters(self, tensor: Any) -> QuantParams:
        """Returns the parameters of a tensor with one scale.

        Raises:
            UnsupportedOpError: it has no or several scales, or is neither int8 nor uint8.
        """
        dtype = self.get_tensor_type_str(tensor.tensor.Type())
        name = get_tensor_name(self.subgraph, tensor.tensor_idx)
        if dtype not in ("int8", "uint8") or not tensor.qnn_params:
            raise UnsupportedOpError(f"{name} is {dtype}, expected int8 or uint8 with a scale")
        scale, zero_point = (constant_value(tensor.qnn_params[key]) for key in ("scale", "zero_point"))
        if scale.size > 1:
            raise UnsupportedOpError(f"{name} has {scale.size} scales, expected one")
        return QuantParams(float(scale.item()), int(zero_point.item()), dtype)

    def _batch_matmul(self, op: Any) -> Any:
        if self.is_quantized(op):
            raise UnsupportedOpError("it is not supported on quantized tensors; use FULLY_CONNECTED")
        options, operands = _options(op), []
        for index, is_turned in enumerate((options.AdjX(), options.AdjY())):
            x = self._input(op, index)
            rank = len(shape_of(x))
            turned = [*range(rank - 2), rank - 1, rank - 2]
            operands.append(self.bb.normalize(relax.op.permute_dims(x, turned)) if is_turned else x)
        return relax.op.matmul(*operands)

    def _fully_connected(self, op: Any) -> Any:
        """Reshapes the input to a matrix; the result keeps the input's dimensions only with KeepNumDims."""
        given, weight = self.get_input_tensors(op)[:2]
        size = int(weight.tensor.ShapeAsNumpy()[1])
        x = self.get_tensor_expr(given)
        if _options(op).KeepNumDims() or len(shape_of(x)) == 2:
            return super().convert_fully_connected(op)
        name = get_tensor_name(self.subgraph, given.tensor_idx)
        flat = self.bb.emit(relax.op.reshape(x, [int(np.prod(shape_of(x))) // size, size]))
        self.exp_tab.set_expr(name, flat, force_override=True)
        try:
            return super().convert_fully_connected(op)
        finally:
            self.exp_tab.set_expr(name, x, force_override=True)

    def _softmax(self, op: Any) -> Any:
        """Returns the softmax of beta * x."""
        beta = float(_options(op).Beta()) if _options(op) is not None else 1.0
        if beta == 1.0:
            return super().convert_softmax(op)
        (given,), (made,) = self.get_input_tensors(op), self.get_output_tensors(op)
        x = self.get_tensor_expr(given)
        x = self.bb.normalize(self.dequantize(x, given) if given.qnn_params else x)
        y = self.bb.normalize(relax.op.nn.softmax(self.bb.normalize(relax.op.multiply(x, constant(beta, "float32")))))
        return self.quantize(y, made) if made.qnn_params else y

    def _gelu(self, op: Any) -> Any:
        options = _options(op)
        if options is None or not options.Approximate():
            return super().convert_gelu(op)
        if self.is_quantized(op):
            raise UnsupportedOpError("it is not supported on quantized tensors")
        return relax.op.nn.gelu_tanh(self._input(op))

    def _resize_bilinear(self, op: Any) -> Any:
        if _options(op).AlignCorners() and 1 in self._values(op, 1):
            raise UnsupportedOpError("align_corners to a height or width of 1 is not supported; resize without it")
        return super().convert_resize_bilinear(op)

    def _resize_nearest(self, op: Any) -> Any:
        """Takes the pixels at TFLite's positions; with align_corners these round halves away from zero."""
        options = _options(op)
        if not options.AlignCorners():
            return super().convert_resize_nearest_neighbor(op)
        x, offset = self._input(op), np.float32(0.5 if options.HalfPixelCenters() else 0)
        for axis, new in zip((1, 2), (int(size) for size in self._values(op, 1)), strict=True):
            old = shape_of(x)[axis]
            scale = np.float32(old - 1) / np.float32(new - 1) if new > 1 else np.float32(old) / np.float32(new)
            at = np.floor((np.arange(new, dtype=np.float32) + offset) * scale + np.float32(0.5))
            places = constant(np.clip(at, 0, old - 1).astype(np.int64), "int64")
            x = self.bb.normalize(relax.op.take(x, places, axis=axis, mode="clip"))
        return x

    def _blocks(self, op: Any) -> tuple[list[int], list[tuple[int, int]]]:
        widths = [(int(begin), int(end)) for begin, end in self._values(op, 2)]
        return [int(size) for size in self._values(op, 1).ravel()], widths

    def _space_to_batch(self, op: Any) -> Any:
        """Pads with zeros or the zero point, and moves the positions within a block into the batch."""
        (given, *_), (blocks, widths) = self.get_input_tensors(op), self._blocks(op)
        x = self.get_tensor_expr(given)
        count, rank = len(blocks), len(shape_of(x))
        if any(any(pair) for pair in widths):
            value = float(constant_value(given.qnn_params["zero_point"])) if given.qnn_params else 0.0
            around = [(0, 0), *widths, *[(0, 0)] * (rank - 1 - count)]
            flat = [width for pair in around for width in pair]
            x = self.bb.normalize(relax.op.nn.pad(x, flat, "constant", value))
        batch, *sizes = shape_of(x)
        split = [part for size, block in zip(sizes, blocks, strict=False) for part in (size // block, block)]
        x = self.bb.normalize(relax.op.reshape(x, [batch, *split, *sizes[count:]]))
        inner, outer = range(2, 2 * count + 1, 2), range(1, 2 * count + 1, 2)
        x = self.bb.normalize(relax.op.permute_dims(x, [*inner, 0, *outer, *range(2 * count + 1, rank + count)]))
        moved = [size // block for size, block in zip(sizes, blocks, strict=False)]
        return relax.op.reshape(x, [batch * int(np.prod(blocks)), *moved, *sizes[count:]])

    def _batch_to_space(self, op: Any) -> Any:
        """Moves parts of the batch to the positions within a block, and crops."""
        x, (blocks, crops) = self._input(op), self._blocks(op)
        batch, *sizes = shape_of(x)
        count, rank, parts = len(blocks), len(sizes) + 1, int(np.prod(blocks))
        x = self.bb.normalize(relax.op.reshape(x, [*blocks, batch // parts, *sizes]))
        places = [axis for at in range(count) for axis in (count + 1 + at, at)]
        x = self.bb.normalize(relax.op.permute_dims(x, [count, *places, *range(2 * count + 1, rank + count)]))
        grown = [size * block for size, block in zip(sizes, blocks, strict=False)]
        x = self.bb.normalize(relax.op.reshape(x, [batch // parts, *grown, *sizes[count:]]))
        if not any(any(pair) for pair in crops):
            return x
        ends = [size - end for size, (_, end) in zip(grown, crops, strict=True)]
        return relax.op.strided_slice(x, list(range(1, count + 1)), [begin for begin, _ in crops], ends)


def _limits(activation: int, q: QuantParams) -> tuple[int, int]:
    """Returns the range of integers to which a fused activation clips."""
    low, high = {
        _ACTIVATION.RELU: (0.0, np.inf), _ACTIVATION.RELU_N1_TO_1: (-1.0, 1.0), _ACTIVATION.RELU6: (0.0, 6.0),
    }.get(activation, (-np.inf, np.inf))  # fmt: skip
    low, high = (float(round_away(np.float32(limit) / q.scale_f32)) + q.zero_point for limit in (low, high))
    return int(max(low, q.quant_min)), int(min(high, q.quant_max))


def _options(op: Any) -> Any:
    """Returns the options of an operator, or None if it has none."""
    name = _OPTIONS[op.BuiltinOptionsType()]
    if name == "NONE" or op.BuiltinOptions() is None:
        return None
    options = getattr(tflite, name)()
    options.Init(op.BuiltinOptions().Bytes, op.BuiltinOptions().Pos)
    return options


__all__ = ["MOVES", "REFUSED", "Converter"]
