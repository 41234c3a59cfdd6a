"""Each view of --tta is what NumPy makes of the pixels, each comes once, and weak ones are drawn by id."""

import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment
from bloodcell.errors import InputError
from bloodcell.evaluate import tta

DIHEDRAL = [lambda x, k=k, flipped=flipped: np.rot90(x[:, ::-1] if flipped else x, k)
            for flipped in (False, True) for k in range(4)]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.float32)


def applied(text: str, pixels: np.ndarray, *, jit: bool = False) -> list[np.ndarray]:
    ids = tf.constant(np.arange(len(pixels)) + 5, tf.int64)
    return [view.apply(tf.constant(pixels), ids).numpy() for view in tta.parse(text, jit=jit)]


def keys(views: list[np.ndarray]) -> set[bytes]:
    return {np.ascontiguousarray(view, np.float32).tobytes() for view in views}


def by_numpy(pixels: np.ndarray, which: list) -> set[bytes]:
    return keys([np.stack([each(image) for image in pixels]) for each in which])


@pytest.mark.parametrize(("text", "expected"), [
    ("", DIHEDRAL[:1]),
    ("flips", [DIHEDRAL[0], DIHEDRAL[2], DIHEDRAL[4], DIHEDRAL[6]]),
    ("rotations", DIHEDRAL[:4]),
    ("dihedral", DIHEDRAL),
    ("flips | rotations", [*DIHEDRAL[:4], DIHEDRAL[4], DIHEDRAL[6]]),
    ("rotations | dihedral | flips", DIHEDRAL),
])
def test_views_are_the_turned_and_mirrored_images_each_once_the_image_itself_first(pixels, text, expected):
    views = applied(text, pixels)
    np.testing.assert_array_equal(views[0], pixels)
    assert len(views) == len(expected)
    assert keys(views) == by_numpy(pixels, expected)


def test_quarter_turns_bear_their_names(pixels):
    turns = {view.name: view.apply(tf.constant(pixels), tf.constant([0, 1, 2], tf.int64)).numpy()
             for view in tta.parse("rotations")}
    for quarter, name in ((1, "turned by 90 degrees"), (2, "turned by 180 degrees"), (3, "turned by 270 degrees")):
        np.testing.assert_array_equal(turns[name], np.rot90(pixels, quarter, axes=(1, 2)))


def test_weak_views_are_versions_of_the_policy_by_id(pixels):
    text = "weak(3, policy='invert@0.5 | flip')"
    plain, compiled = (applied(text, pixels, jit=jit) for jit in (False, True))
    policy = augment.parse("invert@0.5 | flip")
    version = tf.function(lambda epoch: policy(tf.constant(pixels, tf.uint8), np.arange(3) + 5, epoch=epoch, seed=0),
                          autograph=False)
    for views in (plain, compiled):
        assert len(views) == 4
        for number in (1, 2, 3):
            np.testing.assert_allclose(views[number], version(tf.constant(number, tf.int64)), atol=1e-3)
        assert len(keys(views)) > 2
    one = [view.apply(tf.constant(pixels[1:2]), tf.constant([6], tf.int64)).numpy() for view in tta.parse(text)]
    for views in (plain, compiled):
        np.testing.assert_allclose(np.concatenate(one[1:]), np.stack([view[1] for view in views[1:]]), atol=1e-3)


@pytest.mark.parametrize("text", ["flip", "flips(2)", "weak(0)", "weak(65)", "weak(64) | flips", "flips@0.5",
                                  "weak(policy='x')", "weak(2, policy=3)", "flips |", "3"])
def test_anything_else_is_one_line(text):
    with pytest.raises(InputError, match="--tta") as caught:
        tta.parse(text)
    assert "\n" not in str(caught.value)
