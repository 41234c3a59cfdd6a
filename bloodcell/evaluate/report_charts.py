"""Charts of the report as SVG within the page: letters of the page's own, sharp at every size and on paper.

Colours and line widths are in `pages/report.css`. PNG pictures for files and TensorBoard are in `plots`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np

from bloodcell.evaluate.pages import Markup, escape

WIDTH = 480  # CSS pixels at full size; every chart has this width
_LEFT, _RIGHT = 52, 14  # of the plot, inside the chart
_GAP = 34  # below a plot: its numbers and its title


class _Plot:
    """One pair of axes; x and y in the data's units."""

    def __init__(self, top: float, height: float, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.top, self.height, self._x, self._y = top, height, x, y
        self.right = WIDTH - _RIGHT

    def x(self, value: float) -> float:
        return round(_LEFT + (value - self._x[0]) / (self._x[1] - self._x[0]) * (self.right - _LEFT), 1)

    def y(self, value: float) -> float:
        return round(self.top + (self._y[1] - value) / (self._y[1] - self._y[0]) * self.height, 1)

    def axes(self, title: str, y_ticks: Sequence[float], x_ticks: Sequence[float] = (), x_title: str = ""
             ) -> Iterator[str]:
        bottom = self.top + self.height
        for value in y_ticks:
            yield f'<line class="grid" x1="{_LEFT}" x2="{self.right}" y1="{self.y(value)}" y2="{self.y(value)}"/>'
            yield f'<text x="{_LEFT - 7}" y="{self.y(value) + 4}" text-anchor="end">{value:g}</text>'
        for value in x_ticks:
            yield f'<text x="{self.x(value)}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>'
        yield f'<line class="axis" x1="{_LEFT}" x2="{self.right}" y1="{bottom}" y2="{bottom}"/>'
        yield f'<text class="title" x="{_LEFT}" y="{self.top - 9}">{escape(title)}</text>'
        if x_title:
            middle = (_LEFT + self.right) / 2
            yield f'<text class="title" x="{middle}" y="{bottom + _GAP}" text-anchor="middle">{escape(x_title)}</text>'


def reliability(bins: Sequence[dict[str, Any]]) -> Markup:
    """Draws accuracy by confidence, and below it how many images have it.

    Args:
      bins: of `metrics.calibration`, in order.
    """
    filled = [each for each in bins if each["images"]]
    count = sum(each["images"] for each in filled)
    upper, lower = _Plot(28, 270, (0, 1), (0, 1)), _Plot(28 + 270 + 48, 62, (0, 1), (0, 1))
    parts = [*upper.axes("accuracy", (0, 0.25, 0.5, 0.75, 1)),
             *lower.axes("share of the images", (0, 0.5, 1), (0, 0.25, 0.5, 0.75, 1),
                         "confidence: the largest probability")]
    for each in filled:
        left, right = upper.x(each["above"]) + 1, upper.x(each["up_to"]) - 1
        for plot, value, kind in ((upper, each["accuracy"], "bar"), (lower, each["images"] / count, "share")):
            parts.append(f'<rect class="{kind}" x="{left:.1f}" width="{right - left:.1f}" y="{plot.y(value)}" '
                         f'height="{plot.y(0) - plot.y(value):.1f}"/>')
    parts.append(f'<line class="ideal" x1="{upper.x(0)}" y1="{upper.y(0)}" x2="{upper.x(1)}" y2="{upper.y(1)}"/>')
    parts += [f'<circle class="dot" r="3.5" cx="{upper.x(each["confidence"])}" cy="{upper.y(each["accuracy"])}"/>'
              for each in filled]
    said = "; ".join(f"confidence {each['confidence']:.2f}: accuracy {each['accuracy']:.2f}, {each['images']} images"
                     for each in filled)
    return _chart(f"Reliability diagram. {said}", lower.top + lower.height + _GAP + 6, parts)


def curves(history: Sequence[dict[str, Any]]) -> Markup:
    """Draws accuracy and loss by epoch.

    Args:
      history: lines of `metrics.jsonl`, at least one: `epoch`, `loss`, `accuracy`, `val_loss`, `val_accuracy`, and
        where weights are averaged `average_val_loss` and `average_val_accuracy`.
    """
    epochs = [line["epoch"] for line in history]
    x = (min(epochs), max(epochs)) if len(epochs) > 1 else (epochs[0] - 0.5, epochs[0] + 0.5)
    ticks = [value for value in matplotlib.ticker.MaxNLocator(8, integer=True, min_n_ticks=1).tick_values(*x)
             if x[0] <= value <= x[1]]
    parts: list[str] = []
    top = 28
    for measure, last in (("accuracy", False), ("loss", True)):
        series = {kind: [(line["epoch"], line[key]) for line in history if key in line and np.isfinite(line[key])]
                  for kind, key in (("train", measure), ("val", f"val_{measure}"), ("mean", f"average_val_{measure}"))}
        values = [value for points in series.values() for _, value in points] or [0.0]
        scale = matplotlib.ticker.MaxNLocator(4, min_n_ticks=3).tick_values(min(values), max(values))
        plot = _Plot(top, 150, x, (float(scale[0]), float(scale[-1])))
        parts += plot.axes(measure, [float(value) for value in scale], ticks if last else (), "epoch" if last else "")
        for kind, points in series.items():
            places = [(plot.x(epoch), plot.y(value)) for epoch, value in points]
            if len(places) > 1:
                line = " ".join(f"{across},{down}" for across, down in places)
                parts.append(f'<polyline class="{kind}" points="{line}"/>')
            if len(places) <= 40:  # of more, dots hide the line
                parts += [f'<circle class="{kind}" r="2.6" cx="{across}" cy="{down}"/>' for across, down in places]
        top += 150 + 42
    first, best = history[0], max(history, key=lambda line: line["val_accuracy"])
    return _chart(f"Accuracy and loss by epoch. Validation accuracy {first['val_accuracy']:.3f} after epoch "
                  f"{first['epoch']}, at best {best['val_accuracy']:.3f} in epoch {best['epoch']}",
                  top - 42 + _GAP + 6, parts)


def _chart(description: str, height: float, parts: Sequence[str]) -> Markup:
    return Markup(f'<svg class="chart" role="img" aria-label="{escape(description)}" viewBox="0 0 {WIDTH} {height:g}" '
                  f'width="{WIDTH}" height="{height:g}">{"".join(parts)}</svg>')
