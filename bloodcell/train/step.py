"""One training step and one validation step, compiled as the machine likes it.

The step augments and mixes, runs forward and backward, and applies the gradients on every replica. What XLA compiles:

- `off`: nothing;
- `augment`: augmentation and mixing;
- `step`: everything, in one program, on a single device; under a mirrored strategy augmentation, forward and backward
  on each replica, while the gradient all-reduce and the optimizer stay outside.

The name scopes augment, forward, backward and apply change nothing; a profiler's trace shows them (`profiler`).

The loss is divided by the number of real images in the global batch (padding rows have weight 0), so replicas change
nothing but rounding. Three things do differ: batch normalisation normalises with the statistics of a replica's own
rows, dropout draws for a replica's rows, as everywhere in TensorFlow, and an image is mixed with one of its replica's
rows. The moving statistics become the mean of all replicas in every step: replicas are equal between steps, and one
copy of the variables is the whole state.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell.augment import Mixer, rng
from bloodcell.train import optimizers
from bloodcell.train.losses import Loss
from bloodcell.train.strategy import Runtime

Batch = dict[str, Any]
Policy = Callable[..., Any]
Inputs = Callable[[Any, Any], tuple[tf.Tensor, tf.Tensor]]  # (batch, epoch) -> grey levels, targets; see `inputs`
Step = Callable[..., tf.Tensor]  # (batch, epoch) -> float32 sums over the images: see `train_step` and `eval_step`

_SECOND_VIEW = 0x76696577  # keeps this hash of ids apart from every other use of the generator
_SHARE = 0x73686172  # and this one


def inputs(policy: Policy, runtime: Runtime, seed: int, *, num_classes: int, mixer: Mixer | None = None,
           views: int = 1) -> Inputs:
    """Makes what turns a batch into the network's input, compiled where the runtime says so.

    Make it once for all stages that use it: steps share what was compiled.

    Args:
      policy: `policy(images, ids, *, epoch, seed, dtype)`; what it does to an image must depend on these alone. Where
        batches have shares, it is given `active` too.
      runtime: devices, precision and compilation.
      seed: of the augmentation.
      num_classes: C.
      mixer: mixes the augmented images and their labels; all views of an image alike.
      views: 1, the augmented image; or 3, the image itself and two augmentations drawn independently.

    Returns:
      `inputs(batch, epoch)`, of a batch with "image", uint8 [B, H, W, 3], or with "set" and "index", of which it takes
      the images on the device: images [views * B, H, W, 3] in the compute dtype, all of the first view first, and
      float32 targets [B, C]. The policy draws the last view as for another image, with the id `view_ids` gives. Where a
      batch has shares, an image that is not `active` is neither augmented nor mixed.
    """
    dtype = keras.config.dtype_policy().compute_dtype
    # by XLA in any case: TensorFlow itself gathers uint8 on the CPU only, and would bring the whole set there
    taken = tf.function(tf.gather, jit_compile=True) if runtime.jit == "off" else tf.gather
    if mixer is not None and mixer.identity:
        mixer = None

    def make(batch: Batch, epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        ids = batch["id"]
        images = taken(batch["set"], batch["index"]) if "set" in batch else batch["image"]
        targets = tf.one_hot(batch["label"], num_classes)
        on = active(ids, batch["share"], epoch=epoch, seed=seed) if "share" in batch else None
        if views == 1:
            only = {} if on is None else {"active": on}
            shown = [policy(images, ids, epoch=epoch, seed=seed, dtype=dtype, **only)]
        else:  # one run of the policy for both views: half the program, and fuller chunks
            only = {} if on is None else {"active": tf.concat([on, on], axis=0)}
            both = policy(tf.concat([images, images], axis=0), tf.concat([ids, view_ids(ids)], axis=0), epoch=epoch,
                          seed=seed, dtype=dtype, **only)
            shown = [tf.cast(images, dtype), *tf.split(both, 2)]
        if mixer is not None:
            size = (images.shape[1], images.shape[2])
            draws = mixer.draw(ids, batch["weight"], size, epoch=epoch, seed=seed)
            draws = draws if on is None else draws.only(on)
            shown = [mixer.mix_images(view, draws) for view in shown]
            targets = mixer.mix_labels(targets, draws, size)
        return tf.concat(shown, axis=0) if len(shown) > 1 else shown[0], targets

    def augmented(batch: Batch, epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.name_scope("augment"):  # inside what is compiled, hence in the names of its program's parts
            return make(batch, epoch)

    return tf.function(augmented, jit_compile=True, autograph=False) if runtime.jit == "augment" else augmented


def view_ids(ids: tf.Tensor) -> tf.Tensor:
    """Returns int64 [B]: the sample ids under which a policy draws an image's second augmentation of the same epoch.

    A 64-bit hash of the id, hence no other image's, and the same in any batch and on any replica.
    """
    return rng.sample_keys(ids, epoch=0, seed=_SECOND_VIEW)


def active(ids: tf.Tensor, share: tf.Tensor, *, epoch: tf.Tensor, seed: int) -> tf.Tensor:
    """Returns bool [B]: which images an epoch augments, each with the probability `share` (float32 [B]).

    Drawn from (seed, epoch, id) alone, apart from what a policy draws.
    """
    keys = rng.sample_keys(rng.sample_keys(ids, epoch=0, seed=_SHARE), epoch=epoch, seed=seed)
    return rng.uniform(keys, 1)[:, 0] < share


def train_step(model: keras.Model, optimizer: keras.optimizers.Optimizer, *, inputs: Inputs, loss: Loss,
               class_weights: np.ndarray, runtime: Runtime, clipnorm: float | None = None,
               accumulate: int = 1) -> Step:
    """Makes the training step for the variables that are trainable now; make a new one when that changes.

    Args:
      model: float [B, S, S, 3] in grey levels -> float32 logits [B, C].
      optimizer: built on `model.trainable_variables`.
      inputs: from `inputs`, with the views that the loss wants.
      loss: per image.
      class_weights: float32 [C]; multiplies an image's whole loss by the weight of its label, or, where labels are
        mixed, by the mean weight under its distribution.
      runtime: devices, precision and compilation.
      clipnorm: largest norm of all gradients together, over the whole global batch; None leaves them.
      accumulate: in how many parts, one after the other, a replica's rows go through the network; it must divide them.
        The step is the same, but for batch normalisation, whose statistics are a part's, and dropout's draws.

    Returns:
      `step(batch, epoch)`: a (distributed) batch as `data.pipeline` gives it and an int64 scalar -> float32 [5]: the
      weighted loss summed over the images, the number of images, the number whose first view was given the class that
      has the largest part in its label; the norm of all gradients together before clipping, over the global batch; and
      1 where loss scaling skips the step because a gradient has overflowed (the norm is 0 then), else 0.
    """
    strategy, variables = runtime.strategy, model.trainable_variables
    statistics = moving_statistics(model) if runtime.replicas > 1 else []
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if runtime.replicas > 1:
        optimizers.take_summed_gradients(optimizer)

    def gradients(batch: Batch, epoch: tf.Tensor, total: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        images, targets = inputs(batch, epoch)
        if accumulate == 1:
            return part(images, targets, batch["weight"], total)
        images = tf.reshape(images, [loss.views, accumulate, -1, *images.shape[1:]])
        targets = tf.reshape(targets, [accumulate, -1, targets.shape[-1]])
        real = tf.reshape(batch["weight"], [accumulate, -1])

        def add(index: tf.Tensor, grads: list[tf.Tensor], sums: tf.Tensor
                ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
            some = tf.reshape(images[:, index], [-1, *images.shape[3:]])
            more, counted = part(some, targets[index], real[index], total)
            return index + 1, [tf.add(*pair) for pair in zip(grads, more, strict=True)], sums + counted

        nothing = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
        # one part at a time: two at once would take the memory that this is to save
        _, grads, sums = tf.while_loop(lambda index, *_: index < accumulate, add, (0, nothing, tf.zeros(3)),
                                       parallel_iterations=1, maximum_iterations=accumulate)
        return grads, sums

    def part(images: tf.Tensor, targets: tf.Tensor, real: tf.Tensor, total: tf.Tensor
             ) -> tuple[list[tf.Tensor], tf.Tensor]:
        with tf.name_scope("forward"):
            weights = real * tf.linalg.matvec(targets, class_weights)
            with tf.GradientTape() as tape:
                logits = tf.cast(model(images, training=True), tf.float32)
                per_image = loss(targets, logits) * weights
                mean = tf.reduce_sum(per_image) / total
                goal = optimizer.scale_loss(mean) if scaled else mean
            sums = _sums(per_image, real, targets, logits)
        with tf.name_scope("backward"):
            grads = tape.gradient(goal, [variable.value for variable in variables], unconnected_gradients="zero")
        return grads, sums

    if runtime.jit == "step" and runtime.distributed:
        gradients = tf.function(gradients, jit_compile=True, autograph=False)

    def replica_step(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        total = replica.all_reduce("sum", tf.reduce_sum(batch["weight"]))
        grads, sums = gradients(batch, epoch, total)
        with tf.name_scope("apply"):
            if runtime.replicas > 1:
                grads = replica.all_reduce("sum", grads)
                if statistics:
                    means = replica.all_reduce("mean", [tf.identity(variable.value) for variable in statistics])
                    for variable, mean in zip(statistics, means, strict=True):
                        variable.assign(mean)
            norm = tf.linalg.global_norm([tf.cast(grad, tf.float32) for grad in grads])
            scale = tf.convert_to_tensor(optimizer.dynamic_scale) if scaled else tf.constant(1.0)
            optimizer.apply(grads if clipnorm is None else _clipped(grads, norm, clipnorm * scale), variables)
            skipped = tf.cast(tf.logical_not(tf.math.is_finite(norm)), tf.float32) if scaled else tf.constant(0.0)
            watched = tf.stack([tf.where(skipped > 0, 0.0, norm / scale), skipped])
        return tf.concat([sums, watched / runtime.replicas], axis=0)  # each replica has the same two

    @tf.function(jit_compile=(runtime.jit == "step" and not runtime.distributed) or None, autograph=False)
    def step(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("sum", strategy.run(replica_step, args=(batch, epoch)), axis=None)

    return step


def eval_step(model: keras.Model, *, inputs: Inputs, loss: Loss, runtime: Runtime) -> Step:
    """Makes the validation step: as `train_step`'s, of one view, without learning, dropout or class weights."""
    strategy = runtime.strategy

    def predict(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        images, targets = inputs(batch, epoch)
        logits = tf.cast(model(images, training=False), tf.float32)
        return _sums(loss.cross_entropy(targets, logits) * batch["weight"], batch["weight"], targets, logits)

    if runtime.jit == "step":
        predict = tf.function(predict, jit_compile=True, autograph=False)

    def replica_step(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        return predict(batch, epoch)  # run(predict) itself would compile all replicas into one program of one device

    @tf.function(autograph=False)
    def step(batch: Batch, epoch: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("sum", strategy.run(replica_step, args=(batch, epoch)), axis=None)

    return step


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Returns the moving means and variances that training moves now: those of no frozen layer."""
    layers = [layer for layer in model._flatten_layers()
              if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    return [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]


def _sums(per_image: tf.Tensor, real: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    answers = tf.argmax(logits[:tf.shape(targets)[0]], axis=-1)
    right = tf.cast(tf.equal(answers, tf.argmax(targets, axis=-1)), tf.float32) * real
    return tf.stack([tf.reduce_sum(per_image), tf.reduce_sum(real), tf.reduce_sum(right)])


def _clipped(grads: list[tf.Tensor], norm: tf.Tensor, limit: Any) -> list[tf.Tensor]:
    # An overflowed norm makes the factor 0, and infinity times 0 NaN: loss scaling still sees the overflow.
    factor = tf.minimum(1.0, limit / tf.maximum(norm, 1e-12))
    return [grad * tf.cast(factor, grad.dtype) for grad in grads]
