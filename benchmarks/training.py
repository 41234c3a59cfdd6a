"""bloodcell's own training step, built for the suites that time one."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from benchmarks import SIDE

if TYPE_CHECKING:
    from bloodcell.train.strategy import Runtime

V2S = ("flip | rotate(180) | zoom(0.2) | oneof(augmix(severity=3), randaugment(n=3, m=4)) | "
       "oneof(gridmask, cutout(0.5)) | oneof(channel_shuffle, channel_shift(0.3), hue(0.3))")


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """A network that is trained.

    Attributes:
      runtime: its devices, precision and compilation.
      run: trains on the batches that it is given, one after another, and waits for the last loss.
    """

    runtime: "Runtime"
    run: Callable[[Iterable[Any]], None]


def build(network: str, *, policy: str = "", mix: str = "", precision: str = "auto", jit: str = "auto",
          classes: int) -> Training:
    """Builds a network with random weights, AdamW and cross-entropy on one device, and its compiled step.

    Args:
      network: a backbone.
      policy: `--augment`.
      mix: `--mix`.
      precision: `--precision`.
      jit: `--jit`.
      classes: of the labels.
    """
    from bloodcell import augment, models
    from bloodcell.train import losses, optimizers, step, strategy
    runtime = strategy.resolve(strategy="none", replicas=0, precision=precision, jit=jit, seed=0)
    with runtime.strategy.scope():
        model = models.build(network, weights="none", head="", image_size=SIDE, num_classes=classes, seed=0)
        settings = optimizers.parse("adamw(weight_decay=1e-4)")
        optimizer = optimizers.build(settings, learning_rate=1e-3, variables=model.trainable_variables,
                                     precision=runtime.precision)
    inputs = step.inputs(augment.parse(policy), runtime, 0, num_classes=classes, mixer=augment.parse_mix(mix))
    train_step = step.train_step(model, optimizer, inputs=inputs, loss=losses.parse("cross_entropy"),
                                 class_weights=np.ones(classes, np.float32), runtime=runtime)
    numbers = itertools.count()

    def run(batches: Iterable[Any]) -> None:
        epoch = tf.constant(next(numbers), tf.int64)
        tf.stack([train_step(batch, epoch) for batch in batches]).numpy()

    return Training(runtime, run)


def placed(batch: dict[str, tf.Tensor], strategy: tf.distribute.Strategy) -> Any:
    """Returns a batch on the device that trains."""
    return tf.function(lambda: strategy.run(lambda: tf.nest.map_structure(tf.identity, batch)), autograph=False)()
