"""Noise, JPEG, elastic displacement and stains beyond the laws: statistics, odd sizes, and what the papers promise."""

import cells
import numpy as np
import oracles
import pytest
import scipy.stats
import skimage.color
import tensorflow as tf

from bloodcell.augment import REGISTRY, entry, parse, pixels, rng
from bloodcell.augment.primitives import elastic, jpeg, noise, stain

SIZES = [(64, 80), (1, 1), (17, 9), (1, 40), (16, 4), (33, 2)]
PIXELS = 96 * 96
BOUND = 5.0  # standard errors: one in two million by chance


@pytest.fixture(scope="module")
def images():
    return np.concatenate([cells.cells(5), cells.hard(5)])


def _keys(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**24, (count, 2), dtype=np.int32)


def _run(images, lowered, style=None):
    active = tf.fill([len(images)], True)
    return pixels.unpack(entry.run(pixels.pack(tf.constant(images)), active, lowered, style), tf.int32).numpy()


def _added(keys, std, level=128, side=96):
    grey = np.full((len(keys), side, side, 3), level, np.uint8)
    return _run(grey, noise.Noise(tf.constant(keys), tf.fill([len(keys)], float(std)))) - level


# ---------------------------------------------------------------------------------------------------------------------
# Noise
# ---------------------------------------------------------------------------------------------------------------------


def test_normals_equal_box_and_mullers_in_double_precision():
    words = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint32)
    words[:4] = (0, 0xFFFFFFFF, 0x0000FFFF, 0xFFFF0000)
    radius = np.sqrt(-2 * np.log(((words >> 16) + 0.5) / 2**16))
    angle = ((words & 0x3FFF) + 0.5) / 2**14 * np.pi / 2
    x, y = (part.numpy() for part in rng.normals(tf.constant(words)))
    np.testing.assert_allclose(np.abs(x), radius * np.cos(angle), atol=4e-6)
    np.testing.assert_allclose(np.abs(y), radius * np.sin(angle), atol=4e-6)
    for quadrant in range(4):
        chosen = (words >> 14 & 3) == quadrant
        assert (x[chosen] < 0).all() == (quadrant & 1 > 0)
        assert (y[chosen] < 0).all() == (quadrant & 2 > 0)


def test_a_field_is_the_hash_of_key_and_pixel():
    keys = _keys(3)
    first, second = (word.numpy() for word in rng.field(tf.constant(keys), (5, 7)))
    for index, key in enumerate(keys):
        pixel = np.arange(35).reshape(5, 7)
        expected = oracles.threefry(key, (pixel, 0 * pixel))
        np.testing.assert_array_equal(first[index], expected[0])
        np.testing.assert_array_equal(second[index], expected[1])


def test_normals_of_a_field_are_normal_and_independent():
    first, second = rng.field(tf.constant(_keys(1)), (200, 250))
    drawn = np.stack([part.numpy().ravel() for word in (first, second) for part in rng.normals(word)])
    for each in drawn:
        assert scipy.stats.kstest(each, "norm").pvalue > 1e-4
        assert abs(scipy.stats.kurtosis(each)) < BOUND * np.sqrt(24 / each.size)
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < BOUND / np.sqrt(50_000)
    assert np.abs(np.corrcoef(np.square(drawn)) - np.eye(4)).max() < BOUND / np.sqrt(50_000)


@pytest.mark.parametrize("std", [1.0, 16.0, 25.0])
def test_noise_has_the_mean_and_deviation_that_were_asked_for(std):
    added = _added(_keys(16), std)  # 25: five deviations to either end, so that nothing is clipped
    count = added.size
    variance = std**2 + 1 / 12  # rounding adds a uniform
    assert abs(added.mean()) < BOUND * np.sqrt(variance / count)
    assert abs(added.var() / variance - 1) < BOUND * np.sqrt(2 / count)
    for channel in range(3):
        assert abs(added[..., channel].std() - np.sqrt(variance)) < BOUND * np.sqrt(variance / (2 * count / 3))


def test_noise_of_pixels_channels_and_images_is_independent():
    added = _added(_keys(8), 25.0).astype(float)
    bound = BOUND * 25**2 / np.sqrt(added.size / 3)
    for shift in ((0, 1), (1, 0), (1, 1), (0, 2), (48, 0)):  # the neighbours, and half an image away
        assert abs((added * np.roll(added, shift, axis=(1, 2))).mean()) < bound, shift
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs((added[..., one] * added[..., other]).mean()) < bound
    correlation = np.corrcoef(added.reshape(8, -1)) - np.eye(8)
    assert np.abs(correlation).max() < BOUND / np.sqrt(3 * PIXELS)


