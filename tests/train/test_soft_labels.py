"""Labels as distributions: the loss, its weights and what counts as right, from a batch to a run."""

import importlib
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment, config
from bloodcell.errors import InputError
from bloodcell.train import loop, losses, step
from bloodcell.train.strategy import Runtime

REPO = pathlib.Path(__file__).resolve().parents[2]
RUNTIME = Runtime(tf.distribute.get_strategy(), 1, "float32", "off", "CPU")


def softmax(logits):
    exponent = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_soft_targets_equals_numpy(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32) * 3
    targets = rng.dirichlet(np.ones(4), 6).astype(np.float32)
    smoothed = (1 - smoothing) * targets + smoothing / 4
    expected = -(smoothed * np.log(softmax(logits))).sum(axis=1)
    np.testing.assert_allclose(losses.parse(f"cross_entropy({smoothing})")(targets, logits), expected, rtol=1e-5)


def test_class_weights_and_right_answers_are_those_of_the_mixed_labels(tiny, make_images):
    # One step, written by hand from the mixer's draws: padding, class weights and smoothing included.
    images, class_weights = make_images(8), np.array([0.5, 1.0, 2.0], np.float32)
    batch = {"image": tf.constant(images.images), "label": tf.constant(images.labels), "id": tf.constant(images.ids),
             "weight": tf.constant([1.0] * 6 + [0.0] * 2)}
    model, epoch = tiny("plain"), tf.constant(4, tf.int64)
    mixer = augment.parse_mix("oneof(mixup(0.4)@0.7, cutmix(1.0))")
    draws = mixer.draw(batch["id"], batch["weight"], (8, 8), epoch=epoch, seed=11)
    partner, share, box = (field.numpy() for field in draws)
    covered = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / 64
    assert (share[:6] > 0.1).any()
    assert (covered[:6] > 0.1).any()
    lam = ((1 - share) * (1 - covered))[:, None]
    one_hot = np.eye(3)[images.labels]
    targets = lam * one_hot + (1 - lam) * one_hot[partner]
    before = [variable.numpy() for variable in model.trainable_variables]
    mixed = mixer.mix_images(tf.cast(images.images, tf.float32), draws)
    with tf.GradientTape() as tape:
        logits = model(mixed)
        crossed = -tf.reduce_sum((0.9 * targets + 0.1 / 3).astype(np.float32) * tf.nn.log_softmax(logits), axis=1)
        weighted = crossed[:6] * (targets @ class_weights)[:6].astype(np.float32)
        loss = tf.reduce_sum(weighted) / 6
    grads = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)
    take = step.train_step(model, optimizer, loss=losses.parse("cross_entropy(smoothing=0.1)"), runtime=RUNTIME,
                           inputs=step.inputs(augment.parse(""), RUNTIME, 11, num_classes=3, mixer=mixer),
                           class_weights=class_weights)
    sums = take(batch, epoch).numpy()
    right = np.argmax(logits, axis=1)[:6] == np.argmax(targets, axis=1)[:6]
    norm = np.sqrt(sum(np.sum(np.square(grad)) for grad in grads))
    np.testing.assert_allclose(sums, [float(loss) * 6, 6, right.sum(), norm, 0], rtol=1e-5)
    for variable, old, grad in zip(model.trainable_variables, before, grads, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - grad.numpy(), atol=2e-6)


def test_without_mixing_targets_are_one_hot_and_class_weights_exact():
    labels = tf.constant([2, 0, 1], tf.int64)
    batch = {"image": tf.zeros([3, 4, 4, 3], tf.uint8), "label": labels, "id": labels, "weight": tf.ones([3])}
    _, targets = step.inputs(augment.parse("flip"), RUNTIME, 0, num_classes=3)(batch, 1)
    np.testing.assert_array_equal(targets, np.eye(3)[labels])
    weights = np.array([0.1, 1 / 3, 2.7], np.float32)
    np.testing.assert_array_equal(tf.linalg.matvec(targets, weights), weights[labels])


def test_stages_train_on_their_own_images_and_equal_ones_share_a_program(tmp_path, tiny, make_images, make_config, *,
                                                                        monkeypatch, capsys):
    made, make = [], step.inputs

    def counting(policy, *args, mixer=None, **kwargs):
        made.append((str(policy), str(mixer)))
        return make(policy, *args, mixer=mixer, **kwargs)
    monkeypatch.setattr(step, "inputs", counting)
    plan = ("head(epochs=1, lr=1e-2, augment='invert', mix='') | all(epochs=1, lr=1e-2) | "
            "all(epochs=1, lr=1e-3, augment='gray')")
    loop.fit(make_config(model="plain", stages=plan, augment="gray", mix="mixup(1.0)", progress="lines"), RUNTIME,
             make_images(16), make_images(9, seed=1), tmp_path)
    assert made == [("invert", ""), ("gray", "mixup(1.0)"), ("", "None")]
    said = capsys.readouterr().out
    assert "stage 1/3: head, 1 epoch, lr 0.01, augment invert, mix nothing" in said
    pictures: dict[str, np.ndarray] = {}
    for file in (tmp_path / "tensorboard").glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            pictures |= {value.tag: tf.io.decode_png(value.tensor.string_val[2]).numpy()
                         for value in event.summary.value if value.tag.startswith("augmented/")}
    assert pictures["augmented/stage 1 head"].mean() > 127 > pictures["augmented/stage 3 all"].mean()


def call_main(*arguments):
    sys.path.insert(0, str(REPO))
    try:
        return importlib.import_module("main").main(["main.py", *arguments])
    finally:
        sys.path.remove(str(REPO))


def test_a_dry_run_through_the_flags_ends_well(tiny, make_images, tmp_path, *, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = make_images(48, size=32)
    np.savez(tmp_path / "cells.npz", images=images.images, labels=images.labels)
    status = call_main("--data=cells.npz", "--model=mobilenet_v3_small", "--weights=none", "--image_size=32",
                       "--batch_size=16", "--augment=gray", "--jit=off", "--dry_run",
                       "--mix=cutmix(1.0)", "--balance=class_weights",
                       "--loss=jsd(weight=12, smoothing=0.1)",
                       "--stages=all(epochs=2, lr=5e-4, augment='invert', mix='mixup(0.2)@0.5') | "
                       "all(epochs=6, lr=5e-4)")
    out, err = capsys.readouterr()
    assert status == 0, err
    assert out.rstrip().endswith("dry run: done")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.npz"]


@pytest.mark.parametrize(("flags", "expected"), [
    (["--mix=mixp"], "mix: unknown op 'mixp'; did you mean 'mixup'?"),
    (["--mix=rotate(3)"], "rotate belongs in --augment"),
    (["--augment=flip | cutmix"], "cutmix belongs in --mix"),
    (["--val_augment=mixup"], "val_augment: mixup belongs in --mix"),
    (["--loss=jsd"], "--loss=jsd expected a policy in every stage"),
    (["--loss=jsd(12, 2)", "--augment=flip"], "0..0.99"),
    (["--stages=all(epochs=1, lr=1e-3, augment='flp')"], "did you mean 'flip'?"),
])
def test_flags_that_cannot_run_are_found_before_any_work(flags, expected):
    parsed = config.parse(["main.py", *flags])
    assert parsed is not None
    with pytest.raises(InputError) as caught:
        config.validate(parsed)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
