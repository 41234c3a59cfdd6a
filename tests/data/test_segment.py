"""Segmentation keeps the cell in the middle, pixel for pixel, and nothing else; it does what the methods' names say."""

import dataclasses
import pathlib

import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.filters
from sklearn.neighbors import KNeighborsClassifier

from bloodcell.data import demo, demo_scene, segment, sources
from bloodcell.data.dataset import ImageSet
from bloodcell.data.segment import nearest, seeds, shape, stain
from bloodcell.errors import InputError

CREAM, VIOLET, SALMON = (252, 226, 200), (120, 70, 150), (222, 180, 165)
REAL = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "pbc96"
SPECS = ("threshold", "knn")


def image_set(images: np.ndarray) -> ImageSet:
    count = len(images)
    return ImageSet(images, np.arange(count) % 2, np.arange(count), ("a", "b"), "x", tuple(map(str, range(count))))


def slides(count: int = 24, *, size: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Violet discs near the middle, red cells and violet specks at the border, with noise; and the discs' masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    images, masks = [], []
    for _ in range(count):
        image = np.empty((size, size, 3))
        image[:] = CREAM
        for cy, cx in ((0.05, 0.5), (0.5, 0.06), (0.97, 0.3), (0.9, 0.95)):
            image[np.hypot(y - cy, x - cx) < 0.13] = SALMON
        image[np.hypot(y - 0.08, x - 0.9) < 0.07] = VIOLET
        cy, cx = 0.5 + rng.uniform(-0.03, 0.03, 2)
        mask = np.hypot(y - cy, x - cx) < rng.uniform(0.18, 0.26)
        image[mask] = VIOLET
        images.append(np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8))
        masks.append(mask)
    return np.stack(images), np.stack(masks)


