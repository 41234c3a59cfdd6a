"""Schedules: rates against Keras's own schedules and against the formulas, written here once more."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.train import schedules

STEPS = 40


def _rates(schedule, steps=STEPS):
    return np.array([float(schedule(tf.constant(step, tf.int64))) for step in range(steps)])


def _built(text, peak=0.2, steps=STEPS):
    return _rates(schedules.build(text, peak=peak, steps=steps)[0], steps)


def test_cosine_follows_its_formula():
    expected = [0.2 * (i + 1) / 5 if i < 4 else 0.2 * (1 + math.cos(math.pi * (i - 4) / 36)) / 2 for i in range(40)]
    np.testing.assert_allclose(_built("cosine(warmup=0.1)"), expected, rtol=1e-5, atol=1e-7)
    assert float(schedules.Cosine(0.2, 40, 0.1)(400)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("text", ["cosine(warmup=0.9)", "restarts(first=0.001, warmup=0.9)", "restarts(0.5, 1)",
                                  "exponential", "exponential(every=0.001, staircase=True)", "step(at=(0.01, 0.99))"])
def test_a_very_short_stage_has_rates_above_zero_and_at_most_the_peak(text, steps):
    rates = _built(text, 1.0, steps)
    assert ((rates > 0) & (rates <= 1)).all()


@pytest.mark.parametrize(("text", "theirs"), [
    ("restarts(first=0.1, factor=2)", {"first_decay_steps": 4, "t_mul": 2.0, "m_mul": 1.0}),
    ("restarts(first=0.125, factor=1, decay=0.5)", {"first_decay_steps": 5, "t_mul": 1.0, "m_mul": 0.5}),
    ("restarts(first=0.05, factor=3, decay=0.9)", {"first_decay_steps": 2, "t_mul": 3.0, "m_mul": 0.9})])
def test_restarts_equal_keras_cosine_decay_restarts(text, theirs):
    keras_own = _rates(keras.optimizers.schedules.CosineDecayRestarts(0.2, **theirs))
    ours = _built(text)
    # Keras finds the cycle by a logarithm in float32, and may begin one a step late, at a rate of 0.
    fresh = np.flatnonzero((ours > 1e-3) & (keras_own < 1e-6))
    assert len(fresh) <= 2
    same = np.setdiff1d(np.arange(STEPS), fresh)
    np.testing.assert_allclose(ours[same], keras_own[same], rtol=1e-4, atol=1e-6)


def test_restarts_begin_at_the_nearest_step_after_a_warm_up():
    # The first cycle has 5 of 40 steps, the next 7.5 and 11.25: they begin at 4, 9, 16.5 -> 16 and 27.75 -> 28.
    ours = _built("restarts(first=0.125, factor=1.5, decay=0.5, warmup=0.1)", peak=1.0)
    expected = [(i + 1) / 5 for i in range(4)]
    for cycle, (begin, end) in enumerate([(4, 9), (9, 16), (16, 28), (28, 45)]):
        expected += [0.5**cycle * (1 + math.cos(math.pi * (i - begin) / (end - begin))) / 2 for i in range(begin, end)]
    np.testing.assert_allclose(ours, expected[:40], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("staircase", [False, True])
@pytest.mark.parametrize(("every", "decay_steps"), [(0.1, 4), (0.025, 1), (0.075, 3), (1.0, 40)])
def test_exponential_equals_keras_exponential_decay(every, decay_steps, staircase):
    theirs = keras.optimizers.schedules.ExponentialDecay(0.2, decay_steps, 0.7, staircase)
    ours = _built(f"exponential(rate=0.7, every={every}, staircase={staircase})")
    np.testing.assert_allclose(ours, _rates(theirs), rtol=1e-5)


@pytest.mark.parametrize(("at", "boundaries"), [((0.5, 0.75), (20, 30)), ((0.1,), (4,)), ((0.31, 0.7), (13, 28))])
def test_step_equals_keras_piecewise_constant_decay(at, boundaries):
    # Keras's boundary is the last step of the old rate, ours the first of the new one.
    theirs = keras.optimizers.schedules.PiecewiseConstantDecay(
        [boundary - 1 for boundary in boundaries], [0.2 * 0.3**count for count in range(len(boundaries) + 1)])
    np.testing.assert_allclose(_built(f"step(0.3, at={at})"), _rates(theirs), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 7, 30, 49, 100, 200])
def test_a_boundary_is_where_the_fraction_is_reached_whatever_the_steps(steps):
    rates = _built("step(factor=0.5, at=(0.1, 0.3, 0.7))", 1.0, steps)
    reached = [sum(10 * step >= tenths * steps for tenths in (1, 3, 7)) for step in range(steps)]
    np.testing.assert_allclose(rates, 0.5 ** np.array(reached))


@pytest.mark.parametrize("text", ["cosine", "restarts(warmup=0.05)", "exponential(staircase=True)", "exponential",
                                  "step"])
def test_a_schedule_survives_serialisation_and_compilation(text):
    schedule, rule = schedules.build(text, peak=0.2, steps=STEPS)
    assert rule is None
    assert isinstance(schedule, schedules.Schedule)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert type(again) is type(schedule)
    compiled = tf.function(again, jit_compile=True)
    for step in (0, 1, 19, 20, 39):
        assert float(compiled(tf.constant(step, tf.int64))) == pytest.approx(float(schedule(step)), rel=1e-5)


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


@pytest.mark.parametrize(("text", "line"), [
    ("cosinus", "did you mean 'cosine'"),
    ("cosine(warmup=2)", "0..0.9"),
    ("plateau(factor=1.5)", "0.01..0.99"),
    ("restarts(first=0)", "0.001..1 fraction of the stage's steps"),
    ("restarts(factor=0.5)", "1..10"),
    ("exponential(rate=2)", "0.01..1"),
    ("step(at=0.5)", "a tuple"),
    ("step(at=())", "rising fractions between 0 and 1, received ()"),
    ("step(at=(0.7, 0.5))", "rising fractions"),
    ("step(at=(0.5, 'x'))", "rising fractions"),
    ("step(at=(10, 20))", "try at=(0.5, 0.75)"),
])
def test_a_bad_spec_is_one_line_naming_the_fix(text, line):
    with pytest.raises(InputError) as error:
        schedules.parse(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
