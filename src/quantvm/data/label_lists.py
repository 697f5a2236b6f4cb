"""Reads lists of labels, of all the kinds in which ImageNet's come, and says which numbering they use."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Literal

from quantvm.data.classes import (
    N_CLASSES,
    N_VALIDATION,
    WNID,
    imagenet_classes,
    index_of_ilsvrc2012_id,
    index_of_wnid,
    validation_labels,
)
from quantvm.data.contents import is_image_name
from quantvm.data.parts import validation_number

ListKind = Literal["named", "kaggle", "ids", "synsets"]

KINDS: dict[ListKind, str] = {
    "named": "the class index, 0..999, or the wnid behind the image's name in {}",
    "kaggle": "the first word of PredictionString, a wnid, of the image's row in {}",
    "ids": "line n of {} is the ILSVRC2012_ID of validation image n, which ImageNet's devkit maps to a class",
    "synsets": "line n of {} is the wnid of validation image n",
}


@dataclass(frozen=True)
class LabelList:
    """A list of labels.

    Attributes:
        name: The file.
        kind: "named": an image's name and its class index or wnid; "kaggle": LOC_val_solution.csv; "ids": one
            ILSVRC2012_ID a line; "synsets": one wnid a line.
        by_name: For the first two kinds: the plain base name of an image to its paths and labels.
        by_number: For the other two: the labels of validation images 1, 2, ...
        has_wnids: Whether it names classes by wnid, so that no numbering can be mistaken.
    """

    name: str
    kind: ListKind
    by_name: dict[str, list[tuple[tuple[str, ...], int]]]
    by_number: tuple[int, ...]
    has_wnids: bool

    def label_of(self, path: Sequence[str]) -> int | None:
        """Returns an image's number in the list, not yet checked; None if the list does not have it.

        Args:
            path: The folders and the name of the image. The name decides, or, where several lines have it, the folders.
        """
        if self.by_number:
            number = validation_number(path[-1])
            return self.by_number[number - 1] if number is not None and number <= len(self.by_number) else None
        found = self.by_name.get(plain_file_name(path[-1]), ())
        if len({label for _, label in found}) > 1:
            longest = [(_common_end(folders, path[:-1]), label) for folders, label in found]
            most = max(length for length, _ in longest)
            found = [((), label) for length, label in longest if length == most]
        labels = {label for _, label in found}
        return labels.pop() if len(labels) == 1 else None

    def says_several(self, path: Sequence[str]) -> bool:
        """Returns whether the list has an image several times, with different labels."""
        return not self.by_number and plain_file_name(path[-1]) in self.by_name and self.label_of(path) is None


def plain_file_name(name: str) -> str:
    """Returns a name as lists are compared by it: without the suffix of images, in lower case."""
    return (name[: -len(PurePosixPath(name).suffix)] if is_image_name(name) else name).casefold()


def read_list(name: str, text: str) -> LabelList | None:
    """Returns the list of labels that a text is; None if it is none.

    None are, for instance, lists of the classes themselves, the devkit's blacklist, and
    `ImageSets/CLS-LOC/val.txt`, whose numbers only count the lines.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if all(re.fullmatch(r"\d+", line) for line in lines):
        numbers = [int(line) for line in lines]
        is_counting = len(numbers) > 1 and _rises(numbers)
        if is_counting or "blacklist" in name.lower():
            return None
        return LabelList(name, "ids", {}, tuple(numbers), False)
    if all(WNID.fullmatch(line) for line in lines):
        if len(lines) > 1 and _rises(lines):
            return None  # the classes themselves
        index = index_of_wnid()
        return LabelList(name, "synsets", {}, tuple(index.get(line, -1) for line in lines), True)
    return _named_list(name, lines)


def _rises(values: Sequence[int] | Sequence[str]) -> bool:
    return all(one < other for one, other in pairwise(values))  # type: ignore[operator]


def _named_list(name: str, lines: list[str]) -> LabelList | None:
    rows = [_two_columns(line) for line in lines]
    header, first = (rows[0], 1) if rows[0] is not None and _label_in(rows[0][1]) is None else (None, 0)
    by_name: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    own_numbers = wnids = 0
    for row in rows[first:]:
        if row is None or WNID.fullmatch(row[0]) or (label := _label_in(row[1])) is None:
            return None
        folders = tuple(re.split(r"[/\\]", row[0]))
        by_name[plain_file_name(folders[-1])].append((folders[:-1], label))
        own_numbers += validation_number(folders[-1]) == label
        wnids += WNID.match(row[1]) is not None
    n_rows = len(rows) - first
    if not by_name or (n_rows > 1 and own_numbers == n_rows and not wnids) or _counts_lines(rows[first:]):
        return None
    is_kaggle = header is not None and header[1].lower() == "predictionstring"
    return LabelList(name, "kaggle" if is_kaggle else "named", by_name, (), wnids == n_rows)


