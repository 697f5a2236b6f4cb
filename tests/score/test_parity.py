import re

import numpy as np
import pytest

from quantvm.errors import ConfigError
from quantvm.score.parity import OutputShapeError, ParityCount, Tolerance, check_outputs, judge, shortest_float

EXPECTED = (np.arange(40, dtype=np.float32).reshape(4, 10) * 7 % 40) / 8
IDS = ("a", "b", "c", "d")


def count(actual, expected=EXPECTED, ids=IDS):
    parity = ParityCount()
    parity.add(actual, expected, ids)
    return parity


def verdict(actual, check_parity=None, min_top1=None, top1=50.0, expected=EXPECTED, scale=0.125):
    parity = count(actual, expected)
    return judge(parity.row(scale), parity.mistrust(), top1, check_parity, min_top1)


def changed(index, value):
    actual = EXPECTED.copy()
    actual[index] = value
    return actual


def test_identical_outputs():
    row = count(EXPECTED.copy()).row(0.125)
    assert (row["raw_outputs_identical"], row["raw_outputs_total"]) == (40, 40)
    assert (row["images_identical"], row["images_total"]) == (4, 4)
    assert row["max_abs_diff"] == row["mean_abs_diff"] == row["max_lsb"] == 0
    assert row["greatest_difference"] is None
    assert row["top1_agreement"] == 100
    assert verdict(EXPECTED.copy(), "exact") == ("passed", None)


def test_identity_is_of_bits():
    expected = changed((0, 0), 0.0)
    actual = expected.copy()
    actual[0, 0] = -0.0
    row = count(actual, expected).row(None)
    assert row["raw_outputs_identical"] == 39
    assert (row["max_abs_diff"], row["max_lsb"]) == (0.0, 0)
    assert row["greatest_difference"] == {"id": "a", "index": 0, "torch": 0.0, "tvm": 0.0}
    assert verdict(actual, "exact", expected=expected)[0] == "failed"
    assert verdict(actual, "lsb:0", expected=expected)[0] == "passed"


def test_the_same_nan_is_identical_but_mistrusted():
    both = changed((0, 0), np.nan)
    row = count(both, both.copy()).row(0.125)
    assert row["raw_outputs_identical"] == 40
    assert row["max_abs_diff"] == 0
    status, reason = verdict(both, "exact", expected=both.copy())
    assert status == "mistrusted"
    assert "not finite" in reason


def test_one_difference_is_counted_located_and_measured():
    actual = changed((2, 3), EXPECTED[2, 3] + 0.25)
    row = count(actual).row(0.125)
    assert row["raw_outputs_identical"] == 39
    assert row["images_identical"] == 3
    assert row["max_abs_diff"] == 0.25
    assert row["mean_abs_diff"] == pytest.approx(0.25 / 40)
    assert row["max_lsb"] == 2
    assert row["greatest_difference"] == {
        "id": "c",
        "index": 3,
        "torch": float(EXPECTED[2, 3]),
        "tvm": float(actual[2, 3]),
    }


@pytest.mark.parametrize(
    ("check", "status"), [("exact", "failed"), ("lsb:1", "failed"), ("lsb:2", "passed"), (None, "passed")]
)
def test_a_check_allows_up_to_its_steps(check, status):
    actual = changed((2, 3), EXPECTED[2, 3] + 0.25)
    found, reason = verdict(actual, check)
    assert found == status
    assert "1 of 40 raw outputs differ (2.50 %), the greatest difference is 0.25" in reason
    assert "class 3 of c" in reason
    assert "lsb:2 would allow it" in reason


def test_a_pass_with_differences_says_why_it_is_one():
    actual = changed((2, 3), np.nextafter(EXPECTED[2, 3], np.float32(9)))
    parity = count(actual).row(None)
    judged = {
        numerics: judge(parity, None, 50.0, None, None, numerics=numerics, reference="ONNX Runtime")
        for numerics in ("torch", "integer:away", "qdq")
    }
    assert {status for status, _ in judged.values()} == {"passed"}
    why = {numerics: reason.split(": 1 of 40 raw outputs differ")[0] for numerics, (_, reason) in judged.items()}
    facts = {"torch": "no parity check", "integer:away": "integer:away .* ONNX Runtime", "qdq": "ties.*quantvm diff"}
    assert all(re.search(facts[numerics], why[numerics]) for numerics in why)
    assert "(class 3 of c: TVM 0.12500001, ONNX Runtime 0.125)" in judged["qdq"][1]
    assert verdict(changed((2, 3), EXPECTED[2, 3] + 0.25), "lsb:2")[1].startswith("parity check 'lsb:2' met: 1 of")
    assert judge(parity, None, 50.0, "exact", None, numerics="integer")[0] == "passed"


