"""The pictures of a model's explanations as PNG files: cells with heat maps, the map of features, nearest cells.

Sheets of cells are measured in pixels throughout, so that an image's pixels are the sheet's pixels. Which cells are
shown is `commands.explaining`'s choice.
"""

import textwrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bloodcell.evaluate import plots
from bloodcell.evaluate.explanations import Cells, Explanations, FeatureMap

_DPI = 100
_MARGIN, _GAP, _LABEL, _BETWEEN, _CAPTION = 24, 3, 128, 34, 34
_NARROWEST = 1180
_LEAST, _MOST = 96, 128  # side of a shown cell: small ones are enlarged a whole number of times, large ones shrunk
_INK, _FAINT = "#1c2126", "#6a747e"  # the report's colours
_RIGHT, _WRONG = "#1261a0", "#b3123f"  # told apart by those who see no red or no green, too
_HEAT = matplotlib.colormaps["turbo"]
# By Okabe and Ito, for eyes of all kinds, with black and a brown to go on.
_CLASSES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#1c2126", "#b8ae00",
            "#7f7f7f")


def overlay(images: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns images under their heat maps, uint8 [...,H,W,3]: the warmer, the less of the image shines through.

    Args:
      images: uint8 [...,H,W,3].
      heat: float [...,H,W] in 0..1.
    """
    share = (0.15 + 0.4 * heat)[..., None]
    return np.rint((1 - share) * images + share * 255 * _HEAT(heat)[..., :3]).astype(np.uint8)


def gradcam_png(found: Explanations) -> bytes:
    """Draws, for each class, cells that are right and cells that are wrong, each beside its Grad-CAM."""
    cells = _present(found.gradcam)
    sheet, side = _Sheet(), _side(cells)
    each = max((max(_blocks(cells, label)) for label in np.unique(cells.labels)), default=1)
    block = max(each, 1) * (2 * side + 3 * _GAP + 10)
    left = _MARGIN + _LABEL
    y = _head(sheet, "Where the model finds what speaks for its answer", [
        f"{_origin(found.origin)}: of each class the first cells that the model takes for what they are, and the "
        "most confident ones that it takes for something else,",
        "each beside its Grad-CAM for the class that the model names.", found.coarseness], legend=True)
    for number, text in enumerate(("taken for what they are", "taken for another class")):
        sheet.text(left + number * (block + _BETWEEN), y, text, colour=(_RIGHT, _WRONG)[number], bold=True)
    y += 16
    for label in np.unique(cells.labels):
        _class_label(sheet, y + side / 2, found, label)
        right = cells.labels == cells.predicted
        for number, own in enumerate((right, ~right)):
            x = left + number * (block + _BETWEEN)
            rows = np.flatnonzero((cells.labels == label) & own)
            for row in rows:
                sheet.picture(x, y, cells.images[row], side)
                sheet.picture(x + side + _GAP, y, overlay(cells.images[row], cells.heat[row]), side)
                said = f"{_words(found.class_names[cells.predicted[row]])} {_percent(cells.confidence[row])}"
                sheet.text(x, y + side + 9, _tail(said, 30), size=8, colour=(_RIGHT, _WRONG)[number])
                x += 2 * side + 3 * _GAP + 10
            if not len(rows):
                sheet.text(x, y + side / 2, "none", size=9, colour=_FAINT)
        y += side + 28
    return sheet.png(left + 2 * block + _BETWEEN + _MARGIN, y + 8)


def mistakes_png(found: Explanations) -> bytes:
    """Draws the most confident mistakes, each beside its Grad-CAM for the class named and for the true one."""
    cells = _present(found.mistakes)
    sheet, side = _Sheet(), _side(cells)
    tile = 3 * side + 2 * _GAP + 26
    across = max(1, min(4, len(cells)))
    count = int(found.wrong.sum())
    shown = f"the {len(cells)} most confident" if len(cells) < count else "all, the most confident first"
    y = _head(sheet, "The most confident mistakes", [
        f"{_origin(found.origin)}: {count:,} of {int(found.counts.sum()):,} images are taken for another class; here: "
        f"{shown}.",
        "Each cell as it is, beside its Grad-CAM for the class that the model names (red) and for the true one "
        "(blue), with the probabilities of both.", found.coarseness], legend=True)
    if not len(cells):
        sheet.text(_MARGIN, y + 10, "There is none.")
        y += 40
    for place in range(len(cells)):
        x, top = _MARGIN + place % across * tile, y + place // across * (side + _CAPTION + 12)
        pictures = (cells.images[place], overlay(cells.images[place], cells.heat[place]),
                    overlay(cells.images[place], cells.heat_of_label[place]))
        texts = [(_tail(cells.files[place], 18), _FAINT)]
        texts += [(f"{_words(found.class_names[which])} {_percent(cells.probabilities[place, which])}", colour)
                  for which, colour in ((cells.predicted[place], _WRONG), (cells.labels[place], _RIGHT))]
        for picture, (text, colour) in zip(pictures, texts, strict=True):
            sheet.picture(x, top, picture, side)
            sheet.text(x, top + side + 5, _wrapped(text), size=7, colour=colour, above=True)
            x += side + _GAP
    y += -(-len(cells) // across) * (side + _CAPTION + 12)
    return sheet.png(2 * _MARGIN + max(across, 3) * tile - 26, y + 8)


def neighbours_png(found: Explanations) -> bytes:
    """Draws cells, and beside each the training images whose features are nearest."""
    if found.neighbours is None:
        raise ValueError("expected neighbours")
    near, cells = found.neighbours, found.neighbours.cells
    sheet, side = _Sheet(), _side(cells)
    k = near.ids.shape[1]
    block = (1 + k) * (side + _GAP) + 12
    left = _MARGIN + _LABEL
    y = _head(sheet, "The nearest training images", [
        f"{_origin(found.origin)}: of each class a cell that the model takes for what it is and one that it does not, "
        f"and the nearest of {near.searched:,} training images ({_origin(near.origin)}).",
        "Near is a high cosine similarity (the number) of the backbone's pooled features. Blue: of the cell's own "
        "class; red: of another."])
    for number, text in enumerate(("taken for what they are", "taken for another class")):
        sheet.text(left + number * (block + _BETWEEN), y, text, colour=(_RIGHT, _WRONG)[number], bold=True)
    y += 16
    for label in np.unique(cells.labels):
        _class_label(sheet, y + side / 2, found, label)
        for number in range(2):
            x = left + number * (block + _BETWEEN)
            rows = np.flatnonzero((cells.labels == label) & ((cells.labels == cells.predicted) == (number == 0)))
            if not len(rows):
                sheet.text(x, y + side / 2, "none", size=9, colour=_FAINT)
                continue
            row = rows[0]
            said = f"{_words(found.class_names[cells.predicted[row]])} {_percent(cells.confidence[row])}"
            sheet.picture(x, y, cells.images[row], side)
            sheet.text(x, y + side + 5, _wrapped(said), size=7, colour=(_RIGHT, _WRONG)[number], above=True)
            x += side + _GAP + 12
            for place in range(k):
                other = near.labels[row, place]
                colour = _RIGHT if other == label else _WRONG
                sheet.picture(x, y, near.images[row, place], side, frame=colour)
                sheet.text(x, y + side + 5, _wrapped(f"{_words(found.class_names[other])} "
                                                     f"{near.similarity[row, place]:.3f}"), size=7, colour=colour,
                           above=True)
                x += side + _GAP
        y += side + _CAPTION + 10
    return sheet.png(left + 2 * block + _BETWEEN + _MARGIN, y + 8)


def tsne_png(found: Explanations) -> bytes:
    """Draws the map of features: a dot for each image in its class's colour, and a cross where the model is wrong."""
    if found.tsne is None:
        raise ValueError("expected a map")
    each: FeatureMap = found.tsne
    figure = Figure(figsize=(9.6, 7.2), dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.subplots()
    points, wrong = each.points, each.labels != each.predicted
    colours = _colours(len(found.class_names))
    for label in np.unique(each.labels):
        own = each.labels == label
        name = _words(found.class_names[label])
        right, missed = points[own & ~wrong], points[own & wrong]
        axes.scatter(right[:, 0], right[:, 1], s=11, color=colours[label], alpha=0.65, linewidths=0, zorder=2,
                     label=f"{name} ({int(own.sum()):,}, {len(missed):,} wrong)")
        axes.scatter(missed[:, 0], missed[:, 1], s=46, color=colours[label], marker="X", linewidths=0.8,
                     edgecolors=_INK, zorder=3)
    if wrong.any():
        axes.scatter([], [], s=46, color="white", marker="X", linewidths=0.8, edgecolors=_INK,
                     label="wrong, in the colour of the true class")
    _name_groups(axes, each, found.class_names)
    some = "" if len(each) == found.counts.sum() else f" of {int(found.counts.sum()):,}"
    axes.set_title("Images by what the model sees in them (t-SNE)", loc="left", fontsize=13, fontweight="bold",
                   color=_INK, pad=30)
    axes.text(0, 1.015, f"{_origin(found.origin)}: {len(each):,}{some} images. Near ones look alike to the model; how "
              "far groups are apart, and how large they are, means little.", transform=axes.transAxes, fontsize=8.5,
              color=_FAINT, parse_math=False, in_layout=False)  # a long line would make the map narrow
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#d5dade")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, handletextpad=0.3,
                  columnspacing=1.4)
    return plots.png(figure)


def _name_groups(axes: Axes, each: FeatureMap, names: tuple[str, ...]) -> None:
    """Writes the classes' names where most of their dots are."""
    for label in np.unique(each.labels):
        points = each.points[each.labels == label]
        middle = points[np.abs(points - np.median(points, axis=0)).sum(axis=1).argmin()]
        axes.text(middle[0], middle[1], _words(names[label]), fontsize=9, fontweight="bold", color=_INK, ha="center",
                  va="center", zorder=4, parse_math=False, in_layout=False,
                  bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "boxstyle": "round,pad=0.15"})


