"""Parity of raw outputs: TVM is always the actual side, PyTorch the expected one.

``ParityCount`` collects the facts batch by batch, ``judge`` turns them into a verdict. What a check allows is stated
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
from quantvm.score.accuracy import top_k
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
class _Degeneracy:
    """Finds engines whose outputs are the same for every image: then parity and accuracy prove little."""

    n: int = 0
    same_value_share: float = 0.0
    n_zero: int = 0
    n_values: int = 0
    first: ArrayF32 | None = None
    all_like_first: bool = True
    all_finite: bool = True

    def add(self, outputs_f32: ArrayF32) -> None:
        if self.first is None:
            self.first = outputs_f32[0].copy()
        self.n += len(outputs_f32)
        self.n_zero += int((outputs_f32 == 0).sum())
        self.n_values += outputs_f32.size
        for row in outputs_f32:
            self.same_value_share += np.unique(row, return_counts=True)[1].max() / row.size
        self.all_like_first &= bool((outputs_f32 == self.first).all())
        self.all_finite &= bool(np.isfinite(outputs_f32).all())

    def reason(self, side: str) -> str | None:
        """Returns why this side's outputs are not to be trusted, or None."""
        if self.n == 0:
            return None
        if not self.all_finite:
            return f"{side} gives outputs that are not finite"
        if self.n_zero > MISTRUSTED_SHARE * self.n_values:
            return f"{side} gives mostly zeros: {100 * self.n_zero / self.n_values:.0f} % of the raw outputs"
        if self.same_value_share > MISTRUSTED_SHARE * self.n:
            share = 100 * self.same_value_share / self.n
            return f"{side} gives mostly constant outputs: on average {share:.0f} % of an image's have the same value"
        if self.n > 1 and self.all_like_first:
            return f"{side} gives the same outputs for all {self.n} images"
        return None


@dataclass
class ParityCount:
    """Collects, batch by batch, how TVM's raw outputs compare with PyTorch's."""

    outputs_total: int = 0
    outputs_identical: int = 0
    images_total: int = 0
    images_identical: int = 0
    images_same_top1: int = 0
    max_abs_diff: float = 0.0
    sum_abs_diff: float = 0.0
    greatest_difference: GreatestDifferenceRow | None = None
    first_image: FirstImageRow | None = None
    _degeneracy: dict[str, _Degeneracy] = field(
        default_factory=lambda: {"PyTorch": _Degeneracy(), "TVM": _Degeneracy()}
    )

    def add(self, actual_f32: ArrayF32, expected_f32: ArrayF32, ids: tuple[str, ...]) -> BatchParity:
        """Counts one batch and returns the comparison for each of its images.

        Args:
            actual_f32: TVM's raw outputs, (N, classes).
            expected_f32: PyTorch's raw outputs, (N, classes).
            ids: the N images' ids.

        Raises:
            OutputShapeError: if either is missing or their shapes differ.
        """
        expected_f32 = check_outputs("PyTorch", expected_f32, len(ids))
        actual_f32 = check_outputs("TVM", actual_f32, len(ids))
        if actual_f32.shape != expected_f32.shape:
            raise OutputShapeError(f"TVM returned {actual_f32.shape}, PyTorch {expected_f32.shape} for the same batch")
        batch = _compare(actual_f32, expected_f32)
        self.outputs_total += actual_f32.size
        self.outputs_identical += int(batch.identical.sum())
        self.images_total += len(ids)
        self.images_identical += int(batch.image_identical.sum())
        self.images_same_top1 += int((batch.actual_top5[:, 0] == batch.expected_top5[:, 0]).sum())
        greatest = float(batch.abs_diff.max())
        if not batch.identical.all() and (self.greatest_difference is None or greatest > self.max_abs_diff):
            self.greatest_difference = _greatest_difference(actual_f32, expected_f32, batch, ids)
        self.max_abs_diff = max(self.max_abs_diff, greatest)
        self.sum_abs_diff += float(batch.abs_diff.sum())
        if self.first_image is None:
            self.first_image = _first_image(ids[0], actual_f32, expected_f32, batch)
        self._degeneracy["TVM"].add(actual_f32)
        self._degeneracy["PyTorch"].add(expected_f32)
        return batch

    def add_alone(self, actual_f32: ArrayF32, ids: tuple[str, ...]) -> ArrayF32:
        """Counts one batch of TVM's outputs without a reference, and returns the outputs.

        Raises:
            OutputShapeError: they are missing or of another shape.
        """
        checked_f32 = check_outputs("TVM", actual_f32, len(ids))
        self._degeneracy["TVM"].add(checked_f32)
        return checked_f32

    def row(self, output_scale: float | None) -> ParityRow:
        """Returns the facts so far as run.json holds them.

        Args:
            output_scale: the step of the output's quantization, if known.

        Raises:
            OutputShapeError: if no batch was counted.
        """
        if self.first_image is None:
            raise OutputShapeError("no image was compared")
        return {
            "raw_outputs_total": self.outputs_total,
            "raw_outputs_identical": self.outputs_identical,
            "images_total": self.images_total,
            "images_identical": self.images_identical,
            "max_abs_diff": _finite(self.max_abs_diff),
            "mean_abs_diff": _finite(self.sum_abs_diff / self.outputs_total),
            "max_lsb": _steps(self.max_abs_diff, output_scale),
            "greatest_difference": self.greatest_difference,
            "top1_agreement": 100 * self.images_same_top1 / self.images_total,
            "first_image": self.first_image,
        }

    def mistrust(self) -> str | None:
        """Returns why these outputs prove little (constant, mostly zero, not finite), or None."""
        reasons = [watch.reason(engine) for engine, watch in self._degeneracy.items()]
        return "; ".join(reason for reason in reasons if reason) or None


