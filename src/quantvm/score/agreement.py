"""How often models that different flows quantized from one float model give the same answer to an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantvm.score.schema import AgreementRow, SampleRow


def agreement_of_flows(samples: Sequence[SampleRow]) -> list[AgreementRow]:
    """Returns a row for each model measured with more than one flow; only images that all sides ran are counted."""
    rows = []
    for model in dict.fromkeys(sample["model"] for sample in samples):
        mine = [sample for sample in samples if sample["model"] == model]
        if len({sample["flow"] for sample in mine}) > 1:
            rows.append(_row(model, mine))
    return rows


def _row(model: str, samples: Sequence[SampleRow]) -> AgreementRow:
    answers = _answers(samples)
    labels = {sample["id"]: sample["label"] for sample in samples}
    common = [image for image in labels if all(image in of for of in answers.values())]
    best = np.array([[of[image] for image in common] for of in answers.values()])
    expected = np.array([labels[image] for image in common])
    same = (best[:, None, :] == best[None, :, :]).mean(-1) * 100
    return {
        "model": model,
        "sides": list(answers),
        "top1": ((best == expected).mean(-1) * 100).tolist(),
        "same_top1": same.tolist(),
    }


def _answers(samples: Sequence[SampleRow]) -> dict[str, dict[str, int]]:
    """Returns the best class of every image, for fp32 and for each flow and engine."""
    several = len({sample["numerics"] for sample in samples if sample["numerics"] not in ("torch", "qdq")}) > 0
    answers: dict[str, dict[str, int]] = {}
    for sample in samples:
        flow = sample["flow"]
        tvm = f"{flow} TVM {sample['numerics']}" if several else f"{flow} TVM"
        for side, top5 in (
            ("fp32", sample["fp32_top5"]),
            (f"{flow} PyTorch", sample["torch_top5"]),
            (tvm, sample["tvm_top5"]),
        ):
            if top5 is not None:
                answers.setdefault(side, {})[sample["id"]] = top5[0]
    return answers