def _colours(count: int) -> list[str]:
    if count <= len(_CLASSES):
        return list(_CLASSES)
    return [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps["turbo"](np.linspace(0, 1, count))]


class _Sheet:
    """Texts and pictures at places in pixels from the upper left corner."""

    def __init__(self) -> None:
        self._figure = Figure(dpi=_DPI, facecolor="white")
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._pictures: list[tuple[int, int, np.ndarray]] = []

    def text(self, x: float, y: float, text: str, *, size: float = 9, colour: str = _INK, bold: bool = False,
             above: bool = False, right: bool = False) -> None:
        """Writes with the middle of the line's left end there; `above`: its top; `right`: its right end."""
        self._axes.text(x, y, text, fontsize=size, color=colour, fontweight="bold" if bold else "normal",
                        va="top" if above else "center", ha="right" if right else "left", linespacing=1.2,
                        parse_math=False)

    def picture(self, x: int, y: int, image: np.ndarray, side: int, *, frame: str = "") -> None:
        """Places an image, brought to a side, with a frame of a colour."""
        self.strip(x, y, plots.at_side(image, side))
        if frame:
            self._axes.add_patch(Rectangle((x + 1, y + 1), side - 2, side - 2, fill=False, edgecolor=frame,
                                           linewidth=1.6))

    def strip(self, x: int, y: int, pixels: np.ndarray) -> None:
        """Places uint8 [H,W,3] as they are."""
        self._pictures.append((x, y, pixels))

    def png(self, width: int, height: int) -> bytes:
        """Returns the sheet in that size, wide enough for what stands above the cells."""
        width = max(width, _NARROWEST)
        canvas = np.full((height, width, 3), 255, np.uint8)
        for x, y, image in self._pictures:
            canvas[y:y + len(image), x:x + image.shape[1]] = image
        self._axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", zorder=0)
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(height, 0)
        self._axes.set_aspect("auto")
        self._figure.set_size_inches(width / _DPI, height / _DPI)
        return plots.png(self._figure)


