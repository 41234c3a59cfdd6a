"""The picture of corruptions: one cell of each class as it is and under every severity, a block for each corruption.

Measured in pixels throughout, so that an image's pixels are the sheet's pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from bloodcell.evaluate import plots

MOST_CLASSES = 12  # columns of a block
_DPI = 100
_MARGIN, _GAP, _LABEL, _BETWEEN, _TITLE = 24, 3, 58, 36, 54
_LEAST, _MOST = 64, 96  # side of a shown cell: small ones are enlarged a whole number of times, large ones shrunk
_INK, _FAINT = "#1c2126", "#7b858f"  # the report's colours


def corruption_sheet_png(clean: np.ndarray, corrupted: Mapping[str, np.ndarray], *, class_names: Sequence[str],
                         parameters: Mapping[str, str], severities: Mapping[str, Sequence[str]],
                         line: str) -> bytes:
    """Draws the sheet.

    Args:
      clean: uint8 [C, H, W, 3], a cell of each of C classes, at most `MOST_CLASSES`.
      corrupted: uint8 [S, C, H, W, 3] by the corruption's name; one with a single severity has a block of two rows.
      class_names: C names.
      parameters: for each name, what its severities are given by.
      severities: for each name, the S values.
      line: what else is said, below the title.

    Returns:
      A PNG file.
    """
    side = max(clean.shape[1:3])
    side = -(-_LEAST // side) * side if side < _LEAST else min(side, _MOST)
    names = list(corrupted)
    across = min(2, len(names))
    rows = [names[start:start + across] for start in range(0, len(names), across)]
    block_width = _LABEL + len(clean) * (side + _GAP) - _GAP
    heights = [_TITLE + max(1 + len(corrupted[name]) for name in row) * (side + _GAP) for row in rows]
    width = 2 * _MARGIN + across * block_width + (across - 1) * _BETWEEN
    head = _MARGIN + 56
    height = head + sum(heights) + (len(rows) - 1) * _BETWEEN // 2 + _MARGIN

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    canvas = np.full((height, width, 3), 255, np.uint8)
    axes.text(_MARGIN, _MARGIN + 6, "Cells under corruption", fontsize=14, fontweight="bold", color=_INK, va="center")
    axes.text(_MARGIN, _MARGIN + 30, line, fontsize=8, color=_FAINT, va="center", parse_math=False)
    top = head
    for row, block_height in zip(rows, heights, strict=True):
        for column, name in enumerate(row):
            left = _MARGIN + column * (block_width + _BETWEEN)
            many = len(corrupted[name]) > 1
            title = axes.text(left + _LABEL, top + 10, name.replace("_", " "), fontsize=10, fontweight="bold",
                              color=_INK, va="center", parse_math=False)
            if many:
                axes.annotate(f"  severity 1 to {len(corrupted[name])} ({parameters[name]})", (1, 0.5), xycoords=title,
                              fontsize=8, color=_FAINT, va="center", parse_math=False)
            for index, label in enumerate(class_names):
                axes.text(left + _LABEL + index * (side + _GAP) + side / 2, top + _TITLE - 5,
                          "\n".join(label.split("_")), fontsize=8, color=_FAINT, ha="center", va="bottom",
                          linespacing=1.0, parse_math=False)
            for severity, cells in enumerate((clean, *corrupted[name])):
                y = top + _TITLE + severity * (side + _GAP)
                said, colour = ("clean", _FAINT) if not severity else ("", _INK)
                if severity and many:
                    said = f"{severity}\n({severities[name][severity - 1]})"
                axes.text(left + _LABEL - 8, y + side / 2, said, fontsize=8, color=colour, ha="right", va="center",
                          parse_math=False)
                for index, cell in enumerate(cells):
                    x = left + _LABEL + index * (side + _GAP)
                    canvas[y:y + side, x:x + side] = plots.at_side(cell, side)
        top += block_height + _BETWEEN // 2
    axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", zorder=0)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    return plots.png(figure)