def test_noise_differs_between_epochs_samples_and_places_of_a_policy_and_is_replayed_from_its_draws():
    grey = tf.constant(np.full((2, 96, 96, 3), 128, np.uint8))
    policy = parse("noise(20)")
    ids = tf.constant([4, 5], tf.int64)
    fields = [policy(grey, ids, epoch=epoch, seed=0).numpy() - 128 for epoch in (0, 1)]
    drawn = np.stack([each.ravel() for field in fields for each in field])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < BOUND / np.sqrt(3 * PIXELS)
    replayed = policy.apply(grey, {path: {name: tf.constant(value.numpy()) for name, value in each.items()}
                                   for path, each in policy.draw(ids, epoch=1, seed=0).items()})
    np.testing.assert_array_equal(replayed.numpy() - 128, fields[1])

    both = parse("noise(20) | noise(20)").draw(ids, epoch=0, seed=0)
    assert (both["1.noise"]["key"].numpy() != both["2.noise"]["key"].numpy()).any()


# ---------------------------------------------------------------------------------------------------------------------
# JPEG
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), *SIZES, (3, 5), (47, 8)])
def test_jpeg_is_pillows_round_trip_to_the_grey_level(size, images):
    rows = np.arange(110 if size == (96, 96) else 16)  # every image at every quality, or once all of either
    qualities = np.array([5, 10, 24, 25, 49, 50, 51, 75, 90, 95, 99], np.int32)[rows % 11]
    cut = images[rows % 10, :size[0], :size[1]]
    expected = [oracles.jpeg(image, {"quality": quality}, {}) for image, quality in zip(cut, qualities, strict=True)]
    np.testing.assert_array_equal(_run(cut, jpeg.Jpeg(tf.constant(qualities))), expected)


def test_jpeg_takes_a_quality_for_each_image_and_leaves_those_at_100_alone(images):
    quality = np.array([100, 5, 30, 100, 60, 75, 80, 90, 95, 98], np.int32)
    restored = _run(images, jpeg.Jpeg(tf.constant(quality)))
    for image, ours, each in zip(images, restored, quality, strict=True):
        np.testing.assert_array_equal(ours, oracles.jpeg(image, {"quality": each}, {}))
    np.testing.assert_array_equal(restored[quality == 100], images[quality == 100])


def test_jpegs_transform_is_the_cosine_transform():
    k, n = np.mgrid[:8, :8]
    cosine = np.cos((2 * n + 1) * k * np.pi / 16) * np.where(k == 0, np.sqrt(0.5), 1) / 2
    np.testing.assert_allclose(jpeg.MATRIX / 2**13 / np.sqrt(8), cosine, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Elastic
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sigma"), [((96, 96), 4.0), ((64, 80), 16.0), ((17, 9), 1.0)])
def test_alpha_is_the_root_mean_square_of_the_displacement(size, sigma):
    drawn = elastic.Elastic(tf.constant(_keys(600)), tf.fill([600], 3.0))
    for axis in elastic.field(drawn, size, sigma):
        power = np.square(axis.numpy()).mean(axis=(1, 2))  # of each image; images are independent
        assert abs(power.mean() - 9) < BOUND * power.std() / np.sqrt(600)


@pytest.mark.parametrize("size", [(96, 96), *SIZES, (300, 130)])  # the last is smoothed window by window
@pytest.mark.parametrize("sigma", [1.0, 4.0, 16.0])
def test_the_field_equals_scipys_filter_on_the_same_noise(size, sigma):
    keys = _keys(2)
    ours = elastic.field(elastic.Elastic(tf.constant(keys), tf.constant([2.0, 8.0])), size, sigma)
    for index, alpha in enumerate((2.0, 8.0)):
        dy, dx = oracles.elastic_field(np.zeros((*size, 3)), {"key": keys[index], "alpha": alpha}, {"sigma": sigma})
        np.testing.assert_allclose(ours[0][index].numpy(), dx, atol=1e-4)
        np.testing.assert_allclose(ours[1][index].numpy(), dy, atol=1e-4)


@pytest.mark.parametrize("fill", ["constant", "edge", "reflect"])
def test_what_comes_from_outside_is_filled_as_scipy_would(fill, images):
    cut, keys = images[:, :40, :50], _keys(10)
    ours = _run(cut, elastic.Elastic(tf.constant(keys), tf.fill([10], 8.0)), elastic.Style(6.0, fill, 200.0))
    expected = [oracles.elastic(image, {"key": key, "alpha": 8.0}, {"sigma": 6.0, "fill": fill, "value": 200.0})
                for image, key in zip(cut, keys, strict=True)]
    off = np.abs(ours - np.asarray(expected)).max(axis=-1)
    assert (off > 1).sum() <= 2  # pixels whose source lies on the image's edge, to the rounding
    assert (ours != cut).any(axis=(1, 2, 3))[:5].all()


def test_sigma_and_fill_reach_the_primitive_through_a_policy(images):
    def shown(options):
        return parse(f"elastic(8{options})")(images, tf.range(10, dtype=tf.int64), epoch=0, seed=0).numpy()

    usual = shown("")
    for options in (", sigma=12", ", fill='reflect'", ", fill='edge'", ", value=0"):
        assert (shown(options) != usual).any(), options


# ---------------------------------------------------------------------------------------------------------------------
# Stain
# ---------------------------------------------------------------------------------------------------------------------


def test_stain_equals_scikit_images_functions_where_no_amount_is_negative():
    """Their unit is log(1e6) of ours; images are made from amounts that stay positive."""
    generator = np.random.default_rng(3)
    unit = -np.log(1e-6)
    amounts = generator.uniform(0.25, 0.9, (6, 48, 48, 3)) / unit
    original = np.round(255 * skimage.color.hed2rgb(amounts)).astype(np.uint8)
    scale, shift = generator.uniform(0.7, 1.3, (6, 3)), generator.uniform(-0.1, 0.1, (6, 3))
    found = skimage.color.rgb2hed(original)
    assert found.min() > 0
    changed = found * scale[:, None, None] + shift[:, None, None] / unit
    assert changed.min() > 0
    expected = 255 * skimage.color.hed2rgb(changed)

    draws = {"scale": tf.constant(scale, tf.float32), "shift": tf.constant(shift, tf.float32)}
    op = REGISTRY["stain"]
    ours = op.apply(pixels.pack(tf.constant(original)), tf.fill([6], True), draws, op.defaults())
    assert np.abs(pixels.unpack(ours, tf.float32).numpy() - expected).max() <= 0.51


def test_scikit_images_clamp_would_change_a_cell_at_level_zero_and_ours_does_not(images):
    cell = images[0]
    clamped = np.round(255 * skimage.color.hed2rgb(skimage.color.rgb2hed(cell)))
    assert np.abs(clamped - cell).max() > 10
    identity = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)[np.newaxis].astype(np.float32)
    np.testing.assert_array_equal(_run(cell[np.newaxis], stain.Stain(tf.constant(identity))), cell[np.newaxis])


