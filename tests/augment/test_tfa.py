"""TensorFlow Addons as a second oracle, op by op, given the draws that ours made. Images are cells and hard ones.

Each test says where TFA's convention differs and how far apart the two may be. Two differences concern every warp:

- The frame. TFA blends the fill into the last pixel, over the whole pixel beyond it; here, as in Pillow, the last pixel
  reaches half a pixel outwards and then the fill begins. So pixels whose source lies within one pixel of the frame are
  left out where the fill is constant; filled by edge or reflection, all are compared.
- Rounding. TFA returns float levels from float images, and ours are those, rounded: half a level, and what float32
  loses of a coordinate.
"""

import importlib.util
import math
import sys
import warnings

import cells
import numpy as np
import pytest
import source_maps
import tensorflow as tf

from bloodcell.augment import REGISTRY, pixels, rng

if importlib.util.find_spec("tensorflow_addons") is None:
    pytest.skip("TensorFlow Addons has no wheels for Python 3.12 and later" if sys.version_info >= (3, 12) else
                "TensorFlow Addons is missing: pip install -e '.[addons]'", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that its development has ended, and that it knows no TensorFlow 2.21
    import tensorflow_addons as tfa
tfa.options.disable_custom_kernel()  # built for TensorFlow 2.15; the same formulas in Python serve

COUNT = 16
SIZE = (96, 96)
SEEDS = tf.range(COUNT, dtype=tf.int64) * 7919 + 5
VALUE = 77
ROUNDING = 0.505  # grey levels; half a level, and float32's error in a coordinate times the steepest edge


@pytest.fixture(scope="module")
def images():
    return np.concatenate([cells.cells(COUNT // 2), cells.hard(COUNT // 2)])


def _draws(name, level):
    """Returns named draws, each [B], of one level for all images."""
    op = REGISTRY[name]
    strength = op.strength(tf.fill([COUNT], np.float32(level)))
    return op.sample(strength, rng.uniform(SEEDS, max(op.uniforms, 1)), op.defaults())


def _ours(name, images, draws, **options):
    """Applies given draws: float32 [B, H, W, 3]."""
    op = REGISTRY[name]
    packed = op.apply(pixels.pack(tf.constant(images)), tf.fill([COUNT], True), draws, {**op.defaults(), **options})
    return pixels.unpack(packed, tf.float32).numpy()


def _inner(name, draws):
    """Returns bool [B, H, W]: pixels whose source does not lie within one pixel of the frame."""
    of_images = [{key: value.numpy()[index] for key, value in draws.items()} for index in range(COUNT)]
    x, y, _ = source_maps.sources(name, of_images, SIZE)
    return ~source_maps.near_frame(x, y, SIZE, reach=1)


# Of one image at a time; one graph for all of them.
_adjusted = tf.function(tfa.image.adjust_hsv_in_yiq, autograph=False)

# Our names of the fills, and TFA's.
FILLS = {"constant": "constant", "edge": "nearest", "reflect": "reflect"}


@pytest.mark.parametrize("level", [0.1, 0.9])
@pytest.mark.parametrize("fill", FILLS)
def test_rotate(fill, level, images):
    """Both turn counter-clockwise about the centre of the pixels' centres; TFA by radians, ours by degrees."""
    draws = _draws("rotate", level)
    ours = _ours("rotate", images, draws, fill=fill, value=VALUE)
    expected = tfa.image.rotate(tf.constant(images, tf.float32), draws["degrees"] * (math.pi / 180), "bilinear",
                                FILLS[fill], fill_value=VALUE).numpy()
    compared = _inner("rotate", draws) if fill == "constant" else np.full((COUNT, *SIZE), True)
    assert compared.mean() > 0.9
    assert np.abs(ours - expected)[compared].max() <= ROUNDING + 0.02


@pytest.mark.parametrize("level", [0.1, 0.9])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", ["translate", "translate_x", "translate_y"])
def test_translate(name, fill, level, images):
    """TFA moves the image by pixels; ours moves where it looks, by a fraction of the side: the other direction."""
    draws = _draws(name, level)
    ours = _ours(name, images, draws, fill=fill, value=VALUE)
    moves = -tf.stack([draws["x"] * SIZE[1], draws["y"] * SIZE[0]], axis=1)
    expected = tfa.image.translate(tf.constant(images, tf.float32), moves, "bilinear", FILLS[fill],
                                   fill_value=float(VALUE)).numpy()
    compared = _inner(name, draws) if fill == "constant" else np.full((COUNT, *SIZE), True)
    assert compared.mean() > 0.9
    assert np.abs(ours - expected)[compared].max() <= ROUNDING


@pytest.mark.parametrize("level", [0.1, 0.9])
@pytest.mark.parametrize("name", ["shear_x", "shear_y"])
def test_shear_equals_tfas_shear_about_the_centre(name, level, images):
    """TFA slants about the first pixel, ours about the centre; TFA takes the nearest pixel.

    Ours is TFA's, moved by tangent x (side - 1) / 2 pixels. Tangents of which that is a whole number are looked at, on
    a canvas that nothing leaves. No source is then halfway between pixels, and the results are equal.
    """
    axis = name[-1]
    half = (SIZE[0] - 1) / 2
    moves = tf.round(_draws(name, level)[axis] * half)
    draws = {"x": tf.zeros(COUNT), "y": tf.zeros(COUNT), axis: moves / half}
    ours = _ours(name, images, draws, interpolation="nearest", value=VALUE)
    shear = {"x": tfa.image.shear_x, "y": tfa.image.shear_y}[axis]
    margin = 100
    wider = [(0, 0), (0, 0), (margin, margin), (0, 0)] if axis == "x" else [(0, 0), (margin, margin), (0, 0), (0, 0)]
    wide = np.pad(images, wider, constant_values=VALUE)
    for mine, image, tangent, move in zip(ours, wide, draws[axis].numpy(), moves.numpy().astype(int), strict=True):
        slanted = shear(tf.constant(image, tf.float32), tangent, tf.constant([VALUE] * 3, tf.float32)).numpy()
        start = margin - move
        seen = slanted[:, start:start + 96] if axis == "x" else slanted[start:start + 96]
        np.testing.assert_array_equal(mine, seen)


@pytest.mark.parametrize("level", [0.1, 0.9])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", ["shear", "shear_x", "shear_y"])
def test_shear_is_tfas_transform_bilinearly(name, fill, level, images):
    """TFA's shears take the nearest pixel only; the transform under them interpolates, given the map."""
    draws = _draws(name, level)
    ours = _ours(name, images, draws, fill=fill, value=VALUE)
    x, y = draws["x"].numpy(), draws["y"].numpy()
    zero, one, half = np.zeros(COUNT), np.ones(COUNT), (SIZE[0] - 1) / 2
    flat = np.stack([one, x, -x * half, y, one, -y * half, zero, zero], axis=1).astype(np.float32)
    expected = tfa.image.transform(tf.constant(images, tf.float32), flat, "bilinear", FILLS[fill],
                                   fill_value=VALUE).numpy()
    compared = _inner(name, draws) if fill == "constant" else np.full((COUNT, *SIZE), True)
    assert compared.mean() > 0.9
    assert np.abs(ours - expected)[compared].max() <= ROUNDING


def test_equalize_is_equal(images):
    """No difference: both are Pillow's, per channel."""
    np.testing.assert_array_equal(_ours("equalize", images, {}), tfa.image.equalize(tf.constant(images)).numpy())


@pytest.mark.parametrize("level", [0.1, 0.5, 0.95])
def test_sharpness(level, images):
    """TFA rounds the blend and ours truncates it, as Pillow does; TFA takes one factor for all images."""
    draws = _draws("sharpness", level)
    ours = _ours("sharpness", images, draws)
    for factor in np.unique(draws["factor"].numpy()):
        of_factor = draws["factor"].numpy() == factor
        expected = tfa.image.sharpness(tf.constant(images[of_factor], tf.float32), tf.constant(factor)).numpy()
        assert np.abs(ours[of_factor] - expected).max() <= 1


@pytest.mark.parametrize("level", [0.125, 0.5, 0.9375])
def test_cutout_is_equal(level, images):
    """No difference: TFA's mask has even sides and, as ours, ends where the image ends; ours takes any side."""
    draws = _draws("cutout", level)
    side = round(level * SIZE[0])
    assert side % 2 == 0
    ours = _ours("cutout", images, draws, value=VALUE)
    centres = tf.cast(tf.stack([draws["centre_y"] * SIZE[0], draws["centre_x"] * SIZE[1]], axis=1), tf.int32)
    expected = tfa.image.cutout(tf.constant(images), (side, side), centres, VALUE).numpy()
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_hue(level, images):
    """TFA turns by radians and leaves levels outside 0..255 where ours clips; its inverse matrix has eight digits."""
    draws = _draws("hue", level)
    ours = _ours("hue", images, draws)
    for image, mine, turn in zip(images, ours, draws["turn"].numpy(), strict=True):
        expected = _adjusted(tf.constant(image, tf.float32), tf.constant(2 * math.pi * turn, tf.float32)).numpy()
        assert np.abs(mine - np.clip(expected, 0, 255)).max() <= ROUNDING
