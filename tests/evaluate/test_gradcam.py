"""Grad-CAM is the published sum of a hand-set network, and for every head and backbone what differences say it is."""

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import models
from bloodcell.evaluate import gradcam
from bloodcell.evaluate.classifier import Classifier, Member
from bloodcell.models import concat, heads

RNG = np.random.default_rng(0)


def built(name: str, head: str = "", *, size: int) -> keras.Model:
    return models.build(name, weights="none", head=head, image_size=size, num_classes=3, seed=0)


def small(head: str = "") -> keras.Model:
    """A backbone of one layer, and a head as of every model."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 8, 8, activation="relu")(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(image))
    backbone = keras.Model(image, x, name="backbone")
    whole = keras.Input((32, 32, 3))
    return keras.Model(whole, heads.build(head, backbone.output, 3)(backbone(whole)))


def normalised(maps: np.ndarray) -> np.ndarray:
    most = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, most, out=np.zeros_like(maps), where=most > 0)


def enlarged(maps: np.ndarray, side: int) -> np.ndarray:
    return np.stack([cv2.resize(each, (side, side), interpolation=cv2.INTER_LINEAR) for each in maps])


def some_images(count: int, size: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_the_map_of_a_network_set_by_hand():
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.AveragePooling2D(4, name="mean")(image)
    chosen = keras.layers.Conv2D(2, 1, name="chosen", activation="relu")(pooled)
    backbone = keras.Model(image, chosen, name="backbone")
    features = keras.Input((2, 2, 2))
    logits = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D()(features))
    head = keras.Model(features, logits, name="head")
    whole = keras.Input((8, 8, 3))
    model = keras.Model(whole, head(backbone(whole)))
    backbone.get_layer("chosen").set_weights([np.array([[[[1, 0], [0, 1], [0, 0]]]], np.float32), np.zeros(2)])
    head.get_layer("logits").set_weights([np.array([[2, -1], [-1, 3]], np.float32), np.array([5, -7], np.float32)])

    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    pixels[0, :4, :4] = (10, 4, 99)  # red counts for class 0, green for class 1, blue for none
    pixels[0, :4, 4:] = (10, 20, 0)
    pixels[0, 4:, :4] = (1, 30, 0)
    found = gradcam.graph_of(model)(tf.constant(np.repeat(pixels, 2, axis=0), tf.float32), tf.constant([0, 1])).numpy()
    # weights are those of the last layer, over the 4 pixels: 2 red - green, and 3 green - red
    first, second = np.array([[16, 0], [0, 0]]), np.array([[2, 50], [89, 0]])
    for own, corners in zip(found, (first, second), strict=True):
        expected = enlarged(np.array([corners], np.float32), 8)
        np.testing.assert_allclose(own, (expected / expected.max())[0], atol=1e-5)
        assert own.max() == 1


@pytest.mark.parametrize("head", ["", "pool('max')", "pool('avg_max') | dropout(0.5)", "flatten | dense(5, 'tanh')",
                                  "dense(6, 'swish') | batch_norm | activation('relu')"])
def test_each_kind_of_head_by_finite_differences(head):
    model, images, classes = small(head), some_images(3), np.array([2, 0, 1])
    maps = model.get_layer("backbone")(images.astype(np.float32)).numpy()
    expected = []
    for features, wanted in zip(maps, classes, strict=True):
        step = 0.02 * np.eye(features.size, dtype=np.float32).reshape(-1, *features.shape)
        logits = model.get_layer("head")(np.concatenate([features + step, features - step]), training=False).numpy()
        up, down = np.split(logits[:, wanted], 2)
        weights = ((up - down) / 0.04).reshape(features.shape).mean(axis=(0, 1))
        expected.append(np.maximum(features @ weights, 0))
    found = gradcam.GradCam(Classifier([Member("a", model)]), batch_size=3).maps(images, np.arange(3), classes)
    np.testing.assert_allclose(found, normalised(enlarged(np.array(expected, np.float32), 32)), atol=0.02)
    assert found.max() > 0


def test_parts_side_by_side_count_by_what_they_add_to_the_logit():
    model, images, classes = built("concat(cnn, mobilenet_v3_small)", size=64), some_images(2, 64), np.array([1, 2])
    backbone = model.get_layer("backbone")
    maps = [part(images.astype(np.float32), training=False).numpy() for part in concat.parts(backbone)]
    assert [each.shape[1:3] for each in maps] == [(4, 4), (2, 2)]
    kernel, start, each = model.get_layer("head").get_layer("logits").get_weights()[0], 0, []
    for features in maps:  # with averages and one dense layer, the logit is the mean of these over the pixels
        own = kernel[start:start + features.shape[-1], classes].T
        each.append(enlarged(np.maximum(np.einsum("bhwc,bc->bhw", features, own), 0), 64))
        start += features.shape[-1]
    found = gradcam.GradCam(Classifier([Member("a", model)]), batch_size=2).maps(images, np.arange(2), classes)
    np.testing.assert_allclose(found, normalised(np.mean(each, axis=0)), atol=1e-4)
    assert "4x4" in gradcam.coarseness(Classifier([Member("a", model)]))


@pytest.mark.parametrize(("name", "grid"), [("cnn", (1, 1)), ("unet", (16, 16))])
def test_backbones_of_other_shapes(name, grid):
    classifier = Classifier([Member("a", built(name, "flatten", size=16))])
    found = gradcam.GradCam(classifier, batch_size=2).maps(some_images(2, 16), np.arange(2), np.array([0, 1]))
    assert found.shape == (2, 16, 16)
    assert found.dtype == np.float32
    assert set(found.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}
    if grid == (1, 1):
        assert (np.ptp(found, axis=(1, 2)) == 0).all()
        assert "nothing about where" in gradcam.coarseness(classifier)
    else:
        assert "16x16 values for 16x16 pixels, each for a field of about 1x1" in gradcam.coarseness(classifier)


def test_an_image_has_one_map_in_every_batch():
    images, ids, classes = some_images(5), np.arange(5), np.array([0, 1, 2, 0, 1])
    classifier = Classifier([Member("a", small())])
    together = gradcam.GradCam(classifier, batch_size=5).maps(images, ids, classes)
    by_two = gradcam.GradCam(classifier, batch_size=2).maps(images, ids, classes)
    alone = gradcam.GradCam(classifier, batch_size=8).maps(images[3:4], ids[3:4], classes[3:4])
    assert together.any()
    np.testing.assert_allclose(by_two, together, atol=1e-5)
    np.testing.assert_allclose(alone[0], together[3], atol=1e-5)
    assert gradcam.GradCam(classifier).maps(images[:0], ids[:0], classes[:0]).shape == (0, 32, 32)


def test_a_class_that_nothing_speaks_for_has_a_map_of_zeros():
    model = small()
    logits = model.get_layer("head").get_layer("logits")
    kernel, bias = logits.get_weights()
    logits.set_weights([-np.abs(kernel), bias])  # features are not negative
    found = gradcam.GradCam(Classifier([Member("a", model)])).maps(some_images(1), np.arange(1), np.array([1]))
    np.testing.assert_array_equal(found, 0)


def test_several_networks_have_the_mean_of_their_maps_by_their_weights():
    members = [Member("a", small()), Member("b", small("flatten"))]
    images, ids, classes = some_images(3), np.arange(3), np.array([2, 0, 1])
    each = [gradcam.GradCam(Classifier([member]), batch_size=3).maps(images, ids, classes) for member in members]
    both = gradcam.GradCam(Classifier(members, weights=(3, 1)), batch_size=3).maps(images, ids, classes)
    assert all(own.any() for own in each)
    np.testing.assert_allclose(both, 0.75 * each[0] + 0.25 * each[1], atol=1e-5)


def test_the_maps_are_of_what_the_network_is_shown():
    model, images, ids, classes = small(), some_images(2), np.array([4, 9]), np.array([0, 2])
    policy = Classifier([Member("a", model, segment=lambda own: own[:, ::-1])],
                        transform=lambda own, ids: tf.reverse(tf.cast(own, tf.float32), (2,)))
    found = gradcam.GradCam(policy).maps(images, ids, classes)
    turned = gradcam.GradCam(Classifier([Member("a", model)])).maps(images[:, ::-1, ::-1], ids, classes)
    assert found.any()
    np.testing.assert_allclose(found, turned, atol=1e-6)
