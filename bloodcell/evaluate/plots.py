"""Pictures for the report and for TensorBoard, as PNG bytes. matplotlib without a display and without global state."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

DPI = 150
_TRAIN, _VAL = "#9aa3ad", "#b3123f"


def confusion_png(matrix: Sequence[Sequence[int]] | np.ndarray, names: Sequence[str]) -> bytes:
    """Draws a confusion matrix.

    Args:
      matrix: [C, C] counts, rows are true classes and columns predicted ones. Colour is the share of the row.
      names: C class names.

    Returns:
      A PNG file.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.45 * max(len(names), 2)
    figure = Figure(figsize=(side, side), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="PuRd", vmin=0, vmax=1)
    labels = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, column in zip(*np.nonzero(counts), strict=True):
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=9,
                  color="white" if shares[row, column] > 0.55 else "black")
    return png(figure)


def reliability_png(bins: Sequence[dict[str, Any]], ece: float) -> bytes:
    """Draws a reliability diagram: accuracy by confidence, and how many images have it.

    Args:
      bins: of `metrics.calibration`, in order.
      ece: expected calibration error, 0..1, said in the picture.

    Returns:
      A PNG file.
    """
    figure = Figure(figsize=(5.2, 5.2), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left, width = [each["above"] for each in bins], 1 / len(bins)
    upper.plot([0, 1], [0, 1], "--", lw=1, color=_TRAIN, label="perfect")
    filled = [each for each in bins if each["images"]]
    upper.bar([each["above"] for each in filled], [each["accuracy"] for each in filled], width=width, align="edge",
              color=_VAL, alpha=0.35, edgecolor="white", label="accuracy in the bin")
    upper.plot([each["confidence"] for each in filled], [each["accuracy"] for each in filled], "o", ms=4, color=_VAL,
               clip_on=False, label="at its mean confidence")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.set_title(f"ECE {ece:.3f}", fontsize=10, pad=24)  # room for the legend: inside, some bars would be under it
    upper.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8, columnspacing=1.2)
    images = np.array([each["images"] for each in bins])
    lower.bar(left, images / images.sum(), width=width, align="edge", color=_TRAIN, edgecolor="white")
    lower.set(xlabel="confidence: the largest probability", ylabel="share of images")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def curves_png(history: Sequence[dict[str, Any]]) -> bytes:
    """Draws loss and accuracy by epoch.

    Args:
      history: lines of `metrics.jsonl`: `epoch`, `loss`, `accuracy`, `val_loss`, `val_accuracy`, and where weights are
        averaged `average_val_loss` and `average_val_accuracy`.

    Returns:
      A PNG file.
    """
    figure = Figure(figsize=(6.4, 5.2), dpi=DPI, layout="constrained")
    epochs = [line["epoch"] for line in history]
    for axes, name in zip(figure.subplots(2, 1, sharex=True), ("accuracy", "loss"), strict=True):
        axes.plot(epochs, [line[name] for line in history], "o-", ms=3, color=_TRAIN, label="training, augmented")
        axes.plot(epochs, [line[f"val_{name}"] for line in history], "o-", ms=3, color=_VAL, label="validation")
        averaged = [line for line in history if f"average_val_{name}" in line]
        if averaged:
            axes.plot([line["epoch"] for line in averaged], [line[f"average_val_{name}"] for line in averaged], "o--",
                      ms=3, color=_VAL, alpha=0.6, label="validation, averaged weights")
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    figure.axes[0].legend(frameon=False)
    return png(figure)


def robustness_png(errors: Mapping[str, Sequence[float]], clean: float, mean: float | None) -> bytes:
    """Draws balanced error as a heat map of corruptions (rows) and severities, the mean of each beside it.

    Args:
      errors: balanced error, 0..1, by corruption and severity; a suite without severities has one.
      clean: balanced error of the images as they are; a row of its own.
      mean: over the corruptions that have severities; None: no such row.

    Returns:
      A PNG file.
    """
    columns = max(len(values) for values in errors.values())
    means = {"clean": clean, **{name: float(np.mean(values)) for name, values in errors.items()}}
    by_severity = np.full((len(means), columns), np.nan)
    for row, values in enumerate(errors.values(), start=1):
        if len(values) > 1:
            by_severity[row, :len(values)] = values
    if mean is not None:
        means["mean over corruptions"] = mean
        over = [values for values in errors.values() if len(values) == columns > 1]
        by_severity = np.vstack([by_severity, np.mean(over, axis=0)])
    figure = Figure(figsize=(2.9 + 0.66 * (columns + 1), 1.1 + 0.34 * len(means)), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(columns, 1))
    # Dark is where every second cell is missed, or the worst there is: one scale for all models that are of any use.
    top = max(0.5, *means.values(), *by_severity[~np.isnan(by_severity)])
    for axes, cells in ((left, by_severity), (right, np.array(list(means.values()))[:, np.newaxis])):
        axes.imshow(cells, cmap="PuRd", vmin=0, vmax=top, aspect="auto")
        for row, column in zip(*np.nonzero(~np.isnan(cells)), strict=True):
            axes.text(column, row, f"{cells[row, column]:.3f}", ha="center", va="center", fontsize=9,
                      color="white" if cells[row, column] > 0.55 * top else "black")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for edge in (0.5, len(means) - 1.5) if mean is not None else (0.5,):
            axes.axhline(edge, color="white", linewidth=4)
    left.set_yticks(range(len(means)), [name.replace("_", " ") for name in means])
    left.set_xticks(range(columns), list(map(str, range(1, columns + 1))))
    left.set_xlabel("severity")
    right.set_xticks([0], ["mean"])
    figure.suptitle("balanced error under corruption", fontsize=11)
    return png(figure)


def image_grid_png(images: np.ndarray, titles: Sequence[str], *, columns: int = 4) -> bytes:
    """Draws images in rows.

    Args:
      images: [N, H, W, 3] in grey levels 0..255, uint8 or float; N at least 1.
      titles: N short texts, one above each image.
      columns: images a row.

    Returns:
      A PNG file.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.2 * columns, 1.4 * rows), dpi=DPI, layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    for axes, image, title in zip(figure.axes, pixels, titles, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title.replace("_", " "), fontsize=7, pad=2)
    return png(figure)


def at_side(image: np.ndarray, side: int) -> np.ndarray:
    """Returns uint8 [side,side,3]: an image that grows keeps its pixels, one that shrinks gives their means."""
    if image.shape[:2] == (side, side):
        return image
    larger = image.shape[0] < side
    return np.asarray(Image.fromarray(image).resize(
        (side, side), Image.Resampling.NEAREST if larger else Image.Resampling.BOX))


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file that says nothing of the program that drew it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
