"""Parity of raw outputs: TVM is always the actual side, PyTorch the expected one.

``ParityCount`` collects the facts batch by batch, ``parity_row`` sums them up, and ``judge`` turns them into a verdict.
What a check allows is stated
in one place, ``Tolerance``:

| check   | allows                                                                                          |
| ------- | ----------------------------------------------------------------------------------------------- |
| `exact` | nothing: every raw output has the same 32 bits                                                   |
| `lsb:N` | a difference of up to N steps of the output's quantization, rounded to whole steps               |
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quantvm.errors import ConfigError
from quantvm.score.image_columns import Columns, columns_of_comparison, columns_of_side, joined
from quantvm.score.schema import FirstImageRow, GreatestDifferenceRow, ParityRow, Status

ArrayF32 = npt.NDArray[np.float32]

# If more than this share of an image's outputs have the same value, equal outputs prove little about the engine.
MISTRUSTED_SHARE = 0.5


class OutputShapeError(ValueError):
    """An engine returned no output, or one of another shape or dtype than it must."""


@dataclass(frozen=True)
class Tolerance:
    """The greatest difference that a parity check allows, in steps of the output's quantization."""

    max_lsb: int

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Returns the tolerance that `exact` or `lsb:N` names.

        Raises:
            ConfigError: if the text is neither.
        """
        if text == "exact":
            return cls(0)
        match = re.fullmatch(r"lsb:(\d+)", text)
        if match is None:
            raise ConfigError(f"check_parity: got '{text}', expected 'exact' or 'lsb:N' with N a whole number")
        return cls(int(match.group(1)))


def check_outputs(side: str, outputs: object, n_images: int) -> ArrayF32:
    """Returns the outputs if they are what a runner must give: a float32 array (n_images, classes).

    Raises:
        OutputShapeError: if they are missing or of another shape or dtype.
    """
    if outputs is None:
        raise OutputShapeError(f"{side} returned no output for a batch of {n_images} images")
    array = np.asarray(outputs)
    if array.ndim != 2 or array.shape[0] != n_images or array.shape[1] == 0 or array.dtype != np.float32:
        raise OutputShapeError(
            f"{side} returned {array.dtype} {array.shape} for a batch of {n_images} images, "
            f"expected float32 ({n_images}, classes)"
        )
    return array


@dataclass
class ParityCount:
    """Collects, batch by batch, how TVM's raw outputs compare with PyTorch's."""

    _ids: list[str] = field(default_factory=list)
    _parts: list[Columns] = field(default_factory=list)

    def add(self, actual_f32: ArrayF32, expected_f32: ArrayF32 | None, ids: Sequence[str]) -> Columns:
        """Counts one batch and returns the columns of its images; see `score/image_columns.py`.

        Args:
            actual_f32: TVM's raw outputs, (N, classes).
            expected_f32: PyTorch's raw outputs, (N, classes); None if TVM's have no reference.
            ids: the N images' ids.

        Raises:
            OutputShapeError: if either is missing or their shapes differ.
        """
        columns = compared(actual_f32, expected_f32, len(ids))
        self._ids += ids
        self._parts.append(columns)
        return columns

    def row(self, output_scale: float | None) -> ParityRow:
        """Returns the facts so far as run.json holds them; see `parity_row`."""
        return parity_row(joined(self._parts), self._ids, output_scale)

    def mistrust(self) -> str | None:
        """Returns why these outputs prove little, or None; see `mistrust_of`."""
        return mistrust_of(joined(self._parts))


def compared(actual_f32: object, expected_f32: object | None, n_images: int) -> Columns:
    """Returns the columns of one batch; see `score/image_columns.py`.

    Args:
        actual_f32: TVM's raw outputs, (N, classes).
        expected_f32: PyTorch's raw outputs, (N, classes); None if TVM's have no reference.
        n_images: N.

    Raises:
        OutputShapeError: if either is missing or their shapes differ.
    """
    if expected_f32 is None:
        return columns_of_side("tvm", check_outputs("TVM", actual_f32, n_images))
    expected_f32 = check_outputs("PyTorch", expected_f32, n_images)
    actual_f32 = check_outputs("TVM", actual_f32, n_images)
    if actual_f32.shape != expected_f32.shape:
        raise OutputShapeError(f"TVM returned {actual_f32.shape}, PyTorch {expected_f32.shape} for the same batch")
    return columns_of_comparison(actual_f32, expected_f32)


def parity_row(columns: Columns, ids: Sequence[str], output_scale: float | None) -> ParityRow:
    """Returns how TVM's outputs compare with PyTorch's over all images, as run.json holds it.

    Args:
        columns: of both sides, one row for each image.
        ids: of these images.
        output_scale: the step of the output's quantization, if known.

    Raises:
        OutputShapeError: no image was compared.
    """
    if not len(ids) or "n_identical" not in columns:
        raise OutputShapeError("no image was compared")
    greatest = float(columns["max_abs_diff"].max())
    n_outputs = int(columns["n_outputs"].sum())
    identical = columns["n_identical"] == columns["n_outputs"]
    same_top1 = columns["tvm_top5"][:, 0] == columns["torch_top5"][:, 0]
    return {
        "raw_outputs_total": n_outputs,
        "raw_outputs_identical": int(columns["n_identical"].sum()),
        "images_total": len(ids),
        "images_identical": int(identical.sum()),
        "max_abs_diff": _finite(greatest),
        # the exact sum, so that the order of images does not matter
        "mean_abs_diff": _finite(math.fsum(columns["sum_abs_diff"]) / n_outputs),
        "max_lsb": _steps(greatest, output_scale),
        "greatest_difference": _greatest_difference(columns, ids, identical),
        "top1_agreement": 100 * int(same_top1.sum()) / len(ids),
        "first_image": _first_image(columns, ids[0]),
    }


def mistrust_of(columns: Columns) -> str | None:
    """Returns why outputs prove little (constant, mostly zero, not finite), or None."""
    sides = {"PyTorch": "torch", "TVM": "tvm"}
    reasons = [_degeneracy(name, columns, side) for name, side in sides.items() if f"{side}_zeros" in columns]
    return "; ".join(reason for reason in reasons if reason) or None


def _degeneracy(name: str, columns: Columns, side: str) -> str | None:
    """Returns why the outputs of one side prove little, or None."""
    n, n_outputs = len(columns["n_outputs"]), int(columns["n_outputs"].sum())
    if not columns[f"{side}_finite"].all():
        return f"{name} gives outputs that are not finite"
    n_zero = int(columns[f"{side}_zeros"].sum())
    if n_zero > MISTRUSTED_SHARE * n_outputs:
        return f"{name} gives mostly zeros: {100 * n_zero / n_outputs:.0f} % of the raw outputs"
    same = float((columns[f"{side}_same_value"] / columns["n_outputs"]).sum())
    if same > MISTRUSTED_SHARE * n:
        share = 100 * same / n
        return f"{name} gives mostly constant outputs: on average {share:.0f} % of an image's have the same value"
    digests = columns[f"{side}_digest"]
    if n > 1 and (digests == digests[0]).all():
        return f"{name} gives the same outputs for all {n} images"
    return None


def _first_image(columns: Columns, image_id: str) -> FirstImageRow:
    n = int(columns["n_outputs"][0])
    return {
        "id": image_id,
        "torch_top5_labels": columns["torch_top5"][0].tolist(),
        "tvm_top5_labels": columns["tvm_top5"][0].tolist(),
        "torch_top5_raw": [shortest_float(value) for value in columns["torch_top5_raw"][0]],
        "tvm_top5_raw": [shortest_float(value) for value in columns["tvm_top5_raw"][0]],
        "max_abs_diff": _finite(float(columns["max_abs_diff"][0])),
        "mean_abs_diff": _finite(float(columns["sum_abs_diff"][0]) / n),
        "identical": int(columns["n_identical"][0]),
        "total": n,
    }


def _greatest_difference(
    columns: Columns, ids: Sequence[str], identical: npt.NDArray[np.bool_]
) -> GreatestDifferenceRow | None:
    """Returns the raw output that differs most; of equal differences, that of the first image. None: none differs."""
    if identical.all():
        return None
    at = int(np.where(identical, -1.0, columns["max_abs_diff"]).argmax())
    return {
        "id": ids[at],
        "index": int(columns["greatest_index"][at]),
        "torch": shortest_float(columns["greatest_torch"][at]),
        "tvm": shortest_float(columns["greatest_tvm"][at]),
    }


def shortest_float(value: np.float32) -> float:
    """Returns the float with the fewest digits that is this float32 when rounded back; a NaN or infinity as 0.

    JSON has no NaN; such outputs make the model mistrusted, so no reader takes the 0 for a score.
    """
    return float(str(value)) if np.isfinite(value) else 0.0


def _finite(value: float) -> float | None:
    return float(str(np.float32(value))) if math.isfinite(value) else None


def _steps(max_abs_diff: float, output_scale: float | None) -> int | None:
    if max_abs_diff == 0:
        return 0
    if not output_scale or not math.isfinite(max_abs_diff):
        return None
    return round(max_abs_diff / output_scale)


def judge(
    parity: ParityRow | None,
    mistrust: str | None,
    tvm_top1: float,
    check_parity: str | None,
    min_top1: float | None,
    others: Sequence[str] = (),
    *,
    numerics: str = "torch",
    reference: str = "PyTorch",
) -> tuple[Status, str | None]:
    """Returns the verdict on one model and the reason for it.

    `failed` if a check that was asked for failed, or if there are `others`, the reasons of other failed checks;
    `mistrusted` if the outputs prove little; else `passed`. If outputs differ in a passed model, the reason says so,
    and why it passed. `parity` is None if TVM's outputs have no reference. Numerics integer is not meant to give the
    reference's bits, and passes any check of parity.
    """
    problems = list(others)
    difference = None if parity is None else _difference(parity, reference)
    if numerics.startswith("integer"):
        check_parity = None
    if check_parity is not None and parity is not None and difference is not None:
        allowed = Tolerance.parse(check_parity).max_lsb
        exact = check_parity == "exact"
        if exact or parity["max_lsb"] is None or parity["max_lsb"] > allowed:
            problems.append(f"parity check '{check_parity}' not met: {difference}")
    if min_top1 is not None and tvm_top1 < min_top1:
        problems.append(f"accuracy check not met: TVM top-1 is {tvm_top1:.2f} %, asked for at least {min_top1:.2f} %")
    if problems:
        return "failed", "; ".join(problems + ([mistrust] if mistrust else []))
    if mistrust:
        return "mistrusted", mistrust
    return "passed", None if difference is None else f"{_allowed(check_parity, numerics, reference)}: {difference}"


def _allowed(check_parity: str | None, numerics: str, reference: str) -> str:
    """Returns why outputs may differ."""
    if check_parity is not None:
        return f"parity check '{check_parity}' met"
    if numerics.startswith("integer"):
        return f"numerics {numerics} need not give the bits of {reference}"
    if numerics == "qdq":
        return "no parity check was asked for; layers may differ only at rounding ties, which quantvm diff checks"
    return "no parity check was asked for"


def int8_share_problem(share: float, least: float | None) -> str | None:
    """Returns the problem if the share of multiply-adds in int8 kernels, 0..1, is too small; else None."""
    if least is None or share >= least:
        return None
    return f"int8 check not met: {share:.4f} of the multiply-adds run in int8 kernels, asked for at least {least:g}"


def _difference(parity: ParityRow, reference: str) -> str | None:
    worst = parity["greatest_difference"]
    if worst is None:
        return None
    total = parity["raw_outputs_total"]
    n_differ = total - parity["raw_outputs_identical"]
    greatest = "not finite" if parity["max_abs_diff"] is None else f"{parity['max_abs_diff']:.6g}"
    needed = "" if parity["max_lsb"] is None else f"; lsb:{parity['max_lsb']} would allow it"
    return (
        f"{n_differ} of {total} raw outputs differ ({100 * n_differ / total:.2f} %), the greatest difference is "
        f"{greatest} (class {worst['index']} of {worst['id']}: TVM {worst['tvm']}, {reference} {worst['torch']})"
        f"{needed}"
    )