def _two_columns(line: str) -> tuple[str, str] | None:
    """Returns the name and the label of a line; a name may hold blanks, and what follows the label is left out."""
    if "," in line or "\t" in line or ";" in line:
        separator = max(",\t;", key=line.count)
        cells = next(csv.reader(io.StringIO(line), delimiter=separator), [])
        return (cells[0].strip(), cells[1].strip()) if len(cells) >= 2 and cells[0].strip() else None
    words = line.split()
    if len(words) > 2 and _label_in(words[-1]) is None and _label_in(words[1]) is not None:
        return words[0], words[1]  # the class's name follows
    name, _, label = line.rpartition(" ")
    return (name.strip(), label) if name.strip() else None


def _label_in(cell: str) -> int | None:
    """Returns the number in a cell; for a wnid, or Kaggle's `wnid x y x y wnid ...`, the class index."""
    word = cell.split()[0] if cell.split() else ""
    if WNID.fullmatch(word):
        return index_of_wnid().get(word, -1)
    return int(cell) if re.fullmatch(r"-?\d+", cell) else None


def _counts_lines(rows: Iterable[tuple[str, str] | None]) -> bool:
    """Whether the labels are 1, 2, 3, ... in the order of the lines, which is a count and not a class."""
    labels = [row[1] for row in rows if row is not None]
    return len(labels) > 2 and labels == [str(number) for number in range(1, len(labels) + 1)]


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length].casefold() == other[-1 - length].casefold():
        length += 1
    return length


@dataclass(frozen=True)
class Judgement:
    """Whether a list's numbers are ImageNet's class indices.

    Attributes:
        labels: The class index of each image that the list has, in their order; None for the others.
        problem: Why they cannot be used, as the end of a sentence; None if they can.
    """

    labels: list[int | None]
    problem: str | None


def judge(found: LabelList, paths: Sequence[Sequence[str]]) -> Judgement:
    """Returns the labels that a list gives to images, after finding out which numbering it uses.

    A validation image of ImageNet has only one true class, so for images with ImageNet's names the numbering is known
    for certain. For others, 1000, or a whole list without 0, tells one that counts a background class.

    Args:
        found: The list.
        paths: The folders and the name of each image.
    """
    numbers = [found.label_of(path) for path in paths]
    return judge_numbers(numbers, [path[-1] for path in paths], is_ids=found.kind == "ids", has_wnids=found.has_wnids)


def judge_numbers(
    numbers: Sequence[int | None], names: Sequence[str], *, is_ids: bool = False, has_wnids: bool = False
) -> Judgement:
    """Returns the class indices that numbers mean, see `judge`.

    Args:
        numbers: What is said of each image, or None.
        names: The images' names.
        is_ids: Whether the numbers may be ILSVRC2012_IDs.
        has_wnids: Whether they were wnids, so that no numbering can be mistaken.
    """
    given = [number for number in numbers if number is not None]
    if not given:
        return Judgement(list(numbers), "has none of the images")
    ids = index_of_ilsvrc2012_id()
    truth = validation_labels()
    pairs = [
        (number, int(truth[place - 1]))
        for number, name in zip(numbers, names, strict=True)
        if number is not None and (place := validation_number(name)) is not None
    ]
    if is_ids and not pairs:
        return Judgement(list(numbers), "gives labels by the numbers of validation images, and these have none")
    if is_ids and all(ids.get(number) == label for number, label in pairs):
        return Judgement([None if number is None else ids.get(number) for number in numbers], None)
    if has_wnids and any(number < 0 for number in given):
        return Judgement(list(numbers), "holds wnids that are none of ImageNet's 1,000 classes")
    wrong = sum(number != label for number, label in pairs)
    if wrong:
        return Judgement(list(numbers), _numbering(pairs) or (
            f"gives {wrong:,} of {len(pairs):,} validation images another class than ImageNet, {_example(pairs)}"
        ))  # fmt: skip
    outside = Counter(number for number in given if not 0 <= number < N_CLASSES)
    if outside:
        what = ", ".join(str(number) for number in sorted(outside)[:5])
        background = " It seems to count a background class as 0." if set(outside) == {N_CLASSES} else ""
        return Judgement(list(numbers), f"holds {what}, and class indices are 0 to {N_CLASSES - 1}.{background}")
    if not has_wnids and len(given) >= N_VALIDATION and 0 not in given:
        return Judgement(list(numbers), "never says 0 in so many lines, so it seems to count a background class as 0")
    return Judgement(list(numbers), None)


def _numbering(pairs: Sequence[tuple[int, int]]) -> str | None:
    """Returns which other numbering explains all labels, as the end of a sentence; None if none does."""
    id_of = [item.ilsvrc2012_id for item in imagenet_classes()]
    if all(number == label + 1 for number, label in pairs):
        return f"counts a background class as 0, so its numbers are the class index + 1 ({_example(pairs)})"
    if all(number == id_of[label] for number, label in pairs):
        return f"holds ILSVRC2012_IDs, the devkit's numbering from 1, and not class indices ({_example(pairs)})"
    if all(number == id_of[label] - 1 for number, label in pairs):
        return f"numbers the classes in the order of the ILSVRC2012_IDs, not in that of wnids ({_example(pairs)})"
    return None


def _example(pairs: Sequence[tuple[int, int]]) -> str:
    number, label = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    return f"such as {number} for an image of class {label}"
