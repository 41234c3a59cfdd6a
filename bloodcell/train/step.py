"""One training step and one validation step, compiled as the machine likes it.

The step augments, runs forward and backward, and applies the gradients on every replica. What XLA compiles:

- `off`: nothing;
- `augment`: the augmentation;
- `step`: everything, in one program, on a single device; under a mirrored strategy augmentation, forward and backward
  on each replica, while the gradient all-reduce and the optimizer stay outside.

The loss is divided by the number of real images in the global batch (padding rows have weight 0), so replicas change
nothing but rounding. Two things do differ: batch normalisation takes its statistics from a replica's own rows, and
dropout draws for a replica's rows, as everywhere in TensorFlow.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell.train.losses import Loss
from bloodcell.train.strategy import Runtime

Batch = dict[str, Any]
Policy = Callable[..., Any]
Pixels = Callable[[Any, Any, Any], tf.Tensor]  # (uint8 images, int64 ids, int64 epoch) -> grey levels 0..255
Step = Callable[..., tf.Tensor]  # (batch, epoch) -> float32 [3]: summed loss, real images, right answers


def pixels(policy: Policy, runtime: Runtime, seed: int) -> Pixels:
    """Makes the augmentation, compiled where the runtime says so. Make it once a run: steps share what was compiled.

    Args:
      policy: `policy(images, ids, *, epoch, seed, dtype)`; what it does to an image must depend on these alone.
      runtime: devices, precision and compilation.
      seed: of the augmentation.
    """
    dtype = keras.config.dtype_policy().compute_dtype

    def apply(images: tf.Tensor, ids: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
        return policy(images, ids, epoch=epoch, seed=seed, dtype=dtype)

    return tf.function(apply, jit_compile=True, autograph=False) if runtime.jit == "augment" else apply


def train_step(model: keras.Model, optimizer: keras.optimizers.Optimizer, *, augmented: Pixels, loss: Loss,
               class_weights: np.ndarray, runtime: Runtime, clipnorm: float | None = None) -> Step:
    """Makes the training step for the variables that are trainable now; make a new one when that changes.

    Args:
      model: float [B, S, S, 3] in grey levels -> float32 logits [B, C].
      optimizer: built on `model.trainable_variables`.
      augmented: from `pixels`.
      loss: per example.
      class_weights: float32 [C]; multiplies an example's loss by the weight of its label.
      runtime: devices, precision and compilation.
      clipnorm: largest norm of all gradients together, over the whole global batch; None leaves them.

    Returns:
      `step(batch, epoch)`: a (distributed) batch as `data.pipeline` gives it and an int64 scalar -> float32 [3]: the
      weighted loss summed over the images, the number of images, the number classified correctly.
    """
    strategy, variables = runtime.strategy, model.trainable_variables
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def gradients(batch: Batch, epoch: tf.Tensor, total: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        images = augmented(batch["image"], batch["id"], epoch)
        with tf.GradientTape() as tape:
            logits = tf.cast(model(images, training=True), tf.float32)
            per_image = loss(batch["label"], logits) * batch["weight"] * tf.gather(class_weights, batch["label"])
            mean = tf.reduce_sum(per_image) / total
            goal = optimizer.scale_loss(mean) if scaled else mean
        grads = tape.gradient(goal, [variable.value for variable in variables], unconnected_gradients="zero")
        return grads, _sums(per_image, batch, logits)

    if runtime.jit == "step" and runtime.distributed:
        gradients = tf.function(gradients, jit_compile=True, autograph=False)

    def replica_step(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        total = replica.all_reduce("sum", tf.reduce_sum(batch["weight"]))
        grads, sums = gradients(batch, epoch, total)
        if runtime.replicas > 1 and (clipnorm is not None or scaled):
            # The norm, and the test for overflow, must see the sum over replicas. Keras's optimizer sums once more
            # when it applies the gradients, hence the division.
            grads = replica.all_reduce("sum", grads)
            grads = [grad / runtime.replicas for grad in _clipped(grads, clipnorm, optimizer if scaled else None)]
        else:
            grads = _clipped(grads, clipnorm, optimizer if scaled else None)
        optimizer.apply(grads, variables)
        return sums

    @tf.function(jit_compile=(runtime.jit == "step" and not runtime.distributed) or None, autograph=False)
    def step(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("sum", strategy.run(replica_step, args=(batch, epoch)), axis=None)

    return step


def eval_step(model: keras.Model, *, augmented: Pixels, loss: Loss, runtime: Runtime) -> Step:
    """Makes the validation step: as `train_step`'s, without learning, dropout or class weights."""
    strategy = runtime.strategy

    def predict(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(model(augmented(batch["image"], batch["id"], epoch), training=False), tf.float32)
        return _sums(loss(batch["label"], logits) * batch["weight"], batch, logits)

    if runtime.jit == "step":
        predict = tf.function(predict, jit_compile=True, autograph=False)

    def replica_step(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        return predict(batch, epoch)  # run(predict) itself would compile all replicas into one program of one device

    @tf.function(autograph=False)
    def step(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("sum", strategy.run(replica_step, args=(batch, epoch)), axis=None)

    return step


def average_replicas(model: keras.Model, runtime: Runtime) -> None:
    """Gives all replicas the mean of their batch-norm statistics, which each gathered from its own rows.

    Done before each validation: replicas then agree on what they predict, and one copy is all a checkpoint needs.
    """
    if runtime.replicas == 1:
        return
    for variable in model.non_trainable_variables:
        if variable.dtype == "float32":
            copies = runtime.strategy.experimental_local_results(variable.value)
            if any(not np.array_equal(copies[0].numpy(), copy.numpy()) for copy in copies[1:]):
                variable.assign(np.mean([copy.numpy() for copy in copies], axis=0, dtype=np.float32))


def _sums(per_image: tf.Tensor, batch: Batch, logits: tf.Tensor) -> tf.Tensor:
    right = tf.cast(tf.equal(tf.argmax(logits, axis=-1), batch["label"]), tf.float32) * batch["weight"]
    return tf.stack([tf.reduce_sum(per_image), tf.reduce_sum(batch["weight"]), tf.reduce_sum(right)])


def _clipped(grads: list[tf.Tensor], clipnorm: float | None, scaler: Any) -> list[tf.Tensor]:
    if clipnorm is None:
        return grads
    limit = scaler.scale_loss(tf.constant(clipnorm)) if scaler is not None else tf.constant(clipnorm)
    # An overflowed norm makes the factor 0, and infinity times 0 NaN: loss scaling still sees the overflow.
    factor = tf.minimum(1.0, limit / tf.maximum(tf.linalg.global_norm(grads), 1e-12))
    return [grad * factor for grad in grads]
