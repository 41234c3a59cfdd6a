"""What a person is shown of a training in words and pictures: what learns, an epoch's line, augmented images, the end.

Progress within an epoch is `progress`' business.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell.data.pipeline import Pipeline
from bloodcell.models import freezing
from bloodcell.train import step
from bloodcell.train.stages import Stage
from bloodcell.train.strategy import Runtime

GRID_IMAGES = 32  # augmented images shown in TensorBoard, per stage


def learning(index: int, count: int, stage: Stage, model: keras.Model) -> str:
    """Returns a table of what a stage trains: layers and parameters of each part."""
    rows = freezing.table(model)
    width = max(22, *(len(row[0]) for row in rows)) + 2
    lines = [f"stage {index + 1}/{count}: {stage}", f"  {'part':<{width}}{'layers':>8}{'trainable':>14}{'frozen':>14}"]
    lines += [f"  {part:<{width}}{layers:>8,}{learns:>14,}{frozen:>14,}" for part, layers, learns, frozen in rows]
    return "\n".join(lines)


def line(record: dict[str, Any], stage_epoch: int, stage: Stage, count: int) -> str:
    """Returns an epoch's figures as a line."""
    averaged = f"of the average {record['average_val_accuracy']:.4f}  " if "average_val_accuracy" in record else ""
    return (f"stage {record['stage']}/{count} {stage.part}, epoch {stage_epoch}/{stage.epochs}: "
            f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.4f}  val_loss {record['val_loss']:.4f}  "
            f"val_accuracy {record['val_accuracy']:.4f}  {averaged}lr {record['lr']:.2e}  "
            f"{record['images_per_second']:,.0f} images/s  {record['seconds']:.1f} s")


def augmented(inputs: step.Inputs, pipeline: Pipeline, runtime: Runtime, *, views: int, seed: int,
              epoch: int) -> np.ndarray:
    """Returns the epoch's first images as the step sees them, float32 [at most 32, H, W, 3] in grey levels.

    The views of an image stand side by side.
    """
    batch = pipeline.batch(seed, epoch)
    rows = pipeline.batch_size // runtime.replicas  # a replica's share: its program is compiled already
    if runtime.jit == "step":  # there the augmentation is part of the step's program, and has none of its own
        inputs = tf.function(inputs, jit_compile=True, autograph=False)
    images, _ = inputs({name: value[:rows] for name, value in batch.items()}, tf.constant(epoch, tf.int64))
    views_of = tf.cast(images, tf.float32).numpy().reshape(views, rows, *images.shape[1:]).swapaxes(0, 1)
    return views_of[:GRID_IMAGES // views].reshape(-1, *images.shape[1:])


def summary(history: Sequence[dict[str, Any]], stages: Sequence[Stage]) -> str:
    """Returns a table of a finished run: each stage's epochs, steps, best validation, speed and time, and the sums.

    Args:
      history: the lines of `metrics.jsonl`.
      stages: the run's, in order.
    """
    rows = [("stage", "epochs", "steps", "best val_accuracy", "in epoch", "images/s", "step p50/p99", "time")]
    before = 0
    for index, stage in enumerate(stages):
        own = [each for each in history if each["stage"] == index + 1]
        if own:
            rows.append((f"{index + 1} {stage.part}", str(len(own)), f"{own[-1]['step'] - before:,}", *_figures(own)))
            before = own[-1]["step"]
    if len(rows) > 2:
        rows.append(("all", str(len(history)), f"{before:,}", *_figures(history)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
                     for row in rows)


def _figures(own: Sequence[dict[str, Any]]) -> tuple[str, str, str, str, str]:
    best = max(own, key=lambda each: (each["val_accuracy"], -each["val_loss"]))
    times = [[each[f"step_ms_p{share}"] for each in own if f"step_ms_p{share}" in each] for share in (50, 99)]
    spread = " / ".join(f"{statistics.median(each):,.0f}" for each in times if each)
    return (f"{best['val_accuracy']:.4f}", str(best["epoch"]),
            f"{statistics.median(each['images_per_second'] for each in own):,.0f}",
            f"{spread} ms" if spread else "-", duration(sum(each["seconds"] for each in own)))


def duration(seconds: float) -> str:
    """Returns `1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
