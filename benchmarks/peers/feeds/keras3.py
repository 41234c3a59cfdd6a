"""Keras 3's preprocessing layers in `Dataset.map`, over single images, so that RandAugment too draws for each.

Their documentation maps them over batches, where RandAugment draws its two ops once a batch: no faster on two cores.
Its generators read and write their state in two ops: of 1,440 images under two calls at once 28 drew as another did.
"""

import keras
import tensorflow as tf

from benchmarks.peers import FILL
from benchmarks.peers.feeds import DEGREES, MAGNITUDE, OPS, ZOOM, Feed, Source, tfdata

_RANGE = {"value_range": (0, 255)}
_OUTSIDE = {"fill_mode": "constant", "fill_value": FILL}


def start(source: Source, *, batch: int, augment: bool) -> Feed:
    """See `feeds.Implementation`."""
    if not augment:
        return tfdata.feed(source, batch=batch)
    layers = [
        keras.layers.RandomFlip("horizontal_and_vertical", dtype="float32"),
        keras.layers.RandomRotation(DEGREES / 360, dtype="float32", **_OUTSIDE),
        keras.layers.RandomZoom(ZOOM, dtype="float32", **_OUTSIDE),
        keras.layers.RandAugment(num_ops=OPS, factor=MAGNITUDE, dtype="float32", **_RANGE),
    ]

    def augmented(image: tf.Tensor) -> tf.Tensor:
        image = tf.cast(image, tf.float32)
        for layer in layers:
            image = layer(image, training=True)
        return image

    return tfdata.feed(source, batch=batch, of_image=augmented)
