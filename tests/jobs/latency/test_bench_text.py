"""The tables of latency, from what the benchmark finds with fake workers."""

from __future__ import annotations

import pytest

from quantvm.jobs.latency.text import bench_lines, bench_report

from .bench_fakes import FakeBench, failing, run_bench


def text_of(fakes=None, **options):
    result = run_bench(fakes or FakeBench(), **{"threads": 2, **options})
    return bench_lines(result.bench)


def test_rows_are_models_columns_engines_and_the_mean_comes_last():
    lines = text_of()
    at = lines.index("Batch 1, 2 threads: p50 in ms")
    assert lines[at + 2 : at + 7] == [
        "| model | tvm | torch_fbgemm | torch_x86 | torch_onednn | onnxruntime | openvino | tvm_vs_best |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| ALPHA | 1.00 | 2.00 | 1.50 | 2.50 | 3.00 | 1.25 | 1.25× |",
        "| BETA | 1.00 | 2.00 | 1.50 | 2.50 | 3.00 | 1.25 | 1.25× |",
        "| geometric mean |  |  |  |  |  |  | 1.25× |",
    ]
    assert "| ALPHA | 1000 | 500 | 667 | 400 | 333 | 800 |" in lines


def test_conditions_stand_under_the_table():
    text = "\n".join(text_of())
    for part in ("20 raw outputs have the bits of torch_fbgemm", "Fake CPU, 3 cores", "torch 2.13.0", "0.25, 0.25"):
        assert part in text
    assert text.index("geometric mean") < text.index("Fake CPU")


def test_an_empty_column_has_its_reason():
    fakes = FakeBench(trouble={"openvino": {"load": failing()}}, missing={"onnxruntime": "not installed: onnx"})
    lines = text_of(fakes)
    assert "| ALPHA | 1.00 | 2.00 | 1.50 | 2.50 |  |  | 1.50× |" in lines
    assert "- onnxruntime: missing: not installed: onnx" in lines
    assert "- openvino: error: load of batch 1: RuntimeError: engine on fire" in lines


def test_wrong_bits_are_named_with_their_setting():
    fakes = FakeBench(trouble={"tvm": {"outputs": lambda y: y + 1 if len(y) == 2 else y}})
    lines = text_of(fakes, models="alpha", batch_sizes=(1, 2))
    (line,) = [line for line in lines if line.startswith("- tvm: failed")]
    assert "20 of 20 raw outputs differ" in line
    assert line.endswith("[ALPHA (batch 2, 2 threads)]")


def test_noise_and_unlikely_outputs_are_told(monkeypatch):
    from . import bench_fakes

    def noisy(self, batch, calls, seconds):
        return {"samples_ms": [1.0, 2.0, 3.0] * 1000}

    monkeypatch.setattr(bench_fakes.FakeWorker, "_measure", noisy)
    fakes = FakeBench(trouble={"openvino": {"outputs": lambda y: -y}})
    text = "\n".join(text_of(fakes, models="alpha", seconds=0.1))
    assert "2.00~" in text
    assert "6 of 6 are, most of all tvm on ALPHA, batch 1, 2 threads with 100 %" in text
    assert "- openvino: its outputs are far from the float model's" in text


def test_random_weights_and_skipped_models_are_told():
    lines = text_of(FakeBench(unavailable=("beta",)), weights="random")
    assert lines[0].startswith("RANDOM WEIGHTS")
    assert any(line.startswith("- BETA, skipped: there is no network") for line in lines)


@pytest.mark.parametrize("engines", [("openvino",), ("torch_x86", "onnxruntime")])
def test_without_tvm_there_is_no_ratio(engines):
    text = "\n".join(text_of(engines=engines))
    assert "×" not in text
    assert "geometric mean" not in text
    assert "bits" not in text


def test_a_profile_stands_under_the_tables_in_a_block_of_its_own():
    lines = text_of(models="alpha", profile=True)
    at = lines.index("Where TVM's time goes: ALPHA, batch 1, 2 threads")
    assert lines[at + 2] == "```"
    assert lines[at + 5].split()[0] == "stem"
    assert "```" in lines[at + 6 :]
    assert not any(line.startswith("Where") for line in text_of(models="alpha"))


def test_the_report_has_every_figure():
    result = run_bench(FakeBench(), threads=2, batch_sizes=(1, 8))
    report = bench_report(result.bench)
    assert "## BETA, batch 8, 2 threads" in report
    assert "first call ms" in report
    assert "inference peak MiB" in report
