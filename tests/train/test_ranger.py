"""Ranger against TensorFlow Addons step by step, against the papers' formulas, and compiled against eager."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.train.ranger import Ranger

STEPS = 30
SHAPES = ((3, 4), (4,))
# Rectified from step 6 on; from step 8 on, with decay; never. Four to six synchronisations.
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "decayed": {"beta_1": 0.8, "beta_2": 0.75, "weight_decay": 0.25, "sync_period": 5, "slow_step": 0.3,
                "epsilon": 1e-4},
    "never adaptive": {"beta_2": 0.625, "sync_period": 7, "weight_decay": 0.125}}
RATE = 2.0**-6  # a power of two: Addons keeps rates and betas in float32 even where variables are float64


def _start():
    return [np.random.default_rng(1).normal(size=shape) for shape in SHAPES]


def _gradients():
    rng = np.random.default_rng(2)
    return [[rng.normal(size=shape) * 10 ** rng.uniform(-3, 1) for shape in SHAPES] for _ in range(STEPS)]


def _float32(settings):
    return {name: float(np.float32(value)) if isinstance(value, float) else value
            for name, value in {"beta_1": 0.9, "beta_2": 0.999, **settings}.items()}


@functools.cache
def _ours(name, dtype, how="graph"):
    """Returns arrays [STEPS, ...] of values, momenta, velocities and slow weights of each variable.

    In float64 with the settings that Addons has, in float32 with the case's own.
    """
    variables = [keras.Variable(value, dtype=dtype) for value in _start()]
    optimizer = Ranger(RATE, **(_float32(CASES[name]) if dtype == "float64" else CASES[name]))
    optimizer.build(variables)

    def step(*gradients):
        optimizer.apply(list(gradients), variables)

    if how != "eager":
        step = tf.function(step, jit_compile=how == "xla", autograph=False)
    seen = []
    for gradients in _gradients():
        step(*[tf.constant(each, dtype) for each in gradients])
        seen.append([each.numpy() for each in [*variables, *optimizer.variables[2:]]])
    values, rest = list(zip(*seen, strict=True))[:2], list(zip(*seen, strict=True))[2:]
    return [np.array(each) for each in (*values, *rest[0::3], *rest[1::3], *rest[2::3])]


ADDONS = """
import json, sys
import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

folder, cases, rate = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
given = np.load(folder + "/given.npz")
start, gradients = [given["start0"], given["start1"]], [given["gradient0"], given["gradient1"]]
for name, settings in cases.items():
    for dtype in ("float32", "float64") if name == "default" else ("float64",):
        own = dict(settings)
        lookahead = {"sync_period": own.pop("sync_period", 6), "slow_step_size": own.pop("slow_step", 0.5)}
        inner = tfa.optimizers.RectifiedAdam(rate, **own)
        optimizer = tfa.optimizers.Lookahead(inner, **lookahead)
        variables = [tf.Variable(value, dtype=dtype) for value in start]
        seen = []
        for pair in zip(*gradients):
            optimizer.apply_gradients([(tf.constant(g, dtype), v) for g, v in zip(pair, variables)])
            slots = [owner.get_slot(v, slot).numpy() for owner, slot in
                     [(inner, "m"), (inner, "v"), (optimizer, "slow")] for v in variables]
            seen.append([v.numpy() for v in variables] + slots)
        np.savez(f"{folder}/{name}.{dtype}.npz", *[np.array(each) for each in zip(*seen)])
