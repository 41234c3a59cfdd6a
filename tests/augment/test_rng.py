"""The random bits: published test vectors, uniformity, independence, and the same bits everywhere."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from bloodcell.augment import rng

FULL = 0xFFFFFFFF
# Known answers published with the generator (Random123's kat_vectors, threefry2x32, 20 rounds).
VECTORS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((FULL, FULL), (FULL, FULL), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "expected"), VECTORS)
@pytest.mark.parametrize("compiled", [False, True])
def test_threefry_gives_the_published_answers(key, counter, expected, compiled):
    words = [tf.constant([word], tf.uint32) for word in (*key, *counter)]
    hashed = tf.function(lambda a, b, c, d: rng.threefry2x32((a, b), (c, d)), jit_compile=True) if compiled else (
        lambda a, b, c, d: rng.threefry2x32((a, b), (c, d)))
    assert tuple(int(word.numpy()[0]) for word in hashed(*words)) == expected


def _uniforms(ids, epoch=0, seed=0, count=8):
    return rng.uniform(rng.sample_keys(tf.constant(ids, tf.int64), epoch=epoch, seed=seed), count).numpy()


def test_uniforms_are_uniform():
    u = _uniforms(np.arange(20_000))
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}, {"ids": np.arange(20_000) + 20_000}])
def test_neighbouring_ids_epochs_and_seeds_are_independent(other):
    ids = other.pop("ids", np.arange(20_000))
    a, b = _uniforms(np.arange(20_000)), _uniforms(ids, **other)
    correlation = np.corrcoef(a.T, b.T)[:8, 8:]
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
    counts, _, _ = np.histogram2d(a[:, 0], b[:, 0], bins=10)
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_draws_of_one_sample_are_independent():
    u = _uniforms(np.arange(20_000))
    off_diagonal = np.corrcoef(u.T) - np.eye(8)
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(20_000)


def test_all_64_bits_of_ids_and_seeds_count():
    base = _uniforms([5])
    for changed in (_uniforms([5 + 2**40]), _uniforms([-5]), _uniforms([5], seed=2**40), _uniforms([5], epoch=2**40)):
        assert (base != changed).all()


def test_bits_are_the_same_compiled_and_eager():
    ids = np.arange(100) * 977 - 50
    compiled = tf.function(lambda ids: rng.uniform(rng.sample_keys(ids, epoch=3, seed=-9), 5), jit_compile=True)
    eager = _uniforms(ids, epoch=3, seed=-9, count=5)
    np.testing.assert_array_equal(compiled(tf.constant(ids, tf.int64)).numpy(), eager)


def test_normals_have_the_normal_distribution():
    u = tf.constant(_uniforms(np.arange(20_000), count=2))
    assert scipy.stats.kstest(rng.normal(u[:, 0], u[:, 1]).numpy(), "norm").pvalue > 1e-4


def test_index_covers_every_choice_equally():
    drawn = rng.index(tf.constant(_uniforms(np.arange(20_000), count=1)[:, 0]), 14).numpy()
    assert scipy.stats.chisquare(np.bincount(drawn, minlength=14)).pvalue > 1e-4
