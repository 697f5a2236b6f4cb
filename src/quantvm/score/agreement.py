"""How often models that different flows quantized from one float model give the same answer to an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quantvm.score.schema import AgreementRow

_FP32 = "fp32"


@dataclass
class Answers:
    """The best classes of one model by one flow under some numerics.

    Attributes:
        flow, numerics: of the row.
        ids: of the images.
        labels: (N,), the true classes.
        tvm: (N,), TVM's answers.
        torch: (N,), the reference's; None without one.
        fp32: the float model's, by id, of all images or of some.
    """

    flow: str
    numerics: str
    ids: Sequence[str]
    labels: npt.NDArray[np.int64]
    tvm: npt.NDArray[np.int64]
    torch: npt.NDArray[np.int64] | None = None
    fp32: Mapping[str, int] = field(default_factory=dict)


def agreement_of_flows(models: Mapping[str, Sequence[Answers]]) -> list[AgreementRow]:
    """Returns a row for each model measured with more than one flow; only images that all sides ran are counted.

    The float model is left out if it did not run on all of these.
    """
    return [_row(name, found) for name, found in models.items() if len({each.flow for each in found}) > 1]


def _row(model: str, found: Sequence[Answers]) -> AgreementRow:
    sides = _sides(found)
    labels = {image: label for each in found for image, label in zip(each.ids, each.labels.tolist(), strict=True)}
    quantized = [of for side, of in sides.items() if side != _FP32]
    common = [image for image in labels if all(image in of for of in quantized)]
    if any(image not in sides.get(_FP32, {}) for image in common):
        sides.pop(_FP32, None)
    best = np.array([[of[image] for image in common] for of in sides.values()])
    expected = np.array([labels[image] for image in common])
    same = (best[:, None, :] == best[None, :, :]).mean(-1) * 100
    return {
        "model": model,
        "sides": list(sides),
        "top1": ((best == expected).mean(-1) * 100).tolist(),
        "same_top1": same.tolist(),
    }


def _sides(found: Sequence[Answers]) -> dict[str, Mapping[str, int]]:
    """Returns the best class of every image, for fp32 and for each flow and engine."""
    several = any(each.numerics not in ("torch", "qdq") for each in found)
    sides: dict[str, Mapping[str, int]] = {}
    for each in found:
        tvm = f"{each.flow} TVM {each.numerics}" if several else f"{each.flow} TVM"
        if each.fp32:
            sides[_FP32] = each.fp32
        if each.torch is not None:
            sides[f"{each.flow} PyTorch"] = dict(zip(each.ids, each.torch.tolist(), strict=True))
        sides[tvm] = dict(zip(each.ids, each.tvm.tolist(), strict=True))
    return sides
