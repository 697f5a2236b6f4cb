"""Which dot product a CPU gets, what machine code becomes of it, and that all of them give the same bits."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import tvm

from quantvm.frontend import from_torch
from quantvm.kernels.builder import target_features
from quantvm.kernels.conv.conv2d import linear
from quantvm.kernels.conv.dot import DOT_PRODUCTS, PORTABLE, select_dot
from quantvm.kernels.schedule.schedule import Conv2dShape, Work, choose_schedule
from quantvm.lowering import LoweringOptions, lower
from quantvm.numerics.requantization import requantization
from quantvm.numerics.torch_engines import QuantParams
from quantvm.tvm_compat import build_executable, make_target, native_target
from quantvm.verification.torch_state import TorchState

from ..quantized_modules import SmallNetwork, convolutions_here, image
from .conftest import run
from .test_conv import RUNNABLE, Case

CHOSEN = {  # CPU: dot product, instruction
    "cascadelake": ("vnni", r"vpdpbusd\b.*%zmm"),
    "alderlake": ("avxvnni", r"\{vex\}\s+vpdpbusd\b.*%ymm"),
    "skylake-avx512": ("avx512", r"vpmaddwd\b.*%zmm"),
    "haswell": ("avx2", r"vpmaddwd\b.*%ymm"),
    "x86-64": ("portable", r"pmull|pmul|pmadd"),
}
LONG = {  # (H, W, IC, OC, kernel, stride, padding, dilation, groups); LLVM would unroll a short reduction
    "3x3": (14, 14, 128, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "pointwise": (14, 14, 256, 64, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "stride": (15, 15, 128, 128, (3, 3), (2, 2), (0, 0), (1, 1), 1),
}
WIDE = Conv2dShape(28, 28, 128, 128, (3, 3), (1, 1), (1, 1, 1, 1))


def cpu(name):
    return make_target({"mcpu": name, "mtriple": "x86_64-linux-gnu"})


def runs_here(target) -> bool:
    """Whether this CPU has every vector extension that LLVM may use for `target`."""

    def vectors(features):
        return {name for name in features if re.match("sse|ssse|avx|fma|f16c|bmi", name)}

    return vectors(target_features(target)) <= vectors(target_features(native_target()))


def inner_loops(assembly: str, instruction: str) -> list[list[str]]:
    """Returns the bodies of the loops without an inner one that hold the instruction."""
    lines, labels, found = assembly.splitlines(), {}, []
    for at, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = at
        jump = re.search(r"\bj\w+\s+(\.LBB\w+)", line)
        if jump and jump[1] in labels:
            body = lines[labels[jump[1]] + 1 : at]
            if not any(inner.startswith(".LBB") for inner in body) and re.search(instruction, "\n".join(body)):
                found.append(body)
    return found


@pytest.mark.parametrize("name", CHOSEN)
def test_a_cpu_gets_the_first_dot_product_that_it_can_run(name):
    assert select_dot(cpu(name)).name == CHOSEN[name][0]


def test_every_dot_product_is_some_cpus_choice():
    assert {dot.name for dot in DOT_PRODUCTS} == {name for name, _ in CHOSEN.values()}


def test_a_dot_product_that_the_target_lacks_names_the_feature():
    assert select_dot(cpu("cascadelake"), "avx2").name == "avx2"
    with pytest.raises(ValueError, match=r"avxvnni requires \['avxvnni'\]"):
        select_dot(cpu("haswell"), "avxvnni")
    with pytest.raises(ValueError, match=r"expected one of .*'avx2', 'portable'"):
        select_dot(cpu("haswell"), "neon")


@pytest.mark.parametrize("name", [name for name in CHOSEN if CHOSEN[name][0] != "portable"])
@pytest.mark.parametrize("case", LONG)
def test_the_reduction_is_the_instruction_and_nothing_is_spilled(name, case):
    dot, instruction = CHOSEN[name]
    kernel = Case(LONG[case]).dense(select_dot(cpu(name)))
    library = tvm.compile(tvm.IRModule({"main": kernel.func}), target=cpu(name))
    sources = [library.mod, *library.mod.imports]
    assembly = next(text for text in (m.inspect_source("asm") for m in sources) if text)
    loops = inner_loops(assembly, instruction)
    assert loops, dot
    for body in loops:
        stores = [line for line in body if re.search(r"vmov\w+\s+%[yz]mm\d+,\s.*\(", line)]
        assert stores == []
    # vpmaddubsw would saturate
    assert "maddubs" not in assembly


@pytest.mark.parametrize("dot", DOT_PRODUCTS, ids=lambda dot: dot.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_tile_fits_the_registers(dot, threads):
    schedule = choose_schedule(Work(WIDE, dot.name, threads))
    assert 1 <= schedule.pixels <= dot.greatest_pixels(schedule.vectors)
    accumulators = schedule.pixels * schedule.vectors * (16 // dot.lanes)
    assert accumulators + schedule.vectors * dot.weight_registers + dot.temporaries <= dot.registers


def test_packing_puts_consecutive_input_channels_of_a_lane_together():
    w = np.arange(3 * 1 * 1 * 5, dtype=np.int8).reshape(3, 1, 1, 5)
    packed = select_dot(cpu("haswell")).pack(w)
    assert packed.shape == (1, 1, 1, 2, 64)
    np.testing.assert_array_equal(packed[0, 0, 0, 0, :12], [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13])
    np.testing.assert_array_equal(packed[0, 0, 0, 1, :12], [4, 0, 0, 0, 9, 0, 0, 0, 14, 0, 0, 0])
    assert PORTABLE.pack(w).shape == (1, 1, 1, 5, 16)


@pytest.mark.parametrize("dot", RUNNABLE)
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_greatest_products_do_not_saturate(dot, weight):
    r = requantization(
        "fbgemm", "linear", input_q=QuantParams(1.0, 0), weight_scales=np.ones(16), bias_f32=None,
        output_q=QuantParams(2.0**14, 128), relu=False, channels=16,
    )  # fmt: skip
    kernel = linear(64, np.full((16, 64), weight, np.int8), 0, r, select_dot(native_target(), dot))
    got = run(kernel, native_target(), np.full((7, 64), 255, np.uint8), out_shape=(7, 16))
    np.testing.assert_array_equal(got, 128 + np.rint(64 * 255 * weight / 2.0**14).astype(int))


@pytest.fixture(scope="module")
def network():
    """A small network, its Relax form, an input and PyTorch's answer."""
    with TorchState("fbgemm", 1).active(), torch.inference_mode():
        network, x = SmallNetwork(), image(2, 3, 17, 19)
        expected = network(x).numpy()
    return from_torch(network, x, engine="fbgemm"), x.numpy(), expected


def outputs(module, target, dot, x):
    lowered, report = lower(module, LoweringOptions(target, dot=dot))
    machine = tvm.relax.VirtualMachine(build_executable(lowered, target), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy(), report


@pytest.mark.parametrize("name", CHOSEN)
def test_a_network_has_the_same_bits_on_every_cpu(name, network):
    target = cpu(name)
    if not runs_here(target):
        pytest.skip(f"this CPU cannot run code for {name}")
    module, x, expected = network
    got, report = outputs(module, target, None, x)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    assert convolutions_here(report.kernels, target) > 0


@pytest.mark.parametrize("dot", [dot.name for dot in DOT_PRODUCTS])
def test_a_network_has_the_same_bits_with_every_dot_product_forced(dot, network):
    if not next(d for d in DOT_PRODUCTS if d.name == dot).requires <= target_features(native_target()):
        pytest.skip(f"this CPU cannot run {dot}")
    module, x, expected = network
    got, report = outputs(module, native_target(), dot, x)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    assert convolutions_here(report.kernels, native_target(), dot) > 0
