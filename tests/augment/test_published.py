"""The published policies, composed from Pillow's ops given the same draws, and how often they draw what."""

import functools

import cells
import numpy as np
import oracles
import pytest
import scipy.stats
import tensorflow as tf

from bloodcell import augment

EDGES = 2e-3  # pixels whose source lies on the image's edge within rounding (see test_laws)


def _ids(count):
    return tf.range(count, dtype=tf.int64)


@pytest.fixture(scope="module")
def images():
    return np.concatenate([cells.cells(30), cells.hard(10)])


def _by_pillow(before, draws, place, index):
    """Applies the op of `draws` that image `index` drew at `place` (leading axes) to the image `before`."""
    for path, each in draws.items():
        if "/" in path and each["on"].numpy()[(*place, index)]:
            of_image = {key: value.numpy()[(*place, index)] for key, value in each.items()}
            name = path.split("/")[-1]
            return oracles.ORACLES[name](before, of_image, augment.REGISTRY[name].defaults())
    return before


def _only(draws, keep):
    """Returns draws of which only those ops are on for which `keep` (bool, leading axes) is."""
    return {path: {**each, "on": each["on"] & keep[..., tf.newaxis]} if "/" in path else each
            for path, each in draws.items()}


def test_randaugment_draws_the_papers_ops_equally_and_magnitudes_about_m():
    policy = augment.parse("randaugment(n=2, m=4, std=0.5)")
    draws = policy.draw(_ids(20_000), epoch=0, seed=0)
    assert len(draws) == 13  # the paper's 14, of which identity draws nothing
    counts = np.array([each["on"].numpy().sum() for each in draws.values()])
    counts = np.append(counts, 40_000 - counts.sum())
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    degrees = np.abs(draws["1.randaugment/rotate"]["degrees"].numpy()).ravel()
    np.testing.assert_allclose([degrees.mean(), degrees.std()], [30 * 0.4, 30 * 0.05], rtol=0.02)
    first, second = draws["1.randaugment/rotate"]["on"].numpy()
    assert scipy.stats.chi2_contingency([[(first & second).sum(), (first & ~second).sum()],
                                         [(~first & second).sum(), (~first & ~second).sum()]]).pvalue > 1e-4


def test_randaugment_equals_pillow_given_the_same_draws(images):
    """Layer by layer: Pillow starts each from our image, so that an error of one level is not stretched by the next."""
    policy, layers = augment.parse("randaugment(2, 7)"), 2
    draws = policy.draw(_ids(40), epoch=5, seed=1)
    ours = images
    for layer in range(layers):
        only = _only(draws, tf.range(layers) == layer)
        before, ours = ours, policy.apply(tf.constant(ours), only, dtype="uint8").numpy()
        for index in range(40):
            expected = _by_pillow(before[index], draws, (layer,), index)
            off = np.abs(ours[index].astype(int) - expected.astype(int))
            assert (off > 1).any(axis=-1).mean() <= EDGES, (layer, index)
    whole = policy.apply(tf.constant(images), draws, dtype="uint8").numpy()
    np.testing.assert_array_equal(whole, ours)


@pytest.mark.parametrize("policy", ["trivialaugment", "randaugment(1, 9)"])
def test_one_layer_equals_pillow_to_the_level_in_the_inner_part(images, policy):
    policy = augment.parse(policy)
    draws = policy.draw(_ids(40), epoch=5, seed=1)
    ours = policy.apply(tf.constant(images), draws, dtype="uint8").numpy().astype(int)
    for index in range(40):
        off = np.abs(ours[index] - _by_pillow(images[index], draws, (0,), index).astype(int))
        assert (off > 1).any(axis=-1).mean() <= EDGES, index


def test_trivialaugment_draws_ops_and_magnitudes_equally_over_the_papers_ranges():
    policy = augment.parse("trivialaugment")
    draws = policy.draw(_ids(20_000), epoch=0, seed=0)
    counts = np.array([each["on"].numpy().sum() for each in draws.values()])
    assert len(counts) == 13
    assert scipy.stats.chisquare(np.append(counts, 20_000 - counts.sum())).pvalue > 1e-4
    degrees = draws["1.trivialaugment/rotate"]["degrees"].numpy()[0]
    levels, counts = np.unique(np.round(np.abs(degrees) / 135 * 30, 3), return_counts=True)
    np.testing.assert_array_equal(levels, np.arange(31))
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    full = {name: each for name, each in ((path.split("/")[1], each) for path, each in draws.items())}
    assert np.abs(full["shear_x"]["x"]).max() == pytest.approx(0.99)
    assert np.abs(full["translate_y"]["y"]).max() == pytest.approx(32 / 96)
    assert full["color"]["factor"].numpy().min() == pytest.approx(0.01, abs=1e-6)
    assert full["brightness"]["factor"].numpy().max() == pytest.approx(1.99)
    assert set(full["posterize"]["bits"].numpy().ravel()) == set(range(2, 9))
    assert full["solarize"]["threshold"].numpy().min() == 0


