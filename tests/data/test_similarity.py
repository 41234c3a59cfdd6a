"""Copies of one picture are found, and cells that merely look alike are not."""

import io
from typing import Any

import cells
import cv2
import numpy as np
import pytest
import scipy.fft
import scipy.stats
from PIL import Image

from bloodcell.data import similarity
from bloodcell.data.dataset import ImageSet


def make(images) -> Any:
    count = len(images)
    return ImageSet(np.ascontiguousarray(images), np.zeros(count, np.int64), np.arange(count, dtype=np.int64),
                    ("cell",), "made here", ("",) * count)


@pytest.fixture(scope="module")
def real():
    return cells.cells(500)


def photograph(seed=0):
    """A picture that is no cell: smooth random shapes in strong colours, 120x120, to be cropped."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return cv2.resize(coarse, (120, 120), interpolation=cv2.INTER_CUBIC)


def encoded(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer))


def recoloured(image, hue, saturation, gain):
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).astype(np.int64)
    hsv[..., 0] = (hsv[..., 0] + hue) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
    changed = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))
    return np.clip(changed * gain, 0, 255).astype(np.uint8)


def variants(kind, count, *, seed=0):
    """Copies of one photograph: encoded badly, shifted by up to 4 pixels, recoloured, or all of these."""
    rng, large = np.random.default_rng([seed, 1]), photograph(seed)
    copies = []
    for _ in range(count):
        down, right = rng.integers(8, 17, 2) if kind in ("shifted", "all") else (12, 12)
        image = large[down:down + 96, right:right + 96]
        if kind in ("recoloured", "all"):
            image = recoloured(image, int(rng.integers(-15, 16)), rng.uniform(0.7, 1.3), rng.uniform(0.75, 1.0))
        if kind in ("encoded", "all"):
            image = encoded(np.ascontiguousarray(image), int(rng.integers(30, 95)))
        copies.append(image)
    return np.stack(copies)


@pytest.mark.parametrize("kind", ["equal", "encoded", "shifted", "recoloured", "all"])
def test_every_copy_of_an_often_repeated_picture_is_found_and_no_cell_is_called_one(real, kind):
    copies = variants(kind, 40)
    place = np.sort(np.random.default_rng(3).permutation(len(real) + 40)[:40])
    images = np.insert(real, place - np.arange(40), copies, axis=0)
    np.testing.assert_array_equal(images[place], copies)
    found = similarity.find(make(images))
    assert len(found.repeated) == 1
    np.testing.assert_array_equal(found.repeated[0], place)
    groups = found.groups()
    assert len(np.unique(groups[place])) == 1
    assert len(np.unique(np.delete(groups, place))) == len(real)


def test_two_repeated_pictures_are_two(real):
    images = np.concatenate([real[:200], variants("all", 15, seed=1), variants("all", 12, seed=2)])
    found = similarity.find(make(images))
    assert [same.tolist() for same in found.repeated] == [list(range(200, 215)), list(range(215, 227))]


def test_fewer_copies_than_asked_for_are_pairs_and_no_repeated_picture(real):
    images = np.concatenate([real[:100], variants("encoded", 4)])
    few = similarity.find(make(images))
    assert few.repeated == ()
    assert {tuple(pair) for pair in few.pairs.tolist()} == {(a, b) for a in range(100, 104) for b in range(a + 1, 104)}
    enough = similarity.find(make(images), copies=4)
    assert [same.tolist() for same in enough.repeated] == [[100, 101, 102, 103]]
    assert len(enough.pairs) == 0


@pytest.mark.parametrize("change", [
    lambda image: encoded(image, 60),
    lambda image: np.roll(image, (3, -5), (0, 1)),
    lambda image: np.clip(image * 0.8 + 20, 0, 255).astype(np.uint8),
    lambda image: image[..., [0, 2, 1]],
], ids=["encoded", "shifted", "darkened", "channels swapped"])
def test_a_cell_and_its_changed_copy_are_a_pair(real, change):
    chosen = [3, 50, 77, 120, 240, 333]
    images = np.concatenate([real, np.stack([change(real[index]) for index in chosen])])
    found = similarity.find(make(images))
    assert found.pairs.tolist() == [[index, len(real) + at] for at, index in enumerate(chosen)]
    assert (found.similarity >= similarity.NEAR).all()
    assert found.repeated == ()


def test_different_cells_are_no_pair(real):
    found = similarity.find(make(real))
    assert len(found.pairs) == 0
    assert len(np.unique(found.equal)) == len(real)


def test_equal_pixels_are_numbered_in_order_of_appearance(real):
    images = real[[4, 7, 4, 9, 7, 4]]
    assert similarity.equal_pixels(make(images)).tolist() == [0, 1, 0, 2, 1, 0]
    groups = similarity.groups(make(images))
    assert groups[0] == groups[2] == groups[5]
    assert len(np.unique(groups)) == 3


def test_tiny_or_flat_images_are_one_picture_only_where_they_are_equal():
    tiny = np.zeros((30, 2, 2, 3), np.uint8)
    tiny[:, 0, 0, 0] = np.arange(30)
    assert len(np.unique(similarity.groups(make(tiny)))) == 30
    flat = np.repeat(np.arange(100, 130, dtype=np.uint8), 96 * 96 * 3).reshape(30, 96, 96, 3)
    assert len(np.unique(similarity.groups(make(flat)))) == 30
    noisy = flat.copy()
    noisy[:, ::2, ::2] += 1  # structure far below a grey level at any scale that is compared
    assert len(np.unique(similarity.groups(make(noisy)))) == 30


def test_the_hash_is_the_sign_of_low_dct_frequencies_about_their_median():
    grey = np.random.default_rng(0).uniform(0, 255, (20, 32, 32)).astype(np.float32)
    spectrum = scipy.fft.dctn(grey.astype(np.float64), axes=(1, 2))[:, :9, :9].reshape(20, 81)[:, 1:65]
    # SciPy doubles each axis; the first row and column alike, so that the order about the median stays
    wanted = np.where(spectrum > np.median(spectrum, axis=1, keepdims=True), 1, -1)
    np.testing.assert_array_equal(similarity.perceptual_hash(grey), wanted)


def test_the_correlation_is_opencvs_at_the_best_shift():
    rng = np.random.default_rng(1)
    first = cv2.GaussianBlur(rng.uniform(0, 255, (48, 48)).astype(np.float32), (0, 0), 2)
    second = np.roll(first, (2, -3), (0, 1)) + rng.normal(0, 4, (48, 48)).astype(np.float32)
    scores = cv2.matchTemplate(first, second[6:42, 6:42], cv2.TM_CCOEFF_NORMED)
    assert similarity.correlation(first, second, reach=6) == pytest.approx(scores.max(), abs=1e-5)
    assert similarity.correlation(first, second, around=(-2, 3)) == pytest.approx(scores.max(), abs=1e-5)
    here = scipy.stats.pearsonr(first[6:42, 6:42].ravel(), second[6:42, 6:42].ravel()).statistic
    assert similarity.correlation(first, second) == pytest.approx(here, abs=1e-5)


def test_the_norm_of_each_window_is_numpys_also_beside_flat_ground():
    image = np.random.default_rng(0).integers(0, 256, (48, 48)).astype(np.float16).astype(np.float32) + 0.25
    image[:40, :40] = 200.0
    windows = np.lib.stride_tricks.sliding_window_view(image, (36, 36)).reshape(-1, 36 * 36).astype(np.float64)
    deviation = windows.std(axis=1)
    expected = np.where(deviation >= 0.5, 1 / np.maximum(deviation * 36, 1e-9), 0)
    assert (expected == 0).sum() == 25  # five by five windows lie within the flat part
    np.testing.assert_allclose(similarity._inverse_norms_of_windows(image, 36), expected, rtol=1e-6)
