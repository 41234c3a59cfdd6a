"""Each of the eleven corruptions is what MedMNIST-C defines, at its five severities, for an image and its id alone."""

from typing import Any

import cells
import cv2
import numpy as np
import pytest
import skimage.color
from PIL import Image, ImageDraw, ImageEnhance

from bloodcell.evaluate import medmnist_c
from bloodcell.evaluate.medmnist_c import CORRUPTIONS, apply, draw

# The published table, for 224x224; the side of a blot is that of the program's own masks.
PUBLISHED: dict[str, list[Any]] = {
    "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
    "jpeg": [50, 30, 15, 10, 7],
    "defocus": [(2, 0.01), (3, 0.1), (4, 0.1), (5, 0.1), (6, 0.1)],
    "motion": [(3, 3), (5, 5), (10, 5), (10, 7), (10, 9)],
    "brightness_up": [1.1, 1.2, 1.3, 1.35, 1.4],
    "brightness_down": [0.9, 0.8, 0.7, 0.6, 0.5],
    "contrast_up": [1.1, 1.15, 1.2, 1.25, 1.3],
    "contrast_down": [0.9, 0.8, 0.7, 0.6, 0.5],
    "saturate": [0.05, 0.10, 0.15, 0.17, 0.20],
    "stain_deposit": [(1, 24), (2, 24), (3, 24), (3, 24), (3, 32)],
    "bubble": [(5, 10), (7, 10), (10, 10), (12, 12), (15, 12)],
}
SEVERITIES = range(1, 6)
IDS = np.array([3, 2**40, 0, 11, 500, 12])


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    """uint8 [6, 96, 96, 3]: cells, noise, one colour and an image of two levels."""
    return np.concatenate([cells.cells(3), cells.hard(3)])


@pytest.fixture(scope="module")
def full(small) -> np.ndarray:
    """uint8 [6, 224, 224, 3]: the size for which the parameters are published."""
    return np.stack([cv2.resize(image, (224, 224), interpolation=cv2.INTER_LINEAR) for image in small])


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other)


def test_the_parameters_are_the_published_ones():
    assert set(CORRUPTIONS) == set(PUBLISHED)
    for name, entry in CORRUPTIONS.items():
        assert list(entry.severities) == [each if isinstance(each, tuple) else (each,) for each in PUBLISHED[name]]
        assert all(len(each) == len(entry.names) for each in entry.severities)


def test_alexnet_s_published_errors_have_the_published_mean():
    assert np.mean([entry.alexnet for entry in CORRUPTIONS.values()]) == pytest.approx(0.1125, abs=5e-5)
    assert pytest.approx(0.0184, abs=5e-5) == medmnist_c.ALEXNET_CLEAN


# ---------------------------------------------------------------------------------------------------------------------
# Against the definitions
# ---------------------------------------------------------------------------------------------------------------------

