"""Folders of images: order, labels, sizes, and each kind of bad folder as one line."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from bloodcell.data import folder, sources
from bloodcell.data.resize import to_square
from bloodcell.errors import InputError


def write(path: pathlib.Path, size: tuple[int, int] = (12, 12), seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(image).save(path)
    return image


def error(path: pathlib.Path, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        folder.load(path, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders_become_sorted_classes_and_exact_pixels(tmp_path):
    expected = [write(tmp_path / name, seed=seed) for seed, name in enumerate(
        ["basophil/a.png", "basophil/deep/b.bmp", "monocyte/0.PNG", "monocyte/9.png"])]
    (tmp_path / "monocyte" / "notes.txt").write_text("not an image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    got = folder.load(tmp_path)
    np.testing.assert_array_equal(got.images, np.stack(expected))
    assert got.labels is not None
    assert got.labels.tolist() == [0, 0, 1, 1]
    assert got.class_names == ("basophil", "monocyte")
    assert got.files == ("basophil/a.png", "basophil/deep/b.bmp", "monocyte/0.PNG", "monocyte/9.png")


def test_jpeg_is_decoded_as_pillow_does(tmp_path):
    smooth = np.linspace(0, 255, 32).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(smooth[:, None], smooth[None], np.uint8(90)), -1)
    (tmp_path / "a").mkdir()
    Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / "a" / "x.jpg", quality=95, subsampling=0)
    with Image.open(tmp_path / "a" / "x.jpg") as opened:
        expected = np.asarray(opened).astype(int)
    difference = np.abs(folder.load(tmp_path).images[0] - expected)
    assert difference.mean() < 1.5  # TensorFlow's default is libjpeg's fast integer DCT, Pillow's the accurate one
    assert difference.max() <= 8


def test_parts_share_the_training_folder_names(tmp_path):
    for seed, name in enumerate(["train/a/1.png", "train/b/1.png", "val/b/1.png", "test/a/1.png", "test/b/1.png"]):
        write(tmp_path / name, seed=seed)
    assert folder.parts(tmp_path) == ("train", "val", "test")
    loaded = sources.load_parts(str(tmp_path))
    for part, labels in {"train": [0, 1], "val": [1], "test": [0, 1]}.items():
        np.testing.assert_array_equal(loaded[part].labels, labels)
    assert list(loaded) == ["train", "val", "test"]
    assert {images.class_names for images in loaded.values()} == {("a", "b")}


def test_a_missing_part_and_an_unknown_class_are_named(tmp_path):
    write(tmp_path / "train/basophil/1.png")
    assert "val/" in error(tmp_path, part="val")
    write(tmp_path / "val/basofil/1.png")
    assert "did you mean 'basophil'?" in error(tmp_path, part="val")


def test_flat_folders_are_read_sorted_and_unlabelled(tmp_path):
    for name in ["b.png", "a.png", "sub/c.png"]:
        write(tmp_path / name)
    got = folder.load(tmp_path, labelled=False)
    assert got.files == ("a.png", "b.png", "sub/c.png")
    assert got.labels is None


def test_images_beside_or_instead_of_class_folders_are_refused(tmp_path):
    write(tmp_path / "a.png")
    assert "one folder of images per class" in error(tmp_path)
    write(tmp_path / "x/b.png")
    assert "first a.png" in error(tmp_path)


def test_an_empty_class_is_named(tmp_path):
    write(tmp_path / "a/1.png")
    (tmp_path / "b").mkdir()
    assert "none of class 'b'" in error(tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    assert "no folder at all" in error(tmp_path)
    assert "received none" in error(tmp_path, labelled=False)


def test_unequal_images_name_the_first_two_that_differ(tmp_path):
    write(tmp_path / "a/1.png")
    write(tmp_path / "a/2.png")
    write(tmp_path / "b/3.png", (12, 14))
    write(tmp_path / "b/4.png", (10, 10))
    text = error(tmp_path)
    assert "a/1.png (12x12) and b/3.png (12x14)" in text
    assert "--image_size" in text


def test_unreadable_images_are_counted_and_the_first_is_named(tmp_path):
    write(tmp_path / "a/0.png")
    (tmp_path / "a/1.png").write_bytes((tmp_path / "a/0.png").read_bytes()[:60])
    (tmp_path / "a/2.jpg").write_bytes(b"not an image")
    (tmp_path / "a/3.bmp").write_bytes(b"")
    text = error(tmp_path)
    assert "3 of 4" in text
    assert "first a/1.png" in text


def test_image_size_cuts_the_centre_and_makes_all_equal(tmp_path):
    image = write(tmp_path / "a/1.png", (12, 20))
    write(tmp_path / "a/2.png", (30, 24))
    got = folder.load(tmp_path, image_size=12)
    assert got.images.shape == (2, 12, 12, 3)
    np.testing.assert_array_equal(got.images[0], image[:, 4:16])


@pytest.mark.parametrize(("size", "target"), [(40, 13), (20, 31), (200, 96)])
def test_resizing_equals_pillows_bicubic(size, target):
    rng = np.random.default_rng(1)
    image = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((size, size)))
    expected = np.asarray(Image.fromarray(image).resize((target, target), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(to_square(image[None], target)[0] - expected)
    assert difference.max() <= 2  # Pillow rounds to whole grey levels between its two passes as well
    assert difference.mean() < 0.3


def test_resizing_in_chunks_equals_resizing_one_by_one(monkeypatch):
    images = np.random.default_rng(2).integers(0, 256, (7, 16, 16, 3), np.uint8)
    alone = np.concatenate([to_square(image[None], 10) for image in images])
    monkeypatch.setattr("bloodcell.data.resize._CHUNK_PIXELS", 3 * 16 * 16)
    np.testing.assert_array_equal(to_square(images, 10), alone)
