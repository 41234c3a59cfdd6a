"""Losses: values and gradients against NumPy, Keras and the paper's formula; `jsd` has a file of its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.train import losses

CLASSES = 4


def _logits(count=50, spread=4):
    return np.random.default_rng(0).normal(size=(count, CLASSES)).astype(np.float32) * spread


def _hard(count=50):
    return np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]


def _soft(count=50):
    return np.random.default_rng(1).dirichlet([0.7] * CLASSES, count).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_numpy(smoothing):
    logits, labels = _logits(5, 3), np.array([0, 3, 1, 1, 2])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(1 - smoothing) * log_p[np.arange(5), labels] - smoothing * log_p.mean(axis=1)
    got = losses.parse(f"cross_entropy(smoothing={smoothing})")(tf.one_hot(labels, 4), tf.constant(logits))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_focal_of_hard_labels_is_the_papers():
    # Lin et al. 2017, equation 4 and figure 1: at gamma 2 an image at p = 0.9 counts 100 times less than before.
    p = np.array([0.1, 0.5, 0.9, 0.968], np.float32)
    logits = np.log(np.stack([p, 1 - p], axis=1))
    targets = np.tile(np.array([1, 0], np.float32), (4, 1))
    got = losses.parse("focal(gamma=2)")(targets, logits).numpy()
    np.testing.assert_allclose(got, -(1 - p)**2 * np.log(p), rtol=1e-5)
    assert -np.log(0.9) / got[2] == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [_hard(), _soft()], ids=["hard", "soft"])
def test_focal_equals_keras_categorical_focal_crossentropy(gamma, smoothing, targets):
    theirs = keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=gamma, from_logits=True,
                                                       label_smoothing=smoothing, reduction="none")
    loss = losses.parse(f"focal({gamma}, {smoothing})")
    ours, expected = (np.asarray(each(targets, _logits())) for each in (loss, theirs))
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-6)  # Keras keeps p from 0 and 1 by 1e-7


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_without_focus_is_cross_entropy_and_close_to_it_is_close(smoothing):
    plain = losses.parse(f"cross_entropy({smoothing})")(_soft(), _logits())
    np.testing.assert_array_equal(losses.parse(f"focal(0, {smoothing})")(_soft(), _logits()), plain)
    np.testing.assert_allclose(losses.parse(f"focal(1e-6, {smoothing})")(_soft(), _logits()), plain, rtol=2e-5)


def test_focal_of_a_mixed_label_is_the_mixture_of_the_losses():
    loss = losses.parse("focal(gamma=3, smoothing=0.2)")
    by_class = [loss(np.tile(np.eye(CLASSES, dtype=np.float32)[c], (50, 1)), _logits()).numpy() for c in range(CLASSES)]
    np.testing.assert_allclose(loss(_soft(), _logits()), (np.array(by_class).T * _soft()).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_has_the_right_gradient_and_a_finite_one_where_an_image_is_certain(gamma):
    loss = losses.parse(f"focal({gamma})")
    logits = np.concatenate([_logits(8, 2), np.array([[200, 0, 0, 0], [0, 200, 0, 0]], np.float32)])
    targets = np.concatenate([_hard(8), np.array([[1, 0, 0, 0], [1, 0, 0, 0]], np.float32)])
    with tf.GradientTape() as tape:
        given = tf.constant(logits)
        tape.watch(given)
        total = tf.reduce_sum(loss(targets, given))
    slope = tape.gradient(total, given).numpy()
    p = np.exp(logits[:8].astype(float)) / np.exp(logits[:8].astype(float)).sum(axis=1, keepdims=True)
    right = (p * targets[:8]).sum(axis=1, keepdims=True)
    by_log_p = gamma * right * (1 - right)**(gamma - 1) * np.log(right) - (1 - right)**gamma
    np.testing.assert_allclose(slope[:8], by_log_p * (targets[:8] - p), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(slope[8], 0.0, atol=1e-6)
    np.testing.assert_allclose(slope[9], [-1, 1, 0, 0], atol=1e-5)  # certain and wrong: cross-entropy's own slope


def test_validation_measures_cross_entropy_whatever_the_loss():
    focal, plain = losses.parse("focal(3, smoothing=0.1)"), losses.parse("cross_entropy(0.1)")
    np.testing.assert_array_equal(focal.cross_entropy(_hard(), _logits()), plain(_hard(), _logits()))
    assert [losses.parse(name).views for name in ("cross_entropy", "focal", "jsd")] == [1, 1, 3]


@pytest.mark.parametrize(("text", "line"), [
    ("cross_entropy(smoothing=-1)", "0..0.99"),
    ("jsd(weight=-1)", "0..1000"),
    ("focal(-2)", "focal(gamma) expected 0..10"),
    ("focal(alpha=0.25)", "focal has no parameter 'alpha'"),
    ("focl", "did you mean 'focal'"),
])
def test_a_bad_spec_is_one_line_naming_the_fix(text, line):
    with pytest.raises(InputError) as error:
        losses.parse(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