def box(image: np.ndarray, side: int) -> np.ndarray:
    """Pillow's box filter along the first axis: the mean of the pixels whose centres a new one covers, else the one."""
    scale = len(image) / side
    rows = []
    for index in range(side):
        low, high = index * scale, (index + 1) * scale
        if scale < 1:
            low, high = (low + high) / 2 - 0.5, (low + high) / 2 + 0.5
        inside = [row for row in range(len(image)) if low < row + 0.5 <= high]
        rows.append(image[inside].mean(axis=0))
    return np.floor(np.stack(rows) + 0.5)  # a half goes up, twice on the way to a result


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_a_box_filter_down_and_up(small, severity):
    side = int(96 * PUBLISHED["pixelate"][severity - 1])
    for image, result in zip(small, apply("pixelate", small, IDS, severity), strict=True):
        expected = image.astype(float)
        for target in (side, 96):
            expected = box(box(expected.swapaxes(0, 1), target).swapaxes(0, 1), target)
        np.testing.assert_array_equal(result, expected)
        assert len(np.unique(result.reshape(-1, 3), axis=0)) <= side**2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_opencv_s_at_that_quality(full, severity):
    quality = PUBLISHED["jpeg"][severity - 1]
    for image, result in zip(full, apply("jpeg", full, IDS, severity), strict=True):
        _, file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        expected = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))[..., ::-1]
        assert difference(result, expected).max() <= 2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_opencv_s_filter_with_the_published_disk(full, severity):
    radius, alias = PUBLISHED["defocus"][severity - 1]
    line = np.arange(-8, 9)
    disk = (line[:, None]**2 + line**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (3, 3), alias)
    for image, result in zip(full, apply("defocus", full, IDS, severity), strict=True):
        expected = np.clip(cv2.filter2D(image / 255.0, -1, kernel), 0, 1) * 255
        apart = result - expected  # cut off: from 0 down to one level
        assert apart.max() <= 2e-3
        assert apart.min() > -1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_is_imagemagick_s_row_of_taps(full, severity):
    radius, sigma = PUBLISHED["motion"][severity - 1]
    angles = np.radians(90 * draw("motion", IDS, severity)[:, 0] - 45)
    weights = [np.exp(-far**2 / (2 * sigma**2)) for far in range(2 * radius + 1)]
    for image, angle, result in zip(full, angles, apply("motion", full, IDS, severity), strict=True):
        kernel = np.zeros((41, 41))
        for far, weight in enumerate(weights):
            kernel[20 + int(np.ceil(far * np.sin(angle) - 0.5)), 20 + int(np.ceil(far * np.cos(angle) - 0.5))] += weight
        expected = cv2.filter2D(image.astype(float), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
        assert np.abs(result - expected).max() <= 0.501


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("name", "enhance"), [("brightness_up", ImageEnhance.Brightness),
                                               ("brightness_down", ImageEnhance.Brightness),
                                               ("contrast_up", ImageEnhance.Contrast),
                                               ("contrast_down", ImageEnhance.Contrast)])
def test_light_is_pillow_s_to_the_level(small, name, enhance, severity):
    for image, result in zip(small, apply(name, small, IDS, severity), strict=True):
        expected = enhance(Image.fromarray(image)).enhance(PUBLISHED[name][severity - 1])
        np.testing.assert_array_equal(result, np.asarray(expected))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_adds_in_scikit_image_s_hsv(small, severity):
    images = small.copy()
    images[3, :40] = images[3, :40, :, :1]  # greys, which have no hue
    images[4, :9, :9] = 0
    hsv = skimage.color.rgb2hsv(images / 255.0)
    hsv[..., 1] = np.clip(hsv[..., 1] + PUBLISHED["saturate"][severity - 1], 0, 1)
    expected = np.clip(skimage.color.hsv2rgb(hsv), 0, 1) * 255
    apart = apply("saturate", images, IDS, severity) - expected  # cut off
    assert apart.max() <= 2e-3
    assert apart.min() > -1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_bubbles_are_pillow_s_ellipses_pasted_by_their_alpha(full, severity):
    largest, most = PUBLISHED["bubble"][severity - 1]
    drawn = draw("bubble", IDS, severity)
    for image, u, result in zip(full, drawn, apply("bubble", full, IDS, severity), strict=True):
        expected = Image.fromarray(image)
        over = Image.new("RGBA", (224, 224), (255, 255, 255, 0))
        pen = ImageDraw.Draw(over)
        for index in range(7 + int(u[0] * (most - 6))):
            own = u[1 + 3 * index:4 + 3 * index]
            radius = 3 + int(own[0] * (largest - 2))
            x, y = (radius + int(each * (225 - 2 * radius)) for each in own[1:])
            for reach, alpha in ((radius + 2, 130), (radius, 100)):
                pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(255, 255, 255, alpha))
        expected.paste(over, (0, 0), over)
        np.testing.assert_array_equal(result, np.asarray(expected))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_deposits_are_one_to_so_many_black_marks_away_from_the_border(severity):
    most, side = PUBLISHED["stain_deposit"][severity - 1]
    ids = np.arange(40)
    result = apply("stain_deposit", np.full((40, 224, 224, 3), 200, np.uint8), ids, severity)
    assert set(np.unique(result)) == {0, 200}
    marks = (result == 0).all(axis=-1)
    np.testing.assert_array_equal((result == 0).any(axis=-1), marks)
    assert not marks[:, :10].any()
    assert not marks[:, -10:].any()
    assert not marks[:, :, :10].any()
    assert not marks[:, :, -10:].any()
    number = np.array([cv2.connectedComponents(mark.astype(np.uint8))[0] - 1 for mark in marks])
    areas = marks.sum(axis=(1, 2))
    assert number.min() == 1
    assert number.max() == most
    assert (areas >= 0.43 * side**2).all()
    assert (areas <= 0.8 * side**2 * most).all()
    one = marks[number == 1]
    boxes = np.array([[np.ptp(np.flatnonzero(mark.any(axis=axis))) + 1 for axis in (0, 1)] for mark in one])
    assert (boxes == side).all(axis=1).mean() > 0.8  # the others are marks that overlap


