"""One place knows all sources: the name alone decides, and whatever comes is one ImageSet of the asked size."""

import pathlib
from typing import Any

import numpy as np
import pytest

from bloodcell.data import sources
from bloodcell.data.dataset import CELL_NAMES, ImageSet
from bloodcell.errors import InputError

SHARED = pathlib.Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "pbc96"


def save(path: pathlib.Path, n: int = 16, size: int = 8) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)
    np.savez(path, images=images, labels=np.arange(n) % 8)
    return images


def test_the_demo_has_three_parts_of_the_blood_cells():
    val = sources.load("demo", part="val", image_size=32, seed=3)
    again = sources.load("demo", part="val", image_size=32, seed=3)
    assert val.images.shape == (256, 32, 32, 3)
    assert val.class_names == CELL_NAMES
    assert val.labels is not None
    assert set(val.labels) == set(range(8))
    assert val.fingerprint() == again.fingerprint()
    assert sources.load("demo", part="test", image_size=32, seed=3).fingerprint() != val.fingerprint()
    assert sources.load("demo", part="val", image_size=32, labelled=False).labels is None


def test_the_demo_refuses_other_classes():
    with pytest.raises(InputError, match="same classes"):
        sources.load("demo", part="val", image_size=16, class_names=("a", "b"))


def test_an_npz_is_given_whole_and_brought_to_size(tmp_path):
    images = save(tmp_path / "x.npz")
    assert list(sources.load_parts(str(tmp_path / "x.npz"))) == ["train"]
    np.testing.assert_array_equal(sources.load(str(tmp_path / "x.npz"), part="test").images, images)
    resized = sources.load(str(tmp_path / "x.npz"), image_size=12)
    assert resized.images.shape == (16, 12, 12, 3)
    assert resized.origin == str(tmp_path / "x.npz")


def test_a_home_relative_name_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "x.npz")
    assert len(sources.load("~/x.npz")) == 16


@pytest.mark.parametrize(("source", "said"), [
    ("dem", "did you mean 'demo'?"),
    ("nowhere/at/all", "does not exist"),
    ("nowhere.npz", "does not exist"),
    ("nowhere-*.tfrecord", "no match"),
    ("nowhere.tfrecord", "no match"),
    ("bloodmnist:30", "bloodmnist:28"),
    ("", "expected demo"),
    ("bad[.tfrecord", "TFRecord"),
])
def test_a_source_that_is_none_is_one_line(source, said):
    for read in (sources.load, sources.load_parts):
        with pytest.raises(InputError) as caught:
            read(source)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "cells.zip").write_bytes(b"x")
    with pytest.raises(InputError, match="another kind"):
        sources.load(str(tmp_path / "cells.zip"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real cells (../shared/data) are not here")
def test_a_tfrecord_glob_is_one_part():
    parts = sources.load_parts(str(SHARED / "val-*.tfrecord"), image_size=48)
    assert list(parts) == ["train"]
    assert parts["train"].images.shape == (1712, 48, 48, 3)


def make(n: int = 6) -> Any:  # an ImageSet; Any, because its labels may be None in general
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (n, 4, 4, 3), np.uint8), np.arange(n, dtype=np.int64) % 2,
                    np.arange(n, dtype=np.int64), ("a", "b"), "test", tuple(map(str, range(n))))


def test_a_subset_keeps_ids_names_and_files():
    images = make()
    part = images.subset(np.array([4, 1]))
    assert part.ids.tolist() == [4, 1]
    assert part.files == ("4", "1")
    assert part.num_classes == 2
    np.testing.assert_array_equal(part.images, images.images[[4, 1]])
    np.testing.assert_array_equal(images.subset(np.equal(images.labels, 1)).ids, [1, 3, 5])


def test_the_fingerprint_changes_with_pixels_labels_and_shape_alone():
    images = make()
    assert images.fingerprint() == make().fingerprint() == images.subset(np.arange(6)).fingerprint()
    changed = make()
    changed.images[0, 0, 0, 0] ^= 1
    relabelled = make()
    relabelled.labels[0] = 1
    reshaped = ImageSet(images.images.reshape(6, 2, 8, 3), images.labels, images.ids, ("a", "b"), "", images.files)
    unlabelled = ImageSet(images.images, None, images.ids, (), "", images.files)
    assert len({one.fingerprint() for one in (images, changed, relabelled, reshaped, unlabelled)}) == 5


def test_arrays_of_another_kind_are_a_bug_not_a_set():
    images = make()
    with pytest.raises(TypeError, match="uint8"):
        ImageSet(images.images.astype(np.float32), images.labels, images.ids, (), "", images.files)
    with pytest.raises(TypeError, match="labels"):
        ImageSet(images.images, images.labels.astype(np.int32), images.ids, (), "", images.files)
    with pytest.raises(TypeError, match="files"):
        ImageSet(images.images, images.labels, images.ids, (), "", ())
