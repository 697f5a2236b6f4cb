from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantvm.kernels.elementwise import concat, elementwise, quantize
from quantvm.kernels.isa import PLAIN, select_isa
from quantvm.numerics.binary import qnnpack_add
from quantvm.numerics.pytorch import PyTorch
from quantvm.numerics.torch_engines import QuantParams
from quantvm.numerics.unary_tables import qnnpack_table, unary_tables

from .conftest import nhwc, quantized, run

Q = torch.ops.quantized
# (scale a, zp a, scale b, zp b, scale out, zp out); powers of two make exact ties
PARAMS = [
    (0.0213, 101, 0.0371, 3, 0.0441, 77),
    (0.0625, 0, 0.03125, 255, 0.125, 101),
    (2.0**-5, 128, 2.0**-6, 1, 2.0**-4, 0),
]
SHAPES = [(1, 1, 1, 5), (3, 5, 6, 33), (1, 28, 28, 64)]


def as_q(scale: float, zero_point: int) -> QuantParams:
    return QuantParams(float(np.float32(scale)), zero_point)


def codes(rng, shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_equals_torch(shape, params, relu, target):
    rng = np.random.default_rng(0)
    sa, za, sb, zb, so, zo = (float(np.float32(v)) if i % 2 == 0 else v for i, v in enumerate(params))
    a, b = codes(rng, shape), codes(rng, shape)
    kernel = elementwise.add(
        shape[1:], as_q(sa, za), as_q(sb, zb), as_q(so, zo), relu=relu, pytorch=PyTorch("fbgemm", 1)
    )
    op = Q.add_relu if relu else Q.add
    expected = nhwc(op(quantized(a, sa, za), quantized(b, sb, zb), so, zo))
    np.testing.assert_array_equal(run(kernel, target, a, b, out_shape=shape), expected)


def test_add_follows_torchs_split_over_two_threads():
    from quantvm.tvm_compat import native_target

    rng = np.random.default_rng(1)
    shape = (3, 113, 101, 3)  # 102,717 elements: two pieces, each with a tail of its own
    a, b = codes(rng, shape), codes(rng, shape)
    q_a, q_b, q_o = as_q(2.0**-5, 128), as_q(2.0**-6, 1), as_q(2.0**-4, 101)
    kernel = elementwise.add(shape[1:], q_a, q_b, q_o, relu=False, pytorch=PyTorch("fbgemm", 2))
    torch.set_num_threads(2)
    expected = nhwc(Q.add(quantized(a, q_a.scale, 128), quantized(b, q_b.scale, 1), q_o.scale, 101))
    np.testing.assert_array_equal(run(kernel, native_target(), a, b, out_shape=shape), expected)
    one = elementwise.add(shape[1:], q_a, q_b, q_o, relu=False, pytorch=PyTorch("fbgemm", 1))
    assert (run(one, native_target(), a, b, out_shape=shape) != expected).any(), "the split makes no difference here"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 5, 33), (1, 5, 33), (3, 113, 101), (5, 2, 32779)])
def test_add_of_one_for_all_images_has_tails_in_each_row(shape, threads):
    from quantvm.tvm_compat import native_target

    rng = np.random.default_rng(2)
    a, b = codes(rng, shape), codes(rng, (1, *shape[1:]))
    q_a, q_b, q_o = as_q(2.0**-5, 128), as_q(2.0**-6, 1), as_q(2.0**-4, 101)
    kernel = elementwise.add(shape[1:], q_a, q_b, q_o, relu=False, pytorch=PyTorch("fbgemm", threads), one_for_all=True)
    torch.set_num_threads(threads)
    x, y = (torch.from_numpy(codes) for codes in (a, b))
    x, y = (
        torch._make_per_tensor_quantized_tensor(x, q_a.scale, 128),
        torch._make_per_tensor_quantized_tensor(y, q_b.scale, 1),
    )
    expected = Q.add(x, y, q_o.scale, 101).int_repr().numpy()
    np.testing.assert_array_equal(run(kernel, native_target(), a, b, out_shape=shape), expected)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_multiply_equals_torch(shape, params, broadcast, relu, target):
    rng = np.random.default_rng(2)
    sa, za, sb, zb, so, zo = (float(np.float32(v)) if i % 2 == 0 else v for i, v in enumerate(params))
    so = float(np.float32(so * 0.5))
    a = codes(rng, shape)
    b = codes(rng, (shape[0], 1, 1, shape[3]) if broadcast else shape)
    kernel = elementwise.multiply(shape[1:], as_q(sa, za), as_q(sb, zb), as_q(so, zo), relu=relu, broadcast=broadcast)
    op = Q.mul_relu if relu else Q.mul
    expected = nhwc(op(quantized(a, sa, za), quantized(b, sb, zb), so, zo))
    np.testing.assert_array_equal(run(kernel, target, a, b, out_shape=shape), expected)


@pytest.mark.parametrize("name", ["hardswish", "hardsigmoid", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("numel", [63, 333])
def test_tables_equal_torch(name, params, numel, target):
    rng = np.random.default_rng(3)
    scale, zero_point, so, zo = float(np.float32(params[0])), params[1], float(np.float32(params[4])), params[5]
    if name in ("hardsigmoid", "sigmoid"):
        so, zo = 1 / 256, 0
    x = codes(rng, (1, numel))
    qx = quantized(x, scale, zero_point)
    expected = {
        "hardswish": lambda: Q.hardswish(qx, so, zo),
        "hardsigmoid": lambda: F.hardsigmoid(qx),
        "leaky_relu": lambda: Q.leaky_relu(qx, 0.1, False, so, zo),
        "sigmoid": lambda: torch.sigmoid(qx),
    }[name]()
    options = (0.1,) if name == "leaky_relu" else ()
    main, tail = unary_tables(name, as_q(scale, zero_point), as_q(so, zo), options)
    kernel = elementwise.table((numel,), main, tail, in_dtype="uint8", pytorch=PyTorch("fbgemm", 1), name=name)
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=x.shape), expected.int_repr().numpy())


