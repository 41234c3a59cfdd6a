"""The picture of a segmentation: a few cells of each class, the outline of their foreground, and what is left."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bloodcell.data.segment import outline
from bloodcell.evaluate.contact_sheet import Bar, contact_sheet_png

ACROSS = 3  # cells side by side
_LINE = np.array([0, 170, 60], np.uint8)  # green: no cell, and no stain, has it


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Cells to show.

    Attributes:
      images: uint8 [N, H, W, 3] as they were read.
      masks: bool [N, H, W], their foreground.
      results: uint8 [N, H, W, 3] after segmentation.
      labels: int64 [N].
    """

    images: np.ndarray
    masks: np.ndarray
    results: np.ndarray
    labels: np.ndarray


def segment_sheet_png(examples: Examples, *, class_names: Sequence[str], spec: str, lines: Sequence[str],
                      shares: Sequence[Bar]) -> bytes:
    """Draws rows of each class, every row with up to three cells as original, outline and result.

    Args:
      examples: the cells, in any order; a row that is not full is filled up with the class's first cells.
      class_names: in the order of the labels.
      spec: the flag.
      lines: what else is said above the cells.
      shares: the table below them.

    Returns:
      A PNG file.
    """
    drawn = examples.images.copy()
    drawn[outline(examples.masks)] = _LINE
    rows, pictures = [], []
    for label in np.unique(examples.labels):
        own = np.flatnonzero(examples.labels == label)
        for start in range(0, len(own), ACROSS):
            cells = np.resize(np.concatenate([own[start:start + ACROSS], own]), ACROSS)
            rows.append(class_names[label])
            pictures.append(np.concatenate([[examples.images[i], drawn[i], examples.results[i]] for i in cells]))
    return contact_sheet_png(
        np.stack(pictures), rows=rows, columns=["original", "foreground", "result"] * ACROSS,
        title="What segmentation leaves of the images", code=f"--segment={spec}", lines=lines,
        table_title="Share of the image that is foreground", bars=shares)
