"""Figures from a model's outputs, as run.json and samples.parquet hold them; units as in `report/schema.py`."""

from __future__ import annotations

from typing import Literal, TypedDict

Status = Literal["passed", "failed", "mistrusted", "skipped", "unsupported", "error", "unfinished"]
"""`unfinished` stands only in reports of runs that are under way or were broken off."""


class AccuracyRow(TypedDict):
    """Share of images whose label is the best, or among the five best, in percent."""

    top1: float
    top5: float


class FirstImageRow(TypedDict):
    """The raw outputs of both engines on the first image, as the original benchmark prints them."""

    id: str
    torch_top5_labels: list[int]
    tvm_top5_labels: list[int]
    torch_top5_raw: list[float]
    tvm_top5_raw: list[float]
    max_abs_diff: float | None
    mean_abs_diff: float | None
    identical: int
    total: int


class GreatestDifferenceRow(TypedDict):
    """The raw output that differs most: which image, which class, and both values."""

    id: str
    index: int
    torch: float
    tvm: float


class ParityRow(TypedDict):
    """How the TVM outputs (actual) compare with the PyTorch outputs (expected) over all images."""

    raw_outputs_total: int
    raw_outputs_identical: int
    images_total: int
    images_identical: int
    max_abs_diff: float | None  # None: a difference is not finite
    mean_abs_diff: float | None
    max_lsb: int | None  # max_abs_diff in steps of the output's quantization; None: the step is not known
    greatest_difference: GreatestDifferenceRow | None  # None: all outputs are identical
    top1_agreement: float  # percent of the images
    first_image: FirstImageRow


class AgreementRow(TypedDict):
    """How often each two of a model's flows and engines give the same answer to an image."""

    model: str
    sides: list[str]  # as "fx TVM", "fx PyTorch"; fp32 first
    top1: list[float]  # accuracy of each side, in percent
    same_top1: list[list[float]]  # percent of the images on which two sides give the same best class


class SampleRow(TypedDict):
    """One image under one model; top-5 lists are class indices, best first."""

    model: str
    flow: str
    numerics: str
    id: str
    label: int
    fp32_top5: list[int] | None
    torch_top5: list[int] | None
    tvm_top5: list[int]
    identical: bool | None
    max_abs_diff: float | None
