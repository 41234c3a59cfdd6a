"""Freezing: the frozen part neither learns nor moves its statistics, and the table counts every parameter once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import models
from bloodcell.errors import InputError
from bloodcell.models import freezing

IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return models.build("mobilenet_v3_small", weights="none", head="dense(8)", image_size=32, num_classes=3, seed=0)


def changed(model: keras.Model) -> set[str]:
    """Names of the layers whose weights or statistics one training step changes; the weights are put back."""
    before = model.get_weights()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(IMAGES, training=True) ** 2)
    for variable, gradient in zip(model.trainable_variables,
                                  tape.gradient(loss, [v.value for v in model.trainable_variables]), strict=True):
        variable.assign_sub(1e-3 * tf.math.sign(gradient))
    names = {variable.path.split("/")[0] for variable, old in zip(model.weights, before, strict=True)
             if not np.array_equal(variable, old)}
    model.set_weights(before)
    return names


def layers(model: keras.Model) -> list[keras.Layer]:
    return [layer for layer in model.get_layer("backbone").layers if not isinstance(layer, keras.layers.InputLayer)]


def test_head_leaves_the_backbone_as_it_is(model: keras.Model) -> None:
    freezing.apply(model, scope="head")
    assert changed(model) == {"dense_0", "logits"}
    backbone = model.get_layer("backbone")
    np.testing.assert_array_equal(backbone(IMAGES, training=True), backbone(IMAGES, training=False))


@pytest.mark.parametrize("percent", [0, 30, 80, 100])
def test_top_trains_the_last_percent_of_layers(model: keras.Model, percent: float) -> None:
    freezing.apply(model, scope="top", percent=percent)
    flags = [layer.trainable for layer in layers(model)]
    assert sum(flags) == round(len(flags) * percent / 100)
    assert flags == sorted(flags)
    frozen = {layer.name for layer in layers(model) if not layer.trainable and layer.weights}
    trained = {layer.name for layer in layers(model) if layer.trainable and layer.weights}
    seen = changed(model)
    assert not seen & frozen
    assert seen >= trained | {"dense_0", "logits"}


def test_all_trains_everything_again(model: keras.Model) -> None:
    freezing.apply(model, scope="head")
    freezing.apply(model, scope="all")
    assert changed(model) == {layer.name for layer in layers(model) if layer.weights} | {"dense_0", "logits"}


def test_the_table_counts_every_parameter_once(model: keras.Model) -> None:
    for scope, parts in (("head", ["backbone, frozen", "head"]), ("all", ["backbone, trained", "head"]),
                         ("top", ["backbone, frozen", "backbone, trained", "head"])):
        freezing.apply(model, scope=scope, percent=50)
        rows = freezing.table(model)
        assert [row[0] for row in rows] == parts
        assert sum(row[2] for row in rows) == sum(int(np.prod(v.shape)) for v in model.trainable_weights)
        assert sum(row[2] + row[3] for row in rows) == model.count_params()


def test_a_mistake_is_one_line(model: keras.Model) -> None:
    with pytest.raises(InputError, match="did you mean 'top'"):
        freezing.apply(model, scope="tpo")
    for percent in (-1, 101, float("nan")):
        with pytest.raises(InputError, match=r"expected 0\.\.100"):
            freezing.apply(model, scope="top", percent=percent)
