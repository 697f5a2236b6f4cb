import pytest

from quantvm.jobs.evaluation.text import (
    accuracy_table,
    conditions,
    detail_table,
    markdown_report,
    model_lines,
    notices,
    remarks,
    summary_lines,
)

from .rows import SKIPPED, model_row, run_row

ORIGINAL = """\
Model name: mobilenet_v3 small, per channel quantization
PyTorch accuracy: Top1 = 87.50, Top5 = 95.00
TVM accuracy: Top1 = 87.50, Top5 = 95.00
PyTorch top5 label: [101 386 385 340 354]
TVM top5 label: [101 386 385 340 351]
PyTorch top5 raw output: [18.008299 17.13693  14.813278  8.423237  8.13278 ]
TVM top5 raw output: [17.717844 16.846474 14.232366  8.423237  8.13278 ]
max abs diff: 0.87136936
mean abs_diff: 0.14464732
532 in 1000 raw outputs correct.
""".splitlines()


def test_the_original_lines_come_first_and_exactly():
    lines = model_lines(model_row())
    assert lines[: len(ORIGINAL)] == ORIGINAL


def test_then_what_holds_for_all_images():
    assert model_lines(model_row())[len(ORIGINAL) :] == [
        "All 40 images: 39999 of 40000 raw outputs identical",
        "All 40 images: 39 of 40 images identical",
        "All 40 images: top-1 agreement 100.00 %, greatest difference 0.125 (1 step of the output's quantization)",
        "fp32 accuracy: Top1 = 90.00, Top5 = 97.50",
        "Status: passed",
    ]


def test_per_tensor_is_named():
    assert model_lines(model_row(scheme="per-tensor"))[0].endswith(", per tensor quantization")


def test_identical_outputs_print_as_zero():
    model = model_row()
    model["parity"]["first_image"] |= {"max_abs_diff": 0.0, "mean_abs_diff": 0.0}
    lines = model_lines(model)
    assert "max abs diff: 0.0" in lines
    assert "mean abs_diff: 0.0" in lines


def test_a_skipped_model_has_its_reason_and_remedy():
    assert model_lines(SKIPPED) == [
        "Model name: resnet18, per channel quantization",
        "Status: skipped: resnet18-f37072fd.pth is not on this machine",
        "Remedy: With a network run: quantvm fetch weights",
    ]


def test_the_table_is_the_original_one():
    assert accuracy_table(run_row()) == [
        "Model name | Torch-Top1 | Torch-Top5 | TVM-Top1 | TVM-Top5",
        "-- | -- | -- | -- | --",
        "mobilenet_v3 small|87.50|95.00|87.50|95.00",
        "resnet18|skipped|skipped|skipped|skipped",
    ]


def test_every_table_row_has_as_many_cells_as_its_head():
    for table in (accuracy_table(run_row()), detail_table(run_row())):
        assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize(("share", "text"), [(1.0, "100 %"), (0.9999, "99.9 %"), (0.5, "50.0 %"), (0.0, "0.0 %")])
def test_a_share_is_never_rounded_up(share, text):
    assert f"|{text}|" in detail_table(run_row(models=[model_row(int8_mac_share=share)]))[-1]


def test_nothing_to_notice():
    assert notices(run_row()) == []


def test_random_weights_are_the_first_line():
    run = run_row(config__weights="random", dataset__is_default=True, dataset__n_used=20, interrupted=True)
    random, interrupted, default = notices(run)
    assert random.startswith("RANDOM WEIGHTS")
    assert interrupted.startswith("INTERRUPTED")
    assert default.startswith("DEFAULT DATA")
    assert "one image is 5.0 points" in default
    assert markdown_report(run).startswith("**RANDOM WEIGHTS")


def test_bad_images_are_noticed_and_listed():
    run = run_row(dataset__n_bad=1, dataset__bad=[{"path": "/data/x.jpg", "reason": "truncated"}])
    assert notices(run)[0].startswith("BAD IMAGES: 1 ")
    assert "- Bad image: /data/x.jpg: truncated" in remarks(run)


def test_remarks_name_why_a_row_has_no_numbers_and_what_is_float():
    run = run_row(models=[model_row(float_ops=["aten::softmax"]), SKIPPED])
    assert remarks(run) == [
        "- mobilenet_v3 small computes in float: aten::softmax.",
        "- resnet18, skipped: resnet18-f37072fd.pth is not on this machine. With a network run: quantvm fetch weights",
    ]


def test_conditions_hold_what_a_reader_needs():
    text = "\n".join(conditions(run_row(dataset__notes=["labels are made up"])))
    for part in (
        "shots, n = 40 images (40 asked for, seed 0)",
        "labels are made up",
        "Calibration: 20 of 600 images of shots (train)",
        "Quantization: per-channel, engine fbgemm; numerics torch\n- Target: llvm -mcpu=znver5",
        "Threads 2, batch size 8",
        "python 3.11.0, torch 2.13.0",
        "Some CPU, 2 cores; avx512vnni avx2",
        "Weights of mobilenet_v3 small: file small.pth, sha256 abababababab",
    ):
        assert part in text
    assert "nothing" not in text


