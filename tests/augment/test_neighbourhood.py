"""Blurs, streaks and mosaics beyond the laws: any size of image, what they keep, and the kernels themselves."""

import fractions
import itertools
import math
from typing import Any

import cells
import numpy as np
import oracles
import pytest
import tensorflow as tf

from bloodcell.augment import REGISTRY, entry, parse, pixels
from bloodcell.augment.primitives.blur import RADIUS
from bloodcell.augment.primitives.streak import Streak

SIZES = [(64, 80), (95, 33), (1, 1), (2, 5), (1, 7), (13, 3)]
LARGE = [(257, 300), (9, 310), (289, 3), (1, 129), (129, 128), (112, 110), (113, 5)]
DRAWS = {
    "blur": [{"sigma": 0.05}, {"sigma": 0.8}, {"sigma": 3.0}],
    "defocus": [{"radius": 0.6}, {"radius": 3.3}, {"radius": 8.0}],
    "motion_blur": [{"length": 0.4, "degrees": 90.0}, {"length": 7.0, "degrees": -20.0},
                    {"length": 13.3, "degrees": 100.0}, {"length": 24.0, "degrees": 45.0},
                    {"length": 24.0, "degrees": 180.0}],
    "pixelate": [{"scale": 0.9}, {"scale": 0.41}, {"scale": 0.1}],
}
CASES = [(name, draws) for name, several in DRAWS.items() for draws in several]


def _apply(name, images, draws):
    """Applies one op with the same draws to all of uint8 [B, H, W, 3]; returns int [B, H, W, 3]."""
    op, count = REGISTRY[name], len(images)
    each = {key: tf.fill([count], np.float32(value)) for key, value in draws.items()}
    packed = op.apply(pixels.pack(tf.constant(images)), tf.fill([count], True), each, op.defaults())
    return pixels.unpack(packed, tf.int32).numpy()


def _noise(size, count=2):
    return np.random.default_rng(3).integers(0, 256, (count, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [*SIZES, *LARGE], ids=str)
@pytest.mark.parametrize(("name", "draws"), [case for case in CASES if case[0] != "pixelate"], ids=str)
def test_every_size_equals_the_oracle(name, draws, size):
    """Also those smaller than the kernel, where the mirror image is mirrored again, and those for the FFT."""
    images = _noise(size)
    expected = np.stack([oracles.ORACLES[name](image, draws, REGISTRY[name].defaults()) for image in images])
    assert np.abs(_apply(name, images, draws) - expected).max() <= 0.51


@pytest.mark.parametrize("size", [*SIZES, (66, 96)], ids=str)
@pytest.mark.parametrize("scale", [0.95, 0.9, 0.667, 0.41, 0.1])
def test_pixelate_is_the_mean_of_the_centres_in_a_cell(scale, size):
    """At any size, in exact fractions; a centre between two cells counts in the first and shows the second.

    Pillow (the oracle) leaves such a centre to the rounding of its own sums where a cell's side is no binary fraction.
    """
    image = _noise(size, 1)
    expected = image.astype(np.float64)
    for axis, side in ((1, size[0]), (2, size[1])):
        count = max(round(float(np.float32(scale) * np.float32(side))), 1)
        place = [fractions.Fraction((2 * pixel + 1) * count, 2 * side) for pixel in range(side)]
        counted = np.array([math.ceil(each) - 1 for each in place])
        lines = np.moveaxis(expected, axis, 0)
        lines = np.stack([lines[counted == math.floor(each)].mean(axis=0) for each in place])
        expected = np.moveaxis(lines, 0, axis)
    assert np.abs(_apply("pixelate", image, {"scale": scale}) - expected).max() <= 1


@pytest.mark.parametrize("side", [8224, 8225, 16384])
@pytest.mark.parametrize("colour", [(255, 0, 255), (0, 255, 0), (255, 255, 255), (1, 254, 0)])
def test_pixelate_adds_long_sides_without_a_channel_running_into_another(colour, side):
    image = np.tile(np.array(colour, np.uint8), (1, side, 2, 1))
    np.testing.assert_array_equal(_apply("pixelate", image, {"scale": 1e-5}), image)
    np.testing.assert_array_equal(_apply("pixelate", image.transpose(0, 2, 1, 3), {"scale": 1e-5}),
                                  image.transpose(0, 2, 1, 3))


@pytest.mark.parametrize(("name", "draws"), CASES, ids=str)
def test_constant_images_stay(name, draws):
    for level in (0, 1, 77, 254, 255):
        image = np.full((1, 40, 56, 3), level, np.uint8)
        np.testing.assert_array_equal(_apply(name, image, draws), image)


def _kernels(name, draws):
    """The whole kernels [B, 25, 25] of an op's draws, as its primitive documents them."""
    op = REGISTRY[name]
    each = {key: tf.constant(value, tf.float32) for key, value in draws.items()}
    lowered: Any = op.lower(each, op.defaults(), (49, 49), entry.measure(tf.zeros([1, 49, 49], tf.int32), {}))
    offset = np.arange(-RADIUS, RADIUS + 1)
    down, across = np.abs(offset)[:, None], np.abs(offset)[None, :]
    if not isinstance(lowered, Streak):
        return lowered.quadrant.numpy()[:, down, across]
    signs = np.sign(offset)[:, None] * np.sign(offset)[None, :]
    return lowered.even.numpy()[:, down, across] + signs * lowered.odd.numpy()[:, down, across]


@pytest.mark.parametrize(("name", "draws"), [case for case in CASES if case[0] != "pixelate"], ids=str)
def test_a_single_bright_pixel_shows_the_kernel(name, draws):
    kernel, = _kernels(name, {key: [value] for key, value in draws.items()})
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert kernel.min() >= -1e-7
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-7)
    image = np.zeros((1, 49, 49, 3), np.uint8)
    image[0, 24, 24] = 255
    shown = _apply(name, image, draws)[0]
    assert np.abs(np.pad(255 * kernel, 12)[..., None] - shown).max() <= 0.51


