"""Stages, schedules, losses, class weights and optimizers: numbers against formulas written here once more."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.train import losses, optimizers, schedules, stages
from bloodcell.train.stages import Stage


def test_stages_are_read_in_order():
    assert stages.parse("head(epochs=10, lr=1e-3) | top(percent=80, epochs=20, lr=1e-4) | all(2, 1e-5)") == (
        Stage("head", 0.0, 10, 1e-3), Stage("top", 80.0, 20, 1e-4), Stage("all", 100.0, 2, 1e-5))


def test_a_stage_may_have_images_of_its_own_and_says_so():
    plan = stages.parse("head(2, 1e-3, augment='flip | rotate(30, fill=\\'edge\\')', mix='') | all(1, 1e-4)")
    assert plan == (Stage("head", 0.0, 2, 1e-3, "flip | rotate(30, fill='edge')", ""), Stage("all", 100.0, 1, 1e-4))
    assert str(plan[0]) == "head, 2 epochs, lr 0.001, augment flip | rotate(30, fill='edge'), mix nothing"
    assert str(plan[1]) == "all, 1 epoch, lr 0.0001"
    assert [stages.policies(stage, "gray", "cutmix") for stage in plan] == [(plan[0].augment, ""), ("gray", "cutmix")]


def test_a_loss_of_views_needs_a_policy_in_every_stage():
    plan = stages.parse("head(1, 1e-3) | all(1, 1e-3, augment='')")
    with pytest.raises(InputError, match=r"--loss=jsd expected a policy in every stage.*'all, 1 epoch"):
        stages.need_policies(plan, "flip")
    with pytest.raises(InputError, match="'head, 1 epoch"):
        stages.need_policies(plan, "")
    stages.need_policies(plan[:1], "flip")


@pytest.mark.parametrize(("parse", "text", "line"), [
    (stages.parse, "", "at least one stage"),
    (stages.parse, "heads(epochs=1, lr=1e-3)", "did you mean 'head'"),
    (stages.parse, "head(epochs=0, lr=1e-3)", "1..100000"),
    (stages.parse, "head(epochs=1)", "expected lr"),
    (stages.parse, "top(percent=120, epochs=1, lr=1e-3)", "0..100"),
    (stages.parse, "all(epochs=1, lr=1e-3)@0.5", "@p"),
    (stages.parse, "all(epochs=1, lr=1e-3, augment='rotat(3)')", "stages: all: augment: unknown op 'rotat'"),
    (stages.parse, "all(epochs=1, lr=1e-3, augment=flip)", "received flip"),
    (stages.parse, "head(epochs=1, lr=1e-3, mix='mixup(0)')", "stages: head: mix: mixup(alpha) expected 0.01..32"),
    (stages.parse, "all(epochs=1, lr=1e-3, mix='flip')", "flip belongs in --augment"),
    (stages.parse, "all(epochs=1, lr=1e-3, augment='cutmix')", "cutmix belongs in --mix"),
    (schedules.parse, "cosinus", "did you mean 'cosine'"),
    (schedules.parse, "cosine(warmup=2)", "0..0.9"),
    (schedules.parse, "plateau(factor=1.5)", "0.01..0.99"),
    (losses.parse, "cross_entropy(smoothing=-1)", "0..0.99"),
    (losses.parse, "jsd(weight=-1)", "0..1000"),
    (losses.parse, "focal(2)", "unknown name 'focal'"),
    (optimizers.parse, "adamw(weight_decay=-1)", "0..10"),
    (optimizers.parse, "adam(weight_decay=1e-4)", "no parameter 'weight_decay'"),
    (optimizers.parse, "adam | adamw", "one term"),
])
def test_a_bad_spec_is_one_line_naming_the_fix(parse, text, line):
    with pytest.raises(InputError) as error:
        parse(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_cosine_follows_its_formula():
    peak, steps, warmup = 0.2, 40, 0.1
    rate = schedules.Cosine(peak, steps, warmup)
    expected = [peak * (i + 1) / 5 if i < 4 else peak * (1 + math.cos(math.pi * (i - 4) / 36)) / 2 for i in range(40)]
    got = [float(rate(tf.constant(i, tf.int64))) for i in range(40)]
    np.testing.assert_allclose(np.array(got), expected, rtol=1e-5, atol=1e-7)
    assert float(rate(400)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_cosine_of_a_very_short_stage_is_positive_and_at_most_the_peak(steps):
    rate = schedules.Cosine(1.0, steps, warmup=0.9)
    assert all(0 < float(rate(i)) <= 1 for i in range(steps))


def test_a_schedule_becomes_a_rate_and_where_asked_a_rule():
    assert schedules.build("constant", peak=0.5, steps=9) == (0.5, None)
    assert schedules.build("plateau(0.1, 4)", peak=0.5, steps=9) == (0.5, schedules.Plateau(0.1, 4, 1e-6))
    rate, rule = schedules.build("cosine", peak=0.5, steps=40)
    assert isinstance(rate, schedules.Cosine)
    assert (rate.warmup_steps, rule) == (2, None)


def test_plateau_lowers_the_rate_where_a_hand_says():
    plateau = schedules.Plateau(factor=0.5, patience=2, min_lr=0.3)
    rate, seen = 1.0, []
    for val_loss in [3.0, 2.0, 2.0, 2.5, 1.0, 1.1, 1.2, 1.0, 1.0, 0.5]:
        rate = plateau.update(val_loss, rate)
        seen.append(rate)
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3]


def test_plateau_continues_from_its_saved_state():
    losses_seen = [3.0, 3.1, 3.2, 3.3, 2.0, 2.1, 2.2, 2.3]
    whole, first, second = (schedules.Plateau(factor=0.5, patience=3, min_lr=0.0) for _ in range(3))
    expected = [whole.update(value, 1.0) for value in losses_seen]
    got = [first.update(value, 1.0) for value in losses_seen[:3]]
    second.restore(first.state())
    assert got + [second.update(value, 1.0) for value in losses_seen[3:]] == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_numpy(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 4)).astype(np.float32) * 3, np.array([0, 3, 1, 1, 2])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(1 - smoothing) * log_p[np.arange(5), labels] - smoothing * log_p.mean(axis=1)
    got = losses.parse(f"cross_entropy(smoothing={smoothing})")(tf.one_hot(labels, 4), tf.constant(logits))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_weight_decay_shrinks_kernels_and_leaves_norms_and_biases_alone(tiny):
    model = tiny()
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones_like(variable))
    settings = optimizers.parse("adamw(weight_decay=0.1)")
    optimizer = optimizers.build(settings, learning_rate=0.5, variables=model.trainable_variables, precision="float32")
    optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    after = {variable.path.split("/")[-2] + "/" + variable.name: float(keras.ops.max(variable))
             for variable in model.trainable_variables}
    assert after == {"convolution/kernel": pytest.approx(0.95), "convolution/bias": 1.0, "norm/gamma": 1.0,
                     "norm/beta": 1.0, "logits/kernel": pytest.approx(0.95), "logits/bias": 1.0}
