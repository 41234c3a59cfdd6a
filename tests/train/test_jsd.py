"""The consistency loss: its formula, its gradient, the views it compares, and the runs it survives."""

import keras
import numpy as np
import pytest
import scipy.spatial.distance
import tensorflow as tf

from bloodcell import augment
from bloodcell.train import checkpoints, loop, losses, step
from bloodcell.train.strategy import Runtime

RUNTIME = Runtime(tf.distribute.get_strategy(), 1, "float32", "off", "CPU")
CLASSES = 5


def softmax(logits):
    exponent = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def divergence_by_hand(*distributions):
    """Hendrycks et al. 2020: the mean of KL(p || mixture), the mixture kept within 1e-7..1; 0 log 0 = 0."""
    mixture = np.clip(sum(distributions) / len(distributions), 1e-7, 1.0)
    terms = [np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(mixture)), 0.0).sum(axis=-1)
             for p in distributions]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_the_loss_is_the_papers_formula(scale):
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(3, 16, CLASSES)) * scale).astype(np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, 16)]
    clean, one, two = softmax(logits)
    crossed = -((0.9 * targets + 0.1 / CLASSES) * np.log(np.maximum(clean, 1e-300))).sum(axis=-1)
    expected = crossed + 12 * divergence_by_hand(clean, one, two)
    got = losses.parse("jsd(weight=12, smoothing=0.1)")(targets, tf.constant(logits.reshape(48, CLASSES)))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_two_views_have_scipys_divergence():
    logits = np.random.default_rng(1).normal(size=(2, 20, CLASSES)).astype(np.float32) * 2
    expected = scipy.spatial.distance.jensenshannon(*softmax(logits), axis=-1) ** 2
    np.testing.assert_allclose(losses.divergence(tf.constant(logits)), expected, rtol=1e-4, atol=1e-7)


def test_equal_views_differ_by_nothing_and_certain_ones_by_log_three():
    same = np.repeat(np.random.default_rng(2).normal(size=(1, 7, CLASSES)), 3, axis=0).astype(np.float32)
    np.testing.assert_allclose(losses.divergence(tf.constant(same)), 0, atol=1e-6)
    certain = tf.constant(np.eye(3, CLASSES, dtype=np.float32)[:, None] * 1e4)
    with tf.GradientTape() as tape:
        tape.watch(certain)
        value = losses.divergence(certain)
    np.testing.assert_allclose(value, np.log(3), rtol=1e-5)
    assert np.isfinite(tape.gradient(value, certain).numpy()).all()


def test_the_views_are_the_image_itself_and_two_independent_augmentations(make_images):
    images = make_images(64)
    batch = {"image": tf.constant(images.images), "label": tf.constant(images.labels), "id": tf.constant(images.ids),
             "weight": tf.ones([64])}
    policy = augment.parse("rotate(180) | brightness(0.5)")
    shown, targets = step.inputs(policy, RUNTIME, 7, num_classes=3, views=3)(batch, 2)
    clean, one, two = shown.numpy().reshape(3, 64, 8, 8, 3)
    np.testing.assert_array_equal(clean, images.images)
    np.testing.assert_array_equal(one, policy(batch["image"], batch["id"], epoch=2, seed=7))
    np.testing.assert_array_equal(two, policy(batch["image"], step.view_ids(batch["id"]), epoch=2, seed=7))
    assert ((one != two).any(axis=(1, 2, 3)) & (one != clean).any(axis=(1, 2, 3))).mean() > 0.95
    assert targets.shape == (64, 3)
    factors = [policy.draw(ids, epoch=2, seed=7)["1.rotate"]["degrees"].numpy()
               for ids in (tf.range(5000, dtype=tf.int64), step.view_ids(tf.range(5000, dtype=tf.int64)))]
    assert abs(np.corrcoef(*factors)[0, 1]) < 0.05


def test_mixing_does_the_same_to_every_view(make_images):
    images = make_images(12)
    batch = {"image": tf.constant(images.images), "label": tf.constant(images.labels), "id": tf.constant(images.ids),
             "weight": tf.constant([1.0] * 10 + [0.0] * 2)}
    mixer, policy = augment.parse_mix("oneof(mixup(1.0), cutmix(1.0))"), augment.parse("invert@0.5")
    shown, targets = step.inputs(policy, RUNTIME, 7, num_classes=3, mixer=mixer, views=3)(batch, 2)
    plain, one_hot = step.inputs(policy, RUNTIME, 7, num_classes=3, views=3)(batch, 2)
    for view, alone in zip(tf.split(shown, 3), tf.split(plain, 3), strict=True):
        mixed, parts = mixer(alone, one_hot, batch["id"], batch["weight"], epoch=2, seed=7)
        np.testing.assert_array_equal(view, mixed)
        np.testing.assert_array_equal(targets, parts)


