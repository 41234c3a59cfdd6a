"""Probabilities belong to the images in order, whatever the batch size, and are the means that the flags ask for."""

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import tensorflow as tf

from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import classifier, tta
from bloodcell.evaluate.classifier import Classifier, Member


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (11, 4, 4, 3), np.uint8)
    return ImageSet(pixels, None, np.arange(11, dtype=np.int64), ("a", "b", "c"), "test", ("f",) * 11)


def network(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    entry = keras.Input((4, 4, 3))
    backbone = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Rescaling(1 / 255)], name="backbone")
    head = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)], name="head")
    return keras.Model(entry, head(backbone(entry)))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network(0)


@pytest.fixture(scope="module")
def other() -> keras.Model:
    return network(1)


def logits_by_numpy(model, pixels):
    kernel, bias = model.get_weights()
    return pixels.reshape(len(pixels), -1).astype(np.float64) / 255 @ kernel + bias


def by_numpy(model, pixels, temperature=1.0):
    exponents = np.exp(logits_by_numpy(model, pixels) / temperature)
    return exponents / exponents.sum(axis=1, keepdims=True)


def probabilities(found: Classifier, images: ImageSet, **rest) -> np.ndarray:
    return found.probabilities(found.outputs(images, **rest).logits)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_they_equal_the_softmax_by_numpy_and_leave_out_the_padding(model, images, batch_size):
    done: list[int] = []
    result = probabilities(Classifier([Member("a", model)]), images, batch_size=batch_size, on_batch=done.append)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, by_numpy(model, images.images), atol=1e-5)
    assert done[-1] == 11


def test_features_are_the_mean_over_the_pixels_of_the_backbones_map(model, images):
    outputs = Classifier([Member("a", model)]).outputs(images, batch_size=4)
    np.testing.assert_allclose(outputs.features[0], images.images.mean(axis=(1, 2)) / 255, atol=1e-6)
    assert outputs.seconds.shape == (1, 1)
    assert outputs.seconds[0, 0] > 0


def test_views_networks_temperatures_and_weights_make_the_mean_that_the_formula_says(model, other, images):
    members = [Member("a", model, 2.0), Member("b", other, 0.5)]
    found = Classifier(members, views=tta.parse("flips"), weights=[3, 1])
    pixels = images.images
    views = [pixels, pixels[:, :, ::-1], pixels[:, ::-1], pixels[:, ::-1, ::-1]]
    each = [np.mean([by_numpy(own, view, temperature) for view in views], axis=0)
            for own, temperature in ((model, 2.0), (other, 0.5))]
    np.testing.assert_allclose(probabilities(found, images, batch_size=4), 0.75 * each[0] + 0.25 * each[1], atol=1e-5)


def test_a_member_alone_and_other_temperatures_use_the_same_graphs(model, other, images):
    both = Classifier([Member("a", model), Member("b", other)])
    both.outputs(images, batch_size=11, timed=False)
    traced = [graph.experimental_get_tracing_count() for graph in both._graphs]
    np.testing.assert_allclose(probabilities(both.of_member(1), images, batch_size=11), by_numpy(other, images.images),
                               atol=1e-5)
    np.testing.assert_allclose(probabilities(both.at([3.0, 3.0], [1, 1e-9]), images, batch_size=11),
                               by_numpy(model, images.images, 3.0), atol=1e-5)
    assert [graph.experimental_get_tracing_count() for graph in both._graphs] == traced


def test_a_member_segments_what_its_network_sees(model, other, images):
    found = Classifier([Member("a", model, segment=lambda pixels: 255 - pixels), Member("b", other)])
    outputs = found.outputs(images, batch_size=4)
    np.testing.assert_allclose(outputs.logits[0, 0], logits_by_numpy(model, 255 - images.images), atol=1e-5)
    np.testing.assert_allclose(outputs.logits[1, 0], logits_by_numpy(other, images.images), atol=1e-5)


def test_a_transform_sees_the_images_and_their_ids(model, images):
    def add_ids(pixels, ids):
        return tf.cast(pixels, tf.float32) + tf.cast(ids, tf.float32)[:, None, None, None]

    result = probabilities(Classifier([Member("a", model)], transform=add_ids), images, batch_size=4)
    np.testing.assert_allclose(result, by_numpy(model, images.images + np.arange(11.0)[:, None, None, None]), atol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_a_policy_is_drawn_the_same_every_time(model, images, jit):
    found = Classifier([Member("a", model)], transform=classifier.policy_transform("invert@0.5", seed=1, jit=jit))
    first = probabilities(found, images, batch_size=4)
    again = probabilities(found, images, batch_size=11)
    np.testing.assert_allclose(first, again, atol=1e-5)
    plain, inverted = by_numpy(model, images.images), by_numpy(model, 255 - images.images)
    is_plain = np.isclose(first, plain, atol=1e-4).all(axis=1)
    is_inverted = np.isclose(first, inverted, atol=1e-4).all(axis=1)
    assert (is_plain ^ is_inverted).all()
    assert is_plain.any()
    assert is_inverted.any()


def test_no_policy_is_no_transform():
    assert classifier.policy_transform("", seed=0, jit=True) is None


def test_weights_by_validation_are_the_likeliest_mixture():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    skill = np.array([1.0, 0.5, 0.0])[:, None, None]
    each = scipy.special.softmax(rng.normal(size=(3, 200, 3)) + 2 * np.eye(3)[labels] * skill, axis=-1)
    own = each[:, np.arange(200), labels]
    best = scipy.optimize.minimize(lambda w: -np.log(w @ own).mean(), np.full(3, 1 / 3), bounds=[(0, 1)] * 3,
                                   constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, tol=1e-12)
    found = classifier.fitted_weights(each, labels)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, best.x, atol=2e-3)


@pytest.mark.parametrize("text", ["", "best", "1,x", "0,1", "-1,2", "inf,1", "nan"])
def test_other_weights_are_one_line(text):
    with pytest.raises(InputError, match="--ensemble_weights expected") as caught:
        classifier.parse_weights(text)
    assert "\n" not in str(caught.value)


def test_weights_are_words_or_numbers():
    assert classifier.parse_weights("val") == "val"
    assert classifier.parse_weights("2, 1,0.5") == (2.0, 1.0, 0.5)