def iou(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return (found & truth).sum(axis=(1, 2)) / (found | truth).sum(axis=(1, 2))


@pytest.fixture(scope="module")
def real() -> ImageSet:
    if not REAL.is_dir():
        pytest.skip(f"no real cells at {REAL}")
    images = sources.load(f"{REAL}/val*.tfrecord*", image_size=96)
    few = images.subset(np.arange(0, len(images), 7))
    return dataclasses.replace(few, images=np.asarray(few.images[:]))


@pytest.fixture(scope="module")
def rendered() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of the demo set, and where they are: what differs on the canvas before and after the cell's painter."""
    masks = []

    def recorded(painter):
        def paint(scene: demo_scene.Scene) -> None:
            before = scene.planes.copy()
            painter(scene)
            masks.append(np.abs(scene.planes - before).max(axis=0) > 8)
        return paint

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PAINTERS", [recorded(painter) for painter in demo.PAINTERS])
        images, labels = demo.render(40, seed=3)
    return images, labels, np.stack(masks)


# ---- The parts ------------------------------------------------------------------------------------------------------
def test_otsu_is_that_of_scikit_image_and_opencv():
    rng = np.random.default_rng(0)
    bins = np.clip(np.where(rng.random((20, 40, 40)) < rng.uniform(0.1, 0.9, (20, 1, 1)),
                            rng.normal(60, 15, (20, 40, 40)), rng.normal(170, 25, (20, 40, 40))), 0, 255)
    bins = bins.astype(np.uint8)
    cut, parted = stain.otsu(stain.histograms(bins))
    for image, mine, share in zip(bins, cut, parted, strict=True):
        assert mine == skimage.filters.threshold_otsu(image)
        assert mine == cv2.threshold(image, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0]
        upper, values = image > mine, image.astype(float)
        within = upper.mean() * values[upper].var() + (~upper).mean() * values[~upper].var()
        assert share == pytest.approx(1 - within / values.var(), abs=1e-9)


def test_otsu_of_one_value_is_zero():
    counts = stain.histograms(np.full((2, 5, 5), 7, np.uint8))
    assert (counts[:, 7] == 25).all()
    cut, parted = stain.otsu(counts)
    np.testing.assert_array_equal(cut, 0)
    np.testing.assert_array_equal(parted, 0)


@pytest.mark.parametrize("reach", [1, 2, 3, 5])
def test_discs_open_and_holes_fill_as_scipys(reach):
    mask = scipy.ndimage.uniform_filter(np.random.default_rng(reach).random((3, 40, 50)), (0, 5, 5)) > 0.5
    disc = np.zeros((1, 2 * reach + 1, 2 * reach + 1), bool)
    for dy, half in shape._disc_rows(reach):
        disc[0, reach + dy, reach - half:reach + half + 1] = True
    eroded = scipy.ndimage.binary_erosion(mask, disc, border_value=1)
    np.testing.assert_array_equal(shape.opened(mask, reach), scipy.ndimage.binary_dilation(eroded, disc) & mask)
    plane = scipy.ndimage.generate_binary_structure(2, 1)
    filled = [scipy.ndimage.binary_fill_holes(each, plane) for each in mask]
    np.testing.assert_array_equal(shape.filled(mask), np.stack(filled))


def test_exact_neighbours_are_scikit_learns():
    rng = np.random.default_rng(1)
    known = nearest.Seeds(rng.random((500, 5), dtype=np.float32), rng.random(500) < 0.5)
    asked = rng.random((2000, 5), dtype=np.float32)
    weights = np.array([1, 1, 1, 0.3, 0.3], np.float32)
    oracle = KNeighborsClassifier(7).fit(known.features * weights, known.foreground)
    mine = nearest.Table(known, k=7, position=0.3).exact(asked)
    np.testing.assert_array_equal(mine, oracle.predict(asked * weights))


def test_the_table_agrees_with_exact_neighbours_on_real_cells(real):
    learned = seeds.from_set(real.images, 0.6)
    few = real.images[::24]
    shares = nearest.colours(few, stain.ground(few))
    features = np.concatenate([shares, np.broadcast_to(nearest.places(96, 96), (len(few), 96, 96, 2))], axis=-1)
    weights = np.array([1, 1, 1, 0.1, 0.1], np.float32)
    oracle = KNeighborsClassifier(5, algorithm="kd_tree").fit(learned.features * weights, learned.foreground)
    exact = oracle.predict(features.reshape(-1, 5) * weights)
    assert (nearest.Table(learned, k=5, position=0.1)(shares).ravel() == exact).mean() > 0.99


# ---- The whole ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("size", [28, 96, 160])
def test_the_disc_in_the_middle_is_found_and_its_pixels_untouched(text, size):
    images, truth = slides(size=size)
    done = segment.learn(text, image_set(images)).apply(image_set(images))
    found = (done.images.images[:] != 255).any(axis=-1)
    assert iou(found, truth).min() > (0.98 if size > 28 else 0.95)  # at 28 pixels a sixth of a disc is its outline
    np.testing.assert_array_equal(done.images.images[found], images[found])
    assert not done.whole.any()
    np.testing.assert_allclose(done.foreground, found.mean(axis=(1, 2)), atol=0.002)


@pytest.mark.parametrize("text", SPECS)
def test_each_image_is_segmented_by_itself_and_always_alike(text):
    images, _ = slides(30)
    one, other = (segment.learn(text, image_set(images)) for _ in range(2))
    masks = one.masks(images)
    assert one.digest() == other.digest()
    np.testing.assert_array_equal(other.masks(images[::-1])[::-1], masks)
    np.testing.assert_array_equal(other.masks(images[3:4]), masks[3:4])


@pytest.mark.parametrize(("fill", "colour"), [("fill=255", 255), ("fill='white'", 255), ("fill=black", 0), ("90", 90)])
def test_the_background_has_the_fill(fill, colour):
    images, truth = slides(8)
    done = segment.learn(f"threshold({fill})", image_set(images)).apply(image_set(images)).images.images
    assert (done[~scipy.ndimage.binary_dilation(truth, iterations=2, structure=np.ones((1, 3, 3)))] == colour).all()


def test_the_mean_fill_is_the_grounds_colour():
    images, _ = slides(8)
    assert np.abs(segment.learn("threshold(fill='mean')", image_set(images)).fill - np.array(CREAM)).max() <= 6


def test_images_without_a_cell_stay_whole_and_are_counted():
    images, _ = slides(8)
    images[2] = 255
    images[5] = np.random.default_rng(0).integers(0, 256, images[5].shape)
    done = segment.learn("threshold", image_set(slides(8)[0])).apply(image_set(images))
    assert done.whole[2]
    np.testing.assert_array_equal(done.images.images[2], images[2])
    assert f"{done.whole.sum()} of 8 images left whole" in done.line("train")


@pytest.mark.parametrize("text", SPECS)
def test_rendered_cells_are_found(rendered, text):
    images, labels, truth = rendered
    overlap = iou(segment.learn(text, image_set(images)).masks(images), truth)
    by_class = [overlap[labels == label].mean() for label in np.unique(labels)]
    assert np.mean(by_class) > 0.9, by_class
    assert min(by_class) > 0.6, by_class  # eosinophils, whose granules are nearly as red as red cells


@pytest.mark.parametrize("text", SPECS)
def test_real_cells_have_a_foreground_of_a_cells_size(real, text):
    done = segment.learn(text, real).apply(real)
    assert done.whole.mean() < 0.02
    share = [np.median(done.foreground[real.labels == label]) for label in range(8)]
    assert 0.04 < share[7] < 0.12  # platelets
    assert all(0.15 < each < 0.6 for each in share[:7]), share
    assert max(share) == share[5]  # monocytes are the largest cells of blood


# ---- Seeds from masks -----------------------------------------------------------------------------------------------
def write_pairs(folder: pathlib.Path, images: np.ndarray, masks: np.ndarray) -> None:
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        cv2.imwrite(str(folder / f"{index}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / f"{index}_mask.png"), mask.astype(np.uint8) * 255)


def test_a_folder_and_a_file_of_masks_teach_the_same(tmp_path):
    images, truth = slides(4)
    write_pairs(tmp_path, images, truth)
    np.savez(tmp_path / "masks.npz", images=images, masks=truth)
    np.savez(tmp_path / "numbers.npz", images=images, masks=truth.astype(np.uint8))
    others, their_truth = slides(12, seed=9)
    made = [segment.learn(f"knn(masks='{path}')", image_set(others))
            for path in (tmp_path, tmp_path / "masks.npz", tmp_path / "numbers.npz")]
    assert len({each.digest() for each in made}) == 1
    assert iou(made[0].masks(others), their_truth).min() > 0.95
    small, small_truth = slides(12, seed=9, size=48)
    assert iou(segment.learn(f"knn(masks='{tmp_path}')", image_set(small)).masks(small), small_truth).min() > 0.9


def test_what_a_run_keeps_gives_the_same_masks_without_the_masks_files(tmp_path):
    images, truth = slides(4)
    np.savez(tmp_path / "masks.npz", images=images, masks=truth)
    text = f"knn(k=3, masks='{tmp_path}/masks.npz', fill='mean')"
    made = segment.learn(text, image_set(images))
    made.save(tmp_path)
    (tmp_path / "masks.npz").unlink()
    again = segment.load(tmp_path, text)
    assert again.digest() == made.digest()
    np.testing.assert_array_equal(again.masks(images), made.masks(images))
    with pytest.raises(InputError, match=r"segment\.npz"):
        segment.load(tmp_path, "threshold")
    (tmp_path / segment.FILE).write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"segment\.npz"):
        segment.load(tmp_path, text)


@pytest.mark.parametrize(("arrays", "expected"), [
    ({}, "expected the keys images, masks"),
    ({"masks": np.zeros((4, 95, 96), bool)}, "masks bool [4, 95, 96]"),
    ({"masks": np.zeros((4, 96, 96), np.float32)}, "masks float32"),
    ({"masks": np.zeros((4, 96, 96), bool)}, "ground alone"),
    ({"masks": np.ones((4, 96, 96), np.uint8)}, "foreground alone"),
    ({"masks": np.array([None] * 4)}, "pickled Python objects"),
])
def test_a_file_of_masks_that_cannot_be_used_is_one_line(tmp_path, arrays, expected):
    images, _ = slides(4)
    np.savez(tmp_path / "m.npz", images=images, **arrays)
    with pytest.raises(InputError) as caught:
        segment.learn(f"knn(masks='{tmp_path}/m.npz')", image_set(images))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("spoil", "expected"), [
    (lambda folder: [path.unlink() for path in folder.iterdir()], "received no image at all"),
    (lambda folder: (folder / "1_mask.png").unlink(), "1.png' alone"),
    (lambda folder: (folder / "1.png").unlink(), "1_mask.png' alone"),
    (lambda folder: (folder / "1_mask.png").write_bytes(b"no picture"), "1_mask.png"),
    (lambda folder: cv2.imwrite(str(folder / "1_mask.png"), np.zeros((96, 95), np.uint8)), "96x95"),
    (lambda folder: cv2.imwrite(str(folder / "1_mask.png"), np.zeros((96, 96), np.uint8)), "ground alone"),
])
def test_a_folder_of_masks_that_cannot_be_used_is_one_line(tmp_path, spoil, expected):
    images, truth = slides(3)
    write_pairs(tmp_path, images, truth)
    spoil(tmp_path)
    with pytest.raises(InputError) as caught:
        segment.learn(f"knn(masks='{tmp_path}')", image_set(images))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_without_cells_teaches_nothing():
    images = slides(20)[0].mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype(np.uint8)  # grey: no stain
    with pytest.raises(InputError, match="expected stained cells"):
        segment.learn("knn", image_set(images))


@pytest.mark.parametrize(("text", "expected"), [
    ("nearest", "unknown name 'nearest'"), ("knn(k=4)", "try k=5"), ("knn(k=0)", "1..99"),
    ("threshold(fill=256)", "0..255"), ("threshold(fill='red')", "'mean'"), ("threshold(level=9)", "0.1..2"),
    ("knn(mask='x')", "did you mean 'masks'?"), ("threshold | knn", "expected one term"),
    ("threshold(fill=-1)", "0..255"), ("threshold(fill=True)", "0..255"), ("threshold(fill=None)", "fill")])
def test_a_bad_spec_is_one_line(text, expected):
    with pytest.raises(InputError) as caught:
        segment.parse(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_that_mean_the_same_are_the_same():
    assert segment.same("knn(k=5, masks='a')", "knn(fill=255)")
    assert segment.same("", "")
    assert not segment.same("threshold", "threshold(fill=0)")
    assert not segment.same("knn", "threshold")
    assert not segment.same("", "threshold")


def test_a_missing_masks_file_is_one_line():
    with pytest.raises(InputError, match="no such file"):
        segment.learn("knn(masks='/nowhere')", image_set(slides(4)[0]))
