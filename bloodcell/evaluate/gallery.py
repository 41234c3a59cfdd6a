"""The images behind a confusion matrix: which of them a page shows, and their pictures within a budget of bytes.

How a page looks belongs to `report_page`; what is done at a click to `pages/report.js`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bloodcell.errors import shown
from bloodcell.evaluate import thumbnails
from bloodcell.evaluate.thumbnails import Coding

MOST = 4000  # images in a page; a file's name may take 500 bytes, and a browser should open it at once
BUDGET = 5_000_000  # bytes of their pictures as they stand in the page
CODINGS = (Coding(160, 80), Coding(128, 80), Coding(96, 80), Coding(96, 60), Coding(64, 70), Coding(64, 50),
           Coding(48, 50), Coding(48, 25))
NAME_LENGTH = 80  # characters of a file's name


@dataclasses.dataclass(frozen=True, eq=False)
class Classified:
    """Images and what a model made of them.

    Attributes:
      images: uint8 [N,H,W,3], anything that gives an array for an array of indices.
      files: N names, for people.
      labels: int64 [N], true classes.
      probabilities: float [N,C].
    """

    images: Any
    files: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.images)
        if not len(self.files) == len(self.labels) == len(self.probabilities) == count:
            raise ValueError(f"expected a name, a label and probabilities of each of {count} images, received "
                             f"{len(self.files)}, {len(self.labels)} and {len(self.probabilities)}")


def data(classified: Classified, class_names: Sequence[str], *, most: int = MOST, budget: int = BUDGET
         ) -> dict[str, Any]:
    """Returns what a page's script needs, as JSON values, where a cell is a pair of a true and a predicted class.

    Args:
      classified: N images.
      class_names: C names.
      most: images to show at most.
      budget: characters that all pictures together may take.

    Returns:
      `classes`, for people; `cells`, rows of true class, predicted class, images, and how many of them are shown; then
      of the shown images, cell after cell: `file`, `confidence` and, of the next best class, `second` and its
      `probability`, in parts of 10,000; `sheets`, their thumbnails in this order. See `chosen` for which they are.
    """
    probabilities, labels = np.asarray(classified.probabilities), np.asarray(classified.labels)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    which = chosen(labels, predicted, confidence, most)
    coding = thumbnails.choose(classified.images, which, CODINGS, budget)
    sheets = thumbnails.sheets(classified.images, which, coding)
    while len(which) and (size := sum(map(len, sheets.uris))) > budget:  # such pictures as noise do not become smaller
        which = chosen(labels, predicted, confidence, int(0.9 * len(which) * budget / size))
        sheets = thumbnails.sheets(classified.images, which, coding)
    rest = probabilities[which].astype(np.float64)
    rest[np.arange(len(which)), predicted[which]] = -1
    second = rest.argmax(axis=1)
    return {
        "classes": [name.replace("_", " ") for name in class_names],
        "cells": _cells(labels, predicted, which, len(class_names)),
        "file": [_short(classified.files[index]) for index in which.tolist()],
        "confidence": _ten_thousandths(confidence[which]), "second": second.tolist(),
        "probability": _ten_thousandths(np.maximum(rest.max(axis=1, initial=0), 0)),
        "sheets": {"width": sheets.width, "height": sheets.height, "columns": thumbnails.COLUMNS, "uris": sheets.uris}}


def chosen(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, most: int) -> np.ndarray:
    """Returns the images to show, int64 [at most `most`], cell after cell by true and then predicted class.

    Where not all fit, wrong ones go before right ones, and of each kind every cell gets as many as the others as long
    as it has them. Of a cell's wrong images the surest come first, of its right ones the least sure.

    Args:
      labels: int [N], true classes.
      predicted: int [N].
      confidence: float [N].
      most: how many.
    """
    wrong = labels != predicted
    order = np.lexsort((np.where(wrong, -confidence, confidence), predicted, labels))
    cell = np.stack([labels, predicted], axis=1)[order]
    starts = np.flatnonzero(np.r_[True, (cell[1:] != cell[:-1]).any(axis=1)]) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    first = np.lexsort((-np.repeat(sizes, sizes), rank, ~wrong[order]))[:most]
    return order[np.sort(first)]


def _cells(labels: np.ndarray, predicted: np.ndarray, which: np.ndarray, classes: int) -> list[list[int]]:
    cells, total = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    seen, number = np.unique(labels[which].astype(np.int64) * classes + predicted[which], return_counts=True)
    several = dict(zip(seen.tolist(), number.tolist(), strict=True))
    return [[cell // classes, cell % classes, count, several[cell]]
            for cell, count in zip(cells.tolist(), total.tolist(), strict=True) if cell in several]


def _ten_thousandths(values: np.ndarray) -> list[int]:
    return np.floor(np.asarray(values, np.float64) * 10_000 + 1e-6).astype(int).tolist()


def _short(name: str) -> str:
    """A name that a page can carry: what is special about it is at its end."""
    name = shown(name)
    return name if len(name) <= NAME_LENGTH else f"\u2026{name[1 - NAME_LENGTH:]}"
