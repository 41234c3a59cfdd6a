"""Keras 3's own layers in `tf.data`, batch by batch: its documented use.

Keras draws the ops of `RandAugment` once per batch, ours once per image; under XLA it does not compile.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


def randaugment(images: np.ndarray, *, ops: int, batches: int) -> Callable[[int], list[np.ndarray]]:
    """Returns a function that augments uint8 `images` [B, H, W, 3] `batches` times, through a mapped data set.

    A new iterator each run: `tf.data` works ahead, and must not do so on another contestant's time.
    """
    layer = keras.layers.RandAugment(value_range=(0, 255), num_ops=ops, data_format="channels_last")
    held = tf.constant(images)
    dataset = tf.data.Dataset.range(batches).map(
        lambda _: layer(tf.cast(held, tf.float32), training=True), num_parallel_calls=tf.data.AUTOTUNE)
    return lambda step: list(dataset.as_numpy_iterator())