def _head(sheet: _Sheet, title: str, lines: list[str], *, legend: bool = False) -> int:
    """Writes what stands above the cells; returns where the rest begins."""
    sheet.text(_MARGIN, _MARGIN + 6, title, size=14, bold=True)
    y = _MARGIN + 32
    for line in lines:
        sheet.text(_MARGIN, y, line, size=8.5, colour=_FAINT)
        y += 17
    if legend:
        ramp = np.tile(np.linspace(0, 1, 128), (10, 1))
        sheet.strip(_MARGIN, y, overlay(np.full((10, 128, 3), 235, np.uint8), ramp))
        sheet.text(_MARGIN + 138, y + 5, "from nothing that speaks for the class to most of all, in each image by "
                   "itself", size=8, colour=_FAINT)
        y += 18
    return y + 16


def _class_label(sheet: _Sheet, y: float, found: Explanations, label: int) -> None:
    x, lines = _MARGIN + _LABEL - 14, textwrap.wrap(_words(found.class_names[label]), 17)
    sheet.text(x, y - 8, "\n".join(lines), bold=True, right=True)
    sheet.text(x, y + 6 + 7 * len(lines), f"{found.wrong[label]:,} of {found.counts[label]:,} wrong", size=8,
               colour=_FAINT, right=True)


def _blocks(cells: Cells, label: int) -> tuple[int, int]:
    own = cells.labels == label
    return int((own & (cells.predicted == label)).sum()), int((own & (cells.predicted != label)).sum())


def _present(cells: Cells | None) -> Cells:
    if cells is None:
        raise ValueError("expected cells")
    return cells


def _side(cells: Cells) -> int:
    side = max(cells.images.shape[1:3], default=_LEAST) or _LEAST
    return -(-_LEAST // side) * side if side < _LEAST else min(side, _MOST)


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(text, 17)
    return "\n".join(lines if len(lines) < 3 else [lines[0], _tail(text, 17)])


def _percent(probability: float) -> str:
    """Returns whole per cent, never rounded up to certainty, that stay on one line."""
    return "> 99 %" if 0.995 <= probability < 1 else f"{probability:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


def _tail(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[1 - length:]


def _origin(text: str) -> str:
    return _tail(text, 36)


def _words(name: str) -> str:
    return name.replace("_", " ")
