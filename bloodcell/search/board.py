"""The trials in TensorBoard's HParams tab: `tensorboard --logdir=WORKDIR/tensorboard`."""

import contextlib
import json
import pathlib
from collections.abc import Iterator

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from bloodcell.search.space import Choice, Dimension, Range, Space, Value, label
from bloodcell.search.study import Row
from bloodcell.train import metrics_log

FOLDER = "tensorboard"
OBJECTIVE, EPOCHS = "search/balanced_accuracy", "epoch/val_accuracy"


def write_space(folder: pathlib.Path, space: Space) -> None:
    """Writes what is searched and what is measured, once for each search."""
    if any((folder / FOLDER).glob("events*")):
        return
    with _written(folder / FOLDER):
        hparams.hparams_config(
            hparams=[hparams.HParam(dimension.name, _domain(dimension)) for dimension in space.dimensions],
            metrics=[hparams.Metric(OBJECTIVE, display_name="balanced accuracy"),
                     hparams.Metric(EPOCHS, display_name="validation accuracy")])


def write_trial(folder: pathlib.Path, space: Space, row: Row, trial_folder: pathlib.Path) -> None:
    """Writes a trial that has ended: its values, its validation accuracy by epoch, and the objective where it has one.

    Args:
      folder: of the search.
      space: what is searched.
      row: the trial.
      trial_folder: with its `metrics.jsonl`.
    """
    log = trial_folder / metrics_log.FILE
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    with _written(folder / FOLDER / f"{row.number:04d}"):
        hparams.hparams({dimension.name: _shown(dimension, row.point[dimension.name])
                         for dimension in space.dimensions}, trial_id=f"{row.number:04d}")
        for step, line in enumerate(lines, start=1):
            tf.summary.scalar(EPOCHS, line["val_accuracy"], step=step)
        if row.value is not None:
            tf.summary.scalar(OBJECTIVE, row.value, step=max(len(lines), 1))


@contextlib.contextmanager
def _written(folder: pathlib.Path) -> Iterator[None]:
    """Has summaries of the block written into a new event file."""
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        yield
    writer.close()


def _domain(dimension: Dimension) -> hparams.Domain:
    if isinstance(dimension, Choice):
        return hparams.Discrete([_shown(dimension, option) for option in dimension.options])
    if isinstance(dimension, Range):
        return hparams.RealInterval(dimension.low, dimension.high)
    return hparams.IntInterval(dimension.low, dimension.high)


def _shown(dimension: Dimension, value: Value) -> float | str:
    """Returns a number where all values of the dimension are numbers, else the value's text."""
    values = dimension.options if isinstance(dimension, Choice) else (value,)
    if all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values):
        return float(value)  # type: ignore[arg-type]  # a number, as just seen
    return label(value)
