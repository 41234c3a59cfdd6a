"""Re-estimated statistics are the mean and variance of the images, and nothing else of the network changes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import models
from bloodcell.evaluate import batch_norm


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (12, 8, 8, 3)).astype(np.float32)


def test_one_layers_statistics_are_those_of_the_images(pixels):
    entry = keras.Input((8, 8, 3))
    model = keras.Model(entry, keras.layers.BatchNormalization(momentum=0.7, name="norm")(entry))
    found = batch_norm.reestimate(model, [tf.constant(pixels[:8]), tf.constant(pixels[8:])])
    layer = model.get_layer("norm")
    assert found == 1
    np.testing.assert_allclose(layer.moving_mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-5)
    within = (8 * pixels[:8].var(axis=(0, 1, 2)) + 4 * pixels[8:].var(axis=(0, 1, 2))) / 12
    np.testing.assert_allclose(layer.moving_variance, within, rtol=1e-4)
    assert layer.momentum == 0.7


def test_weights_dropout_and_momenta_stay_as_they_were(pixels):
    model = models.build("mobilenet_v3_small", weights="none", head="dense(8) | batch_norm | dropout(0.5)",
                         image_size=32, num_classes=3, seed=0)
    images = tf.image.resize(pixels, (32, 32))
    learned = [weight.numpy() for weight in model.trainable_variables]
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    before = model(images, training=False).numpy()
    assert batch_norm.reestimate(model, [images[:6], images[6:]]) == len(layers) > 10
    first = model(images, training=False).numpy()
    assert np.abs(first - before).max() > 1e-3
    for weight, value in zip(model.trainable_variables, learned, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert [layer.momentum for layer in layers] == momenta
    assert 0.5 in [layer.rate for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dropout)]
    batch_norm.reestimate(model, [images[:6], images[6:]])  # nothing random is left, and nothing of before
    np.testing.assert_allclose(model(images, training=False).numpy(), first, atol=1e-5)


def test_a_network_without_such_layers_is_left_alone(pixels):
    entry = keras.Input((8, 8, 3))
    model = keras.Model(entry, keras.layers.Dense(2)(entry))
    assert batch_norm.reestimate(model, [tf.constant(pixels)]) == 0