AUGMIX = "1.augmix"


@pytest.mark.parametrize(("width", "depth"), [(3, -1), (2, 2), (1, 1)])
def test_augmix_equals_the_papers_procedure_composed_from_pillow(images, width, depth):
    """Layer by layer, each from our own image (so that an error is not stretched by the next), then the blend.

    A chain shows itself where its weight and the share of the blend are 1; the blend has all of them at once.
    """
    policy = augment.parse(f"augmix(severity=6, width={width}, depth={depth})")
    draws = policy.draw(_ids(40), epoch=2, seed=4)
    apply = functools.partial(policy.apply, tf.constant(images))
    if width > 1:  # traced sooner than run ten times
        apply = tf.function(apply, autograph=False)
    depths = draws[AUGMIX]["depth"].numpy()
    layers = 3 if depth < 0 else depth
    chains = np.empty((width, *images.shape))
    for chain in range(width):
        alone = {**draws[AUGMIX], "share": tf.ones([40]), "weights": tf.one_hot(tf.fill([40], chain), width)}
        before = images
        for layer in range(layers):
            until = (tf.range(layers) <= layer)[:, tf.newaxis] & (tf.range(width) == chain)
            ours = apply({**_only(draws, until), AUGMIX: alone}).numpy().astype(np.uint8)
            for index in range(40):
                expected = before[index]
                if layer < depths[index, chain]:
                    expected = _by_pillow(before[index], draws, (layer, chain), index)
                off = np.abs(ours[index].astype(int) - expected.astype(int))
                assert (off > 1).any(axis=-1).mean() <= EDGES, (chain, layer, index)
            before = ours
        chains[chain] = before
    weights, share = draws[AUGMIX]["weights"].numpy(), draws[AUGMIX]["share"].numpy()[:, None, None, None]
    mixed = (1 - share) * images + share * np.einsum("bw,wbxyc->bxyc", weights, chains)
    assert np.abs(apply(draws).numpy() - mixed).max() <= 0.51


def test_augmix_draws_what_the_paper_draws():
    policy = augment.parse("augmix(severity=3, alpha=0.5)")
    draws = policy.draw(_ids(8000), epoch=0, seed=0)
    blend = {name: value.numpy() for name, value in draws[AUGMIX].items()}
    np.testing.assert_allclose(blend["weights"].sum(axis=1), 1, atol=1e-6)
    for chain in range(3):
        assert scipy.stats.kstest(blend["weights"][:, chain], scipy.stats.beta(0.5, 1.0).cdf).pvalue > 1e-4
        assert scipy.stats.chisquare(np.bincount(blend["depth"][:, chain])[1:]).pvalue > 1e-4
    assert scipy.stats.kstest(blend["share"], scipy.stats.beta(0.5, 0.5).cdf).pvalue > 1e-4
    on = np.stack([each["on"].numpy() for path, each in draws.items() if "/" in path])  # [op, layer, chain, image]
    assert len(on) == 9
    np.testing.assert_array_equal(on.sum(axis=0), np.arange(3)[:, None, None] < blend["depth"].T)
    assert scipy.stats.chisquare(on.sum(axis=(1, 2, 3))).pvalue > 1e-4
    degrees = np.abs(draws["1.augmix/rotate"]["degrees"].numpy())
    assert set(degrees.ravel()) == set(range(9))  # whole degrees below 30 * 3 / 10
    assert set(draws["1.augmix/posterize"]["bits"].numpy().ravel()) == {3, 4}
    shear = np.abs(draws["1.augmix/shear_x"]["x"].numpy()).ravel() / 0.03
    assert scipy.stats.kstest(shear, scipy.stats.uniform(0.1, 2.9).cdf).pvalue > 1e-4


def test_augmix_leaves_samples_alone_that_did_not_draw_it(images):
    policy = augment.parse("augmix(width=1)@0.5")
    draws = policy.draw(_ids(40), epoch=0, seed=0)
    on = draws[AUGMIX]["on"].numpy()
    assert 10 < on.sum() < 30
    for path, each in draws.items():
        assert not each["on"].numpy()[..., ~on].any(), path
    result = policy.apply(tf.constant(images), draws).numpy()
    np.testing.assert_array_equal(result[~on], images[~on])
    always = augment.parse("augmix(width=1)@0.999999")  # the same uniforms, so the same augmentation
    np.testing.assert_array_equal(result[on], always(images, _ids(40), epoch=0, seed=0).numpy()[on])
