"""How often the models of several flows agree."""

from __future__ import annotations

import pytest

from quantvm.score.agreement import agreement_of_flows


def sample(image: str, label: int, flow: str, *best: int | None, model: str = "m", numerics: str = "torch") -> dict:
    top5 = [None if one is None else [one, 9, 8, 7, 6] for one in best]
    named = dict(zip(("fp32_top5", "torch_top5", "tvm_top5"), top5, strict=True))
    return {"model": model, "flow": flow, "numerics": numerics, "id": image, "label": label, **named}


def test_answers_of_every_two_sides_are_compared():
    samples = [
        sample("a", 1, "eager", 1, 1, 2), sample("b", 2, "eager", 2, 3, 2),
        sample("a", 1, "fx", 1, 1, 1), sample("b", 2, "fx", 2, 2, 3),
    ]  # fmt: skip
    (row,) = agreement_of_flows(samples)
    assert row["model"] == "m"
    assert row["sides"] == ["fp32", "eager PyTorch", "eager TVM", "fx PyTorch", "fx TVM"]
    assert row["top1"] == [100, 50, 50, 100, 50]
    assert row["same_top1"][0] == [100, 50, 50, 100, 50]
    assert row["same_top1"][1] == [50, 100, 0, 50, 100]
    assert [row["same_top1"][i][i] for i in range(5)] == [100] * 5


def test_images_that_one_side_did_not_run_do_not_count():
    samples = [
        sample("a", 1, "eager", 1, 1, 1), sample("b", 2, "eager", 0, 0, 0), sample("a", 1, "fx", 1, 1, 1),
    ]  # fmt: skip
    (row,) = agreement_of_flows(samples)
    assert row["top1"] == [100] * 5


def test_one_flow_alone_has_no_row_and_an_engine_that_did_not_run_no_side():
    one = sample("a", 1, "eager", 1, 1, 1)
    assert agreement_of_flows([one, sample("a", 1, "fx", 1, 1, 1, model="other")]) == []
    (row,) = agreement_of_flows([one, sample("a", 1, "fx", None, None, 1)])
    assert row["sides"] == ["fp32", "eager PyTorch", "eager TVM", "fx TVM"]


@pytest.mark.parametrize(("numerics", "side"), [("qdq", "fx TVM"), ("integer", "fx TVM integer")])
def test_numerics_of_a_choice_are_named(numerics, side):
    samples = [sample("a", 1, "eager", 1, 1, 1), sample("a", 1, "fx", 1, 1, 1, numerics=numerics)]
    assert agreement_of_flows(samples)[0]["sides"][-1] == side
