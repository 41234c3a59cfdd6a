"""A tiny network and set of images, in the shape that the real ones have."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import models
from bloodcell.config import Config
from bloodcell.data.dataset import ImageSet
from bloodcell.train import step


def build_tiny(name="tiny", *, weights="none", head="", image_size=8, num_classes=3, seed=0):
    """Returns a network of a backbone with batch norm and a head with dropout, or without both under `name="plain"`."""
    plain = name == "plain"
    normalise = [] if plain else [keras.layers.BatchNormalization(name="norm")]
    inputs = keras.Input((image_size, image_size, 3))
    features = inputs
    for layer in [keras.layers.Rescaling(1 / 127.5, -1), keras.layers.Conv2D(6, 3, strides=2, name="convolution"),
                  *normalise, keras.layers.Activation("tanh")]:
        features = layer(features)
    backbone = keras.Model(inputs, features, name="backbone")
    pooled = keras.Input(backbone.output_shape[1:])
    logits = keras.layers.GlobalAveragePooling2D()(pooled)
    if not plain:
        logits = keras.layers.Dropout(0.3, seed=seed)(logits)
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(logits)
    outer = keras.Input((image_size, image_size, 3))
    return keras.Model(outer, keras.Model(pooled, logits, name="head")(backbone(outer)))


def images_like(count, seed=0, size=8, classes=3):
    """Returns images whose class shows in one channel's brightness."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    pixels = rng.integers(0, 160, (count, size, size, 3))
    pixels[np.arange(count), :, :, labels] += 60
    return ImageSet(pixels.astype(np.uint8), labels, np.arange(count, dtype=np.int64),
                    tuple(f"class_{index}" for index in range(classes)), "made here", ("",) * count)


@pytest.fixture
def tiny(monkeypatch):
    """Lets `models.build` make the tiny network, from fixed weights; returns the builder."""
    def build(*args, seed=0, **kwargs):
        keras.utils.set_random_seed(seed)
        return build_tiny(*args, seed=seed, **kwargs)
    monkeypatch.setattr(models, "build", build)
    return build


@pytest.fixture
def make_images():
    return images_like


@pytest.fixture
def make_config():
    def make(**flags):
        base = Config(model="tiny", weights="none", stages="all(epochs=2, lr=1e-2)", batch_size=8, image_size=8,
                      progress="none", explain="none", schedule="constant", loss="cross_entropy", seed=3)
        return dataclasses.replace(base, **flags)
    return make


@pytest.fixture(scope="module")
def made():
    """What tests of a file share, by name."""
    return {}


@pytest.fixture
def inputs_made_once(monkeypatch, made):
    """Lets runs share what augments: to trace or compile it takes as long as the rest of a short run."""
    make = step.inputs

    def inputs(policy, runtime, seed, **settings):
        key = str(policy), runtime.jit, seed, str(settings)
        if key not in made:
            made[key] = tf.function(make(policy, runtime, seed, **settings), autograph=False)
        return made[key]
    monkeypatch.setattr(step, "inputs", inputs)


@pytest.fixture(autouse=True)
def float32_policy():
    """Leaves Keras's dtype policy as it was found."""
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)
