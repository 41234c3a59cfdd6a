"""A network rebuilt from Keras's own layers computes the same numbers, and knows nothing of this project."""

import keras
import numpy as np
import pytest
from keras.src.applications.convnext import LayerScale, StochasticDepth

from bloodcell.export.stock import stock
from bloodcell.models import depthwise, efficientnet_b0, fused_norm


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """A network in a network, of every layer that has a stand-in, with weights that are all different."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((8, 8, 3))
    x = efficientnet_b0.Normalization(dtype="float32")(keras.layers.Rescaling(1 / 255)(entry))
    x = keras.layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 1.0, 2.0])(keras.ops.flip(x, axis=-1))
    x = keras.layers.Conv2D(6, 3, padding="same")(x)
    x = fused_norm.BatchNormalization()(x)
    x = depthwise.Conv2D(6, 5, padding="same", groups=6, activation="gelu")(x)
    x = keras.layers.Add()([x, StochasticDepth(0.5)(LayerScale(0.3, 6)(x))])
    inner = keras.Model(entry, keras.layers.Dropout(0.5)(x), name="backbone")
    outer = keras.Input((8, 8, 3))
    model = keras.Model(outer, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(inner(outer))))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.2, 1, value.shape).astype(value.dtype) for value in model.get_weights()])
    return model


def layers_of(model):
    for layer in model._flatten_layers():
        if not isinstance(layer, (keras.Model, keras.layers.InputLayer)):
            yield layer


def test_the_numbers_are_the_same_and_every_layer_is_a_public_one_of_keras(network):
    images = np.random.default_rng(1).uniform(0, 255, (5, 8, 8, 3)).astype(np.float32)
    before = network.get_weights()
    made = stock(network, "copy")
    np.testing.assert_allclose(made.predict(images, verbose=0), network.predict(images, verbose=0), rtol=1e-5)
    for layer in layers_of(made):
        assert getattr(keras.layers, type(layer).__name__) is type(layer)
    for value, after in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(value, after)


def test_it_is_float32_whatever_the_network_was_in(network):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        made = stock(network, "copy")
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in layers_of(made)} == {"float32"}