def test_streaks_have_the_length_and_the_angle_asked_for():
    """Of a short line at 30 degrees: up on the right, as `rotate` turns; half its length to either side."""
    image = np.zeros((1, 49, 49, 3), np.uint8)
    image[0, 24, 24] = 255
    shown = _apply("motion_blur", image, {"length": 20.0, "degrees": 30.0})[0, :, :, 0]
    y, x = np.nonzero(shown)
    assert (np.sign(24 - y) * np.sign(x - 24) >= 0).all()
    assert x.max() - 24 == 24 - x.min() == 9  # 10 cos 30 degrees is 8.7, and the last step counts in part
    up, right, weight = 24 - y, x - 24, shown[y, x]
    angle = np.arctan2(2 * (weight * up * right).sum(), (weight * (right**2 - up**2)).sum()) / 2
    assert np.degrees(angle) == pytest.approx(30, abs=1)


def test_streaks_change_steadily_with_length_and_angle():
    for length, degrees in ((np.linspace(0, 24, 2401), np.full(2401, 33.0)),
                            (np.full(3601, 24.0), np.linspace(-180, 180, 3601))):
        steps = np.diff(_kernels("motion_blur", {"length": length, "degrees": degrees}), axis=0)
        assert np.abs(steps).max() < 0.02


@pytest.mark.parametrize(("name", "key", "values"), [
    ("blur", "sigma", np.linspace(0.2, 3, 8)), ("defocus", "radius", np.linspace(0.6, 8, 8)),
    ("motion_blur", "length", np.linspace(0.2, 24, 8)), ("pixelate", "scale", 1 / np.linspace(1.1, 10, 5))])
def test_more_of_it_leaves_less_detail(name, key, values):
    images = cells.cells(6)
    rest = {"degrees": 30.0} if name == "motion_blur" else {}
    detail = [_apply(name, images, {key: value, **rest}).var(axis=(1, 2)).sum() for value in values]
    assert all(later < earlier for earlier, later in itertools.pairwise(detail)), detail


def test_pixelate_shows_whole_cells():
    """24 cells a side on 96 pixels: blocks of four by four, each in its mean."""
    images = cells.cells(3)
    shown = _apply("pixelate", images, {"scale": 0.25})
    blocks = shown.reshape(3, 24, 4, 24, 4, 3)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    means = images.reshape(3, 24, 4, 24, 4, 3).mean(axis=(2, 4))
    assert np.abs(blocks[:, :, 0, :, 0] - means).max() <= 1


def test_motion_blur_keeps_to_its_greatest_angle():
    ids = tf.range(500, dtype=tf.int64)
    for angle in (0.0, 25.0, 180.0):
        draws = parse(f"motion_blur(10, angle={angle})").draw(ids, epoch=0, seed=0)["1.motion_blur"]
        assert np.abs(draws["degrees"]).max() <= angle
        assert np.abs(np.mean(draws["degrees"])) <= 0.1 * angle
        assert np.ptp(draws["degrees"]) >= 1.9 * angle
        assert draws["length"].numpy().min() >= 0
        assert 9 < draws["length"].numpy().max() <= 10


def test_alternatives_of_one_primitive_share_a_slot():
    assert sorted(parse("oneof(blur, defocus, pixelate)").primitives()) == ["blur", "mosaic"]
