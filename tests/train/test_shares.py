"""Shares of a copy: each image is augmented in its share of the epochs, and comes out as it is in the others."""

import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment
from bloodcell.data import balance
from bloodcell.data.pipeline import Pipeline
from bloodcell.data.rows import STRIDE
from bloodcell.train import step
from bloodcell.train.strategy import Runtime

OFF, COMPILED = (Runtime(tf.distribute.get_strategy(), 1, "float32", jit, "CPU") for jit in ("off", "augment"))
POLICY = "oneof(hue(0.3), randaugment(1, 3)) | augmix(width=2, depth=1)@0.5 | noise(8) | invert"


@tf.function(autograph=False)
def active(ids, share, epoch):
    return step.active(ids, share, epoch=epoch, seed=3)


def one_batch(make_images, shares, count=24):
    images = make_images(count, size=16)
    pipeline = Pipeline(images, batch_size=len(shares) * count, rows=balance.rows(images, "none", shares=shares))
    return images, next(iter(pipeline.epoch(1, 1)))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_an_epoch_augments_the_asked_share_of_images_and_an_image_is_in_that_share_of_epochs(share):
    ids = np.concatenate([np.arange(2000), np.arange(2000) + STRIDE])
    on = np.stack([active(ids, np.full(4000, share, np.float32), tf.constant(epoch, tf.int64)).numpy()
                   for epoch in range(50)])
    spread = np.sqrt(share * (1 - share))
    assert abs(on.mean() - share) <= 4 * spread / np.sqrt(on.size)
    assert np.abs(on.mean(axis=1) - share).max() <= 4 * spread / np.sqrt(4000)  # of 50 epochs
    assert np.abs(on.mean(axis=0) - share).max() <= 5 * spread / np.sqrt(50) + 1e-9  # of 4000 images
    first, second = on[:, :2000], on[:, 2000:]  # the two copies of an image are drawn apart
    if 0 < share < 1:
        assert abs(np.mean(first & second) - share**2) <= 4 * np.sqrt(share**2 * (1 - share**2) / first.size)


@pytest.mark.parametrize(("mix", "views"), [("", 1), ("", 3), ("oneof(mixup(1.0), cutmix(1.0))", 1)])
def test_images_that_are_not_active_are_untouched_and_the_others_are_as_without_shares(make_images, mix, views):
    _, batch = one_batch(make_images, (0.5, 0.2))
    plain = {name: value for name, value in batch.items() if name != "share"}
    make = step.inputs(augment.parse(POLICY), OFF, 7, num_classes=3, mixer=augment.parse_mix(mix), views=views)
    epoch = tf.constant(4, tf.int64)
    (shown, targets), (always, mixed) = make(batch, epoch), make(plain, epoch)
    on = step.active(batch["id"], batch["share"], epoch=epoch, seed=7).numpy()
    assert 5 < on.sum() < 40
    for own, other in zip(np.split(shown, views), np.split(always, views), strict=True):
        np.testing.assert_array_equal(own[~on], batch["image"].numpy()[~on].astype(np.float32))
        if not mix:  # with one, a partner may be an image that is not active
            np.testing.assert_array_equal(own[on], other[on])
    changed = np.abs(np.split(shown, views)[-1] - batch["image"].numpy()).mean(axis=(1, 2, 3)) > 1
    np.testing.assert_array_equal(changed, on)  # the policy inverts, always
    np.testing.assert_array_equal(targets.numpy()[~on], np.eye(3)[batch["label"].numpy()[~on]])
    np.testing.assert_allclose(targets.numpy()[on], mixed.numpy()[on], atol=1e-6)


def test_compiled_and_eager_choose_the_same_images_and_make_the_same_of_them(make_images):
    _, batch = one_batch(make_images, (0.6, 0.5))
    epoch = tf.constant(2, tf.int64)
    policy = augment.parse("invert@0.5 | brightness(0.3)")
    eager, compiled = (step.inputs(policy, runtime, 7, num_classes=3)(batch, epoch)[0].numpy()
                       for runtime in (OFF, COMPILED))
    assert np.abs(eager - compiled).max() <= 1


def test_what_is_not_active_costs_no_trip(make_images, monkeypatch):
    """With a share of 0 no primitive's loop has anything to do."""
    _, batch = one_batch(make_images, (0.0,), count=32)
    policy = augment.parse(POLICY)
    draws = policy.draw(batch["id"], epoch=1, seed=7)
    seen: list[dict[str, dict[str, tf.Tensor]]] = []

    def apply(pixels, given, dtype):
        seen.append(given)
        return pixels

    monkeypatch.setattr(policy, "apply", apply)
    policy(batch["image"], batch["id"], epoch=1, seed=7, active=tf.zeros([32], tf.bool))
    assert seen[0].keys() == draws.keys()
    assert not any(np.any(each["on"]) for each in seen[0].values())
    assert any(np.any(each["on"]) for each in draws.values())


def test_a_batch_without_shares_has_no_such_entry(make_images):
    images = make_images(8)
    spec = Pipeline(images, batch_size=4, rows=balance.rows(images, "replicate(9)")).epoch(0, 0).element_spec
    assert set(spec) == {"image", "label", "id", "weight"}
