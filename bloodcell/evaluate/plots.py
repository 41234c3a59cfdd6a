"""Pictures for the report and for TensorBoard, as PNG bytes. matplotlib without a display and without global state."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

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
    return _png(figure)


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
    return _png(figure)


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
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