def test_steps_are_rounded_and_unknown_without_a_scale():
    actual = changed((2, 3), EXPECTED[2, 3] + np.float32(0.12500003))
    assert count(actual).row(0.125)["max_lsb"] == 1
    assert count(actual).row(None)["max_lsb"] is None
    assert verdict(actual, "lsb:9", scale=None)[0] == "failed"


def test_a_difference_that_is_not_finite():
    row = count(changed((1, 1), np.inf)).row(0.125)
    assert row["max_abs_diff"] is None
    assert row["mean_abs_diff"] is None
    assert row["max_lsb"] is None
    status, reason = verdict(changed((1, 1), np.inf), "lsb:100")
    assert status == "failed"
    assert "not finite" in reason


def test_batches_add_up_and_the_first_image_is_the_first_of_all():
    parity = ParityCount()
    parity.add(EXPECTED[:3], EXPECTED[:3], IDS[:3])
    parity.add(EXPECTED[3:] + 1, EXPECTED[3:], IDS[3:])
    row = parity.row(0.125)
    assert (row["raw_outputs_identical"], row["raw_outputs_total"]) == (30, 40)
    assert row["greatest_difference"]["id"] == "d"
    first = row["first_image"]
    assert first["id"] == "a"
    assert (first["identical"], first["total"]) == (10, 10)
    assert first["torch_top5_labels"] == np.argsort(-EXPECTED[0])[:5].tolist()
    assert first["torch_top5_raw"] == sorted(EXPECTED[0].tolist(), reverse=True)[:5]


def test_top1_agreement():
    actual = changed((0, 2), 100.0)
    actual[1] = EXPECTED[1]
    assert count(actual).row(None)["top1_agreement"] == 75


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (None, "no output"),
        (np.zeros((3, 10), np.float32), r"float32 \(3, 10\)"),
        (np.zeros((4, 10), np.float64), "float64"),
        (np.zeros((4,), np.float32), r"\(4,\)"),
        (np.zeros((4, 0), np.float32), r"\(4, 0\)"),
    ],
)
def test_missing_or_misshapen_outputs_are_refused(outputs, text):
    with pytest.raises(OutputShapeError, match=text):
        check_outputs("TVM", outputs, 4)


def test_engines_with_different_numbers_of_classes_are_refused():
    with pytest.raises(OutputShapeError, match=r"TVM returned \(4, 9\), PyTorch \(4, 10\)"):
        count(EXPECTED[:, :9])


def test_nothing_compared_is_no_result():
    with pytest.raises(OutputShapeError, match="no image"):
        ParityCount().row(None)


def mostly(value, n_other):
    outputs = np.full((4, 10), value, dtype=np.float32)
    outputs[:, :n_other] = np.arange(1, 4 * n_other + 1).reshape(4, n_other)
    return outputs


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (np.zeros((4, 10), np.float32), "mostly zeros: 100 %"),
        (mostly(0, 4), "mostly zeros: 60 %"),
        (mostly(-3.5, 4), "mostly constant outputs: on average 60 %"),
        (np.tile(np.arange(10, dtype=np.float32), (4, 1)), "the same outputs for all 4 images"),
    ],
)
def test_outputs_that_prove_little_are_mistrusted_never_passed(outputs, reason):
    status, found = verdict(outputs, "exact", expected=outputs.copy())
    assert status == "mistrusted"
    assert f"PyTorch gives {reason}" in found
    assert f"TVM gives {reason}" in found


def test_half_zeros_are_trusted():
    assert verdict(mostly(0, 5), expected=mostly(0, 5))[0] == "passed"


def test_one_image_alone_is_not_constant():
    parity = ParityCount()
    parity.add(EXPECTED[:1], EXPECTED[:1], ("a",))
    assert parity.mistrust() is None


def test_a_failed_check_outranks_mistrust_and_names_both():
    status, reason = verdict(np.zeros((4, 10), np.float32), "exact")
    assert status == "failed"
    assert "raw outputs differ" in reason
    assert "TVM gives mostly zeros" in reason


def test_accuracy_below_the_bound_fails():
    status, reason = verdict(EXPECTED.copy(), min_top1=60.0, top1=59.99)
    assert status == "failed"
    assert "TVM top-1 is 59.99 %, asked for at least 60.00 %" in reason
    assert verdict(EXPECTED.copy(), min_top1=60.0, top1=60.0) == ("passed", None)


@pytest.mark.parametrize("text", ["", "lsb", "lsb:", "lsb:-1", "lsb:1.5", "close", "Exact"])
def test_unknown_tolerances_are_refused(text):
    with pytest.raises(ConfigError, match="expected 'exact' or 'lsb:N'"):
        Tolerance.parse(text)


def test_shortest_float_survives_the_way_to_json_and_back():
    for value in np.random.default_rng(0).normal(size=200).astype(np.float32):
        assert np.float32(shortest_float(value)) == value
    assert shortest_float(np.float32(0.1)) == 0.1