@pytest.mark.parametrize("target", ["native", "plain"], indirect=True)
def test_clamp_integers(target):
    x = codes(np.random.default_rng(4), (2, 333))
    kernel = elementwise.clamp_integers((333,), 17, 200, "uint8", "relu6")
    np.testing.assert_array_equal(run(kernel, target, x, out_shape=x.shape), np.clip(x, 17, 200))


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 3, 9, 33), (1, 4, 16, 16)])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.0187, 113), (2.0**-4, 101), (2.0**-6, 0)])
def test_quantize_and_dequantize_equal_torch(shape, scale, zero_point, target):
    rng = np.random.default_rng(5)
    q = as_q(scale, zero_point)
    x = (rng.integers(-600, 600, shape) * np.float32(q.scale) * np.float32(0.5)).astype(np.float32)  # ties
    x.reshape(-1)[:3] = [1e30, -1e30, 0]
    expected = torch.quantize_per_tensor(torch.from_numpy(x), q.scale, zero_point, torch.quint8)
    codes_nchw = run(quantize.quantize(shape[1:], q), target, x, out_shape=shape)
    np.testing.assert_array_equal(codes_nchw, expected.int_repr().numpy())
    n, c, h, w = shape
    codes_nhwc = run(quantize.quantize_nchw_to_nhwc(c, h, w, q), target, x, out_shape=(n, h, w, c))
    np.testing.assert_array_equal(codes_nhwc, nhwc(expected))
    real = run(quantize.dequantize(shape[1:], q), target, codes_nchw, out_shape=shape, out_dtype="float32")
    np.testing.assert_array_equal(real, expected.dequantize().numpy())


@pytest.mark.parametrize("channels", [(8, 16), (5, 24, 7), (64, 33, 1), (3,), (128, 120, 96)])
@pytest.mark.parametrize("params", PARAMS)
def test_concat_equals_torch(channels, params, target):
    rng = np.random.default_rng(6)
    so, zo = float(np.float32(params[4])), params[5]
    qps = [
        ((so, zo), (float(np.float32(params[0])), params[1]), (float(np.float32(params[2])), params[3]))[i % 3]
        for i in range(len(channels))
    ]
    xs = [codes(rng, (2, 3, 4, c)) for c in channels]
    expected = nhwc(Q.cat([quantized(x, *qp) for x, qp in zip(xs, qps, strict=True)], 1, so, zo))
    for isa in {PLAIN, select_isa(target)}:
        kernel = concat.concat_nhwc((3, 4), channels, [as_q(*qp) for qp in qps], as_q(so, zo), isa)
        np.testing.assert_array_equal(run(kernel, target, *xs, out_shape=(2, 3, 4, sum(channels))), expected)


@pytest.mark.parametrize(("params", "relu"), [(PARAMS[0], False), (PARAMS[1], True), (PARAMS[2], False)])
def test_qnnpack_add_equals_torch(params, relu, target):
    torch.backends.quantized.engine = "qnnpack"
    rng = np.random.default_rng(8)
    sa, za, sb, zb, so, zo = (float(np.float32(v)) if i % 2 == 0 else v for i, v in enumerate(params))
    shape = (2, 7, 5, 33)
    a, b = codes(rng, shape), codes(rng, shape)
    factors = qnnpack_add(as_q(sa, za), as_q(sb, zb), as_q(so, zo))
    kernel = elementwise.qnnpack_add(shape[1:], as_q(sa, za), as_q(sb, zb), as_q(so, zo), factors, relu=relu)
    op = Q.add_relu if relu else Q.add
    expected = nhwc(op(quantized(a, sa, za), quantized(b, sb, zb), so, zo))
    np.testing.assert_array_equal(run(kernel, target, a, b, out_shape=shape), expected)


def test_qnnpack_add_refuses_scales_that_pytorch_refuses():
    with pytest.raises(ValueError, match=r"outside of \[2\^-14, 2\^8\)"):
        qnnpack_add(as_q(1.0, 0), as_q(1e-6, 0), as_q(1.0, 0))


@pytest.mark.parametrize("name", ["hardswish", "hardsigmoid", "sigmoid"])
@pytest.mark.parametrize("params", PARAMS)
def test_qnnpack_tables_equal_torch(name, params):
    torch.backends.quantized.engine = "qnnpack"
    scale, zero_point, so, zo = float(np.float32(params[0])), params[1], float(np.float32(params[4])), params[5]
    if name != "hardswish":
        so, zo = 1 / 256, 0
    qx = quantized(np.arange(256, dtype=np.uint8).reshape(1, 256), scale, zero_point)
    ops = {
        "hardswish": lambda: Q.hardswish(qx, so, zo),
        "hardsigmoid": lambda: F.hardsigmoid(qx),
        "sigmoid": lambda: torch.sigmoid(qx),
    }
    expected = ops[name]().int_repr().numpy()[0]
    np.testing.assert_array_equal(qnnpack_table(name, as_q(scale, zero_point), as_q(so, zo)), expected)
