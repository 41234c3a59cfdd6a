"""Averaged weights: means against NumPy's, exact bits of the raw weights afterwards."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.train import averaging


def _make(text, model, **options):
    settings = averaging.parse(text)
    assert settings is not None
    return averaging.Average(settings, model, 20, **options)


def _floats(model):
    return [variable for variable in model.variables if variable.dtype == "float32"]


def _values(variables):
    return [variable.numpy().copy() for variable in variables]


def _move(model, step):
    """Gives every float variable, batch statistics included, the values of a step; returns them."""
    rng = np.random.default_rng(step)
    values = [rng.normal(size=variable.shape).astype(np.float32) for variable in _floats(model)]
    for variable, value in zip(_floats(model), values, strict=True):
        variable.assign(value)
    return values


def _run(average, model, steps, *, epoch=5):
    seen = []
    for step in steps:
        seen.append(_move(model, step))
        average.after_step(step)
        if step % epoch == 0:
            average.after_epoch(step)
    return seen


def _close(variables, expected):
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("decay", "jit"), [(0.0, False), (0.3, False), (0.9, False), (0.9, True)])
def test_ema_equals_numpy_with_a_decay_that_warms_up(tiny, decay, jit):
    model = tiny()
    expected = _values(_floats(model))
    average = _make(f"ema({decay})", model, jit=jit)
    for count, values in enumerate(_run(average, model, range(1, 21))):
        now = min(decay, (1 + count) / (10 + count))
        expected = [now * mean + (1 - now) * value for mean, value in zip(expected, values, strict=True)]
    _close(average.variables[1:], expected)
    names = {variable.path.rsplit("/", 1)[-1] for variable in average.variables[1:]}
    assert names == {"kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"}  # and no dropout's seed


@pytest.mark.parametrize(("start", "averaged"), [(0.75, [15, 20]), (0.5, [10, 15, 20]), (0.74, [15, 20]),
                                                 (0.76, [20]), (0.0, [5, 10, 15, 20])])
def test_swa_is_the_mean_of_the_epochs_ends_from_its_start_on(tiny, start, averaged):
    model = tiny()
    average = _make(f"swa(start={start})", model)
    ready = []
    seen = []
    for step in range(1, 21):
        seen += _run(average, model, [step])
        ready.append(average.ready)
    assert ready == [step >= averaged[0] for step in range(1, 21)]
    _close(average.variables[1:], [np.mean([seen[step - 1][index] for step in averaged], axis=0)
                                   for index in range(len(seen[0]))])


@pytest.mark.parametrize("text", ["ema(0.9)", "swa(0.2)"])
def test_a_checkpoint_of_its_variables_goes_on_with_the_same_bits(tiny, text):
    model = tiny()
    whole = _make(text, model)
    _run(whole, model, range(1, 12))
    saved = [(variable.path, variable.numpy()) for variable in whole.variables]
    _run(whole, model, range(12, 21))
    model = tiny()
    second = _make(text, model)
    assert [variable.path for variable in second.variables] == [path for path, _ in saved]
    for variable, (_, value) in zip(second.variables, saved, strict=True):
        variable.assign(value)
    _run(second, model, range(12, 21))
    for mine, theirs in zip(second.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_the_model_predicts_with_the_means_inside_and_has_its_own_bits_outside(tiny):
    model = tiny()
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
    predict = tf.function(lambda given: model(given, training=False))
    average = _make("swa(0)", model)
    _run(average, model, range(1, 21))
    for variable in _floats(model):
        if variable.name == "moving_variance":
            variable.assign(np.abs(variable.numpy()))
    for variable in average.variables:
        if variable.path.endswith("moving_variance"):
            variable.assign(np.abs(variable.numpy()))
    raw, predicted = _values(model.variables), predict(images).numpy()
    other = tiny()
    for variable, mean in zip(_floats(other), average.variables[1:], strict=True):
        variable.assign(mean.numpy())
    means = _values(average.variables)
    with average.swapped():
        np.testing.assert_allclose(predict(images), other(images, training=False), rtol=1e-5, atol=1e-6)
        assert np.abs(predict(images).numpy() - predicted).max() > 0.01
    np.testing.assert_array_equal(predict(images).numpy(), predicted)
    for variables, before in ((model.variables, raw), (average.variables, means)):
        for variable, value in zip(variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)


def test_an_exception_inside_leaves_the_raw_bits_whatever_happened_there(tiny):
    model = tiny()
    average = _make("ema", model)
    _run(average, model, range(1, 4))
    raw = _values(model.variables)

    def fails():
        with average.swapped():
            for variable in _floats(model):
                variable.assign_add(keras.ops.ones_like(variable))  # in place
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    for variable, value in zip(model.variables, raw, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize(("text", "calls"), [("ema", "after_epoch"), ("swa(0.0)", "after_step")])
def test_each_kind_listens_to_one_of_the_two_calls_and_is_not_ready_before(tiny, text, calls):
    model = tiny()
    average = _make(text, model)
    before = _values(average.variables)
    getattr(average, calls)(20)
    for variable, value in zip(average.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert not average.ready
    with pytest.raises(RuntimeError, match="ask `ready` first"), average.swapped():
        pass


@pytest.mark.parametrize(("text", "line"), [
    ("ema(1)", "ema(decay) expected 0..0.999999 of the old mean, per step, received 1"),
    ("swa(start=2)", "0..1 fraction of the run's steps"),
    ("swe", "did you mean 'swa'"),
    ("ema | swa", "one term"),
])
def test_a_bad_spec_is_one_line_naming_the_fix(text, line):
    with pytest.raises(InputError) as error:
        averaging.parse(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_no_text_is_no_average():
    assert averaging.parse(" ") is None
    assert averaging.parse("ema") == averaging.Settings("ema", {"decay": 0.999})
