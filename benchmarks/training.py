"""bloodcell's own training step, built for the suites that time one."""

import dataclasses
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
      model: the network.
      run: trains on the batches that it is given, one after another, and waits for the last loss; the number is the
        epoch's, on which depends what augmentation draws, and so what it costs.
      step: the compiled step itself: (batch, epoch) -> float32 [5], see `bloodcell.train.step.train_step`.
    """

    runtime: "Runtime"
    model: Any
    run: Callable[[Iterable[Any], int], None]
    step: Callable[..., Any]


def build(network: str, *, policy: str = "", mix: str = "", precision: str = "auto", jit: str = "auto",
          classes: int, replicas: int = 1, reduced: bool = True, backend: str = "xla") -> Training:
    """Builds a network with random weights, AdamW and cross-entropy, and its compiled step.

    Args:
      network: a backbone.
      policy: `--augment`.
      mix: `--mix`.
      precision: `--precision`.
      jit: `--jit`.
      classes: of the labels.
      replicas: on as many GPUs, or logical devices of the CPU, which must be made before TensorFlow starts.
      reduced: whether replicas exchange gradients and statistics; without, each learns by itself (`Unreduced`).
      backend: who augments.
    """
    from bloodcell import augment, models
    from bloodcell.train import losses, optimizers, step, strategy
    runtime = strategy.resolve(strategy="none" if replicas == 1 else "mirrored", replicas=replicas,
                               precision=precision, jit=jit, seed=0)
    if not reduced:
        runtime = dataclasses.replace(runtime, strategy=tf.distribute.MirroredStrategy(
            list(runtime.strategy.extended.worker_devices), cross_device_ops=Unreduced()))
    with runtime.strategy.scope():
        model = models.build(network, weights="none", head="", image_size=SIDE, num_classes=classes, seed=0)
        settings = optimizers.parse("adamw(weight_decay=1e-4)")
        optimizer = optimizers.build(settings, learning_rate=1e-3, variables=model.trainable_variables,
                                     precision=runtime.precision)
    inputs = step.inputs(augment.parse(policy, backend=backend), runtime, 0, num_classes=classes,
                         mixer=augment.parse_mix(mix))
    train_step = step.train_step(model, optimizer, inputs=inputs, loss=losses.parse("cross_entropy"),
                                 class_weights=np.ones(classes, np.float32), runtime=runtime)

    def run(batches: Iterable[Any], epoch: int) -> None:
        number = tf.constant(epoch, tf.int64)
        tf.stack([train_step(batch, number) for batch in batches]).numpy()

    return Training(runtime, model, run, train_step)


class Unreduced(tf.distribute.CrossDeviceOps):
    """Leaves every replica its own values where a step reduces over the replicas: a step without communication.

    What the strategy itself sums for the host (the step's five figures) is still summed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._host = tf.distribute.ReductionToOneDevice()

    def reduce_implementation(self, reduce_op: Any, per_replica_value: Any, destinations: Any, options: Any) -> Any:
        """Sums for the host."""
        return self._host.reduce_implementation(reduce_op, per_replica_value, destinations, options)

    def batch_reduce_implementation(self, reduce_op: Any, value_destination_pairs: Any, options: Any) -> list[Any]:
        """Returns the values as they are; all that replicas reduce in a step comes this way."""
        del reduce_op, options
        return [value for value, _ in value_destination_pairs]


def rendered(count: int) -> dict[str, tf.Tensor]:
    """Returns a batch of so many rendered cells, as a pipeline has it."""
    from bloodcell.data import demo
    pixels, labels = demo.render(count, seed=0, size=SIDE)
    return {"image": tf.constant(pixels), "label": tf.constant(labels, tf.int64), "id": tf.range(count, dtype=tf.int64),
            "weight": tf.ones(count)}


def placed(batches: Iterable[Any], strategy: tf.distribute.Strategy) -> list[Any]:
    """Returns batches, or what each replica has of them, on the devices that train."""
    @tf.function(autograph=False)
    def copy(batch: Any) -> Any:
        return strategy.run(lambda part: tf.nest.map_structure(tf.identity, part), args=(batch,))

    return [copy(batch) for batch in batches]


def divided(batch: dict[str, tf.Tensor], runtime: "Runtime") -> Any:
    """Returns a global batch on the devices that train, on each the rows of its replica."""
    return placed(runtime.distribute(tf.data.Dataset.from_tensors(batch)), runtime.strategy)[0]


def reduction(trained: Training) -> Callable[[int], None]:
    """Returns what exchanges, so many times, tensors like those that the replicas exchange in a step, and waits."""
    from bloodcell.train import step
    shapes = [tuple(variable.shape) for variable in trained.model.trainable_variables]
    means = [tuple(variable.shape) for variable in step.moving_statistics(trained.model)]

    @tf.function(autograph=False)
    def exchange(start: tf.Tensor) -> Any:
        def replica() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            own = start + tf.cast(context.replica_id_in_sync_group, tf.float32)
            found = [*context.all_reduce("sum", [tf.fill(shape, own) for shape in shapes]),
                     *context.all_reduce("mean", [tf.fill(shape, own) for shape in means])]
            return tf.add_n([tf.reshape(tensor, [-1])[0] for tensor in found])
        strategy = trained.runtime.strategy
        return strategy.reduce("sum", strategy.run(replica), axis=None)

    def run(times: int) -> None:
        tf.stack([exchange(tf.constant(float(number))) for number in range(times)]).numpy()

    return run