def test_stain_draws_every_amount_apart_within_its_range():
    op, count = REGISTRY["stain"], 4000
    u = rng.uniform(tf.range(count, dtype=tf.int64), op.uniforms)
    draws = op.sample(tf.fill([count], 0.5), u, op.defaults())
    drawn = np.concatenate([draws["scale"].numpy() - 1, draws["shift"].numpy() / 0.2], axis=1)
    assert np.abs(drawn).max() <= 0.5
    for column in drawn.T:
        assert scipy.stats.kstest(column, "uniform", (-0.5, 1)).pvalue > 1e-4
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < BOUND / np.sqrt(count)


# ---------------------------------------------------------------------------------------------------------------------
# All four
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noise", "jpeg", "elastic", "stain"])
@pytest.mark.parametrize(("size", "jit"), [((1, 1), False), ((64, 80), False), ((17, 9), True)])
def test_odd_sizes_equal_the_oracle(name, size, jit, images):
    op, cut = REGISTRY[name], images[:, :size[0], :size[1]]
    ids = tf.range(10, dtype=tf.int64)
    strength = op.strength(tf.fill([10], 0.5))
    draws = op.sample(strength, rng.uniform(ids, max(op.uniforms, 1)), op.defaults())

    def apply(packed, draws):
        return op.apply(packed, tf.fill([10], True), draws, op.defaults())

    apply = tf.function(apply, jit_compile=True) if jit else apply
    ours = pixels.unpack(apply(pixels.pack(tf.constant(cut)), draws), tf.float32).numpy()
    expected = [oracles.ORACLES[name](image, {key: value[index].numpy() for key, value in draws.items()}, op.defaults())
                for index, image in enumerate(cut)]
    assert np.abs(ours - np.asarray(expected, np.float64)).max() <= (0 if name == "jpeg" else 1)


def test_a_batch_of_unknown_size_works(images):
    policy, cut = parse("noise | elastic | stain | jpeg"), images[:, :40, :48]
    step = tf.function(lambda images, ids: policy(images, ids, epoch=0, seed=0), autograph=False,
                       input_signature=[tf.TensorSpec([None, 40, 48, 3], tf.uint8), tf.TensorSpec([None], tf.int64)])
    ids = np.arange(10)
    np.testing.assert_array_equal(step(cut[:3], ids[:3]).numpy(), step(cut, ids).numpy()[:3])