"""


@pytest.fixture(scope="module")
def addons(tmp_path_factory):
    """Returns what TensorFlow Addons made of each case, in a process of its own: it needs the Keras before Keras 3."""
    for module in ("tensorflow_addons", "tf_keras"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} has no place in Python 3.12 and later" if sys.version_info >= (3, 12) else
                        f"{module} is missing: pip install -e '.[addons]'")
    folder = tmp_path_factory.mktemp("addons")
    start, gradients = _start(), list(zip(*_gradients(), strict=True))
    np.savez(folder / "given.npz", start0=start[0], start1=start[1], gradient0=gradients[0], gradient1=gradients[1])
    cases = {name: _float32(settings) for name, settings in CASES.items()}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ADDONS, str(folder), json.dumps(cases), str(RATE)],
                          env={**os.environ, "TF_USE_LEGACY_KERAS": "1"}, capture_output=True, text=True, check=False,
                          timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return lambda name, dtype: list(np.load(folder / f"{name}.{dtype}.npz").values())


@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_addons_lookahead_of_rectified_adam(name, addons):
    # In float64 all but rounding is seen: weights, both moments and the slow weights, at each of the steps.
    for mine, theirs in zip(_ours(name, "float64"), addons(name, "float64"), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_every_step_equals_addons_in_float32_but_for_its_rounding(addons):
    # Addons computes the length of the average in float32, as a difference of numbers near 2000: 0.01 of 2;
    # and 1 - beta_2 from the rounded beta_2, 1.3e-5 away.
    for mine, theirs in zip(_ours("default", "float32"), addons("default", "float32"), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=1e-6)


def _by_the_papers(settings):
    """Returns values [STEPS, ...] of the first variable, the moments as the weighted means that they stand for."""
    settings = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "sync_period": 6, "slow_step": 0.5,
                "weight_decay": 0.0, **settings}
    longest = 2 / (1 - settings["beta_2"]) - 1
    slow = fast = _start()[0]
    past, seen, rectified = [], [], []
    for step, (gradient, _) in enumerate(_gradients(), start=1):
        past.append(gradient)
        ages = np.arange(step)[::-1, None, None]
        means = [np.average(np.array(past)**power, axis=0, weights=np.broadcast_to(
                 settings[f"beta_{power}"]**ages, (step, *SHAPES[0]))) for power in (1, 2)]
        weights = settings["beta_2"]**np.arange(step)[::-1]
        length = longest - 2 * step * settings["beta_2"]**step / ((1 - settings["beta_2"]) * weights.sum())
        move = means[0]
        rectified.append(length >= 5)
        if rectified[-1]:
            variance = ((length - 4) * (length - 2) * longest) / ((longest - 4) * (longest - 2) * length)
            move = np.sqrt(variance) * means[0] / (np.sqrt(means[1]) + settings["epsilon"])
        fast = fast - RATE * (move + settings["weight_decay"] * fast)
        if step % settings["sync_period"] == 0:
            slow = slow + settings["slow_step"] * (fast - slow)
            fast = slow
        seen.append(fast)
    return np.array(seen), rectified


@pytest.mark.parametrize("name", CASES)
def test_every_step_follows_the_papers(name):
    expected, rectified = _by_the_papers(_float32(CASES[name]))
    assert rectified.count(True) == {"default": 25, "decayed": 23, "never adaptive": 0}[name]
    np.testing.assert_allclose(_ours(name, "float64")[0], expected, rtol=1e-9, atol=1e-12)


def test_compiled_by_xla_it_takes_the_same_steps():
    for compiled, eager in zip(_ours("decayed", "float32", "xla")[:2], _ours("decayed", "float32", "eager")[:2],
                               strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


def test_the_first_build_inside_a_compiled_function_begins_at_the_variables():
    variable = keras.Variable(np.full(3, 2.0, np.float32))
    optimizer = Ranger(0.5, beta_2=0.5, sync_period=2)
    step = tf.function(lambda gradient: optimizer.apply([gradient], [variable]), autograph=False)
    for _ in range(2):
        step(tf.ones(3))
    np.testing.assert_allclose(variable.numpy(), 1.5)  # 2 -> 1.5 -> 1, and back half of the way to 2


def test_a_copy_from_its_config_and_its_variables_goes_on_with_the_same_bits():
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)
    variables = [keras.Variable(value, dtype="float32") for value in _start()]
    first = Ranger(rate, **CASES["decayed"])
    first.build(variables)
    steps = [[tf.constant(each, tf.float32) for each in gradients] for gradients in _gradients()]
    go_on = tf.function(lambda *each: first.apply(list(each), variables), autograph=False)
    for gradients in steps[:13]:
        go_on(*gradients)
    others = [keras.Variable(variable.numpy()) for variable in variables]
    second = keras.optimizers.deserialize(keras.optimizers.serialize(first))
    assert isinstance(second, Ranger)
    assert second.get_config() == first.get_config()
    second.build(others)
    assert [each.shape for each in second.variables] == [each.shape for each in first.variables]
    for mine, theirs in zip(second.variables, first.variables, strict=True):
        mine.assign(theirs)
    go_on_too = tf.function(lambda *each: second.apply(list(each), others), autograph=False)
    for gradients in steps[13:]:
        go_on(*gradients)
        go_on_too(*gradients)
    for mine, theirs in zip([*others, *second.variables], [*variables, *first.variables], strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="received 0 and"):
        Ranger(sync_period=0)
    with pytest.raises(ValueError, match=r"slow_step in 0\.\.1, received 6 and 1\.5"):
        Ranger(slow_step=1.5)
