"""A contact sheet as a PNG: rows of images that belong together, and a table of shares below them.

Measured in pixels throughout, so that an image's pixels are the sheet's pixels. What the images and the shares are
belongs to the command that asks for the sheet.
"""

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bloodcell.evaluate import plots

_DPI = 100
_MARGIN, _GAP, _LABEL = 24, 4, 150  # around the sheet, between images, left of a row
_LINE = 22  # of text and of the table
_LEAST, _MOST = 96, 144  # side of a shown image: small ones are enlarged a whole number of times, large ones shrunk
_INK, _FAINT, _BAR, _TRACK = "#1c2126", "#7b858f", "#b3123f", "#eceff1"  # the report's colours
_PANEL = 520  # least width of a table's column


@dataclasses.dataclass(frozen=True)
class Bar:
    """One line of the table: a name, where it stands, a share 0..1, and a remark."""

    name: str
    place: str
    share: float
    remark: str = ""


def contact_sheet_png(images: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], title: str,
                      code: str, lines: Sequence[str], table_title: str, bars: Sequence[Bar]) -> bytes:
    """Draws the sheet.

    Args:
      images: uint8 [R, C, H, W, 3].
      rows: R names, left of the rows; a name that repeats is written once.
      columns: C names, above the columns; the first column stands a little apart.
      title: the first line.
      code: the second one, in a typewriter's letters, broken where it is long.
      lines: more lines below it.
      table_title: above the table.
      bars: the table's lines, read down one column, then the next.

    Returns:
      A PNG file.
    """
    cell_h, cell_w = (_shown(side) for side in images.shape[2:4])
    mosaic = _mosaic(images, cell_h, cell_w)
    width = max(2 * _MARGIN + _LABEL + mosaic.shape[1], 2 * _MARGIN + _PANEL)
    code_lines = textwrap.wrap(code, max(20, int((width - 2 * _MARGIN) / 8.3)), break_on_hyphens=False) or [""]
    panels = max(1, min((width - 2 * _MARGIN) // _PANEL, -(-len(bars) // 4)))
    depth = -(-len(bars) // panels)
    top = _MARGIN + 34 + 18 * len(code_lines) + 8 + 18 * len(lines) + 34
    table = top + mosaic.shape[0] + 52
    height = table + _LINE * depth + _MARGIN + 6

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()

    # ---- The header --------------------------------------------------------------------------------------------------
    y = _MARGIN + 6
    axes.text(_MARGIN, y, title, fontsize=14, fontweight="bold", color=_INK, va="center")
    y += 30
    for line in code_lines:
        axes.text(_MARGIN, y, line, fontsize=9, family="monospace", color=_BAR, va="center", parse_math=False)
        y += 18
    y += 6
    for line in lines:
        axes.text(_MARGIN, y, line, fontsize=9, color=_FAINT, va="center", parse_math=False)
        y += 18

    # ---- The images --------------------------------------------------------------------------------------------------
    left = _MARGIN + _LABEL
    for index, name in enumerate(columns):
        axes.text(left + _offset(index, cell_w) + cell_w / 2, top - 12, name, fontsize=9, color=_INK, ha="center",
                  va="center", parse_math=False)
    for index, name in enumerate(rows):
        if index == 0 or rows[index - 1] != name:
            axes.text(left - 12, top + index * (cell_h + _GAP) + cell_h / 2, textwrap.fill(_words(name), 18),
                      fontsize=9, color=_INK, ha="right", va="center", parse_math=False)
    axes.imshow(mosaic, extent=(left, left + mosaic.shape[1], top + mosaic.shape[0], top), interpolation="nearest")

    # ---- The table ---------------------------------------------------------------------------------------------------
    axes.text(_MARGIN, table - 18, table_title, fontsize=10, fontweight="bold", color=_INK, va="center",
              parse_math=False)
    column_width = (width - 2 * _MARGIN) / panels
    for index, bar in enumerate(bars):
        _draw_bar(axes, bar, _MARGIN + column_width * (index // depth), table + _LINE * (index % depth + 0.4))

    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    return plots.png(figure)


def _draw_bar(axes: Axes, bar: Bar, x: float, y: float) -> None:
    axes.text(x, y, bar.name, fontsize=9, color=_INK, va="center", parse_math=False)
    axes.text(x + 112, y, _shortened(bar.place, 25), fontsize=8, color=_FAINT, va="center", parse_math=False)
    axes.add_patch(Rectangle((x + 262, y - 5), 70, 10, color=_TRACK, linewidth=0))
    axes.add_patch(Rectangle((x + 262, y - 5), 70 * bar.share, 10, color=_BAR, linewidth=0))
    axes.text(x + 390, y, f"{100 * bar.share:.1f} %", fontsize=9, color=_INK, ha="right", va="center")
    axes.text(x + 398, y, _shortened(bar.remark, 21), fontsize=8, color=_FAINT, va="center", parse_math=False)


def _mosaic(images: np.ndarray, cell_h: int, cell_w: int) -> np.ndarray:
    """Returns uint8 [height, width, 3], the images on white."""
    rows, columns = images.shape[:2]
    canvas = np.full((rows * (cell_h + _GAP) - _GAP, _offset(columns - 1, cell_w) + cell_w, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            x, y = _offset(column, cell_w), row * (cell_h + _GAP)
            canvas[y:y + cell_h, x:x + cell_w] = _resized(images[row, column], cell_h, cell_w)
    return canvas


def _offset(column: int, cell_w: int) -> int:
    return column * (cell_w + _GAP) + (2 * _GAP if column else 0)


def _shown(side: int) -> int:
    return -(-_LEAST // side) * side if side < _LEAST else min(side, _MOST)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarges a whole number of times, or shrinks to the mean of the pixels that each new one covers."""
    for axis, side in ((0, height), (1, width)):
        own = image.shape[axis]
        if side % own == 0:
            image = np.repeat(image, side // own, axis=axis)
        else:
            image = np.moveaxis(np.tensordot(_shares(own, side), image, axes=(1, axis)), 0, axis)
    return np.rint(image).astype(np.uint8)


def _shares(own: int, side: int) -> np.ndarray:
    """Returns float64 [side, own]: how much of each old pixel lies in each new one; rows sum to 1."""
    edges = np.linspace(0, own, side + 1)
    old = np.arange(own)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return np.clip(overlap, 0, None) * side / own


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[1 - length:]