def test_conditions_that_do_not_hold_for_all_models_name_theirs():
    own = {"source": "none, the weights bring their own ranges", "n": 0}
    file = model_row(title="x.onnx", scheme="its-own", engine="onnx", numerics="qdq", calibration=own)
    pt2e = model_row(engine="pt2e", flow="pt2e", numerics="qdq")
    lines = conditions(run_row(models=[model_row(), file, pt2e, SKIPPED]))
    assert [line for line in lines if line.startswith(("- Calibration", "- Quantization"))] == [
        "- Calibration of mobilenet_v3 small: 20 of 600 images of shots (train)",
        "- Calibration of x.onnx: none, the weights bring their own ranges",
        "- Quantization of mobilenet_v3 small: per-channel, engine fbgemm; numerics torch",
        "- Quantization of x.onnx: the model's own; numerics qdq",
        "- Quantization of mobilenet_v3 small (pt2e): per-channel; numerics qdq",
    ]
    assert "- Quantization: the model's own; numerics qdq" in conditions(run_row(models=[file]))


def test_operators_in_float_that_occur_again_are_counted():
    float_ops = ["negative (a)", "exp (b)", "softmax (c)", "negative (d)", "exp (e)"]
    assert remarks(run_row(models=[model_row(float_ops=float_ops)])) == [
        "- mobilenet_v3 small computes in float: negative ×2, exp ×2, softmax "
        "(first: negative (a); run.json lists all 5)."
    ]


def test_models_with_the_same_weights_share_a_line():
    random = {"source": "random", "sha256": None}
    models = [model_row(title=title, weights=random) for title in ("a", "b")]
    assert conditions(run_row(models=models))[-1] == "- Weights of a, b: random"


def test_a_run_in_which_all_models_failed_still_has_a_summary():
    run = run_row(models=[SKIPPED])
    assert "Calibration: none" in "\n".join(summary_lines(run))
    assert markdown_report(run).count("```") == 2


def test_rows_of_other_numerics_say_so_and_have_their_times():
    near = model_row(numerics="integer:away", latency_ms=2.346)
    run = run_row(models=[model_row(latency_ms=1.5), near, SKIPPED], config__numerics=["torch", "integer:away"])
    assert "Quantization: per-channel, engine fbgemm; numerics torch, integer:away\n" in "\n".join(conditions(run))
    names = [line.split("|")[0].strip() for line in accuracy_table(run)[2:]]
    assert names == ["mobilenet_v3 small", "mobilenet_v3 small (integer:away)", "resnet18"]
    head, separator, *rows = detail_table(run)
    assert head.endswith("| TVM ms per image")
    assert separator.endswith(" | --")
    assert [row.split("|")[-1] for row in rows] == ["1.50", "2.35", ""]
    assert {row.count("|") for row in (head, separator, *rows)} == {head.count("|")}
    assert model_lines(near)[0] == "Model name: mobilenet_v3 small, per channel quantization, numerics integer:away"
    weights = [line for line in conditions(run) if line.startswith("- Weights")]
    assert weights == ["- Weights of mobilenet_v3 small: file small.pth, sha256 abababababab"]


def test_agreement_of_flows_is_a_table():
    agreement = {
        "model": "resnet18",
        "sides": ["fp32", "fx TVM"],
        "top1": [70.0, 68.5],
        "same_top1": [[100.0, 96.25], [96.25, 100.0]],
    }
    lines = summary_lines(run_row(agreement=[agreement]))
    start = lines.index("resnet18: same top-1 in % of the images | Top-1 | fp32 | fx TVM")
    assert lines[start + 1 : start + 4] == ["-- | -- | -- | --", "fp32|70.00|100.00|96.25", "fx TVM|68.50|96.25|100.00"]


def test_rows_of_other_flows_say_so():
    row = model_row(flow="fx")
    assert model_lines(row)[0].endswith("per channel quantization, flow fx")
    assert any(line.startswith(f"{row['title']} (fx)|") for line in accuracy_table(run_row(models=[row])))


def test_several_kinds_of_cpu_have_a_column_and_what_differs_is_said():
    same = {"cpus": ["Some CPU", "Zen 5"], "n_images": 32, "tvm": 32, "torch": 30}
    run = run_row(models=[model_row(cpus=["Some CPU", "Zen 5"], same_bits=same), SKIPPED])
    head, separator, *rows = detail_table(run)
    assert head.endswith(" | Same bits on kinds of CPU")
    assert [row.split("|")[-1] for row in rows] == ["2 kinds: TVM 32 / 32, PyTorch 30 / 32", ""]
    assert {row.count("|") for row in (head, separator, *rows)} == {head.count("|")}
    assert "- Computed on 2 kinds of CPU: Some CPU; Zen 5" in conditions(run)
    assert remarks(run)[0].endswith(
        "PyTorch's raw outputs of 2 of 32 images differ between kinds of CPU: it chooses other kernels there."
    )
    run["models"][0]["same_bits"] = same | {"tvm": 31, "torch": None}
    assert "TVM's raw outputs of 1 of 32 images differ between kinds of CPU" in remarks(run)[0]
    run["models"][0]["same_bits"] = None
    assert remarks(run)[0].endswith("computed on 2 kinds of CPU, whose raw outputs were not compared.")
    assert "kinds of CPU" not in "\n".join(summary_lines(run_row()))
