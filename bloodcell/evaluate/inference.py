"""A model's probabilities for images, in one compiled graph and batches of one shape. Figures are in `metrics`."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from bloodcell import augment
from bloodcell.data.dataset import ImageSet
from bloodcell.data.pipeline import Pipeline

Transform = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Graph = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
OnHost = Callable[[np.ndarray, np.ndarray], np.ndarray]  # from uint8 images [B,S,S,3] and ids int64 [B] to such images


def graph_of(model: keras.Model, transform: Transform | None = None) -> Graph:
    """Returns the graph from uint8 images [B,S,S,3] and ids int64 [B] to probabilities; it is traced once for each B.

    Args:
      model: from grey levels 0..255 [B,S,S,3] to logits [B,C].
      transform: from uint8 images [B,S,S,3] and their ids int64 [B] to grey levels; None: the images as they are.
    """
    @tf.function(autograph=False)
    def predict(images: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        pixels = transform(images, ids) if transform else tf.cast(images, tf.float32)
        return tf.nn.softmax(tf.cast(model(pixels, training=False), tf.float32))

    return predict


def probabilities(model: keras.Model, images: ImageSet, *, batch_size: int, transform: Transform | None = None,
                  on_host: OnHost | None = None, graph: Graph | None = None,
                  on_batch: Callable[[int], None] | None = None) -> np.ndarray:
    """Returns the softmax of the model's float32 logits for every image, in the set's order.

    Args:
      model: from grey levels 0..255 [B,S,S,3] to logits [B,C].
      images: N images of the model's size.
      batch_size: images a step; less where there are fewer images.
      transform: as of `graph_of`.
      on_host: what is done to each batch before that, outside the graph.
      graph: what `graph_of` made of the model and the transform, where it is used many times; None: made here.
      on_batch: called after each batch with the number of images done.

    Returns:
      float32 [N, C], rows that sum to 1.
    """
    pipeline = Pipeline(images, batch_size=min(batch_size, len(images)))
    predict = graph or graph_of(model, transform)
    parts: list[np.ndarray] = []
    done = 0
    for batch in pipeline.in_order():
        pixels = batch["image"]
        if on_host:
            pixels = tf.constant(on_host(pixels.numpy(), batch["id"].numpy()))
        rows = predict(pixels, batch["id"]).numpy()[:len(images) - done]  # the rest fills the last batch
        parts.append(rows)
        done += len(rows)
        if on_batch:
            on_batch(done)
    return np.concatenate(parts)


def policy_transform(text: str, *, seed: int, jit: bool) -> Transform | None:
    """Returns `--val_augment` as a transform, the same at every call (epoch 0); None where the text is empty.

    Args:
      text: the policy's spec.
      seed: of the run.
      jit: whether XLA compiles it.
    """
    if not text:
        return None
    policy = augment.parse(text, what="val_augment")

    def transform(images: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        return policy(images, ids, epoch=0, seed=seed)

    return tf.function(transform, jit_compile=jit, autograph=False)
