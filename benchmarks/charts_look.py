"""The look that all charts share: inks, sheets, and axes without a frame."""

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, LINE = "#222222", "#6b6b6b", "#e4e4e4", "#9a9a9a"


def sheet(inches: float) -> Figure:
    """Returns a figure of that height, as wide as all."""
    return Figure(figsize=(10.5, inches), dpi=130, facecolor="white")


def axes_in(figure: Figure, box: tuple[float, float, float, float], grid: Literal["x", "y", "both"]) -> Axes:
    """Adds axes: left and width as parts of the figure, bottom and height in inches."""
    left, bottom, width, inches = box
    axes = figure.add_axes((left, bottom / figure.get_figheight(), width, inches / figure.get_figheight()))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=9)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes
