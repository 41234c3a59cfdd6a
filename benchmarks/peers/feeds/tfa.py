"""tf.image and TensorFlow Addons in `Dataset.map`, image by image: what users of TensorFlow write today."""

import tensorflow as tf

from benchmarks import SIDE
from benchmarks.peers import tfa
from benchmarks.peers.feeds import DEGREES, MAGNITUDE, ZOOM, Feed, Source, tfdata

_flip = tfa.OPS["flip"](1.0)
_two_of_ten = tfa.two_of_ten(MAGNITUDE)


def start(source: Source, *, batch: int, augment: bool) -> Feed:
    """See `feeds.Implementation`."""
    return tfdata.feed(source, batch=batch, of_image=_augmented if augment else None)


def _augmented(image: tf.Tensor) -> tf.Tensor:
    image = _flip(tf.ensure_shape(image, [SIDE, SIDE, 3]))
    image = tfa.OPS["rotate"](tf.random.uniform([], -DEGREES, DEGREES))(image)
    image = tfa.OPS["zoom"](tf.random.uniform([], -ZOOM, ZOOM))(image)
    return _two_of_ten(image)
