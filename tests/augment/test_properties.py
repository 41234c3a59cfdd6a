"""Properties of random policies: any valid one works, any other gets one line. Hypothesis looks for counter-examples.

The examples are the same in every run (`derandomize`), so that a failure is a change of the code and not of the dice.
"""

import gc
import time
import warnings

import numpy as np
import pytest
import random_specs
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloodcell import augment
from bloodcell.errors import InputError

# A policy of many terms takes Hypothesis longer to write than it likes; which examples it makes does not depend on it.
PROFILE = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LONGEST_LINE = 1500  # characters; the longest lists every name that there is
SMALL = random_specs.policies(depth=1, most=2)
GENERATOR = np.random.default_rng(11)
IMAGES = GENERATOR.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
IMAGES[1] = 255
IMAGES[2] = IMAGES[2] // 16 + 100
IDS = tf.constant([0, 1, -5, 2**40, 77], tf.int64)


def _line_refusing(text):
    """Returns the error's line, or None where the policy was read; whatever else happens fails the test."""
    gc.disable()  # a collection's time is that of the objects which earlier tests left
    before = time.thread_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            augment.parse(text)
        line = None
    except InputError as error:
        line = str(error)
    finally:
        took = time.thread_time() - before
        gc.enable()
    assert took < 1
    if line is not None:
        assert line.startswith("augment: ")
        assert line.isprintable(), "one line that any terminal can show"
        assert len(line) <= LONGEST_LINE
    return line


def _assert_same(one, other):
    tf.nest.assert_same_structure(one, other)
    for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        np.testing.assert_array_equal(a, b)


def _sizes(policy):
    square = any(augment.REGISTRY[name].square for name in augment.REGISTRY if name in str(policy))
    return [(16, 16)] if square else [(16, 16), (9, 14), (14, 3), (1, 1)]


@settings(PROFILE, max_examples=100)
@given(random_specs.policies())
def test_a_valid_policy_is_read_and_prints_back_to_itself(text):
    assert _line_refusing(text) is None
    policy = augment.parse(text)
    assert str(augment.parse(str(policy))) == str(policy)
    assert str(eval(repr(policy), {"augment": augment})) == str(policy)


@settings(PROFILE, max_examples=12)
@given(SMALL)
def test_what_is_printed_draws_the_same(text):
    policy = augment.parse(text)
    _assert_same(augment.parse(str(policy)).draw(IDS, epoch=1, seed=2), policy.draw(IDS, epoch=1, seed=2))


@settings(PROFILE, max_examples=12)
@given(SMALL, st.data())
def test_results_are_whole_grey_levels_of_the_asked_type_and_shape(text, data):
    policy = augment.parse(text)
    height, width = data.draw(st.sampled_from(_sizes(policy)))
    images = IMAGES[:, :height, :width]
    dtype = data.draw(st.sampled_from(["float32", "uint8", "float16", "bfloat16"]))
    result = policy(images, IDS, epoch=2**33, seed=-7, dtype=dtype)
    assert result.dtype == dtype
    assert result.shape == images.shape
    levels = tf.cast(result, tf.float32).numpy()
    assert ((levels >= 0) & (levels <= 255)).all()
    np.testing.assert_array_equal(levels, np.round(levels))


@settings(PROFILE, max_examples=12)
@given(SMALL, st.permutations(range(len(IMAGES))), st.integers(1, len(IMAGES)))
def test_a_sample_comes_out_the_same_again_and_among_any_others(text, order, count):
    policy = augment.parse(text)
    whole = policy(IMAGES, IDS, epoch=2**33, seed=-7).numpy()
    rows = order[:count]
    part = policy(IMAGES[rows], tf.gather(IDS, rows), epoch=2**33, seed=-7).numpy()
    np.testing.assert_array_equal(part, whole[rows])


@settings(PROFILE, max_examples=3)
@given(random_specs.policies(depth=1, most=2))
def test_a_valid_policy_compiles_and_does_what_it_does_eagerly(text):
    policy = augment.parse(text)
    compiled = tf.function(lambda images, ids, epoch, seed: policy(images, ids, epoch=epoch, seed=seed),
                           jit_compile=True, autograph=False)
    rows = slice(0, 4)
    arguments = [tf.constant(IMAGES[rows]), IDS[rows]]
    first = compiled(*arguments, tf.constant(3, tf.int64), tf.constant(4, tf.int64)).numpy()
    again = compiled(*arguments, tf.constant(3, tf.int64), tf.constant(4, tf.int64)).numpy()
    np.testing.assert_array_equal(first, again)
    assert compiled.experimental_get_tracing_count() == 1
    eager = policy(*arguments, epoch=3, seed=4).numpy()
    # A stage's difference of one level may cross a later stage's threshold (solarize, posterize, equalize).
    assert (np.abs(first - eager) > 1).mean() <= 0.02, text


@settings(PROFILE, max_examples=120)
@given(random_specs.faulty())
def test_a_policy_with_one_fault_is_refused_in_one_line(text):
    assert _line_refusing(text) is not None


@settings(PROFILE, max_examples=60)
@given(random_specs.unreadable())
def test_what_is_no_spec_is_refused_in_one_line(text):
    assert _line_refusing(text) is not None


@settings(PROFILE, max_examples=80)
@given(random_specs.hostile())
def test_python_is_refused_in_one_line_and_never_run(text):
    assert _line_refusing(text) is not None


@pytest.mark.parametrize("text", random_specs.HOSTILE, ids=range(len(random_specs.HOSTILE)))
def test_each_known_attack_is_refused(text):
    for place in ("{}", "flip | {}", "rotate({})", "oneof(flip, {})", "flip@{}"):
        assert _line_refusing(place.format(text)) is not None, place


@settings(PROFILE, max_examples=120)
@given(random_specs.scribbled() | random_specs.texts)
def test_any_other_text_is_read_and_printable_or_refused_in_one_line(text):
    if _line_refusing(text) is None:
        policy = augment.parse(text)
        assert str(augment.parse(str(policy))) == str(policy)


@pytest.mark.parametrize("text", ["{}", "rotate({}=1)", "rotate('{}')", "oneof('{}')", "someof(1, '{}')", "flip@'{}'",
                                  "oneof({}(1))", "rotate({}(1))", "randaugment(n='{}')"])
def test_a_line_quotes_only_the_beginning_of_what_is_long(text):
    assert len(_line_refusing(text.format("a" * 9000))) < 700
