"""Optimizers: Keras's own steps, decay of kernels alone, a rate for each variable as with an optimizer for each."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.applications import convnext

from bloodcell.errors import InputError
from bloodcell.train import optimizers, schedules
from bloodcell.train.ranger import Ranger

SPECS = {"sgd": "sgd(momentum=0.8, nesterov=True, weight_decay=0.1)", "plain sgd": "sgd(momentum=0)",
         "adam": "adam(beta_2=0.9)", "adamw": "adamw(weight_decay=0.1, epsilon=1e-4)",
         "lion": "lion(weight_decay=0.1)", "ranger": "ranger(weight_decay=0.1, sync_period=3, beta_2=0.8)"}
THEIRS = {  # Keras's own classes, with decay as Keras does it
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.8, nesterov=True, weight_decay=0.1),
    "plain sgd": keras.optimizers.SGD,
    "adam": lambda rate: keras.optimizers.Adam(rate, beta_2=0.9),
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1, epsilon=1e-4),
    "lion": lambda rate: keras.optimizers.Lion(rate, weight_decay=0.1),
    "ranger": lambda rate: Ranger(rate, weight_decay=0.1, sync_period=3, beta_2=0.8)}
RATE, STEPS = 0.0625, 13


def _variables():
    rng = np.random.default_rng(1)
    with keras.name_scope("layer"):
        return [keras.Variable(rng.normal(size=shape).astype(np.float32), name=name)
                for name, shape in (("kernel", (3, 4)), ("bias", (4,)), ("deeper", (2, 2)))]


def _gradients():
    rng = np.random.default_rng(2)
    return [[tf.constant(rng.normal(size=shape), tf.float32) for shape in ((3, 4), (4,), (2, 2))] for _ in range(STEPS)]


def _steps_of(optimizer, variables):
    """Returns a function: gradients of steps -> the variables after them."""
    step = tf.function(lambda *each: optimizer.apply(list(each), variables), autograph=False)

    def take(gradients):
        for each in gradients:
            step(*each)
        return [variable.numpy() for variable in variables]
    return take


def _run(optimizer, variables, gradients):
    return _steps_of(optimizer, variables)(gradients)


def _build(text, variables, rate=RATE, **options):
    return optimizers.build(optimizers.parse(text), learning_rate=rate, variables=variables,
                            **{"precision": "float32", **options})


@pytest.mark.parametrize("name", SPECS)
def test_without_factors_the_steps_are_keras_own_to_the_bit(name):
    variables, others = _variables(), _variables()
    theirs = THEIRS[name](RATE)
    theirs.exclude_from_weight_decay(var_list=[others[1]])
    theirs.build(others)
    ours = _run(_build(SPECS[name], variables), variables, _gradients())
    for mine, expected in zip(ours, _run(theirs, others, _gradients()), strict=True):
        np.testing.assert_array_equal(mine, expected)


COSINE = schedules.Cosine(RATE, STEPS, 0.2)


@pytest.mark.parametrize(("name", "rate"), [*((name, RATE) for name in SPECS), ("adamw", COSINE), ("ranger", COSINE)],
                         ids=[*SPECS, "adamw cosine", "ranger cosine"])
def test_factors_equal_an_optimizer_for_each_variable(name, rate):
    parts = [1.0, 0.5, 0.3]
    variables, alone = _variables(), _variables()
    factors = {variable.path: part for variable, part in zip(variables, parts, strict=True)}
    together = _run(_build(SPECS[name], variables, rate, factors=factors), variables, _gradients())
    for index, part in enumerate(parts):
        own = rate * part if isinstance(rate, float) else schedules.Cosine(rate.peak * part, rate.steps, rate.warmup)
        single = _build(SPECS[name], alone[index:index + 1], own)
        expected, = _run(single, alone[index:index + 1], [each[index:index + 1] for each in _gradients()])
        np.testing.assert_allclose(together[index], expected, rtol=3e-6, atol=1e-6)


def test_a_variable_without_a_factor_is_an_error():
    variables = _variables()
    with pytest.raises(ValueError, match=r"none for 'layer/bias' \(2 variables\)"):
        _build("adam", variables, factors={variables[0].path: 1.0})


def test_weight_decay_shrinks_kernels_and_leaves_norms_biases_and_layer_scales_alone(tiny):
    scale = convnext.LayerScale(1.0, 3, name="scale")  # its variable has no name of its own
    model = keras.Sequential([tiny().get_layer("backbone"), keras.layers.Dense(3, name="dense"), scale,
                              keras.layers.LayerNormalization(axis=(1, 2, 3), name="wide"),
                              keras.layers.DepthwiseConv2D(2, name="depthwise")])
    model(np.zeros((1, 8, 8, 3), np.float32))
    variables = model.trainable_variables
    factors = {variable.path: 0.5 if "dense" in variable.path else 1.0 for variable in variables}
    for name in ("sgd", "adamw", "lion", "ranger"):
        for variable in variables:
            variable.assign(keras.ops.ones_like(variable))
        optimizer = _build(f"{name}(weight_decay=0.1)", variables, 0.5, factors=factors)
        optimizer.apply([tf.zeros(variable.shape) for variable in variables], variables)
        after = {tuple(variable.path.split("/")[-2:]): float(keras.ops.max(variable)) for variable in variables}
        shrunk = {key: value for key, value in after.items() if value != 1.0}
        assert len(after) == 11
        assert ("scale", scale.gamma.name) in after
        assert shrunk == {("convolution", "kernel"): pytest.approx(0.95), ("dense", "kernel"): pytest.approx(0.975),
                          ("depthwise", "kernel"): pytest.approx(0.95)}


@pytest.mark.parametrize("name", SPECS)
def test_a_copy_from_its_config_and_its_variables_goes_on_with_the_same_bits(name):
    variables, others = _variables(), _variables()
    factors = {variable.path: 0.5 for variable in variables}
    first = _build(SPECS[name], variables, factors=factors)
    take = _steps_of(first, variables)
    take(_gradients()[:5])
    second = keras.optimizers.deserialize(keras.optimizers.serialize(first))
    assert type(second) is type(first)
    assert second.get_config() == first.get_config()
    second.build(others)
    for mine, theirs in zip([*others, *second.variables], [*variables, *first.variables], strict=True):
        mine.assign(theirs)
    expected = take(_gradients()[5:])
    for mine, theirs in zip(_run(second, others, _gradients()[5:]), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", SPECS)
def test_under_float16_an_overflow_skips_the_step_and_all_state(name):
    variables = _variables()
    optimizer = _build(SPECS[name], variables, precision="mixed_float16")
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    scaled = [[each * 2.0**15 for each in gradients] for gradients in _gradients()]
    take = _steps_of(optimizer, variables)
    take(scaled[:3])
    before = [each.numpy() for each in [*variables, *optimizer.inner_optimizer.variables]]
    take([[*scaled[3][:2], tf.fill([2, 2], np.float32(np.inf))]])
    for variable, old in zip([*variables, *optimizer.inner_optimizer.variables], before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)
    others = _variables()
    expected = _run(_build(SPECS[name], others), others, _gradients()[:3])
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("text", "line"), [
    ("adamw(weight_decay=-1)", "0..10"),
    ("adam(weight_decay=1e-4)", "no parameter 'weight_decay'"),
    ("adam | adamw", "one term"),
    ("rangr", "did you mean 'ranger'"),
    ("sgd(momentum=1)", "0..0.9999"),
    ("sgd(nesterov=1)", "True or False"),
    ("lion(beta_1=0)", "0.0001..0.9999"),
    ("ranger(sync_period=0)", "1..10000 steps"),
    ("ranger(slow_step=2)", "0..1 of the way"),
])
def test_a_bad_spec_is_one_line_naming_the_fix(text, line):
    with pytest.raises(InputError) as error:
        optimizers.parse(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_clips_and_says_what_it_does(name):
    assert optimizers.parse(f"{name}(clipnorm=2)").clipnorm == 2.0
    assert optimizers.parse(name).clipnorm is None
    assert optimizers.OPTIMIZERS[name].summary.endswith(".")
