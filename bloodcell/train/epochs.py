"""One epoch: its steps, with looks at the numbers, checkpoints and requests to stop in between; and one validation."""

import dataclasses
import time
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from bloodcell.train import averaging, step
from bloodcell.train.profiler import Profiler
from bloodcell.train.progress import Progress
from bloodcell.train.saving import Saver
from bloodcell.train.state import State
from bloodcell.train.stopping import StopRequest
from bloodcell.train.watch import Watch

LOOK_SECONDS = 0.5  # between two looks at the device's numbers; each look waits for the device


@dataclasses.dataclass(frozen=True)
class Around:
    """What happens around the steps of a run.

    Attributes:
      state: where the training stands; `train` counts on.
      progress, profiler, watch: show the steps.
      saver: where checkpoints go.
      stop: asks for a stop.
      save: makes a checkpoint of this moment.
      save_seconds: between two checkpoints within an epoch; 0 makes none.
      average: takes the weights after each step, where there is one.
    """

    state: State
    progress: Progress
    profiler: Profiler
    watch: Watch
    saver: Saver
    stop: StopRequest
    save: Callable[[], None]
    save_seconds: float
    average: averaging.Average | None


def train(train_step: step.Step, batches: Iterable[step.Batch], around: Around, *, steps: int,
          compiling: bool) -> dict[str, float]:
    """Trains what is left of an epoch.

    Args:
      train_step: from `step.train_step`.
      batches: those that the epoch has not seen yet; none where a stop came in its validation.
      around: counted on, shown, saved.
      steps: of the whole epoch.
      compiling: the first step is compiled now.

    Returns:
      The epoch's figures (`Watch.figures`), and `images_per_second`, without the compiling and of this process alone.

    Raises:
      Stopped: a signal; everything that can be is saved.
      NotFinite: a step's loss or gradient.
    """
    state, watch, progress, stop = around.state, around.watch, around.progress, around.stop
    epoch = tf.constant(state.epoch + 1, tf.int64)
    waiting: list[tf.Tensor] = []
    watch.begin_epoch(state.sums)
    clock, images, began = time.monotonic(), 0.0, time.monotonic() - state.seconds

    def look(*, compiled: bool = False) -> None:
        nonlocal clock, images
        seen = watch.look(waiting, state.step, compiled=compiled)
        state.sums, state.seconds = watch.sums, watch.looked - began
        if compiled:
            clock, images = watch.looked, 0.0
        else:
            images += seen[1]
        progress.advance(len(waiting), images / max(watch.looked - clock, 1e-9), state.sums[0] / state.sums[1])
        waiting.clear()

    if compiling:
        progress.compiling()
    for batch in around.profiler.steps(batches):
        if compiling:
            with stop.at_once():  # it takes long, and all before it is saved
                result = train_step(batch, epoch)
                result.numpy()
        else:
            result = train_step(batch, epoch)
        around.profiler.after_step(result)
        waiting.append(result)
        state.step += 1
        state.epoch_step += 1
        if around.average:
            around.average.after_step(state.step)
            if state.epoch_step == steps:
                around.average.after_epoch(state.step)
        due = around.saver.due(around.save_seconds) and state.epoch_step < steps
        if compiling or due or stop.asked or time.monotonic() - watch.looked > LOOK_SECONDS:
            look(compiled=compiling)
            if due or stop.asked:
                around.save()
            stop.check()
        compiling = False
    if waiting:
        look()
    speed = images / max(time.monotonic() - clock, 1e-9)  # 0 where the only step was the one that compiled
    return {**watch.figures(steps), "images_per_second": round(speed, 1)}


def validate(eval_step: step.Step, batches: Iterable[step.Batch], stop: StopRequest) -> dict[str, float]:
    """Returns `val_loss` and `val_accuracy`; raises Stopped at once where a signal comes."""
    # One fixed epoch number: each validation sees the same images, whatever --val_augment does to them.
    epoch = tf.constant(0, tf.int64)
    with stop.at_once():
        results = [eval_step(batch, epoch) for batch in batches]
        sums = np.asarray(tf.stack(results), np.float64).sum(axis=0)
    return {"val_loss": sums[0] / sums[1], "val_accuracy": sums[2] / sums[1]}
