"""How often the models of several flows agree."""

from __future__ import annotations

import numpy as np
import pytest

from quantvm.score.agreement import Answers, agreement_of_flows


def sample(image: str, label: int, flow: str, *best: int | None, model: str = "m", numerics: str = "torch") -> dict:
    return {"model": model, "key": (flow, numerics), "id": image, "label": label, "best": best}


def agreement(samples):
    """Returns the rows for samples in any order."""
    models = {}
    for model in dict.fromkeys(each["model"] for each in samples):
        for key in dict.fromkeys(each["key"] for each in samples if each["model"] == model):
            mine = [each for each in samples if (each["model"], each["key"]) == (model, key)]
            fp32, torch, tvm = zip(*(each["best"] for each in mine), strict=True)
            ids = [each["id"] for each in mine]
            answers = Answers(*key, ids, np.array([each["label"] for each in mine]), np.array(tvm))
            answers.torch = None if None in torch else np.array(torch)
            answers.fp32 = {image: best for image, best in zip(ids, fp32, strict=True) if best is not None}
            models.setdefault(model, []).append(answers)
    return agreement_of_flows(models)


def test_answers_of_every_two_sides_are_compared():
    samples = [
        sample("a", 1, "eager", 1, 1, 2), sample("b", 2, "eager", 2, 3, 2),
        sample("a", 1, "fx", 1, 1, 1), sample("b", 2, "fx", 2, 2, 3),
    ]  # fmt: skip
    (row,) = agreement(samples)
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
    (row,) = agreement(samples)
    assert row["top1"] == [100] * 5


def test_a_float_model_that_ran_on_some_images_only_is_left_out():
    samples = [sample("a", 1, flow, 1, 1, 1) for flow in ("eager", "fx")]
    samples += [sample("b", 2, flow, None, 2, 2) for flow in ("eager", "fx")]
    (row,) = agreement(samples)
    assert (row["sides"][0], row["top1"]) == ("eager PyTorch", [100] * 4)


def test_one_flow_alone_has_no_row_and_an_engine_that_did_not_run_no_side():
    one = sample("a", 1, "eager", 1, 1, 1)
    assert agreement([one, sample("a", 1, "fx", 1, 1, 1, model="other")]) == []
    (row,) = agreement([one, sample("a", 1, "fx", None, None, 1)])
    assert row["sides"] == ["fp32", "eager PyTorch", "eager TVM", "fx TVM"]


@pytest.mark.parametrize(("numerics", "side"), [("qdq", "fx TVM"), ("integer", "fx TVM integer")])
def test_numerics_of_a_choice_are_named(numerics, side):
    samples = [sample("a", 1, "eager", 1, 1, 1), sample("a", 1, "fx", 1, 1, 1, numerics=numerics)]
    assert agreement(samples)[0]["sides"][-1] == side