def test_a_step_is_the_gradient_of_the_formula_however_it_is_compiled(tiny, make_images):
    # By automatic differentiation of the formula, written with softmaxes, on one device without compilation.
    images, class_weights = make_images(8), np.array([0.5, 1.0, 2.0], np.float32)
    batch = {"image": tf.constant(images.images), "label": tf.constant(images.labels), "id": tf.constant(images.ids),
             "weight": tf.constant([1.0] * 5 + [0.0] * 3)}
    model, policy = tiny("plain"), augment.parse("brightness(0.9)")
    views = [tf.cast(batch["image"], tf.float32), policy(batch["image"], batch["id"], epoch=1, seed=7),
             policy(batch["image"], step.view_ids(batch["id"]), epoch=1, seed=7)]
    before = [variable.numpy() for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        p = [tf.nn.softmax(model(view)[:5]) for view in views]
        mixture = tf.clip_by_value((p[0] + p[1] + p[2]) / 3, 1e-7, 1)
        kl = [tf.reduce_sum(each * tf.math.log(each / mixture), axis=1) for each in p]
        crossed = -tf.math.log(tf.gather(p[0], images.labels[:5], batch_dims=1))
        total = crossed + 12 * (kl[0] + kl[1] + kl[2]) / 3
        loss = tf.reduce_sum(total * class_weights[images.labels[:5]]) / 5
    grads = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    right = np.argmax(p[0], axis=1) == images.labels[:5]
    norm = np.sqrt(sum(np.sum(np.square(grad)) for grad in grads))
    for jit in ("off", "augment", "step"):
        for variable, old in zip(model.trainable_variables, before, strict=True):
            variable.assign(old)
        runtime = Runtime(tf.distribute.get_strategy(), 1, "float32", jit, "CPU")
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
        take = step.train_step(model, optimizer, loss=losses.parse("jsd(weight=12)"), runtime=runtime,
                               inputs=step.inputs(policy, runtime, 7, num_classes=3, views=3),
                               class_weights=class_weights)
        sums = take(batch, tf.constant(1, tf.int64)).numpy()
        np.testing.assert_allclose(sums, [float(loss) * 5, 5, right.sum(), norm, 0], rtol=1e-4, err_msg=jit)
        for variable, old, grad in zip(model.trainable_variables, before, grads, strict=True):
            np.testing.assert_allclose(variable.numpy() - old, -grad.numpy(), rtol=1e-3, atol=5e-6, err_msg=jit)


def test_validation_takes_the_cross_entropy_alone(tiny, make_images):
    images = make_images(9)
    batch = {"image": tf.constant(images.images), "label": tf.constant(images.labels), "id": tf.constant(images.ids),
             "weight": tf.ones([9])}
    inputs, model = step.inputs(augment.parse(""), RUNTIME, 0, num_classes=3), tiny()
    sums = [step.eval_step(model, inputs=inputs, loss=losses.parse(text), runtime=RUNTIME)(batch, 0).numpy()
            for text in ("jsd(smoothing=0.1)", "cross_entropy(smoothing=0.1)")]
    np.testing.assert_array_equal(*sums)


class Killed(Exception):
    pass


def test_a_killed_run_with_mixing_and_views_has_the_same_bits(tmp_path, tiny, make_images, make_config):
    config = make_config(model="plain", stages="all(epochs=2, lr=2e-2)", augment="brightness(0.5)",
                         mix="mixup(0.4)", loss="jsd(weight=4)")

    def kill(record):
        raise Killed
    train, val = make_images(20), make_images(12, seed=1)
    whole = loop.fit(config, RUNTIME, train, val, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.fit(config, RUNTIME, train, val, tmp_path / "cut", on_epoch=kill)
    resumed = loop.fit(config, RUNTIME, train, val, tmp_path / "cut")
    assert checkpoints.weights_sha256(resumed) == checkpoints.weights_sha256(whole)
