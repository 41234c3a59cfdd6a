"""Probabilities belong to the images in order, whatever the batch size."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.data.dataset import ImageSet
from bloodcell.evaluate import inference


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (11, 4, 4, 3), np.uint8)
    return ImageSet(pixels, None, np.arange(11, dtype=np.int64), ("a", "b", "c"), "test", ("f",) * 11)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def by_numpy(model, pixels):
    kernel, bias = model.get_weights()
    logits = pixels.reshape(len(pixels), -1).astype(np.float64) / 255 @ kernel + bias
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_they_equal_the_softmax_by_numpy_and_leave_out_the_padding(model, images, batch_size):
    done: list[int] = []
    result = inference.probabilities(model, images, batch_size=batch_size, on_batch=done.append)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, by_numpy(model, images.images), atol=1e-5)
    assert done[-1] == 11


def test_a_transform_sees_the_images_and_their_ids(model, images):
    def add_ids(pixels, ids):
        return tf.cast(pixels, tf.float32) + tf.cast(ids, tf.float32)[:, None, None, None]

    result = inference.probabilities(model, images, batch_size=4, transform=add_ids)
    np.testing.assert_allclose(result, by_numpy(model, images.images + np.arange(11.0)[:, None, None, None]), atol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_a_policy_is_drawn_the_same_every_time(model, images, jit):
    transform = inference.policy_transform("invert@0.5", seed=1, jit=jit)
    first = inference.probabilities(model, images, batch_size=4, transform=transform)
    again = inference.probabilities(model, images, batch_size=11, transform=transform)
    np.testing.assert_allclose(first, again, atol=1e-5)
    plain, inverted = by_numpy(model, images.images), by_numpy(model, 255 - images.images)
    is_plain = np.isclose(first, plain, atol=1e-4).all(axis=1)
    is_inverted = np.isclose(first, inverted, atol=1e-4).all(axis=1)
    assert (is_plain ^ is_inverted).all()
    assert is_plain.any()
    assert is_inverted.any()


def test_no_policy_is_no_transform():
    assert inference.policy_transform("", seed=0, jit=True) is None
