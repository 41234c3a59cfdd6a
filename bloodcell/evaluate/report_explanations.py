"""The report's section on what the model goes by: heat maps, its surest mistakes, nearest training images, a map.

What is shown comes from `explanations`; here it becomes HTML, with pictures within a budget.
"""

from collections.abc import Sequence

import numpy as np

from bloodcell.errors import shown
from bloodcell.evaluate import thumbnails
from bloodcell.evaluate.explanation_sheets import overlay
from bloodcell.evaluate.explanations import Cells, Explanations, FeatureMap, Neighbours
from bloodcell.evaluate.pages import Markup, escape
from bloodcell.evaluate.report_words import name, percent
from bloodcell.evaluate.thumbnails import Coding

BUDGET = 600_000  # bytes of the pictures of each of the three kinds, as they stand in the page
MOST = 96  # pictures of each kind
_CODINGS = (Coding(320, 80), Coding(192, 80), Coding(192, 60), Coding(128, 60), Coding(96, 40), Coding(64, 25))

_MAP_WIDTH, _MAP_HEIGHT, _EDGE = 960, 620, 14
_COLOURS = 9  # of `pages/report.css`; with the five shapes 45 classes can be told apart
_SHAPES = ("m-{r},0a{r},{r} 0 1 0 {d},0a{r},{r} 0 1 0 -{d},0z", "m-{r},-{r}h{d}v{d}h-{d}z", "m0,-{r}l{r},{d}h-{d}z",
           "m0,-{r}l{r},{r}l-{r},{r}l-{r},-{r}z", "m0,{r}l{r},-{d}h-{d}z")
_RADIUS = 3


def section(found: Explanations | None) -> str:
    """Returns the section's HTML; "" where there is nothing to show."""
    if found is None:
        return ""
    parts = []
    if found.gradcam is not None and len(found.gradcam):
        parts.append(_gradcam(found, found.gradcam))
    if found.mistakes is not None and len(found.mistakes):
        parts.append(_mistakes(found, found.mistakes))
    if found.neighbours is not None and len(found.neighbours.cells):
        parts.append(_neighbours(found, found.neighbours))
    if found.tsne is not None and len(found.tsne):
        parts.append(_map(found, found.tsne))
    if not parts:
        return ""
    remarks = "".join(f'<p class="small">{escape(remark)}</p>' for remark in found.remarks)
    return "\n".join(parts) + remarks


def _gradcam(found: Explanations, cells: Cells) -> str:
    names = [name(each) for each in found.class_names]
    cells = cells.take(_first(cells))
    pictures = _encoded(np.concatenate([cells.images, overlay(cells.images, cells.heat)], axis=2))
    rows = []
    for label, title in enumerate(names):
        own = np.flatnonzero(cells.labels == label)
        if len(own):
            figures = "".join(_figure(pictures[i], *_words(cells, i, names), wide=True) for i in own.tolist())
            rows.append(f'<h4>{escape(title)}</h4><div class="cells double">{figures}</div>')
    return ("<h3>Where it looks</h3><p>Each cell beside its heat map (Grad-CAM): the warmer a place, the more it "
            f"speaks for the name that the model gave. {escape(found.coarseness)}</p>{_folded(rows, at_once=8)}")


def _mistakes(found: Explanations, cells: Cells) -> str:
    names = [name(each) for each in found.class_names]
    cells = cells.take(np.arange(min(len(cells), MOST)))
    both = [overlay(cells.images, heat) for heat in (cells.heat, cells.heat_of_label)]
    pictures = _encoded(np.concatenate([cells.images, *both], axis=2))
    figures = [_figure(pictures[i], *_words(cells, i, names), wide=True) for i in range(len(cells))]
    return ("<h3>Its surest mistakes</h3><p>Wrong, and most confident about it: here a label may be at fault as well "
            "as the model. Beside each cell what speaks for the name that the model gave, and then what speaks for the "
            f'true class.</p>{_folded(figures, at_once=12, kind="cells triple")}')


