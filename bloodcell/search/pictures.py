"""Pictures of a study's page, as PNG bytes: its course, what mattered, each name by itself, and all names together."""

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bloodcell.evaluate.plots import DPI, png
from bloodcell.search.space import Choice, Dimension, Range, Space, Value, label
from bloodcell.search.study import Row

_GREY, _RED = "#9aa3ad", "#b3123f"
_SHADES = "viridis_r"  # dark is good
_CUT = 18  # characters of a choice at an axis


def history_png(rows: Sequence[Row]) -> bytes:
    """Draws every trial's value by its number, and the best so far. Rows that did not finish are marks at the edge."""
    figure = Figure(figsize=(6.4, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    complete = _complete(rows)
    numbers, values = [row.number for row, _ in complete], [value for _, value in complete]
    axes.plot(numbers, values, "o", ms=4, color=_GREY, label="complete")
    pruned = [row for row in rows if row.state == "pruned" and row.last is not None]
    if pruned:
        axes.plot([row.number for row in pruned], [row.last or 0.0 for row in pruned], "x", ms=5, color=_GREY,
                  label="pruned, where it stood")
    failed = [row.number for row in rows if row.state == "failed"]
    if failed:
        axes.plot(failed, [0.02] * len(failed), "|", ms=9, color="black", label="failed", clip_on=False,
                  transform=axes.get_xaxis_transform())
    if complete:
        axes.step([*numbers, max(row.number for row in rows)], [*np.maximum.accumulate(values), max(values)],
                  where="post", color=_RED, label="best so far")
    axes.set(xlabel="trial", ylabel="balanced accuracy")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, columnspacing=1.2)
    _plain(axes)
    return png(figure)


def importances_png(shares: Mapping[str, float]) -> bytes:
    """Draws each name's share of the variance, the largest on top."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = Figure(figsize=(6.4, 1.0 + 0.42 * len(ordered)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in ordered], [share for _, share in ordered], color=_RED, height=0.6)
    axes.bar_label(bars, [f"{share:.0%}" for _, share in ordered], padding=3, fontsize=9)
    axes.set(xlim=(0, 1.1 * max(*shares.values(), 0.1)), xlabel="share of the variance of the values")
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    _plain(axes)
    axes.grid(visible=False, axis="y")
    return png(figure)


def slice_png(rows: Sequence[Row], dimension: Dimension) -> bytes:
    """Draws the complete trials' values by one name's values; later trials are darker."""
    complete = [row for row, _ in _complete(rows)]
    figure = Figure(figsize=(5.2, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    values = [value for _, value in _complete(rows)]
    if isinstance(dimension, Choice):
        places = [dimension.labels.index(label(row.point[dimension.name])) for row in complete]
        axes.set_xticks(range(dimension.count), [_cut(text) for text in dimension.labels],
                        rotation=20 if max(map(len, dimension.labels)) > 8 else 0)
        axes.set_xlim(-0.5, dimension.count - 0.5)
    else:
        places = [row.point[dimension.name] for row in complete]  # type: ignore[misc]  # numbers
        if isinstance(dimension, Range) and dimension.log:
            axes.set_xscale("log")
    axes.scatter(places, values, c=[row.number for row in complete], cmap=_SHADES, s=26, edgecolors="white",
                 linewidths=0.4)
    axes.set(xlabel=dimension.name, ylabel="balanced accuracy")
    _plain(axes)
    return png(figure)


def parallel_png(rows: Sequence[Row], space: Space) -> bytes:
    """Draws each complete trial as a line through its values, an axis for each name, coloured by its value."""
    complete = sorted(_complete(rows), key=lambda found: found[1])
    count = len(space.dimensions)
    figure = Figure(figsize=(max(6.4, 1.5 * (count + 1)), 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    values = [value for _, value in complete]
    shade = ScalarMappable(Normalize(min(values), max(values) + 1e-12), matplotlib.colormaps[_SHADES])
    colours = shade.to_rgba(np.array(values))
    for (row, _), colour in zip(complete, colours, strict=True):
        heights = [dimension.unit(row.point[dimension.name]) for dimension in space.dimensions]
        axes.plot(range(count), heights, color=colour, lw=1.3, alpha=0.85, marker="o", ms=3)
    for place, dimension in enumerate(space.dimensions):
        axes.axvline(place, color="black", lw=0.8)
        for value in _marks(dimension):
            axes.annotate(_cut(label(value)), (place, dimension.unit(value)), xytext=(4, 0), textcoords="offset points",
                          fontsize=9, va="center", bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.6})
    axes.set_xticks(range(count), [name.replace(".", ".\n") if len(name) > _CUT else name for name in space.names])
    axes.set(yticks=[], xlim=(-0.2, count - 1 + 0.6), ylim=(-0.04, 1.04))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(shade, ax=axes, label="balanced accuracy", pad=0.02)
    return png(figure)


def _complete(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    return [(row, row.value) for row in rows if row.state == "complete" and row.value is not None]


def _marks(dimension: Dimension) -> Sequence[Value]:
    """Returns the values that an axis of `parallel_png` names."""
    if isinstance(dimension, Choice):
        return dimension.options if dimension.count <= 12 else (dimension.options[0], dimension.options[-1])
    return dimension.grid(3)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[:_CUT - 1] + "…"
