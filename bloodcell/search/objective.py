"""What a trial is worth: the balanced accuracy on validation of a training with its flags, or the mean over folds.

Read `run`. Where trials come from is `study`'s business; which images they see, the command's.
"""

import dataclasses
import gc
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell.config import Config, to_flagfile
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError, Stopped
from bloodcell.evaluate import classifier, metrics
from bloodcell.files import write_atomically
from bloodcell.models import MissingWeights
from bloodcell.search.study import Trial
from bloodcell.train import checkpoints, loop, metrics_log, stages
from bloodcell.train.strategy import Runtime
from bloodcell.train.tensorboard import FOLDER as BOARD_FOLDER

Parts = Callable[[], tuple[ImageSet, ImageSet]]  # makes a training and a validation part

_NO_MEMORY = "RESOURCE_EXHAUSTED"


class _Pruned(Exception):
    """The trial is worse than the others so far."""


@dataclasses.dataclass(frozen=True)
class _Watch:
    """Notes a training's epochs in its trial.

    Attributes:
      trial: gets the mean over the folds so far of the best validation accuracy, of this one the newest.
      before: best validation accuracy of each fold that is done.
      epochs: of each fold.
      last: no fold comes after this one.
      say: shows a person where the trial is.
    """

    trial: Trial
    before: Sequence[float]
    epochs: int
    last: bool
    say: Callable[[str], None]

    def __call__(self, record: dict[str, Any]) -> None:
        """Notes a line of `metrics.jsonl`; raises _Pruned."""
        accuracy = float(np.mean([*self.before, record["val_accuracy"]]))
        done = record["epoch"] + self.epochs * len(self.before)
        self.say(f"trial {self.trial.number}: epoch {done}, validation accuracy {record['val_accuracy']:.4f}")
        over = self.last and record["epoch"] >= self.epochs
        if self.trial.report(accuracy, done, prunable=not over):
            raise _Pruned


def run(trial: Trial, prepare: Callable[[], tuple[Config, Sequence[Parts]]], runtime: Runtime, *,
        say: Callable[[str], None] = lambda text: None) -> None:
    """Trains by a trial's flags and ends the trial.

    Its folder gets `config.cfg` and `metrics.jsonl`; as long as it is the best, and there is one fold, also
    `model.json` and the checkpoint of the best epoch.

    Args:
      trial: of `Study.claim`.
      prepare: returns its flags, with `workdir` its folder, and one fold or more; may raise InputError.
      runtime: the devices.
      say: shows a person where the trial is.

    Raises:
      Stopped: a signal; the trial's point will be tried again.
      MissingWeights: no trial can have what it trains from; the trial's point will be tried again.
    """
    values: list[float] = []
    accuracies: list[float] = []
    try:
        config, folds = prepare()
        write_atomically(trial.folder / "config.cfg", to_flagfile(config).encode())
        epochs = sum(stage.epochs for stage in stages.parse(config.stages))
        for number, parts in enumerate(folds):
            run_dir = trial.folder if len(folds) == 1 else trial.folder / f"fold{number + 1}"
            watch = _Watch(trial, tuple(accuracies), epochs, number + 1 == len(folds), say)
            try:
                value, accuracy = _train(config, runtime, parts, run_dir, watch)
            finally:
                _tidy(run_dir, trial.folder, number)
                _forget()
            values.append(value)
            accuracies.append(accuracy)
    except _Pruned:
        trial.prune()
    except MissingWeights:
        trial.give_back()
        raise
    except InputError as error:
        trial.fail(" ".join(str(error).split()))
    except (MemoryError, tf.errors.OpError) as error:
        if not isinstance(error, MemoryError) and _NO_MEMORY not in f"{error.error_code} {error}" and not isinstance(
                error, tf.errors.ResourceExhaustedError):
            trial.fail(str(error).splitlines()[0])
            raise
        trial.fail("out of memory; expected a batch and a network that fit, try a smaller batch_size or image_size")
    except (Stopped, KeyboardInterrupt):
        trial.give_back()
        raise
    except BaseException as error:
        trial.fail(f"{type(error).__name__}: {error}".splitlines()[0])  # a bug, which is raised all the same
        raise
    else:
        if not np.isfinite(values).all():
            trial.fail("expected finite probabilities on validation, received others; try a lower lr")
        else:
            trial.finish(float(np.mean(values)), tuple(values) if len(values) > 1 else ())


def _train(config: Config, runtime: Runtime, parts: Parts, run_dir: pathlib.Path,
           watch: Callable[[dict[str, Any]], None]) -> tuple[float, float]:
    """Returns the balanced accuracy of the best epoch's weights on validation, and the best validation accuracy."""
    train, val = parts()
    model = loop.fit(config, runtime, train, val, run_dir, on_epoch=watch)
    measured = classifier.Classifier(
        [classifier.Member(str(run_dir), model)],
        transform=classifier.policy_transform(config.val_augment, seed=config.seed, jit=runtime.jit != "off"))
    probabilities = measured.probabilities(measured.outputs(val, batch_size=config.batch_size).logits)
    figures = metrics.compute(np.asarray(val.labels), probabilities, val.class_names)
    lines = (run_dir / metrics_log.FILE).read_text(encoding="utf-8").splitlines()
    return figures["balanced_accuracy"], max(json.loads(line)["val_accuracy"] for line in lines)


def _forget() -> None:
    """Frees the memory of a training that is over; TensorFlow's graphs are rings that wait for the collector."""
    keras.utils.clear_session()
    gc.collect()


def _tidy(run_dir: pathlib.Path, folder: pathlib.Path, number: int) -> None:
    """Deletes what only a training that goes on needs, and of a fold all but its epochs: the trial's file gets them."""
    shutil.rmtree(run_dir / BOARD_FOLDER, ignore_errors=True)
    (run_dir / "not_finite.npz").unlink(missing_ok=True)
    for path in checkpoints.Checkpoints(run_dir).newest():
        path.unlink(missing_ok=True)
    if run_dir == folder:
        return
    own, every = run_dir / metrics_log.FILE, folder / metrics_log.FILE
    if own.is_file():
        records = [{"fold": number + 1, **json.loads(line)} for line in own.read_text(encoding="utf-8").splitlines()]
        before = every.read_bytes() if every.is_file() else b""
        write_atomically(every, before + "".join(json.dumps(record) + "\n" for record in records).encode())
    shutil.rmtree(run_dir, ignore_errors=True)
