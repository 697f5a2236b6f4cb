"""The tables of a profile."""

from __future__ import annotations

from quantvm.jobs.latency.profile_text import WIDTH, profile_lines


def call(**changes):
    return {
        "layer": "layer1_0_conv1", "op": "conv2d", "kernel": "conv2d_u8i8acc32_vnni",
        "in_shapes": [[1, 56, 56, 64]], "out_shape": [1, 56, 56, 64], "macs": 10**9, "p50_ms": 2.0, **changes,
    }  # fmt: skip


def profile(*calls, **changes):
    return {
        "total_ms": 4.0, "kernels_ms": sum(c["p50_ms"] for c in calls), "hook_ms": 0.25, "instrumented_ms": 5.0,
        "n": 40, "calls": list(calls), **changes,
    }  # fmt: skip


ADD = call(layer="add", op="add", kernel="add_u8", in_shapes=[[1, 8], [1, 8]], out_shape=[1, 8], macs=0, p50_ms=0.5)


def cells(lines, start):
    return next(line for line in lines if line.startswith(start)).split()


def test_calls_stand_in_order_of_execution_with_their_rate():
    lines = profile_lines(profile(call(), ADD))
    assert lines[0].split() == ["layer", "op", "shape", "kernel", "ms", "share", "TOPS"]
    assert lines[2].split() == [
        "layer1_0_conv1", "conv2d", "56×56×64", "→", "56×56×64", "vnni", "2.000", "50.0", "%", "1.00",
    ]  # fmt: skip
    # a layer without a name of its own has none, and what multiplies nothing has no rate
    assert lines[3].split() == ["add", "8", "→", "8", "u8", "0.500", "12.5", "%"]


def test_kernels_and_the_rest_add_up_to_the_total():
    lines = profile_lines(profile(call(), call(p50_ms=1.0), ADD))
    sums = lines[lines.index("") + 1 :]
    assert cells(sums, "conv2d_vnni") == ["conv2d_vnni", "2", "3.000", "75.0", "%", "1.33"]
    assert cells(sums, "add_u8") == ["add_u8", "1", "0.500", "12.5", "%"]
    assert cells(sums, "instrumentation")[-3:] == ["-0.250", "-6.2", "%"]
    assert cells(sums, "the rest")[-3:] == ["0.750", "18.8", "%"]
    assert cells(sums, "total")[-5:] == ["3", "4.000", "100.0", "%", "1.00"]


def test_an_operator_left_in_float_is_called_so():
    lines = profile_lines(profile(call(layer="lv3", op="softmax", kernel="", macs=0)))
    assert lines[2].split()[5:6] == ["float"]
    assert any(line.startswith("float softmax") for line in lines)


def test_the_cost_of_measuring_is_said():
    text = "\n".join(profile_lines(profile(call(), ADD)))
    assert "Medians of 40 runs" in text
    assert "about 125.0 µs of instrumentation" in text
    assert "a run takes 5.000 ms" in text


def test_tables_fit_the_width_by_cutting_the_start_of_layers():
    long = call(layer="features_3_block_0_squeeze_excitation_" * 3 + "fc1", op="adaptive_avg_pool2d")
    lines = profile_lines(profile(long, ADD))
    assert max(map(len, lines)) <= WIDTH
    assert lines[2].startswith("…")
    assert "fc1  adaptive" in lines[2]


def test_an_operator_is_named_once():
    kernel = "float_adaptive_avg_pool2d_u8"
    (row,) = profile_lines(profile(call(layer="pool", op="adaptive_avg_pool2d", kernel=kernel, macs=0)))[2:3]
    assert row.split("  ")[0].strip() == "pool"
    assert "adaptive_avg_pool2d" in row
    assert kernel not in row
    assert "float_u8" in row
