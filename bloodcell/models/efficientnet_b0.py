"""EfficientNet-B0's preprocessing, the one of `keras.applications` that has weights.

Keras's network divides grey levels by 255 and normalises them by statistics that lie in the weights file. The published
file holds ImageNet's standard deviations where variances belong, and Keras repairs that by a layer more, which is there
only when it downloads the file itself. Here the variances are put right when such a file is read, and the network is
one and the same for all files.
Source: `keras/src/applications/efficientnet.py` and TensorFlow's issue 49930.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from bloodcell.models import keras_file

MEAN = np.array([0.485, 0.456, 0.406], "float32")  # of ImageNet's red, green and blue, in units of 255 grey levels
DEVIATION = np.array([0.229, 0.224, 0.225], "float32")


class Normalization(keras.layers.Normalization):
    """Normalises [B,H,W,3] by statistics that are weights, ImageNet's at first.

    Keras's own layer copies its weights once into constants, and would not see those that a checkpoint brings. It bears
    Keras's own class name because `.weights.h5` files name layers by class.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates Keras's weights: mean [3], variance [3], count."""
        super().build(input_shape)
        self.adapt_mean.assign(MEAN)
        self.adapt_variance.assign(DEVIATION ** 2)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [B,H,W,3], less the mean, over the standard deviation."""
        mean, variance = tf.convert_to_tensor(self.adapt_mean), tf.convert_to_tensor(self.adapt_variance)
        return (tf.cast(inputs, mean.dtype) - mean) * tf.math.rsqrt(variance)


def load(model: keras.Model, path: Path) -> None:
    """Fills a rebuilt EfficientNet-B0 from a Keras weights file (`keras_file.load`), published or a user's own."""
    keras_file.load(model, path)
    layer = next(layer for layer in model.layers if isinstance(layer, Normalization))
    if np.allclose(layer.adapt_variance.numpy(), DEVIATION, rtol=1e-3):
        layer.adapt_variance.assign(DEVIATION ** 2)