@dataclass(frozen=True)
class BatchParity:
    """The comparison of one batch; `abs_diff` is inf where a difference is not finite."""

    identical: npt.NDArray[np.bool_]  # (N, classes)
    image_identical: npt.NDArray[np.bool_]  # (N,)
    abs_diff: npt.NDArray[np.float64]  # (N, classes)
    actual_top5: npt.NDArray[np.int64]  # (N, 5)
    expected_top5: npt.NDArray[np.int64]  # (N, 5)


def _compare(actual_f32: ArrayF32, expected_f32: ArrayF32) -> BatchParity:
    # Bits are compared, not values: NaN equals itself, and -0.0 differs from 0.0.
    actual_bits = np.ascontiguousarray(actual_f32).view(np.uint32)
    identical = actual_bits == np.ascontiguousarray(expected_f32).view(np.uint32)
    with np.errstate(invalid="ignore"):
        # Over float32: the difference is the one that the original benchmark printed.
        abs_diff = np.abs(actual_f32 - expected_f32).astype(np.float64)
    abs_diff[~np.isfinite(abs_diff)] = math.inf
    abs_diff[identical] = 0.0
    return BatchParity(identical, identical.all(axis=1), abs_diff, top_k(actual_f32), top_k(expected_f32))


def _first_image(image_id: str, actual_f32: ArrayF32, expected_f32: ArrayF32, batch: BatchParity) -> FirstImageRow:
    return {
        "id": image_id,
        "torch_top5_labels": batch.expected_top5[0].tolist(),
        "tvm_top5_labels": batch.actual_top5[0].tolist(),
        "torch_top5_raw": [shortest_float(expected_f32[0, label]) for label in batch.expected_top5[0]],
        "tvm_top5_raw": [shortest_float(actual_f32[0, label]) for label in batch.actual_top5[0]],
        "max_abs_diff": _finite(float(batch.abs_diff[0].max())),
        "mean_abs_diff": _finite(float(batch.abs_diff[0].mean())),
        "identical": int(batch.identical[0].sum()),
        "total": batch.identical.shape[1],
    }


def _greatest_difference(
    actual_f32: ArrayF32, expected_f32: ArrayF32, batch: BatchParity, ids: tuple[str, ...]
) -> GreatestDifferenceRow:
    # Among equal differences, prefer one whose bits differ: 0.0 and -0.0 differ by 0.
    rank = np.where(batch.identical, -1.0, batch.abs_diff)
    image, index = (int(i) for i in np.unravel_index(int(rank.argmax()), rank.shape))
    expected, actual = shortest_float(expected_f32[image, index]), shortest_float(actual_f32[image, index])
    return {"id": ids[image], "index": index, "torch": expected, "tvm": actual}


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