@pytest.mark.parametrize("side", [24, 32])
def test_blots_are_ten_shapes_of_the_published_area(side):
    shares = (medmnist_c.blots(side) == 255).mean(axis=(1, 2))
    assert len(np.unique(medmnist_c.blots(side).reshape(10, -1), axis=0)) == 10
    assert 0.54 <= shares.mean() <= 0.63
    assert shares.min() > 0.43
    assert shares.max() < 0.8


def test_what_is_drawn_covers_its_range_evenly():
    many = np.arange(8000)
    angle = 90 * draw("motion", many, 2)[:, 0] - 45
    assert angle.min() < -44.9
    assert angle.max() > 44.9
    assert abs(angle.mean()) < 5 * 26 / np.sqrt(8000)
    values = draw("bubble", many, 5)
    assert values.shape == (8000, 37)
    counts = np.bincount((7 + values[:, 0] * 6).astype(int), minlength=13)[7:]
    assert len(counts) == 6
    assert np.abs(counts - 8000 / 6).max() < 5 * np.sqrt(8000 / 6)
    assert np.abs(np.corrcoef(values.T) - np.eye(37)).max() < 0.06


# ---------------------------------------------------------------------------------------------------------------------
# Other sides, batches, formats
# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", ["defocus", "motion", "stain_deposit", "bubble"])
@pytest.mark.parametrize("side", [96, 448])
def test_lengths_are_shares_of_the_side(full, name, severity, side):
    """What another size gets is nearly what the published size shows when it is brought to that one."""
    def brought(images: np.ndarray) -> np.ndarray:
        how = cv2.INTER_AREA if side < 224 else cv2.INTER_LINEAR
        return np.stack([cv2.resize(image, (side, side), interpolation=how) for image in images])

    images, ids = cv2.GaussianBlur(full[:3].reshape(-1, 224, 3), (5, 5), 2).reshape(-1, 224, 224, 3), IDS[:3]
    here, there = brought(images), brought(apply(name, images, ids, severity))
    effect = difference(there, here)
    assert difference(apply(name, here, ids, severity), there).mean() < 0.2 * effect.mean() + 0.5


def test_an_image_s_result_depends_on_it_and_its_id_alone(small):
    for name in CORRUPTIONS:
        whole = apply(name, small, IDS, 4)
        assert whole.dtype == np.uint8
        assert whole.shape == small.shape
        for rows in ([2], [5, 0, 3]):
            np.testing.assert_array_equal(apply(name, small[rows], IDS[rows], 4), whole[rows])
        assert not np.shares_memory(whole, small)


def test_ids_severities_and_names_draw_apart():
    for name in ("motion", "stain_deposit", "bubble"):
        drawn = {(which, severity): draw(name, np.array([which]), severity).tobytes()
                 for which in (0, 1, 2**40) for severity in SEVERITIES}
        assert len(set(drawn.values())) == 15
    assert draw("motion", IDS, 1)[0, 0] != draw("bubble", IDS, 1)[0, 0]


def test_draws_stay_what_they_were():
    """A figure that was measured once can be measured again."""
    assert (draw("motion", np.array([0, 7]), 3)[:, 0] * 2**24).astype(int).tolist() == [1303610, 14265623]


@pytest.mark.parametrize("side", [16, 28])
def test_small_images_come_through(side):
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            assert apply(name, images, IDS[:2], severity).shape == images.shape


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_a_severity_that_there_is_not_is_refused(small, severity):
    with pytest.raises(ValueError, match=r"severity: expected 1\.\.5"):
        apply("jpeg", small, IDS, severity)