def _neighbours(found: Explanations, near: Neighbours) -> str:
    names = [name(each) for each in found.class_names]
    across = near.images.shape[1]
    rows = max(1, min(len(near.cells), MOST // (across + 1)))
    stacked = np.concatenate([near.cells.images[:rows, None], near.images[:rows]], axis=1)
    pictures = _encoded(stacked.reshape(-1, *stacked.shape[2:]))
    parts = []
    for row in range(rows):
        said, kind = _words(near.cells, row, names)
        figures = [_figure(pictures[row * (across + 1)], said, kind)]
        for i in range(across):
            label = names[near.labels[row, i]]
            kind = "" if near.labels[row, i] == near.cells.labels[row] else "other"
            said = (label, f"similarity {near.similarity[row, i]:.2f}", shown(near.files[row][i]))
            figures.append(_figure(pictures[row * (across + 1) + 1 + i], said, kind))
        parts.append(f'<div class="cells row">{"".join(figures)}</div>')
    return (f"<h3>The nearest training images</h3><p>Each row begins with a measured cell; beside it those of "
            f"{near.searched:,} training images of {escape(near.origin)} that the model finds most similar; red "
            f"names are of other classes than the cell's own.</p>{_folded(parts, at_once=8, kind='rows')}")


def _words(cells: Cells, i: int, names: Sequence[str]) -> tuple[tuple[str, str, str], str]:
    """A cell's caption, and the kind of its figure."""
    true, predicted = names[cells.labels[i]], names[cells.predicted[i]]
    confidence = f"{percent(float(cells.confidence[i]))} sure"
    file = shown(cells.files[i])
    if cells.labels[i] == cells.predicted[i]:
        return (predicted, f"right, {confidence}", file), "right"
    return (predicted, f"truly {true}, {confidence}", file), "wrong"


def _figure(uri: str, said: Sequence[str], kind: str, *, wide: bool = False) -> str:
    first, second, file = said
    what = " and its heat map" if wide else ""
    wrapped = "<wbr>#".join(escape(part) for part in file.split("#"))  # of an array's image the number stays whole
    return (f'<figure class="{kind}"><img alt="{escape(file)}{what}" src="{uri}"><figcaption><b>{escape(first)}</b> '
            f'<span>{escape(second)}</span><span class="file">{wrapped}</span></figcaption></figure>')


def _folded(parts: Sequence[str], *, at_once: int, kind: str = "") -> str:
    """The first parts, and the others behind a click."""
    first, rest = (f'<div class="{kind}">{"".join(some)}</div>' for some in (parts[:at_once], parts[at_once:]))
    more = len(parts) - at_once
    return f"{first}<details><summary>{more:,} more</summary>{rest}</details>" if more > 0 else first


def _first(cells: Cells) -> np.ndarray:
    """At most `MOST` of them, of each class and of right and wrong ones as many as of the others."""
    group = 2 * cells.labels + (cells.labels != cells.predicted)
    rank = np.zeros(len(cells), np.int64)
    for each in np.unique(group):
        own = np.flatnonzero(group == each)
        rank[own] = np.arange(len(own))
    return np.sort(np.lexsort((group, rank))[:MOST])


def _encoded(images: np.ndarray) -> dict[int, str]:
    """Returns each of uint8 [K,H,W,3] as a data URI, by its place; all of them within `BUDGET`."""
    places = np.arange(len(images))
    for coding in _CODINGS:
        uris = thumbnails.single(images, places, coding)
        if sum(map(len, uris.values())) <= BUDGET:
            break
    return uris


def _map(found: Explanations, points: FeatureMap) -> str:
    low, high = points.points.min(axis=0), points.points.max(axis=0)
    room = np.array([_MAP_WIDTH, _MAP_HEIGHT]) - 2 * _EDGE
    scale = float((room / np.maximum(high - low, 1e-9)).min())
    x, y = ((points.points - (low + high) / 2) * (scale, -scale) + np.array([_MAP_WIDTH, _MAP_HEIGHT]) / 2).T
    paths, legend = [], []
    for label, title in enumerate(found.class_names):
        own = np.flatnonzero(points.labels == label)
        if len(own):
            shape = _SHAPES[label % len(_SHAPES)].format(r=_RADIUS, d=2 * _RADIUS)
            drawn = "".join(f"M{x[i]:.1f},{y[i]:.1f}{shape}" for i in own.tolist())
            paths.append(f'<path class="c{label % _COLOURS}" d="{drawn}"/>')
            legend.append(f'<li><svg viewBox="-5 -5 10 10" aria-hidden="true"><path class="c{label % _COLOURS}" '
                          f'd="M0,0{shape}"/></svg>{escape(name(title))} ({len(own):,})</li>')
    wrong = np.flatnonzero(points.labels != points.predicted)
    rings = "".join(f'<circle r="6.5" cx="{x[i]:.1f}" cy="{y[i]:.1f}"/>' for i in wrong.tolist())
    ringed = ('<li><svg viewBox="-8 -8 16 16" aria-hidden="true"><circle class="ring" r="6.5"/></svg>'
              f"wrong ({len(wrong):,})</li>") if len(wrong) else ""
    return Markup(
        "<h3>Which cells look alike to it</h3><p>Every point is an image; images with similar features lie close "
        "together (t-SNE). Colour and shape are the true class. Distances between groups, and their sizes, mean "
        "little.</p>"
        f'<svg class="map" role="img" aria-label="map of {len(points):,} images by their features; {len(wrong):,} of '
        f'them were given a wrong name" viewBox="0 0 {_MAP_WIDTH} {_MAP_HEIGHT}">{"".join(paths)}'
        f'<g class="ring">{rings}</g></svg>'
        f'<ul class="legend">{"".join(legend)}{ringed}</ul>')
